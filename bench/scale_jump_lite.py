"""What embedding JUMP-lite costs on one H100: a section of SCALE.md, computed from measured rates.

The card's rate of 6-channel crops is a row of bench/results, brought to 5 channels by counted FLOPs; decoding is a row
of two CPU cores. The run as a whole is computed and called so.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from floors import EMBEDDING, Shape, encoder_flops
from targets import GPU, RESULTS

from camae.dataloader.datasets.jump_lite import RELEASED_SITES, VARIANTS

CHANNELS, SIDE, CORES = 5, 1080, 16


def crops_per_second(shape: Shape, results: Path = RESULTS) -> float | None:
    """Measured rate of an encoder on 6 channels, times the ratio of FLOPs; None where it was not measured."""
    for line in (results / GPU / "embedding.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["case"].startswith(f"{shape.name}, {shape.channels}x"):
            rate = max(v for name, v in row["crops_per_second"].items() if "eager" not in name)
            return rate * encoder_flops(shape) / encoder_flops(replace(shape, channels=CHANNELS))
    return None


def decoding_seconds(variant: str, results: Path = RESULTS) -> float:
    """CPU seconds to read one site, from the newest measured row. Raises SystemExit where there is none."""
    found = None
    for file in sorted(results.glob("cpu-*/jump_lite.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if row["case"].startswith(f"JUMP-lite {variant},"):
                found = row["camae"] / 1e3
    if found is None:
        raise SystemExit(
            f"no measured row of JUMP-lite {variant} under {results}: run pytest bench/test_jump_lite.py --full"
        )
    return found


def section() -> str:
    """The text of the section."""
    crop = EMBEDDING[0].crop
    tiles = (SIDE // crop) ** 2
    crops = RELEASED_SITES * tiles
    decoding = {v: RELEASED_SITES * decoding_seconds(v) / CORES / 3600 for v in ("zstd", "mq")}
    lines = []
    for shape in EMBEDDING:
        rate = crops_per_second(shape)
        if rate is None:
            lines.append(f"| {shape.name} | not measured | | | |")
            continue
        gpu = crops / rate / 3600
        wall = max(gpu, decoding["mq"])
        bound = "GPU" if gpu >= decoding["mq"] else "decoding"
        lines.append(f"| {shape.name} | {rate:,.0f} | {gpu:.1f} | {wall:.1f} | {bound} |")
    per_site = {variant: f"{1e3 * decoding_seconds(variant):.0f} CPU-ms" for variant in decoding}
    return (
        "## JUMP-lite on one H100\n\n"
        f"Computed; the release as a whole has not been embedded. {RELEASED_SITES:,} sites of {CHANNELS} x {SIDE:,} x "
        f"{SIDE:,} px, {tiles} tiles of {crop} px each: {crops / 1e6:.1f} M crops (sites of 1,080 x 1,280 px have 20 "
        "tiles, a quarter more). Rates are those measured on the card for 6 channels, times the FLOPs of 6 over those "
        f"of {CHANNELS} channels. Decoding, measured on two CPU cores: {per_site['mq']} a site of `mq` and "
        f"{per_site['zstd']} of `zstd`, so {decoding['mq']:.1f} h and {decoding['zstd']:.1f} h on {CORES} cores. The "
        f"store is {VARIANTS['mq'].bytes / 1e9:,.0f} GB (`mq`) or {VARIANTS['zstd'].bytes / 1e12:.1f} TB (`zstd`). "
        "Reading and computing overlap: the longer is the wall clock. Writing the Gallery's files, one for each site, "
        "is not in it.\n\n"
        "| encoder | crops/s | GPU, h | wall clock of `mq`, h | bound |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(lines)
        + "\n"
    )
