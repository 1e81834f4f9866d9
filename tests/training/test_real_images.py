"""The same commands on real RxRx1 images: training learns to fill in masked patches, embedding runs."""

import warnings

import numpy as np
import pytest

import camae
from camae.dataloader import read_manifest
from camae.embedding_table import features_of

HELD_OUT = "plate:HEPG2-08_2,U2OS-01_4"


@pytest.fixture
def rxrx1(real_data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the folder also holds sites of four channels, which it lists
        manifest = read_manifest(real_data / "images" / "rxrx1_sample", incomplete="skip")
    assert len(manifest) == 18
    return manifest


def test_train_and_embed_run(rxrx1, tmp_path):
    run = camae.train(
        rxrx1,
        "ca_mae_vit_ti16",
        tmp_path / "run",
        2,
        batch_size=2,
        val=HELD_OUT,
        quiet=True,
        model_options={"crop": 128, "depth": 2, "decoder": "small"},
    )
    assert run.history[-1]["val_mse"] > 0
    table = camae.embed_screen(rxrx1, run.model, tmp_path / "emb", quiet=True, tiles="center")
    assert len(table) == 18
    assert np.isfinite(features_of(table)).all()


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_masked_patches_of_held_out_sites_are_predicted(rxrx1, tmp_path):
    """200 steps of 8 crops: masked MSE on two held-out sites at most 0.7; predicting the mean gives 1.0."""
    run = camae.train(
        rxrx1,
        "ca_mae_vit_ti16",
        tmp_path / "run",
        200,
        batch_size=8,
        optimizer="adamw",
        lr=2e-3,
        val=HELD_OUT,
        quiet=True,
        model_options={"decoder": "small"},
    )
    assert run.history[-1]["val_mse"] <= 0.7
