"""The native TIFF reader against tifffile, bit for bit, over every combination of features it accepts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile

from camae.dataloader.backends.native import codecs, module

CODECS = {"none": None, "lzw": "lzw", "deflate": "zlib", "zstd": "zstd", "packbits": "packbits"}
LAYOUTS = {
    "strips": {"rowsperstrip": 5},
    "one_strip": {"rowsperstrip": 1 << 20},
    "tiles": {"tile": (16, 32)},
}
H, W = 67, 83


def field(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Cells on noise: long runs, short strings and full-range values, so that every decoder path is taken."""
    rng = np.random.default_rng(seed)
    image = rng.poisson(200, shape).astype(np.float64)
    image[..., 10:30, 20:60] += rng.integers(0, 60_000, (20, 40))
    image[..., 40:50, :] = 77
    return np.clip(image if dtype == "u2" else image / 256, 0, np.iinfo(dtype).max).astype(dtype)


def windows(
    path: Path, page: int, y: int, x: int, h: int, w: int, planes: int, dtype: np.dtype, symmetry: int = 0
) -> np.ndarray:
    out = np.full((planes, h, w), 171, dtype.newbyteorder("="))
    assert module().read_windows([str(path)], [page], [y], [x], [symmetry], [planes], out) == []
    return out


def expected_planes(path: Path) -> np.ndarray:
    """(planes, H, W) as tifffile reads the pages one by one, samples brought to the front."""
    with tifffile.TiffFile(path) as file:
        planes = []
        for page in file.pages:
            image = page.asarray()
            if image.ndim == 3 and page.planarconfig == 1:
                image = np.moveaxis(image, -1, 0)
            planes.extend(image.reshape(-1, *image.shape[-2:]))
    return np.stack(planes)


def assert_equal_everywhere(path: Path) -> None:
    truth = expected_planes(path)
    n, height, width = truth.shape
    dtype = truth.dtype
    assert np.array_equal(windows(path, -1, 0, 0, height, width, n, dtype), truth)
    rng = np.random.default_rng(7)
    for _ in range(6):
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        assert np.array_equal(windows(path, -1, y, x, h, w, n, dtype), truth[:, y : y + h, x : x + w])


@pytest.mark.parametrize("planar", ["gray", "contig", "separate"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_matrix(tmp_path: Path, codec: str, layout: str, planar: str) -> None:
    options = dict(LAYOUTS[layout])
    if planar != "gray":
        options |= {"planarconfig": planar, "photometric": "minisblack"}
    shape = {"gray": (H, W), "contig": (H, W, 3), "separate": (3, H, W)}[planar]
    for dtype, order, predictor, big in itertools.product(("u1", "u2"), "<>", (False, True), (False, True)):
        image = field(dtype, (3, H, W)) if planar != "gray" else field(dtype, (H, W))
        if predictor and codec == "none":
            continue  # tifffile does not write it
        if planar == "contig":
            image = np.moveaxis(image, 0, -1)
        assert image.shape == shape
        path = tmp_path / f"{dtype}{order}{predictor}{big}.tif"
        tifffile.imwrite(
            path,
            image,
            compression=CODECS[codec],
            predictor=predictor or None,
            byteorder=order,
            bigtiff=big,
            **options,
        )
        assert_equal_everywhere(path)


@pytest.mark.parametrize("symmetry", range(8))
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("size", [1, 7, 16, 41])
def test_symmetries_agree_with_numpy(tmp_path: Path, symmetry: int, dtype: str, size: int) -> None:
    from camae.dataloader.sampling import symmetric

    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, field(dtype, (2, H, W)), tile=(16, 16), photometric="minisblack", compression="lzw"
    )
    truth = expected_planes(path)[:, 9 : 9 + size, 11 : 11 + size]
    out = windows(path, -1, 9, 11, size, size, 2, truth.dtype, symmetry)
    assert np.array_equal(out, symmetric(truth, symmetry))


def test_fault_29_every_codec_is_served_once_the_wrapper_is_imported() -> None:
    assert "not available" not in codecs().values()


def test_pages_are_channels(tmp_path: Path) -> None:
    for name, options in {
        "plain.tif": {},
        "ome.ome.tif": {"metadata": {"axes": "CYX", "Channel": {"Name": ["DNA", "ER", "AGP", "Mito"]}}},
        "imagej.tif": {"imagej": True},
    }.items():
        image = field("u2", (4, H, W))
        tifffile.imwrite(tmp_path / name, image, photometric="minisblack", **options)
        assert np.array_equal(windows(tmp_path / name, -1, 0, 0, H, W, 4, image.dtype), image)
        assert np.array_equal(
            windows(tmp_path / name, 2, 3, 4, 20, 30, 1, image.dtype)[0], image[2, 3:23, 4:34]
        )


def test_min_is_white_comes_as_stored(tmp_path: Path) -> None:
    image = field("u1", (H, W))
    tifffile.imwrite(tmp_path / "white.tif", image, photometric="miniswhite")
    assert_equal_everywhere(tmp_path / "white.tif")
    assert module().describe(str(tmp_path / "white.tif"))["min_is_white"]


def test_noise_in_lzw_fills_its_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name, image in {
        "noise": rng.integers(0, 65536, (256, 256), dtype=np.uint16),
        "constant": np.full((256, 256), 258, np.uint16),
        "ramp": (np.arange(256 * 256, dtype=np.uint16) // 7).reshape(256, 256),
        "period_two": np.tile(np.array([1, 2], np.uint16), (256, 128)),
    }.items():
        for predictor in (False, True):
            path = tmp_path / f"{name}{predictor}.tif"
            tifffile.imwrite(path, image, compression="lzw", predictor=predictor or None, rowsperstrip=64)
            assert_equal_everywhere(path)


def test_real_files(real_images: Path) -> None:
    files = sorted(real_images.rglob("*.tif*"))
    assert len(files) > 50
    for path in files:
        assert_equal_everywhere(path)


@pytest.mark.parametrize(
    ("options", "dtype", "feature"),
    [
        ({"compression": "jpeg"}, "u1", "JPEG"),
        ({"compression": "lzma"}, "u2", "LZMA"),
        ({"compression": "jpeg2000"}, "u2", "JPEG 2000"),
        ({}, "i2", "signed"),
        ({}, "f4", "floating-point"),
        ({}, "u4", "32 bits"),
        ({"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "u1", "palette"),
        ({"compression": "zlib", "predictor": 3}, "f4", "floating-point"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, options: dict, dtype: str, feature: str) -> None:
    path = tmp_path / "other.tif"
    tifffile.imwrite(path, np.ones((32, 32), dtype), **options)
    failures = module().read_windows([str(path)], [-1], [0], [0], [0], [1], np.zeros((1, 8, 8), np.uint16))
    assert len(failures) == 1
    assert feature in failures[0][2]


def test_planes_hidden_behind_one_page_are_refused(tmp_path: Path) -> None:
    image = field("u2", (4, H, W))
    tifffile.imwrite(tmp_path / "cut.tif", image, photometric="minisblack", metadata={}, truncate=True)
    with tifffile.TiffWriter(tmp_path / "ij.tif", imagej=True) as file:
        file.write(image, photometric="minisblack", truncate=True)
    for name in ("cut.tif", "ij.tif"):
        with pytest.raises(module().Refused, match=r"in one page|truncated"):
            module().describe(str(tmp_path / name))
