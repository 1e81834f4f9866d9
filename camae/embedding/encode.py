"""Encoder passes: windows of images packed by tokens, mixed channel counts together."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.embedding.windows import Window
from camae.errors import CamaeError
from camae.inference.inference_block import InferenceBlock
from camae.inference.packed_blocks import packed_blocks
from camae.memory import free_memory
from camae.model.eval_mode import eval_mode
from camae.model.interface import Config, Model, TokenModel, TransformerConfig
from camae.model.pooling import MAPS, combine, pool_tokens
from camae.model.token_layout import TokenLayout

T = TypeVar("T")

# Encoder tokens in one pass. On a CPU larger passes fall out of cache; on a GPU smaller ones leave it idle.
MOST_TOKENS = {"cpu": 8_192, "cuda": 131_072}
# float32 values that a token of width D has alive at once in a block (norm, fused projection, GELU, heads, update),
# with room for what the attention back-end allocates.
_LIVE_WIDTHS = 32
_MEMORY_SHARE = 0.6
_USUAL_WIDTH = 1024  # for models that are no transformers
# Pixels of a pass, in tokens' worth of pixels per token of tokens_per_pass: bounds the windows of many small regions.
_PIXELS_PER_TOKEN = 8


@dataclass(frozen=True)
class EncodeOptions:
    """Encoder options: pooling, positions, layers taken, and compute type.

    pool, interpolate: as in `EmbedConfig`. layers: outputs of these blocks, counted from 0, instead of the last one's.
    dtype: "bfloat16", or None or "float32".
    """

    pool: str = "mean"
    interpolate: bool = False
    dtype: str | None = None
    layers: tuple[int, ...] = ()


def compute_type(model: Model, dtype: str | None, device: str) -> str | None:
    """The compute type of passes on a kind of device, None for float32: as asked for, or the default.

    The default is bfloat16 on CUDA and float32 elsewhere. The blocks of an accelerated model have their own, and what
    is around them is float32.
    """
    if dtype is not None:
        return None if dtype == "float32" else dtype
    accelerated = any(isinstance(module, InferenceBlock) for module in model.modules())
    return "bfloat16" if device == "cuda" and not accelerated else None


def bytes_per_token(c: Config) -> int:
    """Memory of a pass for each of its encoder tokens, in float32."""
    width = c.width if isinstance(c, TransformerConfig) else _USUAL_WIDTH
    # Pixels of a token: stored, as float64 for the statistics (twice), standardized.
    return 4 * _LIVE_WIDTHS * width + 24 * c.patch**2


def default_tokens_per_pass(model: Model) -> int:
    """Tokens of one pass that the memory of the model's device holds: at least one crop of one channel."""
    device, c = model.device, model.config
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else free_memory()
    fits = int(_MEMORY_SHARE * free / bytes_per_token(c))
    return max(min(MOST_TOKENS["cuda" if cuda else "cpu"], fits), c.n_patches + 1)


def cost(n_channels: int, height: int, width: int, patch: int, visible: int | None = None) -> tuple[int, int]:
    """(encoder tokens, patches whose pixels are read) of a window that shows `visible` patches of each plane."""
    n_patches = (height // patch) * (width // patch)
    return n_channels * (n_patches if visible is None else visible) + 1, n_channels * n_patches


def pack(
    items: Iterable[T],
    kind: Callable[[T], Hashable],
    cost: Callable[[T], tuple[int, int]],
    tokens_per_pass: int,
) -> Iterator[list[T]]:
    """Passes: runs of consecutive items of one kind with at most `tokens_per_pass` tokens, or of a single item.

    A pure function of kinds, costs and `tokens_per_pass`: the same items always meet in the same pass.
    """
    run: list[T] = []
    tokens = pixels = 0
    for item in items:
        item_tokens, item_pixels = cost(item)
        full = (
            tokens + item_tokens > tokens_per_pass
            or pixels + item_pixels > _PIXELS_PER_TOKEN * tokens_per_pass
        )
        if run and (full or kind(item) != kind(run[0])):
            yield run
            run, tokens, pixels = [], 0, 0
        run.append(item)
        tokens += item_tokens
        pixels += item_pixels
    if run:
        yield run


class WindowMeans:
    """Weighted means of window vectors, gathered by vector index; moments are those of all windows' tokens."""

    def __init__(self, pool: str, patch: int):
        self.pool, self.patch = pool, patch
        self._vectors: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._weights: dict[int, list[int]] = defaultdict(list)

    def add(self, window: Window, vector: torch.Tensor) -> None:
        """A window counts by its visible patches, for class tokens once."""
        self._vectors[window.vector_index].append(vector)
        self._weights[window.vector_index].append(1 if self.pool == "cls" else window.n_visible(self.patch))

    def pop(self, vector_index: int) -> tuple[torch.Tensor, int]:
        """The mean of a vector's windows, and how many there were; they are forgotten."""
        vectors, weights = self._vectors.pop(vector_index), self._weights.pop(vector_index)
        return combine(vectors, weights, self.pool), len(vectors)


def encode_windows(
    model: Model,
    images: Sequence[torch.Tensor],
    names: Sequence[Sequence[str]],
    windows: Sequence[Window],
    options: EncodeOptions,
    tokens_per_pass: int,
    value_range: ValueRange | None = None,
) -> list[torch.Tensor]:
    """Float32 vectors by vector index, on the model's device.

    Windows are packed by size and dtype, then by tokens. tokens_per_pass: most tokens of a pass of several windows.
    """
    patch = model.config.patch

    def kind(window: Window) -> Hashable:
        return window.height, window.width, images[window.image].dtype

    def tokens(window: Window) -> tuple[int, int]:
        n_channels = len(model.encoded_channels(names[window.image]))
        return cost(n_channels, window.height, window.width, patch, window.n_visible(patch))

    first: dict[Hashable, int] = {}
    for window in windows:
        first.setdefault(kind(window), len(first))
    means = WindowMeans(options.pool, patch)
    for run in pack(sorted(windows, key=lambda w: first[kind(w)]), kind, tokens, tokens_per_pass):
        batch = PlaneBatch.from_images(
            [window.cut(images[window.image]) for window in run],
            [names[window.image] for window in run],
            value_range=value_range,
        )
        vectors = encode_batch(model, batch, [window.patches for window in run], options)
        for window, vector in zip(run, vectors, strict=True):
            means.add(window, vector)
    return [means.pop(index)[0] for index in dict.fromkeys(window.vector_index for window in windows)]


@torch.inference_mode()
def encode_batch(
    model: Model, batch: PlaneBatch, patches: Sequence[torch.Tensor | None], options: EncodeOptions
) -> list[torch.Tensor]:
    """One encoder pass: a float32 vector per sample, (D,) or (C, D), with layers (L, D) or (L, C, D).

    patches: visible patches of each sample's planes, None for all.
    """
    try:
        with (
            eval_mode(model),
            packed_blocks(model, options.dtype or "float32"),
            _autocast(model.device, options.dtype),
        ):
            return _encode(model, batch.to(model.device, non_blocking=True), patches, options)
    except torch.OutOfMemoryError:
        raise CamaeError(
            f"a pass of {len(batch.planes_KHW)} planes does not fit into the memory of {model.device}; "
            "give a smaller tokens_per_pass"
        ) from None


def _encode(
    model: Model, batch: PlaneBatch, patches: Sequence[torch.Tensor | None], options: EncodeOptions
) -> list[torch.Tensor]:
    partial = any(p is not None for p in patches)
    if not isinstance(model, TokenModel):
        if partial or options.layers or options.pool in MAPS:
            raise CamaeError(
                f"{model.config.name} has no tokens: region=, layers= and pool='patch' need a CA-MAE"
            )
        return model.embed_batch(batch, options.pool, interpolate=options.interpolate)
    visible = visible_layout(batch, model.n_patches(batch), patches) if partial else None
    if not options.layers:
        tokens_TD, layout = model.encode(batch, visible, interpolate=options.interpolate)
        return pool_tokens(tokens_TD, layout, options.pool)
    blocks = tuple(sorted(set(options.layers)))
    tokens, layout = model.encode_layers(batch, blocks, visible, interpolate=options.interpolate)
    outputs = [pool_tokens(tokens[blocks.index(i)], layout, options.pool) for i in options.layers]
    return [torch.stack(layers) for layers in zip(*outputs, strict=True)]


def visible_layout(batch: PlaneBatch, n_patches: int, patches: Sequence[torch.Tensor | None]) -> TokenLayout:
    """The layout in which sample b shows `patches[b]` of each of its planes."""
    planes = batch.planes_per_sample
    everything, kept, first = torch.arange(n_patches), [], 0
    for count, visible in zip(planes, patches, strict=True):
        index = everything if visible is None else visible
        kept.append((torch.arange(first, first + count)[:, None] * n_patches + index).flatten())
        first += count
    return TokenLayout(
        planes_per_sample=planes,
        n_patches=n_patches,
        kept_per_sample=tuple(len(k) for k in kept),
        keep_index=torch.cat(kept).to(batch.planes_KHW.device, non_blocking=True),
        device=batch.planes_KHW.device,
    )


def _autocast(device: torch.device, dtype: str | None) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
