"""Fuzzing of the formats that Python packages read: PNG, JPEG 2000, Zarr, Parquet, and CSV tables and manifests.

    python tests/dataloader/fuzz_python_formats.py [CPU-minutes, default 30] [seed]

Sound files are damaged (bits, bytes, cuts, repeats, numbers, pieces of other files) and read; only CamaeError may come
out, and a warning of numbers that overflow is none. A file that breaks this is kept in ./fuzz_found and named. Not a
test: pytest does not collect it.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import zarr
from PIL import Image

from camae.dataloader import read_manifest, read_plane
from camae.dataloader.pixel_size import pixel_size
from camae.dataloader.read_pixels import plane_kind
from camae.errors import CamaeError

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
TOKENS = (
    b",",
    b"\n",
    b'"',
    b"\t",
    b";",
    b"\r",
    b"\0",
    b"#",
    b"..",
    b"null",
    b"-1",
    b"1e999",
    b"[",
    b"{",
    b"\xff\xfe",
)
SLOW_SECONDS = 5.0  # of CPU time


def sound_files(folder: Path) -> dict[str, list[Path]]:
    """Small sound files of every format."""
    pixels = np.random.default_rng(0).integers(0, 60_000, (40, 48), dtype=np.uint16)
    seeds: dict[str, list[Path]] = {"png": [], "jp2": [], "parquet": [], "csv": [], "zarr": []}
    for name, image in (("8.png", (pixels >> 8).astype(np.uint8)), ("16.png", pixels)):
        Image.fromarray(image).save(folder / name)
        seeds["png"].append(folder / name)
    for name, codec in (("a.jp2", "jp2"), ("b.jp2", "j2k")):
        (folder / name).write_bytes(imagecodecs.jpeg2k_encode(pixels, codecformat=codec))
        seeds["jp2"].append(folder / name)
    encoded = (folder / "8.png").read_bytes()
    tables = {
        "images.parquet": pd.DataFrame(
            {"__key__": ["HUVEC-1/Plate1/A01_s1_1"], "image": [{"bytes": encoded, "path": "a"}]}
        ),
        "sites.parquet": pd.DataFrame(
            {"Metadata_Plate": ["P", "P"], "Metadata_Well": ["A1", "A2"], "DNA": ["8.png", "16.png"]}
        ),
    }
    for name, table in tables.items():
        table.to_parquet(folder / name)
        seeds["parquet"].append(folder / name)
    rows = "Metadata_Plate,Metadata_Well,Metadata_Site,DNA,ER\nP,A1,1,8.png,16.png\nP,A2,2,16.png,\n"
    load = "Metadata_Plate,Metadata_Well,Metadata_Site,FileName_OrigDNA,PathName_OrigDNA\nP,A1,1,8.png,/x/y\n"
    for name, text in (("m.csv", rows), ("m.tsv", rows.replace(",", "\t")), ("load_data.csv", load)):
        (folder / name).write_text(text)
        seeds["csv"].append(folder / name)
    for format in (2, 3):
        group = zarr.open_group(str(folder / f"p{format}.zarr"), mode="w", zarr_format=format)
        group.attrs["plate"] = {"wells": [{"path": "B/3"}]}
        group.create_group("B/3").attrs["well"] = {"images": [{"path": "0"}]}
        image_group = group.create_group("B/3/0")
        image_group.attrs["multiscales"] = [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]
        image_group.create_array("0", data=pixels[None], chunks=(1, 32, 32))
        seeds["zarr"].append(folder / f"p{format}.zarr")
    return seeds


def mutated(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """The bytes with one to eight damages."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.randint(1, 16)]
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            out[at:at] = out[max(0, at - rng.randint(1, 64)) : at] * rng.choice((1, 1, 2, 50))
        elif kind == 5:
            value, width = rng.choice(INTERESTING), rng.choice((1, 2, 4, 8))
            out[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
        elif kind == 6:
            out[at:at] = rng.choice(TOKENS)
        else:
            start = rng.randrange(len(other) + 1)
            out[at:at] = other[start : start + rng.randint(1, 64)]
    return bytes(out)


def attempts(kind: str, path: Path) -> list[Callable[[], object]]:
    """What is done with a file or store of one format."""
    if kind in ("png", "jp2"):
        return [lambda: read_plane(path), lambda: plane_kind(str(path))]
    if kind == "parquet":
        return [
            lambda: read_plane(f"{path}#0"),
            lambda: read_manifest(path),
            lambda: read_manifest(path.parent),
        ]
    if kind == "csv":
        return [lambda: read_manifest(path), lambda: read_manifest(path, incomplete="keep", metadata=[path])]
    image = path / "B/3/0/0"
    return [
        lambda: read_plane(f"{image}#0"),
        lambda: read_manifest(path),
        lambda: read_manifest(path, incomplete="skip"),
        lambda: pixel_size(str(image)),
    ]


def damaged_copy(seed: Path, folder: Path, rng: random.Random, others: list[Path]) -> Path:
    """A damaged copy of a file, or of a store in which one or two files are damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy = folder / seed.name
    if seed.is_dir():
        shutil.copytree(seed, copy)
        files = rng.sample(sorted(p for p in copy.rglob("*") if p.is_file()), rng.randint(1, 2))
    else:
        shutil.copy(seed, copy)
        files = [copy]
    for file in files:
        other = rng.choice(others)
        file.write_bytes(mutated(file.read_bytes(), rng, other.read_bytes() if other.is_file() else b"{}"))
    return copy


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    kept = Path("fuzz_found")
    counts: Counter[str] = Counter()
    failures = 0
    warnings.simplefilter("ignore")
    now = Path("fuzz_now")
    shutil.rmtree(now, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "seeds").mkdir()
        seeds = sound_files(root / "seeds")
        everything = [p for paths in seeds.values() for p in paths]
        began = time.process_time()
        while time.process_time() - began < 60 * minutes:
            kind = rng.choice(list(seeds))
            path = damaged_copy(rng.choice(seeds[kind]), now, rng, everything)
            for attempt in attempts(kind, path):
                started, problem = time.process_time(), ""
                try:
                    attempt()
                    counts[f"{kind} read"] += 1
                except CamaeError as error:
                    counts[f"{kind} refused"] += 1
                    if "\n" in str(error) or not str(error):
                        problem = f"not one sentence: {str(error)!r}"
                except Exception:
                    problem = traceback.format_exc(limit=-6)
                if time.process_time() - started > SLOW_SECONDS:
                    problem += f"took {time.process_time() - started:.1f} s"
                if problem:
                    failures += 1
                    kept.mkdir(exist_ok=True)
                    place = kept / f"{failures:03d}_{path.name}"
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, place)
                    print(f"{place}: {problem}", flush=True)
    shutil.rmtree(now, ignore_errors=True)
    print(", ".join(f"{n:,} {what}" for what, n in sorted(counts.items())), f"; {failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
