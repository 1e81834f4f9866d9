"""Schema 2.0 of mantispy (scverse) for AnnData: what `mantispy.io.validate` asks of obs, var and uns.

Facts from the package's own messages and documentation (its first alpha). A row is a "well" (Metadata_Plate and
Metadata_Well), an "object" of an image (here a site, or a region of it) or an "aggregate" of wells.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

VERSION = "2.0"
_TEXT_OF_VARIABLES = ("object", "feature_group", "feature", "channel", "radial_bin", "params")
_NUMBERS_OF_VARIABLES = ("scale", "angle", "gray_levels")
_CONTROLS = {
    "": "treatment",
    "trt": "treatment",
    "treatment": "treatment",
    "negcon": "negcon",
    "poscon": "poscon",
    "poscon_cp": "poscon",
    "poscon_diverse": "poscon",
    "poscon_orf": "poscon",
    "empty": "empty",
}


def variable_columns(count: int) -> dict[str, object]:
    """Columns of var for `count` features that are an embedding: what CellProfiler's names would say is empty."""
    text: dict[str, object] = {
        name: pd.Categorical([None] * count, categories=[]) for name in _TEXT_OF_VARIABLES
    }
    numbers = {name: np.full(count, np.nan) for name in _NUMBERS_OF_VARIABLES}
    return (
        text
        | numbers
        | {
            "is_feature": np.ones(count, dtype=bool),
            "feature_kind": pd.Categorical(["embedding"] * count, categories=["embedding"]),
        }
    )


def resolution_of(obs: pd.DataFrame) -> str:
    """What a row is: "object" where wells repeat or sites are named, "well", or "aggregate" without plate or well."""
    if "Metadata_Well" not in obs or "Metadata_Plate" not in obs:
        return "aggregate"
    several = obs.duplicated(["Metadata_Plate", "Metadata_Well"]).any()
    return "object" if several or "Metadata_Site" in obs else "well"


def derived_columns(obs: pd.DataFrame) -> dict[str, object]:
    """Columns that the schema or its tools ask for and `obs` has not.

    Metadata_Batch is the plate where no batch is named. Sites and regions get the identity of objects: the image
    (plate, well, site), its kind and its number in it.
    """
    found: dict[str, object] = {}
    if "Metadata_Plate" in obs and "Metadata_Batch" not in obs:
        found["Metadata_Batch"] = obs["Metadata_Plate"].to_numpy()
    if resolution_of(obs) == "object":
        names = ("Metadata_Source", "Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site")
        image = obs[[n for n in names if n in obs]].astype(str).agg("__".join, axis=1)
        identity = {
            "Metadata_ImageID": image.to_numpy(),
            "Metadata_ObjectType": np.full(len(obs), "Site", dtype=object),
            "Metadata_ObjectNumber": (image.groupby(image).cumcount() + 1).to_numpy(),
        }
        found |= {name: values for name, values in identity.items() if name not in obs}
    return found


def controls_of(obs: pd.DataFrame) -> dict[str, object] | None:
    """Metadata_Control_Type in the schema's words, and Metadata_Control, from the Gallery's Metadata_control_type.

    None without such a column, and with a warning where it holds a word that says neither control nor treatment.
    """
    named = [name for name in obs if str(name).lower() == "metadata_control_type"]
    if not named:
        return None
    words = obs[named[-1]].astype(str).str.strip().str.lower()
    unknown = sorted(set(words) - set(_CONTROLS))
    if unknown:
        warnings.warn(
            f"{named[-1]} says {unknown[0]!r}, which is none of {', '.join(filter(None, _CONTROLS))}: "
            "Metadata_Control_Type and Metadata_Control are left out of the AnnData form",
            stacklevel=4,
        )
        return None
    kinds = words.map(_CONTROLS)
    return {
        "Metadata_Control_Type": kinds.astype(object).to_numpy(),
        "Metadata_Control": (kinds != "treatment").to_numpy(),
    }


def schema_of(obs: pd.DataFrame) -> dict[str, object]:
    """Entry of uns: version, what a row is and by which columns, and where perturbations and controls stand."""
    resolution = resolution_of(obs)
    perturbation = "Metadata_Perturbation" in obs
    grouped: dict[str, list[str]] = {
        "object": [],
        "well": ["Metadata_Plate", "Metadata_Well"],
        "aggregate": ["Metadata_Perturbation"] if perturbation else [str(n) for n in obs.columns[:1]],
    }
    found: dict[str, object] = {
        "schema_version": VERSION,
        "resolution": resolution,
        "grouped_by": grouped[resolution],
    }
    if perturbation:
        found["perturbation"] = {"column": "Metadata_Perturbation"} | (
            {"control_column": "Metadata_Control_Type"} if "Metadata_Control_Type" in obs else {}
        )
    return found
