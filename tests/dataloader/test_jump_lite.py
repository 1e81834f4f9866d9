"""JUMP-lite: its index and both kinds of store, missing sites, keys and shapes that do not fit, thousands of sites."""

import builtins
import json
import os
import time

import numpy as np
import pandas as pd
import pytest
from jump_lite_release import (
    CHANNELS,
    DRAFT,
    INDEX,
    RELEASED,
    key_of,
    many_sites,
    open_group,
    picture,
    write_array,
    write_release,
)

from camae.dataloader import read_manifest
from camae.dataloader.backends import jpeg_xl
from camae.dataloader.read_pixels import read_site
from camae.dataloader.screen_tools.plan import plan
from camae.errors import CamaeError, MissingBackendError

zarr = pytest.importorskip("zarr")
imagecodecs = pytest.importorskip("imagecodecs")
pytestmark = pytest.mark.skipif(not imagecodecs.JPEGXL.available, reason="imagecodecs without JPEG XL")
MISSING = [("source_7", "A02", 1), ("source_7", "B01", 2)]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), wells=2, missing=MISSING)


@pytest.mark.parametrize(("variant", "codec"), [("zstd", "zstd"), ("mq", "jpegxl_lossy_mq")])
def test_sites_equal_the_arrays_read_by_zarr(index, variant, codec):
    manifest = read_manifest(index, variant=variant, incomplete="keep")
    assert manifest.channels == CHANNELS
    store = index.parents[5] / RELEASED["images"] / f"{codec}.zarr"
    for row in (0, len(manifest) - 1):
        image, names = read_site(manifest, row)
        assert names == list(CHANNELS)
        assert image.dtype == np.uint16
        expected = zarr.open(str(store / manifest.table["Metadata_Site_Key"][row]), mode="r")[:]
        np.testing.assert_array_equal(image, expected)


def test_metadata_are_those_of_the_index(index):
    manifest = read_manifest(index, variant="zstd")
    table = pd.read_parquet(index)
    for name in ("Source", "Batch", "Plate", "Well", "Site", "Site_Key"):
        assert manifest.table[f"Metadata_{name}"].tolist() == table[f"Metadata_{name}"].astype(str).tolist()
    assert "URL_OrigDNA" not in manifest.table


def test_missing_sites_are_refused_or_counted_and_listed(index):
    with pytest.raises(
        CamaeError, match=r"2 of 88 sites .* plate CP_3 well A02 site 1: array in jpegxl_lossy_mq"
    ):
        read_manifest(index, variant="mq")
    with pytest.warns(UserWarning, match="2 of 88 sites"):
        manifest = read_manifest(index, variant="mq", incomplete="skip")
    assert len(manifest) == 86
    assert manifest.left_out.lines() == [
        "2 sites left out: the file of its array in jpegxl_lossy_mq.zarr is not there "
        "(first: B2 plate CP_3 well A02 site 1)"
    ]
    kept = read_manifest(index, variant="mq", incomplete="keep")
    gone = [kept.path(row, "DNA") for row in range(len(kept)) if kept.path(row, "DNA").startswith("s3://")]
    assert gone == [
        "s3://cellpainting-gallery/cpg0016-jump/source_all/images/2026_jump_lite_v1.0/images_compressed/"
        f"jpegxl_lossy_mq.zarr/{key_of(*site)}#1"
        for site in MISSING
    ]


def test_places_of_index_and_store(tmp_path):
    draft = write_release(tmp_path / "draft", DRAFT, wells=1, sites=1)
    manifest = read_manifest(draft, variant="mq")
    assert manifest.root == tmp_path / "draft" / DRAFT["images"]
    assert len(read_manifest(tmp_path / "draft", variant="zstd")) == len(manifest)
    assert len(read_manifest(tmp_path / "draft", "jump-lite", variant="jpegxl_lossy_mq")) == len(manifest)
    elsewhere = tmp_path / "mounted" / "jpegxl_lossy_mq.zarr"
    elsewhere.parent.mkdir()
    (manifest.root / "jpegxl_lossy_mq.zarr").rename(elsewhere)
    assert read_manifest(draft, variant=elsewhere).root == elsewhere.parent
    assert read_manifest(draft).root == manifest.root, "the only store that is left is taken"
    with pytest.raises(CamaeError, match=r"jpegxl_lossy_mq\.zarr is neither beside it nor at its place"):
        read_manifest(draft, variant="mq")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.drop(columns="Metadata_Plate"), "has no column Metadata_Plate, so it is no site index"),
        (
            lambda t: t.assign(Metadata_Site=t["Metadata_Site"] + 1),
            r"row 0: the key 'source_2__B1__P1__A01__1' is not",
        ),
        (
            lambda t: t.replace("source_2", "so__2").replace(
                to_replace="source_2", value="so__2", regex=True
            ),
            "__<well>__<site> of its row, .* mend the index",
        ),
        (
            lambda t: t.replace("P1", "../x").replace(to_replace="__P1__", value="__../x__", regex=True),
            "__<well>__<site> of its row, .* mend the index",
        ),
        (lambda t: pd.concat([t, t[:1]]), "the site source_2__B1__P1__A01__1 stands in two rows"),
    ],
)
def test_keys_that_do_not_fit(index, tmp_path, change, sentence):
    change(pd.read_parquet(index)).to_parquet(tmp_path / "index.parquet")
    store = index.parents[5] / RELEASED["images"] / "zstd.zarr"
    with pytest.raises(CamaeError, match=sentence):
        read_manifest(tmp_path / "index.parquet", variant=store)


def test_variants_that_are_not_there(index, tmp_path):
    with pytest.raises(CamaeError, match=r"variant 'lossless' is not one of zstd, hq, mq, d20, nor the path"):
        read_manifest(index, variant="lossless")
    with pytest.raises(CamaeError, match=r"zstd and mq are here; say which with variant"):
        read_manifest(index)
    with pytest.raises(CamaeError, match=r"none\.zarr: no such store; name a folder of JUMP-lite's arrays"):
        read_manifest(index, variant=tmp_path / "none.zarr")
    with pytest.raises(CamaeError, match=rf"holds no {INDEX}; name the index of JUMP-lite's sites"):
        read_manifest(tmp_path, "jump-lite")
    (tmp_path / "table.csv").write_text("Metadata_Well,DNA\nA01,a.tif\n")
    with pytest.raises(CamaeError, match=r"variant='mq' is of JUMP-lite, and this is no site index of it"):
        read_manifest(tmp_path / "table.csv", variant="mq")


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            np.ones((6, 16, 16), np.uint16),
            r"is uint16 \(6, 16, 16\) where JUMP-lite has uint16 \(5, height, width\)",
        ),
        (np.ones((5, 16, 16), np.uint8), r"is uint8 \(5, 16, 16\) where"),
        (np.ones((1, 5, 16, 16), np.uint16), r"is uint16 \(1, 5, 16, 16\) where"),
    ],
)
def test_arrays_of_another_shape_are_named(tmp_path, image, says):
    root = many_sites(tmp_path, 2, "zstd")
    key = "source_4__B__P0__A01__2"
    manifest = read_manifest(root)
    os.rename(tmp_path / "zstd.zarr" / key, tmp_path / "before")
    write_array(tmp_path / "zstd.zarr" / key, image, "zstd")
    with pytest.raises(CamaeError, match=rf"row 1 .*{key}: {says}"):
        read_site(manifest, 1)


def test_a_chunk_that_claims_another_size_is_refused(tmp_path):
    manifest = read_manifest(many_sites(tmp_path, 2))
    array = tmp_path / "jpegxl_lossy_mq.zarr" / "source_4__B__P0__A01__2"
    chunk = array / "0.0.0"
    larger = imagecodecs.jpegxl_encode(picture(np.random.default_rng(0), 0, (64, 40)), distance=3.0)
    chunk.write_bytes(larger)
    with pytest.raises(
        CamaeError, match=r"is a JPEG XL image of 64x40 where a chunk has 32x32 pixels: it is damaged"
    ):
        read_site(manifest, 1)
    chunk.write_bytes(b"\x89PNG not at all")
    with pytest.raises(CamaeError, match="is no JPEG XL image where a chunk has 32x32 pixels"):
        read_site(manifest, 1)
    chunk.write_bytes(larger[:40])
    with pytest.raises(CamaeError, match="source_4__B__P0__A01__2"):
        read_site(manifest, 1)


@pytest.mark.parametrize("codec", ["zstd", "mq"])
def test_a_site_whose_copy_was_cut_short_is_named(tmp_path, codec):
    manifest = read_manifest(many_sites(tmp_path, 2, codec))
    array = manifest.root / manifest.table["DNA"][1].split("#")[0]
    next(p for p in array.rglob("*") if p.is_file() and p.name in ("0", "0.0.0")).unlink()
    with pytest.raises(
        CamaeError, match=r"row 1 .* its metadata are here and its pixels are not: fetch this site again"
    ):
        read_site(manifest, 1)


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (1080, 1080), (64, 48), (540, 960), (8, 2000)])
@pytest.mark.parametrize("container", [False, True])
def test_sizes_of_jpeg_xl_are_those_encoded(size, container):
    data = imagecodecs.jpegxl_encode(np.zeros(size, np.uint16), usecontainer=container)
    assert jpeg_xl.picture_size(data[:4096]) == size


def test_codecs_that_are_missing_are_one_sentence(index, monkeypatch):
    import imagecodecs.numcodecs

    monkeypatch.delattr(imagecodecs.numcodecs, "Jpegxl")
    with pytest.raises(MissingBackendError, match="JPEG XL needs an imagecodecs that was built with it"):
        read_manifest(index, variant="mq", incomplete="keep")
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs.numcodecs", None)
    with pytest.raises(
        MissingBackendError, match="JPEG XL needs the package imagecodecs, which is not installed"
    ):
        read_manifest(index, variant="mq", incomplete="keep")
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(MissingBackendError, match="Zarr needs the package zarr, which is not installed"):
        read_manifest(index, variant="zstd")


class Opened:
    """Files opened in a store, counted by name."""

    def __init__(self, monkeypatch, store):
        self.names = []
        original = builtins.open

        def counted(file, *arguments, **options):
            if str(store) in str(file):
                self.names.append(os.path.basename(str(file)))
            return original(file, *arguments, **options)

        monkeypatch.setattr(builtins, "open", counted)
        monkeypatch.setattr("io.open", counted)


@pytest.mark.parametrize("count", [1200, 5000])
def test_opening_thousands_of_sites_parses_the_metadata_of_one(tmp_path, monkeypatch, count, record_property):
    index = many_sites(tmp_path, count)
    start = time.process_time()
    group = zarr.open_group(str(tmp_path / "jpegxl_lossy_mq.zarr"), mode="r")
    jpeg_xl.register_codec("here")
    shapes = [array.shape for _, array in group.arrays()]
    by_zarr = time.process_time() - start
    assert len(shapes) == count
    opened = Opened(monkeypatch, tmp_path / "jpegxl_lossy_mq.zarr")
    start = time.process_time()
    manifest = read_manifest(index, variant="mq")
    ours = time.process_time() - start
    assert len(manifest) == count
    assert opened.names.count(".zarray") <= 3, (
        "the metadata of one array, once for the codec and once for zarr"
    )
    assert len(opened.names) <= 12
    record_property("seconds", {"ours": ours, "zarr, every array opened": by_zarr})
    assert ours < by_zarr


def test_a_site_is_decoded_once_for_its_five_channels(index, monkeypatch):
    import numcodecs

    manifest = read_manifest(index, variant="mq", incomplete="keep")
    jpeg_xl.register_codec("here")
    codec, calls = numcodecs.registry.codec_registry["imagecodecs_jpegxl"], []
    original = codec.decode
    monkeypatch.setattr(codec, "decode", lambda self, *a, **o: calls.append(1) or original(self, *a, **o))
    read_site(manifest, 3)
    assert len(calls) == 1
    read_site(manifest, 4)
    assert len(calls) == 2


def test_an_array_written_anew_is_read_anew(tmp_path):
    manifest = read_manifest(many_sites(tmp_path, 1))
    before, _ = read_site(manifest, 0)
    chunk = tmp_path / "jpegxl_lossy_mq.zarr" / "source_4__B__P0__A01__1" / "0.0.0"
    other = picture(np.random.default_rng(1), 3, (32, 32))
    chunk.write_bytes(imagecodecs.jpegxl_encode(other, lossless=True))
    after, _ = read_site(manifest, 0)
    np.testing.assert_array_equal(after, other)
    assert (before != after).any()
    assert json.loads((chunk.parent / ".zarray").read_text())["compressor"]["id"] == jpeg_xl.CODEC


def test_plan_of_a_variant_that_is_not_here(index):
    manifest = read_manifest(index, variant="hq", incomplete="keep")
    result = plan(manifest, "here")
    assert result.remote_bytes == round(88 * 300.8e9 / 855_519), (
        "the published size, by the share of the sites"
    )
    assert str(result) == "0 files on disk, 0.000 GB; 88 on S3, about 0.031 GB"
    place = "cpg0016-jump/source_all/images/2026_jump_lite_v1.0/images_compressed/jpegxl_lossy_hq.zarr"
    assert result.commands[0] == (
        f"aws s3 sync --no-sign-request s3://cellpainting-gallery/{place}/source_2__B1__P1__A01__1/ "
        f"here/{place}/source_2__B1__P1__A01__1"
    )
    assert len(result.commands) == 88
    with pytest.raises(
        CamaeError, match=rf"fetch the array with .* --recursive s3://.*{place}/source_2__B1__P1__A01__1/ "
    ):
        read_site(manifest, 0)
    with pytest.raises(
        CamaeError, match=r"jpegxl_lossy_hq\.zarr is neither beside it .* camae data plan prints"
    ):
        read_manifest(index, variant="hq")


def test_plan_of_many_sites_is_one_command(tmp_path, monkeypatch):
    names = {"Metadata_Source": "source_4", "Metadata_Batch": "B"}
    rows = [
        names | {"Metadata_Plate": f"P{i % 3}", "Metadata_Well": "A01", "Metadata_Site": i}
        for i in range(300)
    ]
    table = pd.DataFrame(rows).assign(Metadata_Site_Key=["__".join(map(str, r.values())) for r in rows])
    table.to_parquet(tmp_path / INDEX)
    manifest = read_manifest(tmp_path / INDEX, variant="mq", incomplete="keep")
    (command,) = plan(manifest).commands
    assert command.endswith(
        "--exclude '*' --include 'source_4__B__P0__*' --include 'source_4__B__P1__*' --include 'source_4__B__P2__*'"
    )
    monkeypatch.setattr("camae.dataloader.datasets.jump_lite.RELEASED_SITES", 300)
    (command,) = plan(manifest).commands
    assert command.endswith("jpegxl_lossy_mq.zarr"), "of the whole release the whole store"
    assert plan(manifest).remote_bytes == 114_300_000_000


def test_sites_with_channels_of_zeros_are_named_before_any_is_embedded(tmp_path):
    place = {"Metadata_Source": "source_7", "Metadata_Batch": "B", "Metadata_Plate": "CP3-SC1-18"}
    rows = [place | {"Metadata_Well": "I22", "Metadata_Site": site} for site in (1, 2, 3, 4)]
    open_group(tmp_path / "zstd.zarr", "zstd")
    for row in rows:
        key = "__".join(map(str, row.values()))
        write_array(tmp_path / "zstd.zarr" / key, picture(np.random.default_rng(0), 0, (32, 32)), "zstd")
    pd.DataFrame(rows).to_parquet(tmp_path / "own.parquet")  # without keys, which are then made
    with pytest.raises(
        CamaeError, match=r"2 of 4 sites .* site 2: zeros alone in ER, as in the original images; "
    ):
        read_manifest(tmp_path / "own.parquet", "jump-lite", variant="zstd")
    with pytest.warns(UserWarning, match="zeros alone in DNA, Mito and RNA"):
        manifest = read_manifest(tmp_path / "own.parquet", "jump-lite", "skip", variant="zstd")
    assert manifest.table["Metadata_Site"].tolist() == ["1", "4"]
    assert len(manifest.left_out) == 2
    assert len(read_manifest(tmp_path / "own.parquet", "jump-lite", "keep", variant="zstd")) == 4
