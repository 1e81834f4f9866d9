"""A whole training step: model-FLOP utilization, crops/s and peak memory. Targets in bench/FLOORS.md are for a GPU.

On CUDA: L/16 at 85 % beside the same model in eager torch (bf16 autocast, SDPA), and L/8 at 75 % with 64 crops, norms
and GELUs recomputed. On a CPU a tiny model of the same form, where utilization has no peak to be a share of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import floors
import pytest
import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.kernels.lion import Lion
from camae.model import CAMAE, Backends, preset
from camae.model.activation_checkpointing import set_recompute
from camae.model.flops import model_flops, peak_flops

NAMES = ("DNA", "RNA", "ER", "AGP", "Mito", "Actin")
TINY = {"width": 128, "depth": 2, "heads": 2, "crop": 64}
# (preset, mask ratio, crops on a GPU, keep activations, beside eager torch on a GPU, target)
CASES = {
    # Eager torch keeps about 62 GB for 256 crops: beside ours it has room for half of them.
    "L/16 85 %": ("ca_mae_vit_l16", 0.85, 256, True, False, "50 % MFU"),
    "L/16 85 %, 128 crops": ("ca_mae_vit_l16", 0.85, 128, True, True, "1.5x eager torch"),
    "L/8 75 %, recomputed": ("ca_mae_vit_l8", 0.75, 64, False, False, "45 % MFU, peak <= 76 GiB"),
}
ROUNDS = 10  # on a GPU, where a step takes a good part of a second


class Step:
    """Forward, backward and Lion on one batch of random crops."""

    def __init__(self, case: str, device: str, crops: int, ours: bool, size: dict[str, Any]):
        name, self.ratio, _, keep, *_ = CASES[case]
        self.device = device
        torch.manual_seed(0)
        kernels = device == "cuda" and ours
        backend = "triton" if kernels else "reference"
        self.model = CAMAE(
            preset(name, channels=NAMES, decoder="small", **size), Backends(*[backend] * 4)
        ).to(device)
        set_recompute(self.model, 0, selective=ours and not keep)
        self.optimizer = Lion(self.model.parameters(), lr=1e-5, clip_norm=1.0, backend=backend)
        crop = self.model.config.crop
        g = torch.Generator().manual_seed(0)
        images = [torch.randint(0, 256, (6, crop, crop), generator=g).to(torch.uint8) for _ in range(crops)]
        self.batch = PlaneBatch.from_images(images, [list(NAMES)] * crops).to(device)
        self.noise = torch.rand(6 * crops * self.model.config.n_patches, generator=g).to(device)
        self.model.train()

    def loss(self) -> torch.Tensor:
        """The loss, under bf16 autocast on CUDA."""
        torch.manual_seed(0)  # the same stochastic depth
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            return self.model(self.batch, self.noise, mask_ratio=self.ratio)["total"]

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()


@pytest.mark.parametrize("case", CASES)
def test_training_step(recorder, benchmark, case):
    device = recorder.device
    _, ratio, crops, _, beside, target = CASES[case]
    size: dict[str, Any] = {} if device == "cuda" else TINY
    crops = crops if device == "cuda" else 2
    step = Step(case, device, crops, True, size)
    plain = Step(case, device, crops, False, size) if beside or device == "cpu" else None

    def check() -> None:
        loss = step.loss().item()
        assert 0 < loss < 10
        if plain is not None:
            # The same weights and masks; bf16 rounds activations at 2^-9, the mean over patches far less.
            assert abs(plain.loss().item() / loss - 1) < (1e-2 if device == "cuda" else 1e-5)

    flops = model_flops(step.model.config, (6,) * crops, ratio)
    forms: dict[str, Callable[[], Any]] = {} if plain is None else {"eager torch": plain}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def more(times: Any) -> dict[str, Any]:
        rate = {"crops_per_second": crops / times.median}
        if device == "cpu":
            return rate
        peak = peak_flops(torch.cuda.get_device_name())
        rate["mfu"] = flops.training / times.median / peak if peak else float("nan")
        # Eager torch, where it ran beside ours, is in this peak too.
        return rate | {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}

    recorder.row(
        "training_step",
        f"{case}, small decoder",
        shape=(crops, 6, step.model.config.crop, step.model.config.crop, step.model.config.width),
        dtype="bfloat16" if device == "cuda" else "float32",
        ours={"triton" if device == "cuda" else "reference": step},
        competitors=forms,
        check=check,
        size_bytes=floors.lion_bytes(sum(p.numel() for p in step.model.parameters())),
        flops=flops.training,
        target=target,
        benchmark=benchmark,
        more=more,
        rounds=ROUNDS if device == "cuda" else None,
    )
