"""Training-free baselines of the demo against plain loops, and the oracle against the rendered truth."""

from __future__ import annotations

import numpy as np
import pytest

from camae.dataloader.datasets import read_manifest
from camae.embedding_table import features_of
from camae.reproduction.demo.baselines import (
    SCALES,
    cell_statistics,
    oracle_table,
    otsu,
    pixel_baselines,
    position_table,
    shuffled_labels,
    texture_statistics,
    true_factors,
)
from camae.reproduction.demo.generate_screen import generate, render_site
from camae.reproduction.demo.screen_parameters import ScreenParameters
from camae.reproduction.systems.pixel import pixel_table


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("demo") / "screen", plates=2, sites=1, size=64, workers=1)


@pytest.fixture(scope="module")
def wells(screen):
    return pixel_table(read_manifest(screen))


def test_texture_by_loops():
    planes = np.random.default_rng(0).integers(0, 60_000, (2, 16, 24)).astype(np.uint16)
    expected = []
    for plane in planes.astype(float):
        z = (plane - plane.mean()) / plane.std()
        for s in SCALES:
            h, w = 16 // s, 24 // s
            coarse = [
                [np.mean([z[y * s + i, x * s + j] for i in range(s) for j in range(s)]) for x in range(w)]
                for y in range(h)
            ]
            lengths = [
                np.hypot(
                    coarse[y + 1][x] - coarse[y][x],
                    coarse[y][x + 1] - coarse[y][x],
                )
                for y in range(h - 1)
                for x in range(w - 1)
            ]
            expected += [np.mean(lengths), np.std(lengths)]
    np.testing.assert_allclose(texture_statistics(planes), expected, rtol=1e-9)


def test_texture_does_not_see_brightness():
    planes = np.random.default_rng(0).random((1, 32, 32))
    np.testing.assert_allclose(texture_statistics(planes), texture_statistics(500 + 30 * planes), rtol=1e-9)


def test_otsu_by_trying_every_threshold():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 2, 500), rng.normal(40, 5, 200)])

    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    tried = np.linspace(values.min(), values.max(), 257)[1:-1]
    # The histogram knows values to half a bin, so that its optimum lies a little below the true one.
    assert between(otsu(values)) >= 0.999 * max(between(t) for t in tried)


def test_cells_are_counted():
    field = np.full((128, 128), 100.0)
    for y, x in ((8, 8), (40, 88), (88, 40), (96, 100)):
        field[y : y + 16, x : x + 16] = 1000.0
    assert cell_statistics(field.astype(np.uint16)).tolist() == [4, 4 * 256 / 128**2]


def test_tables_have_a_row_for_each_well(screen, wells):
    tables = pixel_baselines(read_manifest(screen))
    assert {name: features_of(table).shape for name, table in tables.items()} == {
        "texture": (192, 40),
        "cells": (192, 2),
    }
    for table in tables.values():
        assert table["Metadata_Well"].tolist() == wells["Metadata_Well"].tolist()
    place = features_of(position_table(wells))
    at = {well: place[i].tolist() for i, well in enumerate(wells["Metadata_Well"])}
    assert at["A01"] == [0, 0, 0, 0, 0]
    assert at["C05"] == [2, 4, 4, 16, 2]
    assert at["H12"] == [7, 11, 49, 121, 0]


def test_shuffled_labels_stay_on_their_plate_and_off_the_controls(wells):
    shuffled = shuffled_labels(wells, 0)
    control = wells["Metadata_control_type"] == "negcon"
    assert (shuffled[control] == wells[control]).all(axis=None)
    for _, rows in wells[~control].groupby("Metadata_Plate"):
        dealt = shuffled.loc[rows.index, "Metadata_Perturbation"]
        assert sorted(dealt) == sorted(rows["Metadata_Perturbation"])
        assert (dealt == rows["Metadata_Perturbation"]).mean() < 0.2
    np.testing.assert_array_equal(features_of(shuffled), features_of(wells))


def test_oracle_is_the_rendered_truth(screen, wells):
    parameters = ScreenParameters(plates=2, sites=1, size=64)
    _, expected = render_site(parameters, 1, 17, 0)
    np.testing.assert_array_equal(true_factors(parameters, 1, 17, 0), expected)
    table = oracle_table(wells, screen)
    row = (table["Metadata_Plate"] == "CD00002") & (table["Metadata_Well"] == "B06")
    np.testing.assert_allclose(features_of(table[row])[0], expected, rtol=1e-6)
