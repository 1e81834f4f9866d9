"""`camae.embed_screen`: right tables, resumed exactly, never mixed."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile

import camae
from camae.dataloader import Manifest
from camae.dataloader.read_pixels import read_site
from camae.embedding import job as job_module
from camae.embedding import to_anndata
from camae.embedding.store import shards
from camae.embedding_table import features_of, read_table
from camae.errors import CamaeError


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
    original, calls = shards.write_table, []

    def stop_after_two(path, table, about):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path)
        return original(path, table, about)

    monkeypatch.setattr(shards, "write_table", stop_after_two)
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
    with pytest.raises(CamaeError, match=r"another model_hash \(model_hash is of the weights\);"):
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


def test_sites_that_cannot_be_averaged_are_refused_before_any_is_read(screen, model, tmp_path):
    table = pd.read_csv(screen, dtype=str, keep_default_na=False)
    twice = Manifest(pd.concat([table, table.iloc[:1]]), screen.parent)
    with pytest.raises(CamaeError, match=r"well A01, .*is there twice"):
        embed(twice, model, tmp_path / "emb")
    assert not (tmp_path / "emb").exists()


def test_empty_manifest_and_wrong_path(tmp_path, screen, model):
    header = screen.read_text().splitlines()[0]
    (tmp_path / "empty.csv").write_text(header + "\n")
    with pytest.raises(CamaeError, match=r"empty\.csv"):
        embed(tmp_path / "empty.csv", model, tmp_path / "emb")
    with pytest.raises(CamaeError, match="nowhere"):
        embed(tmp_path / "nowhere", model, tmp_path / "emb")


def test_ranks_together_equal_one_process(long_screen, model, tmp_path):
    whole = embed(long_screen, model, tmp_path / "one", sites_per_shard=3, tokens_per_pass=100)
    options = {"sites_per_shard": 3, "tokens_per_pass": 100, "world": 3}
    tables = [embed(long_screen, model, tmp_path / "three", rank=r, **options) for r in (2, 0, 1)]
    assert [t.attrs["complete"] for t in tables] == [False, False, True]
    assert [len(t) for t in tables] == [12, 15, 8]  # 14 shards of 3 sites (the last of 1): 4, 5, 5
    pd.testing.assert_frame_equal(tables[-1], whole, check_exact=True)
    for name in (p.name for p in (tmp_path / "one" / "sites").iterdir()):
        a, b = ((tmp_path / folder / "sites" / name).read_bytes() for folder in ("one", "three"))
        assert a == b


def test_ranks_from_torchrun_s_environment(screen, model, tmp_path, monkeypatch):
    whole = embed(screen, model, tmp_path / "one", sites_per_shard=3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        table = embed(screen, model, tmp_path / "two", sites_per_shard=3)
    pd.testing.assert_frame_equal(table, whole, check_exact=True)


def test_batch_sizes_agree(screen, model, tmp_path):
    """Other passes sum in another order: 2^-24 relative per operation, tens of them deep, on values of order 1."""
    tables = [
        embed(screen, model, tmp_path / str(n), tiles="cover", tokens_per_pass=n) for n in (1, 100, 8192)
    ]
    for table in tables[1:]:
        np.testing.assert_allclose(features_of(table), features_of(tables[0]), atol=1e-5, rtol=0)


def test_packing_is_fixed_at_the_first_start(screen, model, tmp_path, monkeypatch):
    """More memory at the second start changes nothing; another number on request is refused."""
    monkeypatch.setattr(job_module, "default_tokens_per_pass", lambda model: 123)
    embed(screen, model, tmp_path / "emb")
    monkeypatch.setattr(job_module, "default_tokens_per_pass", lambda model: 456)
    embed(screen, model, tmp_path / "emb")
    assert json.loads((tmp_path / "emb" / "ledger.json").read_text())["tokens_per_pass"] == 123
    with pytest.raises(CamaeError, match="another tokens_per_pass"):
        embed(screen, model, tmp_path / "emb", tokens_per_pass=456)


def test_a_shard_of_another_model_is_refused(screen, model, tmp_path):
    embed(screen, model, tmp_path / "a", sites_per_shard=3)
    model.encoder.cls_D.data += 1
    embed(screen, model, tmp_path / "b", sites_per_shard=3)
    shard = "sites/part-00001.parquet"
    (tmp_path / "b" / shard).write_bytes((tmp_path / "a" / shard).read_bytes())
    with pytest.raises(CamaeError, match=r"part-00001\.parquet is not of the embeddings"):
        embed(screen, model, tmp_path / "b", sites_per_shard=3)
    (tmp_path / "b" / shard).write_bytes(b"PAR1")
    with pytest.raises(CamaeError, match=r"part-00001\.parquet: not a readable Parquet file"):
        embed(screen, model, tmp_path / "b", sites_per_shard=3)


def test_layers_and_channels_side_by_side(screen, model, tmp_path):
    table = embed(screen, model, tmp_path / "emb", tiles="center", pool="per_channel", layers=(0, -1))
    image, names = read_site(Manifest.read(screen), 0)
    expected = camae.embed(image[:, 8:40, 8:40], names, model, "per_channel", layers=(0, 1))
    np.testing.assert_allclose(features_of(table)[0], expected.ravel(), atol=1e-5)


def test_anndata(screen, model, tmp_path):
    anndata = pytest.importorskip("anndata")
    table = embed(screen, model, tmp_path / "emb")
    path = tmp_path / "emb" / "wells.h5ad"
    to_anndata(tmp_path / "emb" / "wells.parquet", path)
    back = anndata.read_h5ad(path)
    np.testing.assert_array_equal(back.X, features_of(table))
    assert back.X.dtype == np.float32
    assert back.obs["Metadata_Well"].astype(str).tolist() == table["Metadata_Well"].tolist()
    assert back.var_names[:2].tolist() == ["emb_0000", "emb_0001"]
    assert json.loads(back.uns["camae"]) == json.loads((tmp_path / "emb" / "ledger.json").read_text())
    with pytest.raises(CamaeError, match=r"written as \.h5ad"):
        to_anndata(table, tmp_path / "wells.csv")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tiles": "mosaic"}, "tiles 'mosaic'"),
        ({"overlap": 1}, "overlap 1"),
        ({"overlap": 0.5}, "overlap 0.5 is of tiles='cover' alone: give that, or leave it out"),
        ({"overlap": 0.5, "tiles": "grid"}, "overlap 0.5 is of tiles='cover' alone"),
        ({"level": "plate"}, "level 'plate'"),
        ({"pool": "max"}, "pool 'max'"),
        ({"dtype": "float16"}, "dtype float16"),
        ({"layers": 9}, "layers holds 9"),
        ({"sites_per_shard": 0}, "sites_per_shard 0"),
        ({"tokens_per_pass": 0}, "tokens_per_pass 0"),
        ({"rank": 2, "world": 2}, "rank 2"),
    ],
)
def test_wrong_options_are_one_sentence(screen, model, tmp_path, options, sentence):
    with pytest.raises(CamaeError, match=sentence):
        embed(screen, model, tmp_path / "emb", **options)


def test_per_channel_needs_the_same_channels(screen, model, tmp_path):
    table = pd.read_csv(screen, dtype=str, keep_default_na=False)
    table.loc[3, "Mito"] = ""
    mixed = Manifest(table, screen.parent)
    assert len(embed(mixed, model, tmp_path / "mean")) == 8
    with pytest.raises(CamaeError, match="needs sites with the same channels"):
        embed(mixed, model, tmp_path / "emb", pool="per_channel")
