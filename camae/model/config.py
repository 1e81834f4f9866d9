"""Configuration of CA-MAE models, and the table of named presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from camae.errors import CamaeError
from camae.typed_settings import check_settings, frozen, limited

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

# Largest settings of models: beyond what anybody trains, and small enough that a check of them allocates nothing.
MOST_CHANNELS, MOST_CROP, MOST_PATCH = 4096, 2**15, 1024
_MOST_WIDTH, _MOST_BLOCKS = 2**16, 1000
_MOST_POSITIONS = 2**26  # numbers in a table of positions
STANDARDIZATIONS = ("own", "openphenom")
WHERE = "model configuration: "


@dataclass(frozen=True)
class DecoderConfig:
    """Configuration of the decoders: one stack of `depth` blocks per channel name, and shared cross-attention.

    cross_attention: "shared" (the released form: one cross-attention, norms, MLP and head for all channels),
        "per_channel" (the paper's separate decoder for each channel), "none" (self-attention within the
        channel only, over visible and mask tokens).
    context: what cross-attention looks at: "all" tokens of the sample, mask tokens included (released
        form), or only the "visible" ones.
    cross_depth: shared cross-attention blocks, one after the other.
    depth: 0 leaves cross-attention alone (CrossMAE): every masked patch is decoded by itself.
    part: share of the masked patches that a training step decodes, a random part of each sample's; below 1 with
        depth 0. The loss is an unbiased estimate of that of all masked patches.
    cross_residual: add cross-attention to its queries. The released form does not, and then has to learn
        where it is from attention alone, a plateau of hundreds of steps at the start.
    local_start: cross-attention starts at the patch's own place (`camae.model.local_start`), which takes that
        plateau away; an initialization, without effect on loaded weights.
    """

    width: int = limited(512, low=4, high=_MOST_WIDTH)
    depth: int = limited(8, low=0, high=_MOST_BLOCKS)
    heads: int = limited(16, low=1, high=_MOST_WIDTH)
    cross_heads: int = limited(8, low=1, high=_MOST_WIDTH)
    cross_attention: str = limited("shared", choices=("shared", "per_channel", "none"))
    cross_depth: int = limited(1, low=1, high=_MOST_BLOCKS)
    context: str = limited("all", choices=("all", "visible"))
    cross_residual: bool = False
    local_start: bool = False
    part: float = limited(1.0, above=0, high=1)
    norm_eps: float = limited(1e-5, above=0, below=1)


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a CA-MAE. Widths in features, `crop` and `patch` in pixels.

    block: "parallel" (one fused in-projection, q/k norm, LayerScale) or "sequential" (pre-norm ViT block).
    bias_layout: which rows of the fused in-projection the parallel block's bias falls on: "mlp" (the MLP
        rows) or "timm<=1.0.24" (the shifted form that released weights were trained with).
    standardization: "own" (gray levels, eps 1e-3) or "openphenom" (variance + 1e-5 on the [0, 1] scale).
    stored_positions: 0: sine-cosine positions, the same for every channel. C: tables for up to C channels
        stored with the weights, which only a released file that deviates from the formula brings.
    keep_multiple: the encoder's tokens of a masked sample, class token included, are a multiple of it (attention
        tiles without empty rows); 1 keeps the paper's counts.
    channels: names the decoders know, in order. The encoder takes any.
    """

    family: ClassVar[str] = "ca_mae"
    width: int = limited(384, low=4, high=_MOST_WIDTH)
    depth: int = limited(12, low=1, high=_MOST_BLOCKS)
    heads: int = limited(6, low=1, high=_MOST_WIDTH)
    patch: int = limited(16, low=1, high=MOST_PATCH)
    crop: int = limited(256, low=1, high=MOST_CROP)
    block: str = limited("parallel", choices=("parallel", "sequential"))
    mlp_ratio: int = limited(4, low=1, high=64)
    layer_scale: float = limited(1e-4, low=0, high=1e3)
    drop_path: float = limited(0.1, low=0, below=1)
    norm_eps: float = limited(1e-6, above=0, below=1)
    bias_layout: str = limited("mlp", choices=("mlp", "timm<=1.0.24"))
    standardization: str = limited("own", choices=STANDARDIZATIONS)
    stored_positions: int = limited(0, low=0, high=MOST_CHANNELS)
    mask_ratio: float = limited(0.75, low=0, below=1)
    keep_multiple: int = limited(1, low=1, high=4096)
    alpha: float = limited(0.01, low=0, below=1)
    channels: tuple[str, ...] = limited((), most=MOST_CHANNELS)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    name: str = "custom"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def n_blocks(self) -> int:
        """Transformer blocks of the encoder and of all decoders."""
        return self.depth + len(self.channels) * self.decoder.depth

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.crop // self.patch

    @property
    def n_patches(self) -> int:
        """N, patches per plane."""
        return self.grid**2

    def to_dict(self) -> dict[str, object]:
        """Fields as JSON values."""
        return asdict(self) | {"channels": list(self.channels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Inverse of `to_dict`. Raises CamaeError for unknown names and for values of a wrong type or out of range."""
        return with_changes(cls(), values)


def with_changes(base: C, changes: Mapping[str, object]) -> C:
    """A configuration with fields changed; lists become tuples, `decoder` may be a name or a table of settings.

    Raises CamaeError for an unknown field.
    """
    known = {f.name for f in fields(base)}
    if unknown := set(changes) - known:
        raise CamaeError(
            f"unknown model settings {sorted(unknown)}; known ones are {', '.join(sorted(known))}"
        )
    values = {k: frozen(v) for k, v in changes.items()}
    if "decoder" in values and isinstance(base, ModelConfig):
        values["decoder"] = _decoder(base.decoder, values["decoder"])
    return replace(base, **values)


def find_preset(presets: Mapping[str, C], name: str, changes: Mapping[str, object]) -> C:
    """The preset `name` of a family's table, with fields changed. Raises CamaeError for an unknown name or field."""
    if name not in presets:
        raise CamaeError(
            f"there is no model preset {name!r}; presets of this family are {', '.join(presets)}"
        )
    return with_changes(presets[name], changes)


def _decoder(base: DecoderConfig, decoder: object) -> DecoderConfig:
    if isinstance(decoder, DecoderConfig):
        return decoder
    if isinstance(decoder, str) and decoder in DECODERS:
        return DECODERS[decoder]
    if not isinstance(decoder, Mapping):
        raise CamaeError(
            f"decoder must be {', '.join(map(repr, DECODERS))} or a table of settings, not {decoder!r}"
        )
    if unknown := set(decoder) - {f.name for f in fields(DecoderConfig)}:
        raise CamaeError(f"unknown decoder settings {sorted(unknown)}")
    changed = replace(base, **decoder)
    check_settings(changed, f"{WHERE}decoder.")
    return changed


def _check(c: ModelConfig) -> None:
    check_settings(c, WHERE)
    check_settings(c.decoder, f"{WHERE}decoder.")
    positions = c.n_patches * max(c.width, c.decoder.width) * max(1, c.stored_positions)
    problems = [
        (c.width % c.heads == 0, f"width {c.width} is not a multiple of heads {c.heads}"),
        (c.width % 4 == 0 and c.decoder.width % 4 == 0, "sine-cosine positions need widths that 4 divides"),
        (c.crop % c.patch == 0, f"crop {c.crop} px is not a multiple of the patch, {c.patch} px"),
        (
            positions <= _MOST_POSITIONS,
            f"crop {c.crop} px, patch {c.patch} px and width {c.width} make a table of {positions:,} positions; "
            f"at most {_MOST_POSITIONS:,} are possible",
        ),
        (
            c.decoder.width % c.decoder.heads == 0 and c.decoder.width % c.decoder.cross_heads == 0,
            f"decoder width {c.decoder.width} is not a multiple of its heads",
        ),
        (
            not c.decoder.local_start or c.decoder.width % (4 * c.decoder.cross_heads) == 0,
            f"decoder.local_start needs head widths that 4 divides, not {c.decoder.width} / {c.decoder.cross_heads}",
        ),
        (
            c.decoder.cross_depth == 1
            or (c.decoder.cross_depth > 1 and c.decoder.cross_attention == "shared"),
            "decoder.cross_depth above 1 needs cross_attention 'shared'",
        ),
        (
            c.decoder.depth > 0 or c.decoder.cross_attention == "shared",
            "decoder.depth 0 needs cross_attention 'shared'",
        ),
        (
            c.decoder.part == 1 or (0 < c.decoder.part < 1 and c.decoder.depth == 0),
            "decoder.part below 1 needs depth 0: a channel's blocks look at all patches of a plane",
        ),
        (len(set(c.channels)) == len(c.channels), f"channel names repeat: {list(c.channels)}"),
    ]
    for good, sentence in problems:
        if not good:
            raise CamaeError(f"model configuration: {sentence}")


# By name: the paper's separate decoder per channel; the released form; a small one of a tenth of the FLOPs; and
# cross-attention alone, on a random half of the masked patches (CrossMAE).
DECODERS = {
    "paper": DecoderConfig(cross_attention="per_channel"),
    "released": DecoderConfig(),
    "small": DecoderConfig(width=256, depth=2, context="visible", cross_residual=True, local_start=True),
    "cross": DecoderConfig(
        width=256,
        depth=0,
        cross_depth=2,
        context="visible",
        cross_residual=True,
        local_start=True,
        part=0.5,
    ),
}

# (width, depth, heads): ViT sizes of the paper (section 4.2) and ti for tests and laptops.
_SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
# Paper, section 4.2.2: 75 % masking for B/16, 85 % for L/16. Stochastic depth 0.1, 0.3 for L.
_MASK_RATIO = {("l", 16): 0.85}
_DROP_PATH = {"l": 0.3}


def _presets() -> dict[str, ModelConfig]:
    table = {}
    for size, (width, depth, heads) in _SIZES.items():
        for patch in (16, 8):
            name = f"ca_mae_vit_{size}{patch}"
            table[name] = ModelConfig(
                width=width,
                depth=depth,
                heads=heads,
                patch=patch,
                mask_ratio=_MASK_RATIO.get((size, patch), 0.75),
                drop_path=_DROP_PATH.get(size, 0.1),
                name=name,
            )
    return table


PRESETS: dict[str, ModelConfig] = _presets()


def preset(name: str, **changes: object) -> ModelConfig:
    """The named preset, with fields changed: `preset("ca_mae_vit_ti16", crop=128, decoder={"depth": 1})`.

    `decoder` is a name of `DECODERS` or a table of settings.
    Raises CamaeError for an unknown name or field.
    """
    return find_preset(PRESETS, name, changes)


def encoder_parameters(c: ModelConfig) -> int:
    """Trainable parameters of the encoder (tokenizer, class token, blocks), by formula."""
    D, hidden, head = c.width, c.width * c.mlp_ratio, c.width // c.heads
    tokenizer = D * c.patch**2 + D + D
    attention_out, mlp_out = D * D + D, D * hidden + D
    if c.block == "parallel":
        block = 2 * D + (hidden + 3 * D) * D + hidden + 4 * head + attention_out + mlp_out + D
        return tokenizer + c.depth * block
    block = 4 * D + 3 * D * D + 3 * D + attention_out + hidden * D + hidden + mlp_out
    return tokenizer + c.depth * block + 2 * D
