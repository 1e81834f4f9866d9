"""Faults 8 and 35: native, tifffile and DALI give equal pixels of a TIFF, or refuse it; none reads a part of it."""

from __future__ import annotations

import importlib.util
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from camae.dataloader import Manifest, read_crops, read_plane
from camae.dataloader.read_pixels import READERS, plane_kind, read_site
from camae.errors import CamaeError

H = W = 48
HAVE_DALI = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
READERS_HERE = [reader for reader in READERS if reader != "dali" or HAVE_DALI]


def image(dtype: str = "u2", shape: tuple[int, ...] = (H, W)) -> np.ndarray:
    values = np.random.default_rng(3).integers(0, 200, shape)
    return (values * (257 if dtype == "u2" else 1)).astype(dtype)


def attempt(read: Callable[[], np.ndarray]) -> np.ndarray | str:
    """What was read, or the sentence that refuses it."""
    try:
        return read()
    except CamaeError as error:
        return str(error)


def outcome(path: Path, reader: str) -> np.ndarray | str:
    """The pixels of the whole plane, equal to its windows, or the sentence that refuses it, naming file and reason."""
    plane = attempt(lambda: read_plane(path, reader))
    part = attempt(lambda: read_crops([path], 5, 9, 30, reader=reader))
    if isinstance(plane, str):
        assert plane.startswith(f"{path}: ")
        assert "\n" not in plane
        # Samples and pages are channels to a window; one of them is never taken for all.
        assert part == plane if isinstance(part, str) else len(part) > 1
        return plane
    assert np.array_equal(plane, read_crops([path], 0, 0, H, reader=reader)[0])
    assert np.array_equal(plane[5:35, 9:39], part[0])
    assert plane_kind(str(path), reader)[:2] == (H, W)
    return plane


def assert_equal_or_refused(
    path: Path, truth: np.ndarray, needed: tuple[str, ...] = ("native", "tifffile")
) -> None:
    for reader in READERS_HERE:
        got = outcome(path, reader)
        if isinstance(got, str):
            assert reader not in needed, got
        else:
            assert got.dtype == truth.dtype
            assert np.array_equal(got, truth), reader


def refusals(path: Path) -> list[str]:
    got = {reader: outcome(path, reader) for reader in READERS_HERE}
    assert all(isinstance(sentence, str) for sentence in got.values()), got
    return [str(sentence) for sentence in got.values()]


def set_tag(path: Path, name: str, value: object, **options: object) -> None:
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[name].overwrite(value, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_fault_08_orientation_and_min_is_white(tmp_path: Path, orientation: int, photometric: str) -> None:
    for dtype in ("u1", "u2"):
        path = tmp_path / f"{dtype}.tif"
        tifffile.imwrite(
            path,
            image(dtype),
            photometric=photometric,
            extratags=[(274, 3, 1, orientation, True)],
            metadata=None,
        )
        assert_equal_or_refused(path, image(dtype))
        if HAVE_DALI:
            read = isinstance(outcome(path, "dali"), np.ndarray)
            assert read == (orientation == 1 and photometric == "minisblack")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits"])
def test_fault_08_predictor_endianness_layout_depth(tmp_path: Path, compression: str | None) -> None:
    layouts: tuple[dict[str, object], ...] = ({"rowsperstrip": 7}, {"tile": (16, 32)}, {})
    for dtype, order, layout, big in itertools.product(("u1", "u2", "f4"), "<>", layouts, (False, True)):
        for predictor in (None, 2, 3) if compression else (None,):
            if (predictor == 3) != (dtype == "f4") and predictor is not None:
                continue
            path = tmp_path / "a.tif"
            tifffile.imwrite(
                path,
                image(dtype),
                compression=compression,
                predictor=predictor,
                byteorder=order,
                bigtiff=big,
                **layout,
            )
            assert_equal_or_refused(
                path, image(dtype), ("tifffile",) if dtype == "f4" else ("native", "tifffile")
            )


def test_fault_08_predictor_of_uncompressed_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for dtype in ("u1", "u2"):
        differences = np.diff(image(dtype), axis=1, prepend=np.zeros((H, 1), dtype))
        tifffile.imwrite(path, differences, metadata=None, extratags=[(316, 3, 1, 2, True)])
        data = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            struct.pack_into("<H", data, file.pages[0].tags[316].offset, 317)
        path.write_bytes(data)
        assert all("uncompressed pixels with a predictor" in s for s in refusals(path))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4", "u8", "f2", "f8", "c8"])
def test_fault_34_pixels_that_no_reader_returns_are_refused_without_a_circle(
    tmp_path: Path, dtype: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((H, W), dtype))
    for sentence in refusals(tmp_path / "a.tif"):
        assert "tifffile" not in sentence
        assert "uint8, uint16 or float32 is needed, so convert it" in sentence


def test_fault_08_palettes_are_refused_by_all(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", image("u1"), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
    )
    assert all("palette color" in s for s in refusals(tmp_path / "a.tif"))


def test_fault_34_color_is_refused_without_naming_a_page_that_does_not_help(tmp_path: Path) -> None:
    for planar in ("contig", "separate"):
        shape = (H, W, 3) if planar == "contig" else (3, H, W)
        tifffile.imwrite(tmp_path / "rgb.tif", image("u1", shape), photometric="rgb", planarconfig=planar)
        for name in ("rgb.tif", "rgb.tif#0"):
            for reader in ("native", "tifffile"):
                with pytest.raises(CamaeError, match="3 samples per pixel") as caught:
                    read_plane(tmp_path / name, reader)
                assert "name a page" not in str(caught.value)
    tifffile.imwrite(
        tmp_path / "alpha.tif",
        image("u1", (H, W, 2)),
        photometric="minisblack",
        extrasamples=["unassalpha"],
        planarconfig="contig",
    )
    assert all("2 samples per pixel" in s or "2 planes" in s for s in refusals(tmp_path / "alpha.tif"))


def test_fault_08_metamorph_stack_in_one_page(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(
        path, image("u2", (3 * H, W)), metadata=None, extratags=[(33629, 4, 18, tuple(range(18)), True)]
    )
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[33629]
    # UIC2 counts planes, each of three rationals; the image is the first of them.
    struct.pack_into("<HI", data, tag.offset + 2, 5, 3)
    path.write_bytes(data)
    set_tag(path, "ImageLength", H)
    set_tag(path, "RowsPerStrip", H)
    assert all("a MetaMorph stack of 3 planes" in s for s in refusals(path))


@pytest.mark.parametrize(
    "description",
    [
        "ImageJ=1.54f\nimages=3\n",
        "ImageJ=1.54f\nchannels=3\n",
        "ImageJ=1.54f\nslices=3\n",
        "ImageJ=1.54f\nframes=3\nloop=false\n",
    ],
)
def test_fault_35_imagej_stack_in_one_page(tmp_path: Path, description: str) -> None:
    tifffile.imwrite(tmp_path / "ij.tif", image(), description=description, metadata=None)
    assert all("an ImageJ stack of 3 planes" in s for s in refusals(tmp_path / "ij.tif"))
    tifffile.imwrite(
        tmp_path / "rgb.tif",
        image("u2", (3, H, W)),
        description=description,
        metadata=None,
        photometric="minisblack",
    )
    assert np.array_equal(read_plane(f"{tmp_path}/rgb.tif#1"), image("u2", (3, H, W))[1])


def test_fault_08_series_with_one_directory(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "cut.tif", image("u2", (4, H, W)), photometric="minisblack", metadata={}, truncate=True
    )
    assert all("truncated" in s for s in refusals(tmp_path / "cut.tif"))


def test_fault_08_ome_description(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "one.ome.tif", image(), metadata={"axes": "YX"})
    assert_equal_or_refused(tmp_path / "one.ome.tif", image(), tuple(READERS_HERE))
    tifffile.imwrite(
        tmp_path / "three.ome.tif", image("u2", (3, H, W)), photometric="minisblack", metadata={"axes": "CYX"}
    )
    assert all("3 planes" in s for s in refusals(tmp_path / "three.ome.tif"))


def test_fault_08_a_volume_in_one_page(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "v.tif",
        image("u2", (16, H, W)),
        volumetric=True,
        tile=(16, 16, 16),
        photometric="minisblack",
    )
    refusals(tmp_path / "v.tif")


def test_fault_35_sparse_tiles_are_zero(tmp_path: Path) -> None:
    for compression in (None, "zlib"):
        path = tmp_path / "sparse.tif"
        tifffile.imwrite(path, image(), tile=(16, 16), compression=compression, metadata=None)
        with tifffile.TiffFile(path, mode="r+") as file:
            tags = file.pages[0].tags
            offsets, counts = list(file.pages[0].dataoffsets), list(file.pages[0].databytecounts)
            for i in (1, 5):
                offsets[i] = counts[i] = 0
            tags["TileOffsets"].overwrite(offsets)
            tags["TileByteCounts"].overwrite(counts)
        truth = image()
        truth[:16, 16:32] = 0
        truth[16:32, 32:] = 0
        assert_equal_or_refused(path, truth)
        assert np.array_equal(read_crops([path, path], 5, 9, 30)[1], truth[5:35, 9:39])


def test_fault_35_odd_byte_counts_of_one_strip(tmp_path: Path) -> None:
    for value in (0, 1, 7, H * W * 2 - 1, 1 << 30):
        path = tmp_path / "odd.tif"
        tifffile.imwrite(path, image(), metadata=None, rowsperstrip=H)
        set_tag(path, "StripByteCounts", value, dtype="I")
        assert_equal_or_refused(path, image())
    tifffile.imwrite(path, image(), metadata=None, rowsperstrip=H, compression="zlib")
    set_tag(path, "StripByteCounts", 0xFFFF)
    assert_equal_or_refused(path, image())


@pytest.mark.parametrize("junk", [8, 0x7FFFFFFF, 9])
def test_fault_35_junk_after_a_whole_first_page(tmp_path: Path, junk: int) -> None:
    path = tmp_path / "junk.tif"
    tifffile.imwrite(path, image(), metadata=None, rowsperstrip=H)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        at = page.offset + 2 + 12 * len(page.tags)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, at, junk)
    path.write_bytes(data)
    assert_equal_or_refused(path, image())


def test_fault_35_pages_lost_behind_a_broken_chain_are_not_lost_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, image("u2", (3, H, W)), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        at = page.offset + 2 + 12 * len(page.tags)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, at, 0x7FFFFFF0)
    path.write_bytes(data)
    assert all("breaks off after page 1" in s for s in refusals(path))
    for reader in ("native", "tifffile"):
        assert np.array_equal(read_plane(f"{path}#1", reader), image("u2", (3, H, W))[1])


@pytest.mark.parametrize("reader", READERS_HERE)
def test_fault_08_sites_are_checked_alike(tmp_path: Path, reader: str, screen: Manifest) -> None:
    tifffile.imwrite(screen.root / "img/2_ER.tif", image("u2", (40, 48))[:, :47])
    with pytest.raises(CamaeError, match=r"row 2 .*channel ER: .*2_ER\.tif: is 40x47 uint16 but"):
        read_site(screen, 2, reader=reader)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 7}, {"tile": (16, 32)}], ids=["strips", "tiles"])
def test_fault_08_planar_and_extra_samples(
    tmp_path: Path, dtype: str, planar: str, layout: dict[str, object]
) -> None:
    """Samples of one pixel are planes to native and tifffile and refused by DALI; none takes the first for all."""
    path = tmp_path / "a.tif"
    for photometric, n in (("minisblack", 2), ("rgb", 4)):
        truth = image(dtype, (n, H, W))
        stored = truth if planar == "separate" else np.ascontiguousarray(np.moveaxis(truth, 0, -1))
        options = {
            "photometric": photometric,
            "planarconfig": planar,
            "extrasamples": ["unspecified"],
        } | layout
        tifffile.imwrite(path, stored, compression="zlib", metadata=None, **options)
        for reader in ("native", "tifffile"):
            assert np.array_equal(read_crops(path, 5, 9, 30, reader=reader), truth[:, 5:35, 9:39])
        if HAVE_DALI:
            with pytest.raises(CamaeError, match=rf"a\.tif: holds {n} planes on 1 pages .*reader='native'"):
                read_crops(path, 5, 9, 30, reader="dali")
        assert all(f"{n} " in sentence for sentence in refusals(path))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_fault_08_tags_that_change_no_pixel(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.tif"
    tags: dict[str, dict[str, object]] = {
        "planar": {"extratags": [(284, 3, 1, 2, True)]},
        "fill order": {"extratags": [(266, 3, 1, 2, True)]},
        "extremes": {"extratags": [(280, 3, 1, 10, True), (281, 3, 1, 100, True)]},
        "transfer": {"extratags": [(301, 3, 256, tuple(range(256))[::-1], True)]},
        "depth 1": {"extratags": [(32997, 4, 1, 1, True)]},
        "profile": {"iccprofile": bytes(128) + b"x"},
        "reduced": {"subfiletype": 1},
        "large tile": {"tile": (64, 64)},
        "resolution": {"resolution": (3, 7)},
        "imagej": {"imagej": True, "metadata": {}} if dtype == "u2" else {},
        "old deflate": {"compression": 32946},
    }
    for options in tags.values():
        tifffile.imwrite(path, image(dtype), **({"metadata": None} | options))
        assert_equal_or_refused(path, image(dtype), tuple(READERS_HERE))
    for orientation in (0, 9):
        tifffile.imwrite(path, image(dtype), metadata=None, extratags=[(274, 3, 1, orientation, True)])
        assert_equal_or_refused(path, image(dtype))


def test_fault_08_depths_and_codecs_of_one_reader(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs", reason="imagecodecs writes these depths and codecs")
    path = tmp_path / "a.tif"
    for bits in (1, 2, 4, 6, 10, 12, 14):
        values = np.random.default_rng(3).integers(0, 1 << bits, (H, W), "u1" if bits < 8 else "u2")
        tifffile.imwrite(path, values, bitspersample=bits, metadata=None)
        assert_equal_or_refused(path, values, ("tifffile",) if bits > 1 else ())
        got = [outcome(path, reader) for reader in READERS_HERE if reader != "tifffile"]
        assert all(f"a depth of {bits} bits" in str(sentence) for sentence in got)
    for codec, dtype in itertools.product(("lzma", "jpegxl", "png", "lerc"), ("u1", "u2")):
        tifffile.imwrite(path, image(dtype), compression=codec, metadata=None)
        assert_equal_or_refused(path, image(dtype), ("tifffile",))


def test_fault_08_other_photometric_interpretations(tmp_path: Path) -> None:
    for dtype, code in itertools.product(("u1", "u2"), (4, 5, 8, 9, 32803, 32844, 34892)):
        tifffile.imwrite(tmp_path / "a.tif", image(dtype), metadata=None)
        set_tag(tmp_path / "a.tif", "PhotometricInterpretation", code)
        assert all(
            f"photometric interpretation {code}: a gray plane" in s for s in refusals(tmp_path / "a.tif")
        )


def test_fault_08_pyramids(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for subifds in (1, 0):
        with tifffile.TiffWriter(path) as writer:
            writer.write(image(), subifds=subifds, metadata=None, tile=(16, 16))
            writer.write(image()[::2, ::2], subfiletype=1, metadata=None, tile=(16, 16))
        if subifds:
            assert_equal_or_refused(path, image(), tuple(READERS_HERE))
        else:
            assert all("pages differ in size" in s for s in refusals(path))
    assert np.array_equal(read_plane(f"{path}#0"), image())


def test_fault_08_one_file_of_an_ome_set(tmp_path: Path) -> None:
    """Its description names three planes, of which two are in other files."""
    data = "".join(
        f'<TiffData IFD="0" FirstC="{c}"><UUID FileName="{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>'
        for c in range(3)
    )
    description = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="48" SizeY="48" SizeC="3" SizeZ="1" '
        f'SizeT="1">{data}</Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "1.ome.tif", image(), description=description, metadata=None)
    assert_equal_or_refused(tmp_path / "1.ome.tif", image(), tuple(READERS_HERE))


def test_fault_37_sizes_beyond_any_disk_are_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), metadata=None, rowsperstrip=H, bigtiff=True)
    set_tag(path, "StripOffsets", (1 << 64) - 4, dtype="Q")
    for reader in ("native", "tifffile"):
        with pytest.raises(CamaeError) as caught:
            read_plane(path, reader)
        assert "1844674407" not in str(caught.value)
