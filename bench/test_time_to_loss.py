"""Training to the same validation loss: camae beside a plain eager loop of the same encoder, decoder and schedule.

By default seconds on a tiny screen. --full takes the demo screen (CAMAE_BENCH_SCREEN: one that is already drawn).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import plain_mae
import pytest
import torch
from rows import append_row
from training_setup import DECODER, ENCODER, SETTINGS, TINY

import camae
from camae.dataloader import read_manifest
from camae.dataloader.center_crops import center_batch
from camae.model import CAMAE, preset
from camae.training.data import open_data, split
from camae.training.evaluation import validate
from camae.training.optimization import learning_rate

Curve = list[tuple[int, float, float]]  # step, seconds, validation loss
ALPHA, SEED = 0.01, 0


def plain_validation(rows: list[int], manifest: Any, alpha: float, model: plain_mae.PlainMAE) -> float:
    """The loss of the plain model on the crops and masks of `validate`."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    with torch.no_grad():
        for start in range(0, len(rows), 8):
            batch, _ = center_batch(manifest, rows[start : start + 8], model.c.crop)
            images = batch.planes_KHW.float().unflatten(0, (-1, len(batch.channels)))
            noise = torch.rand(images.shape[0] * images.shape[1] * model.c.n_patches, generator=generator)
            loss = model(plain_mae.standardize(images), noise.reshape(len(images), -1), 0.75, alpha)
            total += float(loss) * len(images) / len(rows)
    return total


def first_below(curve: list[tuple[int, float, float]], goal: float) -> tuple[int, float] | None:
    """(step, seconds) of the first validation at or below `goal`."""
    return next(((step, seconds) for step, seconds, loss in curve if loss <= goal), None)


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def plain_curve(plain: plain_mae.PlainMAE, training: Any, rows: list[int], held: Any, **run: Any) -> Curve:
    """Validation losses of the plain loop."""
    return plain_mae.train(
        plain,
        [[str(training.path(i, c)) for c in training.channels] for i in range(len(training))],
        lr=partial(learning_rate, steps=run["steps"], peak=3e-3, schedule="onecycle", warmup=0.1),
        alpha=ALPHA,
        ratio=0.75,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        seed=SEED,
        validate=partial(plain_validation, rows, held, ALPHA),
        **run,
    )


def our_curve(screen: Path, out: Path, batch_size: int, **training: Any) -> Curve:
    """Validation losses of `camae.train`; seconds are those of training alone."""
    run = camae.train(
        screen, "ca_mae_vit_ti16", out=out, seed=SEED, alpha=ALPHA, batch_size=batch_size, **training
    )
    curve, seconds, last = [], 0.0, 0
    for row in run.history:
        seconds += (row["step"] - last) * batch_size / row["crops_per_second"]
        last = row["step"]
        if "val_loss" in row:
            curve.append((last, seconds, row["val_loss"]))
    return curve


def compared(ours: Curve, theirs: Curve) -> dict[str, Any]:
    """When both first reach the loss that both reach: a fixed number would tie the row to one screen."""
    goal = max(min(loss for *_, loss in curve) for curve in (ours, theirs))
    mine, plain = first_below(ours, goal), first_below(theirs, goal)
    assert mine is not None
    assert plain is not None
    ratios = {}
    for level in (0.7, 0.6, 0.55, 0.5):
        there, here = first_below(theirs, level), first_below(ours, level)
        if there is not None and here is not None:
            ratios[str(level)] = there[1] / here[1]
    return {
        "goal": goal,
        "seconds_to_goal": {"ours": mine[1], "plain": plain[1]},
        "steps_to_goal": {"ours": mine[0], "plain": plain[0]},
        "ratio": plain[1] / mine[1],
        "ratio_at_earlier_losses": ratios,
        "seconds_of_all_steps": {"ours": ours[-1][1], "plain": theirs[-1][1]},
        "curves": {"columns": ["step", "seconds", "validation loss"], "ours": ours, "plain": theirs},
    }


def test_time_to_loss(full: bool, screen: Path, tmp_path: Path) -> None:
    """Seconds until the validation loss is what the plain loop ends with: the same start, decoder and schedule."""
    steps, every, encoder = (300, 20, ENCODER) if full else (6, 2, TINY)
    settings = SETTINGS | ({} if full else {"batch_size": 4})
    training, held = split(read_manifest(screen), "plate")
    assert held is not None
    options = encoder | {"decoder": DECODER}
    torch.manual_seed(SEED)
    start = CAMAE(preset("ca_mae_vit_ti16", channels=tuple(training.channels), **options))
    plain = plain_mae.PlainMAE(start)
    rows = list(range(0, len(held), max(1, len(held) // 32)))[:32]

    def losses(batch: Any, noise: torch.Tensor, manifest: Any) -> dict[str, torch.Tensor]:
        return start(batch, noise, mask_ratio=0.75, alpha=ALPHA)

    # The check before any timing: both models are one function. fp32, sums of some thousand terms of order one.
    ours_at_start = validate(open_data(held), start, losses)["val_loss"]
    assert plain_validation(rows, held, ALPHA, plain.eval()) == pytest.approx(ours_at_start, rel=1e-4)

    # First, because training here also sets how this process treats freed memory.
    cpu = {"plain": -cpu_seconds()}
    theirs = plain_curve(
        plain, training, rows, held, steps=steps, batch_size=settings["batch_size"], every=every
    )
    cpu["plain"] += cpu_seconds()
    cpu["ours"] = -cpu_seconds()
    ours = our_curve(
        screen, tmp_path / "ours", steps=steps, model_options=options, val_every=every, **settings
    )
    cpu["ours"] += cpu_seconds()
    row = {
        "op": "training",
        "case": "time to a validation loss",
        "shape": [settings["batch_size"], len(training.channels), encoder["crop"], encoder["crop"]],
        "decoder": DECODER,
        "target": "at least 2",
        "cpu_seconds_validation_included": cpu,
    } | compared(ours, theirs)
    append_row("training.jsonl", row, full=full)
    print({name: value for name, value in row.items() if name not in ("decoder", "curves")})
