"""Patch maps of images: colors of their main directions, and distances from the patches of controls. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from camae.errors import CamaeError

Array = npt.NDArray[np.floating]

_MOST_COMPONENTS, _PATCHES_PER_COMPONENT = 32, 20
_SMALLEST = 1e-6  # of the largest standard deviation: below it a component is rounding
_RANGE = (1.0, 99.0)  # percentiles of a component that become black and full color


def pca_colors(maps: Sequence[Array]) -> list[Array]:
    """Colors of patches: their first three principal components as red, green and blue.

    maps: (h, w, D) each; the components are those of all their patches together, so equal colors mean alike in all.
    Returns (h, w, 3) float64 in [0, 1] each, NaN where a patch is NaN. The sign of a component is that of its largest
    loading. Raises CamaeError where fewer than 4 patches have values.
    """
    patches_ND = _patches(maps)
    if len(patches_ND) < 4:
        raise CamaeError(f"colors need at least 4 patches with values, not {len(patches_ND)}")
    mean_D = patches_ND.mean(0)
    axes_3D = _principal_axes(patches_ND - mean_D)[0][:3]
    low_3, high_3 = np.percentile((patches_ND - mean_D) @ axes_3D.T, _RANGE, axis=0)
    colors = []
    for one in maps:
        scaled = (one - mean_D) @ axes_3D.T
        shown = np.clip((scaled - low_3) / np.maximum(high_3 - low_3, 1e-12), 0, 1)
        missing = 3 - shown.shape[-1]  # of maps with fewer than three features
        colors.append(np.pad(shown, ((0, 0), (0, 0), (0, missing)), constant_values=0.5))
    return colors


@dataclass(frozen=True)
class PatchControls:
    """Distribution of control patches: mean, principal components and their standard deviations.

    mean_D: (D,). axes_KD: (K, D) orthonormal. deviation_K: (K,). float64.
    """

    mean_D: Array
    axes_KD: Array
    deviation_K: Array

    @classmethod
    def fit(cls, maps: Sequence[Array]) -> Self:
        """Fit to maps (h, w, D) of controls: at most 32 components, and one for every 20 patches.

        Raises CamaeError for too few patches, or patches that are all alike.
        """
        patches_ND = _patches(maps)
        if len(patches_ND) < 2 * _PATCHES_PER_COMPONENT:
            raise CamaeError(
                f"the controls have {len(patches_ND)} patches; at least {2 * _PATCHES_PER_COMPONENT} are needed to say "
                "how they vary"
            )
        mean_D = patches_ND.mean(0)
        axes, deviations = _principal_axes(patches_ND - mean_D)
        count = min(_MOST_COMPONENTS, len(patches_ND) // _PATCHES_PER_COMPONENT)
        kept = np.flatnonzero(deviations[:count] > _SMALLEST * max(deviations[0], 1e-300))
        if deviations[0] <= 0 or not len(kept):
            raise CamaeError("the patches of the controls are all alike: there is nothing to compare with")
        return cls(mean_D, axes[kept], deviations[kept])

    def distance(self, one: Array) -> Array:
        """Distance (h, w) of each patch of a map (h, w, D) from the controls' mean: root mean square over components,
        in standard deviations of control patches, so that these have about 1. NaN where a patch is NaN.
        """
        scaled = (one - self.mean_D) @ self.axes_KD.T / self.deviation_K
        return np.sqrt((scaled**2).mean(-1))


def _patches(maps: Sequence[Array]) -> Array:
    """All patches with values, (N, D) float64."""
    rows_ND = np.concatenate([np.asarray(one, np.float64).reshape(-1, one.shape[-1]) for one in maps])
    return rows_ND[np.isfinite(rows_ND).all(1)]


def _principal_axes(centered_ND: Array) -> tuple[Array, Array]:
    """Principal axes (K, D), the largest first, and standard deviations (K,) along them."""
    _, singular_K, axes_KD = np.linalg.svd(centered_ND, full_matrices=False)
    largest_K = np.take_along_axis(axes_KD, np.abs(axes_KD).argmax(1)[:, None], 1)
    return axes_KD * np.sign(largest_K), singular_K / np.sqrt(max(1, len(centered_ND) - 1))
