"""`camae demo`: make a screen, train, embed, align, recall, report; every part through the public functions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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
from camae.maps.pair_files import read_pairs
from camae.maps.screen import map_screen
from camae.model import CAMAE, preset
from camae.reproduction.demo.generate_screen import generate
from camae.reproduction.demo.screen_parameters import ScreenParameters
from camae.reproduction.systems.pixel import pixel_table
from camae.training import Run, train
from camae.versions import versions

MODEL = "ca_mae_vit_ti16"
# A small encoder: two cores must train three of them. Everything else is the preset's, LayerScale 1e-4 included.
MODEL_OPTIONS: dict[str, Any] = {
    "crop": 128,
    "width": 96,
    "depth": 4,
    "heads": 3,
    "drop_path": 0.0,
    "decoder": {
        "width": 64,
        "depth": 1,
        "heads": 4,
        "cross_heads": 4,
        "context": "visible",
        "cross_residual": True,
        "local_start": True,
    },
}
RECIPE: dict[str, Any] = {
    "steps": 400,
    "batch_size": 16,
    "optimizer": "adamw",
    "lr": 3e-3,
    "val": "plate",
    "checkpoint_every": 200,
}
# Each channel's mean, concatenated (paper, Figure 4): a mean over all channels needs an encoder that tells them apart.
POOL = "per_channel"
BOOTSTRAP = 2000


def run_demo(
    out: str | Path = "runs/demo",
    *,
    seeds: int = 3,
    screen_seed: int = ScreenParameters.seed,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the whole product on a generated screen and return the summary (also in `summary.json`).

    Writes `screen/`, `models/seed-*/`, `embeddings/*.parquet`, `summary.json`, `report.html` and the tables the
    report draws from. A second call continues what a first left unfinished. seeds: trainings to pool. screen_seed:
    another one makes another screen of the same kind, with other phenotypes, pairs and batch effects.
    """
    out, say = Path(out), (console or Console()).print
    began = time.perf_counter()
    say(f"[bold]1/5[/] a small screen in {out / 'screen'}")
    screen = generate(out / "screen", seed=screen_seed)
    manifest = read_manifest(screen)
    pairs = read_pairs(screen / "relationships" / "demo_pairs.csv")
    tables: dict[str, list[pd.DataFrame]] = {"trained": [], "untrained": []}
    runs = []
    for seed in range(seeds):
        say(f"[bold]2/5[/] training, seed {seed}")
        runs.append(_train(manifest, out / "models" / f"seed-{seed}", seed))
        say(f"[bold]3/5[/] embedding, seed {seed}: the trained encoder and the same untrained")
        tables["trained"].append(_embed(manifest, runs[-1].model, out, f"trained-seed{seed}"))
        tables["untrained"].append(_embed(manifest, untrained(manifest, seed), out, f"untrained-seed{seed}"))
    say("[bold]4/5[/] baselines, alignment, recall of the true pairs")
    tables |= _baselines(manifest, tables["trained"][0], seeds, out)
    summary = _evaluate(tables, pairs, out)
    summary |= {
        "wells": len(tables["trained"][0]),
        "sites": len(manifest),
        "seeds": seeds,
        "pairs": len(pairs),
        "training_crops": sum(run.history[-1]["crops"] for run in runs),
        "versions": versions(),
        "device": str(runs[0].model.device),
        "backends": op_backends(),
        "seconds": time.perf_counter() - began,
    }
    write_json(out / "summary.json", summary)
    say("[bold]5/5[/] report")
    from camae.reporting import report

    page = report(out)
    _say_results(say, summary, out, page)
    return summary


def _train(manifest: Manifest, folder: Path, seed: int) -> Run:
    return train(manifest, MODEL, folder, seed=seed, model_options=MODEL_OPTIONS, **RECIPE)


def untrained(manifest: Manifest, seed: int) -> CAMAE:
    """The encoder of `seed` before its first step: same initial weights, positions and standardization."""
    torch.manual_seed(seed)
    return CAMAE(preset(MODEL, channels=tuple(manifest.channels), **MODEL_OPTIONS)).eval()


def _embed(manifest: Manifest, model: CAMAE, out: Path, name: str) -> pd.DataFrame:
    wells = embed_screen(manifest, model, out / "embeddings" / "work" / name, tiles="grid", pool=POOL)
    write_table(out / "embeddings" / f"{name}.parquet", wells, {"system": name})
    return wells


def _baselines(
    manifest: Manifest, like: pd.DataFrame, seeds: int, out: Path
) -> dict[str, list[pd.DataFrame]]:
    """Pixel-intensity statistics, and random vectors for each seed, in tables like the embeddings'."""
    metadata = like.filter(regex="^Metadata_")
    width = features_of(like).shape[1]
    pixel = pixel_table(manifest)
    write_table(out / "embeddings" / "pixel.parquet", pixel, {"system": "pixel"})
    random = [
        make_table(metadata, np.random.default_rng(seed).standard_normal((len(metadata), width)))
        for seed in range(seeds)
    ]
    return {"random": random, "pixel": [pixel]}


def _evaluate(tables: dict[str, list[pd.DataFrame]], pairs: np.ndarray, out: Path) -> dict[str, Any]:
    """Recall of every system after TVN, pooled over seeds; curves and the strongest relationships as files."""
    mapped = {system: [map_screen(t, "tvn") for t in ts] for system, ts in tables.items()}
    names = mapped["trained"][0].names
    recall = {
        system: maps.pooled_recall([m.vectors for m in ms], names, pairs, bootstrap=BOOTSTRAP)
        for system, ms in mapped.items()
    }
    vectors = {system: [m.vectors for m in ms] for system, ms in mapped.items()}
    difference = maps.recall_difference(vectors["trained"], vectors["untrained"], names, pairs)
    unaligned = {
        system: maps.pooled_recall(
            [map_screen(t, "none").vectors for t in ts], names, pairs, bootstrap=BOOTSTRAP
        )
        for system, ts in tables.items()
    }
    curves = []
    for system, ms in mapped.items():
        per_seed = pd.concat([maps.recall_curve(m.vectors, names, pairs) for m in ms])
        mean = per_seed.groupby("percentile", as_index=False)["recall"].mean()
        curves.append(mean.assign(system=system))
    write_text(out / "recall_curves.csv", pd.concat(curves).to_csv(index=False))
    best = mapped["trained"][0].vectors
    strongest = maps.strongest(best, names, count=100, side="both")
    known = {frozenset(p) for p in pairs}
    strongest["known"] = [frozenset(p) in known for p in zip(strongest["a"], strongest["b"], strict=True)]
    write_text(out / "relationships.csv", strongest.to_csv(index=False))
    map_table = make_table(pd.DataFrame({"Metadata_Perturbation": names}), best)
    write_table(out / "map.parquet", map_table, {"system": "trained, seed 0, TVN"})
    return {
        "alignment": {"method": "tvn", "batch": "plate"} | mapped["trained"][0].options,
        "recall": recall,
        "recall_without_alignment": unaligned,
        "trained_minus_untrained": difference["difference"],
    }


def _say_results(say: Any, summary: dict[str, Any], out: Path, page: Path) -> None:
    say(
        f"{summary['wells']} wells embedded in {summary['seconds']:.0f} s; recall of {summary['pairs']} true pairs:"
    )
    for system in ("random", "pixel", "untrained", "trained"):
        score = summary["recall"][system]
        say(f"  {system:<10} {score['value']:.3f} +- {score['se']:.3f}")
    gain = summary["trained_minus_untrained"]
    say(f"  trained - untrained {gain['value']:+.3f} +- {gain['se']:.3f}")
    say(f"screen: {out / 'screen'}  models: {out / 'models'}  embeddings: {out / 'embeddings'}")
    say(f"report: {page}")
