"""DALI back-end: TIFF windows decoded and cropped by an NVIDIA DALI pipeline, on a CPU or on a CUDA device.

Exact only in one configuration, fixed here: output_type=ANY_DATA and dtype of the file. DALI silently reads page 0
of multi-page files, turns by the orientation tag and inverts MinIsWhite, so every file's directory is checked by the
native reader first, and what DALI would not return as stored is refused.

The device is one argument: on "cpu" the pipeline has device_id=None and needs no driver; on a CUDA device the same
pipeline decodes by `mixed` operators and the planes stay on the device. The tests run the CPU form; the mixed form
has not run on a card yet.
DALI is imported when a pipeline is built, never before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from camae.dataloader.backends import native
from camae.dataloader.backends.addresses import check_window, is_tiff, refuse_remote
from camae.dataloader.device_planes import Device, indexed, reading_stream, turned, usable_everywhere
from camae.dataloader.optional_module import optional_module
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.processors import usable_cpus

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

Size = int | tuple[int, int]
Integers = Sequence[int] | npt.NDArray[np.integer]


def _dali() -> ModuleType:
    return optional_module("nvidia.dali", "reader='dali'", package="nvidia-dali-cuda130")


def _synchronous(max_planes: int, threads: int, device_id: int | None) -> Pipeline:
    return _dali().Pipeline(
        max_planes, threads, device_id, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False
    )


class DaliWindows:
    """DALI pipeline that reads windows of single-plane TIFFs.

    max_planes:  most windows per call.
    dtype:       uint8 or uint16, that of the files.
    device:      a CPU (device_id=None, no driver needed), or a CUDA device, which then decodes ("mixed").
    standardize: also subtract each window's mean and divide by sqrt(var + eps^2), eps = 1e-3 gray levels; the
                 windows are then float32.
    threads:     DALI's CPU threads.
    Raises MissingBackendError without DALI.
    """

    def __init__(
        self,
        max_planes: int,
        dtype: npt.DTypeLike = np.uint16,
        device: Device = "cpu",
        *,
        standardize: bool = False,
        threads: int = 2,
    ) -> None:
        self.device, self.dtype = indexed(device), np.dtype(dtype)
        self.max_planes, self.standardize, self.threads = max_planes, standardize, threads
        self._pipeline = self._built()

    def _built(self) -> Pipeline:
        dali = _dali()
        fn, types = dali.fn, dali.types
        stored = {np.dtype(np.uint8): types.UINT8, np.dtype(np.uint16): types.UINT16}[self.dtype]
        on_device = self.device.type == "cuda"
        pipeline = _synchronous(self.max_planes, self.threads, self.device.index if on_device else None)
        with pipeline:
            window = fn.decoders.image_slice(
                fn.io.file.read(fn.external_source(name="paths", dtype=types.UINT8)),
                start=fn.external_source(name="corners", dtype=types.INT32),
                shape=fn.external_source(name="shapes", dtype=types.INT32),
                axes=[0, 1],
                output_type=types.ANY_DATA,
                dtype=stored,
                device="mixed" if on_device else "cpu",
            )
            if self.standardize:
                window = fn.normalize(fn.cast(window, dtype=types.FLOAT), axes=[0, 1], epsilon=1e-6)
            pipeline.set_outputs(window)
        pipeline.build()
        return pipeline

    def read(self, paths: Sequence[str], y: Integers, x: Integers, size: Size) -> torch.Tensor:
        """Windows (K, h, w) with top left corners (y, x), on the pipeline's device, without a copy from DALI.

        size: edge of square windows, or (h, w), in pixels.
        The tensor is valid until the next call. Raises CamaeError naming the file for anything but single gray
        planes of this pipeline's dtype, damaged pixels, or a window that leaves the image.
        """
        height, width = (size, size) if isinstance(size, int) else size
        for path, top, left in zip(paths, y, x, strict=True):
            self._check(path, int(top), int(left), height, width)
        corners = np.stack([np.asarray(y), np.asarray(x)], axis=1).astype(np.int32)
        try:
            return self._run(paths, corners, height, width)
        except RuntimeError as error:
            # DALI's error often names no file, and the pipeline is of no use after it.
            self._pipeline = self._built()
            if len(paths) == 1:
                raise CamaeError(
                    f"{paths[0]}: DALI cannot decode it ({_reason(error)}), its pixels are damaged or of a kind that "
                    "DALI lacks: try reader='native'"
                ) from error
            for path, corner in zip(paths, corners, strict=True):
                self.read([path], corner[:1], corner[1:], (height, width))
            raise CamaeError(
                f"DALI reads each of {paths[0]} .. {paths[-1]} alone but not all {len(paths)} windows at once "
                f"({_reason(error)}): take fewer at once"
            ) from error

    def _run(self, paths: Sequence[str], corners_K2: np.ndarray, height: int, width: int) -> torch.Tensor:
        self._pipeline.feed_input("paths", [np.frombuffer(p.encode(), np.uint8) for p in paths])
        self._pipeline.feed_input("corners", list(corners_K2))
        self._pipeline.feed_input("shapes", [np.array([height, width], np.int32)] * len(paths))
        (windows,) = self._pipeline.run()
        return torch.from_dlpack(windows.as_tensor())[..., 0]

    def _check(self, path: str, y: int, x: int, height: int, width: int) -> None:
        layout = checked_layout(path)
        if layout.dtype != self.dtype:
            raise CamaeError(f"{path}: is {layout.dtype} but this pipeline reads {self.dtype}")
        check_window(path, y, x, (height, width), layout.height, layout.width)


def _reason(error: RuntimeError) -> str:
    """The last line of DALI's error that says something."""
    lines = [line.strip(" :") for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Current pipeline")]
    return told[-1] if told else "no reason given"


def checked_layout(path: str) -> native.TiffLayout:
    """Header of a TIFF that DALI returns as stored. Raises CamaeError naming any other file and the reason."""
    refuse_remote(path)
    if not is_tiff(path) or "#" in path:
        raise CamaeError(f"{path}: the DALI back-end reads single-plane TIFF files only: use reader='native'")
    layout = native.describe(path)
    if layout.pages != 1 or layout.planes != 1:
        raise CamaeError(
            f"{path}: holds {layout.planes} planes on {layout.pages} pages and DALI would silently read the "
            f"first only: use reader='native'"
        )
    unequal = layout.odd
    if layout.orientation != 1:
        unequal = f"orientation {layout.orientation}"
    elif layout.min_is_white:
        unequal = "MinIsWhite pixels"
    elif layout.predictor != 1 and layout.codec in ("uncompressed", "PackBits"):
        unequal = f"predictor {layout.predictor} without LZW, deflate or zstd"
    if unequal:
        raise CamaeError(f"{path}: has {unequal}, which DALI does not return as stored: use reader='native'")
    return layout


_lock = threading.Lock()


@lru_cache(maxsize=8)
def _pipeline(max_planes: int, dtype: str, device: torch.device) -> DaliWindows:
    return DaliWindows(max_planes, dtype, device, threads=min(usable_cpus(), 16))


def read_windows(
    paths: Sequence[str],
    y: Integers,
    x: Integers,
    size: Size,
    device: Device = "cpu",
    symmetry_K: Integers | None = None,
) -> torch.Tensor:
    """Windows (K, h, w) in the files' dtype, on the device, by a cached pipeline; the first file sets the dtype.

    size:       edge of square windows, or (h, w), in pixels.
    device:     a CPU, or a CUDA device: it decodes, crops and turns, and the planes never are on the host.
    symmetry_K: which of the eight flips and rotations each window is given (see sampling.symmetric); default none.
    Raises CamaeError naming the first file that cannot be read.
    """
    dtype = checked_layout(paths[0]).dtype
    room = 1 << (len(paths) - 1).bit_length()
    device = indexed(device)
    with _lock, reading_stream(device):
        windows = _pipeline(room, dtype.name, device).read(paths, y, x, size)
        turns = np.zeros(len(paths), np.int64) if symmetry_K is None else np.asarray(symmetry_K)
        return usable_everywhere(turned(windows, turns))


def standardized(
    batches: Iterable[PlaneBatch], max_planes: int, device: Device = "cpu", threads: int = 2
) -> Iterator[torch.Tensor]:
    """Standardization of a CropLoader's planes by DALI: the native reader feeds the pipeline.

    Yields (K, H, W) float32 per batch, on the device; each tensor is valid until the next one. max_planes: the most
    planes of any batch.
    """
    dali = _dali()
    fn, types = dali.fn, dali.types
    device = indexed(device)
    pipeline = _synchronous(max_planes, threads, device.index if device.type == "cuda" else None)
    with pipeline:
        planes = fn.external_source(name="planes", batch=True, layout="HW")
        planes = planes.gpu() if device.type == "cuda" else planes
        pipeline.set_outputs(fn.normalize(fn.cast(planes, dtype=types.FLOAT), axes=[0, 1], epsilon=1e-6))
    pipeline.build()
    for batch in batches:
        pipeline.feed_input("planes", list(batch.planes_KHW.numpy()))
        (windows,) = pipeline.run()
        yield torch.from_dlpack(windows.as_tensor())
