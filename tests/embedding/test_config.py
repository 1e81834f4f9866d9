"""Embedding configuration and ledger: one option, one value, in every form; folders of the first version go on."""

import json

import numpy as np
import pytest
import torch

import camae
from camae.embedding import EmbedConfig
from camae.embedding.store.ledger import LEDGER, Ledger, claim
from camae.errors import CamaeError
from camae.files import write_json

# As commit cd49f26 wrote it.
FIRST = {
    "model": "custom",
    "model_hash": "0123456789abcdef",
    "manifest_hash": "fedcba9876543210",
    "sites": 8,
    "standardization": "own",
    "crop": 32,
    "tiles": "grid",
    "overlap": 0.0,
    "pool": "mean",
    "layers": None,
    "value_range": None,
    "dtype": None,
    "sites_per_shard": 3,
    "tokens_per_pass": 8192,
}


def test_values_of_python_become_plain():
    config = EmbedConfig.of(
        layers=[0, -1], value_range=np.array([0, 255]), dtype=torch.bfloat16, device=torch.device("cpu")
    )
    assert config == EmbedConfig(layers=(0, -1), value_range=(0.0, 255.0), dtype="bfloat16", device="cpu")
    assert EmbedConfig.of(config, pool="cls", layers=None) == EmbedConfig(
        pool="cls", value_range=(0.0, 255.0), dtype="bfloat16", device="cpu"
    )


def test_tile_and_tiles_are_one_option():
    assert (
        EmbedConfig.of(tile="grid")
        == EmbedConfig.of(tiles="grid")
        == EmbedConfig.of(tile="grid", tiles="grid")
    )
    with pytest.raises(CamaeError, match="tile='grid' and tiles='cover' are the same option; give one"):
        EmbedConfig.of(tile="grid", tiles="cover")


@pytest.mark.parametrize(
    "changes", [{}, {"layers": [1, 0], "value_range": [0.0, 1.0], "dtype": "bfloat16", "overlap": 0.25}]
)
def test_ledger_of_the_first_version(changes):
    stored = FIRST | changes
    ledger = Ledger.from_json(json.loads(json.dumps(stored)))
    assert ledger.to_json() == stored
    assert ledger.shard_rows == [range(3), range(3, 6), range(6, 8)]
    for values in ({}, [], stored | {"color": 1}, stored | {"layers": 3}):
        with pytest.raises(ValueError, match="not a ledger"):
            Ledger.from_json(values)


def test_center_and_interpolation_in_both_functions(screen, model, tmp_path):
    """One image of 48 px, by `embed` and as a site of a screen."""
    from camae.dataloader import Manifest
    from camae.dataloader.read_pixels import read_site
    from camae.embedding_table import features_of

    manifest = Manifest.read(screen)
    image, names = read_site(manifest, 0)
    for tiles in ("center", "interpolate", "cover", "grid"):
        alone = camae.embed(image, names, model, tiles=tiles)
        table = camae.embed_screen(manifest, model, tmp_path / tiles, tile=tiles, quiet=True)
        np.testing.assert_allclose(features_of(table)[0], alone, atol=1e-5)
    assert np.abs(camae.embed(image, names, model, tile="center") - alone).max() > 1e-3


def test_options_of_the_shell_in_python(screen, model, tmp_path):
    pytest.importorskip("anndata")
    options = {"bag_of_channels": True, "linear": "float32", "anndata": True, "quiet": True, "threads": 1}
    table = camae.embed_screen(screen, model, tmp_path / "emb", **options)
    assert len(table) == 8
    assert (tmp_path / "emb" / "wells.h5ad").is_file()
    again = camae.embed_screen(screen, model, tmp_path / "emb", config=EmbedConfig.of(**options))
    assert again.equals(table)


def test_an_overlap_that_changed_nothing_is_not_compared(tmp_path):
    """Of folders that were written when it was taken without tiles='cover'."""
    found, wanted = (Ledger.from_json(FIRST | {"overlap": overlap}) for overlap in (0.25, 0.0))
    write_json(tmp_path / LEDGER, found.to_json())
    assert claim(tmp_path, wanted, any_tokens_per_pass=False) == wanted
    cover = FIRST | {"tiles": "cover"}
    write_json(tmp_path / LEDGER, cover | {"overlap": 0.25})
    with pytest.raises(CamaeError, match="made with another overlap"):
        claim(tmp_path, Ledger.from_json(cover), any_tokens_per_pass=False)
