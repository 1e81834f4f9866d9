"""JPEG XL as a codec of Zarr chunks (`imagecodecs_jpegxl` of NumCodecs), and the size that a chunk's header claims."""

from __future__ import annotations

from collections.abc import Iterator

from camae.dataloader.optional_module import optional_module
from camae.errors import MissingBackendError

CODEC = "imagecodecs_jpegxl"
_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"
# Widths of the four forms of a length minus one, and widths of pictures as (numerator, denominator) of their heights
# (ISO/IEC 18181-1, SizeHeader).
_LENGTH_BITS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def register_codec(path: str) -> None:
    """Let Zarr decode JPEG XL chunks. Raises MissingBackendError, naming `path`, where imagecodecs cannot."""
    codecs = optional_module("imagecodecs.numcodecs", f"{path}: JPEG XL", "imagecodecs")
    codec = getattr(codecs, "Jpegxl", None)
    if codec is None or not optional_module("imagecodecs", f"{path}: JPEG XL").JPEGXL.available:
        raise MissingBackendError(
            f"{path}: JPEG XL needs an imagecodecs that was built with it: install the package imagecodecs anew"
        )
    optional_module("numcodecs", f"{path}: JPEG XL").register_codec(codec)


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in pixels that a JPEG XL file claims, by its first 4 KiB; None for no such file."""
    if data.startswith(_CONTAINER):
        boxes = (data.find(b"jxlc") + 4, data.find(b"jxlp") + 8)
        start = next(
            (at for at, name in zip(boxes, (b"jxlc", b"jxlp"), strict=True) if name in data), len(data)
        )
        data = data[start:]
    if not data.startswith(_CODESTREAM) or len(data) < 12:
        return None
    bits = _bits(data[2:12])
    small = _take(bits, 1)
    height = _length(bits, small)
    ratio = _take(bits, 3)
    if ratio == 0:
        return height, _length(bits, small)
    numerator, denominator = _RATIOS[ratio - 1]
    return height, height * numerator // denominator


def _bits(data: bytes) -> Iterator[int]:
    return (byte >> k & 1 for byte in data for k in range(8))


def _take(bits: Iterator[int], count: int) -> int:
    return sum(next(bits) << k for k in range(count))


def _length(bits: Iterator[int], small: int) -> int:
    return 8 * (1 + _take(bits, 5)) if small else 1 + _take(bits, _LENGTH_BITS[_take(bits, 2)])
