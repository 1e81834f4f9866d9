"""Demo pipeline (`camae demo`): generate a screen, train, embed, align, score recall, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from camae import maps
from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.embedding import embed_screen
from camae.embedding_table import features_of, make_table, write_table
from camae.files import write_json, write_text
from camae.kernels.op_table import op_backends
from camae.maps.pairs import read_pairs
from camae.maps.perturbation_map import ScreenMap, map_screen
from camae.model import CAMAE, preset
from camae.model.interface import Model
from camae.progress import count_bar, plain_printer
from camae.reporting import report
from camae.reporting.run_folder import RunSummary, Score
from camae.reproduction.demo.generate_screen import generate
from camae.reproduction.demo.screen_parameters import ScreenParameters
from camae.reproduction.model_settings import ADAMW, SMALL_CA_MAE, TrainingSettings
from camae.reproduction.systems.pixel import pixel_table
from camae.reproduction.systems.random import random_table
from camae.training import Run, train
from camae.versions import versions

MODEL = "ca_mae_vit_ti16"
MODEL_OPTIONS = SMALL_CA_MAE
RECIPE: TrainingSettings = {
    **ADAMW,
    "steps": 400,
    "batch_size": 16,
    "val": "plate",
    "checkpoint_every": 200,
}
# Each channel's mean, concatenated (paper, Figure 4): a mean over all channels needs an encoder that tells them apart.
POOL = "per_channel"
BOOTSTRAP = 2000
SYSTEMS = ("random", "pixel", "untrained", "trained")

Tables = Mapping[str, Sequence[pd.DataFrame]]


def run_demo(
    out: str | Path = "runs/demo",
    *,
    seeds: int = 3,
    screen_seed: int = ScreenParameters.seed,
    console: Console | None = None,
) -> RunSummary:
    """Run the whole pipeline on a generated screen and return the summary (also in `summary.json`).

    Writes `screen/`, `models/seed-*/`, `embeddings/*.parquet`, `summary.json`, `report.html` and the tables the
    report draws from. A second call continues what a first left unfinished. seeds: number of trainings to pool.
    screen_seed: another seed makes another screen of the same kind, with other phenotypes, pairs and batch effects.
    """
    out, say = Path(out), plain_printer(console)
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
    baselines = _baselines(manifest, trained[0], seeds, out)
    tables = {"trained": trained, "untrained": untrained, **baselines}
    summary = _evaluate(tables, pairs, out)
    summary.update(_run_facts(manifest, runs, len(trained[0])))
    summary["pairs"] = len(pairs)
    summary["seconds"] = time.perf_counter() - began
    write_json(out / "summary.json", dict(summary))
    say("5/5 report")
    _say_results(say, summary, out, report(out))
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
    manifest: Manifest, like: pd.DataFrame, seeds: int, out: Path
) -> dict[str, list[pd.DataFrame]]:
    """Pixel-intensity statistics, and random vectors of the embeddings' width for each seed."""
    width = features_of(like).shape[1]
    pixel = pixel_table(manifest)
    write_table(out / "embeddings" / "pixel.parquet", pixel, {"system": "pixel"})
    return {"random": [random_table(like, width, seed) for seed in range(seeds)], "pixel": [pixel]}


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


def _evaluate(tables: Tables, pairs: np.ndarray, out: Path) -> RunSummary:
    """Recall of every system after TVN and without it, pooled over seeds; writes the tables the report draws from."""
    aligned = {system: [map_screen(wells, "tvn") for wells in seeds] for system, seeds in tables.items()}
    unaligned = {system: [map_screen(wells, "none") for wells in seeds] for system, seeds in tables.items()}
    trained = aligned["trained"]
    difference = maps.recall_difference(
        _vectors(trained), _vectors(aligned["untrained"]), trained[0].names, pairs
    )
    _write_curves(aligned, pairs, out)
    _write_map(trained[0], pairs, out)
    return {
        "alignment": {"method": "tvn", "batch": "plate", **trained[0].options},
        "recall": {system: _pooled_recall(seeds, pairs) for system, seeds in aligned.items()},
        "recall_without_alignment": {
            system: _pooled_recall(seeds, pairs) for system, seeds in unaligned.items()
        },
        "trained_minus_untrained": _score(difference["difference"]),
    }


def _vectors(seeds: Sequence[ScreenMap]) -> list[np.ndarray]:
    return [mapped.vectors for mapped in seeds]


def _score(values: Mapping[str, float]) -> Score:
    return {"value": values["value"], "se": values["se"]}


def _pooled_recall(seeds: Sequence[ScreenMap], pairs: np.ndarray) -> Score:
    """Recall over all seeds of one system; every map of the screen has the same names in the same order."""
    return _score(maps.pooled_recall(_vectors(seeds), seeds[0].names, pairs, bootstrap=BOOTSTRAP))


def _write_curves(aligned: Mapping[str, Sequence[ScreenMap]], pairs: np.ndarray, out: Path) -> None:
    """`recall_curves.csv`: recall against percentile of every system, mean over seeds."""
    curves = []
    for system, seeds in aligned.items():
        per_seed = pd.concat([maps.recall_curve(m.vectors, m.names, pairs) for m in seeds])
        mean = per_seed.groupby("percentile", as_index=False)["recall"].mean()
        curves.append(mean.assign(system=system))
    write_text(out / "recall_curves.csv", pd.concat(curves).to_csv(index=False))


def _write_map(mapped: ScreenMap, pairs: np.ndarray, out: Path) -> None:
    """`relationships.csv` (the 100 strongest, known ones marked) and `map.parquet` of one map."""
    strongest = maps.strongest(mapped.vectors, mapped.names, count=100, side="both")
    known = {frozenset(pair) for pair in pairs}
    strongest["known"] = [
        frozenset(pair) in known for pair in zip(strongest["a"], strongest["b"], strict=True)
    ]
    write_text(out / "relationships.csv", strongest.to_csv(index=False))
    table = make_table(pd.DataFrame({"Metadata_Perturbation": mapped.names}), mapped.vectors)
    write_table(out / "map.parquet", table, {"system": "trained, seed 0, TVN"})


def _say_results(say: Callable[[str], None], summary: RunSummary, out: Path, page: Path) -> None:
    say(
        f"{summary['wells']} wells embedded in {summary['seconds']:.0f} s; recall of {summary['pairs']} true pairs:"
    )
    for system in SYSTEMS:
        score = summary["recall"][system]
        say(f"  {system:<10} {score['value']:.3f} +- {score['se']:.3f}")
    gain = summary["trained_minus_untrained"]
    say(f"  trained - untrained {gain['value']:+.3f} +- {gain['se']:.3f}")
    say(f"screen: {out / 'screen'}  models: {out / 'models'}  embeddings: {out / 'embeddings'}")
    say(f"report: {page}")
