"""Scores against their definitions, by loops over pairs of wells."""

import itertools

import numpy as np
import pandas as pd
import pytest

from camae import evaluate
from camae.errors import CamaeError
from camae.evaluate.config import EvaluateConfig
from camae.evaluate.scores import labeled_wells, replicate_excess, score, standardized
from camae.omissions import Omissions


def wells_table(genes=("a", "b", "c", "d"), plates=("P1", "P2"), controls=3, signal=2.0, seed=0):
    rng = np.random.default_rng(seed)
    center = {gene: rng.normal(size=6) * signal for gene in genes}
    rows = []
    for plate in plates:
        shift = rng.normal(size=6)
        for name in [*genes, *genes, *["DMSO"] * controls]:
            vector = shift + center.get(name, np.zeros(6)) + rng.normal(size=6)
            meta = {
                "Metadata_Plate": plate,
                "Metadata_Perturbation": name,
                "Metadata_control_type": "negcon" if name == "DMSO" else "",
            }
            rows.append(meta | {f"emb_{i:04d}": v for i, v in enumerate(vector)})
    table = pd.DataFrame(rows)
    return table, table.filter(regex="^emb_").to_numpy()


def test_consistency_by_loops_over_pairs():
    rng = np.random.default_rng(1)
    z, name = rng.normal(size=(14, 5)), np.array(list("aaabbbbccddddd"))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = []
    for p in "abcd":
        own, others = np.flatnonzero(name == p), np.flatnonzero(name != p)
        within = np.mean([unit[i] @ unit[j] for i, j in itertools.combinations(own, 2)])
        expected.append(within - np.mean([unit[i] @ unit[j] for i in own for j in others]))
    np.testing.assert_allclose(replicate_excess(z, name), expected, atol=1e-12)


def test_standardization_is_by_the_controls_of_each_plate():
    table, x = wells_table()
    wells = labeled_wells(table, EvaluateConfig(), 4, Omissions())
    z, expected = standardized(x, wells), x.copy()
    for plate in ("P1", "P2"):
        own = (table["Metadata_Plate"] == plate).to_numpy()
        controls = x[own & (table["Metadata_control_type"] == "negcon").to_numpy()]
        expected[own] = (x[own] - controls.mean(0)) / controls.std(0)
    np.testing.assert_allclose(z, expected[wells.rows], atol=1e-9)


def test_signal_scores_above_none():
    """Without signal within 4 standard errors of chance and of 0; with signal far above."""
    for signal, good in ((0.0, False), (4.0, True)):
        table, x = wells_table(genes=[f"g{i}" for i in range(12)], signal=signal, controls=6)
        wells = labeled_wells(table, EvaluateConfig(), 4, Omissions())
        found = score(standardized(x, wells), wells)
        assert found.chance == pytest.approx(1 / 12)
        above = found.separability > found.chance + 4 * max(found.separability_se, 0.04)
        assert above == good
        assert (found.consistency > 4 * found.consistency_se) == good


def test_halves_are_disjoint_and_whole():
    wells = labeled_wells(wells_table(genes=list("abcdefg"))[0], EvaluateConfig(), 4, Omissions())
    first, second = wells.halves(0)
    assert not first & second
    assert first | second == set("abcdefg")
    assert len(first) == 4
    assert wells.halves(0) == (first, second)


def test_one_plate_is_halved_and_said():
    wells = labeled_wells(wells_table(plates=("P1",))[0], EvaluateConfig(), 4, Omissions())
    assert sorted(set(wells.group.tolist())) == ["0", "1"]
    assert "there is one plate: halves of its wells are held out in turn" in wells.notes[0]


def test_too_few_controls_are_said():
    wells = labeled_wells(wells_table(controls=1)[0], EvaluateConfig(), 4, Omissions())
    assert wells.control is None
    assert "a plate has 1 negative controls" in wells.notes[0]


def test_perturbations_without_replicates_are_counted_and_too_few_refused():
    table = wells_table()[0]
    table.loc[
        table["Metadata_Perturbation"].eq("d") & table["Metadata_Plate"].eq("P2"), "Metadata_Perturbation"
    ] = ""
    left_out = Omissions()
    assert labeled_wells(table, EvaluateConfig(), 3, left_out).perturbations == ["a", "b", "c"]
    assert left_out.lines() == [
        "1 perturbation left out: it has no replicate on a second plate to be tested on (first: d)"
    ]
    with pytest.raises(CamaeError, match="3 perturbations have replicates on two plates, and 4 are needed"):
        labeled_wells(table, EvaluateConfig(), 4, Omissions())
    with pytest.raises(CamaeError, match="no column Metadata_Gene for the perturbations"):
        labeled_wells(table, EvaluateConfig(label="Metadata_Gene"), 4, Omissions())


@pytest.mark.parametrize("name", ["label", "plate", "control"])
def test_columns_are_looked_for_before_anything_is_embedded(labeled, model_file, tmp_path, name):
    manifest = labeled()
    for call in (evaluate.layers, evaluate.channels):
        with pytest.raises(
            CamaeError, match=r"the wells have no column Metadata_X for the .*; there are Metadata_Pl"
        ):
            call(manifest, model_file, tmp_path / "out", quiet=True, **{name: "Metadata_X"})
    assert not (tmp_path / "out").exists()
