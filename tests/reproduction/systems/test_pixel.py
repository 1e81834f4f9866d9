"""Pixel-intensity statistics against plain NumPy in fp64."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tifffile

from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.reproduction.systems.pixel import STATISTICS, pixel_statistics, pixel_table


def expected(planes: np.ndarray) -> np.ndarray:
    rows = []
    for plane in planes.astype(np.float64):
        ordered = np.sort(plane.ravel())
        rank = np.array([0.1, 0.5, 0.9, 0.99]) * (len(ordered) - 1)
        low = np.floor(rank).astype(int)
        between = ordered[low] + (rank - low) * (
            ordered[np.minimum(low + 1, len(ordered) - 1)] - ordered[low]
        )
        rows.append([plane.mean(), np.sqrt(((plane - plane.mean()) ** 2).mean()), *between])
    return np.concatenate(rows)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_statistics_equal_their_definitions(dtype):
    planes = (np.random.default_rng(0).random((5, 33, 47)) * 250).astype(dtype)
    found = pixel_statistics(planes)
    assert found.shape == (5 * len(STATISTICS),)
    # Sums of 1,551 fp64 values: relative rounding below 1551 * 2**-53; 1e-10 leaves room for the square root.
    np.testing.assert_allclose(found, expected(planes), rtol=1e-10)


def test_five_stains_give_the_papers_thirty_statistics():
    assert pixel_statistics(np.zeros((5, 8, 8), np.uint16)).shape == (30,)


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8), np.uint16), np.zeros((1, 8, 8), np.int32), np.zeros((0, 8, 8))]
)
def test_other_shapes_and_dtypes_are_refused(bad):
    with pytest.raises(CamaeError, match="pixel statistics need"):
        pixel_statistics(bad)


def test_table_averages_the_sites_of_a_well(tmp_path):
    rng = np.random.default_rng(1)
    rows, values = [], {}
    for well in ("A01", "B02"):
        for site in ("1", "2"):
            row = {"Metadata_Plate": "P", "Metadata_Well": well, "Metadata_Site": site}
            for channel in ("DNA", "ER"):
                plane = rng.integers(0, 60000, (16, 16)).astype(np.uint16)
                tifffile.imwrite(tmp_path / f"{well}{site}{channel}.tif", plane)
                values.setdefault(well, []).append(plane)
                row[channel] = f"{well}{site}{channel}.tif"
            rows.append(row)
    table = pixel_table(Manifest(pd.DataFrame(rows), tmp_path))
    assert table["Metadata_Well"].tolist() == ["A01", "B02"]
    for i, planes in enumerate(values.values()):
        sites = np.stack([expected(np.stack(planes[:2])), expected(np.stack(planes[2:]))])
        # The table holds float32: half a unit in the last place is 2**-24 of the value, averaged in float32.
        np.testing.assert_allclose(table.iloc[i, 2:].to_numpy(float), sites.mean(0), rtol=3 * 2**-24)
