"""The DALI back-end on the CPU: exact 16-bit windows, refusals instead of page 0, standardization."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from camae.dataloader import CropLoader, Manifest, read_crops
from camae.errors import CamaeError, MissingBackendError

HAVE_DALI = (
    importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
)
needs_dali = pytest.mark.skipif(not HAVE_DALI, reason="nvidia-dali-cuda130 is not installed")


def full_range(shape: tuple[int, ...], dtype: str = "u2") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@needs_dali
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits"])
def test_windows_lose_no_bit(tmp_path: Path, compression: str | None, dtype: str) -> None:
    paths = []
    for c, layout in enumerate([{"rowsperstrip": 8}, {"tile": (64, 64)}, {"byteorder": ">"}]):
        paths.append(tmp_path / f"{c}.tif")
        tifffile.imwrite(
            paths[-1], full_range((150, 170), dtype) // (c + 1), compression=compression, **layout
        )
    truth = np.stack([tifffile.imread(p)[31:95, 77:141] for p in paths])
    crops = read_crops(paths, 31, 77, 64, reader="dali")
    assert crops.dtype == np.dtype(dtype)
    assert np.array_equal(crops, truth)


@needs_dali
def test_several_planes_are_refused_not_cut_to_page_0(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", full_range((3, 64, 64)), photometric="minisblack")
    tifffile.imwrite(tmp_path / "ok.tif", full_range((64, 64)))
    with pytest.raises(CamaeError, match=r"pages\.tif: holds 3 planes"):
        read_crops([tmp_path / "ok.tif", tmp_path / "pages.tif"], 0, 0, 32, reader="dali")
    with pytest.raises(CamaeError, match=r"ok\.tif: a crop of 65 pixels"):
        read_crops([tmp_path / "ok.tif", tmp_path / "ok.tif"], 0, 0, 65, reader="dali")
    tifffile.imwrite(tmp_path / "signed.tif", np.zeros((64, 64), np.int16))
    with pytest.raises(CamaeError, match=r"signed\.tif: holds signed integers"):
        read_crops(tmp_path / "signed.tif", 0, 0, 32, reader="dali")


@needs_dali
def test_standardization_is_the_contract(tmp_path: Path) -> None:
    from camae.dataloader.backends.dali import DaliCrops

    image = np.random.default_rng(0).poisson(300, (100, 100)).astype(np.uint16)
    image[:, 50:] = 7
    tifffile.imwrite(tmp_path / "a.tif", image)
    planes = DaliCrops(40, 2, standardize=True).read([str(tmp_path / "a.tif")] * 2, [3, 4], [5, 55])
    assert planes.dtype == torch.float32
    window = image[3:43, 5:45].astype(np.float64)
    truth = (window - window.mean()) / np.sqrt(window.var() + 1e-6)
    # DALI sums in fp32: mean and variance of 1,600 values near 300 are good to 1e-6 relative, so 300e-6/17 absolute.
    assert np.abs(planes[0].numpy() - truth).max() < 1e-4
    # A constant window has variance 0: only eps keeps it finite.
    assert np.abs(planes[1].numpy()).max() < 1e-3


@needs_dali
def test_native_reader_feeds_dali(screen: Manifest) -> None:
    from itertools import islice

    from camae.dataloader.backends.dali import standardized

    loader = CropLoader(screen, crop=16, batch_size=4)
    results = standardized(iter(loader), max_planes=12)
    for step, planes in enumerate(islice(results, 3)):
        stored = loader.batch_at(step).planes_KHW.numpy().astype(np.float64)
        mean, var = stored.mean((1, 2), keepdims=True), stored.var((1, 2), keepdims=True)
        # Full-range uint16: fp32 mean of values up to 65,535 is good to 0.01, the deviation is 19,000.
        assert np.abs(planes.numpy() - (stored - mean) / np.sqrt(var + 1e-6)).max() < 1e-4


@needs_dali
def test_loader_on_dali_equals_native(screen: Manifest) -> None:
    native = CropLoader(screen, crop=16, batch_size=6, cache_bytes=0).batch_at(1)
    dali = CropLoader(screen, crop=16, batch_size=6, cache_bytes=0, reader="dali").batch_at(1)
    assert torch.equal(native.planes_KHW, dali.planes_KHW)


@pytest.mark.skipif(HAVE_DALI, reason="DALI is installed")
def test_missing_dali_is_an_error(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", full_range((64, 64)))
    with pytest.raises(MissingBackendError, match="nvidia-dali-cuda130"):
        read_crops([tmp_path / "a.tif"], 0, 0, 32, reader="dali")


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_decoding_is_exact(tmp_path: Path) -> None:
    from camae.dataloader.backends.dali import DaliCrops

    image = full_range((300, 300))
    for compression in (None, "lzw", "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", image, compression=compression, tile=(64, 64))
        planes = DaliCrops(128, 2, device="mixed").read([str(tmp_path / "a.tif")] * 2, [3, 9], [5, 1])
        assert np.array_equal(planes.cpu().numpy()[1], image[9:137, 1:129])
