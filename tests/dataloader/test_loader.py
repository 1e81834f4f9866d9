"""CropLoader: coverage, sharding, resumption, symmetries, mixed channel sets, bad sites."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from camae.dataloader import CropLoader, Manifest
from camae.dataloader.read_pixels import plane_kind, read_site
from camae.dataloader.sampling import draw, symmetric
from camae.errors import CamaeError


def test_every_site_once_per_epoch_over_ranks(screen: Manifest) -> None:
    loaders = [CropLoader(screen, crop=16, batch_size=1, rank=r, world_size=2) for r in range(2)]
    for epoch in range(3):
        seen = Counter(
            row
            for step in range(5 * epoch, 5 * (epoch + 1))
            for loader in loaders
            for row in loader.batch_at(step).rows_B.tolist()
        )
        assert seen == Counter(range(10))
    assert loaders[0].steps_per_epoch == 5


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 1 << 30])
def test_ranks_share_the_global_batch_and_cache_changes_nothing(screen: Manifest, cache_bytes: int) -> None:
    whole = CropLoader(screen, crop=16, batch_size=6, seed=3).batch_at(4)
    parts = [
        CropLoader(
            screen, crop=16, batch_size=3, seed=3, rank=r, world_size=2, cache_bytes=cache_bytes
        ).batch_at(4)
        for r in range(2)
    ]
    assert torch.equal(torch.cat([p.planes_KHW for p in parts]), whole.planes_KHW)
    assert np.array_equal(np.concatenate([p.rows_B for p in parts]), whole.rows_B)
    assert [n for p in parts for n in p.names_K] == whole.names_K


def test_iteration_resumes_at_the_exact_next_crop(screen: Manifest) -> None:
    loader = CropLoader(screen, crop=16, batch_size=4, start_step=7, workers=3)
    stream = iter(loader)
    reference = CropLoader(screen, crop=16, batch_size=4)
    for step in range(7, 13):
        assert torch.equal(next(stream).planes_KHW, reference.batch_at(step).planes_KHW)
    stream.close()
    assert loader.wait_seconds > 0


def test_crops_are_windows_of_their_site_under_one_symmetry(screen: Manifest) -> None:
    batch = CropLoader(screen, crop=16, batch_size=10, seed=1).batch_at(0)
    for sample, row in enumerate(batch.rows_B):
        image, names = read_site(screen, int(row))
        planes = batch.planes_KHW[batch.sample_K == sample].numpy()
        assert [n for n, k in zip(batch.names_K, batch.sample_K, strict=True) if k == sample] == names
        assert _found(image, planes) == 1


def _found(image: np.ndarray, planes: np.ndarray) -> int:
    """In how many ways the planes are a window of the image under the eight symmetries."""
    windows = np.lib.stride_tricks.sliding_window_view(image, planes.shape[1:], axis=(1, 2))
    return sum((windows == symmetric(planes, s)[:, None, None]).all(axis=(0, 3, 4)).sum() for s in range(8))


def test_symmetries_are_the_eight_of_the_square() -> None:
    image = np.arange(9).reshape(1, 3, 3)
    rotated = [np.rot90(m, k, axes=(1, 2)) for m in (image, image[:, ::-1]) for k in range(4)]
    assert {symmetric(image, s).tobytes() for s in range(8)} == {r.tobytes() for r in rotated}


def test_draws_are_uniform() -> None:
    draws = draw(1000, seed=5, slots_B=np.arange(64_000))
    # Standard error of the mean of 64,000 uniforms: 0.00114; of a count of 8,000: 84. Bounds: 5 of each.
    assert abs(draws.uniform_B2.mean(0) - 0.5).max() < 0.0057
    assert abs(np.bincount(draws.symmetry_B, minlength=8) - 8000).max() < 420
    assert abs(np.corrcoef(draws.uniform_B2.T)[0, 1]) < 0.02


def test_several_crops_per_site_come_together(screen: Manifest) -> None:
    batch = CropLoader(screen, crop=16, batch_size=8, crops_per_site=4).batch_at(0)
    assert [len(set(rows)) for rows in batch.rows_B.reshape(2, 4)] == [1, 1]


def test_bad_sites_up_to_a_share(screen: Manifest) -> None:
    (screen.root / "img/2_ER.tif").write_bytes(b"")
    loader = CropLoader(screen, crop=16, batch_size=10, max_bad_share=0.1)
    rows = loader.batch_at(0).rows_B.tolist()
    assert sorted(rows) == [0, 1, 3, 3, 4, 5, 6, 7, 8, 9]
    assert list(loader.bad_sites) == [2]
    with pytest.raises(CamaeError, match=r"row 2 .*channel ER.*2_ER\.tif"):
        CropLoader(screen, crop=16, batch_size=10).batch_at(0)
    (screen.root / "img/5_DNA.tif").unlink()
    with pytest.raises(CamaeError, match=r"more than 10\.0%"):
        CropLoader(screen, crop=16, batch_size=10, max_bad_share=0.1).batch_at(0)


def test_files_replaced_while_running(screen: Manifest) -> None:
    loader = CropLoader(screen, crop=16, batch_size=10, augment=False, cache_bytes=0)
    loader.batch_at(0)
    same = np.full((40, 48), 7, np.uint16)
    for name in ("new.tif", "img/6_DNA.tif"):
        tifffile.imwrite(screen.root / name, same, compression="zlib")
    os.replace(screen.root / "new.tif", screen.root / "img/6_ER.tif")
    batch = loader.batch_at(1)
    sample = batch.rows_B.tolist().index(6)
    assert (batch.planes_KHW[batch.sample_K == sample] == 7).all()
    for image, sentence in (
        (same[:8, :8], r"a window of 16x16 pixels at \(\d+, \d+\) does not fit into the image of 8x8"),
        (same.astype(np.uint8), "is uint8, uint16 is wanted"),
        (np.stack([same, same]), "holds more than the 1 planes that are wanted"),
    ):
        tifffile.imwrite(screen.root / "new.tif", image, photometric="minisblack")
        os.replace(screen.root / "new.tif", screen.root / "img/6_ER.tif")
        with pytest.raises(CamaeError, match=rf"row 6 .*channel ER: .*6_ER\.tif: {sentence}"):
            loader.batch_at(2)


def test_mixed_dtypes_and_large_crops_are_named(screen: Manifest) -> None:
    with pytest.raises(CamaeError, match=r"row \d+ .*a crop of 41 pixels is larger than its 40x48"):
        CropLoader(screen, crop=41, batch_size=10).batch_at(0)
    for channel in ("DNA", "ER"):
        tifffile.imwrite(screen.root / f"img/4_{channel}.tif", np.zeros((40, 48), np.uint8))
    with pytest.raises(CamaeError, match=r"row \d.* is uint\d+ but row \d.* is uint\d+"):
        CropLoader(screen, crop=16, batch_size=10).batch_at(0)


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"compression": "zlib", "rowsperstrip": 128}, 0.5),
        ({"compression": "zlib", "rowsperstrip": 16}, 1 / 16),
        ({"compression": "zlib", "tile": (32, 32)}, 1 / 16),
        ({"rowsperstrip": 8}, 0),
    ],
)
def test_share_that_one_window_decodes(tmp_path: Path, options: dict, share: float) -> None:
    """Decoding of a strip ends with the window, so that half of a long one is the mean; tiles are decoded whole."""
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, np.arange(128 * 128, dtype=np.uint16).reshape(128, 128), **options)
    assert plane_kind(str(path))[3] == share
