"""The loss on held-out sites: the same center crops and the same masks every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from camae.dataloader.manifest import Manifest
from camae.dataloader.mixture import Source
from camae.dataloader.plane_batch import PlaneBatch, ValueRange

SITES = 32
_AT_ONCE = 8

Losses = Callable[[PlaneBatch, torch.Tensor, Manifest], dict[str, torch.Tensor]]


@torch.no_grad()
def validate(
    sources: Sequence[Source],
    model: torch.nn.Module,
    losses: Losses,
    value_range: ValueRange | None = None,
    reader: str | None = None,
) -> dict[str, float]:
    """Mean losses over up to 32 evenly spaced sites of each data set, as `val_loss`, `val_mse` ...

    losses: (batch on the host, noise, manifest) -> losses, "total" among them. Several data sets count equally
    and each has its own `val_data/<name>` too.
    """
    from camae.dataloader.center_crops import center_batch

    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(0)
    row: dict[str, float] = {}
    for source in sources:
        manifest = source.manifest
        rows = list(range(0, len(manifest), max(1, len(manifest) // SITES)))[:SITES]
        for start in range(0, len(rows), _AT_ONCE):
            chunk = rows[start : start + _AT_ONCE]
            batch, _ = center_batch(
                manifest,
                chunk,
                model.config.crop,  # type: ignore[union-attr,arg-type]
                value_range=value_range,
                reader=reader,
            )
            patches = len(batch.planes_KHW) * model.n_patches(batch)  # type: ignore[operator]
            found = losses(batch, torch.rand(patches, generator=generator), manifest)
            for key, value in found.items():
                mean = float(value) * len(chunk) / len(rows)
                name = "val_loss" if key == "total" else f"val_{key}"
                row[name] = row.get(name, 0.0) + mean / len(sources)
                if key == "total" and len(sources) > 1:
                    own = f"val_data/{source.name}"
                    row[own] = row.get(own, 0.0) + mean
    model.train(was_training)
    return row
