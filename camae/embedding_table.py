"""Embeddings table: `Metadata_*` text columns first, then emb_0000.., model and preprocessing in the file.

Also the rules that every table of profiles obeys: which columns are features, which rows are one well, and what a
row stands for (a site, a well, a treatment).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from camae.errors import CamaeError, MissingFileError
from camae.files import local_path, write_atomic
from camae.text_table import as_text
from camae.wells import DEPTH, SITE, TIME, WELL, normal_well

Unit: TypeAlias = Literal["site", "well", "treatment"]  # what a row of a table stands for
Kind: TypeAlias = Literal["float", "integer", "text", "empty"]  # what a column holds

MOMENT = (*TIME, *DEPTH)  # kept apart within a well
_KEY, _UNIT_KEY = b"camae", b"camae_unit"

_EMBEDDING = re.compile(r"emb_(.+_)?\d+")  # emb_0000, emb_sd_0000, emb_DNA_mean_0000
_INTENSITY = re.compile(r"intensity_.+_(mean|sd|q\d\d)")  # beside embeddings, from intensity=True
_COMPARTMENT = re.compile(r"(Cells|Cytoplasm|Nuclei)_.+")
_IMAGE = re.compile(r"Image_.+")
# Identifiers, places, paths and counters of CellProfiler, pandas and bare tables: numbers, but no features.
_IDENTIFIER = re.compile(
    r"""Unnamed:\ ?\d+.* | index | level_\d+ | __index_level_\d+__
    | (.+_)?Metadata_.*
    | (.+_)?(Image|Object|Table)_?Number(_.*)? | (.+_)?Number_Object_Number
    | (.+_)?Location_Center_[XYZ]
    | (Image_)?(FileName|PathName|URL|MD5Digest)_.*
    | Image_(Frame|Series|Scaling|ExecutionTime|ModuleError|Group|Width|Height|Channel)_.*
    | Image_Processing_?Status
    | (source|batch|plate|well|site|field|fov|row|col|column|replicate|time|time_?point|z|tiles)
    | (concentration|dose|count|cell_?count|n_?cells)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PARENT = re.compile(r"(.+_)?Parent_.*")
# Metadata that says what was done to a well: its sites must agree in it.
_TREATMENT = re.compile(
    r"""Metadata_(.*perturbation.* | .*treatment.* | .*compound.* | .*gene(_.*)? | .*guide.* | .*sgrna.* | pert_.*
    | broad_sample | jcp2022 | .*control.* | .*concentration.* | .*dose.* | smiles | inchi.* | moa | .*target.*
    | .*cell_?(type|line))""",
    re.VERBOSE | re.IGNORECASE,
)
# A row of a table of regions is one of several of its site.
_REGION = re.compile(
    r"(Metadata_)?(.*Cell_[XY]|.*Object_?Number.*|Object.*|Region.*|.*Location_Center.*|tile(_.*)?)",
    re.IGNORECASE,
)


def feature_columns(count: int) -> list[str]:
    """Names of feature columns: emb_0000, emb_0001, ..."""
    return [f"emb_{i:04d}" for i in range(count)]


def select_features(
    names: Sequence[str], kind: Callable[[str], Kind], whole: Callable[[str], bool]
) -> tuple[list[str], dict[str, str]]:
    """Feature columns of a table of profiles, and why other columns of numbers are none.

    names: all columns. kind, whole: what a column holds, and whether its numbers are all whole; asked only where
        the names do not tell.
    Features are the emb_#### columns (also emb_mean_####) and the intensity_ columns beside them; without them those
    of CellProfiler's compartments (Cells_, Cytoplasm_, Nuclei_, and Image_ beside them); without them all columns of
    floating-point numbers. Metadata, identifiers, places and paths are never features.
    Returns the features in the table's order, and name -> reason for each column of numbers that is left out.
    """
    left_out: dict[str, str] = {}
    candidates = []
    for name in names:
        if name.startswith("Metadata_"):
            continue
        if _IDENTIFIER.fullmatch(name) or (_PARENT.fullmatch(name) and kind(name) != "text" and whole(name)):
            if kind(name) != "text":
                left_out[name] = "an identifier or a position, no feature"
        else:
            candidates.append(name)
    features = [name for name in candidates if _EMBEDDING.fullmatch(name)]
    if features:
        features = [n for n in candidates if _EMBEDDING.fullmatch(n) or _INTENSITY.fullmatch(n)]
    reason = "a number beside the emb_#### columns"
    if not features and any(_COMPARTMENT.fullmatch(name) for name in candidates):
        features = [n for n in candidates if _COMPARTMENT.fullmatch(n) or _IMAGE.fullmatch(n)]
        features = [n for n in features if not _IMAGE.fullmatch(n) or kind(n) != "text"]
        reason = "a number beside the features of CellProfiler's compartments"
    if not features:
        features = [name for name in candidates if kind(name) == "float"]
        reason = "whole numbers beside the features"
    if not features:
        features = [n for n in candidates if _IMAGE.fullmatch(n) and kind(n) != "text"]
    chosen = set(features)
    for name in candidates:
        if name not in chosen and kind(name) != "text":
            left_out[name] = "no value in any row" if kind(name) == "empty" else reason
    return features, left_out


def feature_names(table: pd.DataFrame) -> list[str]:
    """Names of a table's feature columns (`select_features`)."""

    def kind(name: str) -> Kind:
        if table[name].isna().all() and len(table):
            return "empty"
        kinds: dict[str, Kind] = {"f": "float", "i": "integer", "u": "integer"}
        return kinds.get(table[name].dtype.kind, "text")

    def whole(name: str) -> bool:
        return bool((table[name].dropna() % 1 == 0).all())

    return select_features([str(name) for name in table.columns], kind, whole)[0]


def unit_of(metadata: pd.DataFrame) -> Unit:
    """Unit of replication of a table's rows: a "site" where wells repeat, a "well", a "treatment" without wells.

    Wells count once in each of their spellings, plate, time and depth.
    """
    if "Metadata_Well" not in metadata:
        return "treatment"
    keys = [name for name in (*WELL, *MOMENT) if name in metadata]
    wells = metadata[keys].assign(Metadata_Well=metadata["Metadata_Well"].astype(str).map(normal_well))
    return "site" if wells.astype(str).duplicated().any() else "well"


def has_regions(metadata: pd.DataFrame) -> bool:
    """Whether the rows are regions or objects (cells) of sites, so that a site may have many."""
    return any(_REGION.fullmatch(str(name)) for name in metadata.columns)


def make_table(
    metadata: pd.DataFrame, vectors_ND: np.ndarray, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Table of metadata (N rows), as text, beside float32 vectors (N, D) in `columns`, by default emb_0000 ...."""
    plain = metadata.reset_index(drop=True)
    text = pd.DataFrame({name: as_text(plain[name]) for name in plain.columns}, index=plain.index)
    features = pd.DataFrame(
        vectors_ND.astype(np.float32), columns=list(columns or feature_columns(vectors_ND.shape[1]))
    )
    return pd.concat([text, features], axis=1)


def write_table(path: str | Path, table: pd.DataFrame, about: Mapping[str, object]) -> Path:
    """Write a Parquet file atomically.

    `about` (JSON values) goes into its key-value metadata as "camae", what a row stands for (`unit_of`) as
    "camae_unit".
    """
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    own = {_KEY: json.dumps(about).encode(), _UNIT_KEY: unit_of(table).encode()}
    arrow = arrow.replace_schema_metadata((arrow.schema.metadata or {}) | own)
    return write_atomic(path, lambda p: pq.write_table(arrow, p))


def read_table(path: str | Path) -> tuple[pd.DataFrame, dict[str, object]]:
    """A table written by `write_table`, and what it says about itself.

    Raises MissingFileError, or CamaeError for a file that is not Parquet.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such embeddings table")
    try:
        arrow = pq.read_table(local_path(path))
    except (pa.ArrowException, OSError) as error:
        raise CamaeError(f"{path}: not a readable Parquet file ({error})") from None
    return arrow.to_pandas(), about_of(arrow.schema)


def about_of(schema: pa.Schema) -> dict[str, object]:
    """The `about` of a file written by `write_table`, from its schema alone."""
    return json.loads((schema.metadata or {}).get(_KEY, b"{}"))


def is_own_file(path: str | Path) -> bool:
    """Whether `write_table` wrote this Parquet file."""
    return _UNIT_KEY in (pq.read_schema(local_path(path)).metadata or {})


def features_of(table: pd.DataFrame) -> np.ndarray:
    """Feature matrix (N, D) of a table, fp32: the columns that `select_features` finds."""
    return table[feature_names(table)].to_numpy(np.float32)


def by_well(sites: pd.DataFrame) -> pd.DataFrame:
    """Mean over the sites of every well; metadata that is the same for all its sites is kept, but for Metadata_Site.

    Wells go by their normal name ("a1" and "A01" are one), plates as they are written. Time points and depths
    (Metadata_Time, Metadata_Z) are rows of their own.
    Raises CamaeError without Metadata_Well, for a site that is there twice, and where the sites of a well disagree
    in what was done to it (perturbation, control, concentration, cell type).
    """
    if "Metadata_Well" not in sites:
        raise CamaeError(
            "the manifest has no column Metadata_Well, so sites cannot be averaged by well; use level='site'"
        )
    sites = sites.assign(Metadata_Well=sites["Metadata_Well"].astype(str).map(normal_well))
    keys = [c for c in (*WELL, *MOMENT) if c in sites]
    features = feature_names(sites)
    # Also where each well has one site: a table of wells names none, however many there are.
    metadata = [c for c in sites.columns if c not in features and c not in (*keys, "Metadata_Site")]
    check_wells_agree(sites)
    groups = sites.groupby(keys, sort=False, dropna=False, observed=True)
    constant = [c for c in metadata if (groups[c].nunique(dropna=False) == 1).all()]
    wells = groups[constant].first().join(groups[features].mean()).reset_index()
    return wells[[*[c for c in sites.columns if c in (*keys, *constant)], *features]]


def check_wells_agree(metadata: pd.DataFrame) -> None:
    """Raise CamaeError where a site is there twice, or the rows of one well disagree in what was done to it.

    Metadata_Well holds normal names (`camae.wells.normal_well`). Rows of regions of a site may be many.
    """
    keys = [c for c in (*WELL, *MOMENT) if c in metadata]
    if "Metadata_Site" in metadata and not has_regions(metadata):
        twice = metadata.duplicated([c for c in SITE if c in metadata])
        if twice.any():
            row = metadata.loc[twice].iloc[0]
            raise CamaeError(
                f"{_place(row, [c for c in SITE if c in metadata])} is there twice (in {int(twice.sum())} rows in "
                "all), and one site is not averaged with itself; keep one row of each site"
            )
    groups = metadata.groupby(keys, sort=False, dropna=False, observed=True)
    for name in (c for c in metadata.columns if _TREATMENT.fullmatch(str(c)) and c not in keys):
        several = groups[name].nunique(dropna=False) > 1
        if several.any():
            key = several.index[int(several.to_numpy().argmax())]
            rows = groups.get_group(key if isinstance(key, tuple) else (key,))
            values = list(dict.fromkeys(rows[name].astype(object).where(rows[name].notna(), "").astype(str)))
            raise CamaeError(
                f"{_place(rows.iloc[0], keys)}: {name} says {values[0]!r} and {values[1]!r} "
                f"({int(several.sum())} such wells in all); correct the metadata, or use level='site'"
            )


def _place(row: pd.Series, keys: Sequence[str]) -> str:
    """ "plate P1, well A01", of a row."""
    return ", ".join(f"{name.removeprefix('Metadata_').lower()} {row[name]}" for name in keys)
