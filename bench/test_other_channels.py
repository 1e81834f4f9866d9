"""Training on screens of other channel sets: recall on a screen of channels that were never trained on together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from rows import append_row
from training_setup import DECODER, ENCODER, SETTINGS, TINY

import camae
from camae import maps
from camae.dataloader import Manifest, read_manifest
from camae.maps.pairs import read_pairs
from camae.maps.perturbation_map import map_screen
from camae.reproduction.demo.generate_screen import generate


def brightfield(manifest: Manifest, out: Path) -> Manifest:
    """A sixth channel as a lamp would show it: the slope of the smoothed sum of the stains, on a bright ground."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for row in range(len(manifest)):
        total = sum(tifffile.imread(manifest.path(row, c)).astype(np.float32) for c in manifest.channels)
        smooth = torch.nn.functional.avg_pool2d(torch.from_numpy(total)[None], 5, 1, 2)[0].numpy()
        slope = np.gradient(smooth, axis=0) + np.gradient(smooth, axis=1)
        noise = np.random.default_rng(row).normal(0, 30, slope.shape)
        paths.append(str(out / f"{row}.tif"))
        tifffile.imwrite(paths[-1], np.clip(20_000 + 4 * slope + noise, 0, 65_535).astype(np.uint16))
    table = manifest.table.copy()
    for channel in manifest.channels:
        table[channel] = [str(manifest.path(i, channel)) for i in range(len(table))]
    return Manifest(table.assign(Brightfield=paths))


def of_channels(manifest: Manifest, channels: tuple[str, ...], rows: Any = None) -> Manifest:
    """The manifest with these channels alone, and these rows alone."""
    part = manifest if rows is None else manifest.select(rows)
    gone = [c for c in manifest.channels if c not in channels]
    return Manifest(part.table.drop(columns=gone).reset_index(drop=True), root=part.root)


def trained_recall(data: Any, four: Manifest, pairs: Any, out: Path, seed: int, **training: Any) -> float:
    """Recall of the known pairs of `four` after training on `data`."""
    run = camae.train(data, "ca_mae_vit_ti16", out=out, seed=seed, **training)
    table = camae.embed_screen(four, run.model, out / "emb", tiles="grid", pool="per_channel", quiet=True)
    mapped = map_screen(table, "tvn")
    return float(maps.recall(mapped.vectors, mapped.names, pairs)["recall"].iloc[0])


def test_other_channel_sets(full: bool, runs: Path) -> None:
    """Trained on screens of 6 and of 5 and 3 channels together, evaluated on a held-out one of 4 channels.

    Against training on the 4 channels alone of the very same images, so that the screen is held out for both ("four");
    and, harder, against training on the evaluated screen itself ("same screen").
    """
    steps, seeds, encoder = (250, 3, ENCODER) if full else (3, 1, TINY)
    kept = os.environ.get("CAMAE_BENCH_SCREEN") if full else None
    data_of, four, evaluated = data_sets(full, runs, Path(kept or runs / "evaluated"))
    settings = SETTINGS | {"val": None} | ({} if full else {"batch_size": 4})
    training = settings | {"steps": steps, "model_options": encoder | {"decoder": DECODER}}
    pairs = read_pairs(evaluated / "relationships" / "demo_pairs.csv")
    recalls: dict[str, list[float]] = {name: [] for name in data_of}
    for seed in range(seeds):
        for name, data in data_of.items():
            recalls[name].append(trained_recall(data, four, pairs, runs / f"{name}_{seed}", seed, **training))
    mean = {name: float(np.mean(values)) for name, values in recalls.items()}
    row = {
        "op": "training",
        "case": "screens of 6, 5 and 3 channels together, evaluated on 4",
        "steps": steps,
        "recall": recalls,
        "mean": mean,
        "spread": {n: float(np.std(v, ddof=1)) if len(v) > 1 else None for n, v in recalls.items()},
        "ratio": mean["mixed"] / mean["four"],
        "ratio_to_same_screen": mean["mixed"] / mean["same screen"],
        "target": "at least 0.9",
    }
    append_row("training.jsonl", row, full=full)
    print(row)


def data_sets(full: bool, runs: Path, evaluated: Path) -> tuple[dict[str, Any], Manifest, Path]:
    """What each comparator trains on, the evaluated screen of four channels, and its folder."""
    size = {} if full else {"size": 64}
    first = read_manifest(generate(runs / "first", plates=1, sites=2 if full else 1, seed=1, **size))
    second = read_manifest(generate(runs / "second", plates=1, sites=2, seed=2, **size))
    shape = {"plates": 3, "sites": 2} if full else {"plates": 1, "sites": 1}
    alone = ("DNA", "ER", "AGP", "Mito")
    four = of_channels(read_manifest(generate(evaluated, **shape, **size)), alone)
    odd = np.arange(len(second)) % 2 == 1
    mixed = {
        "six": brightfield(first, runs / "brightfield"),
        "five": of_channels(second, tuple(second.channels), ~odd),
        "three": of_channels(second, ("DNA", "ER", "Mito"), odd),
    }
    held_out = {"first": of_channels(first, alone), "second": of_channels(second, alone)}
    return {"mixed": mixed, "four": held_out, "same screen": four}, four, evaluated
