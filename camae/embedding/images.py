"""`camae.embed`: vectors of images in memory, right for every input or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from camae.dataloader.planes import PlaneBatch
from camae.embedding.default_model import resolve_model
from camae.embedding.pooling import check_pool, pool_tokens
from camae.embedding.tiles import tile_corners
from camae.errors import CamaeError
from camae.model.ca_mae import CAMAE, Image, Images, channel_lists, split_images
from camae.model.standardization import OWN_EPS, OWN_EPS_FLOAT, standardization_eps

# Encoder tokens in one pass. On a CPU larger passes fall out of cache; on a GPU smaller ones leave it idle.
TOKENS_PER_PASS = {"cpu": 8_192, "cuda": 131_072}


def embed(
    images: Images,
    channels: Sequence[str] | Sequence[Sequence[str]],
    model: CAMAE | str | Path | None = None,
    pool: str = "mean",
    *,
    value_range: tuple[float, float] | None = None,
    tile: str | None = None,
    overlap: float = 0.0,
    dtype: torch.dtype | str | None = None,
    tokens_per_pass: int | None = None,
) -> np.ndarray | torch.Tensor | list:
    """Embed images of any channel set.

    images: (C, H, W), (B, C, H, W) or a list of (C_i, H, W); uint8, uint16 or float; torch or numpy.
    channels: names, shared by all images or one list per image; distinct within an image.
    model: a model, a path, or None for the one named by `camae.use` or CAMAE_MODEL.
    pool: "mean" over patch tokens, "cls" the class token, "per_channel" a mean for each channel.
    value_range: lowest and highest possible value; needed for float images.
    tile: for images that are not the model's crop: "cover" (tiles, mean over them), "grid" (non-overlapping
        tiles), "interpolate" (positions interpolated to the image's size).
    dtype: compute type, float32 (default) or bfloat16.

    Returns float32 of the input's kind and device: (D,) for one image, (B, D) for a batch or a list of equal
    channel counts, with "per_channel" (C, D) and (B, C, D); a list of vectors when channel counts differ.
    Raises CamaeError for whatever would give silently wrong vectors.
    """
    check_pool(pool)
    net = resolve_model(model)
    samples = split_images(images)
    names = channel_lists(channels, samples)
    for i, (image, channel) in enumerate(zip(samples, names, strict=True)):
        check_image(_tensor(image), f"image {i}", channel, net, value_range)
    pieces, owner = _pieces(net, samples, tile, overlap)
    vectors = encode_samples(
        net,
        pieces,
        [names[i] for i in owner],
        pool,
        value_range=value_range,
        interpolate=tile == "interpolate",
        dtype=dtype,
        tokens_per_pass=tokens_per_pass,
    )
    per_image = [
        torch.stack([vectors[j] for j in range(len(owner)) if owner[j] == i]).mean(0)
        for i in range(len(samples))
    ]
    return _like_input(per_image, images)


def check_image(
    image: torch.Tensor, where: str, names: Sequence[str], model: CAMAE, value_range: tuple | None
) -> None:
    """Raises CamaeError for values that cannot be standardised: NaN, constant planes, unclear float ranges."""
    if image.dtype.is_floating_point and value_range is None:
        highest = float(image.max()) if image.numel() else 0.0
        hint = (
            ": its highest value is <= 1, which looks like an image scaled to [0, 1]" if highest <= 1 else ""
        )
        raise CamaeError(
            f"{where} is {image.dtype}{hint}; say its lowest and highest possible value with value_range=(lo, hi)"
        )
    standardization_eps(model.config.standardization, image.dtype, value_range)
    flat = image.flatten(1)
    for plane, name in zip(flat, names, strict=True):
        values = plane.float()
        if not torch.isfinite(values).all():
            raise CamaeError(f"{where}, channel {name!r} has values that are not finite (NaN or infinity)")
        floor = OWN_EPS if value_range is None else OWN_EPS_FLOAT * (value_range[1] - value_range[0])
        if float(values.max() - values.min()) <= floor:
            raise CamaeError(
                f"{where}, channel {name!r} is constant ({float(values[0]):g} everywhere); leave it out"
            )


def _pieces(
    model: CAMAE, samples: Sequence[Image], tile: str | None, overlap: float
) -> tuple[list[torch.Tensor], list[int]]:
    """Model-sized pieces of every image, and which image each came from."""
    if tile not in (None, "cover", "grid", "interpolate"):
        raise CamaeError(f"tile {tile!r} is not 'cover', 'grid' or 'interpolate'")
    size, pieces, owner = model.config.crop, [], []
    for i, image in enumerate(_tensor(s) for s in samples):
        height, width = image.shape[1:]
        if tile in (None, "interpolate") or (height, width) == (size, size):
            corners, h, w = [(0, 0)], height, width
        else:
            corners, h, w = tile_corners(height, width, size, tile, overlap), size, size
        pieces += [image[:, y : y + h, x : x + w] for y, x in corners]
        owner += [i] * len(corners)
    return pieces, owner


@torch.inference_mode()
def encode_samples(
    model: CAMAE,
    samples: Sequence[torch.Tensor],
    names: Sequence[Sequence[str]],
    pool: str,
    *,
    value_range: tuple[float, float] | None = None,
    interpolate: bool = False,
    dtype: torch.dtype | str | None = None,
    tokens_per_pass: int | None = None,
) -> list[torch.Tensor]:
    """A float32 vector, (D,) or (C, D), on the model's device for each (C_i, H, W) sample, in order.

    Samples are packed into passes of at most `tokens_per_pass` tokens, mixed channel counts together.
    """
    budget = tokens_per_pass or default_budget(model)
    was_training = model.training
    model.eval()
    vectors: list[torch.Tensor] = []
    for start, stop in _passes(samples, model.config.patch, budget):
        batch = PlaneBatch.from_images(samples[start:stop], names[start:stop]).to(model.device)
        with _autocast(model.device, dtype):
            if not isinstance(model, CAMAE):  # the paper's other systems
                vectors += model.embed_batch(batch, pool, value_range=value_range, interpolate=interpolate)
                continue
            tokens, layout = model.encode(batch, value_range=value_range, interpolate=interpolate)
        vectors += pool_tokens(tokens, layout, pool)  # type: ignore[arg-type]
    model.train(was_training)
    return vectors


def default_budget(model: CAMAE) -> int:
    """Encoder tokens in one pass on the model's device."""
    return TOKENS_PER_PASS["cuda" if model.device.type == "cuda" else "cpu"]


def _passes(samples: Sequence[torch.Tensor], patch: int, budget: int) -> Iterator[tuple[int, int]]:
    """Runs of consecutive samples of one size and dtype that fit the token budget (at least one sample)."""
    start, tokens = 0, 0
    for i, sample in enumerate(samples):
        C, H, W = sample.shape
        cost = C * (H // patch) * (W // patch) + 1
        same = sample.shape[1:] == samples[start].shape[1:] and sample.dtype == samples[start].dtype
        if i > start and (not same or tokens + cost > budget):
            yield start, i
            start, tokens = i, 0
        tokens += cost
    if len(samples):
        yield start, len(samples)


def _autocast(device: torch.device, dtype: torch.dtype | str | None) -> contextlib.AbstractContextManager:
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if kind in (None, torch.float32):
        return contextlib.nullcontext()
    if kind != torch.bfloat16:
        raise CamaeError(f"dtype {dtype} is not float32 or bfloat16")
    return torch.autocast(device.type, torch.bfloat16)


def _tensor(image: Image) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image


def _like_input(vectors: list[torch.Tensor], images: Images) -> np.ndarray | torch.Tensor | list:
    """Vectors in the shape, kind and device of the input."""
    is_list = isinstance(images, (list, tuple))
    first = images[0] if is_list else images
    if isinstance(first, np.ndarray):
        out: list = [v.cpu().numpy() for v in vectors]
        stack = np.stack
    else:
        out = [v.to(first.device) for v in vectors]  # type: ignore[union-attr]
        stack = torch.stack  # type: ignore[assignment]
    if not is_list and images.ndim == 3:  # type: ignore[union-attr]
        return out[0]
    if len({image.shape[0] for image in images}) > 1:
        return out
    return stack(out)
