"""Images in memory, as `camae.embed` takes them, and its vectors in the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from camae.dataloader.plane_batch import ValueRange, plane_tensor
from camae.embedding.validate import check_channels, check_images, check_values, extremes
from camae.model.interface import ChannelNames, Image, Images

Vectors = np.ndarray | torch.Tensor | list[np.ndarray] | list[torch.Tensor]


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, checked, one by one.

    samples: as given, (C, H, W) each. tensors: the same as tensors. names: channel names of each.
    extremes: (2, C) lowest and highest value of the planes of each. single: one image (C, H, W) was given.
    is_list: a list of images was given, not one array.
    """

    samples: list[Image]
    tensors: list[torch.Tensor]
    names: list[list[str]]
    extremes: list[np.ndarray]
    single: bool
    is_list: bool

    @classmethod
    def of(cls, images: Images, channels: ChannelNames) -> ImageSet:
        """Raises CamaeError for images or names that are none, or do not fit each other."""
        samples = check_images(images)
        names = check_channels(channels, samples)
        tensors = [plane_tensor(sample) for sample in samples]
        if not isinstance(images, np.ndarray | torch.Tensor):
            return cls(samples, tensors, names, [extremes(t) for t in tensors], single=False, is_list=True)
        # The planes of a batch are looked at once, with a single wait for a GPU.
        whole = plane_tensor(images) if images.ndim == 4 else tensors[0][None]
        found = list(extremes(whole).swapaxes(0, 1))
        return cls(samples, tensors, names, found, single=images.ndim == 3, is_list=False)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def ragged(self) -> bool:
        """Whether a list holds images of different channel counts."""
        return self.is_list and len({len(names) for names in self.names}) > 1

    def check_values(self, standardization: str, value_range: ValueRange | None) -> None:
        """Raises CamaeError for values that cannot be standardized, naming image and channel."""
        each = zip(self.tensors, self.names, self.extremes, strict=True)
        for i, (image, names, found) in enumerate(each):
            check_values(image, f"image {i}", names, standardization, value_range, found)

    def like_input(self, vectors: Sequence[torch.Tensor], stack: bool) -> Vectors:
        """Vectors, one tensor per image, in the kind and on the device of the images: an array, or a list of them."""
        like = self.samples[0]
        if isinstance(like, np.ndarray):
            arrays = [v.cpu().numpy() for v in vectors]
            return arrays[0] if self.single else np.stack(arrays) if stack else arrays
        tensors = [v.to(like.device) for v in vectors]
        return tensors[0] if self.single else torch.stack(tensors) if stack else tensors
