"""Memory estimate of a training run, before its first step, and the passes that it is cut into.

Formulas of what a step holds at its largest: parameters, gradients, optimizer state and averages; the activations that
the backward pass needs, by tokens and widths; pixels. Measured against the peaks of real steps in
tests/training/test_memory_estimate.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from camae.errors import CamaeError
from camae.model.config import ModelConfig, encoder_parameters
from camae.model.interface import Config, LabelConfig
from camae.model.token_layout import kept_count
from camae.training.config import TrainConfig

# Values of a token's width that a block keeps for its backward pass, per token: normed input, fused projection (with an
# MLP of ratio r: r + 3), GELU (r), attention and its output, residual sums.
_BLOCK_WIDTHS, _HIDDEN_WIDTHS = 9.0, 2.0
# Cross-attention: queries, keys and values, output, and an MLP of ratio 4.
_CROSS_WIDTHS = 18.0
_KEPT_WHEN_RECOMPUTED = 1.0
_PIXEL_VALUES = (
    6.0  # float32 values that a pixel of a decoded patch takes: prediction, target, spectrum, gradients
)
# On a CPU a pass above this gains no speed: its tensors are far out of every cache.
CPU_PASS_BYTES = 4 * 2**30
_BASE_BYTES = 3 * 2**28  # of the process itself: Python, torch, thread scratch
_SHARE = 0.9  # of the free memory that a run may plan with


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a training step in bytes.

    state: weights, gradients, optimizer, averages. batch: images read ahead. per_token: activations of a pass for each
    of its tokens (planes x patches, masked ones included). tokens: of this rank's part of a step's batch.
    largest_crop: tokens of the largest crop.
    """

    state: int
    batch: int
    per_token: float
    tokens: int
    largest_crop: int

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the passes."""
        return self.state + self.batch + _BASE_BYTES

    def total(self, tokens: int) -> int:
        """Bytes at the peak of a pass of so many tokens."""
        return self.fixed + math.ceil(self.per_token * tokens)

    def most_tokens(self, memory: float) -> int:
        """Most tokens of a pass whose peak fits in `memory` bytes; below 1 where not even the rest fits."""
        return math.floor((memory - self.fixed) / self.per_token)


def parameter_count(c: ModelConfig) -> int:
    """Trainable parameters of a CA-MAE, encoder and decoders, by formula."""
    d, C = c.decoder, len(c.channels)
    w = d.width
    mlp = 8 * w * w + 5 * w
    cross = 4 * w * w + w + 6 * w + mlp
    block = 4 * w + 4 * w * w + 4 * w + mlp
    n_cross = {"shared": d.cross_depth, "per_channel": C, "none": 0}[d.cross_attention]
    heads = C if d.cross_attention == "per_channel" else 1
    decoder = c.width * w + w + w + C * w + n_cross * cross + C * d.depth * block
    return encoder_parameters(c) + decoder + heads * (w + 1) * c.patch**2


def estimate_of(
    config: TrainConfig, model: Config, planes_per_site: Sequence[int], ranks: int, bf16: bool
) -> MemoryEstimate | None:
    """`estimate`; None for models without a formula."""
    if not isinstance(model, ModelConfig) or isinstance(model, LabelConfig):
        return None
    return estimate(config, model, planes_per_site, ranks, bf16)


def estimate(
    config: TrainConfig, model: ModelConfig, planes_per_site: Sequence[int], ranks: int, bf16: bool
) -> MemoryEstimate:
    """Memory of a step of a CA-MAE, or of a ViT with one token per patch of all channels.

    planes_per_site: channels of a site, of each data set; the largest counts.
    """
    planes = max(planes_per_site)
    one_grid = model.family != "ca_mae"  # all channels in one token
    grids = 1 if one_grid else planes
    crops = math.ceil(config.batch_size / ranks / config.passes(ranks))
    sharded = ranks if config.parallel == "fsdp" else 1
    moments = 2 if config.optimizer == "adamw" else 1
    copies = 2 + moments + (1 if config.ema else 0)
    state = 4 * parameter_count(model) * copies // sharded
    batch = (config.workers + 2) * crops * planes * model.crop**2 * 2
    tokens = planes * model.n_patches
    activations = _activations(config, model, grids, planes if one_grid else 1)
    return MemoryEstimate(
        state=state,
        batch=batch,
        per_token=activations * (0.6 if bf16 else 1.0) / tokens,
        tokens=crops * tokens,
        largest_crop=tokens,
    )


def _activations(config: TrainConfig, c: ModelConfig, grids: int, planes_per_token: int) -> float:
    """Bytes that a crop's tokens keep until its backward pass."""
    d = c.decoder
    total = grids * c.n_patches
    kept = kept_count(total, _smallest_mask_ratio(config, c), c.keep_multiple) + 1
    whole = 3.0 + c.mlp_ratio + 2 + c.mlp_ratio + 3  # fused projection, norm and sum, GELU, attention
    encoder = kept * c.width * _kept_of_blocks(config, c.depth, whole, every=config.recompute)
    decoded = total if d.depth else max(1, round(d.part * (total - kept)))
    cross = 0 if d.cross_attention == "none" else d.cross_depth
    decoder_blocks = _kept_of_blocks(config, d.depth, 19.0, every=1 if config.recompute else 0)
    decoder_cross = _kept_of_blocks(config, cross, _CROSS_WIDTHS, every=1 if config.recompute else 0)
    decoder = decoded * d.width * (decoder_blocks + decoder_cross + 4)
    pixels = _PIXEL_VALUES * total * planes_per_token * c.patch**2
    return 4 * (encoder + decoder + pixels)


def _kept_of_blocks(config: TrainConfig, depth: int, whole: float, every: int) -> float:
    """Widths that `depth` blocks keep, of `whole` each, where every n-th one (0: none) is computed again."""
    if config.recompute_selective:
        whole *= 0.65
    again = math.ceil(depth / every) if every else 0
    # One block at a time is whole again in the backward pass.
    return (depth - again) * whole + again * _KEPT_WHEN_RECOMPUTED + (whole if again else 0)


def _smallest_mask_ratio(config: TrainConfig, c: ModelConfig) -> float:
    schedule = c.mask_ratio if config.mask_ratio is None else config.mask_ratio
    if isinstance(schedule, (int, float)):
        return float(schedule)
    return min(float(s[1] if isinstance(s, tuple) else s) for s in schedule)


def choose_passes(found: MemoryEstimate, free: float, together: int = 1) -> int | None:
    """Token budget of the passes on a CPU; None where one pass is small enough. Never less than `together` crops."""
    limit = min(CPU_PASS_BYTES / found.per_token, found.most_tokens(_SHARE * free))
    if found.tokens <= limit:
        return None
    return max(together * found.largest_crop, int(limit))


def check_fits(found: MemoryEstimate, tokens: int, free: float, where: str, config: TrainConfig) -> None:
    """Raise CamaeError, naming the settings to lower, where a pass of so many tokens does not fit in `free` bytes."""
    needed = found.total(tokens)
    if needed <= free:
        return
    one_crop = found.total(found.largest_crop)
    if one_crop > free and one_crop - found.batch <= free:
        advice = f"the images of batch_size = {config.batch_size:,} crops, read ahead, do not fit: lower batch_size"
    elif one_crop > free:
        advice = "even a single crop does not fit: take a smaller model or crop"
        if found.fixed < free and not config.recompute:
            advice = "even a single crop does not fit: set recompute = 1, or take a smaller model or crop"
    else:
        crops = max(1, found.most_tokens(free) // found.largest_crop)
        names = "token_budget" if config.token_budget else "micro_batch"
        number = crops * found.largest_crop if config.token_budget else crops
        advice = f"set {names} to at most {number}, or lower batch_size, or set recompute = 1"
    raise CamaeError(
        f"training would take about {needed / 1e9:,.1f} GB of memory and {where} has {free / 1e9:,.1f} GB free "
        f"({found.state / 1e9:,.1f} GB for weights, gradients and optimizer, {found.batch / 1e9:,.1f} GB for images "
        f"read ahead, the rest for activations of {max(1, tokens // found.largest_crop)} crops in one pass); {advice}"
    )


def planned_budget(
    found: MemoryEstimate | None, config: TrainConfig, free: float, device: torch.device
) -> int | None:
    """Token budget of the passes: as set, or on a CPU one that memory holds. None for whole batches.

    found: None for models without a formula. free: bytes. Raises CamaeError, before anything is allocated, where a pass
    does not fit.
    """
    budget = config.token_budget
    if found is None:
        return budget
    if device.type != "cpu":  # activations on a GPU are not known well enough to refuse a run by them
        check_fits(found, 0, free, str(device), config)
        return budget
    if budget is None and config.micro_batch is None and config.accumulate == 1:
        budget = choose_passes(found, free, config.cross_well_group if config.cross_well else 1)
    tokens = found.tokens if budget is None else min(budget, found.tokens)
    check_fits(found, tokens, free, "this machine", config)
    return budget


@contextlib.contextmanager
def memory_errors(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Context of a step: memory that an allocator refuses becomes a CamaeError that names the settings to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        refused = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not refused and "DefaultCPUAllocator" not in str(error):
            raise
        raise CamaeError(
            f"a step of {config.batch_size} crops does not fit into the memory of {device}; set micro_batch or "
            "token_budget, or lower batch_size, or set recompute = 1"
        ) from None


def passes_sentence(memory: MemoryEstimate, budget: int, batch_size: int, drops: bool) -> str:
    """What the log says of a step that is cut to passes of `budget` tokens. drops: stochastic depth is on."""
    crops = max(1, budget // memory.largest_crop)
    sentence = (
        f"each step's {batch_size} crops are computed in passes of at most {crops}, which takes about "
        f"{memory.total(budget) / 1e9:.1f} GB of memory instead of {memory.total(memory.tokens) / 1e9:.1f} GB: "
        "losses and gradients are the same up to rounding"
    )
    if drops:
        sentence += ", only stochastic depth (drop_path) drops other samples than in one pass"
    return f"{sentence}; micro_batch, accumulate or token_budget choose otherwise"
