"""Aggregation and relationships against their definitions."""

import numpy as np
import pytest

from camae import maps
from camae.errors import CamaeError


@pytest.fixture
def wells():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(90, 7)) + 2,
        np.array([f"p{i}" for i in rng.integers(0, 11, 90)]),
        rng.random(90) < 0.2,
    )


@pytest.mark.parametrize("method", ["mean", "median", "spherical_mean"])
@pytest.mark.parametrize("centered", [False, True])
def test_aggregate_is_its_definition_row_by_row(wells, method, centered):
    z, by, control = wells
    v = maps.aggregate(z, by, method, control=control if centered else None)
    names = maps.perturbation_names(by)
    assert names.tolist() == sorted(set(by))
    for name, row in zip(names, v, strict=True):
        own = z[by == name] - (z[control].mean(axis=0) if centered else 0)
        if method == "spherical_mean":
            own = (own / np.linalg.norm(own, axis=1, keepdims=True)).mean(axis=0)
            expected = own / np.linalg.norm(own)
        else:
            expected = getattr(np, method)(own, axis=0)
        np.testing.assert_allclose(row, expected, atol=1e-13)
    if centered:
        origin = z[control].mean(axis=0)
        np.testing.assert_allclose(maps.aggregate(z, by, method, origin=origin), v, atol=1e-13)


def test_guides_then_genes_and_minimum_replicates(wells):
    z, by, _ = wells
    guide = np.array([f"{name}_{i % 3}" for i, name in enumerate(by)])
    v = maps.aggregate(z, guide)
    genes = np.array([name.split("_")[0] for name in maps.perturbation_names(guide)])
    assert maps.aggregate(v, genes).shape == (len(set(by)), 7)
    counts = {name: (by == name).sum() for name in set(by)}
    many = sorted(name for name in counts if counts[name] >= 8)
    assert maps.perturbation_names(by, min_replicates=8).tolist() == many
    assert maps.aggregate(z, by, min_replicates=8).shape[0] == len(many)
    with pytest.raises(CamaeError, match="no perturbation has 100 replicates"):
        maps.aggregate(z, by, min_replicates=100)
    with pytest.raises(CamaeError, match="unknown aggregation 'mode'"):
        maps.aggregate(z, by, "mode")


@pytest.mark.parametrize("side", ["both", "similar", "opposite"])
@pytest.mark.parametrize("block", [7, 1024])
def test_strongest_relationships_are_the_sorted_map(side, block):
    v = np.random.default_rng(1).normal(size=(40, 5))
    names = np.array([f"g{i:02d}" for i in range(40)])
    table = maps.strongest(v, names, 25, side, block)
    i, j = np.triu_indices(40, 1)
    cosine = maps.relate(v)[i, j]
    key = {"both": np.abs(cosine), "similar": cosine, "opposite": -cosine}[side]
    best = np.argsort(-key)[:25]
    assert table.a.tolist() == names[i[best]].tolist()
    assert table.b.tolist() == names[j[best]].tolist()
    np.testing.assert_allclose(table.cosine, cosine[best], atol=1e-12)


def test_zero_vectors_are_related_to_nothing():
    cosine = maps.relate(np.array([[0.0, 0], [1, 1]]))
    assert cosine.tolist() == [[0, 0], [0, pytest.approx(1)]]
    origin = maps.relate(np.array([[1.0, 1], [2, 1], [1, 2]]), origin=np.ones(2))
    assert origin[1, 2] == 0
