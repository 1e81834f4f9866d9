"""Physical floors of every op and of the whole model, from formulas. `python bench/floors.py` writes FLOORS.md.

Symbols: C channels, N = HW/P^2 patches per channel, r mask ratio, T = int(C*N*(1-r)) + 1 encoder tokens, D width,
M masked tokens, P patch side. FLOPs count 2 per multiply-add. Nothing here is measured; figures published by
others are marked so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """Limits from the vendor's data sheet: dense bf16 and tf32 FLOP/s, bytes/s, exponentials/s."""

    name: str
    bf16: float
    tf32: float
    memory: float
    exponentials: float


H100 = Device("H100 SXM", 989e12, 495e12, 3.35e12, 3.7e12)
A100 = Device("A100 80 GB", 312e12, 156e12, 2.04e12, 2.44e12)
DEVICES = (H100, A100)


@dataclass(frozen=True)
class Shape:
    """One training or embedding case of a CA-MAE on C planes of `crop` px."""

    name: str
    width: int
    depth: int
    patch: int
    mask_ratio: float
    channels: int = 6
    crop: int = 256

    @property
    def patches(self) -> int:
        """C*N."""
        return self.channels * (self.crop // self.patch) ** 2

    @property
    def tokens(self) -> int:
        """T, the class token included."""
        return int(self.patches * (1 - self.mask_ratio)) + 1

    @property
    def masked(self) -> int:
        """M."""
        return self.patches - (self.tokens - 1)


TRAINING = (
    Shape("B/16 75 %", 768, 12, 16, 0.75),
    Shape("L/16 75 %", 1024, 24, 16, 0.75),
    Shape("L/16 85 %", 1024, 24, 16, 0.85),
    Shape("L/8 75 %", 1024, 24, 8, 0.75),
    Shape("L/8 85 %", 1024, 24, 8, 0.85),
)
EMBEDDING = (
    Shape("S/16", 384, 12, 16, 0.0),
    Shape("B/16", 768, 12, 16, 0.0),
    Shape("L/16", 1024, 24, 16, 0.0),
    Shape("L/8", 1024, 24, 8, 0.0),
)


def block_flops(tokens: int, width: int) -> float:
    """Forward of one transformer block: projections 24 T D^2, attention 4 T^2 D."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def tokenizer_flops(tokens: int, patch: int, width: int) -> float:
    """The projection of T patches."""
    return 2 * tokens * patch**2 * width


def encoder_flops(s: Shape) -> float:
    """Forward of tokenizer and blocks, per crop."""
    return s.depth * block_flops(s.tokens, s.width) + tokenizer_flops(s.tokens, s.patch, s.width)


def attention_share(s: Shape) -> float:
    """Attention's part of a block: T / (6 D + T)."""
    return s.tokens / (6 * s.width + s.tokens)


def small_decoder_flops(s: Shape, width: int = 256, depth: int = 2) -> float:
    """Forward per crop of the small decoder: projection of the T encoder tokens, shared cross-attention (q of all
    C*N tokens, k and v once, an MLP), `depth` blocks within each channel, the pixel head on all tokens."""
    per_channel = s.patches // s.channels
    project = 2 * s.tokens * s.width * width
    cross = 24 * s.patches * width**2 + 4 * s.patches**2 * width
    own = s.channels * depth * block_flops(per_channel, width)
    head = 2 * s.patches * width * s.patch**2
    return project + cross + own + head


def tokenize_bytes(s: Shape, pixel_bytes: int = 1, token_bytes: int = 2) -> float:
    """Visible pixels read, tokens written."""
    return s.tokens * s.patch**2 * pixel_bytes + s.tokens * s.width * token_bytes


def statistics_bytes(s: Shape, pixel_bytes: int = 1) -> float:
    """Every pixel once."""
    return s.channels * s.crop**2 * pixel_bytes


def loss_bytes(s: Shape, pixel_bytes: int = 1, value_bytes: int = 2) -> float:
    """Prediction read, gradient written, pixel read, for every masked pixel."""
    return s.masked * s.patch**2 * (2 * value_bytes + pixel_bytes)


def transform_flops(patch: int) -> float:
    """The kernel's three real transforms of one patch (prediction, target, adjoint).

    P = 16, separable: three products of 16^3 each. P = 8: one 64 x 64 product each.
    """
    one = 3 * 2 * 16**3 if patch == 16 else 2 * 64**2
    return 3 * one


def loss_seconds(s: Shape, device: Device) -> tuple[float, float]:
    """(bytes, transforms) per crop; a transform in fp32 accuracy takes three tf32 products."""
    return loss_bytes(s) / device.memory, 3 * s.masked * transform_flops(s.patch) / device.tf32


def attention_flops(queries: int, keys: int, heads: int, head: int, backward: bool = False) -> float:
    """4 Tq Tk d per head; the backward pass counts 2.5 times that (5 products instead of 2)."""
    return 4 * queries * keys * head * heads * (2.5 if backward else 1)


def exponential_bound(head: int, device: Device) -> float:
    """FLOP/s at which the exponential unit is full: 4 d FLOPs for every exponential."""
    return 4 * head * device.exponentials


def lion_bytes(parameters: float, low_precision: bool = False) -> float:
    """fp32: read p, g, m, write p, m. bf16 training: fp32 p and m both ways, bf16 g twice (norm) and a copy."""
    return parameters * (22 if low_precision else 20)


def crops_per_second(s: Shape, device: Device, mfu: float) -> float:
    """At a model-FLOP utilisation of 3 * forward / peak, with the small decoder."""
    return mfu * device.bf16 / (3 * (encoder_flops(s) + small_decoder_flops(s)))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _encoder_table() -> str:
    rows = []
    for kind, shapes in (("train", TRAINING), ("embed", EMBEDDING)):
        for s in shapes:
            flops = encoder_flops(s)
            times = [f"{flops / d.bf16 * 1e6:.0f}" for d in DEVICES]
            share = f"{100 * attention_share(s):.0f} %"
            rows.append([f"{s.name} {kind}", f"{s.tokens}", f"{flops / 1e9:.1f}", share, *times])
    columns = [f"{d.name}, us at peak" for d in DEVICES]
    return _table(["encoder, 6 x 256 x 256", "T", "forward GFLOP", "attention", *columns], rows)


def _memory_table() -> str:
    rows = []
    for s in (TRAINING[2], TRAINING[3]):
        for bits in (8, 16):
            pixel = bits // 8
            cases = (
                ("statistics", statistics_bytes(s, pixel)),
                ("tokenize", tokenize_bytes(s, pixel)),
                ("statistics + tokenize", statistics_bytes(s, pixel) + tokenize_bytes(s, pixel)),
                ("reconstruction_loss, forward + gradient", loss_bytes(s, pixel)),
            )
            for name, size in cases:
                times = [f"{size / d.memory * 1e6:.2f}" for d in DEVICES]
                rows.append([name, s.name, f"uint{bits}", f"{size / 1e6:.2f}", *times])
    columns = [f"{d.name}, us" for d in DEVICES]
    return _table(["per crop", "model", "planes", "MB", *columns], rows)


def _transform_table() -> str:
    rows = []
    for s in (TRAINING[2], TRAINING[3]):
        flops = s.masked * transform_flops(s.patch)
        times = [f"{b * 1e6:.2f} / {t * 1e6:.2f}" for b, t in (loss_seconds(s, d) for d in DEVICES)]
        rows.append([s.name, f"{s.masked}", f"{flops / 1e9:.3f}", *times])
    columns = [f"{d.name}, us: bytes / transforms" for d in DEVICES]
    return _table(["loss per crop", "M", "transform GFLOP", *columns], rows)


def _attention_table() -> str:
    rows = []
    for head in (16, 32, 64, 128):
        bounds = [
            f"{min(exponential_bound(head, d), d.bf16) / 1e12:.0f}"
            + (" (tensor cores)" if exponential_bound(head, d) > d.bf16 else " (exponentials)")
            for d in DEVICES
        ]
        rows.append([f"{head}", *bounds])
    return _table(["head dim", *[f"{d.name}, TFLOP/s" for d in DEVICES]], rows)


def _model_table() -> str:
    rows = []
    for s, mfu in ((TRAINING[0], 0.5), (TRAINING[2], 0.5), (TRAINING[3], 0.45)):
        forward = encoder_flops(s) + small_decoder_flops(s)
        rates = [f"{crops_per_second(s, d, mfu):.0f}" for d in DEVICES]
        rows.append([s.name, f"{forward / 1e9:.1f}", f"{100 * mfu:.0f} %", *rates])
    columns = [f"{d.name}, crops/s" for d in DEVICES]
    return _table(["training, small decoder", "forward GFLOP", "MFU", *columns], rows)


# (row, target, against): what an H100 is to reach; an A100 the same fractions of its limits.
TARGETS = (
    ("statistics + tokenize, L/16 85 %, uint8, batch 256", "65 % of the byte floor", "12x eager torch"),
    ("reconstruction_loss, forward + gradient", "50 % of max(bytes, transforms)", "15x eager torch"),
    ("varlen attention d = 64, T = 6145, forward", "400 TFLOP/s", "1.2x torch's FlashAttention-2"),
    ("varlen attention d = 64, T = 6145, backward", "1.1x torch's", "torch's FlashAttention-2"),
    ("decoder attention d = 32, T = 256 and cross 1536", "1.1x the best", "at least two named back-ends"),
    ("training step, L/16 85 %, small decoder", "50 % MFU", "1.5x eager torch bf16 + SDPA"),
    ("training step, L/8 75 %, small decoder, 64 crops", "45 % MFU, peak <= 76 GiB", "-"),
)


def document() -> str:
    """The text of FLOORS.md."""
    limits = _table(
        ["device", "bf16 TFLOP/s", "tf32 TFLOP/s", "TB/s", "exponentials/s"],
        [
            [
                d.name,
                f"{d.bf16 / 1e12:.0f}",
                f"{d.tf32 / 1e12:.0f}",
                f"{d.memory / 1e12:.2f}",
                f"{d.exponentials:.2e}",
            ]
            for d in DEVICES
        ],
    )
    lion = [f"{lion_bytes(303e6) / d.memory * 1e3:.1f} ms on {d.name}" for d in DEVICES]
    targets = _table(["row", "target, H100", "against", "measured"], [[*t, "not measured"] for t in TARGETS])
    parts = [
        "# Floors\n\nGenerated by `python bench/floors.py` from the formulas in that file; do not edit.\n"
        "No figure on this page is a measurement.\n",
        f"## Limits of the devices\n\n{limits}",
        f"## Encoder\n\n24 T D^2 + 4 T^2 D per block and 2 T P^2 D for the tokenizer.\n\n{_encoder_table()}",
        f"## Memory-bound ops\n\nbf16 tokens, predictions and gradients.\n\n{_memory_table()}",
        "## Transforms of the loss\n\nThe kernel's products, three tf32 products each for fp32 accuracy: the floor is "
        f"the larger of the two times.\n\n{_transform_table()}",
        f"## Attention\n\nThe lower of tensor cores and exponential unit, not causal.\n\n{_attention_table()}",
        f"## Lion\n\n20 bytes per parameter in fp32: ViT-L (303 M) {' and '.join(lion)}.\n",
        f"## Whole training step\n\n3 x forward at a model-FLOP utilisation.\n\n{_model_table()}",
        f"## Targets\n\n{targets}",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("FLOORS.md").write_text(document())
