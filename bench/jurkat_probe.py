"""Phases of the cell cycle from real cells: a self-supervised encoder, its untrained twin and pixel statistics.

`python bench/jurkat_probe.py FOLDER` (FOLDER: the cells, see `data/jurkat.py`) trains a small CA-MAE without labels on
all cells and probes the labeled ones. Row: `results/<device>/jurkat.jsonl`; figure: `docs/figures`. A short run,
`--steps 2 --cells 200`, writes neither.

Every system is read by logistic regression in three folds. Of an encoder's tokens (moments per channel) the regression
gets principal components, beside the intensities of the planes. Their number and the penalty are chosen for all systems
alike on folds that are not reported. The standard error of a difference is that of a mean over cells, phase by phase:
hits of both systems on the same cells, averaged over the seeds of the folds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import jurkat
from rows import ROOT, append_row

import camae
from camae.model import CAMAE

PRESET = "ca_mae_vit_ti8"
MODEL: dict[str, Any] = {
    "crop": jurkat.SIDE,
    "width": 96,
    "depth": 4,
    "heads": 3,
    "drop_path": 0.0,
    "layer_scale": 1.0,
    "decoder": {
        "width": 64,
        "depth": 0,
        "heads": 4,
        "cross_depth": 2,
        "cross_heads": 4,
        "context": "visible",
        "cross_residual": True,
        "local_start": True,
        "part": 0.5,
    },
}
RECIPE: dict[str, Any] = {"optimizer": "adamw", "lr": 2e-3, "steps": 400, "batch_size": 64}
CHOOSING_SEED, REPORTED_SEEDS = 100, (0, 1, 2)
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of the regression, tried in this order until accuracy falls
COMPONENTS = (12, 24, 48)  # of an encoder's tokens
CELLS_PER_CALL = 256
CASES = {"all channels": tuple(jurkat.CHANNELS), "without DNA": ("Brightfield", "Darkfield")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--stage", choices=("train", "embed", "probe"), help="what to stop after; default: all"
    )
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    parser.add_argument("--cells", type=int)
    options = parser.parse_args()
    short = options.steps != RECIPE["steps"] or options.cells is not None
    out = ROOT / "runs" / ("jurkat-short" if short else "jurkat")
    cells = subset(jurkat.read_cells(options.folder), options.cells)
    model, seconds = trained(cells, out, options.steps)
    if options.stage == "train":
        return
    labeled = cells.experiment_N == jurkat.LABELED
    planes, phase_N = cells.planes_NCHW[labeled], cells.phase_N[labeled]
    row: dict[str, Any] = {"op": "jurkat", "steps": options.steps, "train_seconds": seconds}
    row |= {"cells": len(cells), "labeled": len(phase_N), "model": MODEL}
    for case, channels in CASES.items():
        found = kept(out / f"{case}.npz", lambda: systems(model, planes, channels))  # noqa: B023
        if options.stage != "embed":
            row[case] = compare(found, phase_N, out / case)
            print(case, row[case], flush=True)
    if not short and options.stage is None:
        append_row("jurkat.jsonl", row, full=True)
        draw(row, ROOT / "docs" / "figures" / "jurkat.png")


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a file, made and written where there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **make())  # type: ignore[arg-type]
    with np.load(path) as file:
        return dict(file)


def subset(cells: jurkat.Cells, count: int | None) -> jurkat.Cells:
    """A part of the cells with all phases: every n-th."""
    step = 1 if count is None else max(1, len(cells) // count)
    return jurkat.Cells(cells.planes_NCHW[::step], cells.phase_N[::step], cells.experiment_N[::step])


def trained(cells: jurkat.Cells, out: Path, steps: int) -> tuple[Any, float]:
    """The encoder trained on all cells, no label read, and the seconds of its steps; goes on where one stopped."""
    folder = out / "cells"
    if not (folder / "manifest.csv").is_file():
        jurkat.write_cells(cells, folder)
    settings = RECIPE | {"steps": steps, "quiet": True, "checkpoint_every": 100}
    run = camae.train(folder / "manifest.csv", PRESET, out=out / "model", model_options=MODEL, **settings)
    seconds = sum(settings["batch_size"] / row["crops_per_second"] for row in run.history)
    return run.model, float(seconds)


def systems(model: Any, planes_NCHW: np.ndarray, channels: Sequence[str]) -> dict[str, np.ndarray]:
    """Features (N, D): "pixel", moments of the tokens of "trained" and "untrained", "intensity" that either adds."""
    torch.manual_seed(0)
    twin = CAMAE(model.config).eval()
    planes_NCHW = planes_NCHW[:, [i for i, channel in enumerate(jurkat.CHANNELS) if channel in channels]]
    found = {"pixel": jurkat.pixel_features(planes_NCHW)}
    options: dict[str, Any] = {"pool": "moments_per_channel", "intensity": True}
    for name, encoder in (("trained", model), ("untrained", twin)):
        parts = [
            camae.embed(planes_NCHW[i : i + CELLS_PER_CALL], list(channels), model=encoder, **options)
            for i in range(0, len(planes_NCHW), CELLS_PER_CALL)
        ]
        x_NCD = np.concatenate(parts)
        width = 2 * encoder.config.width
        found[name], found["intensity"] = flat(x_NCD[..., :width]), flat(x_NCD[..., width:])
    return found


def flat(x_NCD: np.ndarray) -> np.ndarray:
    """(N, C * D)."""
    return x_NCD.reshape(len(x_NCD), -1)


def read_outs(found: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Features of every system by read-out, of which one is chosen."""
    systems: dict[str, dict[str, np.ndarray]] = {n: {"statistics": found[n]} for n in ("pixel", "intensity")}
    for name in ("trained", "untrained"):
        parts = {f"{k} components": components(found[name], k) for k in COMPONENTS}
        systems[f"{name}, tokens alone"] = parts
        systems[name] = {k: np.concatenate([part, found["intensity"]], 1) for k, part in parts.items()}
    return systems


def components(x_ND: np.ndarray, count: int) -> np.ndarray:
    """The first principal components (N, count) of standardized features; no label is read."""
    z_ND = (x_ND - x_ND.mean(0, dtype=np.float64)) / np.maximum(x_ND.std(0, dtype=np.float64), 1e-12)
    return z_ND @ np.linalg.eigh(z_ND.T @ z_ND)[1][:, ::-1][:, :count]


def compare(found: dict[str, np.ndarray], phase_N: np.ndarray, folder: Path) -> dict[str, Any]:
    """Balanced accuracy of every system, what was chosen for it, and the trained encoder less each other system."""
    hits: dict[str, np.ndarray] = {}
    table: dict[str, Any] = {}
    for name, features in read_outs(found).items():
        probed = kept(folder / f"{name}.npz", lambda: probe(features, phase_N))  # noqa: B023
        hits[name] = probed["hits"]
        table[name] = {"read_out": str(probed["read_out"]), "c": float(probed["c"])}
        table[name] |= {"value": balanced(hits[name], phase_N), "se": standard_error(hits[name], phase_N)}
        table[name]["by_phase"] = {str(p): float(hits[name][phase_N == p].mean()) for p in np.unique(phase_N)}
    tokens = ("trained, tokens alone", "untrained, tokens alone")
    return {
        "systems": table,
        "trained_minus": {n: difference(hits["trained"], hits[n], phase_N) for n in hits if n != "trained"},
        "trained_minus_untrained_tokens_alone": difference(*(hits[name] for name in tokens), phase_N),
    }


def difference(hits_N: np.ndarray, others_N: np.ndarray, phase_N: np.ndarray) -> dict[str, float]:
    """Balanced accuracy less that of another system on the same cells, and its standard error."""
    gain_N = hits_N - others_N
    return {"value": balanced(gain_N, phase_N), "se": standard_error(gain_N, phase_N)}


def probe(features: dict[str, np.ndarray], phase_N: np.ndarray) -> dict[str, np.ndarray]:
    """ "hits" (N,), how often each cell's phase is told over the seeds of the folds; what was chosen."""
    chosen = {read_out: choose(x_ND, phase_N) for read_out, x_ND in features.items()}
    read_out = max(chosen, key=lambda name: chosen[name][1])
    c = chosen[read_out][0]
    hits_SN = [
        jurkat.held_out_hits(features[read_out], phase_N, seed=seed, c=c)[0] for seed in REPORTED_SEEDS
    ]
    return {"hits": np.mean(hits_SN, axis=0), "c": np.array(c), "read_out": np.array(read_out)}


def choose(x_ND: np.ndarray, phase_N: np.ndarray) -> tuple[float, float]:
    """The penalty of `PENALTIES` best on the choosing folds, up to the first that does worse, and its accuracy."""
    best_c, best = PENALTIES[0], 0.0
    for c in PENALTIES:
        value = balanced(jurkat.held_out_hits(x_ND, phase_N, seed=CHOOSING_SEED, c=c)[0], phase_N)
        if value < best:
            break
        best_c, best = c, value
    return best_c, best


def balanced(value_N: np.ndarray, phase_N: np.ndarray) -> float:
    """Mean over phases of the mean over cells."""
    return float(np.mean([value_N[phase_N == p].mean() for p in np.unique(phase_N)]))


def standard_error(value_N: np.ndarray, phase_N: np.ndarray) -> float:
    """Standard error of `balanced`, cells drawn independently within each phase: sqrt(sum of var_p / n_p) / phases."""
    parts = [value_N[phase_N == p] for p in np.unique(phase_N)]
    return float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)) / len(parts))


def draw(row: dict[str, Any], path: Path) -> None:
    """Bars of balanced accuracy with standard errors, with all channels and without DNA."""
    from camae.reporting.style import house_style, new_figure, png, strip_axes

    names = ("trained", "untrained", "trained, tokens alone", "untrained, tokens alone", "intensity", "pixel")
    with house_style():
        figure = new_figure(8.0, 3.2)
        for i, case in enumerate(("all channels", "without DNA")):
            axes = strip_axes(figure.add_subplot(1, 2, i + 1), grid="x")
            scores = [row[case]["systems"][name] for name in names]
            places = np.arange(len(names))[::-1]
            axes.barh(places, [s["value"] for s in scores], xerr=[s["se"] for s in scores], height=0.65)
            axes.set_yticks(places, names if i == 0 else [""] * len(names))
            axes.axvline(1 / 7, linestyle="--", linewidth=0.8)
            axes.set_xlim(0, 1)
            axes.set_title(case)
            axes.set_xlabel("balanced accuracy, seven phases\n(dashed: chance)")
        path.write_bytes(png(figure, dpi=150))


if __name__ == "__main__":
    main()
