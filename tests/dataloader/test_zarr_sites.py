"""Zarr arrays with sites.csv and channels.csv beside them."""

import numpy as np
import pandas as pd
import pytest

from camae.dataloader import read_manifest
from camae.dataloader.read_pixels import read_site
from camae.errors import CamaeError

zarr = pytest.importorskip("zarr")


@pytest.fixture
def folder(tmp_path):
    """Two sites of three channels; the tables are not in the array's order."""
    pixels = np.random.default_rng(0).integers(0, 9000, (2, 3, 16, 20)).astype(np.uint16)
    group = zarr.open_group(str(tmp_path / "images.zarr"), mode="w")
    array = group.create_array("images", shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 1, 16, 20))
    array[:] = pixels
    sites = {
        "idx": [1, 0],
        "modality": ["ORF", "CRISPR"],
        "Plate": "P1",
        "Well": ["b2", "A01"],
        "Site": ["1", "2"],
    }
    pd.DataFrame(sites).to_csv(tmp_path / "sites.csv", index=False)
    pd.DataFrame({"idx": [2, 0, 1], "channel": ["Mito", "DNA", "ER"]}).to_csv(
        tmp_path / "channels.csv", index=False
    )
    return tmp_path, pixels


def test_sites_and_channels_by_their_index(folder):
    root, pixels = folder
    manifest = read_manifest(root)
    assert manifest.channels == ("Mito", "DNA", "ER")
    assert manifest.table["Metadata_Well"].tolist() == ["B02", "A01"]
    assert manifest.table["Metadata_modality"].tolist() == ["ORF", "CRISPR"]
    for row, site in enumerate((1, 0)):
        image, names = read_site(manifest, row)
        assert names == ["Mito", "DNA", "ER"]
        np.testing.assert_array_equal(image, pixels[site, [2, 0, 1]])


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("sites.csv", "Well\nA01\n", r"sites\.csv: has no column idx"),
        ("sites.csv", "idx,Well\n2,A01\n", r"sites\.csv: idx does not count along axis 0 .* which has 2"),
        ("channels.csv", "idx,channel\n0,DNA\n0,ER\n", r"channels\.csv: idx does not count along axis 1"),
        ("channels.csv", "idx,channel\nx,DNA\n", r"channels\.csv: idx does not count"),
    ],
)
def test_tables_that_do_not_fit_are_named(folder, file, text, sentence):
    root, _ = folder
    (root / file).write_text(text)
    with pytest.raises(CamaeError, match=sentence):
        read_manifest(root)
