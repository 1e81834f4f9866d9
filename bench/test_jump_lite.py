"""Reading sites of JUMP-lite, 5 x 1080 x 1080 uint16, page cache warm: CPU-ms per site of both kinds of store.

Competitor: zarr-python opening and reading the array, as the release's own code does. The pictures are the frozen
fields of the reader's bench, for JPEG XL 16 times as bright, because its loss is relative to the full 16 bits. `bytes`
of a row stands beside the published mean of a site; decoding takes little longer for more bytes (0.09 to 0.11 CPU-s at
36 to 59 kB).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rows import append_row

from camae.dataloader import read_manifest
from camae.dataloader.datasets.jump_lite import INDEX, RELEASED_SITES, VARIANTS
from camae.dataloader.read_pixels import read_site

sys.path.insert(0, str(Path(__file__).parent / "data"))
import field

zarr = pytest.importorskip("zarr")
SIDE, SITES, ROUNDS = 1080, 3, 5


def store(folder: Path, variant: str) -> Path:
    """A store of a few sites and its index, which is returned."""
    import imagecodecs.numcodecs
    import numcodecs
    from zarr.codecs import BloscCodec

    numcodecs.register_codec(imagecodecs.numcodecs.Jpegxl)
    lossy = imagecodecs.numcodecs.Jpegxl(lossless=False, distance=3.0)
    lossless = BloscCodec(cname="zstd", clevel=9, shuffle="bitshuffle")
    form = (
        {"zarr_format": 2, "compressors": lossy}
        if variant == "mq"
        else {"zarr_format": 3, "compressors": lossless}
    )
    path = folder / f"{VARIANTS[variant].codec}.zarr"
    zarr.open_group(str(path), mode="w", zarr_format=form["zarr_format"])
    rows = []
    for site in range(SITES):
        image = np.stack([field.field(site, channel, SIDE) for channel in range(5)])
        if variant == "mq":
            image = np.minimum(image.astype(np.uint32) * 16, 65535).astype(np.uint16)
        place = {
            "Metadata_Source": "source_4",
            "Metadata_Batch": "B",
            "Metadata_Plate": "P",
            "Metadata_Well": "A01",
        }
        place["Metadata_Site"] = str(site + 1)
        key = "__".join(place.values())
        rows.append({"Metadata_Site_Key": key, **place})
        array = zarr.create_array(
            str(path / key), shape=image.shape, chunks=image.shape, dtype=image.dtype, **form
        )
        array[:] = image
    pd.DataFrame(rows).to_parquet(folder / INDEX)
    return folder / INDEX


def cpu_ms(work: Callable[[int], object]) -> float:
    """Median CPU-ms per site of several rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for site in range(SITES):
            work(site)
        times.append(1e3 * (time.process_time() - start) / SITES)
    return statistics.median(times)


@pytest.mark.parametrize("variant", ["zstd", "mq"])
def test_reading_sites(tmp_path: Path, variant: str, request: pytest.FixtureRequest) -> None:
    """One row for each variant; a site read by camae equals the array that zarr reads."""
    index = store(tmp_path, variant)
    manifest = read_manifest(index, variant=variant)
    arrays = [
        str(tmp_path / f"{VARIANTS[variant].codec}.zarr" / key) for key in manifest.table["Metadata_Site_Key"]
    ]
    for site, path in enumerate(arrays):
        np.testing.assert_array_equal(read_site(manifest, site)[0], zarr.open(path, mode="r")[:])
    sizes = [sum(f.stat().st_size for f in Path(p).rglob("*") if f.is_file()) for p in arrays]
    row = {
        "op": "read_site",
        "case": f"JUMP-lite {variant}, 5x{SIDE}x{SIDE}",
        "unit": "CPU-ms per site",
        "camae": cpu_ms(lambda site: read_site(manifest, site)),
        "zarr": cpu_ms(lambda site: zarr.open(arrays[site], mode="r")[:]),
        "bytes": statistics.mean(sizes),
        "bytes_published": VARIANTS[variant].bytes / RELEASED_SITES,
    }
    append_row("jump_lite.jsonl", row, full=request.config.getoption("--full"))
    print(json.dumps(row))
    assert row["camae"] < 1.5 * row["zarr"]
