"""The DALI back-end on the CPU: exact windows and planes, refusals instead of page 0, turns, standardization."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from camae.dataloader import CropLoader, Manifest, dali_sites, read_crops
from camae.dataloader.backends import dali as backend
from camae.dataloader.backends.dali import DaliWindows, read_windows, standardized
from camae.dataloader.device_planes import constant_planes, turned
from camae.dataloader.mixture import MixedLoader, Source
from camae.dataloader.read_pixels import read_site
from camae.dataloader.sampling import symmetric
from camae.dataloader.screen_tools.check import check
from camae.dataloader.screen_tools.pack import pack
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
    image = np.random.default_rng(0).poisson(300, (100, 100)).astype(np.uint16)
    image[:, 50:] = 7
    tifffile.imwrite(tmp_path / "a.tif", image)
    planes = DaliWindows(2, standardize=True).read([str(tmp_path / "a.tif")] * 2, [3, 4], [5, 55], 40)
    assert planes.dtype == torch.float32
    window = image[3:43, 5:45].astype(np.float64)
    truth = (window - window.mean()) / np.sqrt(window.var() + 1e-6)
    # DALI sums in fp32: mean and variance of 1,600 values near 300 are good to 1e-6 relative, so 300e-6/17 absolute.
    assert np.abs(planes[0].numpy() - truth).max() < 1e-4
    # A constant window has variance 0: only eps keeps it finite.
    assert np.abs(planes[1].numpy()).max() < 1e-3


@needs_dali
def test_native_reader_feeds_dali(screen: Manifest) -> None:
    loader = CropLoader(screen, crop=16, batch_size=4)
    results = standardized(iter(loader), max_planes=12)
    for step, planes in enumerate(islice(results, 3)):
        stored = loader.batch_at(step).planes_KHW.numpy().astype(np.float64)
        mean, var = stored.mean((1, 2), keepdims=True), stored.var((1, 2), keepdims=True)
        # Full-range uint16: fp32 mean of values up to 65,535 is good to 0.01, the deviation is 19,000.
        assert np.abs(planes.numpy() - (stored - mean) / np.sqrt(var + 1e-6)).max() < 1e-4


def assert_same_batches(first: Any, second: Any, steps: int = 4) -> None:
    for step in range(steps):
        a, b = first.batch_at(step), second.batch_at(step)
        assert a.planes_KHW.dtype == b.planes_KHW.dtype
        assert torch.equal(a.planes_KHW, b.planes_KHW)
        assert a.names_K == b.names_K
        assert np.array_equal(a.rows_B, b.rows_B)


@needs_dali
@pytest.mark.parametrize("crop", [16, 40])
def test_loader_on_dali_equals_native(screen: Manifest, crop: int) -> None:
    native, dali = (CropLoader(screen, crop=crop, batch_size=6, reader=r) for r in ("native", "dali"))
    assert_same_batches(native, dali)


@needs_dali
def test_loader_with_a_least_signal_equals_native(screen: Manifest) -> None:
    options = {"crop": 8, "batch_size": 6, "min_signal": 0.58}
    assert_same_batches(*(CropLoader(screen, reader=r, **options) for r in ("native", "dali")))


@needs_dali
def test_illumination_functions_give_equal_pixels(screen: Manifest) -> None:
    rng = np.random.default_rng(1)
    np.save(screen.root / "dna.npy", rng.uniform(0.2, 3, (40, 48)).astype(np.float32))
    np.save(screen.root / "er.npy", np.asfortranarray(rng.uniform(0.5, 2, (40, 48))))
    table = screen.table.assign(Illum_DNA="dna.npy", Illum_ER=[""] * 5 + ["er.npy"] * 5)
    corrected = Manifest(table, screen.root)
    assert corrected.illumination_path(0, "DNA") is not None
    assert_same_batches(*(CropLoader(corrected, crop=16, batch_size=6, reader=r) for r in ("native", "dali")))
    for row in (0, 7):
        image, names = dali_sites.read_site(corrected, row)
        truth, its_names = read_site(corrected, row)
        assert names == its_names
        assert np.array_equal(image.numpy(), truth)
    np.save(screen.root / "dna.npy", np.ones((9, 9), np.float32))
    for read in (
        lambda: dali_sites.read_site(corrected, 0),
        lambda: CropLoader(corrected, crop=16, batch_size=1, reader="dali").batch_at(0),
    ):
        with pytest.raises(
            CamaeError, match=r"channel DNA.*: .*dna\.npy: the illumination function must cover"
        ):
            read()


@needs_dali
def test_unreadable_sites_are_replaced_as_by_native(screen: Manifest) -> None:
    (screen.root / "img/3_ER.tif").unlink()
    whole = (screen.root / "img/4_DNA.tif").read_bytes()
    (screen.root / "img/4_DNA.tif").write_bytes(whole[: len(whole) // 2])
    options = {"crop": 16, "batch_size": 10, "max_bad_share": 0.2}
    native, dali = (CropLoader(screen, reader=r, **options) for r in ("native", "dali"))
    assert_same_batches(native, dali, steps=2)
    assert set(dali.bad_sites) == set(native.bad_sites) == {3, 4}
    assert "channel ER" in dali.bad_sites[3]
    with pytest.raises(CamaeError, match=r"row [34] .*channel (ER|DNA)\b.*\.tif: "):
        CropLoader(screen, crop=16, batch_size=10, reader="dali").batch_at(0)


@needs_dali
def test_data_sets_of_two_depths_are_joined_as_by_native(screen: Manifest, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "8.tif", full_range((40, 48), "u1"))
    other = Manifest(
        pd.DataFrame([{"Metadata_Plate": "Q", "Metadata_Well": "A01", "DNA": "8.tif"}]), tmp_path
    )
    sources = [Source("a", screen, 3.0), Source("b", other, 1.0)]
    native, dali = (MixedLoader(sources, batch_size=8, crop=16, reader=r) for r in ("native", "dali"))
    assert_same_batches(native, dali)
    assert len(dali.batch_at(0).constant_K) == len(dali.batch_at(0).planes_KHW)


@needs_dali
def test_damaged_pixels_name_their_file_and_the_next_call_works(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.tif") for i in range(3)]
    for path in paths:
        tifffile.imwrite(path, full_range((64, 64)), compression="zlib", rowsperstrip=8)
    with tifffile.TiffFile(paths[1]) as file:
        offset = file.pages[0].dataoffsets[2]
    data = bytearray(Path(paths[1]).read_bytes())
    data[offset : offset + 40] = bytes(40)
    Path(paths[1]).write_bytes(data)
    with pytest.raises(
        CamaeError, match=r"^[^ ]*/1\.tif: DALI cannot decode it \(Failed to decode.*try reader='native'$"
    ):
        read_windows(paths, [0] * 3, [0] * 3, 64)
    assert np.array_equal(
        read_windows(paths[::2] * 2, [0] * 4, [1] * 4, 32)[3].numpy(), full_range((64, 64))[:32, 1:33]
    )


@needs_dali
def test_whole_planes_and_sites_equal_native(screen: Manifest) -> None:
    for row in range(3):
        image, names = dali_sites.read_site(screen, row, check_constant=True)
        truth, its_names = read_site(screen, row)
        assert names == its_names
        assert np.array_equal(image.numpy(), truth)
        assert np.array_equal(read_site(screen, row, reader="dali")[0], truth)
    tifffile.imwrite(screen.root / "img/0_ER.tif", np.full((40, 48), 9, np.uint16))
    with pytest.raises(
        CamaeError, match=r"row 0 .*channel ER: .*0_ER\.tif: every pixel is 9, the plane is constant"
    ):
        dali_sites.read_site(screen, 0, check_constant=True)
    tifffile.imwrite(screen.root / "img/0_ER.tif", full_range((40, 47)))
    with pytest.raises(CamaeError, match=r"channel ER: .*0_ER\.tif: is 40x47 uint16 but .*0_DNA\.tif"):
        dali_sites.read_site(screen, 0)


@needs_dali
def test_whole_planes_are_checked_and_packed_by_dali(screen: Manifest, tmp_path: Path) -> None:
    assert check(screen, reader="dali").equals(check(screen))
    packed = pack(screen, tmp_path / "packed", reader="dali").manifest
    assert np.array_equal(read_site(packed, 1)[0], read_site(screen, 1)[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_turns_are_the_symmetries_of_the_loader(dtype: type) -> None:
    planes = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (12, 9, 9)).astype(dtype)
    symmetry_K = np.random.default_rng(1).permutation(np.arange(12) % 8)
    truth = np.stack([symmetric(plane, s) for plane, s in zip(planes, symmetry_K, strict=True)])
    assert np.array_equal(turned(torch.from_numpy(planes), symmetry_K).numpy(), truth)
    for symmetry in range(8):
        got = turned(torch.from_numpy(planes), np.full(12, symmetry)).numpy()
        assert np.array_equal(got, np.stack([symmetric(plane, symmetry) for plane in planes]))


def test_constant_planes_are_those_with_one_value() -> None:
    planes = np.full((3, 5, 5), 40_000, np.uint16)
    planes[1, 4, 4] = 40_001
    assert constant_planes(torch.from_numpy(planes)).tolist() == [True, False, True]


class _Recorder:
    """Stands in for nvidia.dali: notes how operators and pipelines are made."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.types = SimpleNamespace(UINT8=1, UINT16=2, INT32=3, ANY_DATA=4, FLOAT=5)

    def __getattr__(self, name: str) -> Any:
        inner = _Recorder()
        inner.calls = self.calls
        return inner

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls.append(("", args, options))
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize(("device", "number", "operator"), [("cpu", None, "cpu"), ("cuda:1", 1, "mixed")])
def test_the_device_is_one_argument(
    monkeypatch: pytest.MonkeyPatch, device: str, number: int | None, operator: str
) -> None:
    recorder = _Recorder()
    monkeypatch.setattr(backend, "_dali", lambda: recorder)
    DaliWindows(4, np.uint16, device)
    (pipeline,) = [args for _, args, options in recorder.calls if "exec_async" in options]
    assert pipeline == (4, 2, number)
    (decoder,) = [options for _, _, options in recorder.calls if "output_type" in options]
    assert decoder["device"] == operator
    assert (decoder["output_type"], decoder["dtype"]) == (recorder.types.ANY_DATA, recorder.types.UINT16)


@pytest.mark.skipif(HAVE_DALI, reason="DALI is installed")
def test_missing_dali_is_an_error(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", full_range((64, 64)))
    with pytest.raises(MissingBackendError, match="nvidia-dali-cuda130"):
        read_crops([tmp_path / "a.tif"], 0, 0, 32, reader="dali")


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_decoding_is_exact(tmp_path: Path) -> None:
    image = full_range((300, 300))
    for compression in (None, "lzw", "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", image, compression=compression, tile=(64, 64))
        planes = DaliWindows(2, device="cuda").read([str(tmp_path / "a.tif")] * 2, [3, 9], [5, 1], 128)
        assert planes.is_cuda
        assert np.array_equal(planes.cpu().numpy()[1], image[9:137, 1:129])


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_loader_and_sites_on_the_device_equal_native(screen: Manifest) -> None:
    native = CropLoader(screen, crop=16, batch_size=6)
    mixed = CropLoader(screen, crop=16, batch_size=6, reader="dali", device="cuda")
    for step in range(4):
        planes_KHW = mixed.batch_at(step).planes_KHW
        assert planes_KHW.is_cuda
        assert torch.equal(planes_KHW.cpu(), native.batch_at(step).planes_KHW)
    for row in range(len(screen)):
        image, _ = dali_sites.read_site(screen, row, "cuda", check_constant=True)
        assert image.is_cuda
        assert np.array_equal(image.cpu().numpy(), read_site(screen, row)[0])
