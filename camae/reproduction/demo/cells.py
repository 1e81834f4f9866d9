"""Cell geometry of one site: positions, outlines, and the pixels that belong to each cell.

Cells are placed on a torus a little larger than the site, which is cut to size at the end, so that cells cross the
border as in a real field. Arrays by cell cover square patches around the cells, shape (N, S, S).
Shapes: N cells, F factors, S patch side, L canvas side, K points of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from camae.reproduction.demo.screen_parameters import FACTORS, ScreenParameters

Array = npt.NDArray[np.floating]
MARGIN = 32
HALF_PATCH = 64
_DENSITY_SENSITIVITY = 0.16
_FACTOR = {name: i for i, name in enumerate(FACTORS)}


@dataclass(frozen=True)
class Cells:
    """The cells of one site: centers on the torus and each cell's factor values."""

    side: int
    center_N2: Array
    angle_N: Array
    factors_NF: Array

    def factor(self, name: str) -> Array:
        """Values of one factor of `FACTORS`, shape (N,)."""
        return self.factors_NF[:, _FACTOR[name]]

    def scaled(self, name: str, base: float, sensitivity: float) -> Array:
        """`base * exp(sensitivity * factor)`, limited to three units either way; shape (N,)."""
        return (base * np.exp(sensitivity * np.clip(self.factor(name), -3, 3))).astype(np.float32)

    def to_canvas(self, u_NK: Array, v_NK: Array) -> tuple[Array, Array]:
        """Points along and across the cells' own axes as canvas rows and columns."""
        cosine, sine = np.cos(self.angle_N)[:, None], np.sin(self.angle_N)[:, None]
        y_NK = self.center_N2[:, :1] + sine * u_NK + cosine * v_NK
        x_NK = self.center_N2[:, 1:] + cosine * u_NK - sine * v_NK
        return y_NK, x_NK

    @property
    def visible_N(self) -> npt.NDArray[np.bool_]:
        """Whether each cell's center lies inside the site."""
        inside_N2 = (self.center_N2 >= MARGIN) & (self.center_N2 < self.side - MARGIN)
        return inside_N2[:, 0] & inside_N2[:, 1]


def sample_cells(rng: np.random.Generator, well_factors_F: Array, parameters: ScreenParameters) -> Cells:
    """Random cells at the density of the well, pushed apart, each with factor values drawn about those of the well."""
    side = parameters.field + 2 * MARGIN
    density_index = _FACTOR["cell_density"]
    usual = parameters.cells_per_site * (side / 256) ** 2
    expected = usual * np.exp(_DENSITY_SENSITIVITY * well_factors_F[density_index])
    # A quarter at random: cells spread more evenly than a Poisson process.
    count = max(4, int(0.75 * expected + rng.poisson(0.25 * expected)))
    center_N2 = rng.random((count, 2)) * side
    spacing = side / np.sqrt(count)
    for _ in range(12):
        offset_NN2 = center_N2[:, None] - center_N2[None]
        offset_NN2 -= side * np.round(offset_NN2 / side)
        distance_NN = np.sqrt((offset_NN2**2).sum(-1)) + 1e-3
        push_NN = np.maximum(0.0, 0.85 * spacing - distance_NN) / distance_NN
        center_N2 = (center_N2 + 0.3 * (push_NN[..., None] * offset_NN2).sum(1)) % side
    factors_NF = well_factors_F + parameters.cell_sd * rng.standard_normal((count, len(FACTORS)))
    factors_NF[:, density_index] = np.log(count / usual) / _DENSITY_SENSITIVITY
    return Cells(
        side,
        center_N2.astype(np.float32),
        (rng.random(count) * np.pi).astype(np.float32),
        factors_NF.astype(np.float32),
    )


@dataclass(frozen=True)
class Geometry:
    """Pixels of each cell: flat canvas index, distances from the nucleus and the cell border, mask."""

    side: int
    index_NSS: npt.NDArray[np.int64]
    nucleus_NSS: Array
    """Distance from the nuclear center in units of the nuclear radius along that direction."""
    cell_NSS: Array
    """The same in units of the cell radius."""
    body_NSS: Array
    """Soft mask of the cell's own territory."""
    nuclear_axes_N2: Array
    cell_axes_N2: Array

    def paint(self, patches_NSS: Array) -> Array:
        """Sum of all patches on the canvas, shape (L, L)."""
        flat = np.bincount(self.index_NSS.ravel(), patches_NSS.ravel(), minlength=self.side**2)
        return flat.reshape(self.side, self.side).astype(np.float32)

    def pick(self, canvas_LL: Array) -> Array:
        """The canvas as seen on each cell's patch."""
        return canvas_LL.ravel()[self.index_NSS]

    def cytoplasm(self, decay_N: Array) -> Array:
        """Brightness that falls from the nuclear border outwards over a length in nuclear radii, (N, S, S)."""
        outside_NSS = np.maximum(self.nucleus_NSS - 1.0, 0.0)
        return self.body_NSS * np.exp(-outside_NSS / decay_N[:, None, None])

    def reach(self, turn_NK: Array) -> Array:
        """Distance from the nuclear center to the cell border along a direction, in nuclear radii."""
        across_N2 = self.nuclear_axes_N2 / self.cell_axes_N2
        u_NK, v_NK = np.cos(turn_NK) * across_N2[:, :1], np.sin(turn_NK) * across_N2[:, 1:]
        return np.maximum(1.5, 1.0 / np.hypot(u_NK, v_NK))


def sigmoid(x: Array) -> Array:
    """Logistic function, safe from overflow."""
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30, 30)))


def _contours(rng: np.random.Generator, count: int, roughness: float) -> Array:
    """Relative radius of each cell's outline at 128 angles, shape (N, 128)."""
    angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    outline_N128 = np.ones((count, 128))
    for harmonic in (2, 3, 4, 5):
        amplitude = roughness * rng.standard_normal((count, 1)) / harmonic
        outline_N128 += amplitude * np.cos(harmonic * angles + 2 * np.pi * rng.random((count, 1)))
    return np.clip(outline_N128, 0.6, 1.5).astype(np.float32)


def _relative_radius(u: Array, v: Array, axes_N2: Array, outline_N128: Array) -> Array:
    u, v = u / axes_N2[:, :1, None], v / axes_N2[:, 1:, None]
    turn = np.arctan2(v, u) * np.float32(64 / np.pi)
    outline = np.take_along_axis(outline_N128, (turn.astype(np.int64) % 128).reshape(len(u), -1), axis=1)
    return np.sqrt(u * u + v * v) / outline.reshape(u.shape)


def cell_geometry(rng: np.random.Generator, cells: Cells, parameters: ScreenParameters) -> Geometry:
    """Random outlines of nuclei and cells; where two cells meet, each pixel goes to the nearer one."""
    count, side = len(cells.center_N2), cells.side
    corner_N2 = np.floor(cells.center_N2).astype(np.int64) - HALF_PATCH
    steps = np.arange(2 * HALF_PATCH)
    rows_NS, columns_NS = corner_N2[:, :1] + steps, corner_N2[:, 1:] + steps
    index_NSS = (rows_NS % side)[:, :, None] * side + (columns_NS % side)[:, None, :]
    dy = (rows_NS - cells.center_N2[:, :1]).astype(np.float32)[:, :, None]
    dx = (columns_NS - cells.center_N2[:, 1:]).astype(np.float32)[:, None, :]
    cosine, sine = np.cos(cells.angle_N)[:, None, None], np.sin(cells.angle_N)[:, None, None]
    u, v = cosine * dx + sine * dy, cosine * dy - sine * dx

    radius_N = parameters.nucleus_radius * np.sqrt(cells.scaled("nuclear_area", 1.0, 0.20))
    stretch_N = 1.0 + cells.scaled("nuclear_elongation", 0.28, 0.55)
    nuclear_axes_N2 = np.stack([radius_N * np.sqrt(stretch_N), radius_N / np.sqrt(stretch_N)], 1)
    reach_N = parameters.cell_radius * np.exp(0.10 * rng.standard_normal(count))
    stretch_N = np.minimum(1.0 + cells.scaled("cell_elongation", 0.40, 0.55), 2.2)
    cell_axes_N2 = np.stack([reach_N * np.sqrt(stretch_N), reach_N / np.sqrt(stretch_N)], 1)
    nuclear_axes_N2, cell_axes_N2 = nuclear_axes_N2.astype(np.float32), cell_axes_N2.astype(np.float32)

    nucleus_NSS = _relative_radius(u, v, nuclear_axes_N2, _contours(rng, count, 0.06))
    cell_NSS = _relative_radius(u, v, cell_axes_N2, _contours(rng, count, 0.30))
    nearest = np.full(side * side, 9.0, np.float32)
    for index_SS, cell_SS in zip(index_NSS, cell_NSS):
        nearest[index_SS] = np.minimum(nearest[index_SS], cell_SS)
    lead_NSS = cell_NSS - nearest[index_NSS]
    body_NSS = sigmoid((1.0 - cell_NSS) / 0.05) * np.exp(-((lead_NSS / 0.08) ** 2))
    geometry = Geometry(side, index_NSS, nucleus_NSS, cell_NSS, body_NSS, nuclear_axes_N2, cell_axes_N2)
    shared_NSS = np.maximum(geometry.pick(geometry.paint(body_NSS)), 1.0)
    return replace(geometry, body_NSS=body_NSS / shared_NSS)
