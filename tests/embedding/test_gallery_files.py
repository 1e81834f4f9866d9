"""`--jump-lite`: both variants embedded, the Gallery's files beside our own, a killed run that goes on, refusals."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from jump_lite_release import CODECS, write_release
from shell_commands import PROGRAM

import camae
from camae.dataloader import read_manifest
from camae.dataloader.read_pixels import read_site
from camae.errors import CamaeError, OutputError
from camae.model import CAMAE, preset, save

pytest.importorskip("zarr")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not pytest.importorskip("imagecodecs").JPEGXL.available, reason="no JPEG XL"),
]
COLUMNS = ["tile", "label", "branch", "metric", "value", "object", "tp"]
MISSING = [("source_7", "A02", 1)]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), wells=1, missing=MISSING)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    small = {"width": 32, "heads": 2, "depth": 1, "crop": 32, "patch": 8, "layer_scale": 0.5}
    decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
    config = preset("ca_mae_vit_ti16", channels=("AGP", "DNA", "ER", "Mito", "RNA"), decoder=decoder, **small)
    return save(CAMAE(config), tmp_path_factory.mktemp("model") / "model.safetensors")


def files(out):
    return sorted(p.relative_to(out).as_posix() for p in (out / "workspace_dl").rglob("*") if p.is_file())


def long_forms(out):
    """Key -> table of every file, by its folders."""
    found = {}
    for name in files(out):
        *_, source, batch, plate, site, file = name.split("/")
        assert file == "embedding.parquet"
        found["__".join((source, batch, plate, *site.rsplit("-", 1)))] = pq.read_table(out / name).to_pandas()
    return found


@pytest.mark.parametrize("variant", ["zstd", "mq"])
def test_the_gallery_s_files_hold_the_vectors_of_the_sites(release, model_file, tmp_path, variant):
    out = tmp_path / "emb"
    with (
        pytest.warns(UserWarning, match="1 of 44 sites") if variant == "mq" else pytest.MonkeyPatch.context()
    ):
        table = camae.embed_screen(
            jump_lite=release,
            variant=variant,
            model=model_file,
            out=out,
            incomplete="skip",
            level="site",
            quiet=True,
        )
    assert len(table) == (43 if variant == "mq" else 44)
    folder = f"workspace_dl/embeddings/ca_mae_vit_ti16-{CODECS[variant]}/2026_jump_lite_v1.0"
    assert all(name.startswith(folder + "/source_") for name in files(out))
    found = long_forms(out)
    assert sorted(found) == sorted(table["Metadata_Site_Key"])
    for _, row in table.iterrows():
        sites = found[row["Metadata_Site_Key"]]
        assert list(sites.columns) == COLUMNS
        assert sites["metric"].tolist() == [f"X_{i}" for i in range(32)]
        assert set(sites["object"]) == {"ca_mae_vit_ti16"}
        assert set(sites["branch"]) == {"camae"}
        assert (sites[["tile", "label", "tp"]] == 0).all(axis=None)
        np.testing.assert_array_equal(sites["value"], row.filter(like="emb_").to_numpy(np.float32))
    if variant == "mq":
        assert pd.read_csv(out / "left_out.csv")["item"].tolist() == ["B2 plate CP_3 well A02 site 1"]


def test_another_tool_makes_wells_of_the_files(release, model_file, tmp_path):
    """DuckDB's median over files and tiles by branch and metric, as the release makes its wells, of one site a well."""
    duckdb = pytest.importorskip("duckdb")
    out = tmp_path / "emb"
    wells = camae.embed_screen(jump_lite=release, variant="zstd", model=model_file, out=out, quiet=True)
    found = duckdb.sql(
        "select split_part(filename, '/', -3) as plate, split_part(split_part(filename, '/', -2), '-', 1) as well, "
        "branch || metric as name, median(value) as value, count(*) as sites "
        f"from read_parquet('{out}/workspace_dl/**/embedding.parquet', filename=true) group by all"
    ).df()
    assert set(found["sites"]) == {2}
    one = found[(found["plate"] == "CP_3") & (found["well"] == "A03")].set_index("name")["value"]
    row = wells[(wells["Metadata_Plate"] == "CP_3") & (wells["Metadata_Well"] == "A03")]
    ours = row.filter(like="emb_").to_numpy()[0]  # the mean: of two sites also the median
    np.testing.assert_allclose(one[[f"camaeX_{i}" for i in range(32)]].to_numpy(), ours, atol=1e-6)


def test_vectors_equal_those_of_the_images_in_memory(release, model_file, tmp_path):
    table = camae.embed_screen(
        jump_lite=release, variant="zstd", model=model_file, out=tmp_path / "emb", level="site", quiet=True
    )
    manifest = read_manifest(release, variant="zstd")
    image, names = read_site(manifest, 5)
    alone = camae.embed(image, names, model=model_file, tiles="grid")
    np.testing.assert_allclose(table.filter(like="emb_").to_numpy()[5], alone, atol=1e-5)


def test_what_is_there_stays_and_what_changed_is_written_anew(release, model_file, tmp_path):
    options = {"jump_lite": release, "variant": "zstd", "model": model_file, "out": tmp_path, "quiet": True}
    camae.embed_screen(**options)
    names = files(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    (tmp_path / names[3]).unlink()
    (tmp_path / names[4]).write_bytes(b"cut off")
    leftover = (tmp_path / names[3]).with_name(".embedding.4194304.parquet")
    leftover.write_bytes(b"of a killed run")
    camae.embed_screen(**options)
    assert files(tmp_path) == names
    after = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    assert [name for name in names if after[name] != before[name]] == names[3:5]
    about = json.loads(pq.read_schema(tmp_path / names[0]).metadata[b"camae"])
    assert about["model"] == "ca_mae_vit_ti16"
    assert len(about["inputs"]) == 16


def test_ranks_write_the_files_of_their_own_shards(release, model_file, tmp_path):
    options = {"jump_lite": release, "variant": "zstd", "model": model_file, "out": tmp_path, "quiet": True}
    camae.embed_screen(**options, rank=1, world=2, sites_per_shard=10)
    assert len(files(tmp_path)) == 20
    camae.embed_screen(**options, rank=0, world=2, sites_per_shard=10)
    assert len(files(tmp_path)) == 44


SLOWED = """
import sys, time
import camae.embedding.worker as shards
import camae.embedding.store.gallery_files as gallery
def slowed(function):
    def slow(*args, **options):
        time.sleep(0.02)
        return function(*args, **options)
    return slow
shards.read_site = slowed(shards.read_site)
gallery.write_atomic = slowed(gallery.write_atomic)
sys.argv = ["camae", *sys.argv[1:]]
from camae.cli import main
main()
"""


def killed(command, done):
    process = subprocess.Popen([sys.executable, "-c", SLOWED, *command], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not done():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


def test_a_run_killed_in_its_shards_and_in_its_files_goes_on(release, model_file, tmp_path):
    out = tmp_path / "emb"
    command = [
        *("embed", "--jump-lite", str(release), "--variant", "mq", "--incomplete", "skip", "--threads", "1"),
        *("--model", str(model_file), "--out", str(out), "--sites-per-shard", "8"),
    ]
    killed(command, lambda: len(list((out / "sites").glob("part-*"))) >= 2)
    killed(command, lambda: len(list(out.rglob("embedding.parquet"))) >= 5)
    subprocess.run(
        [sys.executable, "-c", SLOWED, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    whole = tmp_path / "whole"
    command[command.index(str(out))] = str(whole)
    subprocess.run([PROGRAM, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert files(out) == files(whole), "no leftovers of killed writes, none missing"
    for key, table in long_forms(whole).items():
        pd.testing.assert_frame_equal(long_forms(out)[key], table, check_exact=True)
    pd.testing.assert_frame_equal(
        pd.read_parquet(out / "wells.parquet"), pd.read_parquet(whole / "wells.parquet"), check_exact=True
    )


def test_refusals(release, model_file, tmp_path):
    with pytest.raises(CamaeError, match="name the images to embed: DATA, or the site index of JUMP-lite"):
        camae.embed_screen(model=model_file, out=tmp_path / "emb")
    with pytest.raises(CamaeError, match="name the images to embed: DATA, or the site index of JUMP-lite"):
        camae.embed_screen("screen.csv", model=model_file, out=tmp_path / "emb", jump_lite=release)
    manifest = read_manifest(release, variant="zstd")
    bare = manifest.with_table(manifest.table.drop(columns="Metadata_Site_Key"))
    with pytest.raises(
        CamaeError, match="the Gallery's files are named by it; read the site index of JUMP-lite"
    ):
        camae.embed_screen(bare, model=model_file, out=tmp_path / "emb", jump_lite=release)
    (tmp_path / "screen.csv").write_text("Metadata_Well,DNA\nA01,a.tif\n")
    with pytest.raises(
        CamaeError, match="has no column Metadata_Source, so it is no site index of JUMP-lite"
    ):
        camae.embed_screen(model=model_file, out=tmp_path / "emb", jump_lite=tmp_path / "screen.csv")
    assert not (tmp_path / "emb").exists()


def test_a_file_in_the_way_of_the_gallery_s_files(release, model_file, tmp_path):
    (tmp_path / "workspace_dl").write_text("")
    with pytest.raises(OutputError, match=r"embedding\.parquet cannot be written: a file is in the way"):
        camae.embed_screen(jump_lite=release, variant="zstd", model=model_file, out=tmp_path, quiet=True)
