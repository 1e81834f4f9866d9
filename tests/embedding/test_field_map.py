"""`patch_map`: one field of a screen beside its controls, in Python, at the shell and in the report."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

import camae
from camae.cli import app
from camae.dataloader import read_manifest
from camae.embedding import patch_map
from camae.errors import CamaeError, MissingFileError
from camae.reporting.patch_map import PatchMap

CHANNELS = ("DNA", "ER", "Mito")


@pytest.fixture
def planted(tmp_path):
    """A plate of 6 control fields of one texture, and a perturbation that has another one in a corner."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "planted"
    folder.mkdir()
    rows = []
    for i in range(7):
        row = {"Metadata_Plate": "P1", "Metadata_Well": f"A{i + 1:02d}", "Metadata_Site": "1"}
        row |= {"Metadata_Perturbation": "odd" if i == 6 else "DMSO"}
        row |= {"Metadata_control_type": "" if i == 6 else "negcon"}
        for channel in CHANNELS:
            plane = rng.normal(1000, 30, (64, 96))
            if i == 6:
                plane[32:64, 0:32] += 600 * (np.indices((32, 32)).sum(0) // 4 % 2)
            tifffile.imwrite(folder / f"{i}_{channel}.tif", plane.astype(np.uint16))
            row[channel] = f"{i}_{channel}.tif"
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def test_the_planted_corner_is_where_the_field_differs(planted, model):
    found = patch_map(planted, model, perturbation="odd")
    assert found.labels == ["odd", "control (negcon)"]
    assert found.controls == 6
    assert found.images.shape == (2, 64, 96, 3)
    assert found.colors.shape == (2, 8, 12, 3)
    above = found.distance[0] > found.level
    corner = np.zeros((8, 12), bool)
    corner[4:8, 0:4] = True
    assert above[corner].mean() > 0.9
    assert above[~corner].mean() < 0.1
    assert found.shares[0] == pytest.approx(above.mean())
    assert found.shares[1] < 0.05
    assert repr(found) == f"PatchMap('odd', 8 x 12 patches, {above.mean():.1%} of patches beyond controls)"


def test_distance_is_of_the_map_that_embed_gives(planted, model):
    """Half of the controls are fitted: wells 1, 3, 5; wells 2, 4, 6 set the level, and well 2 is shown."""
    from camae.dataloader.read_pixels import read_site
    from camae.maps.patches import PatchControls

    manifest = read_manifest(planted)

    def one(row):
        image, names = read_site(manifest, row)
        return camae.embed(image, names, model, pool="patch_mean", tiles="grid")

    fitted = PatchControls.fit([one(row) for row in (0, 2, 4)])
    found = patch_map(manifest, model, perturbation="odd")
    np.testing.assert_allclose(found.distance[0], fitted.distance(one(6)), rtol=1e-4)
    np.testing.assert_allclose(found.distance[1], fitted.distance(one(1)), rtol=1e-4)
    held = np.stack([fitted.distance(one(row)) for row in (1, 3, 5)])
    assert found.level == pytest.approx(np.percentile(held, 99), rel=1e-4)


def test_a_field_alone_has_colors_and_nothing_to_differ_from(planted, model):
    found = patch_map(planted, model)
    assert found.labels == ["P1 A01 1"]
    assert found.shares == []
    assert repr(found) == "PatchMap('P1 A01 1', 8 x 12 patches)"
    with Image.open(io.BytesIO(found._repr_png_())) as picture:
        assert picture.width > 400


def test_files_come_back_and_the_report_shows_them(planted, model_file, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    assert "Patch map" not in camae.report(run).read_text()
    arguments = ["patch-map", planted, "--model", model_file, "--out", run, "--perturbation", "odd"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    found = patch_map(planted, model_file, perturbation="odd")
    assert f"odd: {found.shares[0]:.1%} of patches above the level of 6 control fields" in result.output
    stored = PatchMap.read(run / "patch_map.npz")
    for name in ("images", "colors", "distance", "level", "labels", "channels", "controls"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(found, name))
    with Image.open(run / "patch_map.png") as picture:
        assert picture.width > 1000
    page = camae.report(run).read_text()
    assert "Patch map" in page
    assert f"odd: {found.shares[0]:.1%} of patches above the level of controls." in page
    (run / "patch_map.npz").write_bytes(b"PK damaged")
    with pytest.raises(CamaeError, match=r"patch_map.npz: not readable as a patch map"):
        camae.report(run)
    with pytest.raises(MissingFileError, match="no such patch map"):
        PatchMap.read(tmp_path / "none.npz")


def test_one_channel_is_gray_and_the_center_is_one_tile(planted, model):
    table = pd.read_csv(planted, dtype=str, keep_default_na=False).drop(columns=["ER", "Mito"])
    table.to_csv(planted.parent / "one.csv", index=False)
    found = patch_map(planted.parent / "one.csv", model, perturbation="odd", tiles="center")
    assert found.images.shape == (2, 32, 32, 3)
    assert (found.images == found.images[..., :1]).all()
    assert found.figure().axes[0].get_title() == "DNA"


def test_what_cannot_be_compared_is_refused(planted, model):
    with pytest.raises(CamaeError, match="the manifest has no site of 'none' in Metadata_Perturbation"):
        patch_map(planted, model, perturbation="none")
    with pytest.raises(
        CamaeError, match="the manifest has no column Metadata_Gene, so a perturbation has no contr"
    ):
        patch_map(planted, model, perturbation="odd", column="Metadata_Gene")
    with pytest.raises(CamaeError, match="no plate with a site of 'odd' has 2 control fields"):
        patch_map(planted, model, perturbation="odd", negative="poscon")
    with pytest.raises(CamaeError, match=r"row 0 .*: a patch map needs tiles side by side"):
        patch_map(planted, model, tiles="cover")
    for channel in CHANNELS:
        plane = np.random.default_rng(1).integers(0, 900, (96, 96)).astype(np.uint16)
        tifffile.imwrite(planted.parent / f"6_{channel}.tif", plane)
    with pytest.raises(CamaeError, match="are of different sizes; their maps cannot stand side by side"):
        patch_map(planted, model, perturbation="odd")
