"""Passes of the encoder: pieces of images packed up to a token budget, mixed channel counts together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.errors import CamaeError
from camae.model.pooling import pool_tokens
from camae.model.token_layout import TokenLayout, planes_per_sample

T = TypeVar("T")

# Encoder tokens in one pass. On a CPU larger passes fall out of cache; on a GPU smaller ones leave it idle.
MOST_TOKENS = {"cpu": 8_192, "cuda": 131_072}
# float32 values that a token of width D has alive at once in a block (norm, fused projection, GELU, heads, update),
# with room for what the attention back-end allocates.
_LIVE_WIDTHS = 32
_MEMORY_SHARE = 0.6
# Pixels of a pass, in tokens' worth of pixels per budgeted token: bounds the windows of many small regions.
_PIXELS_PER_TOKEN = 8


@dataclass(frozen=True)
class Piece:
    """One sample of a pass: a window of an image.

    owner: the output vector it is part of. patches: (n,) int64 ascending, the visible patches of every plane;
    None when all are.
    """

    image: int
    owner: int
    y: int
    x: int
    height: int
    width: int
    patches: torch.Tensor | None = None

    def cut(self, image_CHW: torch.Tensor) -> torch.Tensor:
        """Its pixels (C, height, width)."""
        return image_CHW[:, self.y : self.y + self.height, self.x : self.x + self.width]

    def n_visible(self, patch: int) -> int:
        """Visible patches of each plane."""
        return (self.height // patch) * (self.width // patch) if self.patches is None else len(self.patches)


@dataclass(frozen=True)
class Reading:
    """What is taken from the encoder, and how it computes.

    layers: outputs of these blocks instead of the last one's; dtype: None (float32) or bfloat16.
    """

    pool: str = "mean"
    interpolate: bool = False
    dtype: torch.dtype | None = None
    layers: tuple[int, ...] = ()


def token_budget(model: Any) -> int:
    """Tokens of one pass that the memory of the model's device holds: at least one crop of one channel."""
    device, c = model.device, model.config
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else _free_memory()
    width = getattr(c, "width", 1024)
    # Pixels of a token: stored, as float64 for the statistics (twice), standardized.
    per_token = 4 * _LIVE_WIDTHS * width + 24 * c.patch**2
    fits = int(_MEMORY_SHARE * free / per_token)
    return max(min(MOST_TOKENS["cuda" if cuda else "cpu"], fits), c.n_patches + 1)


def _free_memory() -> int:
    """Bytes of memory a process can take now, as Linux says; 4 GB where it does not."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 2**30


def cost(n_channels: int, height: int, width: int, patch: int, visible: int | None = None) -> tuple[int, int]:
    """(encoder tokens, patches whose pixels are read) of a piece that shows `visible` patches of each plane."""
    n_patches = (height // patch) * (width // patch)
    return n_channels * (n_patches if visible is None else visible) + 1, n_channels * n_patches


def pack(
    items: Iterable[T], kind: Callable[[T], Hashable], cost: Callable[[T], tuple[int, int]], budget: int
) -> Iterator[list[T]]:
    """Runs of consecutive items of one kind whose tokens fit `budget`; one that does not fit alone is a run.

    A pure function of kinds, costs and budget: the same items always meet in the same pass.
    """
    run: list[T] = []
    tokens = pixels = 0
    for item in items:
        item_tokens, item_pixels = cost(item)
        full = tokens + item_tokens > budget or pixels + item_pixels > _PIXELS_PER_TOKEN * budget
        if run and (full or kind(item) != kind(run[0])):
            yield run
            run, tokens, pixels = [], 0, 0
        run.append(item)
        tokens += item_tokens
        pixels += item_pixels
    if run:
        yield run


def encode_pieces(
    model: Any,
    images: Sequence[torch.Tensor],
    names: Sequence[Sequence[str]],
    pieces: Sequence[Piece],
    reading: Reading,
    budget: int,
    value_range: ValueRange | None = None,
) -> list[torch.Tensor]:
    """The float32 vector of every piece, in order, on the model's device; packed by size and dtype, then by tokens."""
    patch = model.config.patch

    def kind(i: int) -> tuple:
        return pieces[i].height, pieces[i].width, images[pieces[i].image].dtype

    def tokens(i: int) -> tuple[int, int]:
        p = pieces[i]
        return cost(len(names[p.image]), p.height, p.width, patch, p.n_visible(patch))

    first = {kind(i): i for i in reversed(range(len(pieces)))}
    order = sorted(range(len(pieces)), key=lambda i: first[kind(i)])
    vectors: list[Any] = [None] * len(pieces)
    for run in pack(order, kind, tokens, budget):
        batch = PlaneBatch.from_images(
            [pieces[i].cut(images[pieces[i].image]) for i in run],
            [names[pieces[i].image] for i in run],
            value_range=value_range,
        )
        patches = [pieces[i].patches for i in run]
        for i, vector in zip(run, encode_batch(model, batch, patches, reading), strict=True):
            vectors[i] = vector
    return vectors


@torch.inference_mode()
def encode_batch(
    model: Any, batch: PlaneBatch, patches: Sequence[torch.Tensor | None], reading: Reading
) -> list[torch.Tensor]:
    """One pass: a float32 vector per sample, (D,) or (C, D), with layers (L, D) or (L, C, D).

    patches: visible patches of each sample's planes, None for all.
    """
    was_training = model.training
    model.eval()
    try:
        with _autocast(model.device, reading.dtype):
            return _encode(model, batch.to(model.device, non_blocking=True), patches, reading)
    except torch.OutOfMemoryError:
        raise CamaeError(
            f"a pass of {len(batch.planes_KHW)} planes does not fit into the memory of {model.device}; "
            "give a smaller tokens_per_pass"
        ) from None
    finally:
        model.train(was_training)


def _encode(
    model: Any, batch: PlaneBatch, patches: Sequence[torch.Tensor | None], reading: Reading
) -> list[torch.Tensor]:
    partial = any(p is not None for p in patches)
    if not hasattr(model, "encode"):
        if partial or reading.layers:
            raise CamaeError(f"{model.config.name} has no tokens: region= and layers= need a CA-MAE")
        return model.embed_batch(batch, reading.pool, interpolate=reading.interpolate)
    partial_layout = visible_layout(batch, model.n_patches(batch), patches) if partial else None
    if not reading.layers:
        tokens_TD, layout = model.encode(batch, partial_layout, interpolate=reading.interpolate)
        return pool_tokens(tokens_TD, layout, reading.pool)
    blocks = tuple(sorted(set(reading.layers)))
    outputs, layout = model.encode_layers(batch, blocks, partial_layout, interpolate=reading.interpolate)
    pooled = [pool_tokens(outputs[blocks.index(i)], layout, reading.pool) for i in reading.layers]
    return [torch.stack(layers) for layers in zip(*pooled, strict=True)]


def visible_layout(batch: PlaneBatch, n_patches: int, patches: Sequence[torch.Tensor | None]) -> TokenLayout:
    """The layout in which sample b shows `patches[b]` of each of its planes."""
    planes = planes_per_sample(batch)
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


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    if dtype in (None, torch.float32):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)
