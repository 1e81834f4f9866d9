"""Cost model of embedding and training on a screen of RxRx3's size with 1, 8 and 128 GPUs.

`python bench/scale.py` writes SCALE.md.

Reading is measured (rows of bench/results). GPU hours are computed from the data sheet's limits at a stated
utilization, beside which stands the measured one; nothing computed is called measured. `python bench/scale.py --help`
lists what can be set for another screen.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import scale_jump_lite
from floors import (
    DEVICES,
    EMBEDDING,
    H100,
    TRAINING,
    Device,
    Shape,
    encoder_flops,
    small_decoder_flops,
)
from targets import GPU, RESULTS

GPUS = (1, 8, 128)


@dataclass(frozen=True)
class Work:
    """Size of a screen, and of the embedding and training on it.

    fields: sites of `channels` planes of `side` px, `pixel_bytes` each as stored uncompressed; `compression` is
    stored / uncompressed. tiles: crops embedded per field. epochs: training passes, one crop per field in each.
    """

    fields: int = 2_222_096
    channels: int = 6
    side: int = 2048
    pixel_bytes: int = 2
    compression: float = 0.5
    tiles: int = 64
    epochs: int = 100
    batch: int = 16_384

    @property
    def crops_embedded(self) -> int:
        """All tiles of all fields."""
        return self.fields * self.tiles

    @property
    def crops_trained(self) -> int:
        """One crop per field and epoch: an assumption, the paper does not say how long each model was trained."""
        return self.fields * self.epochs

    @property
    def stored_bytes(self) -> float:
        """The screen on disk."""
        return self.fields * self.channels * self.side**2 * self.pixel_bytes * self.compression


@dataclass(frozen=True)
class Site:
    """Hardware of a computing site.

    utilization: share of the dense bf16 peak. cores: per GPU. storage: bytes/s of the shared store, all nodes
    together. link: bytes/s of the slowest link of the gradient ring, per GPU.
    """

    device: Device = H100
    utilization: float = 0.4
    cores: int = 16
    storage: float = 10e9
    link: float = 25e9


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds of the parts of a run, which overlap; `bound` names the largest."""

    gpus: int
    compute: float
    reading: float
    storage: float
    network: float

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the slowest part."""
        return max(self.compute, self.reading, self.storage, self.network)

    @property
    def gpu_hours(self) -> float:
        """GPUs held for the whole time."""
        return self.gpus * self.seconds / 3600

    @property
    def bound(self) -> str:
        """Name of the slowest part."""
        parts = {
            "GPU": self.compute,
            "reading (CPU)": self.reading,
            "storage": self.storage,
            "network": self.network,
        }
        return max(parts, key=lambda name: parts[name])


def read_seconds_per_crop(results: Path = RESULTS, case: str = "zstd, tiles 256") -> float:
    """CPU seconds to decode a 6 x 256 x 256 crop, from the newest measured row of the reader.

    Raises SystemExit where there is none.
    """
    found = None
    for file in sorted(results.glob("*/reader.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if row["op"] == "read_crops" and row["case"] == case and row["unit"] == "CPU-ms per crop":
                found = round(row["native"], 2) / 1e3
    if found is None:
        raise SystemExit(
            f"no measured row read_crops [{case}] under {results}: run pytest bench/test_reader.py --full"
        )
    return found


def _measured_utilization(results: Path = RESULTS) -> str:
    """What rows of an H100 say of the assumed utilization."""
    shares = []
    for line in (results / GPU / "embedding.jsonl").read_text().splitlines():
        row = json.loads(line)
        rate = max(row["crops_per_second"].values())
        shape = next(s for s in EMBEDDING if row["case"].startswith(s.name))
        shares.append(f"{row['case'].split(',')[0]} {rate * encoder_flops(shape) / H100.bf16:.0%}")
    return f"embedding measured on one H100: {', '.join(shares)}"


def encoder_parameters(shape: Shape) -> float:
    """12 D^2 per block and the tokenizer; norms and biases are left out."""
    return shape.depth * 12 * shape.width**2 + shape.patch**2 * shape.width


def embedding_cost(work: Work, shape: Shape, site: Site, gpus: int, read_seconds: float) -> Cost:
    """Every tile once through the encoder; every plane is read once."""
    rate = site.utilization * site.device.bf16 * gpus
    return Cost(
        gpus,
        compute=work.crops_embedded * encoder_flops(shape) / rate,
        reading=work.crops_embedded * read_seconds * work.channels / 6 / (site.cores * gpus),
        storage=work.stored_bytes / site.storage,
        network=0.0,
    )


def training_cost(work: Work, shape: Shape, site: Site, gpus: int, read_seconds: float) -> Cost:
    """Forward and backward of every crop; gradients in bf16 around a ring once per batch: 2 (n-1)/n of their bytes.

    A crop reads one tile of 256 px of each plane, as the packed form allows.
    """
    flops = 3 * (encoder_flops(shape) + small_decoder_flops(shape))
    crop_bytes = work.channels * shape.crop**2 * work.pixel_bytes * work.compression
    gradient_bytes = 2 * encoder_parameters(shape)
    ring = 2 * (gpus - 1) / gpus * gradient_bytes / site.link
    return Cost(
        gpus,
        compute=work.crops_trained * flops / (site.utilization * site.device.bf16 * gpus),
        reading=work.crops_trained * read_seconds * work.channels / 6 / (site.cores * gpus),
        storage=work.crops_trained * crop_bytes / site.storage,
        network=work.crops_trained / work.batch * ring,
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}"


def _rows(kind: str, work: Work, site: Site, read: float) -> list[str]:
    shapes, cost = (EMBEDDING, embedding_cost) if kind == "embed" else (TRAINING, training_cost)
    lines = []
    for shape in shapes:
        for gpus in GPUS:
            c = cost(work, shape, site, gpus, read)
            parts = " / ".join(_hours(v) for v in (c.compute, c.reading, c.storage, c.network))
            lines.append(
                f"| {shape.name} | {gpus} | {parts} | {_hours(c.seconds)} | {c.gpu_hours:,.0f} | {c.bound} |"
            )
    return lines


def document(work: Work | None = None, read: float | None = None) -> str:
    """The text of SCALE.md."""
    work = work or Work()
    read = read_seconds_per_crop() if read is None else read
    columns = (
        "encoder",
        "GPUs",
        "GPU / reading / storage / network, h",
        "wall clock, h",
        "GPU-hours",
        "bound",
    )
    head = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"
    parts = [
        "# What a screen of RxRx3's size costs\n\nWritten by `python bench/scale.py`; do not edit.\n",
        f"{work.fields:,} fields of {work.channels} x {work.side} x {work.side} px, {work.pixel_bytes} bytes a pixel, "
        f"stored at {work.compression:.0%}: {work.stored_bytes / 1e12:,.0f} TB. Embedding: {work.tiles} tiles a field, "
        f'{work.crops_embedded / 1e6:,.0f} M crops, the paper\'s "approximately 140 million". Training: '
        f"{work.epochs} passes of one crop per field, {work.crops_trained / 1e6:,.0f} M crops, an assumption; batches "
        f"of {work.batch:,}, the small decoder.\n",
        f"Measured: decoding, {1e3 * read:.2f} CPU-ms per crop (reader row `zstd, tiles 256` of two CPU cores). GPU "
        "hours are the encoder's FLOPs over the data sheet's dense bf16 peak at "
        f"{Site().utilization:.0%} utilization, an assumption ({_measured_utilization()}); {Site().cores} CPU cores "
        "per GPU, a store that gives "
        f"{Site().storage / 1e9:.0f} GB/s to all nodes together and links of {Site().link / 1e9:.0f} GB/s per GPU are "
        "assumptions too. The four parts overlap: the longest is the wall clock.\n",
    ]
    for device in DEVICES:
        site = replace(Site(), device=device)
        parts.append(
            f"## {device.name}\n\nEmbedding\n\n{head}\n" + "\n".join(_rows("embed", work, site, read)) + "\n"
        )
        parts.append(f"Training\n\n{head}\n" + "\n".join(_rows("train", work, site, read)) + "\n")
    parts.append(_bounds_text(work, read))
    if work == Work():
        parts.append(scale_jump_lite.section())
    return "\n".join(parts)


def _bounds_text(work: Work, read: float) -> str:
    """The last section: what bounds embedding and training, from the numbers."""
    site = Site()
    small = embedding_cost(work, EMBEDDING[0], site, 1, read)
    cores = read * site.utilization * site.device.bf16 / encoder_flops(EMBEDDING[0])
    large = embedding_cost(work, EMBEDDING[2], site, 128, read)
    vectors = work.crops_embedded * EMBEDDING[2].width * 4 / 1e9
    return (
        "## What bounds it\n\n"
        f"- {EMBEDDING[0].name} on one {site.device.name} is bound by the {small.bound}: at this decoding cost "
        f"{cores:.0f} CPU cores keep the GPU busy. A screen kept uncompressed is read at about 0.2 ms per crop, and "
        "then storage bounds it.\n"
        f"- {EMBEDDING[2].name} on 128 GPUs is bound by the {large.bound}: {work.stored_bytes / 1e12:,.0f} TB at "
        f"{site.storage / 1e9:.0f} GB/s take {work.stored_bytes / site.storage / 3600:.1f} h however many GPUs wait.\n"
        f"- Embeddings of single tiles of {EMBEDDING[2].name} would be {vectors:,.0f} GB in fp32; `embed_screen` keeps "
        f"one vector per site, {vectors / work.tiles:,.1f} GB.\n"
        "- Gradients: at these batches the ring takes a small share of a step; it bounds nothing here.\n"
        "- L/8 on six channels has 6,144 tokens: half of its FLOPs are attention, and the utilization assumed above is "
        "less certain for it than for the others.\n"
    )


def main() -> None:
    """Write SCALE.md, or print another screen's page."""
    parser = argparse.ArgumentParser(description="Cost of embedding and training on a screen.")
    for f in fields(Work):
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default)
    work = Work(**vars(parser.parse_args()))
    if work == Work():
        Path(__file__).with_name("SCALE.md").write_text(document())
    else:
        print(document(work))


if __name__ == "__main__":
    main()
