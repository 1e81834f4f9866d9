"""Physical floors of every op and of the whole model, from formulas. `python bench/floors.py` writes FLOORS.md.

Symbols: C channels, N = HW/P^2 patches per channel, r mask ratio, T = int(C*N*(1-r)) + 1 encoder tokens, D width,
M masked tokens, P patch side. FLOPs count 2 per multiply-add. Nothing here is measured; figures published by
others are marked so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from targets import GPU, TARGETS, measured


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


def elementwise_bytes(tokens: float, width: int, stream: int = 4, working: int = 2) -> dict[str, float]:
    """The memory-bound passes of a parallel block, each value read and written once.

    stream: bytes of a token stream's value (fp32 under autocast); working: of everything between products.
    """
    values, hidden = tokens * width, 4 * tokens * width
    return {
        "norm, forward": values * (stream + working),
        "norm, backward": values * (3 * stream + working),
        "residual, forward": values * (2 * stream + working),
        "residual, backward": values * (2 * stream + 2 * working),
        "residual + norm, forward": values * (2 * stream + 2 * working),
        "residual + norm, backward": values * (3 * stream + 3 * working),
        "gelu, forward": hidden * 2 * working,
        "gelu, backward": hidden * 3 * working + 6 * values * working,
        "gelu, backward, recomputed": hidden * 4 * working + 6 * values * working,
    }


def parallel_block_kept(
    width: int, heads: int, keep: bool, stream: int = 4, working: int = 2, fused_norms: bool = True
) -> float:
    """Bytes per token that a parallel block keeps for its backward pass.

    Always: the stream, the fused projection (7 D), attention's output and its update for LayerScale (D each), the
    softmax denominators (fp32 per head). With `keep` also the normed tokens (D) and the activation (4 D). Without
    `fused_norms` attention keeps q and k normed too (2 D).
    """
    products = 7 * width + 2 * width + (5 * width if keep else 0) + (0 if fused_norms else 2 * width)
    return stream * width + working * products + 4 * heads


def sequential_block_kept(width: int, heads: int, keep: bool, stream: int = 4, working: int = 2) -> float:
    """Bytes per token that a sequential block keeps: two points of the stream, q, k, v (3 D), attention's output
    (D), the hidden layer (4 D), the softmax denominators; with `keep` both normed forms (2 D) and the activation (4 D).
    """
    products = 8 * width + (6 * width if keep else 0)
    return 2 * stream * width + working * products + 4 * heads


def training_memory(s: Shape, crops: int, keep: bool, fused_norms: bool = True) -> dict[str, float]:
    """Bytes of a training step under bf16 autocast with Lion and the small decoder (width 256, 8 heads, 2 blocks).

    Weights, momentum and gradients in fp32, and a bf16 copy of the weights; what blocks keep; the largest moment
    of the backward pass besides (a block's gradients of its fused projection, activation and stream).
    """
    encoder = s.depth * 12 * s.width**2
    decoder = (24 * s.channels + 12) * 256**2
    tokens, patches = crops * s.tokens, crops * s.patches
    blocks = s.depth * tokens * parallel_block_kept(s.width, s.width // 64, keep, fused_norms=fused_norms)
    # Per patch: two blocks, the cross-attention (about one more) and the tokens going in and out.
    own = patches * (3 * sequential_block_kept(256, 16, keep) + 4 * 4 * 256)
    return {
        "weights, momentum, gradients": (encoder + decoder) * 14,
        "encoder's blocks": blocks,
        "decoder": own,
        "passing": tokens * s.width * 2 * (7 + 4 + 4 + 6),
    }


def crops_per_second(s: Shape, device: Device, mfu: float) -> float:
    """At a model-FLOP utilization of 3 * forward / peak, with the small decoder."""
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


def _elementwise_table() -> str:
    rows = []
    for s, crops in ((TRAINING[2], 256), (TRAINING[3], 64)):
        for name, size in elementwise_bytes(crops * s.tokens, s.width).items():
            times = [f"{size / d.memory * 1e6:.0f}" for d in DEVICES]
            rows.append([name, f"{s.name}, {crops} crops", f"{size / 1e6:.0f}", *times])
    columns = [f"{d.name}, us" for d in DEVICES]
    return _table(["a block's elementwise ops", "model", "MB", *columns], rows)


def _memory_use_table() -> str:
    rows = []
    for keep, fused in ((True, True), (False, False), (False, True)):
        parts = training_memory(TRAINING[3], 64, keep, fused)
        name = "all kept" if keep else "norms and GELU recomputed"
        norms = "in attention" if fused else "before attention"
        cells = [f"{x / 2**30:.1f}" for x in (*parts.values(), sum(parts.values()))]
        rows.append([name, norms, *cells])
    return _table(["L/8 75 %, 64 crops, GiB", "q/k norms", *parts, "sum"], rows)


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
    rows = [[t.name, t.target, t.against, measured(t)] for t in TARGETS]
    targets = _table(["row", "target, H100", "against", "measured on one H100 SXM"], rows)
    parts = [
        "# Floors\n\nGenerated by `python bench/floors.py` from the formulas in that file; do not edit.\n"
        "Only the last column of the last table is measured.\n",
        f"## Limits of the devices\n\n{limits}",
        f"## Encoder\n\n24 T D^2 + 4 T^2 D per block and 2 T P^2 D for the tokenizer.\n\n{_encoder_table()}",
        f"## Memory-bound ops\n\nbf16 tokens, predictions and gradients.\n\n{_memory_table()}",
        "## Transforms of the loss\n\nThe kernel's products, three tf32 products each for fp32 accuracy: the floor is "
        f"the larger of the two times.\n\n{_transform_table()}",
        f"## Attention\n\nThe lower of tensor cores and exponential unit, not causal.\n\n{_attention_table()}",
        "## Elementwise ops of a block\n\nfp32 token stream, bf16 between the products; the backward pass of the GELU "
        f"includes copying the gradients of q, k and v.\n\n{_elementwise_table()}",
        f"## Memory of a training step\n\nBy formula; 76 GiB is the target.\n\n{_memory_use_table()}",
        f"## Lion\n\n20 bytes per parameter in fp32: ViT-L (303 M) {' and '.join(lion)}.\n",
        f"## Whole training step\n\n3 x forward at a model-FLOP utilization.\n\n{_model_table()}",
        f"## Targets\n\nMeasured: the newest row of `bench/results/{GPU}/`, with its spread, versions and commit.\n\n"
        f"{targets}",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("FLOORS.md").write_text(document())
