"""Alignment (batch correction) by name: the rows of the paper's Table 2, and the variants used beside them.

All methods are fitted in fp64 and applied in the precision of the table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError
from camae.maps.affine import Alignment
from camae.maps.arrays import Array, Labels, Mask, takes_tensors, to_host
from camae.maps.inputs import embeddings, labels, mask
from camae.maps.shrinkage import ReplicateWhitening, ShrunkTVN
from camae.maps.standardizing import Center, RobustizeMAD, Standardize
from camae.maps.whitening import PCA, TVN, PCAStandardize, Spherize, TVNAndo

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
    key = str(method).lower().replace("-", "_").replace("standardise", "standardize").replace("+", "_")
    if key not in METHODS:
        raise CamaeError(f"unknown alignment '{method}'; choose one of {', '.join(METHODS)}")
    if key == "none":
        return embeddings(x)
    make: Callable[..., Alignment] = ALIGNERS[key]
    try:
        aligner = make(**options)
    except TypeError as error:
        raise CamaeError(f"alignment '{method}' has no such option: {error}") from None
    return aligner.fit_transform(x, batch=batch, control=control, perturbation=perturbation)


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
        When a batch has fewer than two controls.
    """
    raw = to_host(control)
    control_N = mask(raw, len(raw), "control")
    batch_N = np.full(len(raw), "") if batch is None else labels(batch, len(raw), "batch")
    rng = np.random.default_rng(seed)
    held = np.zeros(len(raw), dtype=bool)
    for name in np.unique(batch_N):
        index = np.flatnonzero(control_N & (batch_N == name))
        if len(index) < 2:
            raise CamaeError(
                f"batch '{name}' has {len(index)} controls; at least 2 are needed to hold some out"
            )
        count = min(max(round(held_out * len(index)), 1), len(index) - 1)
        held[rng.permutation(index)[:count]] = True
    return control_N & ~held, held
