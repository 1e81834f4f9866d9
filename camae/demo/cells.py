"""Draws the cells of one site: factor values in, one clean five-channel image out.

Everything is drawn on a torus a little larger than the site and cut to size at the end, so cells cross the
border as they do in a real field. Cell-wise fields live on square patches around each cell, shape (N, S, S);
filaments and blobs are clouds of points. Shapes: N cells, S patch side, L canvas side, K points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from camae.demo.parameters import CHANNELS, FACTORS, ScreenParameters

Array = npt.NDArray[np.floating[Any]]
MARGIN = 32
HALF_PATCH = 52
_FACTOR = {name: i for i, name in enumerate(FACTORS)}


@dataclass(frozen=True)
class Cells:
    """The cells of one site: centres on the torus and each cell's factor values."""

    side: int
    centre_N2: Array
    angle_N: Array
    factors_NF: Array

    def factor(self, name: str) -> Array:
        return self.factors_NF[:, _FACTOR[name]]

    def scaled(self, name: str, base: float, sensitivity: float) -> Array:
        """`base * exp(sensitivity * factor)`, limited to three units either way; shape (N,)."""
        return (base * np.exp(sensitivity * np.clip(self.factor(name), -3, 3))).astype(np.float32)

    @property
    def visible_N(self) -> Any:
        return ((self.centre_N2 >= MARGIN) & (self.centre_N2 < self.side - MARGIN)).all(axis=1)


def sample_cells(rng: np.random.Generator, well_factors_F: Array, parameters: ScreenParameters) -> Cells:
    """Scatter cells at the well's density, pushed apart, each with its own factor values."""
    side = parameters.size + 2 * MARGIN
    density = parameters.cells_per_site * np.exp(0.16 * well_factors_F[_FACTOR["cell_density"]])
    count = max(
        4, int(rng.poisson(density * (side / 256.0) ** 2 * 0.25) + density * (side / 256.0) ** 2 * 0.75)
    )
    centre_N2 = rng.random((count, 2)) * side
    spacing = side / np.sqrt(count)
    for _ in range(12):
        offset_NN2 = centre_N2[:, None] - centre_N2[None]
        offset_NN2 -= side * np.round(offset_NN2 / side)
        distance_NN = np.sqrt((offset_NN2**2).sum(-1)) + 1e-3
        push_NN = np.maximum(0.0, 0.85 * spacing - distance_NN) / distance_NN
        centre_N2 = (centre_N2 + 0.3 * (push_NN[..., None] * offset_NN2).sum(1)) % side
    factors_NF = well_factors_F + parameters.cell_sd * rng.standard_normal((count, len(FACTORS)))
    factors_NF[:, _FACTOR["cell_density"]] = (
        np.log(count / (parameters.cells_per_site * (side / 256.0) ** 2)) / 0.16
    )
    return Cells(
        side,
        centre_N2.astype(np.float32),
        (rng.random(count) * np.pi).astype(np.float32),
        factors_NF.astype(np.float32),
    )


@dataclass(frozen=True)
class Geometry:
    """Where each cell's pixels are: flat canvas index, distance from the nucleus and the cell border."""

    side: int
    index_NSS: npt.NDArray[np.int64]
    nucleus_NSS: Array
    """Distance from the nuclear centre in units of the nuclear radius along that direction."""
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
        return canvas_LL.ravel()[self.index_NSS]


def _sigmoid(x: Array) -> Array:
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


def place(rng: np.random.Generator, cells: Cells, parameters: ScreenParameters) -> Geometry:
    """Outlines of nuclei and cells; where two cells meet, each pixel goes to the nearer one."""
    count, side = len(cells.centre_N2), cells.side
    corner_N2 = np.floor(cells.centre_N2).astype(np.int64) - HALF_PATCH
    steps = np.arange(2 * HALF_PATCH)
    rows_NS, columns_NS = corner_N2[:, :1] + steps, corner_N2[:, 1:] + steps
    index_NSS = (rows_NS % side)[:, :, None] * side + (columns_NS % side)[:, None, :]
    dy = (rows_NS - cells.centre_N2[:, :1]).astype(np.float32)[:, :, None]
    dx = (columns_NS - cells.centre_N2[:, 1:]).astype(np.float32)[:, None, :]
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
    body_NSS = _sigmoid((1.0 - cell_NSS) / 0.05) * np.exp(-((lead_NSS / 0.08) ** 2))
    geometry = Geometry(side, index_NSS, nucleus_NSS, cell_NSS, body_NSS, nuclear_axes_N2, cell_axes_N2)
    shared_NSS = np.maximum(geometry.pick(geometry.paint(body_NSS)), 1.0)
    return replace(geometry, body_NSS=body_NSS / shared_NSS)


def _frequencies(side: int) -> Array:
    fy, fx = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    return (fy[:, None] ** 2 + fx[None] ** 2).astype(np.float32)


def blur(image_LL: Array, sigma: float) -> Array:
    """Periodic Gaussian blur, sigma in pixels."""
    response = np.exp(-2 * np.pi**2 * sigma**2 * _frequencies(len(image_LL)))
    return np.fft.irfft2(np.fft.rfft2(image_LL) * response, s=image_LL.shape).astype(np.float32)


def band_noise(rng: np.random.Generator, side: int, scale: float) -> Array:
    """Random texture whose grains are about `scale` pixels, zero mean and unit variance, shape (L, L)."""
    squared = _frequencies(side) * np.float32(2 * np.pi**2 * scale**2)
    spectrum = (
        np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32)) * squared * np.exp(-2 * squared)
    )
    texture = np.fft.irfft2(spectrum, s=(side, side)).astype(np.float32)
    return texture / texture.std()


def _mixed_texture(geometry: Geometry, fine_LL: Array, coarse_LL: Array, shift_N: Array) -> Array:
    """Unit-variance texture per cell between two grain sizes: the scale moves, the contrast does not."""
    angle_N11 = (np.pi / 4 * (1 + np.tanh(0.8 * shift_N)))[:, None, None]
    return geometry.pick(fine_LL) * np.cos(angle_N11) + geometry.pick(coarse_LL) * np.sin(angle_N11)


def _equal_mass(patches_NSS: Array, mass_N: Array) -> Array:
    """Scale each patch to a given sum, so that organisation changes and brightness does not."""
    return patches_NSS * (mass_N / (patches_NSS.sum((1, 2)) + 1e-6))[:, None, None]


def _splat(side: int, y: Array, x: Array, weight: Array) -> Array:
    """Bilinear sum of points on the torus, shape (L, L)."""
    y0, x0 = np.floor(y), np.floor(x)
    fy, fx = (y - y0).ravel(), (x - x0).ravel()
    rows, columns, weight = y0.astype(np.int64).ravel(), x0.astype(np.int64).ravel(), weight.ravel()
    flat = np.zeros(side * side)
    for row, wy in ((rows % side, 1 - fy), ((rows + 1) % side, fy)):
        for column, wx in ((columns % side, 1 - fx), ((columns + 1) % side, fx)):
            flat += np.bincount(row * side + column, weight * wy * wx, minlength=side * side)
    return flat.reshape(side, side).astype(np.float32)


def _brightness(rng: np.random.Generator, count: int, sd: float = 0.18) -> Array:
    return np.exp(sd * rng.standard_normal(count)).astype(np.float32)


def draw_dna(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Nuclei of equal DNA content (up to ploidy) with chromatin grains."""
    mask_NSS = _sigmoid((1.0 - geometry.nucleus_NSS) / 0.05)
    fine_LL, coarse_LL = band_noise(rng, cells.side, 0.8), band_noise(rng, cells.side, 2.0)
    grain_NSS = _mixed_texture(geometry, fine_LL, coarse_LL, -cells.factor("chromatin_granularity"))
    chromatin_NSS = mask_NSS * np.clip(1.0 + 0.28 * grain_NSS, 0.15, None)
    return geometry.paint(_equal_mass(chromatin_NSS, 500.0 * _brightness(rng, len(mask_NSS), 0.25)))


def draw_nucleoli(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Nucleoli: many small or few large ones, the same total."""
    count, most = len(cells.centre_N2), 9
    number_N = np.clip(np.round(cells.scaled("nucleolus_number", 3.4, 0.42)), 1, most)
    radius_N1 = (4.6 / np.sqrt(number_N))[:, None]
    distance, turn = 0.68 * np.sqrt(rng.random((count, most))), 2 * np.pi * rng.random((count, most))
    u = distance * np.cos(turn) * geometry.nuclear_axes_N2[:, :1]
    v = distance * np.sin(turn) * geometry.nuclear_axes_N2[:, 1:]
    y, x = _to_canvas(cells, u, v)
    size_NK = radius_N1 * np.exp(0.15 * rng.standard_normal((count, most)))
    present_NK = np.arange(most) < number_N[:, None]
    steps = np.arange(-9, 10)
    rows = np.floor(y).astype(np.int64)[..., None] + steps
    columns = np.floor(x).astype(np.int64)[..., None] + steps
    squared = (rows - y[..., None])[..., :, None] ** 2 + (columns - x[..., None])[..., None, :] ** 2
    blob = present_NK[..., None, None] * _sigmoid((size_NK[..., None, None] - np.sqrt(squared)) / 0.6)
    flat = (rows % cells.side)[..., :, None] * cells.side + (columns % cells.side)[..., None, :]
    image = np.bincount(flat.ravel(), blob.ravel(), minlength=cells.side**2)
    return image.reshape(cells.side, cells.side).astype(np.float32)


def _to_canvas(cells: Cells, u: Array, v: Array) -> tuple[Array, Array]:
    """Points given in the cells' own axes, shape (N, K), as canvas rows and columns."""
    cosine, sine = np.cos(cells.angle_N)[:, None], np.sin(cells.angle_N)[:, None]
    y = cells.centre_N2[:, :1] + sine * u + cosine * v
    x = cells.centre_N2[:, 1:] + cosine * u - sine * v
    return y, x


def _cytoplasm(geometry: Geometry, decay_N: Array) -> Array:
    """Brightness that falls from the nuclear border outwards with a length in nuclear radii."""
    outside_NSS = np.maximum(geometry.nucleus_NSS - 1.0, 0.0)
    return geometry.body_NSS * np.exp(-outside_NSS / decay_N[:, None, None])


def draw_er(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Reticulum around the nucleus: how far it spreads and how coarse its mesh is."""
    fine_LL, coarse_LL = band_noise(rng, cells.side, 1.1), band_noise(rng, cells.side, 3.2)
    mesh_NSS = _mixed_texture(geometry, fine_LL, coarse_LL, cells.factor("er_texture_scale"))
    decay_N = cells.scaled("er_spread", 0.85, 0.38)
    nuclear_NSS = 1.0 - 0.35 * _sigmoid((1.0 - geometry.nucleus_NSS) / 0.08)
    er_NSS = _cytoplasm(geometry, decay_N) * nuclear_NSS * np.clip(1.0 + 0.30 * mesh_NSS, 0.1, None)
    return geometry.paint(_equal_mass(er_NSS, 1100.0 * _brightness(rng, len(er_NSS))))


def draw_rna(rng: np.random.Generator, cells: Cells, geometry: Geometry, nucleoli_LL: Array) -> Array:
    decay_N = np.full(len(cells.centre_N2), 1.1, np.float32)
    cytoplasm_NSS = _cytoplasm(geometry, decay_N) * np.clip(
        1.0 + 0.12 * geometry.pick(band_noise(rng, cells.side, 1.4)), 0.1, None
    )
    body = geometry.paint(_equal_mass(cytoplasm_NSS, 1200.0 * _brightness(rng, len(cytoplasm_NSS))))
    return body + 1.5 * nucleoli_LL


def draw_mito(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Mitochondria as arcs of equal total length: long filaments or puncta, near the nucleus or spread out."""
    count, points = len(cells.centre_N2), 600
    length_N1 = np.clip(cells.scaled("mito_fragmentation", 9.0, -0.60), 1.5, 40.0)[:, None]
    arc_NK = (np.arange(points) / length_N1).astype(np.int64)
    along_NK = np.arange(points) - (arc_NK + 0.5) * length_N1

    def per_arc(values_NK: Array) -> Array:
        return np.take_along_axis(values_NK, arc_NK, axis=1)

    turn = 2 * np.pi * rng.random((count, points))
    exponent_N1 = cells.scaled("mito_clustering", 1.5, 0.32)[:, None]
    depth = 1.15 + (0.92 * _cell_reach(geometry, turn) - 1.15) * rng.random((count, points)) ** exponent_N1
    u0 = per_arc(depth * np.cos(turn) * geometry.nuclear_axes_N2[:, :1])
    v0 = per_arc(depth * np.sin(turn) * geometry.nuclear_axes_N2[:, 1:])
    heading = per_arc(turn + np.pi / 2 + 0.8 * rng.standard_normal((count, points)))
    bend = per_arc(0.07 * rng.standard_normal((count, points)))
    direction = heading + bend * along_NK / 2
    y, x = _to_canvas(cells, u0 + along_NK * np.cos(direction), v0 + along_NK * np.sin(direction))
    weight = per_arc(np.exp(0.35 * rng.standard_normal((count, points)))) * _brightness(rng, count)[:, None]
    threads = blur(_splat(cells.side, y, x, weight), 0.8)
    haze = geometry.paint(geometry.body_NSS * np.exp(-np.maximum(geometry.nucleus_NSS - 1.0, 0.0) / 1.2))
    return 1.2 * threads + 0.30 * haze


def _cell_reach(geometry: Geometry, turn_NK: Array) -> Array:
    """Distance from the nuclear centre to the cell border along a direction, in nuclear radii."""
    cosine, sine = np.cos(turn_NK), np.sin(turn_NK)
    nuclear, cell = geometry.nuclear_axes_N2, geometry.cell_axes_N2
    stretch_u, stretch_v = nuclear[:, :1] / cell[:, :1], nuclear[:, 1:] / cell[:, 1:]
    return np.maximum(1.5, 1.0 / np.sqrt((cosine * stretch_u) ** 2 + (sine * stretch_v) ** 2))


def draw_agp(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Actin fibres (aligned or not), a Golgi (compact or scattered) beside the nucleus, and the membrane."""
    count, fibres, points = len(cells.centre_N2), 14, 44
    disorder_N1 = cells.scaled("actin_order", 0.45, -0.65)[:, None]
    heading = disorder_N1 * rng.standard_normal((count, fibres))
    distance, turn = 0.75 * np.sqrt(rng.random((count, fibres))), 2 * np.pi * rng.random((count, fibres))
    u = distance * np.cos(turn) * geometry.cell_axes_N2[:, :1]
    v = distance * np.sin(turn) * geometry.cell_axes_N2[:, 1:]
    along = np.linspace(-0.5, 0.5, points) * (24 + 16 * rng.random((count, fibres, 1)))
    u, v = (
        u[..., None] + along * np.cos(heading)[..., None],
        v[..., None] + along * np.sin(heading)[..., None],
    )
    y, x = _to_canvas(cells, u.reshape(count, -1), v.reshape(count, -1))
    fibre = np.repeat(np.exp(0.3 * rng.standard_normal((count, fibres))), points, axis=1)
    actin = blur(_splat(cells.side, y, x, fibre), 0.7)

    dots = 26
    scatter_N1 = cells.scaled("golgi_compactness", 5.5, -0.42)[:, None]
    side_turn = 2 * np.pi * rng.random((count, 1))
    u = 1.25 * np.cos(side_turn) * geometry.nuclear_axes_N2[:, :1] + scatter_N1 * rng.standard_normal(
        (count, dots)
    )
    v = 1.25 * np.sin(side_turn) * geometry.nuclear_axes_N2[:, 1:] + scatter_N1 * rng.standard_normal(
        (count, dots)
    )
    y, x = _to_canvas(cells, u, v)
    golgi = blur(_splat(cells.side, y, x, np.exp(0.3 * rng.standard_normal((count, dots)))), 1.2)

    body_NSS = geometry.body_NSS
    edge_NSS = body_NSS * np.exp(-(((geometry.cell_NSS - 0.95) / 0.06) ** 2))
    membrane = geometry.paint(0.25 * edge_NSS + 0.55 * _cytoplasm(geometry, np.full(count, 1.6, np.float32)))
    inside = np.minimum(geometry.paint(body_NSS), 1.0)
    return 0.55 * actin * inside + 3.2 * golgi + membrane


def draw_site(rng: np.random.Generator, cells: Cells, parameters: ScreenParameters) -> Array:
    """The clean fluorescence of one site on the whole torus, shape (5, L, L), channels in `CHANNELS` order."""
    geometry = place(rng, cells, parameters)
    nucleoli_LL = draw_nucleoli(rng, cells, geometry)
    dna_LL = draw_dna(rng, cells, geometry)
    image = {
        "DNA": dna_LL,
        "ER": draw_er(rng, cells, geometry) + 0.25 * nucleoli_LL,
        "RNA": draw_rna(rng, cells, geometry, nucleoli_LL),
        "AGP": draw_agp(rng, cells, geometry),
        "Mito": draw_mito(rng, cells, geometry),
    }
    return np.stack([image[name] for name in CHANNELS])
