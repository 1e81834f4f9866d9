"""Fault 7: vectors follow the images they were made of."""

import os
import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile

import camae
from camae.dataloader import Manifest
from camae.embedding.store import shards
from camae.embedding.store.inputs import InputStates
from camae.embedding_table import features_of, read_table
from camae.errors import CamaeError

NAMES = ["DNA", "ER", "Mito"]


def embed(data, model, out, **options):
    return camae.embed_screen(data, model, out, quiet=True, **options)


def overwrite(screen, name, seed=1):
    """Another picture under the same name, of the same size in bytes."""
    pixels = np.random.default_rng(seed).integers(500, 5000, (48, 48)).astype(np.uint16)
    tifffile.imwrite(screen.parent / name, pixels)


def without_inputs(path):
    """Make a shard as earlier versions wrote it."""
    table, about = read_table(path)
    del about["inputs"]
    shards.write_table(path, table, about)


def test_fault_07_a_changed_image_is_embedded_anew(screen, model, tmp_path):
    before = embed(screen, model, tmp_path / "emb", sites_per_shard=2)
    written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "emb" / "sites").iterdir()}
    overwrite(screen, "P1_A03_ER.tif")
    with pytest.warns(UserWarning, match=r"images have changed .*well A03.*1 of 4 shards are embedded anew"):
        after = embed(screen, model, tmp_path / "emb", sites_per_shard=2)
    changed = np.abs(features_of(after) - features_of(before)).max(1) > 1e-4
    assert changed.tolist() == [False, False, True, False, False, False, False, False]
    pd.testing.assert_frame_equal(after, embed(screen, model, tmp_path / "new", sites_per_shard=2))
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "emb" / "sites").iterdir()}
    assert [n for n in now if now[n] != written[n]] == ["part-00001.parquet"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(screen, model, tmp_path / "emb", sites_per_shard=2)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "emb" / "sites").iterdir()} == now


def test_fault_07_images_changed_between_a_kill_and_the_resume_are_not_mixed(
    screen, model, tmp_path, monkeypatch
):
    original, calls = shards.write_table, []

    def stop_after_two(path, table, about):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path)
        return original(path, table, about)

    monkeypatch.setattr(shards, "write_table", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        embed(screen, model, tmp_path / "emb", sites_per_shard=2)
    monkeypatch.undo()
    for i, name in enumerate(p.name for p in sorted(screen.parent.glob("*.tif"))):
        overwrite(screen, name, i)
    with pytest.warns(UserWarning, match="2 of 4 shards are embedded anew"):
        after = embed(screen, model, tmp_path / "emb", sites_per_shard=2)
    pd.testing.assert_frame_equal(after, embed(screen, model, tmp_path / "new", sites_per_shard=2))


def test_fault_07_ranks_and_their_table_see_changed_images(screen, model, tmp_path):
    options = {"sites_per_shard": 2, "world": 2}
    for rank in (0, 1):
        embed(screen, model, tmp_path / "emb", rank=rank, **options)
    overwrite(screen, "P1_A03_ER.tif")  # in a shard of rank 1
    assert not embed(screen, model, tmp_path / "emb", rank=0, **options).attrs["complete"]
    with pytest.warns(UserWarning, match="1 of 4 shards"):
        assert embed(screen, model, tmp_path / "emb", rank=1, **options).attrs["complete"]


def test_fault_07_shards_of_earlier_versions_resume_with_one_warning(screen, model, tmp_path):
    whole = embed(screen, model, tmp_path / "emb", sites_per_shard=2)
    for path in (tmp_path / "emb" / "sites").iterdir():
        without_inputs(path)
    (tmp_path / "emb" / "sites" / "part-00001.parquet").unlink()
    with pytest.warns(UserWarning, match="earlier version") as noted:
        resumed = embed(screen, model, tmp_path / "emb", sites_per_shard=2)
    assert ["begun by an earlier version" in str(w.message) for w in noted] == [True]
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_fault_07_illumination_functions_and_zarr_arrays_count(screen, tmp_path):
    manifest = Manifest.read(screen)
    array = tmp_path / "site.zarr"
    (array / "0").mkdir(parents=True)
    (array / "0" / "0.0").write_bytes(b"abc")
    np.save(tmp_path / "flat.npy", np.ones((48, 48)))
    table = manifest.table.iloc[:2].copy()
    table["ER"] = str(array) + "#0"
    table["Illum_DNA"] = str(tmp_path / "flat.npy")
    both = Manifest(table, screen.parent)
    first = InputStates(both).of_rows([0, 1])
    assert InputStates(both).of_rows([0, 1]) == first
    (array / "0" / "0.0").write_bytes(b"abcd")
    second = InputStates(both).of_rows([0, 1])
    np.save(tmp_path / "flat.npy", 2 * np.ones((48, 48)))
    third = InputStates(both).of_rows([0, 1])
    assert len({*first, *second, *third}) == 6


def test_fault_07_a_file_that_changes_while_it_is_read_is_refused(screen, model, tmp_path, monkeypatch):
    from camae.embedding import worker

    original = worker.read_site

    def slow(manifest, row, **options):
        found = original(manifest, row, **options)
        if row == 2:
            overwrite(screen, "P1_A03_ER.tif")
        return found

    monkeypatch.setattr(worker, "read_site", slow)
    with pytest.raises(CamaeError, match=r"row 2 .*well A03.*was changed while it was read"):
        embed(screen, model, tmp_path / "emb")


def test_fault_07_a_model_file_of_the_same_time_is_loaded_again(model, tmp_path):
    from camae.model import save

    file = save(model, tmp_path / "model.safetensors")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    first = camae.embed(image(), NAMES, file)
    model.encoder.cls_D.data += 1
    save(model, file, more="other size")
    os.utime(file, ns=times)
    assert not np.allclose(camae.embed(image(), NAMES, file, pool="cls"), first)


def image(size=32, channels=3):
    return np.random.default_rng(0).integers(0, 4000, (channels, size, size)).astype(np.uint16)
