"""Reconstructions of a fixed set of wells (paper, Figure 2) as arrays that a figure is drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from camae.dataloader.center_crops import center_batch
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.files import write_atomic
from camae.model.ca_mae import CAMAE
from camae.training.run_log import read_log


@dataclass(frozen=True)
class Reconstructions:
    """Rows of Figure 2, in self-standardized units.

    masked, reconstruction, original: (R, C, H, W) float32; masked pixels are NaN in `masked`.
    labels: perturbation of each row ("negative control" for controls). channels: C names.
    """

    masked: np.ndarray
    reconstruction: np.ndarray
    original: np.ndarray
    labels: list[str]
    channels: list[str]


def picture_rows(manifest: Manifest, count: int = 4) -> list[int]:
    """Rows of one plate, negative control and perturbation alternating; any rows when nothing is known."""
    table = manifest.table.reset_index(drop=True)
    if "Metadata_Plate" in table:
        table = table[table["Metadata_Plate"] == table["Metadata_Plate"].iloc[0]]
    is_control = table.get("Metadata_control_type", table.index.to_series() * 0 != 0) == "negcon"
    controls, others = table.index[is_control].tolist(), table.index[~is_control].tolist()
    alternating = [row for pair in zip(controls, others, strict=False) for row in pair]
    return (alternating or table.index.tolist())[:count]


@torch.no_grad()
def reconstruct_rows(
    model: CAMAE,
    batch: PlaneBatch,
    labels: list[str],
    *,
    mask_ratio: float,
) -> Reconstructions:
    """Masked input, reconstruction (visible patches as they are) and original of each sample of `batch`.

    All samples must show the same channels; the mask is the same at every call.
    """
    was_training = model.training
    model.eval()
    C, (H, W), P = len(batch.channels), batch.planes_KHW.shape[1:], model.config.patch
    B, N = batch.n_samples, model.n_patches(batch)
    images = batch.planes_KHW.float().reshape(B, C, H, W)
    eps = model.eps(batch)
    mean = images.mean((2, 3), keepdim=True)
    original = (images - mean) / (images.var((2, 3), unbiased=False, keepdim=True) + eps**2).sqrt()
    noise = torch.rand(B, C * N, generator=torch.Generator().manual_seed(0))
    patches, mask = model.reconstruct(
        batch.planes_KHW.reshape(B, C, H, W), batch.channels, noise, mask_ratio, value_range=batch.value_range
    )
    model.train(was_training)
    pixels = _unpatchify(patches.float(), B, C, H, W, P)
    hidden = _unpatchify(mask.float()[..., None].expand(-1, -1, P * P), B, C, H, W, P) > 0
    return Reconstructions(
        torch.where(hidden, torch.nan, original).cpu().numpy(),
        torch.where(hidden, pixels, original).cpu().numpy(),
        original.cpu().numpy(),
        labels,
        list(batch.channels),
    )


def _unpatchify(patches: torch.Tensor, B: int, C: int, H: int, W: int, P: int) -> torch.Tensor:
    """(B, C*N, P*P) -> (B, C, H, W)."""
    grid = patches.reshape(B, C, H // P, W // P, P, P)
    return grid.permute(0, 1, 2, 4, 3, 5).reshape(B, C, H, W)


def write_pictures(
    out: Path,
    model: CAMAE,
    manifest: Manifest,
    mask_ratio: float,
    value_range: ValueRange | None = None,
    reader: str | None = None,
) -> None:
    """`reconstructions.npz`, `reconstructions.png` (Figure 2) and `loss.png` (Figure 3) in a run folder."""
    from camae.reporting.figures import loss_curves, reconstruction_grid, save_png

    batch, labels = center_batch(
        manifest, picture_rows(manifest), model.config.crop, value_range=value_range, reader=reader
    )
    r = reconstruct_rows(model, batch.to(model.device), labels, mask_ratio=mask_ratio)
    write_atomic(out / "reconstructions.npz", lambda p: _save_npz(p, r))
    save_png(
        reconstruction_grid(r.masked, r.reconstruction, r.original, r.labels, r.channels),
        out / "reconstructions.png",
    )
    save_png(loss_curves({out.name: read_log(out / "log.jsonl")}), out / "loss.png")


def _save_npz(path: Path, r: Reconstructions) -> None:
    with open(path, "wb") as f:
        np.savez_compressed(
            f,
            masked=r.masked,
            reconstruction=r.reconstruction,
            original=r.original,
            labels=np.array(r.labels),
            channels=np.array(r.channels),
        )
