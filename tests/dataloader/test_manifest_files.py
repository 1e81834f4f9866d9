"""Manifest files: written and read again, and what a manifest refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from camae.dataloader import Manifest, read_manifest
from camae.dataloader.read_pixels import read_site
from camae.errors import CamaeError


def test_manifest_file_round_trip(tmp_path: Path, screen: Manifest) -> None:
    for name in ("m.csv", "m.parquet", "deeper/m.csv"):
        screen.write(tmp_path / name)
        again = read_manifest(tmp_path / name)
        assert again.channels == screen.channels
        assert again.table.Metadata_Well.tolist() == screen.table.Metadata_Well.tolist()
        for row in range(len(screen)):
            assert again.site_channels(row) == screen.site_channels(row)
            assert np.array_equal(read_site(again, row)[0], read_site(screen, row)[0])
    assert [p.name for p in (tmp_path / "deeper").iterdir()] == ["m.csv"]


def test_manifest_refuses_what_it_cannot_hold(tmp_path: Path, screen: Manifest) -> None:
    with pytest.raises(CamaeError, match="empty"):
        Manifest(screen.table.iloc[:0])
    with pytest.raises(CamaeError, match="no channel column"):
        Manifest(screen.table[["Metadata_Well"]])
    with pytest.raises(CamaeError, match=r"row 0 .*channel DNA: the path .* leaves the manifest's folder"):
        Manifest(screen.table.assign(DNA="../secret.tif"), tmp_path).path(0, "DNA")
    with pytest.raises(CamaeError, match="this site lacks the channel"):
        screen.path(0, "AGP")
    with pytest.raises(CamaeError, match="no channel 'Mito'"):
        screen.path(0, "Mito")
    with pytest.raises(CamaeError, match="leaves no site"):
        screen.select(np.zeros(10, bool))
    assert screen.select([7, 2]).table.Metadata_Well.tolist() == ["A08", "A03"]
    (screen.root / screen.table.at[3, "ER"]).write_bytes(b"II*\0")
    with pytest.raises(CamaeError, match=r"row 3 \(plate P1, well A04, site 1\), channel ER: .*3_ER\.tif: "):
        read_site(screen, 3)
    tifffile.imwrite(screen.root / "img/4_ER.tif", np.zeros((40, 47), np.uint16))
    with pytest.raises(
        CamaeError, match=r"row 4 .*channel ER: .*4_ER\.tif: is 40x47 uint16 but .*4_DNA\.tif"
    ):
        read_site(screen, 4)
    tifffile.imwrite(screen.root / "img/6_DNA.tif", np.full((40, 48), 9, np.uint16))
    with pytest.raises(CamaeError, match=r"row 6 .*channel DNA: .*every pixel is 9"):
        read_site(screen, 6, check_constant=True)
