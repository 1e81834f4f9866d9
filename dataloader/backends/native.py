"""Python wrapper of the C++ TIFF reader (csrc/): codec registration, file layout, windows, plane moments.

Code that decodes files takes `camae._native` from here: importing this file registers the codecs that were not linked.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

import numpy as np
import numpy.typing as npt

from camae.dataloader.backends.addresses import projection_of, split_address
from camae.dataloader.backends.projection import planes_differ, project_windows
from camae.errors import CamaeError, MissingBackendError, MissingFileError

_MISSING = 1  # Reason::missing in csrc/reader/refused.h
_CODECS = ("uncompressed", "LZW", "PackBits", "deflate", "zstd")
Integers = Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """Header of a TIFF: all its pages, or the one that was named.

    pages, planes: number of pages in the file, and of planes (samples) on the chosen ones.
    height, width: of a plane in pixels.
    bits:          per sample, 8 or 16.
    codec:         one of the names that `codecs` gives.
    predictor:     TIFF tag 317: 1 none, 2 horizontal differences.
    tiled:         blocks are tiles, not strips; block_height, block_width: their size in pixels.
    min_is_white:  the photometric tag says that 0 is white.
    orientation:   TIFF tag 274, 1 to 8; pixels come as stored whatever it says.
    odd:           what readers are known to treat in different ways, "" for nothing.
    """

    pages: int
    planes: int
    height: int
    width: int
    bits: int
    codec: str
    predictor: int
    tiled: bool
    block_height: int
    block_width: int
    min_is_white: bool
    orientation: int
    odd: str

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """uint8 or uint16."""
        return np.dtype(f"u{self.bits // 8}")


def _use_imagecodecs(native: ModuleType, codec: str, function: str, version: str) -> None:
    """Serve a codec by imagecodecs, which is imported when the first block is decoded."""

    def decode(data: bytes, capacity: int) -> bytes:
        return bytes(getattr(importlib.import_module("imagecodecs"), function)(data, out=capacity))

    native.use_external(codec, f"imagecodecs {version}", decode)


def _inflate(data: bytes, capacity: int) -> bytes:
    return zlib.decompressobj().decompress(data, capacity)


def _register_codecs(native: ModuleType) -> None:
    """Serve by Python packages the codecs that were not linked when the native module was built."""
    try:
        imagecodecs = metadata.version("imagecodecs")
    except metadata.PackageNotFoundError:
        imagecodecs = ""
    if not native.codec_provider("deflate"):
        if imagecodecs:
            _use_imagecodecs(native, "deflate", "zlib_decode", imagecodecs)
        else:
            native.use_external("deflate", f"zlib {zlib.ZLIB_RUNTIME_VERSION} (Python's own)", _inflate)
    if not native.codec_provider("zstd") and imagecodecs:
        _use_imagecodecs(native, "zstd", "zstd_decode", imagecodecs)


_native: ModuleType | None = None
_why_missing = ""
try:
    _native = importlib.import_module("camae._native")
except ImportError as error:
    _why_missing = str(error)
else:
    _register_codecs(_native)


def module() -> ModuleType:
    """camae._native with every codec that this machine can serve.

    Raises MissingBackendError when the package was installed without its native part.
    """
    if _native is None:
        raise MissingBackendError(f"the native reader is not built: reinstall camae ({_why_missing})")
    return _native


def codecs() -> dict[str, str]:
    """Provider of each TIFF codec: codec name -> "own", a library and its version, or "not available"."""
    return {name: module().codec_provider(name) or "not available" for name in _CODECS}


def describe(address: str, any_reader: bool = False) -> TiffLayout:
    """Header of a TIFF, of one page for `file.tif#page`, of the first page for a projection, whose pages must be alike.

    Raises MissingFileError or CamaeError naming the file.

    any_reader: refuse only what no reader may read (volumes in one page, signed integers, palettes), and let pass
                what another back-end can read; every back-end asks here, so that all refuse the same files.
    """
    native = module()
    if (projection := projection_of(address)) is not None:
        layouts = [describe(plane, any_reader) for plane in projection.planes]
        for plane, layout in zip(projection.planes, layouts, strict=True):
            if _size(layout) != _size(layouts[0]):
                raise planes_differ(address, plane)
        return layouts[0]
    path, index = split_address(address)
    if len(index) > 1:
        raise CamaeError(f"{address}: a TIFF has one page number, as in {path}#{index[0]}")
    try:
        return TiffLayout(**native.describe(path, index[0] if index else -1, any_reader))
    except native.Refused as refused:
        raise error_of(path, refused.args[1], refused.args[0]) from None


def _size(layout: TiffLayout) -> tuple[int, int, int, int]:
    return layout.planes, layout.height, layout.width, layout.bits


def error_of(path: str, reason: int, sentence: str) -> CamaeError:
    """Error for a file that the native reader refused, from the reason and sentence it gave."""
    kind = MissingFileError if reason == _MISSING else CamaeError
    advice = "; reader='tifffile' may read it" if "not read by the native reader" in sentence else ""
    return kind(f"{path}: {sentence}{advice}")


def read_windows(
    addresses: Sequence[str],
    y: Integers,
    x: Integers,
    out: np.ndarray,
    symmetry: Integers | None = None,
    n_planes: Integers | None = None,
    threads: int = 0,
) -> list[tuple[int, CamaeError]]:
    """Windows of TIFF planes, one per address, written into out (K, h, w), uint8 or uint16.

    Projections (`file.tif#max:0+2`) are made window by window.
    y, x:     top left corners in pixels, one per address.
    symmetry: per address, which of the eight flips and rotations (see sampling.symmetric); default none.
    n_planes: planes per address; default one each.
    threads:  0 uses every core.
    Returns (job, error) of those that failed, job counting the addresses; the others' planes are complete.
    """
    n = len(addresses)
    turns = np.zeros(n, np.int64) if symmetry is None else np.asarray(symmetry)
    counts = np.ones(n, np.int64) if n_planes is None else np.asarray(n_planes)
    if all(projection_of(address) is None for address in addresses):
        return _read_windows(addresses, y, x, out, turns, counts, threads)
    if (counts != 1).any():
        raise CamaeError(f"{addresses[0]}: a projection is one plane, and several are asked for")
    top, left = np.asarray(y), np.asarray(x)

    def read(jobs: list[int], planes: list[str], windows: np.ndarray) -> list[tuple[int, CamaeError]]:
        return _read_windows(planes, top[jobs], left[jobs], windows, turns[jobs], counts[jobs], threads)

    return project_windows(addresses, out, read)


def _read_windows(
    addresses: Sequence[str],
    y: Integers,
    x: Integers,
    out: np.ndarray,
    turns: npt.NDArray[np.integer],
    counts: npt.NDArray[np.integer],
    threads: int,
) -> list[tuple[int, CamaeError]]:
    if "#" in "".join(addresses):
        split = [split_address(a) for a in addresses]
        paths, pages = [p for p, _ in split], np.array([i[0] if i else -1 for _, i in split])
    else:
        paths, pages = list(addresses), np.full(len(addresses), -1)
    failures = module().read_windows(paths, pages, y, x, turns, counts, out, threads)
    return [(job, error_of(paths[job], reason, sentence)) for job, reason, sentence in failures]


def copy_window(image_CHW: np.ndarray, y: int, x: int, symmetry: int, out_Chw: np.ndarray) -> None:
    """One flipped or rotated window of an image in memory, uint8 or uint16, written into out_Chw."""
    module().copy_windows(np.ascontiguousarray(image_CHW), y, x, symmetry, out_Chw)


def plane_moments(planes_KHW: np.ndarray, threads: int = 0) -> npt.NDArray[np.float64]:
    """Mean and biased variance of every plane in stored values, (K, 2) float64.

    planes_KHW: uint8 and uint16 go through exact integer sums in C++; floats through NumPy in float64.
    threads:    of the C++ sums, 0 uses every core.
    """
    if planes_KHW.dtype in (np.uint8, np.uint16):
        return module().plane_statistics(np.ascontiguousarray(planes_KHW), threads)
    values = planes_KHW.astype(np.float64)
    return np.stack([values.mean((1, 2)), values.var((1, 2))], axis=1)
