"""Zarr stores, PNG, JPEG 2000 and Parquet files that lie: refused within a second and 200 MB, in one sentence."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from camae.dataloader import read_manifest, read_plane
from camae.dataloader.read_pixels import plane_kind, read_site
from camae.errors import CamaeError

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")
V2 = {"zarr_format": 2, "order": "C", "dtype": "<u2", "fill_value": 0, "filters": None, "compressor": None}


def array(folder: Path, **changes: object) -> Path:
    """A store of the second format, 64x64 uint16 in one chunk, with changed metadata."""
    path = folder / "a.zarr"
    path.mkdir(parents=True, exist_ok=True)
    about = V2 | {"shape": [64, 64], "chunks": [64, 64]} | changes
    (path / ".zarray").write_text(json.dumps(about))
    (path / "0.0").write_bytes(np.arange(4096, dtype="<u2").tobytes())
    return path


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "chunk of 8 GB": lambda f: array(f, chunks=[65536, 65536]),
    "chunk of 200 MB in a tiny array": lambda f: array(f, chunks=[10_000, 10_000]),
    "plane of 8 TB": lambda f: array(f, shape=[2_000_000, 2_000_000]),
    "plane that overflows": lambda f: array(f, shape=[2**40, 2**40], chunks=[2**20, 2]),
    "plane of 900 MB of nothing": lambda f: array(f, shape=[20_000, 22_000], chunks=[2000, 2000]),
    "a million chunks": lambda f: array(f, shape=[1000, 1000], chunks=[1, 1]),
    "chunks of nothing": lambda f: array(f, chunks=[0, 64]),
    "negative shape": lambda f: array(f, shape=[-64, 64]),
    "shape of text": lambda f: array(f, shape="64x64"),
    "objects": lambda f: array(f, dtype="|O", filters=[{"id": "pickle"}]),
    "complex": lambda f: array(f, dtype="<c16"),
    "signed": lambda f: array(f, dtype="<i2"),
    "unknown codec": lambda f: array(f, compressor={"id": "nonsense"}),
    "three dimensions": lambda f: array(f, shape=[2, 64, 64], chunks=[1, 64, 64]),
    "no dimensions": lambda f: array(f, shape=[], chunks=[]),
}


def damaged(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = array(folder)
        (path / ".zarray").write_text(text)
        return path

    return make


HOSTILE |= {
    "nested metadata": damaged("[" * 100_000),
    "empty metadata": damaged(""),
    "cut metadata": damaged('{"zarr_format": 2, "shape": [64'),
    "a list": damaged("[1, 2]"),
    "null": damaged("null"),
}


def compressed(codec: str) -> Callable[[Path], Path]:
    """A chunk of a few hundred KB that decodes to 300 MB, in an array of 8 KB."""

    def make(folder: Path) -> Path:
        bomb = b"\0" * (300 << 20)
        if codec == "zstd":
            from numcodecs import Zstd

            data, compressor = Zstd(1).encode(bomb), {"id": "zstd", "level": 1}
        elif codec == "blosc":
            from numcodecs import Blosc

            data, compressor = (
                Blosc("zstd").encode(bomb),
                {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1},
            )
        elif codec == "gzip":
            data, compressor = gzip.compress(bomb, 1), {"id": "gzip", "level": 1}
        else:
            data, compressor = zlib.compress(bomb, 1), {"id": "zlib", "level": 1}
        path = array(folder, compressor=compressor)
        (path / "0.0").write_bytes(data)
        return path

    return make


HOSTILE |= {f"{codec} bomb": compressed(codec) for codec in ("zstd", "blosc", "gzip", "zlib")}
# In a process of its own, whose memory and time are its own.
_READ = """
import resource, sys, time
from camae.dataloader import read_plane
from camae.dataloader.read_pixels import plane_kind
from camae.errors import CamaeError
import zarr, zarr.codecs, numcodecs
def rss(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for path in sys.argv[1:]:
    before, began = rss(), time.perf_counter()
    for read in (read_plane, plane_kind):
        try:
            read(path)
            sentence = "read"
        except CamaeError as error:
            sentence = str(error)
        if read is read_plane:
            print(f"{time.perf_counter() - began:.3f}|{rss() - before:.0f}|{sentence}")
"""


def test_hostile_zarr_is_refused_within_a_second_and_200_mb(tmp_path: Path) -> None:
    paths = [make(tmp_path / str(i)) for i, make in enumerate(HOSTILE.values())]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_READ), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(HOSTILE)
    for name, path, line in zip(HOSTILE, paths, lines, strict=True):
        seconds, megabytes, sentence = line.split("|", 2)
        assert sentence.startswith(str(path)), (name, sentence)
        assert float(seconds) < 1, (name, line)
        assert float(megabytes) < 200, (name, line)


def test_sound_zarr_is_read(tmp_path: Path) -> None:
    assert np.array_equal(read_plane(array(tmp_path)), np.arange(4096).reshape(64, 64))
    pixels = np.random.default_rng(0).integers(0, 65536, (2, 64, 80), dtype=np.uint16)
    for format, options in ((2, {}), (3, {}), (3, {"shards": (1, 64, 80)}), (2, {"compressors": None})):
        store = tmp_path / f"{format}{len(options)}{'shards' in options}.ZARR"
        made = zarr.create_array(
            str(store), shape=pixels.shape, dtype="u2", chunks=(1, 32, 40), zarr_format=format, **options
        )
        made[:] = pixels
        assert np.array_equal(read_plane(f"{store}#1"), pixels[1])
        with pytest.raises(CamaeError, match="there is no plane 2"):
            read_plane(f"{store}#2")


def test_metadata_too_large_is_not_parsed(tmp_path: Path) -> None:
    path = array(tmp_path)
    with open(path / ".zattrs", "wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(CamaeError, match=r"\.zattrs: has .* bytes, no metadata has as many"):
        read_plane(path)


@pytest.mark.parametrize(
    "plate",
    [
        {},
        {"wells": 5},
        {"wells": [{}]},
        {"wells": [{"path": 3}]},
        {"wells": [{"path": "../../../etc"}]},
        {"wells": None},
        [],
        "plate",
    ],
)
def test_damaged_plates_are_one_sentence(tmp_path: Path, plate: object) -> None:
    group = zarr.open_group(str(tmp_path / "p.zarr"), mode="w", zarr_format=2)
    group.attrs["plate"] = plate
    with pytest.raises(CamaeError, match=str(tmp_path)):
        read_manifest(tmp_path)


def ome_image(group: object, name: str, value: int, channels: int = 2) -> None:
    image = group.create_group(name)  # type: ignore[attr-defined]
    image.attrs["multiscales"] = [
        {
            "axes": [{"name": "c"}, {"name": "y"}, {"name": "x", "unit": "micrometer"}],
            "datasets": [
                {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0.6, 0.6]}]}
            ],
        }
    ]
    image.create_array("0", data=np.full((channels, 16, 16), value, np.uint16), chunks=(1, 16, 16))


def test_fault_24_a_plate_that_lists_an_absent_well(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "P1.zarr"), mode="w")
    group.attrs["plate"] = {"wells": [{"path": "B/3"}, {"path": "B/4"}]}
    group.create_group("B/3").attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
    ome_image(group["B/3"], "0", 7)
    with pytest.raises(CamaeError, match=r"B/3/1: the plate lists this site, but it is not there"):
        read_manifest(tmp_path)
    manifest = read_manifest(tmp_path, incomplete="skip")
    assert manifest.table.Metadata_Well.tolist() == ["B03"]
    assert [o.kind for o in manifest.left_out] == ["site", "well"]


@pytest.mark.parametrize("listed", [True, False])
def test_fault_35_bioformats2raw_layout(tmp_path: Path, listed: bool) -> None:
    group = zarr.open_group(str(tmp_path / "exp.zarr"), mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    if listed:
        group.create_group("OME").attrs["series"] = ["0", "1"]
    for i in (0, 1):
        ome_image(group, str(i), 10 + i)
    for data in (tmp_path, tmp_path / "exp.zarr"):
        manifest = read_manifest(data)
        assert manifest.table.Metadata_Site.tolist() == ["1", "2"]
        assert [read_site(manifest, row)[0][0, 0, 0] for row in (0, 1)] == [10, 11]
    from camae.dataloader.pixel_size import pixel_sizes

    assert pixel_sizes(manifest).tolist() == [0.6, 0.6]


def blosc_store(folder: Path, zarr_format: int, shards: bool) -> tuple[Path, Path]:
    """An array (64, 64) of Blosc chunks, and one file of it."""
    path = folder / "blosc.zarr"
    codec = zarr.codecs.BloscCodec(typesize=2) if zarr_format == 3 else numcodecs.Blosc(cname="lz4")
    options = {"shards": (64, 64)} if shards else {}
    made = zarr.create_array(
        path,
        shape=(64, 64),
        chunks=(32, 32),
        dtype="uint16",
        compressors=codec,
        zarr_format=zarr_format,
        **options,
    )
    made[:] = np.arange(4096, dtype=np.uint16).reshape(64, 64) % 251
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith((".z", "zarr"))]
    return path, files[0]


@pytest.mark.parametrize(("zarr_format", "shards"), [(2, False), (3, False), (3, True)])
@pytest.mark.parametrize("damage", ["longer", "shorter", "header", "claims"])
def test_damaged_blosc_chunks_never_reach_the_decoder(
    tmp_path: Path, zarr_format: int, shards: bool, damage: str
) -> None:
    """Found by fuzzing: the decoder reads as far as the header says, and the process died."""
    path, file = blosc_store(tmp_path, zarr_format, shards)
    expected = np.arange(4096, dtype=np.uint16).reshape(64, 64) % 251
    np.testing.assert_array_equal(read_plane(str(path)), expected)
    data = bytearray(file.read_bytes())
    if damage == "longer":
        data += b"\0" * 29
    elif damage == "shorter":
        del data[-29:]
    elif damage == "header":
        del data[9:]
    else:
        data[12:16] = struct.pack("<I", 37_748_736)
    file.write_bytes(data)
    with pytest.raises(CamaeError, match=r"it is damaged") as caught:
        read_plane(str(path))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value) or shards


def test_png_and_jpeg2000_that_lie(tmp_path: Path) -> None:
    ihdr = struct.pack(">IIBBBBB", 60_000, 60_000, 16, 0, 0, 0, 0)
    chunk = b"IHDR" + ihdr
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(
        bomb + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    )
    size = struct.pack(">IIII", 1 << 30, 1 << 30, 0, 0)
    (tmp_path / "bomb.jp2").write_bytes(b"\xff\x4f\xff\x51\x00\x2f\x00\x00" + size + bytes(64))
    frames = [Image.fromarray(np.full((8, 8), i, np.uint8)) for i in (1, 2)]
    frames[0].save(tmp_path / "frames.png", save_all=True, append_images=frames[1:])
    for name, sentence in (
        ("bomb.png", "damaged|large"),
        ("bomb.jp2", "claims 1,152,921,504,606,846,976 pixels in 88 bytes"),
        ("frames.png", "holds 2 frames"),
    ):
        began = time.perf_counter()
        with pytest.raises(CamaeError, match=sentence):
            read_plane(tmp_path / name)
        assert time.perf_counter() - began < 1
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(CamaeError, match="there is no page 3"):
        read_plane(f"{tmp_path}/one.png#3")


def test_fault_08_png_in_parquet_is_checked_like_a_file(tmp_path: Path) -> None:
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    data = io.BytesIO()
    palette.save(data, "PNG")
    pd.DataFrame({"image": [data.getvalue(), None, b"text"]}).to_parquet(tmp_path / "a.parquet")
    for row, sentence in (
        (0, "is of mode P"),
        (1, "holds no encoded image"),
        (2, "no JPEG 2000"),
        (3, "has no row 3"),
    ):
        with pytest.raises(CamaeError, match=sentence):
            read_plane(f"{tmp_path}/a.parquet#{row}")
    assert plane_kind(str(array(tmp_path))).height == 64


def test_parquet_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Found by fuzz_python_formats.py: names and cells of damaged files are no text."""
    path = tmp_path / "sites.parquet"
    pd.DataFrame({"Metadata_Well": ["QQQQ"], "DNA": ["WWWW"]}).to_parquet(path, compression="none")
    sound = path.read_bytes()
    for old, new in (
        (b"WWWW", b"\xff\xff\xff\xff"),
        (b"DNA", b"\xff\x96\xff"),
        (b"Metadata_Well", b"\x96" * 13),
    ):
        path.write_bytes(sound.replace(old, new))
        for data in (path, tmp_path):
            with pytest.raises(CamaeError, match=str(tmp_path)):
                read_manifest(data)
