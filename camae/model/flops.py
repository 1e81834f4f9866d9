"""FLOPs of a model by formula, peaks of devices, and model-FLOP utilization (MFU).

2 per multiply-add; norms, softmax, activations, the loss and the optimizer are left out; a backward pass counts
twice the forward. What activation checkpointing computes again is not counted: MFU is of the model's own FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from camae.model.config import DecoderConfig, ModelConfig
from camae.model.token_layout import kept_count

# Dense bf16 FLOP/s by a part of the device's name, from the vendors' data sheets; the first that fits counts.
PEAK_BF16 = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("RTX A6000", 155e12),
    ("RTX 4090", 165e12),
)


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs by part of a model."""

    tokenizer: float
    encoder: float
    decoder: float

    @property
    def forward(self) -> float:
        """FLOPs of a forward pass."""
        return self.tokenizer + self.encoder + self.decoder

    @property
    def training(self) -> float:
        """FLOPs of a forward and a backward pass."""
        return 3 * self.forward


def peak_flops(device_name: str, precision: str = "bf16") -> float | None:
    """Peak dense FLOP/s of a device, None where it is not known (CPUs, fp32, devices not in the table)."""
    if precision != "bf16":
        return None
    return next((peak for part, peak in PEAK_BF16 if part in device_name), None)


def block_flops(tokens: float, keys: float, width: int, hidden: int) -> float:
    """FLOPs of a transformer block on `tokens` that look at `keys` each: projections and MLP (24 T D^2), attention."""
    return 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens * keys * width


def encoder_flops(c: ModelConfig, planes: int, mask_ratio: float = 0.0) -> tuple[float, float]:
    """FLOPs (tokenizer, blocks) of one crop with `planes` channels: T = int(C*N*(1-r)) + 1 tokens."""
    kept = _kept(c, planes, mask_ratio)
    tokens = kept + 1
    return 2 * kept * c.patch**2 * c.width, c.depth * block_flops(
        tokens, tokens, c.width, c.mlp_ratio * c.width
    )


@lru_cache(maxsize=256)
def model_flops(
    c: ModelConfig, planes_per_sample: tuple[int, ...], mask_ratio: float, plain: bool = False
) -> Flops:
    """Forward FLOPs of a training batch of crops with those numbers of channels.

    plain: the decoder without its exact rewrites, as the released code runs it: every masked patch projected
    for itself, keys and values once per channel, all patches decoded.
    """
    tokenizer = encoder = decoder = 0.0
    for planes in planes_per_sample:
        tokens, blocks = encoder_flops(c, planes, mask_ratio)
        tokenizer, encoder = tokenizer + tokens, encoder + blocks
        decoder += decoder_flops(c, planes, _kept(c, planes, mask_ratio), plain)
    if not plain:
        decoder += _mask_tokens_once(c, max(planes_per_sample, default=0))
    return Flops(tokenizer, encoder, decoder)


def _kept(c: ModelConfig, planes: int, mask_ratio: float) -> int:
    return kept_count(planes * c.n_patches, mask_ratio, c.keep_multiple)


def decoder_flops(c: ModelConfig, planes: int, kept: int, plain: bool = False) -> float:
    """FLOPs of the decoder of one crop but the projections of mask tokens, which a step does once for all crops.

    kept: visible patches of all its planes. plain: as in `model_flops`.
    """
    d, N = c.decoder, c.n_patches
    total, w = planes * N, d.width
    masked = total - kept
    queries = total if d.depth or plain else max(1, round(d.part * masked))
    keys = kept if d.context == "visible" else total
    flops = 2.0 * kept * c.width * w
    if d.cross_attention != "none":
        projected = total if plain and d.context == "all" else kept
        times = planes if d.cross_attention == "per_channel" or plain else 1
        flops += d.cross_depth * (times * 4 * projected * w**2 + queries * (4 * keys * w + 18 * w**2))
        flops += _projected_queries(d, queries, kept, plain)
    flops += d.depth * block_flops(total, N, w, 4 * w)
    predicted = total if plain or d.cross_attention == "per_channel" else queries if not d.depth else masked
    return flops + 2 * predicted * w * c.patch**2


def _projected_queries(d: DecoderConfig, queries: int, kept: int, plain: bool) -> float:
    """Query projections: the first shared block's are mask tokens', but where all patches are decoded."""
    each = 2.0 * d.width**2
    if plain or d.cross_attention == "per_channel":
        return each * queries * d.cross_depth
    return each * ((kept if d.depth else 0) + (d.cross_depth - 1) * queries)


def _mask_tokens_once(c: ModelConfig, channels: int) -> float:
    """Queries, and where mask tokens are looked at keys and values, of C*N mask tokens."""
    d = c.decoder
    rows = channels * c.n_patches
    if d.cross_attention == "none":
        return 0.0
    times = channels if d.cross_attention == "per_channel" else d.cross_depth
    keys_values = times * 4.0 * rows * d.width**2 if d.context == "all" else 0.0
    return keys_values + (2.0 * rows * d.width**2 if d.cross_attention == "shared" else 0.0)


def mfu(flops: float, seconds: float, peak: float | None, devices: int = 1) -> float | None:
    """Model-FLOP utilization: the share of `devices` peaks that `flops` in `seconds` are; None without a peak."""
    return None if peak is None or seconds <= 0 else flops / seconds / (peak * devices)


def step_flops(c: ModelConfig, batches: Sequence[tuple[int, ...]], mask_ratio: float) -> float:
    """Training FLOPs of the passes of one optimizer step."""
    return sum(model_flops(c, planes, mask_ratio).training for planes in batches)
