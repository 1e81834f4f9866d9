"""The overview figure: what it draws, its size as a file, and what a folder must hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from camae.errors import CamaeError
from camae.reporting.overview_figure import MAX_BYTES, overview_figure, write_overview
from camae.reporting.run_folder import Reconstructions

RECALL = {"random": {"value": 0.1, "se": 0.02}, "trained": {"value": 0.6, "se": 0.05}}


def texture(fields, channels, side):
    rng = np.random.default_rng(0)
    coarse = rng.random((3, fields, channels, side // 4, side // 4), dtype=np.float32)
    arrays = np.kron(coarse, np.ones((4, 4), np.float32)) + 0.1 * rng.random((side, side), dtype=np.float32)
    arrays[0, ..., : side // 2] = np.nan
    names = [f"channel {c}" for c in range(channels)]
    return Reconstructions(*arrays, [f"field {f}" for f in range(fields)], names)


def test_panels_of_two_fields_stand_in_rows_by_kind_and_columns_by_channel():
    left, right = overview_figure(texture(4, 6, 32), RECALL).axes
    assert [t.get_text() for t in left.get_xticklabels()] == [f"channel {c}" for c in range(5)]
    assert [t.get_text() for t in left.get_yticklabels()] == [
        "masked input",
        "reconstruction",
        "original",
    ] * 2
    mosaic = np.asarray(left.images[0].get_array())
    assert mosaic.shape == (6 * 32 + 4 * 1 + 4, 5 * 32 + 4 * 1, 4)
    hidden, original = mosaic[:32, :16, :3], mosaic[66:98, :32, :3]
    assert (hidden == hidden[0, 0]).all()
    assert original.std() > 0.2
    assert [bar.get_width() for bar in right.patches] == [0.1, 0.6]


def test_the_written_picture_is_under_its_limit(run_folder, tmp_path):
    r = texture(2, 5, 128)
    np.savez(run_folder / "models" / "seed-0" / "reconstructions.npz", **vars(r))
    path = write_overview(run_folder, tmp_path / "overview.png")
    assert path.stat().st_size < MAX_BYTES
    picture = Image.open(path).convert("RGB")
    assert picture.size == (1800, 960)
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_a_folder_without_recall_or_reconstructions_is_refused(run_folder, tmp_path):
    summary = json.loads((run_folder / "summary.json").read_text())
    del summary["recall"]["pixel"]
    (run_folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(CamaeError, match="no recall of pixel"):
        write_overview(run_folder, tmp_path / "overview.png")
    (run_folder / "models" / "seed-0" / "reconstructions.npz").unlink()
    with pytest.raises(CamaeError, match=r"no reconstructions\.npz"):
        write_overview(run_folder, tmp_path / "overview.png")
    assert not (tmp_path / "overview.png").exists()
