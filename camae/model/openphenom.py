"""Released CA-MAE weights (OpenPhenom) as a camae model: the table of names, and sizes from the shapes.

A config.json beside the file is not read: its mask ratio of 0 is not what the weights were trained with.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import torch

from camae.errors import CamaeError
from camae.model.config import DecoderConfig, ModelConfig
from camae.model.positions import sincos_positions
from camae.model.tensor_files import check_shapes

# Channels of the RxRx screens in the order w1 ... w6, which is the order of the released decoders.
STAINS = ("DNA", "ER", "Actin", "RNA", "Mito", "AGP")
HISTORICAL_BIAS = "timm<=1.0.24"
_BIAS_NAMES = {"timm>=1.0.25": "mlp"}

_E, _D = "encoder.vit_backbone.", "decoder."
# Released name, our name, shape. `.*` stands for `.weight` of that shape and `.bias` of its first axis.
# {b}: encoder block, {c}: channel, {d}: decoder block. D: width, d: head dim, P: patch, W: decoder width.
TABLE = (
    (f"{_E}cls_token", "encoder.cls_D", "1 1 D"),
    (f"{_E}patch_embed.proj.weight", "encoder.patch_weight_DP2", "D 1 P P"),
    (f"{_E}patch_embed.proj.bias", "encoder.patch_bias_D", "D"),
    (f"{_E}blocks.{{b}}.mlp_bias", "encoder.blocks.{b}.mlp_bias", "4D"),
    (f"{_E}blocks.{{b}}.in_norm.*", "encoder.blocks.{b}.in_norm.*", "D"),
    (f"{_E}blocks.{{b}}.in_proj.weight", "encoder.blocks.{b}.in_proj.weight", "7D D"),
    (f"{_E}blocks.{{b}}.q_norm.*", "encoder.blocks.{b}.q_norm.*", "d"),
    (f"{_E}blocks.{{b}}.k_norm.*", "encoder.blocks.{b}.k_norm.*", "d"),
    (f"{_E}blocks.{{b}}.attn_out_proj.*", "encoder.blocks.{b}.attn_out_proj.*", "D D"),
    (f"{_E}blocks.{{b}}.mlp_out_proj.*", "encoder.blocks.{b}.mlp_out_proj.*", "D 4D"),
    (f"{_E}blocks.{{b}}.ls.gamma", "encoder.blocks.{b}.gamma", "D"),
    ("encoder_decoder_proj.*", "decoder.project.*", "W D"),
    (f"{_D}mask_token", "decoder.mask_token_D", "1 1 W"),
    (f"{_D}query_norm.*", "decoder.cross.0.query_norm.*", "W"),
    (f"{_D}context_norm.*", "decoder.cross.0.context_norm.*", "W"),
    (f"{_D}cross_attention.q.weight", "decoder.cross.0.q.weight", "W W"),
    (f"{_D}cross_attention.kv.weight", "decoder.cross.0.kv.weight", "2W W"),
    (f"{_D}cross_attention.proj.*", "decoder.cross.0.proj.*", "W W"),
    (f"{_D}out_norm.*", "decoder.cross.0.out_norm.*", "W"),
    (f"{_D}mlp.fc1.*", "decoder.cross.0.fc1.*", "4W W"),
    (f"{_D}mlp.fc2.*", "decoder.cross.0.fc2.*", "W 4W"),
    (f"{_D}decoders.{{c}}.{{d}}.norm1.*", "decoder.stacks.{c}.{d}.norm1.*", "W"),
    (f"{_D}decoders.{{c}}.{{d}}.attn.qkv.*", "decoder.stacks.{c}.{d}.qkv.*", "3W W"),
    (f"{_D}decoders.{{c}}.{{d}}.attn.proj.*", "decoder.stacks.{c}.{d}.proj.*", "W W"),
    (f"{_D}decoders.{{c}}.{{d}}.norm2.*", "decoder.stacks.{c}.{d}.norm2.*", "W"),
    (f"{_D}decoders.{{c}}.{{d}}.mlp.fc1.*", "decoder.stacks.{c}.{d}.fc1.*", "4W W"),
    (f"{_D}decoders.{{c}}.{{d}}.mlp.fc2.*", "decoder.stacks.{c}.{d}.fc2.*", "W 4W"),
    ("decoder_pred.*", "decoder.heads.0.*", "P2 W"),
    # One row each of decoder.channel_tokens_CD.
    (f"{_D}modality_tokens.{{c}}", "decoder.channel_token.{c}", "1 1 W"),
    # Position tables, class token first.
    (f"{_E}pos_embed", "encoder.positions", "1 L D"),
    (f"{_D}pos_embeddings", "decoder.positions", "1 M W"),
    # In the file, but in neither the embedding nor the reconstruction.
    (f"{_E}fc_norm.*", "", "D"),
    (f"{_D}placeholder", "", "1 1 W"),
)

# What shapes do not tell. Encoder width: (name, depth, stochastic depth); heads of the decoders.
_BACKBONES = {384: ("s", 12, 0.1), 768: ("b", 12, 0.1), 1024: ("l", 24, 0.3)}
_DECODER_HEADS, _CROSS_HEADS = 16, 8
_ENCODER_CHANNELS = 11  # that the released position table has rows for
# Sizes of the S/16 file, for tensors that are missing.
_S16 = {"D": 384, "d": 64, "P": 16, "W": 512, "L": 2817, "M": 1537}
# A stored table this near the formula is the formula: fp32 rounding of angles up to 16 is 1e-6.
_SAME_TABLE = 1e-5


@dataclass(frozen=True)
class _Sizes:
    width: int
    depth: int
    head: int
    patch: int
    n_patches: int
    encoder_channels: int
    decoder_width: int
    decoder_depth: int
    channels: int


def is_openphenom(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the names are those of a released CA-MAE."""
    return any(name.startswith(_E) for name in tensors)


def translate(
    file: Path, tensors: dict[str, torch.Tensor], **changes: object
) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Translate released weights: configuration and state dict of a CA-MAE.

    changes: configuration fields to override: `bias_layout` ("timm<=1.0.24", how released weights were trained,
    is the default; "mlp" or "timm>=1.0.25" for weights trained with a later timm), `channels`, `mask_ratio` ...
    Raises CamaeError that lists missing, unexpected and wrongly shaped tensors.
    """
    sizes = _sizes(tensors)
    expected = {name: shape for name, _, shape in _rows(sizes)}
    check_shapes(file, expected, {name: tuple(t.shape) for name, t in tensors.items()})
    if sizes.width in _BACKBONES and sizes.depth != _BACKBONES[sizes.width][1]:
        warnings.warn(
            f"{file}: {sizes.depth} encoder blocks of width {sizes.width}; released models of this width have "
            f"{_BACKBONES[sizes.width][1]}",
            stacklevel=2,
        )
    if math.isqrt(sizes.n_patches) ** 2 != sizes.n_patches:
        raise CamaeError(f"{file}: {sizes.n_patches} positions in a channel are not a square grid")
    state = _state(tensors, sizes)
    stored = "encoder.stored_positions_CND" in state
    return _config(file, sizes, stored, changes), state


def _sizes(tensors: Mapping[str, torch.Tensor]) -> _Sizes:
    """What most tensors agree on, so that a wrong one is named; the S/16 file's where there is none."""
    votes = {symbol: Counter({default: 0}) for symbol, default in _S16.items()}
    counts = {"b": 0, "c": 0, "d": 0}
    rows = [(_pattern(theirs), _axes(text)) for theirs, _, text in TABLE]
    for name, tensor in tensors.items():
        for pattern, axes in rows:
            if match := pattern.fullmatch(name):
                for (factor, symbol), side in zip(axes, tensor.shape, strict=False):
                    if symbol == "P2":
                        votes["P"][math.isqrt(side)] += 1
                    elif symbol in votes:
                        votes[symbol][side // factor] += 1
                for letter, number in match.groupdict().items():
                    counts[letter] = max(counts[letter], int(number) + 1)
    size = {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}
    channels = counts["c"] or len(STAINS)
    table, tiles = (size["M"], channels) if votes["M"].total() else (size["L"], _ENCODER_CHANNELS)
    n_patches = max(1, (table - 1) // tiles)
    return _Sizes(
        width=size["D"],
        depth=counts["b"],
        head=size["d"],
        patch=size["P"],
        n_patches=n_patches,
        encoder_channels=(size["L"] - 1) // n_patches,
        decoder_width=size["W"],
        decoder_depth=counts["d"],
        channels=channels,
    )


def _pattern(theirs: str) -> re.Pattern[str]:
    """A name of the table as a pattern, with a group for each of its numbers."""
    text = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(theirs))
    return re.compile(text.replace(r"\*", "(?:weight|bias)"))


def _axes(text: str) -> list[tuple[int, str]]:
    """Factor and symbol of every axis: "2W 1" is [(2, "W"), (1, "")]."""
    found = (re.fullmatch(r"(\d*)(\w*)", axis) for axis in text.split())
    return [(int(axis[1] or 1), axis[2]) for axis in found if axis]


def _rows(s: _Sizes) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The table with its numbers filled in: released name, our name, shape."""
    sides = {"": 1, "D": s.width, "d": s.head, "P": s.patch, "P2": s.patch**2, "W": s.decoder_width}
    sides["L"] = 1 + s.encoder_channels * s.n_patches
    sides["M"] = 1 + s.channels * s.n_patches
    ranges = {"b": s.depth, "c": s.channels, "d": s.decoder_depth}
    for theirs, ours, text in TABLE:
        shape = tuple(factor * sides[symbol] for factor, symbol in _axes(text))
        used = [letter for letter in ranges if f"{{{letter}}}" in theirs]
        for numbers in product(*(range(ranges[letter]) for letter in used)):
            values = dict(zip(used, numbers, strict=True))
            name, mine = theirs.format(**values), ours.format(**values)
            if name.endswith("*"):
                yield name[:-1] + "weight", mine.replace("*", "weight"), shape
                yield name[:-1] + "bias", mine.replace("*", "bias"), shape[:1]
            else:
                yield name, mine, shape


def _config(file: Path, s: _Sizes, stored: bool, changes: dict[str, object]) -> ModelConfig:
    channels = tuple(cast(Sequence[str], changes.get("channels", STAINS)))
    if len(channels) != s.channels:
        raise CamaeError(
            f"{file}: {s.channels} decoders, but {len(channels)} channel names; name them with channels=[...]"
        )
    size, _, drop_path = _BACKBONES.get(s.width, (str(s.width), s.depth, 0.1))
    values: dict[str, object] = {
        "width": s.width,
        "depth": s.depth,
        "heads": s.width // s.head,
        "patch": s.patch,
        "crop": math.isqrt(s.n_patches) * s.patch,
        "drop_path": drop_path,
        "bias_layout": HISTORICAL_BIAS,
        "standardization": "openphenom",
        "stored_positions": s.encoder_channels if stored else 0,
        "decoder": DecoderConfig(
            width=s.decoder_width, depth=s.decoder_depth, heads=_DECODER_HEADS, cross_heads=_CROSS_HEADS
        ),
        "name": f"openphenom_{size}{s.patch}",
    }
    layout = str(changes.get("bias_layout", HISTORICAL_BIAS))
    return ModelConfig.from_dict(
        values | changes | {"channels": channels, "bias_layout": _BIAS_NAMES.get(layout, layout)}
    )


def _state(tensors: dict[str, torch.Tensor], s: _Sizes) -> dict[str, torch.Tensor]:
    """Our names and shapes; no tensor is copied except the few that are put together."""
    state = {mine: tensors[theirs] for theirs, mine, _ in _rows(s) if mine}
    tables = {part: state.pop(f"{part}.positions")[0] for part in ("encoder", "decoder")}
    tokens = [state.pop(f"decoder.channel_token.{c}").flatten() for c in range(s.channels)]
    state["decoder.channel_tokens_CD"] = torch.stack(tokens)
    state["decoder.mask_token_D"] = state["decoder.mask_token_D"].flatten()
    state["encoder.cls_D"] = state["encoder.cls_D"].flatten() + tables["encoder"][0]
    state["encoder.patch_weight_DP2"] = state["encoder.patch_weight_DP2"].flatten(1)
    if not all(_is_sincos(table_LD[1:], s.n_patches) for table_LD in tables.values()):
        for part, table_LD in tables.items():
            state[f"{part}.stored_positions_CND"] = table_LD[1:].unflatten(0, (-1, s.n_patches))
    return state


def _is_sincos(rows_LD: torch.Tensor, n_patches: int) -> bool:
    """Whether position rows are those of the formula, the same for every channel."""
    grid, width = math.isqrt(n_patches), rows_LD.shape[1]
    if width % 4:
        return False
    table_ND = sincos_positions(grid, grid, width)
    return bool((rows_LD.unflatten(0, (-1, n_patches)) - table_ND).abs().max() < _SAME_TABLE)
