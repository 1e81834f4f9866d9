"""Check of vectors: NaN and infinity are refused, naming the model, the image and the channel that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from camae.dataloader.plane_batch import ValueRange
from camae.embedding.encode import EncodeOptions, encode_windows
from camae.embedding.windows import Window
from camae.errors import CamaeError
from camae.model.interface import Model


def all_finite(vectors: Sequence[torch.Tensor]) -> bool:
    """Whether all values of these vectors are numbers; a single wait for a GPU."""
    return not vectors or bool(torch.stack([torch.isfinite(vector).all() for vector in vectors]).all())


def not_finite(model: Model, where: str, names: Sequence[str], suspects: Sequence[str]) -> CamaeError:
    """The error for a vector with NaN or infinity.

    names: channels of the image. suspects: those that give such a vector alone, as `suspect_channels` finds them.
    """
    if suspects and len(suspects) < len(names):
        what = f", by its channel {', '.join(map(repr, suspects))}"
        advice = "look at these pixels, and at value_range: values may be too large or too small for float32"
    else:
        what = f", by all its channels ({', '.join(names)})" if suspects else ""
        advice = (
            "the model may hold damaged weights, or value_range may not fit, so that values are too large or too "
            "small for float32"
        )
    return CamaeError(
        f"{where}: the model {model.config.name} gives a vector with NaN or infinity{what}; {advice}"
    )


def suspect_channels(
    model: Model,
    image_CHW: torch.Tensor,
    names: Sequence[str],
    windows: Sequence[Window],
    options: EncodeOptions,
    tokens_per_pass: int,
    value_range: ValueRange | None,
) -> list[str]:
    """Channels of an image that alone give a vector with NaN or infinity; none for models of a fixed channel set."""
    found = []
    alone = [replace(window, image=0) for window in windows]
    for c, name in enumerate(names):
        try:
            vectors = encode_windows(
                model, [image_CHW[c : c + 1]], [[name]], alone, options, tokens_per_pass, value_range
            )
        except CamaeError:
            return []
        if not all_finite(vectors):
            found.append(name)
    return found
