"""Organelle rendering: chromatin, nucleoli, ER, mitochondria, actin, Golgi and membrane.

Each stain is scaled to an equal amount per cell, so a factor changes how the organelle is organized and not how
bright the image is. Shapes: N cells, S patch side, L canvas side, K points of a cell.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from camae.reproduction.demo.cells import Cells, Geometry, cell_geometry, sigmoid
from camae.reproduction.demo.screen_parameters import CHANNELS, ScreenParameters
from camae.reproduction.demo.textures import band_noise, blur, splat

Array = npt.NDArray[np.floating]


def _mixed_texture(geometry: Geometry, fine_LL: Array, coarse_LL: Array, shift_N: Array) -> Array:
    """Unit-variance texture per cell between two grain sizes: the scale moves, the contrast does not."""
    angle_N11 = (np.pi / 4 * (1 + np.tanh(0.8 * shift_N)))[:, None, None]
    return geometry.pick(fine_LL) * np.cos(angle_N11) + geometry.pick(coarse_LL) * np.sin(angle_N11)


def _equal_mass(patches_NSS: Array, mass_N: Array) -> Array:
    """Scale each patch to a given sum, so that organization changes and brightness does not."""
    return patches_NSS * (mass_N / (patches_NSS.sum((1, 2)) + 1e-6))[:, None, None]


def _brightness(rng: np.random.Generator, count: int, sd: float = 0.18) -> Array:
    return np.exp(sd * rng.standard_normal(count)).astype(np.float32)


def draw_dna(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Nuclei of equal DNA content (up to ploidy) with chromatin grains."""
    mask_NSS = sigmoid((1.0 - geometry.nucleus_NSS) / 0.05)
    fine_LL, coarse_LL = band_noise(rng, cells.side, 0.8), band_noise(rng, cells.side, 2.0)
    grain_NSS = _mixed_texture(geometry, fine_LL, coarse_LL, -cells.factor("chromatin_granularity"))
    chromatin_NSS = mask_NSS * np.clip(1.0 + 0.28 * grain_NSS, 0.15, None)
    return geometry.paint(_equal_mass(chromatin_NSS, 500.0 * _brightness(rng, len(mask_NSS), 0.25)))


def draw_nucleoli(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Nucleoli: many small or few large ones, the same total."""
    count, most = len(cells.center_N2), 9
    number_N = np.clip(np.round(cells.scaled("nucleolus_number", 3.4, 0.42)), 1, most)
    radius_N1 = (4.6 / np.sqrt(number_N))[:, None]
    distance, turn = 0.68 * np.sqrt(rng.random((count, most))), 2 * np.pi * rng.random((count, most))
    u = distance * np.cos(turn) * geometry.nuclear_axes_N2[:, :1]
    v = distance * np.sin(turn) * geometry.nuclear_axes_N2[:, 1:]
    y, x = cells.to_canvas(u, v)
    size_NK = radius_N1 * np.exp(0.15 * rng.standard_normal((count, most)))
    present_NK = np.arange(most) < number_N[:, None]
    steps = np.arange(-9, 10)
    rows = np.floor(y).astype(np.int64)[..., None] + steps
    columns = np.floor(x).astype(np.int64)[..., None] + steps
    squared = (rows - y[..., None])[..., :, None] ** 2 + (columns - x[..., None])[..., None, :] ** 2
    blob = present_NK[..., None, None] * sigmoid((size_NK[..., None, None] - np.sqrt(squared)) / 0.6)
    flat = (rows % cells.side)[..., :, None] * cells.side + (columns % cells.side)[..., None, :]
    image = np.bincount(flat.ravel(), blob.ravel(), minlength=cells.side**2)
    return image.reshape(cells.side, cells.side).astype(np.float32)


def draw_er(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Reticulum around the nucleus: how far it spreads and how coarse its mesh is."""
    fine_LL, coarse_LL = band_noise(rng, cells.side, 1.1), band_noise(rng, cells.side, 3.2)
    mesh_NSS = _mixed_texture(geometry, fine_LL, coarse_LL, cells.factor("er_texture_scale"))
    decay_N = cells.scaled("er_spread", 0.85, 0.38)
    nuclear_NSS = 1.0 - 0.35 * sigmoid((1.0 - geometry.nucleus_NSS) / 0.08)
    er_NSS = geometry.cytoplasm(decay_N) * nuclear_NSS * np.clip(1.0 + 0.30 * mesh_NSS, 0.1, None)
    return geometry.paint(_equal_mass(er_NSS, 1100.0 * _brightness(rng, len(er_NSS))))


def draw_rna(rng: np.random.Generator, cells: Cells, geometry: Geometry, nucleoli_LL: Array) -> Array:
    """Cytoplasmic RNA that falls off from the nucleus, and the nucleoli."""
    decay_N = np.full(len(cells.center_N2), 1.1, np.float32)
    cytoplasm_NSS = geometry.cytoplasm(decay_N) * np.clip(
        1.0 + 0.12 * geometry.pick(band_noise(rng, cells.side, 1.4)), 0.1, None
    )
    body = geometry.paint(_equal_mass(cytoplasm_NSS, 1200.0 * _brightness(rng, len(cytoplasm_NSS))))
    return body + 1.5 * nucleoli_LL


def draw_mito(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Mitochondria as arcs of equal total length: long filaments or puncta, near the nucleus or spread out."""
    count, points = len(cells.center_N2), 600
    length_N1 = np.clip(cells.scaled("mito_fragmentation", 9.0, -0.60), 1.5, 40.0)[:, None]
    arc_NK = (np.arange(points) / length_N1).astype(np.int64)
    along_NK = np.arange(points) - (arc_NK + 0.5) * length_N1

    def per_arc(values_NK: Array) -> Array:
        return np.take_along_axis(values_NK, arc_NK, axis=1)

    turn = 2 * np.pi * rng.random((count, points))
    exponent_N1 = cells.scaled("mito_clustering", 1.5, 0.32)[:, None]
    depth = 1.15 + (0.92 * geometry.reach(turn) - 1.15) * rng.random((count, points)) ** exponent_N1
    u0 = per_arc(depth * np.cos(turn) * geometry.nuclear_axes_N2[:, :1])
    v0 = per_arc(depth * np.sin(turn) * geometry.nuclear_axes_N2[:, 1:])
    heading = per_arc(turn + np.pi / 2 + 0.8 * rng.standard_normal((count, points)))
    bend = per_arc(0.07 * rng.standard_normal((count, points)))
    direction = heading + bend * along_NK / 2
    y, x = cells.to_canvas(u0 + along_NK * np.cos(direction), v0 + along_NK * np.sin(direction))
    weight = per_arc(np.exp(0.35 * rng.standard_normal((count, points)))) * _brightness(rng, count)[:, None]
    threads = blur(splat(cells.side, y, x, weight), 0.8)
    haze = geometry.paint(geometry.body_NSS * np.exp(-np.maximum(geometry.nucleus_NSS - 1.0, 0.0) / 1.2))
    return 1.2 * threads + 0.30 * haze


def draw_agp(rng: np.random.Generator, cells: Cells, geometry: Geometry) -> Array:
    """Actin fibers (aligned or not), a Golgi (compact or scattered) beside the nucleus, and the membrane."""
    count, fibers, points = len(cells.center_N2), 14, 44
    disorder_N1 = cells.scaled("actin_order", 0.45, -0.65)[:, None]
    heading = disorder_N1 * rng.standard_normal((count, fibers))
    distance, turn = 0.75 * np.sqrt(rng.random((count, fibers))), 2 * np.pi * rng.random((count, fibers))
    u = distance * np.cos(turn) * geometry.cell_axes_N2[:, :1]
    v = distance * np.sin(turn) * geometry.cell_axes_N2[:, 1:]
    along = np.linspace(-0.5, 0.5, points) * (24 + 16 * rng.random((count, fibers, 1)))
    u, v = (
        u[..., None] + along * np.cos(heading)[..., None],
        v[..., None] + along * np.sin(heading)[..., None],
    )
    y, x = cells.to_canvas(u.reshape(count, -1), v.reshape(count, -1))
    fiber = np.repeat(np.exp(0.3 * rng.standard_normal((count, fibers))), points, axis=1)
    actin = blur(splat(cells.side, y, x, fiber), 0.7)

    dots = 26
    scatter_N1 = cells.scaled("golgi_compactness", 5.5, -0.42)[:, None]
    side_turn = 2 * np.pi * rng.random((count, 1))
    u = 1.25 * np.cos(side_turn) * geometry.nuclear_axes_N2[:, :1] + scatter_N1 * rng.standard_normal(
        (count, dots)
    )
    v = 1.25 * np.sin(side_turn) * geometry.nuclear_axes_N2[:, 1:] + scatter_N1 * rng.standard_normal(
        (count, dots)
    )
    y, x = cells.to_canvas(u, v)
    golgi = blur(splat(cells.side, y, x, np.exp(0.3 * rng.standard_normal((count, dots)))), 1.2)

    body_NSS = geometry.body_NSS
    edge_NSS = body_NSS * np.exp(-(((geometry.cell_NSS - 0.95) / 0.06) ** 2))
    membrane = geometry.paint(0.25 * edge_NSS + 0.55 * geometry.cytoplasm(np.full(count, 1.6, np.float32)))
    inside = np.minimum(geometry.paint(body_NSS), 1.0)
    return 0.55 * actin * inside + 3.2 * golgi + membrane


def draw_site(rng: np.random.Generator, cells: Cells, parameters: ScreenParameters) -> Array:
    """Clean fluorescence of one site on the whole torus, shape (5, L, L), channels in `CHANNELS` order."""
    geometry = cell_geometry(rng, cells, parameters)
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
