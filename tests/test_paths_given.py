"""Values in place of paths: one sentence that names the argument."""

import numpy as np
import pytest
import torch

import camae
from camae import evaluate
from camae.dataloader import read_manifest
from camae.errors import CamaeError
from camae.files import path_of

NO_PATHS = (None, 5, 1.5, b"x", [], {}, np.zeros(3), torch.zeros(2), type)


@pytest.mark.parametrize("value", NO_PATHS, ids=str)
def test_values_of_another_kind_are_named(value, tmp_path):
    kind = type(value).__name__
    said = f"is a value of type {kind}; give the path of a file or folder"
    with pytest.raises(CamaeError, match=f"the name of the manifest or folder {said}"):
        read_manifest(value)
    with pytest.raises(CamaeError, match=f"out {said}"):
        camae.embed_screen(tmp_path, None, value)
    with pytest.raises(CamaeError, match=r"is a value of type|no data set was given"):
        camae.train(value, out=tmp_path / "run", steps=1)
    with pytest.raises(CamaeError, match=f"out {said}"):
        path_of(value, "out")


def test_data_in_lists_and_empty_texts(tmp_path):
    with pytest.raises(CamaeError, match="the data set is a value of type int; give the path"):
        camae.train([1, 2, 3], out=tmp_path / "run", steps=1)
    with pytest.raises(
        CamaeError, match="the data is a value of type float; give a manifest, a folder, or several"
    ):
        camae.train(1.5, out=tmp_path / "run", steps=1)
    with pytest.raises(CamaeError, match="out is empty; is a variable of the shell unset\\?"):
        camae.embed_screen(tmp_path, None, "")


def test_hidden_channels_as_an_array():
    model = camae.model.CAMAE(
        camae.model.preset(
            "ca_mae_vit_ti16", channels=["DNA", "ER"], crop=32, patch=16, width=32, depth=1, heads=2
        )
    )
    image = np.arange(2 * 32 * 32, dtype=np.uint16).reshape(2, 32, 32)
    found = evaluate.impute(model, image, ["DNA", "ER"], "ER")
    patches, _ = model.reconstruct(image, ["DNA", "ER"], mask_ratio=0.0, hidden=np.array(["ER"]))
    assert patches.shape == (8, 256)
    assert found.imputed_HW.shape == (32, 32)
