"""A tiny model trained five steps on the kernels (interpreted) and on plain torch: the same losses."""

from __future__ import annotations

import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.kernels.lion import Lion
from camae.model import CAMAE, Backends, preset


def train(backend: str) -> list[float]:
    torch.manual_seed(0)
    decoder = {"width": 32, "depth": 1, "heads": 2, "cross_heads": 2}
    changes = {"width": 32, "depth": 2, "heads": 2, "crop": 32, "decoder": decoder, "drop_path": 0.0}
    model = CAMAE(preset("ca_mae_vit_ti8", channels=("a", "b", "c"), **changes), Backends(*[backend] * 3))
    g = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (c, 32, 32), generator=g).to(torch.uint8) for c in (3, 1)]
    batch = PlaneBatch.from_images(images, [["a", "b", "c"], ["b"]])
    optimizer = Lion(model.parameters(), lr=1e-3, clip_norm=1.0, backend=backend)
    losses = []
    for _ in range(5):
        noise = torch.rand(4 * 16, generator=g)
        loss = model.batch_loss(batch, noise)["total"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_five_steps_give_the_same_losses():
    plain, kernels = train("reference"), train("triton")
    # The first loss differs by rounding only: fp32 sums, 1e-6. Lion moves every weight by lr = 1e-3 whatever the
    # size of its gradient, so a gradient within rounding of 0 (some 1e-5 of the 2e4 weights) may move a weight
    # the other way, by 2e-3: of a loss with slope of order 1 per weight that is 1e-4 per step at most.
    assert abs(kernels[0] / plain[0] - 1) < 1e-6
    for a, b in zip(kernels, plain, strict=True):
        assert abs(a / b - 1) < 5e-4
    assert plain[-1] != plain[0]
