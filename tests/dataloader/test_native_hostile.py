"""Files that lie, end early or change while they are read: a sentence or the right pixels, never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from camae.dataloader import read_crops, read_manifest, read_plane
from camae.dataloader.backends.native import module
from camae.errors import CamaeError, MissingFileError

# Minimized by libFuzzer from its run under address and undefined-behavior sanitizers (csrc/reader/fuzz_tiff.cpp).
CORPUS = Path(__file__).parent / "fuzz_corpus.zip"
VARIANTS = {
    "none": {"rowsperstrip": 7},
    "lzw": {"compression": "lzw", "rowsperstrip": 7, "predictor": True},
    "deflate": {"compression": "zlib", "tile": (16, 16)},
    "zstd": {"compression": "zstd", "rowsperstrip": 20, "byteorder": ">"},
    "packbits": {"compression": "packbits", "bigtiff": True},
}


def small_image() -> np.ndarray:
    return np.random.default_rng(1).poisson(300, (20, 24)).astype(np.uint16)


def write_fresh(path: Path, data: bytes) -> None:
    """A new file each time: rewriting one in place makes some file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def attempt(path: Path, shape: tuple[int, int]) -> np.ndarray | str:
    """The pixels, or the sentence the file is refused with."""
    out = np.zeros((1, *shape), np.uint16)
    failures = module().read_windows([str(path)], [-1], [0], [0], [0], [1], out)
    return failures[0][2] if failures else out[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_truncated_at_every_offset(tmp_path: Path, variant: str) -> None:
    image = small_image()
    whole = tmp_path / "whole.tif"
    tifffile.imwrite(whole, image, metadata=None, **VARIANTS[variant])
    data = whole.read_bytes()
    refused = 0
    for length in range(len(data)):
        path = tmp_path / "cut.tif"
        write_fresh(path, data[:length])
        result = attempt(path, image.shape)
        if isinstance(result, str):
            refused += 1
            assert result
        else:
            # Bytes behind the last pixel may be missing without harm; pixels may not differ.
            assert np.array_equal(result, image)
    assert refused > len(data) // 2


def test_truncated_png_at_every_offset(tmp_path: Path) -> None:
    image = (small_image() // 3).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    refused = 0
    for length in range(len(data)):
        write_fresh(tmp_path / "cut.png", data[:length])
        try:
            pixels = read_plane(tmp_path / "cut.png")
        except CamaeError as error:
            refused += "cut.png" in str(error)
        else:
            assert np.array_equal(pixels, image)
    assert refused > len(data) // 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_byte_changed(tmp_path: Path, variant: str) -> None:
    image = small_image()
    tifffile.imwrite(tmp_path / "whole.tif", image, metadata=None, **VARIANTS[variant])
    data = (tmp_path / "whole.tif").read_bytes()
    path = tmp_path / "changed.tif"
    for at in range(len(data)):
        for value in (0, 255, data[at] ^ 128):
            write_fresh(path, data[:at] + bytes([value]) + data[at + 1 :])
            result = attempt(path, image.shape)
            assert isinstance(result, str) or result.shape == image.shape


def test_fuzz_corpus_is_refused_or_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(CORPUS) as corpus:
        corpus.extractall(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 100
    for path in files:
        for pages in (-1, 0):
            try:
                about = module().describe(str(path), pages)
            except module().Refused:
                continue
            side = min(about["height"], about["width"], 64)
            out = np.zeros((about["planes"], side, side), f"u{about['bits'] // 8}")
            module().read_windows([str(path)], [pages], [0], [0], [0], [len(out)], out)


def test_what_is_not_a_tiff(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").write_bytes(b"")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "jpeg.tif", format="JPEG")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "jpeg.png", format="JPEG")
    (tmp_path / "png.tif").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "text.tif").write_bytes(b"hello, this is not an image")
    (tmp_path / "folder.tif").mkdir()
    os.mkfifo(tmp_path / "pipe.tif")
    for name, sentence in {
        "empty.tif": "is empty",
        "jpeg.tif": "is a JPEG, not a TIFF",
        "png.tif": "is a PNG, not a TIFF",
        "text.tif": "is not a TIFF",
        "folder.tif": "not a regular file",
        "pipe.tif": "not a regular file",
    }.items():
        with pytest.raises(CamaeError, match=rf"{name}: .*{sentence}"):
            read_plane(tmp_path / name)
    with pytest.raises(CamaeError, match=r"jpeg\.png: is a JPEG, not a PNG"):
        read_plane(tmp_path / "jpeg.png")
    for name in ("gone.tif", "gone.png"):
        with pytest.raises(MissingFileError, match=rf"{name}: no such file"):
            read_plane(tmp_path / name)


def test_no_permission(tmp_path: Path, as_nobody: Callable[[], AbstractContextManager]) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    tifffile.imwrite(shut / "P_A01_s1_DNA.tif", small_image())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(shut / "a.png")
    (tmp_path / "open.tif").write_bytes((shut / "P_A01_s1_DNA.tif").read_bytes())
    (tmp_path / "open.tif").chmod(0)
    shut.chmod(0)
    try:
        with as_nobody():
            for path in (shut / "P_A01_s1_DNA.tif", shut / "a.png", tmp_path / "open.tif"):
                with pytest.raises(CamaeError, match=rf"{path.name}: no permission to read it"):
                    read_plane(path)
            # The folder above can be listed, this one cannot: its sites must not be missing in silence.
            with pytest.raises(CamaeError, match=r"shut: this folder cannot be listed \(Permission denied\)"):
                read_manifest(tmp_path)
            with pytest.raises(CamaeError, match=r"shut/a.csv: no permission to read it"):
                read_manifest(shut / "a.csv")
    finally:
        shut.chmod(0o700)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((16, 16), np.uint16), compression=compression, metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tags[name].overwrite(1 << 24 if "Rows" not in name else 0xFFFFFFFF, dtype="I")
    tracemalloc.start()
    refused = r"bomb\.tif: a block of .* (cannot hold|lies outside the file)"
    with pytest.raises(CamaeError, match=refused):
        read_plane(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    with pytest.raises(CamaeError, match=refused):
        read_crops([path], 0, 1 << 20, 64)


def test_replaced_and_rewritten_files_are_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for value, compression in ((1, None), (2, "zlib"), (3, None), (4, "lzw")):
        tifffile.imwrite(tmp_path / "new.tif", np.full((32, 32), value, np.uint8), compression=compression)
        os.replace(tmp_path / "new.tif", path)
        assert (read_plane(path) == value).all()


def test_mappings_are_bounded(tmp_path: Path) -> None:
    before = module().mapping_limit()
    assert before <= int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
    try:
        module().mapping_limit(3)
        for i in range(10):
            tifffile.imwrite(tmp_path / f"{i}.tif", np.full((8, 8), i, np.uint8))
            assert (read_plane(tmp_path / f"{i}.tif") == i).all()
        assert module().mappings_held() == 3
        assert (read_plane(tmp_path / "0.tif") == 0).all()
    finally:
        module().mapping_limit(before)


def test_a_file_cut_short_while_it_is_read_does_not_kill_the_process(tmp_path: Path) -> None:
    script = """
        import faulthandler, os, sys, threading
        import numpy as np, tifffile
        from camae.dataloader.backends.native import module
        faulthandler.enable()  # takes the signal for itself; the reader must take it back
        path = sys.argv[1]
        image = np.arange(2048 * 2048, dtype=np.uint16).reshape(2048, 2048)
        tifffile.imwrite(path, image)
        data = open(path, "rb").read()
        stop = threading.Event()

        def disturb():
            while not stop.is_set():
                os.truncate(path, 100_000)
                with open(path, "r+b") as file:
                    file.write(data)

        thread = threading.Thread(target=disturb)
        thread.start()
        out = np.zeros((1, 2048, 2048), np.uint16)
        seen = [module().read_windows([path], [-1], [0], [0], [0], [1], out) for _ in range(300)]
        stop.set()
        thread.join()
        assert module().read_windows([path], [-1], [0], [0], [0], [1], out) == []
        assert np.array_equal(out[0], image)
        print(sum(bool(failures) for failures in seen), "refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "a.tif")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0


@pytest.mark.full
def test_memory_stays_flat_over_100_000_crops(tmp_path: Path) -> None:
    paths = []
    for i, options in enumerate(
        [{}, {"compression": "lzw"}, {"compression": "zlib"}, {"compression": "zstd"}]
    ):
        for copy in range(25):
            paths.append(str(tmp_path / f"{i}_{copy}.tif"))
            tifffile.imwrite(paths[-1], small_image().repeat(4, 0).repeat(4, 1), tile=(32, 32), **options)
    rng = np.random.default_rng(0)
    out = np.zeros((4, 32, 32), np.uint16)
    resident = []
    for crop in range(100_000):
        chosen = [paths[25 * c + rng.integers(25)] for c in range(4)]
        y, x = rng.integers(0, 48, 2)
        assert not module().read_windows(
            chosen, [-1] * 4, [y] * 4, [x] * 4, [crop % 8] * 4, [1] * 4, out, 1 + crop % 2
        )
        if crop % 10_000 == 9_999:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
    # The first tenth warms caches up; after it the resident size may wander by an allocator arena, not grow.
    assert resident[-1] - resident[0] < 2_000_000, resident
