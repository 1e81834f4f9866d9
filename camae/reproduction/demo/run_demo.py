"""Demo pipeline (`camae demo`): generate a screen, train, embed, align, score recall, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.embedding import embed_screen
from camae.embedding_table import features_of, write_table
from camae.errors import CamaeError
from camae.files import path_of, write_json, write_text
from camae.kernels.op_table import op_backends
from camae.maps.arrays import ArrayBackend, array_backend
from camae.maps.pairs import read_pairs
from camae.model import CAMAE, preset
from camae.model.interface import Model
from camae.progress import count_bar, plain_printer
from camae.reporting import report
from camae.reporting.run_folder import RunSummary, Score
from camae.reporting.verdict import verdict
from camae.reproduction.demo.baselines import (
    oracle_table,
    pixel_baselines,
    position_table,
    shuffled_labels,
)
from camae.reproduction.demo.evaluate import SYSTEMS, evaluate, pool_screens
from camae.reproduction.demo.generate_screen import generate
from camae.reproduction.demo.screen_parameters import ScreenParameters
from camae.reproduction.model_settings import TrainingSettings
from camae.reproduction.systems.pixel import pixel_table
from camae.reproduction.systems.random import random_table
from camae.training import Run, recipes, train
from camae.versions import versions

# What `recipe=fast-cpu` trains. LayerScale 1: with the preset's 1e-4 an untrained encoder is nearly silent, and winning
# against it says nothing.
RECIPE: TrainingSettings = {"recipe": "fast-cpu", "val": "plate", "checkpoint_every": 200}
MODEL = "ca_mae_vit_ti16"
MODEL_OPTIONS: dict[str, object] = recipes.MODEL_OPTIONS["fast-cpu"]
# Per channel (paper, Figure 4): a mean over all channels needs an encoder that tells them apart. Both read-outs of
# `evaluate.read_outs` are in it.
POOL = "moments_per_channel"
# Screens of `--screens`, written down before any of them was drawn. Settings are chosen on other seeds, never on these
# (docs/paper.md).
SCREEN_SEEDS = (3101, 3102, 3103, 3104, 3105)


def run_demo(
    out: str | Path = "runs/demo",
    *,
    seeds: int = 1,
    screen_seed: int = ScreenParameters.seed,
    screens: int = 1,
    backend: str | ArrayBackend = "auto",
    console: Console | None = None,
) -> RunSummary:
    """Run the whole pipeline on a generated screen, or on several, and return the summary (also in `summary.json`).

    Writes `screen/`, `models/seed-*/`, `embeddings/*.parquet`, `summary.json`, `report.html` and the tables the
    report draws from; of several screens into `screens/<seed>/` each, and their pooled summary and report into `out`.
    A second call continues what a first left unfinished. seeds: number of trainings to pool.
    screen_seed: another seed makes another screen of the same kind, with other phenotypes, pairs and batch effects.
    screens: number of screens to pool, the first ones of `SCREEN_SEEDS`; 1 is the screen of `screen_seed`.
    backend: library of the maps, "numpy", "cupy", or "auto": CuPy where it runs.
    Raises CamaeError for numbers that cannot be.
    """
    out, say = path_of(out, "out"), plain_printer(console)
    _check_numbers(seeds, screen_seed, screens)
    arrays = array_backend(backend)
    say(f"arrays: {arrays}")
    if screens == 1:
        summary = _run_screen(out, seeds, screen_seed, arrays, console)
        say("5/5 report")
    else:
        began = time.perf_counter()
        summaries: dict[int, RunSummary] = {}
        for number, seed in enumerate(SCREEN_SEEDS[:screens], 1):
            say(f"screen {number} of {screens}, seed {seed}")
            folder = out / "screens" / str(seed)
            summaries[seed] = _run_screen(folder, seeds, seed, arrays, console)
            report(folder)
        summary = _pooled(out, summaries)
        summary["seconds"] = time.perf_counter() - began
        write_json(out / "summary.json", dict(summary))
    _say_results(say, summary, out, report(out))
    return summary


def _check_numbers(seeds: int, screen_seed: int, screens: int) -> None:
    if seeds < 1:
        raise CamaeError(f"seeds {seeds} is not a number of trainings above 0")
    if not 1 <= screens <= len(SCREEN_SEEDS):
        raise CamaeError(f"screens {screens} is not a number from 1 to {len(SCREEN_SEEDS)}")
    if screens > 1 and screen_seed != ScreenParameters.seed:
        raise CamaeError(
            f"several screens have their own seeds, {', '.join(map(str, SCREEN_SEEDS))}: leave out screen_seed"
        )


def _run_screen(
    out: Path, seeds: int, screen_seed: int, arrays: ArrayBackend, console: Console | None
) -> RunSummary:
    """The pipeline on one screen, and its summary, also in `summary.json`."""
    say = plain_printer(console)
    began = time.perf_counter()
    say(f"1/5 a small screen in {out / 'screen'}")
    with count_bar("drawing wells", console) as progress:
        screen = generate(out / "screen", seed=screen_seed, progress=progress)
    manifest = read_manifest(screen)
    pairs = read_pairs(screen / "relationships" / "demo_pairs.csv")
    runs: list[Run] = []
    trained: list[pd.DataFrame] = []
    untrained: list[pd.DataFrame] = []
    for seed in range(seeds):
        say(f"2/5 training, seed {seed}")
        runs.append(_train(manifest, out / "models" / f"seed-{seed}", seed))
        say(f"3/5 embedding, seed {seed}: the trained encoder and the same untrained")
        trained.append(_embed(manifest, runs[-1].model, out, f"trained-seed{seed}"))
        untrained.append(_embed(manifest, untrained_model(manifest, seed), out, f"untrained-seed{seed}"))
    say("4/5 baselines, alignment, recall of the true pairs")
    baselines = _baselines(manifest, trained, screen, out)
    summary = evaluate({"trained": trained, "untrained": untrained, **baselines}, pairs, out, arrays)
    summary.update(_run_facts(manifest, runs, len(trained[0])))
    summary["screen_seed"] = screen_seed
    summary["pairs"] = len(pairs)
    summary["seconds"] = time.perf_counter() - began
    write_json(out / "summary.json", dict(summary))
    return summary


def untrained_model(manifest: Manifest, seed: int) -> CAMAE:
    """The model of `seed` before its first training step: same initial weights, positions and standardization."""
    torch.manual_seed(seed)
    return CAMAE(preset(MODEL, channels=tuple(manifest.channels), **MODEL_OPTIONS)).eval()


def _train(manifest: Manifest, folder: Path, seed: int) -> Run:
    return train(manifest, MODEL, out=folder, seed=seed, model_options=MODEL_OPTIONS, **RECIPE)


def _embed(manifest: Manifest, model: Model, out: Path, name: str) -> pd.DataFrame:
    wells = embed_screen(manifest, model, out / "embeddings" / "work" / name, tiles="grid", pool=POOL)
    write_table(out / "embeddings" / f"{name}.parquet", wells, {"system": name})
    return wells


def _baselines(
    manifest: Manifest, trained: Sequence[pd.DataFrame], screen: Path, out: Path
) -> dict[str, list[pd.DataFrame]]:
    """Tables of the systems without an encoder, of shuffled labels, and of random vectors as wide as mean read-outs."""
    like = trained[0]
    single = {
        **pixel_baselines(manifest),
        "pixel": pixel_table(manifest),
        "position": position_table(like),
        "oracle": oracle_table(like, screen),
    }
    for name, table in single.items():
        write_table(out / "embeddings" / f"{name}.parquet", table, {"system": name})
    width = features_of(like).shape[1] // 2
    return {
        **{name: [table] for name, table in single.items()},
        "random": [random_table(like, width, seed) for seed in range(len(trained))],
        "shuffled": [shuffled_labels(wells, seed) for seed, wells in enumerate(trained)],
    }


def _run_facts(manifest: Manifest, runs: Sequence[Run], wells: int) -> RunSummary:
    """Sizes, device, back-ends and versions of the run."""
    return {
        "wells": wells,
        "sites": len(manifest),
        "seeds": len(runs),
        "training_crops": sum(int(run.history[-1]["crops"]) for run in runs),
        "versions": versions(),
        "device": str(runs[0].model.device),
        "backends": op_backends(),
    }


def _pooled(out: Path, summaries: dict[int, RunSummary]) -> RunSummary:
    """The summary of several screens, with the sums of their sizes; writes their mean recall curves."""
    each = list(summaries.values())
    summary = pool_screens(summaries)
    summary["wells"] = sum(s["wells"] for s in each)
    summary["sites"] = sum(s["sites"] for s in each)
    summary["pairs"] = sum(s["pairs"] for s in each)
    summary["training_crops"] = sum(s["training_crops"] for s in each)
    summary["seeds"], summary["device"] = each[0]["seeds"], each[0]["device"]
    summary["versions"], summary["backends"] = each[0]["versions"], each[0]["backends"]
    curves = pd.concat([pd.read_csv(out / "screens" / str(seed) / "recall_curves.csv") for seed in summaries])
    mean = curves.groupby(["system", "percentile"], as_index=False, sort=False)["recall"].mean()
    write_text(out / "recall_curves.csv", mean.to_csv(index=False))
    return summary


def _interval(score: Score) -> str:
    return (
        f"  95 % interval {score['low']:.3f} to {score['high']:.3f}"
        if "low" in score and "high" in score
        else ""
    )


def _say_results(say: Callable[[str], None], summary: RunSummary, out: Path, page: Path) -> None:
    say(verdict(summary).replace("±", "+-"))
    say(
        f"{summary['wells']} wells embedded in {summary['seconds']:.0f} s; recall of {summary['pairs']} true pairs:"
    )
    for system in SYSTEMS:
        score = summary["recall"][system]
        say(f"  {system:<10} {score['value']:.3f} +- {score['se']:.3f}{_interval(score)}")
    for system in dict.fromkeys((summary["best_baseline"], "untrained")):
        gain = summary["trained_minus"][system]
        say(f"  trained - {system} {gain['value']:+.3f} +- {gain['se']:.3f}{_interval(gain)}")
    if "screens" in summary:
        say(f"screens, models, embeddings and a report of each: {out / 'screens'}")
    else:
        say(f"screen: {out / 'screen'}  models: {out / 'models'}  embeddings: {out / 'embeddings'}")
    say(f"report: {page}")
