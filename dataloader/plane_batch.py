"""Plane batch: the form in which images reach a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from camae.errors import CamaeError

ValueRange = tuple[float, float]  # lowest and highest possible value, in stored units


def plane_tensor(image: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Planes as a tensor that shares their memory where it can: not with another byte order or negative strides.

    Raises CamaeError for what holds no numbers or no values (a tensor of the meta device), and for a sparse tensor.
    """
    if isinstance(image, torch.Tensor):
        sparse = image.layout != torch.strided
        if image.is_complex() or image.is_meta or sparse:
            what = "a tensor of the meta device, which has no values" if image.is_meta else str(image.dtype)
            what = "a sparse tensor; call .to_dense()" if sparse else what
            raise CamaeError(f"planes must be uint8, uint16 or float, not {what}")
        return image
    if image.dtype.kind not in "biuf":
        raise CamaeError(f"planes must be uint8, uint16 or float, not {image.dtype}")
    array = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
    # torch warns of memory that cannot be written (a memory map, a file read at once); planes are never written.
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


class _Writable:
    """A view of an array that says it can be written."""

    def __init__(self, array: np.ndarray):
        self.array = array  # kept while the view is
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


@dataclass(frozen=True)
class PlaneBatch:
    """Batch of planes: one plane is one channel of one crop, in its stored dtype.

    planes_KHW: (K, H, W) uint8, uint16 or float32.
    sample_K:   (K,) int64, which sample (crop) each plane belongs to; non-decreasing, 0..B-1, none skipped.
    channel_K:  (K,) int64, which of `channels` each plane shows.
    channels:   channel names that channel_K points into.
    rows_B:     (B,) int64, the manifest row each sample came from (-1 when it came from memory).
    slots_B:    (B,) int64, the number of each sample among all a run draws; empty when it came from memory.
    source_B:   (B,) int64, which of several data sets each sample came from; empty when there is one.
    value_range: lowest and highest possible value of the planes; None where it was not said. Float planes need it.
    constant_K: (K,) bool on the host, planes in which every pixel is the same; empty where the reader did not look.

    The planes may lie on another device than the indices: a reader that decodes on a GPU leaves them there.
    """

    planes_KHW: torch.Tensor
    sample_K: torch.Tensor
    channel_K: torch.Tensor
    channels: tuple[str, ...]
    rows_B: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    slots_B: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    source_B: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    value_range: ValueRange | None = None
    constant_K: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    def __post_init__(self) -> None:
        K = self.planes_KHW.shape[0]
        if self.planes_KHW.ndim != 3 or self.sample_K.shape != (K,) or self.channel_K.shape != (K,):
            raise CamaeError(
                f"a plane batch needs planes (K, H, W) with K sample and K channel indices, got "
                f"{tuple(self.planes_KHW.shape)}, {tuple(self.sample_K.shape)}, {tuple(self.channel_K.shape)}"
            )

    @property
    def n_samples(self) -> int:
        """Number of samples (crops), B."""
        return len(self.planes_per_sample)

    @cached_property
    def planes_per_sample(self) -> tuple[int, ...]:
        """Number of planes of each sample (B,), on the host."""
        return tuple(torch.bincount(self.sample_K.cpu()).tolist())

    @cached_property
    def names_K(self) -> list[str]:
        """Channel name of every plane (K,)."""
        return [self.channels[i] for i in self.channel_K.tolist()]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PlaneBatch:
        """Copy of the batch with its tensors on `device`."""
        moved = replace(
            self,
            planes_KHW=self.planes_KHW.to(device, non_blocking=non_blocking),
            sample_K=self.sample_K.to(device, non_blocking=non_blocking),
            channel_K=self.channel_K.to(device, non_blocking=non_blocking),
        )
        # Carried over, as reading them back would make the host wait for the device.
        object.__setattr__(moved, "planes_per_sample", self.planes_per_sample)
        object.__setattr__(moved, "names_K", self.names_K)
        return moved

    def part(self, first: int, last: int) -> PlaneBatch:
        """Samples first..last-1 as a batch (views, no copies)."""
        start, stop = (sum(self.planes_per_sample[:b]) for b in (first, last))
        return replace(
            self,
            planes_KHW=self.planes_KHW[start:stop],
            sample_K=self.sample_K[start:stop] - first,
            channel_K=self.channel_K[start:stop],
            rows_B=self.rows_B[first:last],
            slots_B=self.slots_B[first:last],
            source_B=self.source_B[first:last],
            constant_K=self.constant_K[start:stop],
        )

    @classmethod
    def from_images(
        cls,
        images: Sequence[np.ndarray | torch.Tensor],
        channels: Sequence[Sequence[str]],
        rows: Sequence[int] | None = None,
        value_range: ValueRange | None = None,
    ) -> PlaneBatch:
        """Batch of images (C_i, H, W), all of one H, W and dtype, with their channel names.

        rows: their manifest rows; None for images from memory.

        Raises CamaeError when sizes or dtypes differ or names do not match the number of planes.
        """
        tensors = [plane_tensor(x) for x in images]
        if not tensors:
            raise CamaeError("a plane batch needs at least one image")
        for i, (x, names) in enumerate(zip(tensors, channels, strict=True)):
            if x.ndim != 3 or x.shape[0] != len(names):
                raise CamaeError(
                    f"image {i} has shape {tuple(x.shape)} but {len(names)} channel names {list(names)}"
                )
            if x.shape[1:] != tensors[0].shape[1:] or x.dtype != tensors[0].dtype:
                raise CamaeError(
                    f"image {i} is {tuple(x.shape[1:])} {x.dtype} but image 0 is "
                    f"{tuple(tensors[0].shape[1:])} {tensors[0].dtype}: a batch holds one size and one dtype"
                )
        vocabulary = tuple(dict.fromkeys(name for names in channels for name in names))
        index = {name: i for i, name in enumerate(vocabulary)}
        device = tensors[0].device
        counts = torch.tensor([len(names) for names in channels])
        sample_K = torch.repeat_interleave(torch.arange(len(tensors)), counts)
        channel_K = torch.tensor([index[n] for names in channels for n in names])
        rows_B = np.full(len(tensors), -1, np.int64) if rows is None else np.asarray(rows, np.int64)
        # Indices follow the planes; what the host will ask of them is known here, without waiting for a device.
        return cls(torch.cat(tensors), sample_K, channel_K, vocabulary, rows_B, value_range=value_range).to(
            device
        )
