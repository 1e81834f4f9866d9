"""Checks of Zarr arrays before anything is decoded: a small damaged or hostile store asks for no time and memory."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from camae.dataloader.backends import jpeg_xl
from camae.errors import CamaeError

if TYPE_CHECKING:
    from typing import Any

    import zarr

    ZarrArray = zarr.Array[Any]

LARGEST_CHUNK = 128 << 20  # bytes of one decoded chunk
LARGEST_PLANE = 1 << 30  # bytes
LARGEST_METADATA = 64 << 20  # bytes of one metadata file; consolidated ones of large plates have tens of MB
MOST_CHUNKS = 1 << 16  # of one plane
METADATA_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
# More than 1,032 times smaller than their pixels are no blocks of deflate, and few of any codec.
_RATIO = 1032
_BLOSC_HEADER = 16
_ABSENT = 2**64 - 1  # offset and size of a chunk that a shard does not hold


def check_metadata_size(path: str | os.PathLike[str]) -> None:
    """Raise CamaeError for metadata files larger than any plate's."""
    for name in METADATA_FILES:
        file = Path(path) / name
        size = file.stat().st_size if file.is_file() else 0
        if size > LARGEST_METADATA:
            raise CamaeError(f"{file}: has {size:,} bytes, no metadata has as many: it is damaged")


def check_array(path: str, array: ZarrArray, index: tuple[int, ...]) -> None:
    """Raise CamaeError when the plane array[index] (y, x) cannot be read within reason.

    Refused are dtypes other than unsigned integers and floats, planes and chunks larger than any image's, planes of a
    huge number of chunks, indices outside, and chunks whose files would decode to more than a chunk holds.
    """
    dtype, shape, chunks = array.dtype, array.shape, array.chunks
    if dtype.kind not in "uf":
        raise CamaeError(f"{path}: pixels are {dtype}, only uint8, uint16 and float32 are read")
    if any(i >= n for i, n in zip(index, shape[:-2], strict=True)):
        raise CamaeError(f"{path}: has shape {shape}, so there is no plane {','.join(map(str, index))}")
    if min(chunks, default=1) < 1:
        raise CamaeError(f"{path}: has chunks of {chunks}, which hold nothing: it is damaged")
    if math.prod(chunks) * dtype.itemsize > LARGEST_CHUNK:
        raise CamaeError(
            f"{path}: has chunks of {chunks}, more than {LARGEST_CHUNK >> 20} MiB each: it is damaged"
        )
    plane = math.prod(shape[-2:]) * dtype.itemsize
    across = math.prod(-(-n // c) for n, c in zip(shape[-2:], chunks[-2:], strict=True))
    if plane > LARGEST_PLANE or across > MOST_CHUNKS:
        raise CamaeError(
            f"{path}: has planes of {shape[-2]}x{shape[-1]} in {across:,} chunks: too large to be read"
        )
    if plane > LARGEST_CHUNK // 2 and plane > _RATIO * _bytes_below(path, plane // _RATIO + 1):
        raise CamaeError(f"{path}: its files cannot hold planes of {shape[-2]}x{shape[-1]}: it is damaged")


def _bytes_below(path: str, enough: int) -> int:
    """Bytes of the files below a folder, counted until there are enough."""
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            total += os.path.getsize(os.path.join(folder, file))
            if total >= enough:
                return total
    return total


def chunk_files(path: str, array: ZarrArray, index: tuple[int, ...]) -> list[Path]:
    """Files of the chunks (or shards) of the plane array[index] that are there."""
    return list(_files(path, array, index, getattr(array, "shards", None) or array.chunks))


def check_chunks(path: str, array: ZarrArray, index: tuple[int, ...]) -> None:
    """Raise CamaeError when a chunk file of the plane says that it decodes to more than a chunk holds.

    Looks at what the headers of Blosc, Zstandard, gzip, zlib and JPEG XL say; of shards at Blosc alone. A Blosc chunk
    whose header does not fit its bytes is refused too: the decoder trusts the header and would read beyond the chunk.
    """
    shards = getattr(array, "shards", None)
    if shards is not None:
        for file in chunk_files(path, array, index):
            _check_shard(file, array, math.prod(shards) // math.prod(array.chunks))
        return
    room = math.prod(array.chunks) * array.dtype.itemsize
    if not room:
        return
    blosc = any(map(_is_blosc, (*getattr(array.metadata, "codecs", ()), _compressor(array))))
    jxl = getattr(_compressor(array), "codec_id", "") == jpeg_xl.CODEC
    for file in chunk_files(path, array, index):
        if jxl:
            _check_jpeg_xl(file, array.chunks[-2:])
            continue
        if blosc:
            with open(file, "rb") as stream:
                _check_blosc(str(file), stream.read(_BLOSC_HEADER), file.stat().st_size)
        if _claimed(file, room) > room:
            raise CamaeError(f"{file}: decodes to more than the {room:,} bytes of a chunk: it is damaged")


def _check_jpeg_xl(file: Path, size: tuple[int, ...]) -> None:
    """Raise CamaeError for a chunk that is no JPEG XL picture of this height and width."""
    with open(file, "rb") as stream:
        claimed = jpeg_xl.picture_size(stream.read(4096))
    if claimed != tuple(size):
        says = (
            "is no JPEG XL image" if claimed is None else f"is a JPEG XL image of {claimed[0]}x{claimed[1]}"
        )
        raise CamaeError(f"{file}: {says} where a chunk has {size[0]}x{size[1]} pixels: it is damaged")


def _files(path: str, array: ZarrArray, index: tuple[int, ...], tile: tuple[int, ...]) -> Iterator[Path]:
    """Files of the plane array[index] that are there, each of one `tile` of the array."""
    leading = [i // c for i, c in zip(index, tile[:-2], strict=True)]
    down, across = (-(-n // c) for n, c in zip(array.shape[-2:], tile[-2:], strict=True))
    for y in range(down):
        for x in range(across):
            file = Path(path) / array.metadata.encode_chunk_key((*leading, y, x))
            if file.is_file():
                yield file


def _compressor(array: ZarrArray) -> object:
    """Compressor of an array of format 2, None for format 3."""
    return getattr(array.metadata, "compressor", None)


def _is_blosc(codec: object) -> bool:
    return "blosc" in type(codec).__name__.lower()


def _check_blosc(name: str, head: bytes, size: int) -> None:
    """Raise CamaeError where a Blosc header of 16 bytes does not name the size of its chunk."""
    packed = struct.unpack("<I", head[12:])[0] if len(head) == _BLOSC_HEADER else None
    if packed != size:
        says = "has no Blosc header" if packed is None else f"says that it has {packed:,} bytes"
        raise CamaeError(f"{name}: has {size:,} bytes and {says}: it is damaged")


def _word(setting: object) -> object:
    """A codec's setting as text: an enumeration's value up to zarr 3.1, text itself later."""
    return getattr(setting, "value", setting)


def _check_shard(file: Path, array: ZarrArray, chunks: int) -> None:
    """Check the Blosc chunks of one shard, by the index at its start or end (Zarr 3: pairs of offset and size)."""
    metadata: Any = array.metadata
    sharding = metadata.codecs[0]
    if not any(map(_is_blosc, sharding.codecs)):
        return
    names = [type(codec).__name__ for codec in sharding.index_codecs]
    if names not in (["BytesCodec", "Crc32cCodec"], ["BytesCodec"]):
        raise CamaeError(
            f"{file}: the index of its shard is encoded by {', '.join(names)}, which is not read"
        )
    length = 16 * chunks + 4 * (len(names) - 1)
    size = file.stat().st_size
    with open(file, "rb") as stream:
        stream.seek(0 if _word(sharding.index_location) == "start" else max(0, size - length))
        index = stream.read(16 * chunks)
        if len(index) < 16 * chunks:
            raise CamaeError(
                f"{file}: has {size:,} bytes, its index of {chunks} chunks has more: it is damaged"
            )
        order = "<" if _word(sharding.index_codecs[0].endian) == "little" else ">"
        for offset, count in struct.iter_unpack(f"{order}QQ", index):
            if offset == count == _ABSENT:
                continue
            if offset + count > size:
                raise CamaeError(f"{file}: a chunk of its shard ends beyond the file: it is damaged")
            stream.seek(offset)
            _check_blosc(f"{file}, chunk at byte {offset}", stream.read(min(count, _BLOSC_HEADER)), count)


def _claimed(file: Path, room: int) -> int:
    """Bytes that a compressed chunk decodes to, by its header or by decoding up to `room`; 0 where unknown."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        head = stream.read(_BLOSC_HEADER)
        if head[:4] == b"\x28\xb5\x2f\xfd":
            return _zstd_size(head)
        if head[:2] in (b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x78\x5e"):
            if size * _RATIO <= LARGEST_CHUNK:
                return 0
            stream.seek(0)
            inflater = zlib.decompressobj(wbits=47)
            done = 0
            while done <= room and (data := inflater.unconsumed_tail or stream.read(1 << 20)):
                done += len(inflater.decompress(data, 1 << 20))
            return done
        if len(head) == _BLOSC_HEADER and head[0] in (1, 2, 3, 4, 5):
            whole, _, packed = struct.unpack("<III", head[4:])
            return whole if packed == size else 0
    return 0


def _zstd_size(head: bytes) -> int:
    """Frame content size of a Zstandard frame (RFC 8878), 0 where it is not stated."""
    descriptor = head[4] if len(head) > 4 else 0
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    width = (1 if single else 0, 2, 4, 8)[flag]
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    value = int.from_bytes(head[start : start + width], "little")
    return value + 256 if width == 2 else value
