"""Region mode against full crops: 20 cells of 64 x 64 px in one field of six channels, one packed call each.

Floor: the FLOPs of the tokens that touch a cell (16 of 256 patches a plane, 97 tokens with the class token) and the
pixels of the windows they are standardized in. Target: under 1/5 of the time of the 20 windows encoded whole.
By default a small encoder; --full uses S/16.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

import camae
from camae.model import CAMAE, preset

CELLS, SIDE, FIELD = 20, 64, 1080
CHANNELS = ["DNA", "ER", "Actin", "RNA", "Mito", "AGP"]


def encoder_flops(tokens: int, c) -> float:
    """Of one sample, two per multiply-add: blocks, and the projection of its patches."""
    block = 24 * tokens * c.width**2 + 4 * tokens**2 * c.width
    return c.depth * block + 2 * tokens * c.patch**2 * c.width


def test_region_mode(recorder, benchmark):
    config = preset("ca_mae_vit_s16") if recorder.full else preset("ca_mae_vit_ti16", depth=2)
    torch.manual_seed(0)
    model = CAMAE(config).eval().to(recorder.device)
    rng = np.random.default_rng(0)
    field = rng.integers(0, 4000, (len(CHANNELS), FIELD, FIELD)).astype(np.uint16)
    # Centers on even pixels: the 64-px square then meets exactly 4 x 4 patches of its own window.
    centers = pd.DataFrame(
        rng.integers(128, FIELD - 128, (CELLS, 2)), columns=["Metadata_Cell_X", "Metadata_Cell_Y"]
    )

    def regions(table: pd.DataFrame = centers) -> np.ndarray:
        return camae.embed(field, CHANNELS, model, region=table, region_size=SIDE)

    def crops() -> np.ndarray:
        return camae.embed(field, CHANNELS, model, region=centers)

    def check() -> None:
        together = regions()
        assert together.shape == (CELLS, config.width)
        for i in (0, CELLS - 1):
            # The same sums in another order, in float32 of values of order 1.
            np.testing.assert_allclose(regions(centers.iloc[[i]])[0], together[i], atol=1e-4)

    visible = (SIDE // config.patch) ** 2 * len(CHANNELS) + 1
    # On a CPU a full round of S/16 crops takes most of a minute.
    timer = replace(recorder, rounds=2) if recorder.full and recorder.device == "cpu" else recorder
    row = timer.row(
        "embed regions",
        f"{CELLS} cells of {SIDE} px against {CELLS} crops, {config.name}",
        shape=[CELLS, len(CHANNELS), config.crop, config.crop],
        dtype="float32",
        ours={"regions": regions},
        competitors={"full crops": crops},
        check=check,
        size_bytes=CELLS * len(CHANNELS) * config.crop**2 * 2.0,
        flops=CELLS * encoder_flops(visible, config),
        target="ratio at least 5",
        benchmark=benchmark,
    )
    if recorder.full:
        assert row["ratio"] >= 5
