"""Random 6x256x256 uint16 crops out of 2048x2048 planes, page cache warm: CPU-ms per crop, one thread, interleaved.

Floor: the codec alone on the blocks each crop touches (uncompressed: one numpy copy of the window). Competitors in
the same run: tifffile decoding those blocks only, tifffile decoding whole planes, DALI decoding the region (where
installed). By default a quarter of the size with few crops; --full runs the table.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
from rows import append_row

from camae.dataloader import read_crops
from camae.dataloader.backends.native import module

sys.path.insert(0, str(Path(__file__).parent / "data"))
import field

TARGET_UNCOMPRESSED_MS, TARGET_RATIO = 0.2, 1.25


@dataclass(frozen=True)
class Crop:
    paths: list[str]
    y: int
    x: int


def native(crop: Crop, out: np.ndarray) -> np.ndarray:
    """Into a given buffer, as the loader does: the batch's own planes."""
    n = len(crop.paths)
    failures = module().read_windows(
        crop.paths, [-1] * n, [crop.y] * n, [crop.x] * n, [0] * n, [1] * n, out, threads=1
    )
    assert not failures
    return out


def tifffile_whole(crop: Crop, size: int) -> np.ndarray:
    planes = [tifffile.imread(p, maxworkers=1) for p in crop.paths]
    return np.stack([p[crop.y : crop.y + size, crop.x : crop.x + size] for p in planes])


def touched(page: tifffile.TiffPage, crop: Crop, size: int) -> Iterator[tuple[int, int, int]]:
    """(index, top, left) of the strips or tiles of a page that the crop touches."""
    height, width = (
        (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    )
    across = -(-page.imagewidth // width)
    for row in range(crop.y // height, (crop.y + size - 1) // height + 1):
        for column in range(crop.x // width, (crop.x + size - 1) // width + 1):
            yield row * across + column, row * height, column * width


def tifffile_segments(crop: Crop, size: int) -> np.ndarray:
    out = np.empty((len(crop.paths), size, size), np.uint16)
    for plane, path in zip(out, crop.paths, strict=True):
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            for index, top, left in touched(page, crop, size):
                file.filehandle.seek(page.dataoffsets[index])
                data = file.filehandle.read(page.databytecounts[index])
                block = page.decode(data, index)[0][0, :, :, 0]
                y0, x0 = max(top, crop.y), max(left, crop.x)
                y1 = min(top + block.shape[0], crop.y + size)
                x1 = min(left + block.shape[1], crop.x + size)
                plane[y0 - crop.y : y1 - crop.y, x0 - crop.x : x1 - crop.x] = block[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]
    return out


def codec_alone(crops: list[Crop], size: int) -> Callable[[int], None]:
    """Decodes the blocks of the i-th crop, already in memory, with the codec the native reader uses."""
    blocks: list[list[bytes]] = []
    for crop in crops:
        blocks.append([])
        for path in crop.paths:
            with tifffile.TiffFile(path) as file:
                page = file.pages[0]
                for index, _, _ in touched(page, crop, size):
                    file.filehandle.seek(page.dataoffsets[index])
                    blocks[-1].append(file.filehandle.read(page.databytecounts[index]))
    about = module().describe(crops[0].paths[0])
    whole = about["block_height"] * about["block_width"] * 2
    return lambda i: module().decode_blocks(about["codec"], blocks[i], whole)


def copy_alone(crops: list[Crop], size: int) -> Callable[[int], None]:
    """One numpy copy of the window out of memory-mapped planes: what uncompressed reading cannot undercut by much."""
    planes = {p: tifffile.memmap(p, mode="r") for crop in crops for p in crop.paths}

    out = np.empty((6, size, size), np.uint16)

    def copy(i: int) -> None:
        crop = crops[i]
        for plane, path in zip(out, crop.paths, strict=True):
            plane[:] = planes[path][crop.y : crop.y + size, crop.x : crop.x + size]

    return copy


def cpu_ms(function: Callable[[int], object], n: int) -> float:
    began = time.process_time()
    for i in range(n):
        function(i)
    return (time.process_time() - began) / n * 1e3


def interleaved(
    methods: dict[str, Callable[[int], object]], n: dict[str, int], rounds: int
) -> dict[str, float]:
    """Median CPU-ms per crop of each method over rounds that visit the methods in turn."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, function in methods.items():
            times[name].append(cpu_ms(function, n[name]))
    return {name: statistics.median(values) for name, values in times.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fields")


@pytest.mark.parametrize("layout", field.LAYOUTS)
def test_reader(
    layout: str, folder: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    full = bool(request.config.getoption("--full"))
    size, edge, fields, rounds = (256, 2048, 3, 5) if full else (64, 512, 1, 2)
    paths = field.write_fields(folder, layout, fields, edge)
    rng = np.random.default_rng(0)
    n = 200 if layout.startswith("none") else 20
    n = n if full else 5
    places = rng.integers(0, edge - size + 1, (n, 2))
    crops = [Crop(paths[rng.integers(fields)], int(y), int(x)) for y, x in places]
    truth = tifffile_whole(crops[0], size)
    out = np.empty((6, size, size), np.uint16)
    assert np.array_equal(native(crops[0], out), truth)
    assert np.array_equal(tifffile_segments(crops[0], size), truth)
    floor = copy_alone(crops, size) if layout.startswith("none") else codec_alone(crops, size)
    methods: dict[str, Callable[[int], object]] = {
        "native": lambda i: native(crops[i], out),
        "floor": floor,
        "tifffile_segments": lambda i: tifffile_segments(crops[i], size),
    }
    if full:
        methods["tifffile_whole"] = lambda i: tifffile_whole(crops[i], size)
        if importlib.util.find_spec("nvidia.dali"):
            methods["dali_region"] = lambda i: read_crops(
                crops[i].paths, crops[i].y, crops[i].x, size, "dali"
            )
            assert np.array_equal(methods["dali_region"](0), truth)
    few = {"tifffile_segments": min(n, 5), "tifffile_whole": min(n, 2), "dali_region": min(n, 3)}
    seen = interleaved(methods, {name: few.get(name, n) for name in methods}, rounds)
    met = (
        seen["native"] <= TARGET_UNCOMPRESSED_MS
        if layout.startswith("none")
        else seen["native"] <= TARGET_RATIO * seen["floor"]
    )
    row = {
        "op": "read_crops",
        "case": layout,
        "shape": [6, size, size],
        "image": edge,
        "unit": "CPU-ms per crop",
    }
    row |= {name: round(value, 4) for name, value in seen.items()}
    row |= {
        "native_over_floor": round(seen["native"] / seen["floor"], 3),
        "target_met": met if full else None,
    }
    with capsys.disabled():
        print("\n" + json.dumps(row))
    append_row("reader.jsonl", row, full=full)
