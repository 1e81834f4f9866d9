"""Training: the decoders side by side, time to a validation loss, the Fourier loss, and other channels' screens.

By default seconds on a tiny screen. --full takes the demo screen (CAMAE_BENCH_SCREEN: one that is already drawn)
and writes bench/results/<device>/training.jsonl with the pictures beside it.
"""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plain_mae
import pytest
import tifffile
import torch
from rows import RESULTS, SCRATCH, append_row, device_name, time_cpu

import camae
from camae import maps
from camae.dataloader import Manifest, read_manifest
from camae.dataloader.center_crops import center_batch
from camae.maps.pairs import read_pairs
from camae.maps.perturbation_map import map_screen
from camae.model import CAMAE, preset
from camae.model.config import DECODERS
from camae.model.flops import model_flops
from camae.reporting.figures import loss_curves, save_png
from camae.reproduction.demo.generate_screen import generate
from camae.training.data import open_data, split
from camae.training.evaluation import validate
from camae.training.optimization import learning_rate

DECODER = {
    "width": 64,
    "depth": 0,
    "cross_depth": 2,
    "cross_heads": 4,
    "heads": 4,
    "context": "visible",
    "cross_residual": True,
    "local_start": True,
    "part": 0.65,
}
ENCODER = {"crop": 128, "width": 96, "depth": 4, "heads": 3, "drop_path": 0.0}
SETTINGS = {
    "optimizer": "adamw",
    "lr": 3e-3,
    "batch_size": 16,
    "weight_decay": 0.05,
    "val": "plate",
    "quiet": True,
}
TINY = {"crop": 64, "width": 48, "depth": 2, "heads": 3, "drop_path": 0.0}


@pytest.fixture(scope="module")
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="module")
def screen(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if full and "CAMAE_BENCH_SCREEN" in os.environ:
        return Path(os.environ["CAMAE_BENCH_SCREEN"])
    size = {} if full else {"plates": 2, "sites": 1, "size": 64}
    return generate(tmp_path_factory.mktemp("screen") / "screen", **size)


def folder(full: bool) -> Path:
    path = (RESULTS if full else SCRATCH) / device_name("cpu")
    path.mkdir(parents=True, exist_ok=True)
    return path


def saved_bytes(step: Any) -> int:
    """Bytes of distinct tensors that autograd keeps for the backward pass."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(storages.values())


def test_decoders(full: bool) -> None:
    """FLOPs, memory and crops/s of a training step with each decoder, the same encoder and batch."""
    names = ("DNA", "RNA", "ER", "AGP", "Mito", "Actin")
    crops, size = (2, {}) if full else (2, {"crop": 64, "depth": 2})
    forms = dict(DECODERS) | {"cross, all patches": dataclasses.replace(DECODERS["cross"], part=1.0)}
    generator = torch.Generator().manual_seed(0)
    side = size.get("crop", 256)
    images = torch.randint(0, 4000, (crops, 6, side, side), generator=generator).to(torch.uint16)
    steps, memory, models = {}, {}, {}
    for name, decoder in forms.items():
        if not full:
            decoder = dataclasses.replace(
                decoder, width=64, depth=min(decoder.depth, 1), heads=4, cross_heads=4
            )
        torch.manual_seed(0)
        model = CAMAE(
            preset("ca_mae_vit_ti16", channels=names, drop_path=0.0, decoder=decoder, **size)
        ).train()
        batch = model.as_batch(images, names)
        noise = torch.rand(len(batch.planes_KHW) * model.n_patches(batch), generator=generator)

        def step(model: CAMAE = model, batch: Any = batch, noise: torch.Tensor = noise) -> None:
            model.zero_grad()
            model(batch, noise)["total"].backward()

        memory[name] = saved_bytes(lambda m=model, b=batch, n=noise: m(b, n)["total"])
        steps[name], models[name] = step, model
    times = time_cpu(steps, 3)
    for name, model in models.items():
        flops = model_flops(model.config, (6,) * crops, 0.75)
        plain = model_flops(model.config, (6,) * crops, 0.75, plain=True)
        assert 0 < flops.decoder <= plain.decoder
        row = {
            "op": "decoder",
            "case": name,
            "shape": [crops, 6, side, side],
            "encoder": "ti16",
            "parameters": sum(p.numel() for p in model.decoder.parameters()),
            "decoder_gflops_per_crop": flops.decoder / crops / 1e9,
            "decoder_gflops_per_crop_plain": plain.decoder / crops / 1e9,
            "encoder_gflops_per_crop": (flops.tokenizer + flops.encoder) / crops / 1e9,
            "saved_megabytes_per_crop": memory[name] / crops / 1e6,
            "crops_per_second": crops / times[name].median,
            "seconds": dataclasses.asdict(times[name]),
        }
        append_row("training.jsonl", row, full=full)


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


def test_time_to_loss(full: bool, screen: Path, tmp_path: Path) -> None:
    """Seconds until the validation loss is what the plain loop ends with: the same start, decoder and schedule."""
    steps, every, encoder = (300, 20, ENCODER) if full else (6, 2, TINY)
    alpha, seed, settings = 0.01, 0, SETTINGS | ({} if full else {"batch_size": 4})
    training, held = split(read_manifest(screen), "plate")
    assert held is not None
    options = encoder | {"decoder": DECODER}
    torch.manual_seed(seed)
    start = CAMAE(preset("ca_mae_vit_ti16", channels=tuple(training.channels), **options))
    plain = plain_mae.PlainMAE(start)
    rows = list(range(0, len(held), max(1, len(held) // 32)))[:32]

    def losses(batch: Any, noise: torch.Tensor, manifest: Any) -> dict[str, torch.Tensor]:
        return start(batch, noise, mask_ratio=0.75, alpha=alpha)

    # The check before any timing: both models are one function. fp32, sums of some thousand terms of order one.
    ours_at_start = validate(open_data(held), start, losses)["val_loss"]
    assert plain_validation(rows, held, alpha, plain.eval()) == pytest.approx(ours_at_start, rel=1e-4)

    # First, because training here also sets how this process treats freed memory.
    cpu = {"plain": -cpu_seconds()}
    theirs = plain_mae.train(
        plain,
        [[str(training.path(i, c)) for c in training.channels] for i in range(len(training))],
        steps=steps,
        batch_size=settings["batch_size"],
        lr=partial(learning_rate, steps=steps, peak=3e-3, schedule="onecycle", warmup=0.1),
        alpha=alpha,
        ratio=0.75,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        seed=seed,
        every=every,
        validate=partial(plain_validation, rows, held, alpha),
    )
    cpu["plain"] += cpu_seconds()
    cpu["ours"] = -cpu_seconds()
    run = camae.train(
        screen,
        "ca_mae_vit_ti16",
        out=tmp_path / "ours",
        steps=steps,
        seed=seed,
        alpha=alpha,
        model_options=options,
        val_every=every,
        **settings,
    )
    ours, seconds, last = [], 0.0, 0
    for row in run.history:
        seconds += (row["step"] - last) * settings["batch_size"] / row["crops_per_second"]
        last = row["step"]
        if "val_loss" in row:
            ours.append((last, seconds, row["val_loss"]))
    cpu["ours"] += cpu_seconds()
    # The loss that both reach: a fixed number for the demo screen would tie the row to one version of it.
    goal = max(min(loss for *_, loss in curve) for curve in (ours, theirs))
    reached = {"ours": first_below(ours, goal), "plain": first_below(theirs, goal)}
    ratios = {}
    for level in (0.7, 0.6, 0.55, 0.5):
        points = [first_below(curve, level) for curve in (theirs, ours)]
        if all(points):
            ratios[str(level)] = points[0][1] / points[1][1]  # type: ignore[index]
    row = {
        "op": "training",
        "case": "time to a validation loss",
        "shape": [settings["batch_size"], len(training.channels), encoder["crop"], encoder["crop"]],
        "decoder": DECODER,
        "goal": goal,
        "seconds_to_goal": {name: point[1] for name, point in reached.items() if point},
        "steps_to_goal": {name: point[0] for name, point in reached.items() if point},
        "ratio": reached["plain"][1] / reached["ours"][1],  # type: ignore[index]
        "ratio_at_earlier_losses": ratios,
        "seconds_of_all_steps": {"ours": ours[-1][1], "plain": theirs[-1][1]},
        "cpu_seconds_validation_included": cpu,
        "target": "at least 2",
        "curves": {"columns": ["step", "seconds", "validation loss"], "ours": ours, "plain": theirs},
    }
    append_row("training.jsonl", row, full=full)
    print(
        {
            k: row[k]
            for k in (
                "goal",
                "seconds_to_goal",
                "steps_to_goal",
                "ratio",
                "seconds_of_all_steps",
                "cpu_seconds_validation_included",
            )
        }
    )


def radial_spectrum(patches_MPP: torch.Tensor) -> torch.Tensor:
    """(P/2,) mean Fourier magnitude at integer radii 1 .. P/2 cycles per patch."""
    P = patches_MPP.shape[-1]
    f = torch.fft.fftfreq(P) * P
    radius = (f[:, None].square() + f[None].square()).sqrt().round().long()
    magnitude = torch.fft.fft2(patches_MPP).abs().mean(0)
    return torch.stack([magnitude[radius == r].mean() for r in range(1, P // 2 + 1)])


def spectra(model: CAMAE, manifest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Radial spectra of masked patches as reconstructed and as they are, on held-out sites."""
    rows = list(range(0, len(manifest), max(1, len(manifest) // 16)))[:16]
    batch, _ = center_batch(manifest, rows, model.config.crop)
    images = batch.planes_KHW.unflatten(0, (len(rows), -1))
    noise = torch.rand(
        len(rows), images.shape[1] * model.config.n_patches, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        patches, mask = model.reconstruct(images, list(batch.channels), noise, 0.75)
    target = plain_mae.patchify(plain_mae.standardize(images.float()), model.config.patch)
    side = (model.config.patch, model.config.patch)
    return tuple(radial_spectrum(x[mask == 1].unflatten(1, side)) for x in (patches, target))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are kept: CAMAE_BENCH_RUNS keeps them, so that a second call continues."""
    return Path(os.environ.get("CAMAE_BENCH_RUNS") or tmp_path_factory.mktemp("runs")).resolve()


def test_fourier_loss(full: bool, screen: Path, runs: Path) -> None:
    """The same seed with and without the Fourier loss: curves in one picture, spectra of the reconstructions."""
    steps, encoder = (300, ENCODER) if full else (6, TINY)
    logs, distance, power = {}, {}, {}
    held = split(read_manifest(screen), "plate")[1]
    for alpha in (0.0, 0.01):
        run = camae.train(
            screen,
            "ca_mae_vit_ti16",
            out=runs / f"alpha_{alpha}",
            steps=steps,
            alpha=alpha,
            model_options=encoder | {"decoder": DECODER},
            val_every=max(1, steps // 10),
            **(SETTINGS | ({} if full else {"batch_size": 4})),
        )
        found, true = spectra(run.model, held)
        distance[str(alpha)] = float((found / true).log().abs().mean())
        power[str(alpha)] = [round(float(x), 4) for x in found / true]
        logs[f"alpha {alpha}"] = run.history
    last = {name: [r["val_mse"] for r in log if "val_mse" in r][-1] for name, log in logs.items()}
    row = {
        "op": "training",
        "case": "Fourier loss",
        "steps": steps,
        "log_spectral_distance": distance,
        "magnitude_share_by_radius": power,
        "val_mse": last,
        "nearer_with_fourier": distance["0.01"] < distance["0.0"],
    }
    append_row("training.jsonl", row, full=full)
    save_png(loss_curves(logs, y="mse"), folder(full) / "fourier_loss.png")
    print(row)
    assert not full or row["nearer_with_fourier"]


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


def test_other_channel_sets(full: bool, runs: Path) -> None:
    """Trained on screens of 6 and of 5 and 3 channels together, evaluated on a held-out one of 4 channels.

    Against training on the 4 channels alone of the very same images, so that the screen is held out for both ("four");
    and, harder, against training on the evaluated screen itself ("same screen").
    """
    size = {} if full else {"size": 64}
    steps, seeds, encoder = (250, 3, ENCODER) if full else (3, 1, TINY)
    evaluated = (
        Path(os.environ.get("CAMAE_BENCH_SCREEN") or runs / "evaluated") if full else runs / "evaluated"
    )
    first = read_manifest(generate(runs / "first", plates=1, sites=2 if full else 1, seed=1, **size))
    second = read_manifest(generate(runs / "second", plates=1, sites=2, seed=2, **size))
    shape = {"plates": 3, "sites": 2} if full else {"plates": 1, "sites": 1}
    target = read_manifest(generate(evaluated, **shape, **size))
    alone = ("DNA", "ER", "AGP", "Mito")
    four = of_channels(target, alone)
    odd = np.arange(len(second)) % 2 == 1
    mixed = {
        "six": brightfield(first, runs / "brightfield"),
        "five": of_channels(second, tuple(second.channels), ~odd),
        "three": of_channels(second, ("DNA", "ER", "Mito"), odd),
    }
    data_of = {
        "mixed": mixed,
        "four": {"first": of_channels(first, alone), "second": of_channels(second, alone)},
        "same screen": four,
    }
    settings = SETTINGS | {"val": None} | ({} if full else {"batch_size": 4})
    pairs = read_pairs(evaluated / "relationships" / "demo_pairs.csv")
    recalls: dict[str, list[float]] = {name: [] for name in data_of}
    for seed in range(seeds):
        for name, data in data_of.items():
            run = camae.train(
                data,
                "ca_mae_vit_ti16",
                out=runs / f"{name}_{seed}",
                steps=steps,
                seed=seed,
                model_options=encoder | {"decoder": DECODER},
                **settings,
            )
            table = camae.embed_screen(
                four, run.model, runs / f"{name}_{seed}" / "emb", tiles="grid", pool="per_channel", quiet=True
            )
            mapped = map_screen(table, "tvn")
            recalls[name].append(float(maps.recall(mapped.vectors, mapped.names, pairs)["recall"].iloc[0]))
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
