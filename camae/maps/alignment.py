"""Alignment (batch correction) by name: the rows of the paper's Table 2, and the variants used beside them.

All methods are fitted in fp64 and applied in the precision of the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.maps.affine import EVERY, Alignment, batch_name, check_arguments
from camae.maps.arrays import Array, Labels, Mask, takes_tensors, to_host
from camae.maps.inputs import batches, check_number, check_seed, embeddings, listing, mask
from camae.maps.shrinkage import ReplicateWhitening, ShrunkTVN
from camae.maps.standardizing import Center, RobustizeMAD, Standardize
from camae.maps.whitening import PCA, TVN, PCAStandardize, Spherize, TVNAndo
from camae.typed_settings import Limits

ALIGNERS: dict[str, type[Alignment]] = {
    aligner.method: aligner
    for aligner in (
        *(Center, Standardize, PCA, PCAStandardize, TVN, TVNAndo, ShrunkTVN, ReplicateWhitening),
        *(Spherize, RobustizeMAD),
    )
}
METHODS = ("none", *ALIGNERS)


@takes_tensors
def align(
    x: Array,
    method: str,
    batch: Labels | None = None,
    control: Mask | None = None,
    *,
    perturbation: Labels | None = None,
    **options: object,
) -> Array:
    """Align embeddings: remove differences between batches, learned on the negative controls.

    Plates and experiments shift embeddings in ways that have nothing to do with the perturbations. Negative controls
    are the same cells in every batch, so what differs between them is the batch effect.

    Parameters
    ----------
    x : (n, d) array
        Embeddings, NumPy, CuPy or torch, floating point.
    method : str
        One of `METHODS`: "none"; "center" (`Center`); "standardize" (`Standardize`); "pca" (`PCA`);
        "pca_standardize" (`PCAStandardize`); "tvn" (`TVN`); "tvn_ando" (`TVNAndo`); "tvn_shrunk" (`ShrunkTVN`) and
        "replicate_whitening" (`ReplicateWhitening`), for few controls; "spherize" (`Spherize`);
        "robustize_mad" (`RobustizeMAD`). The classes say what each computes.
    batch : n labels, optional
        Plate or experiment of each row.
    control : n booleans, optional
        True for negative controls. Needed by the TVN methods; the others fit on all rows without it.
    perturbation : n labels, optional
        Perturbation of each row, "" for none. Needed by "replicate_whitening", which is cross-validated over
        perturbations; the others do not use it.
    **options
        Options of the method's class, for example ``components=128`` or ``eps=0.5``.

    Returns
    -------
    (n, k) array
        In x's namespace and dtype. To keep what was learned, use the classes: ``maps.TVN().fit(...)``.

    Raises
    ------
    CamaeError
        For an unknown method or option, or unusable input.

    References
    ----------
    Kraus et al., "Masked Autoencoders for Microscopy are Scalable Learners of Cellular Biology", Table 2.
    """
    key = method_key(method)
    if key == "none":
        check_options(key, options)
        x = embeddings(x)
        check_arguments(x, batch, control, perturbation)
        return x
    make: Callable[..., Alignment] = ALIGNERS[key]
    check_options(key, options)
    aligner = make(**options)
    return aligner.fit_transform(x, batch=batch, control=control, perturbation=perturbation)


def method_key(method: str) -> str:
    """Name of an alignment in the one spelling of `METHODS`. Raises CamaeError for what names none."""
    key = ""
    if isinstance(method, str):
        key = method.lower().replace("-", "_").replace("standardise", "standardize").replace("+", "_")
    if key not in METHODS:
        raise CamaeError(f"unknown alignment {method!r}; choose one of {', '.join(METHODS)}")
    return key


def check_options(key: str, options: Mapping[str, object]) -> None:
    """Raise CamaeError for an option that the alignment has not, naming those that it has and the methods that do."""
    own = [] if key == "none" else options_of(key)
    for name in options:
        if name not in own:
            others = [method for method in ALIGNERS if name in options_of(method)]
            raise CamaeError(
                f"alignment '{key}' has no such option: {name}; it takes {listing(own, len(own)) or 'none'}"
                + (f", and {name} is one of {listing(others, len(others))}" if others else "")
            )


def options_of(key: str) -> list[str]:
    """Names of the options of an alignment."""
    return [field.name for field in dataclasses.fields(ALIGNERS[key])]


@takes_tensors
def split_controls(
    control: Mask, batch: Labels | None = None, held_out: float = 0.5, seed: int = 0
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Split the negative controls into those to fit an alignment on and those held out to serve as negatives.

    An alignment fitted on the same controls that later serve as negatives of a retrieval draws these together and
    inflates the score: fit on the first mask, retrieve against the second.

    Parameters
    ----------
    control : n booleans
        True for negative controls.
    batch : n labels, optional
        The split is made at random within each batch.
    held_out : float
        Share of each batch's controls that is held out; at least one control stays on each side.
    seed : int
        Of the random split.

    Returns
    -------
    fit, held : (n,) boolean arrays
        Disjoint; together they are `control`.

    Raises
    ------
    CamaeError
        When a batch has fewer than two controls, for a batch without a name, or a share outside 0..1.
    """
    check_number(held_out, "held_out", Limits(low=0, high=1))
    check_seed(seed)
    raw = np.atleast_1d(to_host(control))
    control_N = mask(raw, len(raw), "control")
    batch_N = np.full(len(raw), EVERY) if batch is None else batches(batch, len(raw))
    rng = np.random.default_rng(seed)
    held = np.zeros(len(raw), dtype=bool)
    for name in np.unique(batch_N):
        index = np.flatnonzero(control_N & (batch_N == name))
        if len(index) < 2:
            raise CamaeError(
                f"{batch_name(name)} has {len(index)} controls; at least 2 are needed to hold some out"
            )
        count = min(max(round(held_out * len(index)), 1), len(index) - 1)
        held[rng.permutation(index)[:count]] = True
    return control_N & ~held, held
