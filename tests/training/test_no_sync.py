"""The host never waits for the device between two logged steps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from camae.dataloader.mixture import Source
from camae.dataloader.plane_batch import PlaneBatch
from camae.model import registry as families
from camae.model.weights import save
from camae.training import trainer as loop
from camae.training.config import TrainConfig
from camae.training.cross_well import CrossWell
from camae.training.distillation import Distillation
from camae.training.randomness import hidden_planes, mask_noise
from camae.training.stability import SpikeGuard

NAMES = [("DNA", "ER", "Mito"), ("DNA",), ("ER", "Mito"), ("DNA",)]


@pytest.mark.parametrize(
    ("cross_attention", "depth", "part", "mask_channels"),
    [
        ("shared", 1, 1.0, 0.0),
        ("per_channel", 1, 1.0, 0.0),
        ("none", 1, 1.0, 0.0),
        ("shared", 0, 0.5, 0.0),
        ("shared", 1, 1.0, 0.5),
        ("shared", 0, 0.5, 0.5),
    ],
)
def test_a_step_reads_nothing_back(tiny, cross_attention, depth, part, mask_channels):
    """On the meta device tensors have no values, so that reading a value, or a length that depends on values, fails.

    These are the operations that make the host wait on CUDA (item, nonzero, boolean masks, copies to the host).
    """
    options = tiny["model_options"] | {"channels": ("DNA", "ER", "Mito", "Actin"), "drop_path": 0.5}
    options["decoder"] = options["decoder"] | {
        "cross_attention": cross_attention,
        "depth": depth,
        "part": part,
    }
    model = families.build("ca_mae_vit_ti16", **options).train().to("meta")
    images = [np.zeros((len(n), 32, 32), np.uint16) for n in NAMES]
    batch = PlaneBatch.from_images(images, NAMES).to("meta", non_blocking=True)
    noise = mask_noise(0, torch.arange(4), (48, 16, 32, 16), torch.device("meta"))
    hidden = hidden_planes(0, torch.arange(4), (3, 1, 2, 1), mask_channels) if mask_channels else None
    losses = model(batch, noise, mask_ratio=0.75, alpha=0.01, n_samples=4, hidden_K=hidden)
    losses["total"].backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    verdict = SpikeGuard(5.0, torch.device("meta")).judge(losses["total"].detach(), norm)
    assert verdict.shape == ()
    # The control: had the step read a value back as this line does, it would have raised above.
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        verdict.item()


def test_terms_read_nothing_back(tiny, tmp_path):
    """Cross-well alignment and a teacher of another patch, on the meta device as above."""
    options = tiny["model_options"] | {"channels": ("DNA", "ER", "Mito")}
    path = str(save(families.build("ca_mae_vit_ti16", **options | {"patch": 16}), tmp_path / "a.safetensors"))
    config = TrainConfig(cross_well=1.0, cross_well_group=4)
    images = [np.zeros((len(n), 32, 32), np.uint16) for n in NAMES]
    manifest = SimpleNamespace(channels=("DNA", "ER", "Mito"))
    distillation = Distillation(path, 32, [Source("a", manifest, 1.0)], torch.device("cpu"))
    teacher = distillation._teacher[0].to("meta")
    assert teacher.device.type == "meta"
    cross_well = CrossWell(config, 32, []).to("meta")
    batch = PlaneBatch.from_images(images, NAMES).to("meta", non_blocking=True)
    target_KE = distillation.to("meta").targets(batch)
    paired_B = torch.ones(4, device="meta")

    def terms(tokens_TD, layout):
        return {
            "cross_well": cross_well(tokens_TD, layout, paired_B, 4),
            "distillation": distillation(tokens_TD, layout, target_KE, 4),
        }

    model = families.build("ca_mae_vit_ti16", **options).train().to("meta")
    noise = mask_noise(0, torch.arange(4), (48, 16, 32, 16), torch.device("meta"))
    losses = model(batch, noise, mask_ratio=0.75, alpha=0.01, n_samples=4, terms=terms)
    losses["total"].backward()
    assert all(p.grad is not None for m in (cross_well, distillation) for p in m.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["lion", "adamw"])
def test_no_synchronization_between_logged_steps(make_screen, train, tmp_path, monkeypatch, optimizer):
    """With channels masked too: what is off does less of the same."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: synchronization cannot be detected")
    data = [(make_screen("three"), 1), (make_screen("two", channels=("DNA", "ER"), seed=1), 1)]
    step = loop.Trainer._step

    def watched(self, n, batches):
        logged = self._is_logged(n + 1)
        torch.cuda.set_sync_debug_mode("error" if n > 2 and not logged else "default")
        try:
            return step(self, n, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop.Trainer, "_step", watched)
    run = train(
        data,
        tmp_path / "run",
        20,
        optimizer=optimizer,
        device="cuda",
        log_every=10,
        ema=0.99,
        mask_channels=0.3,
    )
    assert [row["step"] for row in run.history] == [10, 20]
