"""The recipe fast-cpu beside variants of it at the same training FLOPs (counted), on a generated screen.

`python bench/fast_cpu.py NAME` trains one variant and writes runs/beyond/fast_cpu/NAME.json; a second call: nothing.
Held-out masked loss along the way (one plate, 32 center crops) and recall at the end, one seed each: it shows what
costs much, not differences within a standard error of recall (about .1).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from beyond import FOLDER, held_out_half, scored
from rows import commit

import camae
from camae import maps
from camae.dataloader import read_manifest
from camae.files import write_json
from camae.model.flops import model_flops
from camae.reproduction.demo.generate_screen import generate
from camae.training.recipes import MODEL_OPTIONS, SMALL_BUDGETS

SCREEN = 5301  # not one of those that options are compared on
BASE_STEPS = 150
OPTIONS, RECIPE = MODEL_OPTIONS["fast-cpu"], SMALL_BUDGETS["fast-cpu"]
BLOCKS = {"width": 64, "depth": 1, "heads": 4, "cross_heads": 4}
# name -> (changes of the model's options, changes of the settings)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fast-cpu": ({}, {}),
    "LayerScale 1e-4": ({"layer_scale": 1e-4}, {}),
    "released decoder form": ({"decoder": BLOCKS}, {}),
    "decoder with a block": (
        {"decoder": BLOCKS | {"context": "visible", "cross_residual": True, "local_start": True}},
        {},
    ),
    "patch 8, crop 64": ({"patch": 8, "crop": 64}, {}),
    "width 192": ({"width": 192}, {}),
    "batch 64": ({}, {"batch_size": 64}),
    "constant rate, EMA": ({}, {"schedule": "constant", "lr": 1e-3, "ema": 0.98, "ema_final": True}),
}


def main(name: str) -> None:
    path = FOLDER / "fast_cpu" / f"{name}.json"
    if path.is_file():
        return
    folder = generate(FOLDER / "screens" / str(SCREEN), sites=1, seed=SCREEN, workers=1)
    manifest, pairs = read_manifest(folder), maps.read_pairs(folder / "relationships" / "demo_pairs.csv")
    options, settings = (
        base | change for base, change in zip((OPTIONS, RECIPE), VARIANTS[name], strict=True)
    )
    settings = {k: v for k, v in settings.items() if k != "model"}
    per_crop, base = (flops_per_crop(o, len(manifest.channels)) for o in (options, OPTIONS))
    budget = BASE_STEPS * 16 * base
    settings["steps"] = round(budget / per_crop / settings["batch_size"])
    out = FOLDER / "fast_cpu" / name.replace(" ", "_")
    began = time.perf_counter()
    run = camae.train(
        manifest,
        str(RECIPE["model"]),
        out=out,
        model_options=options,
        val="plate",
        val_every=max(1, settings["steps"] // 12),
        checkpoint_every=10**6,
        quiet=True,
        **settings,
    )
    seconds = time.perf_counter() - began
    table = camae.embed_screen(
        manifest, run.model, out / "embeddings", tiles="grid", pool="per_channel", quiet=True
    )
    found = scored(table, pairs, len(manifest.channels), held_out_half(manifest, SCREEN))["per_channel"]
    curve = [(r["crops"] * per_crop / 1e12, r["val_loss"]) for r in run.history if "val_loss" in r]
    row = {"name": name, "steps": settings["steps"], "tflops": budget / 1e12, "seconds": seconds}
    row |= {"curve": curve, "commit": commit()} | found
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)
    print(json.dumps(row))


def flops_per_crop(options: dict[str, Any], channels: int) -> float:
    """FLOPs of a forward and a backward pass of one crop."""
    config = camae.model.preset(str(RECIPE["model"]), channels=tuple(map(str, range(channels))), **options)
    return model_flops(config, (channels,), config.mask_ratio).training


if __name__ == "__main__":
    for variant in sys.argv[1:] or VARIANTS:
        main(variant)
