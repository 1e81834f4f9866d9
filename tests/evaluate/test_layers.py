"""`evaluate.layers`: scores of every block as embedded alone, the stored choice, and embedding by it."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest

import camae
from camae import evaluate
from camae.embedding import embed, embed_screen
from camae.embedding_table import features_of
from camae.errors import CamaeError
from camae.evaluate.scores import labeled_wells, score, standardized
from camae.model import load
from camae.omissions import Omissions


@pytest.fixture
def scored(labeled, model_file, tmp_path):
    manifest = labeled(lonely=True)
    return manifest, evaluate.layers(manifest, model_file, tmp_path / "out", quiet=True), tmp_path / "out"


def test_every_block_scores_as_embedded_alone(scored, model_file, tmp_path):
    manifest, table, _ = scored
    config = evaluate.EvaluateConfig()
    for block in range(3):
        wells_table = embed_screen(manifest, model_file, tmp_path / f"b{block}", layers=block, quiet=True)
        wells = labeled_wells(wells_table, config, 4, Omissions())
        halves = wells.halves(0)
        z = standardized(features_of(wells_table), wells)
        for prefix, half in zip(("", "held_out_"), halves, strict=True):
            for name, value in score(z, wells, half).row(prefix).items():
                assert table[name][block] == pytest.approx(value, abs=1e-6), name


def test_choice_is_the_best_mean_rank_of_the_choosing_half(scored):
    table = scored[1]
    ranks = table[["separability", "consistency"]].rank(ascending=False).mean(axis=1)
    np.testing.assert_allclose(table["rank"], ranks)
    assert table["chosen"].sum() == 1
    assert table.loc[table["chosen"], "rank"].iloc[0] == ranks.min()


def test_files_and_what_was_left_out(scored, model_file):
    _, table, out = scored
    found = sorted(p.name for p in out.iterdir())
    assert found == ["embeddings", "layers.csv", "layers.png", "left_out.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(out / "layers.csv"), table, check_exact=False)
    assert "lonely" in (out / "left_out.csv").read_text()
    stored = json.loads((model_file.parent / "model.best_layer.json").read_text())
    assert stored["block"] == table.loc[table["chosen"], "block"].iloc[0]
    assert stored["note"] == table.attrs["notes"][-1]
    assert "chosen on manifest.csv by half of its 4 perturbations" in stored["note"]


def test_embedding_by_the_best_layer_is_by_its_number_with_a_note(scored, model_file, tmp_path):
    manifest, table, _ = scored
    best = int(table.loc[table["chosen"], "block"].iloc[0])
    image = np.random.default_rng(0).integers(0, 4000, (3, 32, 32)).astype(np.uint16)
    names = ["DNA", "ER", "Mito"]
    with pytest.warns(UserWarning, match=rf"layers='best' is block {best} of 0 to 2: chosen on manifest.csv"):
        by_word = embed(image, names, model_file, layers="best")
    np.testing.assert_array_equal(by_word, embed(image, names, model_file, layers=best))
    with pytest.warns(UserWarning, match=r"chosen for pool='mean', and used here with pool='cls'"):
        wells = embed_screen(manifest, model_file, tmp_path / "best", layers="best", pool="cls", quiet=True)
    number = embed_screen(manifest, model_file, tmp_path / "number", layers=best, pool="cls", quiet=True)
    np.testing.assert_array_equal(features_of(wells), features_of(number))


def test_no_note_without_the_word(scored, model_file):
    image = np.random.default_rng(0).integers(0, 4000, (3, 32, 32)).astype(np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(image, ["DNA", "ER", "Mito"], model_file, layers=1)


def test_again_is_the_same_and_a_model_in_memory_keeps_nothing(scored, model_file):
    manifest, table, out = scored
    again = evaluate.layers(manifest, model_file, out, quiet=True)
    pd.testing.assert_frame_equal(table, again)
    (model_file.parent / "model.best_layer.json").unlink()
    model = load(model_file)
    model.file = None
    in_memory = evaluate.layers(manifest, model, out, quiet=True)
    assert "not kept, because the model was not read from a file" in in_memory.attrs["notes"][0]
    assert not list(model_file.parent.glob("*.json"))


def test_refusals(labeled, model_file, tmp_path):
    manifest = labeled()
    image = np.zeros((1, 32, 32), np.uint16)
    with pytest.raises(CamaeError, match="no layer was chosen for this model"):
        embed(image, ["DNA"], model_file, layers="best")
    with pytest.raises(CamaeError, match="layers is 'last'; give numbers of blocks, or 'best'"):
        embed(image, ["DNA"], model_file, layers="last")
    with pytest.raises(CamaeError, match="unknown evaluation options colour; known are backends"):
        evaluate.layers(manifest, model_file, tmp_path / "a", colour=1)
    with pytest.raises(CamaeError, match="pool 'max' is not one of"):
        evaluate.layers(manifest, model_file, tmp_path / "a", pool="max")
    with pytest.raises(CamaeError, match="has no encoder blocks to choose from; give a CA-MAE"):
        evaluate.layers(
            manifest, camae.model.registry.build("mu_net_ti", channels=("DNA", "ER", "Mito")), tmp_path / "a"
        )
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    table[table["Metadata_Perturbation"] != "gene3"].to_csv(manifest.with_name("few.csv"), index=False)
    with pytest.raises(CamaeError, match="3 perturbations have replicates on two plates, and 4 are needed"):
        evaluate.layers(manifest.with_name("few.csv"), model_file, tmp_path / "few", quiet=True)
    assert not list((tmp_path / "few").glob("layers*"))
