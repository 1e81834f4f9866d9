"""`evaluate.channels` and `evaluate.impute`: every set scored as a screen of those channels, and imputed planes."""

import numpy as np
import pandas as pd
import pytest
import torch

from camae import evaluate
from camae.embedding import embed_screen
from camae.embedding_table import features_of
from camae.errors import CamaeError
from camae.evaluate.missing_channels import _note, nested_sets
from camae.evaluate.scores import labeled_wells, score, standardized
from camae.model import load
from camae.omissions import Omissions


def test_each_set_scores_as_a_screen_of_those_channels(labeled, model_file, tmp_path):
    manifest, out = labeled(), tmp_path / "out"
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b\ngene0,gene1\ngene2,gene3\n")
    table = evaluate.channels(manifest, model_file, out, nested=True, pairs=pairs, quiet=True)
    assert table["left_out"].tolist()[:4] == ["", "DNA", "ER", "Mito"]
    assert table["n_channels"].tolist() == [3, 2, 2, 2, 1]
    sites = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    for row in table.to_dict("records"):
        gone = row["left_out"].split("+") if row["left_out"] else []
        path = manifest.with_name("part.csv")
        sites.drop(columns=gone).to_csv(path, index=False)
        name = f"alone_{len(list(tmp_path.iterdir()))}"
        wells_table = embed_screen(path, model_file, tmp_path / name, quiet=True)
        wells = labeled_wells(wells_table, evaluate.EvaluateConfig(), 2, Omissions())
        expected = score(standardized(features_of(wells_table), wells), wells).row()
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, abs=1e-6), key
    found = sorted(p.name for p in out.iterdir())
    assert found == ["channels.csv", "channels.png", "embeddings", "imputed.png"]
    assert table["recall"].between(0, 1).all()
    assert table["imputed_mse"].isna().tolist() == [True, False, False, False, True]
    assert "can be spared best: without it separability is" in table.attrs["notes"][-1]


@pytest.mark.parametrize(
    ("value", "end"),
    [
        (0.8, "no channel's loss is above two standard errors, so the order says little"),
        (0.3, "what is lost by more than two standard errors: DNA (separability), DNA (consistency)"),
    ],
)
def test_note_says_whether_losses_are_above_their_errors(value, end):
    scores = pd.DataFrame({"left_out": ["", "DNA", "ER"], "n_channels": [3, 2, 2], "imputed": False})
    for name in ("separability", "consistency"):
        scores = scores.assign(**{name: [0.9, value, 0.85], f"{name}_se": 0.1})
    assert _note(scores).startswith("ER can be spared best")
    assert _note(scores).endswith(end)


def test_nested_sets_begin_with_what_can_be_spared():
    scores = pd.DataFrame(
        {
            "left_out": ["", "DNA", "ER", "RNA", "Mito"],
            "imputed": False,
            "separability": [0.9, 0.1, 0.8, 0.7, 0.2],
            "consistency": [0.9, 0.1, 0.8, 0.7, 0.2],
        }
    )
    assert list(nested_sets(scores)) == [("ER", "RNA"), ("ER", "RNA", "Mito")]


def test_imputed_channel_is_that_of_reconstruct(model_file):
    """Pixels of the plane in their places, and the error against the standardized plane, in NumPy."""
    model = load(model_file)
    image = torch.randint(0, 4000, (3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    names = ["DNA", "ER", "Mito"]
    found = evaluate.impute(model, image, names, "ER")
    patches, mask = model.reconstruct(image, names, mask_ratio=0.0, hidden=["ER"])
    assert mask.reshape(3, 16).sum(1).tolist() == [0, 16, 0]
    for n, pixels in enumerate(patches.reshape(3, 16, 64)[1].numpy()):
        row, column = divmod(n, 4)
        tile = found.imputed_HW[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(tile, pixels.reshape(8, 8))
    plane = image[1].numpy().astype(np.float64)
    original = (plane - plane.mean()) / np.sqrt(plane.var() + 1e-6)
    np.testing.assert_allclose(found.original_HW, original, atol=1e-6)
    np.testing.assert_allclose(found.error_HW, np.abs(found.imputed_HW - original), atol=1e-5)
    assert found.mse == pytest.approx(np.mean((found.imputed_HW - original) ** 2), rel=1e-5)


def test_imputed_sets_score_as_screens_with_that_channel_imputed(labeled, model_file, tmp_path):
    manifest, out = labeled(), tmp_path / "out"
    table = evaluate.channels(manifest, model_file, out, nested=True, imputed=True, quiet=True)
    assert table["imputed"].tolist() == [False] * 4 + [True] * 3 + [False]
    assert table["left_out"].tolist()[4:7] == ["DNA", "ER", "Mito"]
    assert table["imputed_mse"].notna().tolist() == [False] + [True] * 3 + [False] * 4
    sites = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    sites.drop(columns="ER").to_csv(manifest.with_name("part.csv"), index=False)
    part = manifest.with_name("part.csv")
    alone = embed_screen(part, model_file, tmp_path / "alone", impute=["ER"], quiet=True)
    wells = labeled_wells(alone, evaluate.EvaluateConfig(), 2, Omissions())
    expected = score(standardized(features_of(alone), wells), wells).row()
    for key, value in expected.items():
        assert table.iloc[5][key] == pytest.approx(value, abs=1e-6), key
    plain = evaluate.channels(manifest, model_file, tmp_path / "plain", nested=True, quiet=True)
    assert plain.attrs["notes"] == table.attrs["notes"]


def test_a_channel_without_a_decoder_is_embedded_and_not_imputed(labeled, model_file, tmp_path):
    manifest = labeled(channels=("DNA", "Actin"))
    table = evaluate.channels(manifest, model_file, tmp_path / "out", quiet=True)
    assert "imputed_mse" not in table
    assert not (tmp_path / "out" / "imputed.png").exists()
    with pytest.raises(CamaeError, match="no decoder for channel 'Actin'"):
        evaluate.channels(manifest, model_file, tmp_path / "imputed", imputed=True, quiet=True)
    assert not (tmp_path / "imputed").exists()


def test_refusals(labeled, model_file, tmp_path):
    manifest = labeled()
    sites = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    one, mixed = manifest.with_name("one.csv"), manifest.with_name("mixed.csv")
    sites.drop(columns=["ER", "Mito"]).to_csv(one, index=False)
    with pytest.raises(CamaeError, match="the screen has the channel 'DNA' alone; leaving one out needs two"):
        evaluate.channels(one, model_file, tmp_path / "a")
    sites.loc[2, "ER"] = ""
    sites.to_csv(mixed, index=False)
    with pytest.raises(CamaeError, match="lacks channel 'ER'; give sites that all have the same channels"):
        evaluate.channels(mixed, model_file, tmp_path / "a", incomplete="mixed")
    with pytest.raises(CamaeError, match="no layer was chosen for this model"):
        evaluate.channels(manifest, model_file, tmp_path / "a", layers="best")
    with pytest.raises(CamaeError, match="have no column DNA for the perturbations"):
        evaluate.channels(manifest, model_file, tmp_path / "a", label="DNA")
    nowhere = "Metadata_control_type says 'negcon' nowhere, so no well is a negative control; it says nothing"
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b\nBRCA1,gene0\n")
    with pytest.raises(CamaeError, match=r"pairs.csv: none of its 1 pairs is in the map"):
        evaluate.channels(manifest, model_file, tmp_path / "a", pairs=pairs)
    for negative in ("negativ", "neg"):  # the wells of DMSO would be a perturbation to score
        with pytest.raises(
            CamaeError, match=rf"says '{negative}' nowhere, .*; it says negcon \(control= and"
        ):
            evaluate.channels(manifest, model_file, tmp_path / "a", negative=negative)
    sites = pd.read_csv(manifest, dtype=str, keep_default_na=False).assign(Metadata_control_type="")
    sites.to_csv(manifest.with_name("none.csv"), index=False)
    with pytest.raises(CamaeError, match=nowhere):
        evaluate.channels(manifest.with_name("none.csv"), model_file, tmp_path / "a", pairs=pairs)
    assert not (tmp_path / "a").exists()
