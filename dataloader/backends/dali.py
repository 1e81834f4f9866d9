"""DALI back-end: TIFF windows decoded, cropped and optionally standardized by an NVIDIA DALI pipeline.

Exact only in one configuration, fixed here: output_type=ANY_DATA and dtype of the file. DALI silently reads page 0
of multi-page files, turns by the orientation tag and inverts MinIsWhite, so every file's directory is checked by the
native reader first, and what DALI would not return as stored is refused.
DALI is imported when a pipeline is built, never before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

from camae.dataloader.backends import native
from camae.dataloader.backends.addresses import check_window, is_tiff, refuse_remote
from camae.dataloader.optional_module import optional_module
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError

if TYPE_CHECKING:
    from nvidia.dali import Pipeline


def _dali() -> ModuleType:
    return optional_module("nvidia.dali", "reader='dali'", package="nvidia-dali-cuda130")


def _synchronous(max_planes: int, threads: int, device_id: int | None) -> Pipeline:
    return _dali().Pipeline(
        max_planes, threads, device_id, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False
    )


class DaliCrops:
    """DALI pipeline that reads square windows of single-plane TIFFs.

    size:        edge of the windows in pixels.
    max_planes:  most windows per call.
    dtype:       uint8 or uint16, that of the files.
    device:      "cpu" (device_id=None, no driver needed) or "mixed" (decoded on GPU `device_id`).
    standardize: also subtract each window's mean and divide by sqrt(var + eps^2), eps = 1e-3 gray levels; the
                 windows are then float32.
    threads:     DALI's CPU threads.
    Raises MissingBackendError without DALI.
    """

    def __init__(
        self,
        size: int,
        max_planes: int,
        dtype: np.dtype | type = np.uint16,
        device: str = "cpu",
        device_id: int = 0,
        standardize: bool = False,
        threads: int = 2,
    ) -> None:
        if device not in ("cpu", "mixed"):
            raise CamaeError(f"device={device!r}: DALI decodes on 'cpu' or 'mixed'")
        dali = _dali()
        fn, types = dali.fn, dali.types
        self.size, self.max_planes, self.dtype, self.device = size, max_planes, np.dtype(dtype), device
        stored = {np.dtype(np.uint8): types.UINT8, np.dtype(np.uint16): types.UINT16}[self.dtype]
        self._pipeline = _synchronous(max_planes, threads, device_id if device == "mixed" else None)
        with self._pipeline:
            encoded = fn.io.file.read(fn.external_source(name="paths", dtype=types.UINT8))
            corner = fn.external_source(name="corners", dtype=types.INT32)
            window = fn.decoders.image_slice(
                encoded,
                start=corner,
                shape=[size, size],
                axes=[0, 1],
                output_type=types.ANY_DATA,
                dtype=stored,
                device=device,
            )
            if standardize:
                window = fn.normalize(fn.cast(window, dtype=types.FLOAT), axes=[0, 1], epsilon=1e-6)
            self._pipeline.set_outputs(window)
        self._pipeline.build()

    def read(self, paths: Sequence[str], y: Sequence[int], x: Sequence[int]) -> torch.Tensor:
        """Windows (K, size, size) with top left corners (y, x), on the CPU or the GPU, without a copy from DALI.

        The tensor is valid until the next call. Raises CamaeError naming the file for anything but single gray
        planes of this pipeline's dtype, or a window that leaves the image.
        """
        for path, top, left in zip(paths, y, x, strict=True):
            self._check(path, top, left)
        corners = np.stack([np.asarray(y), np.asarray(x)], axis=1).astype(np.int32)
        try:
            self._pipeline.feed_input("paths", [np.frombuffer(p.encode(), np.uint8) for p in paths])
            self._pipeline.feed_input("corners", list(corners))
            (windows,) = self._pipeline.run()
        except RuntimeError as error:
            reason = next((line for line in str(error).splitlines() if "rror" in line), str(error))
            raise CamaeError(f"DALI cannot read one of {paths[0]} .. {paths[-1]}: {reason}") from error
        return torch.from_dlpack(windows.as_tensor())[..., 0]

    def _check(self, path: str, y: int, x: int) -> None:
        refuse_remote(path)
        if not is_tiff(path) or "#" in path:
            raise CamaeError(f"{path}: the DALI back-end reads single-plane TIFF files only")
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
            raise CamaeError(
                f"{path}: has {unequal}, which DALI does not return as stored: use reader='native'"
            )
        if layout.dtype != self.dtype:
            raise CamaeError(f"{path}: is {layout.dtype} but this pipeline reads {self.dtype}")
        check_window(path, y, x, self.size, layout.height, layout.width)


_lock = threading.Lock()


@lru_cache(maxsize=8)
def _pipeline(size: int, max_planes: int, dtype: str) -> DaliCrops:
    return DaliCrops(size, max_planes, np.dtype(dtype))


def read_windows(paths: Sequence[str], y: Sequence[int], x: Sequence[int], size: int) -> np.ndarray:
    """Windows (K, size, size) in the files' dtype through a cached CPU pipeline; the first file sets the dtype."""
    for path in paths:
        refuse_remote(path)
    dtype = native.describe(paths[0]).dtype
    room = 1 << (len(paths) - 1).bit_length()
    with _lock:
        return _pipeline(size, room, dtype.name).read(paths, y, x).numpy().copy()


def standardized(
    batches: Iterable[PlaneBatch], max_planes: int, device_id: int | None = None, threads: int = 2
) -> Iterator[torch.Tensor]:
    """Standardization of a CropLoader's planes by DALI: the native reader feeds the pipeline.

    Yields (K, H, W) float32 per batch, on the GPU `device_id` or on the CPU for None; each tensor is valid until
    the next one. max_planes: the most planes of any batch.
    """
    dali = _dali()
    fn, types = dali.fn, dali.types
    pipeline = _synchronous(max_planes, threads, device_id)
    with pipeline:
        planes = fn.external_source(name="planes", batch=True, layout="HW")
        planes = planes if device_id is None else planes.gpu()
        pipeline.set_outputs(fn.normalize(fn.cast(planes, dtype=types.FLOAT), axes=[0, 1], epsilon=1e-6))
    pipeline.build()
    for batch in batches:
        pipeline.feed_input("planes", list(batch.planes_KHW.numpy()))
        (windows,) = pipeline.run()
        yield torch.from_dlpack(windows.as_tensor())
