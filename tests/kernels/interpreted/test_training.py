"""Small models trained five steps on the kernels (interpreted) and on plain torch: the same losses.

In fp32 alone: the interpreter stores bf16 as integers, so that no bf16 step can be run in it. What bf16 changes is in
tests/kernels/test_gpu.py.
"""

from __future__ import annotations

import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.kernels.lion import Lion
from camae.model import CAMAE, Backends, preset
from camae.model.activation_checkpointing import set_recompute
from camae.training.config import TrainConfig
from camae.training.optimization import build_optimizer

NAMES = ("a", "b", "c")
SMALL = {"width": 32, "depth": 1, "heads": 2, "cross_heads": 2}


def model_of(backend: str, **changes: object) -> CAMAE:
    torch.manual_seed(0)
    small = {"width": 32, "depth": 1, "heads": 2, "crop": 32, "drop_path": 0.0, "decoder": SMALL}
    # What a CUDA device has by default: every setting "triton".
    return CAMAE(preset("ca_mae_vit_ti8", channels=NAMES, **(small | changes)), Backends(*[backend] * 4))


def train(backend: str, counts: tuple[int, ...] = (3, 1), selective: bool = False, **changes: object):
    """Losses of five steps, and the last weights."""
    model = model_of(backend, **changes)
    set_recompute(model, 0, selective)
    g = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (c, 32, 32), generator=g).to(torch.uint8) for c in counts]
    batch = PlaneBatch.from_images(images, [list(NAMES[:c]) for c in counts])
    optimizer = Lion(model.parameters(), lr=1e-3, clip_norm=1.0, backend=backend)
    losses = []
    for _ in range(5):
        noise = torch.rand(model.total_patches(batch), generator=g)
        loss = model.batch_loss(batch, noise)["total"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def check(kernels: list[float], plain: list[float]) -> None:
    # The first loss differs by rounding only: fp32 sums, 1e-6. Lion moves every weight by lr = 1e-3 whatever the
    # size of its gradient, so a gradient within rounding of 0 (some 1e-5 of the 2e4 weights) may move a weight
    # the other way, by 2e-3: of a loss with slope of order 1 per weight that is 1e-4 per step at most.
    assert abs(kernels[0] / plain[0] - 1) < 1e-6
    for a, b in zip(kernels, plain, strict=True):
        assert abs(a / b - 1) < 5e-4
    assert plain[-1] != plain[0]


def test_five_steps_give_the_same_losses():
    """Two blocks, a ragged batch; cross-attention over all tokens, as released."""
    check(train("triton", depth=2), train("reference", depth=2))


def test_recomputed_activations_and_cross_attention_alone():
    """Sequential blocks; cross-attention over the visible tokens on a random half of the masked patches."""
    form = {"context": "visible", "cross_residual": True, "depth": 0, "cross_depth": 2, "part": 0.5}
    changes = {"block": "sequential", "selective": True, "counts": (1, 2), "decoder": SMALL | form}
    check(train("triton", **changes), train("reference", **changes))


def test_names_of_a_gpu_are_those_of_the_settings():
    """The settings used above are the defaults of a CUDA device, for the optimizer too."""
    names = Backends().names("cuda")
    assert (
        names.pop("block") == "reference"
    )  # whole blocks in one op are for models on a CPU that are only read
    assert set(names.values()) == {"triton"}
    optimizer = build_optimizer(model_of("triton"), TrainConfig(steps=1, model="ca_mae_vit_ti8"))
    assert isinstance(optimizer, Lion)
