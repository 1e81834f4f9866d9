"""A screen embedded through reader="dali" equals one through `native` bit for bit."""

import importlib.util

import numpy as np
import pytest
import tifffile
import torch

import camae
from camae.dataloader import Manifest
from camae.embedding_table import features_of, read_table
from camae.errors import CamaeError

HAVE_DALI = bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))
needs_dali = pytest.mark.skipif(not HAVE_DALI, reason="nvidia-dali-cuda130 is not installed")


def embed(data, model, out, **options):
    return camae.embed_screen(data, model, out, quiet=True, **options)


@needs_dali
@pytest.mark.parametrize(
    "options",
    [
        {"tiles": "cover", "overlap": 0.5},
        {"tiles": "center", "pool": "per_channel", "level": "site"},
        {"tiles": "interpolate", "threads": 3, "sites_per_shard": 3},
    ],
    ids=lambda options: options["tiles"],
)
def test_a_screen_equals_native_bit_for_bit(screen, model, tmp_path, options):
    native = embed(screen, model, tmp_path / "native", reader="native", **options)
    dali = embed(screen, model, tmp_path / "dali", reader="dali", **options)
    assert np.array_equal(features_of(native), features_of(dali))
    names = [c for c in native if c.startswith("Metadata_")]
    assert native[names].equals(dali[names])


@needs_dali
def test_a_screen_begun_by_native_is_finished_by_dali(screen, model, tmp_path):
    whole = embed(screen, model, tmp_path / "whole", sites_per_shard=3)
    embed(screen, model, tmp_path / "both", sites_per_shard=3)
    shard = sorted((tmp_path / "both").glob("**/*.parquet"))[0]
    shard.unlink()
    again = embed(screen, model, tmp_path / "both", sites_per_shard=3, reader="dali")
    assert np.array_equal(features_of(whole), features_of(again))
    assert shard.exists()
    assert len(read_table(shard))


@needs_dali
def test_sites_are_refused_as_by_native(screen, model, tmp_path):
    manifest = Manifest.read(screen)
    path = manifest.path(1, "ER")
    tifffile.imwrite(path, np.full((48, 48), 3, np.uint16))
    sentences = []
    for reader in ("native", "dali"):
        with pytest.raises(
            CamaeError, match=r"row 1 .*channel ER: .*every pixel is 3, the plane is"
        ) as caught:
            embed(screen, model, tmp_path / reader, reader=reader)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    tifffile.imwrite(path, np.zeros((2, 48, 48), np.uint16), photometric="minisblack")
    with pytest.raises(
        CamaeError, match=r"row 1 .*channel ER: .*holds 2 planes on 2 pages .*reader='native'"
    ):
        embed(screen, model, tmp_path / "pages", reader="dali")


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_screen_by_mixed_decoding_equals_native_on_the_same_device(screen, model, tmp_path):
    model = model.to("cuda")
    tables = [
        embed(screen, model, tmp_path / reader, reader=reader, tiles="cover", overlap=0.5)
        for reader in ("native", "dali")
    ]
    assert np.array_equal(*map(features_of, tables))
