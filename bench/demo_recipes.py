"""Encoders larger than the demo's, of several patches and losses, on screens for choosing: what training could reach.

`python bench/demo_recipes.py RECIPE SEED` trains one, scores it beside its untrained twin and `texture`, and writes
runs/demo-recipes/RECIPE/SEED/measured.json; a second call does nothing. `python bench/demo_recipes.py rows` appends
what has run to results/<device>/demo_recipes.jsonl. Recall by each read-out of the demo and by three alignments.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from beyond import MEDIUM
from rows import ROOT, append_row, commit

import camae
from camae import maps
from camae.dataloader import read_manifest
from camae.embedding_table import features_of
from camae.files import write_json
from camae.model import CAMAE, preset
from camae.reproduction.demo.baselines import pixel_baselines
from camae.reproduction.demo.evaluate import read_outs
from camae.reproduction.demo.generate_screen import generate

# Screens to choose on; the demo's own and its five seeds are never among them.
SCREENS = (4001, 4002)
FOLDER = ROOT / "runs" / "demo-recipes"
ALIGNMENTS = ("tvn", "tvn_shrunk", "replicate_whitening")
PRESET = "ca_mae_vit_ti16"
SETTINGS: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "batch_size": 64, "steps": 1500}
# name -> (model options, training settings)
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "patch16": ({"crop": 128}, {}),
    "patch8": ({"crop": 128, "patch": 8}, {}),
    "patch8-fourier": ({"crop": 128, "patch": 8}, {"alpha": 0.5}),
    "patch4": ({"crop": 64, "patch": 4}, {}),
}


def main(recipe: str, seed: int) -> None:
    out = FOLDER / recipe / str(seed)
    if (out / "measured.json").is_file():
        return
    folder = generate(FOLDER / "screens" / str(seed), seed=seed, workers=1)
    manifest, pairs = read_manifest(folder), maps.read_pairs(folder / "relationships" / "demo_pairs.csv")
    options, settings = RECIPES[recipe]
    options = MEDIUM | options  # 6.5 M parameters, 14 times the demo's
    torch.manual_seed(0)
    config = preset(PRESET, channels=tuple(manifest.channels), **options)
    twin = CAMAE(config).eval()
    began = time.perf_counter()
    settings = SETTINGS | settings
    run = camae.train(
        manifest,
        PRESET,
        out=out / "model",
        model_options=options,
        val="plate",
        checkpoint_every=10**6,
        quiet=True,
        **settings,
    )
    found: dict[str, Any] = {"recipe": recipe, "screen": seed, "options": options, "settings": settings}
    found |= {"train_seconds": time.perf_counter() - began, "commit": commit()}
    found["validation"] = [row["val_loss"] for row in run.history if "val_loss" in row][-1]
    for name, model in (("trained", run.model), ("untrained", twin)):
        wells = camae.embed_screen(
            manifest, model, out / name, tiles="grid", pool="moments_per_channel", quiet=True
        )
        np.save(out / f"{name}.npy", features_of(wells).astype(np.float16))
        found[name] = {key: recalls(table, pairs) for key, table in read_outs(wells).items()}
    found["texture"] = recalls(pixel_baselines(manifest)["texture"], pairs)
    found["device"] = str(run.model.device)
    write_json(out / "measured.json", found)
    print(json.dumps(found))


def recalls(wells: pd.DataFrame, pairs: np.ndarray) -> dict[str, float]:
    """Recall of the true pairs by each alignment."""
    found = {}
    for method in ALIGNMENTS:
        mapped = maps.map_screen(wells, method)
        found[method] = float(maps.recall(mapped.vectors, mapped.names, pairs).iloc[0]["recall"])
    return found


def rows() -> None:
    for path in sorted(FOLDER.glob("*/*/measured.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        append_row("demo_recipes.jsonl", {"op": "demo recipe"} | found, full=True, device=found["device"][:4])


if __name__ == "__main__":
    if sys.argv[1] == "rows":
        rows()
    else:
        main(sys.argv[1], int(sys.argv[2]))
