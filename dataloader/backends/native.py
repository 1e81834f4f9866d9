"""The native TIFF reader with Python's face: registration of codecs that were not linked, errors with file names."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from camae.dataloader.backends.decoders import split_address
from camae.errors import CamaeError, MissingBackendError, MissingFileError

_MISSING = 1


@cache
def module() -> ModuleType:
    """camae._native with every codec that this machine can serve.

    Raises MissingBackendError when the package was installed without its native part.
    """
    try:
        from camae import _native
    except ImportError as error:
        raise MissingBackendError(f"the native reader is not built: reinstall camae ({error})") from None
    imagecodecs = importlib.import_module("imagecodecs") if find_spec("imagecodecs") else None
    if not _native.codec_provider("deflate"):
        if imagecodecs is not None:
            _native.use_external(
                "deflate", f"imagecodecs {imagecodecs.__version__}", _with(imagecodecs.zlib_decode)
            )
        else:
            _native.use_external("deflate", f"zlib {zlib.ZLIB_RUNTIME_VERSION} (Python's own)", _inflate)
    if not _native.codec_provider("zstd") and imagecodecs is not None:
        _native.use_external("zstd", f"imagecodecs {imagecodecs.__version__}", _with(imagecodecs.zstd_decode))
    return _native


def _with(decoder: Any) -> Any:
    return lambda data, capacity: bytes(decoder(data, out=capacity))


def _inflate(data: bytes, capacity: int) -> bytes:
    return zlib.decompressobj().decompress(data, capacity)


def codecs() -> dict[str, str]:
    """Which code decodes what: codec name -> "own", a library and its version, or "not available"."""
    native = module()
    names = ("uncompressed", "LZW", "PackBits", "deflate", "zstd")
    return {name: native.codec_provider(name) or "not available" for name in names}


def describe(address: str) -> dict[str, Any]:
    """Size, depth, codec and layout of a TIFF (see camae._native.describe). Raises CamaeError naming the file."""
    native = module()
    path, index = split_address(address)
    try:
        return native.describe(path, index[0] if index else -1)
    except native.Refused as refused:
        raise error_of(path, refused.args[1], refused.args[0]) from None


def error_of(path: str, reason: int, sentence: str) -> CamaeError:
    """The error a person sees for what the native reader refused."""
    kind = MissingFileError if reason == _MISSING else CamaeError
    advice = "; the back-end 'tifffile' may read it" if "not read by the native reader" in sentence else ""
    return kind(f"{path}: {sentence}{advice}")


def read_windows(
    addresses: Sequence[str],
    y: Sequence[int] | np.ndarray,
    x: Sequence[int] | np.ndarray,
    out: np.ndarray,
    symmetry: Sequence[int] | np.ndarray | None = None,
    n_planes: Sequence[int] | np.ndarray | None = None,
    threads: int = 0,
) -> list[tuple[int, CamaeError]]:
    """Fill out (K, h, w), uint8 or uint16, with one window per address; returns (job, error) of those that failed.

    symmetry: per address, which of the eight flips and rotations (see sampling.symmetric); default none.
    n_planes: planes per address; default one each. threads: 0 uses every core.
    """
    n = len(addresses)
    if "#" in "".join(addresses):
        split = [split_address(a) for a in addresses]
        paths, pages = [p for p, _ in split], np.array([i[0] if i else -1 for _, i in split])
    else:
        paths, pages = list(addresses), np.full(n, -1)
    turns = np.zeros(n, np.int64) if symmetry is None else symmetry
    counts = np.ones(n, np.int64) if n_planes is None else n_planes
    failures = module().read_windows(paths, pages, y, x, turns, counts, out, threads)
    return [(job, error_of(paths[job], reason, sentence)) for job, reason, sentence in failures]
