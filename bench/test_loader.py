"""The whole loader (sampling, reading, flips, collation) against the bare reader on the same batches: CPU-ms per crop.

One thread, page cache warm, no site cache, a model that computes nothing; target: at most 1.3 times the bare
reader. By default small; --full uses 2048x2048 fields and 6x256x256 crops.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rows import append_row

from camae.dataloader import CropLoader, Manifest
from camae.dataloader.backends.native import module

sys.path.insert(0, str(Path(__file__).parent / "data"))
import field

TARGET = 1.3


def manifest_of(paths: list[list[str]]) -> Manifest:
    rows = [
        {"Metadata_Site": str(i)} | dict(zip(field.CHANNELS, site, strict=True))
        for i, site in enumerate(paths)
    ]
    return Manifest(pd.DataFrame(rows))


@pytest.mark.parametrize("layout", field.LAYOUTS)
def test_loader(
    layout: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture,
) -> None:
    full = bool(request.config.getoption("--full"))
    edge, crop, fields, batch, rounds = (2048, 256, 3, 16, 9) if full else (512, 64, 2, 8, 3)
    paths = field.write_fields(tmp_path_factory.mktemp("loader"), layout, fields, edge)
    # The fields stand for a screen of 100 times as many sites, so that epochs are longer than batches.
    loader = CropLoader(manifest_of(paths * 100), crop=crop, batch_size=batch, cache_bytes=0, threads=1)
    rng = np.random.default_rng(0)
    steps = 8 if layout.startswith("none") else 1

    def bare(step: int) -> None:
        """The same number of random windows per call, straight into a fresh batch."""
        out = torch.empty((6 * batch, crop, crop), dtype=torch.uint16).numpy()
        places = rng.integers(0, edge - crop + 1, (batch, 2)).repeat(6, 0)
        chosen = [p for f in rng.integers(0, fields, batch) for p in paths[f]]
        n = len(chosen)
        failed = module().read_windows(chosen, [-1] * n, places[:, 0], places[:, 1], [0] * n, [1] * n, out, 1)
        assert not failed

    times: dict[str, list[float]] = {"bare": [], "loader": []}
    for step in range(-1, rounds):
        for name, function in {"bare": bare, "loader": loader.batch_at}.items():
            began = time.process_time()
            for i in range(steps):
                function((step + 1) * steps + i)
            if step >= 0:  # the first round warms up
                times[name].append((time.process_time() - began) / steps / batch * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["loader"] / medians["bare"]
    row = {
        "op": "crop_loader",
        "case": layout,
        "shape": [batch, 6, crop, crop],
        "image": edge,
        "unit": "CPU-ms per crop",
    }
    row |= {name: round(value, 4) for name, value in medians.items()}
    row |= {"loader_over_bare": round(ratio, 3), "target_met": ratio <= TARGET if full else None}
    with capsys.disabled():
        print("\n" + json.dumps(row))
    append_row("loader.jsonl", row, full=full)
