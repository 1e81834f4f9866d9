"""Planes on the device that decoded them: flips and rotations, the check for signal, and the stream of reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from camae.dataloader.illumination import function_window

Device = torch.device | str


def indexed(device: Device) -> torch.device:
    """A device with its number: "cuda" is the current one of the calling thread."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@lru_cache(maxsize=8)
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def reading_stream(device: torch.device) -> Iterator[None]:
    """Context in which a reading thread works on a stream of its own, beside the model; the host waits at its end.

    Does nothing on a CPU.
    """
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    with torch.cuda.stream(stream):
        yield
        stream.synchronize()


def usable_everywhere(planes_KHW: torch.Tensor) -> torch.Tensor:
    """The planes, made on the reading stream: their memory is not given away before the default stream is done."""
    if planes_KHW.is_cuda:
        planes_KHW.record_stream(torch.cuda.default_stream(planes_KHW.device))
    return planes_KHW


def _bits(planes: torch.Tensor) -> torch.Tensor:
    """Planes of a type that every operation of torch moves: it has few for uint16."""
    return planes.view(torch.int16) if planes.dtype == torch.uint16 else planes


def turned(planes_KHW: torch.Tensor, symmetry_K: npt.NDArray[np.integer]) -> torch.Tensor:
    """Copy of the planes on their device, each flipped or rotated (see sampling.symmetric).

    planes_KHW: (K, H, W), square where a symmetry transposes. symmetry_K: (K,) on the host, 0..7.
    """
    out_KHW = torch.empty(planes_KHW.shape, dtype=planes_KHW.dtype, device=planes_KHW.device)
    source, target = _bits(planes_KHW), _bits(out_KHW)
    for symmetry in np.unique(symmetry_K).tolist():
        chosen = np.flatnonzero(symmetry_K == symmetry)
        if len(chosen) == len(target):
            target.copy_(_turned(source, symmetry))
        else:
            index = torch.from_numpy(chosen).to(target.device)
            target[index] = _turned(source[index], symmetry)
    return out_KHW


def _turned(planes_KHW: torch.Tensor, symmetry: int) -> torch.Tensor:
    if symmetry & 4:
        planes_KHW = planes_KHW.transpose(1, 2)
    reversed_dims = [dim for dim, bit in ((1, 2), (2, 1)) if symmetry & bit]
    return planes_KHW.flip(reversed_dims) if reversed_dims else planes_KHW


def constant_planes(planes_KHW: torch.Tensor) -> npt.NDArray[np.bool_]:
    """(K,) bool on the host: planes in which every pixel is the same. The host waits for the reading stream only."""
    with reading_stream(planes_KHW.device):
        flat = _bits(planes_KHW).flatten(1)
        return ~(flat != flat[:, :1]).any(1).cpu().numpy()


def correct_on_device(plane_HW: torch.Tensor, path: str, y: int, x: int, symmetry: int = 0) -> None:
    """Illumination correction bit for bit as by `illumination.corrected`, in place, on the plane's device.

    plane_HW: uint8 or uint16; the other arguments and the errors are those of `corrected`.
    """
    function_HW = function_window(path, y, x, tuple(plane_HW.shape), symmetry)
    part_HW = torch.from_numpy(np.ascontiguousarray(function_HW)).to(plane_HW.device)
    quotient_HW = plane_HW.to(torch.float32) / part_HW
    plane_HW.copy_(quotient_HW.round_().clamp_(0, torch.iinfo(plane_HW.dtype).max).to(torch.int32))
