"""Training: the decoders side by side, and the Fourier loss.

By default seconds on a tiny screen. --full takes the demo screen (CAMAE_BENCH_SCREEN: one that is already drawn)
and writes bench/results/<device>/training.jsonl with the pictures beside it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import plain_mae
import torch
from rows import append_row, time_cpu
from training_setup import DECODER, ENCODER, SETTINGS, TINY, folder

import camae
from camae.dataloader import read_manifest
from camae.dataloader.center_crops import center_batch
from camae.model import CAMAE, preset
from camae.model.config import DECODERS
from camae.model.flops import model_flops
from camae.reporting.figures import loss_curves, save_png
from camae.training.data import split


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
