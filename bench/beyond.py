"""Beyond the paper: does a training option help? Small CA-MAEs with and without it, at the same compute.

`python bench/beyond.py ARM DATA [SIZE [train]]` trains one arm and scores it, or leaves the scores to a later call.
DATA: the seed of a generated screen, or jurkat-SEED (CAMAE_JURKAT: the folder of the cells). SIZE: "cpu", a minute of
one core, or "gpu". Writes one JSON file under runs/beyond/SIZE; a second call does nothing. "small_taught" needs the
"plain" of the same data first. `python bench/beyond_rows.py [SIZE]` makes rows and figures of them.

Everything that could be chosen is fixed here, before any result: the screens, the seeds, the steps, the read-outs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from data import jurkat
from rows import ROOT, commit

import camae
from camae import maps
from camae.dataloader import Manifest, read_manifest
from camae.embedding_table import feature_columns, features_of
from camae.evaluate.config import EvaluateConfig
from camae.evaluate.missing_channels import without
from camae.evaluate.scores import labeled_wells, score, standardized
from camae.files import write_json
from camae.model import CAMAE, preset
from camae.omissions import Omissions
from camae.reproduction.demo.generate_screen import generate
from camae.reproduction.systems.pixel import pixel_table

# Screens that nothing was chosen on: none of them was drawn before this file was written.
SCREENS = (5201, 5202, 5203)
# Screens that the share of hidden planes is chosen on, before it is seen on SCREENS: of the shares whose recall of all
# channels is at most RECALL_GIVEN below that of "plain", the one with the smallest drop of recall a missing channel
# costs (features of each channel; means over these screens).
CHOOSING = (4001, 4002)
RECALL_GIVEN = 0.02
# Drawn after SCREENS had been seen, for a smaller error: reported apart.
LATER = (4003, 4004)
LAYER_SPLITS = range(8)
FOLDER = ROOT / "runs" / "beyond"

Setup = tuple[str, dict[str, Any], dict[str, Any]]  # preset, model options, training settings


@dataclass(frozen=True)
class Size:
    """What every arm trains: on a screen, on the cells, as a student of the screen's plain arm; seeds on the cells."""

    screen: Setup
    jurkat: Setup
    student: Setup
    jurkat_seeds: tuple[int, ...]
    fold_seeds: tuple[int, ...]


def small_decoder(width: int) -> dict[str, Any]:
    """Two cross-attentions to the visible tokens, half of the masked patches."""
    local = {"context": "visible", "cross_residual": True, "local_start": True, "part": 0.5}
    return {"width": width, "depth": 0, "cross_depth": 2, "heads": 4, "cross_heads": 4, **local}


def encoder(width: int, depth: int, heads: int, decoder: int) -> dict[str, Any]:
    """Options of a small encoder. decoder: width of its decoder."""
    sizes = {"width": width, "depth": depth, "heads": heads, "decoder": small_decoder(decoder)}
    return {**sizes, "drop_path": 0.0, "layer_scale": 1.0}


ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 3e-3, "quiet": True, "checkpoint_every": 10**6}
# 0.17 M parameters, a small part of what the demo trains.
SMALL = encoder(64, 3, 2, 48)
# 6.5 M parameters; 32 times the crops. On the cells 2.7 M.
MEDIUM = encoder(256, 8, 4, 128)
CELLS = encoder(192, 6, 3, 64)
SIZES = {
    "cpu": Size(
        screen=("ca_mae_vit_ti16", {"crop": 128, **SMALL}, {"steps": 300, "batch_size": 16, "val": "plate"}),
        jurkat=("ca_mae_vit_ti8", {"crop": 40, **SMALL}, {"steps": 500, "batch_size": 64}),
        student=("ca_mae_vit_ti16", {"crop": 128, **SMALL}, {"steps": 300, "batch_size": 16, "val": "plate"}),
        jurkat_seeds=(0, 1, 2),
        fold_seeds=(0, 1),
    ),
    "gpu": Size(
        screen=(
            "ca_mae_vit_ti16",
            {"crop": 128, **MEDIUM},
            {"steps": 1200, "batch_size": 128, "val": "plate", "lr": 1e-3},
        ),
        jurkat=("ca_mae_vit_ti8", {"crop": 40, **CELLS}, {"steps": 800, "batch_size": 256, "lr": 1e-3}),
        student=(
            "ca_mae_vit_ti16",
            {"crop": 128, **SMALL},
            {"steps": 1500, "batch_size": 64, "val": "plate"},
        ),
        jurkat_seeds=(0, 1, 2),
        fold_seeds=(0, 1),
    ),
}

# What an arm adds to the settings; None is the model before its first step.
ARMS: dict[str, dict[str, Any] | None] = {
    "untrained": None,
    "plain": {},
    "mask_channels": {"mask_channels": 0.2},
    "mask_channels_04": {"mask_channels": 0.4},
    "mask_channels_06": {"mask_channels": 0.6},
    # Labels of half of the perturbations, drawn by the seed of the screen; the other half is scored apart.
    "cross_well": {"cross_well": 0.3, "cross_well_label": "Metadata_Replicate"},
    # The small encoder of `Size.student`, alone and with the plain arm's encoder as teacher.
    "small": {},
    "small_taught": {"teacher": "plain"},
}
STUDENTS = ("small", "small_taught")
MASKING_ARMS = ("mask_channels", "mask_channels_04", "mask_channels_06")
CHANNEL_ARMS = ("untrained", "plain", *MASKING_ARMS)  # scored without each channel, too


def main(arm: str, data: str, size: str = "cpu", stage: str = "score") -> None:
    out = FOLDER / size / arm / data
    if (out / "measured.json").is_file():
        return
    began = time.perf_counter()
    found = (
        measure_jurkat(arm, out, int(data.partition("-")[2]), size, stage)
        if data.startswith("jurkat")
        else {}
    )
    if stage == "train":
        return
    found = found or measure_screen(arm, out, int(data), size)
    found |= {
        "arm": arm,
        "data": data,
        "size": size,
        "seconds": time.perf_counter() - began,
        "commit": commit(),
    }
    write_json(out / "measured.json", found)
    print(json.dumps(found))


def trained(arm: str, manifest: Manifest, setup: Setup, out: Path, seed: int = 0) -> Any:
    """The model of an arm in eval mode, and the seconds of its training."""
    name, options, settings = setup
    change = ARMS[arm]
    if change and "teacher" in change:
        change = change | {"teacher": str(out.parents[1] / "plain" / out.name / "model")}
    if change is None:
        torch.manual_seed(seed)
        return CAMAE(preset(name, channels=tuple(manifest.channels), **options)).eval(), 0.0
    kept = out / "model" / "trained.json"
    if kept.is_file():
        return camae.load(out / "model").eval(), json.loads(kept.read_text())["seconds"]
    began = time.perf_counter()
    settings = ADAMW | settings | change
    run = camae.train(manifest, name, out=out / "model", seed=seed, model_options=options, **settings)
    seconds = time.perf_counter() - began
    write_json(kept, {"seconds": seconds, "device": str(run.model.device), "commit": commit()})
    return run.model, seconds


def measure_screen(arm: str, out: Path, seed: int, size: str) -> dict[str, Any]:
    """Scores of all channels, without each of them, and of the blocks."""
    folder = generate(FOLDER / "screens" / str(seed), sites=1, seed=seed, workers=1)
    manifest, pairs = read_manifest(folder), maps.read_pairs(folder / "relationships" / "demo_pairs.csv")
    held_out = held_out_half(manifest, seed)
    known = manifest.table["Metadata_Perturbation"].where(
        ~manifest.table["Metadata_Perturbation"].isin(held_out), ""
    )
    labeled = manifest.with_table(manifest.table.assign(Metadata_Replicate=known))
    setup = SIZES[size].student if arm in STUDENTS else SIZES[size].screen
    model, seconds = trained(arm, labeled, setup, out)
    sets: dict[str, Any] = {}
    pixels: dict[str, Any] = {}
    for names in ((), *((name,) for name in manifest.channels if arm in CHANNEL_ARMS)):
        part, key = without(manifest, names), "+".join(names)
        where = out / "embeddings" / (key or "all")
        table = camae.embed_screen(part, model, where, tiles="grid", pool="per_channel", quiet=True)
        sets[key] = scored(table, pairs, len(part.channels), held_out)
        if arm == "plain" and seed in SCREENS:  # what the channel's absence costs without any encoder
            pixels[key] = scored(pixel_table(part), pairs, 1, held_out)["per_channel"]
    return {
        "train_seconds": seconds,
        "sets": sets,
        "pixels": pixels,
        "layers": layers(manifest, model, out) if arm == "plain" and seed in SCREENS else [],
    }


def held_out_half(manifest: Manifest, seed: int) -> set[str]:
    """Perturbations whose labels no training sees."""
    controls = manifest.table["Metadata_control_type"] == "negcon"
    names = sorted(set(manifest.table["Metadata_Perturbation"][~controls]))
    return set(np.random.default_rng(seed).permutation(names)[: len(names) // 2].tolist())


def scored(
    table: pd.DataFrame, pairs: np.ndarray, channels: int, held_out: set[str]
) -> dict[str, dict[str, float]]:
    """Recall of the known pairs, separability and consistency, by read-out; also of the held-out perturbations alone.

    table: wells, with the features of one channel after another. Read-outs: "per_channel", all of them (as the demo),
    and "mean", their mean over channels, which is pool="mean".
    """
    x_NCD = features_of(table).reshape(len(table), channels, -1)
    metadata = table.filter(regex="^Metadata_").reset_index(drop=True)
    found = {}
    for name, x_ND in (("per_channel", x_NCD.reshape(len(table), -1)), ("mean", x_NCD.mean(1))):
        features = pd.DataFrame(x_ND, columns=feature_columns(x_ND.shape[1]))
        wells = pd.concat([metadata, features], axis=1)
        mapped = maps.map_screen(wells)
        recall = maps.recall(mapped.vectors, mapped.names, pairs, bootstrap=500).iloc[0]
        labeled = labeled_wells(wells, EvaluateConfig(), 2, Omissions())
        found[name] = {"recall": float(recall["recall"]), "recall_se": float(recall["se"])}
        z_MD = standardized(x_ND, labeled)
        found[name] |= score(z_MD, labeled).row()
        found[name] |= {f"held_out_{k}": v for k, v in score(z_MD, labeled, held_out).row().items()}
    return found


def layers(manifest: Manifest, model: Any, out: Path) -> list[dict[str, float]]:
    """Chosen block and last block on the held-out half of the perturbations, for each random half."""
    rows = []
    for seed in LAYER_SPLITS:
        table = camae.evaluate.layers(
            manifest, model, out / "layers", seed=seed, tiles="grid", pool="per_channel", quiet=True
        )
        best, last = table[table["chosen"]].iloc[0], table.iloc[-1]
        row = {"chosen": int(best["block"])}
        for name in ("separability", "consistency"):
            row |= {f"best_{name}": best[f"held_out_{name}"], f"last_{name}": last[f"held_out_{name}"]}
        rows.append({k: float(v) for k, v in row.items()})
    return rows


def measure_jurkat(arm: str, out: Path, seed: int, size: str, stage: str) -> dict[str, Any]:
    """Balanced accuracy over phases with all channels, without each, and of the blocks. Probes by fold seeds."""
    cells = jurkat.read_cells(os.environ["CAMAE_JURKAT"])
    folder = FOLDER / "jurkat"
    manifest = (
        read_manifest(folder / "manifest.csv") if folder.is_dir() else jurkat.write_cells(cells, folder)
    )
    model, seconds = trained(arm, manifest, SIZES[size].jurkat, out, seed)
    if stage == "train":
        return {}
    folds, known = SIZES[size].fold_seeds, cells.experiment_N == jurkat.LABELED
    cells = jurkat.Cells(*(x[known] for x in (cells.planes_NCHW, cells.phase_N, cells.experiment_N)))
    names = tuple(manifest.channels)
    sets, pixels = {}, {}
    for left_out in ("", *names):
        kept = [i for i, name in enumerate(names) if name != left_out]
        planes = cells.planes_NCHW[:, kept]
        x_NCD = embedded(model, planes, [names[i] for i in kept])
        sets[left_out] = {
            "per_channel": accuracies(x_NCD.reshape(len(cells), -1), cells, folds),
            "mean": accuracies(x_NCD.mean(1), cells, folds),
        }
        if arm == "plain":
            pixels[left_out] = accuracies(jurkat.pixel_features(planes), cells, folds)
    chosen = []
    if arm == "plain":
        # (N, L, C, D)
        found = embedded(model, cells.planes_NCHW, list(names), layers=tuple(range(model.config.depth)))
        chosen = chosen_blocks(list(found.swapaxes(0, 1)), cells, folds)
    return {
        "train_seconds": seconds,
        "sets": sets,
        "pixels": pixels,
        "layers": chosen,
    }


def embedded(model: Any, planes: np.ndarray, names: Sequence[str], **options: Any) -> np.ndarray:
    """(N, C, D) float32, or (N, L, C, D) of several blocks, 512 cells at a time."""
    parts = [
        camae.embed(planes[i : i + 512], list(names), model=model, pool="per_channel", **options)
        for i in range(0, len(planes), 512)
    ]
    return np.concatenate(parts)


def accuracies(x_ND: np.ndarray, cells: jurkat.Cells, seeds: Sequence[int]) -> list[float]:
    """Balanced accuracy, mean over the three folds, for each seed of the folds."""
    return [float(np.mean(jurkat.probe(x_ND, cells.phase_N, seed=seed))) for seed in seeds]


def chosen_blocks(
    blocks: Sequence[np.ndarray], cells: jurkat.Cells, seeds: Sequence[int]
) -> list[dict[str, float]]:
    """Chosen block and last block: chosen on a random half of the cells, scored by folds of the other half."""
    found = []
    for seed in seeds:
        half = np.random.default_rng(seed).random(len(cells)) < 0.5
        scores: dict[bool, list[float]] = {True: [], False: []}
        for block in blocks:
            x_ND = block.reshape(len(cells), -1)
            for side, values in scores.items():
                rows = np.flatnonzero(half == side)
                values.append(float(np.mean(jurkat.probe(x_ND[rows], cells.phase_N[rows], seed=seed))))
        chosen = int(np.argmax(scores[True]))
        found.append({"chosen": chosen, "best": scores[False][chosen], "last": scores[False][-1]})
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
