"""Perturbation map: from embeddings of wells to one vector for each perturbation.

Every recall, curve and report starts here: align the wells on the negative controls, then aggregate replicates.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.maps.aggregation import aggregate, control_mean, perturbation_names
from camae.maps.alignment import align, method_key
from camae.maps.arrays import Array, ArrayBackend, Labels, Mask, array_backend, rows, takes_tensors
from camae.maps.inputs import COUNT, embeddings, is_number, labels, mask
from camae.maps.replicates import ReplicateUnit
from camae.maps.screens import Profiles, ScreenColumns, read_screen

# Negative controls per component kept by "half_controls": a covariance from about as many controls as features
# whitens their noise, not the batch effect.
CONTROLS_PER_COMPONENT = 2
FITS_COMPONENTS = ("pca", "pca_standardize", "tvn", "tvn_ando")

_SHOWN_NAMES = 5  # in a repr

Components: TypeAlias = Literal["half_controls"] | int | None


@dataclass(frozen=True, repr=False)
class ScreenMap:
    """Perturbation map of a screen.

    Attributes
    ----------
    vectors : (n, k) array
        One row for each perturbation, of unit length, origin at the negative controls.
    names : (n,) array of text
        The perturbations, sorted.
    options : dict
        Options that the alignment was given, among them the number of components it was limited to.
    notes : list of str
        What was done to the rows of a screen before, such as sites averaged to wells.
    replicates : (n,) array of integers
        Rows that each perturbation was averaged from.
    """

    vectors: Array
    names: npt.NDArray[np.str_]
    options: dict[str, object]
    notes: list[str] = field(default_factory=list)
    replicates: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __repr__(self) -> str:
        n, k = self.vectors.shape
        shown = ", ".join(map(str, self.names[:_SHOWN_NAMES])) + (", ..." if n > _SHOWN_NAMES else "")
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"ScreenMap({n:,} perturbations [{shown}] in {k:,} dimensions{options})"


def map_profiles(
    x: Array,
    perturbation: Labels,
    batch: Labels | None,
    control: Mask,
    method: str = "tvn",
    components: Components = "half_controls",
    **options: object,
) -> ScreenMap:
    """Perturbation map of a screen's profiles: alignment on the negative controls, then the spherical mean.

    Parameters
    ----------
    x : (n, d) array
        Profiles (embeddings of wells), NumPy, CuPy or torch, floating point.
    perturbation : n labels
        Perturbation of each row; "" for none.
    batch : n labels or None
        Plate or experiment of each row, the unit of the alignment; None to align all rows together.
    control : n booleans
        True for negative controls.
    method : str
        Alignment, one of `camae.maps.METHODS`.
    components : "half_controls", int or None
        Principal components that a method of `FITS_COMPONENTS` keeps. "half_controls" keeps at most half as many as
        there are controls, because a covariance of about as many controls as components describes their noise.
        None keeps all, a number keeps that many and is refused for other methods.
    **options
        Further options of the alignment, for example ``eps=0.5``, or ``shrinkage=0.3`` of "tvn_shrunk" and
        "replicate_whitening".

    Returns
    -------
    ScreenMap
        One vector for each perturbation; negative controls and rows without a perturbation are left out.

    Raises
    ------
    CamaeError
        When no row is a control, or for unusable input.
    """
    vectors, names, used = _mapped(x, perturbation, batch, control, method, components, options)
    return ScreenMap(vectors, names, used, replicates=replicate_counts(perturbation, control))


@takes_tensors
def _mapped(
    x: Array,
    perturbation: Labels,
    batch: Labels | None,
    control: Mask,
    method: str,
    components: Components,
    options: dict[str, object],
) -> tuple[Array, npt.NDArray[np.str_], dict[str, object]]:
    """Vectors, names and options of the alignment; see `map_profiles`."""
    x = embeddings(x)
    control_N = mask(control, x.shape[0], "control")
    check_components(method, components)
    options = component_options(method, x.shape[1], control_N, components) | options
    z = align(x, method, batch, control_N, perturbation=perturbation, **options)
    return (*perturbation_vectors(z, perturbation, control_N), options)


def check_components(method: str, components: Components) -> None:
    """Raise CamaeError for another word than "half_controls", or a number where the alignment keeps no components."""
    if components is None or (isinstance(components, str) and components == "half_controls"):
        return
    if not is_number(components, COUNT, whole=True):
        raise CamaeError(
            f"components is {components!r}; give 'half_controls', None (all of them) or a whole number of at least 1"
        )
    if method_key(method) not in FITS_COMPONENTS:
        raise CamaeError(
            f"components={components} would change nothing: the alignment '{method}' keeps no principal components; "
            f"leave components out, or choose one of {', '.join(FITS_COMPONENTS)}"
        )


def component_options(
    method: str, width: int, control: npt.NDArray[np.bool_], components: Components = "half_controls"
) -> dict[str, object]:
    """Options of the alignment that limit its components; see `map_profiles`. width: features of a row."""
    if components is None or method_key(method) not in FITS_COMPONENTS:
        return {}
    if components != "half_controls":
        return {"components": components}
    most = int(control.sum()) // CONTROLS_PER_COMPONENT
    return {"components": most} if 1 <= most < width else {}


def perturbation_vectors(z: Array, perturbation: Labels, control: Mask) -> tuple[Array, npt.NDArray[np.str_]]:
    """Vectors and names of the perturbations of aligned profiles: spherical means, origin at the controls' mean.

    Negative controls and rows whose perturbation is "" are left out. Raises CamaeError when no row is a control, or
    none is left.
    """
    name_N, control_N = labels(perturbation, z.shape[0], "perturbation"), mask(control, z.shape[0], "control")
    origin = control_mean(z, control_N)
    chosen = np.flatnonzero(~control_N & (name_N != ""))
    if len(chosen) == 0:
        raise CamaeError("no row has a perturbation; all are negative controls or have an empty name")
    by = name_N[chosen]
    return aggregate(rows(z, chosen), by, "spherical_mean", origin=origin), perturbation_names(by)


def replicate_counts(perturbation: Labels, control: Mask) -> npt.NDArray[np.int64]:
    """Rows of each perturbation of `perturbation_vectors`, in its order."""
    name_N = labels(perturbation, len(perturbation), "perturbation")
    treated = ~mask(control, len(name_N), "control") & (name_N != "")
    return np.unique(name_N[treated], return_counts=True)[1].astype(np.int64)


def map_screen(
    wells: Profiles,
    method: str = "tvn",
    *,
    perturbation: str = "Metadata_Perturbation",
    plate: str | None = "Metadata_Plate",
    control: str = "Metadata_control_type",
    negative: str = "negcon",
    unit: ReplicateUnit = "well",
    components: Components = "half_controls",
    backend: str | ArrayBackend = "numpy",
    **options: object,
) -> ScreenMap:
    """Perturbation map of a table of wells: `map_profiles` with its arguments taken from columns.

    Parameters
    ----------
    wells : DataFrame, path or sequence of paths
        Table with `Metadata_*` and feature columns, its file (`read_profiles`: CSV, TSV, Parquet, AnnData), or
        several files of one screen, such as one for each plate.
    method : str
        Alignment, one of `camae.maps.METHODS`.
    perturbation, plate, control : str
        Columns of the perturbation, the plate (None: all rows are aligned together), and the mark of controls.
    negative : str
        What `control` says for negative controls.
    unit : {"well", "site"} or None
        Sites are averaged by well; "site" keeps each as a replicate, None refuses them.
    backend : {"numpy", "cupy", "auto"}
        Library of the computation and of the vectors. "auto" is CuPy where it is installed and a CUDA device is
        there, else NumPy; the default is NumPy, so that the vectors do not depend on the machine.
    components, **options
        As in `map_profiles`.

    Returns
    -------
    ScreenMap
        One vector for each perturbation; `notes` say what was averaged and which columns are no features.

    Raises
    ------
    CamaeError
        When a needed column or the controls are missing; MissingFileError when there is no such file;
        MissingBackendError when CuPy is asked for and cannot run.
    """
    arrays = array_backend(backend)
    screen = read_screen(wells, ScreenColumns(perturbation, plate, control, negative), unit)
    x = arrays.asarray(screen.x)
    result = map_profiles(x, screen.perturbation, screen.plate, screen.control, method, components, **options)
    return dataclasses.replace(result, notes=screen.notes)
