"""Sentences of the readers' refusals that no other test reads."""

import numpy as np
import pandas as pd
import pytest
import torch
from screen_files import table, write

from camae.dataloader import Manifest, read_manifest
from camae.dataloader.datasets import rxrx, zarr_sites
from camae.dataloader.mixture import Source, _joined
from camae.dataloader.plane_batch import PlaneBatch
from camae.dataloader.read_pixels import read_crops, read_plane, read_site
from camae.errors import CamaeError
from camae.kernels.patches import check_planes, patch_side

ROW = {"Metadata_Plate": "P", "Metadata_Well": "A01", "Metadata_Site": "1", "DNA": "dna.tif"}


def test_manifests():
    with pytest.raises(CamaeError, match="the manifest is empty: it needs one row per site"):
        Manifest(pd.DataFrame(columns=list(ROW)))
    with pytest.raises(CamaeError, match=r"row 1 .*names no file for any channel"):
        Manifest(pd.DataFrame([ROW, ROW | {"Metadata_Well": "A02", "DNA": ""}]))
    with pytest.raises(CamaeError, match="the mask has 2 entries, the manifest 1 rows"):
        Manifest(pd.DataFrame([ROW])).select([True, False])


def test_no_complete_site(tmp_path):
    table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,DNA,ER\nP,A01,a.tif,\nP,A02,,b.tif\n")
    with pytest.raises(CamaeError, match=r"no complete site is left under .*plate P well A01: lacks ER"):
        read_manifest(tmp_path / "m.csv", incomplete="skip", metadata=[])
    with pytest.raises(CamaeError, match=r"2 of 2 sites under .* are incomplete"):
        read_manifest(tmp_path / "m.csv")


def test_metadata_that_shares_no_column(tmp_path):
    write(tmp_path / "dna.tif")
    path = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,DNA\nP,A01,dna.tif\n")
    extra = table(tmp_path / "extra.csv", "gene,dose\nTP53,1\n")
    with pytest.raises(CamaeError, match=r"extra\.csv: shares no Metadata_ column with the manifest"):
        read_manifest(path, metadata=[extra])


def test_patterns_without_groups(tmp_path):
    write(tmp_path / "plate" / "P1_A01_s1_DNA.tif")
    with pytest.raises(CamaeError, match=r"pattern '\.\*' has no group such as \(\?P<well>"):
        read_manifest(tmp_path / "plate", pattern=".*")


def test_one_plane_claimed_twice(tmp_path):
    """The same RxRx plane as PNG and as JP2."""
    folder = tmp_path / "images" / "HUVEC-01" / "Plate1"
    folder.mkdir(parents=True)
    for suffix in ("png", "jp2"):
        (folder / f"B02_s1_w1.{suffix}").write_bytes(b"")
    with pytest.raises(CamaeError, match=r"B02_s1_w1\.\w+ and .*B02_s1_w1\.\w+ claim the same plane"):
        rxrx.read(tmp_path)


def test_two_arrays_beside_one_table_of_sites(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "images.zarr"), mode="w")
    for name in "ab":
        group.create_array(name, shape=(1, 1, 8, 8), dtype="uint16", chunks=(1, 1, 8, 8))
    table(tmp_path / "sites.csv", "idx,plate,well\n0,P,A01\n")
    table(tmp_path / "channels.csv", "idx,channel\n0,DNA\n")
    with pytest.raises(
        CamaeError, match=r"holds 2 arrays \(site, channel, y, x\) where sites\.csv means one"
    ):
        zarr_sites.read(tmp_path)


def test_addresses_of_nothing(tmp_path):
    with pytest.raises(CamaeError, match="an empty path was given where an image is meant"):
        read_plane("")
    with pytest.raises(CamaeError, match="no path was given: one per channel is needed"):
        read_crops([], 0, 0, 8)
    pd.DataFrame({"image": [{"bytes": b""}]}).to_parquet(tmp_path / "cells.parquet")
    with pytest.raises(CamaeError, match=r"cells\.parquet: holds one image per row: name one, as in .*#0"):
        read_plane(str(tmp_path / "cells.parquet"))


def test_illumination_functions_of_other_shapes(tmp_path):
    write(tmp_path / "dna.tif")
    np.save(tmp_path / "illum.npy", np.ones((16, 16, 3), np.float32))
    manifest = Manifest(pd.DataFrame([ROW | {"Illum_DNA": "illum.npy"}]), tmp_path)
    with pytest.raises(
        CamaeError, match=r"an illumination function is numbers of \(height, width\), this is"
    ):
        read_site(manifest, 0)


def batch(dtype):
    return PlaneBatch(
        torch.zeros(1, 8, 8, dtype=dtype), torch.tensor([0]), torch.tensor([0]), ("DNA",), np.array([0])
    )


def test_batches_of_planes(screen):
    with pytest.raises(CamaeError, match=r"a plane batch needs planes \(K, H, W\) with K sample"):
        PlaneBatch(torch.zeros(1, 8, 8), torch.tensor([0, 0]), torch.tensor([0]), ("DNA",))
    sources = [Source("one", screen, 1.0), Source("two", screen, 1.0)]
    parts = [(i, np.array([0]), batch(dtype)) for i, dtype in enumerate((torch.float32, torch.uint16))]
    with pytest.raises(
        CamaeError, match="floating-point and integer images cannot be trained on together: one"
    ):
        _joined(parts, sources)


def test_planes_of_kernels():
    with pytest.raises(CamaeError, match=r"planes must be \(K, H, W\), got shape \(8, 8\)"):
        check_planes(torch.zeros(8, 8), 8)
    with pytest.raises(CamaeError, match="patches of 60 pixels are not square"):
        patch_side(60)
