"""`camae.embed_screen`: right tables, resumed exactly, never mixed."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

import camae
from camae.dataloader import Manifest
from camae.dataloader.images import read_site
from camae.embedding import shards as shards_module
from camae.errors import CamaeError
from camae.tables import features_of, read_table


def embed(data, model, out, **options):
    return camae.embed_screen(data, model, out, quiet=True, **options)


def test_table_equals_embed(screen, model, tmp_path):
    table = embed(screen, model, tmp_path / "emb", tiles="center")
    manifest = Manifest.read(screen)
    for row in range(len(manifest)):
        image, names = read_site(manifest, row)
        expected = camae.embed(image[:, 8:40, 8:40], names, model)
        np.testing.assert_allclose(features_of(table)[row], expected, atol=1e-5)
    assert table.columns[0].startswith("Metadata_")
    assert "emb_0031" in table
    assert (table["Metadata_Well"].str.len() == 3).all()


def test_wells_are_means_of_sites(screen, model, tmp_path):
    manifest = Manifest.read(screen)
    second = manifest.table.assign(Metadata_Site="2")
    both = Manifest(pd.concat([manifest.table, second.iloc[::-1]]), manifest.root)
    wells = embed(both, model, tmp_path / "wells")
    sites = embed(both, model, tmp_path / "sites", level="site")
    assert len(wells) == 8
    assert len(sites) == 16
    np.testing.assert_allclose(
        features_of(wells), features_of(embed(manifest, model, tmp_path / "one")), atol=1e-5
    )
    assert "Metadata_Site" not in wells
    assert wells["Metadata_Perturbation"].tolist() == manifest.table["Metadata_Perturbation"].tolist()


def test_resume_is_bitwise(screen, model, tmp_path, monkeypatch):
    whole = embed(screen, model, tmp_path / "whole", sites_per_shard=3)
    original, calls = shards_module.write_table, []

    def stop_after_two(path, table, about):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path)
        return original(path, table, about)

    monkeypatch.setattr(shards_module, "write_table", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        embed(screen, model, tmp_path / "parts", sites_per_shard=3)
    monkeypatch.undo()
    assert len(list((tmp_path / "parts" / "sites").iterdir())) == 2
    resumed = embed(screen, model, tmp_path / "parts", sites_per_shard=3)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_file_says_what_made_it(screen, model, tmp_path):
    embed(screen, model, tmp_path / "emb")
    table, about = read_table(tmp_path / "emb" / "wells.parquet")
    assert about == json.loads((tmp_path / "emb" / "ledger.json").read_text())
    assert about["standardization"] == "own"
    assert len(about["model_hash"]) == 16
    assert len(table) == 8


def test_outputs_are_never_mixed(screen, model, tmp_path):
    embed(screen, model, tmp_path / "emb")
    with pytest.raises(CamaeError, match="another tiles"):
        embed(screen, model, tmp_path / "emb", tiles="center")
    model.encoder.cls_D.data += 1
    with pytest.raises(CamaeError, match="another model_hash"):
        embed(screen, model, tmp_path / "emb")


def broken(screen, change):
    """The screen with one file changed."""
    path = screen.parent / "P1_A02_ER.tif"
    change(path)
    return screen


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p.unlink(), "A02.*ER.*P1_A02_ER.tif"),
        (lambda p: p.write_bytes(p.read_bytes()[:2000]), "A02.*ER.*P1_A02_ER.tif"),
        (lambda p: p.write_bytes(b""), "A02.*ER.*P1_A02_ER.tif"),
        (lambda p: tifffile.imwrite(p, np.zeros((16, 16), np.uint16)), "16x16"),
        (lambda p: tifffile.imwrite(p, np.full((48, 48), 7, np.uint16)), "A02.*ER.*constant"),
        (lambda p: tifffile.imwrite(p, np.full((48, 48), np.nan, np.float32)), "A02"),
    ],
)
def test_bad_files_are_named(screen, model, tmp_path, change, sentence):
    with pytest.raises(CamaeError, match=sentence):
        embed(broken(screen, change), model, tmp_path / "emb")
    assert not (tmp_path / "emb" / "wells.parquet").exists()


def test_crop_larger_than_the_image(tmp_path, screen, model):
    from camae.model import CAMAE, preset

    large = CAMAE(preset("ca_mae_vit_ti16", crop=64, depth=1, channels=("DNA",)))
    with pytest.raises(CamaeError, match="48 x 48 px, smaller than the model's crop of 64 x 64"):
        embed(screen, large, tmp_path / "emb")


def test_empty_manifest_and_wrong_path(tmp_path, screen, model):
    header = screen.read_text().splitlines()[0]
    (tmp_path / "empty.csv").write_text(header + "\n")
    with pytest.raises(CamaeError, match=r"empty\.csv"):
        embed(tmp_path / "empty.csv", model, tmp_path / "emb")
    with pytest.raises(CamaeError, match="nowhere"):
        embed(tmp_path / "nowhere", model, tmp_path / "emb")
