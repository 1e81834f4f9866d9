"""Patch maps: colors and distances against principal components by NumPy's eigenvectors, and planted differences."""

import numpy as np
import pytest

from camae.errors import CamaeError
from camae.maps.patches import PatchControls, pca_colors


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_colors_are_the_first_three_components_over_all_maps(rng):
    directions = np.linalg.qr(rng.normal(size=(12, 12)))[0][:3]
    maps = [
        (rng.normal(size=(6, 7, 3)) * [9, 4, 2]) @ directions + 0.01 * rng.normal(size=(6, 7, 12))
        for _ in range(2)
    ]
    colors = pca_colors(maps)
    rows = np.concatenate([m.reshape(-1, 12) for m in maps])
    vectors = np.linalg.eigh(np.cov(rows.T))[1][:, ::-1][:, :3]
    for one, shown in zip(maps, colors, strict=True):
        assert shown.shape == (6, 7, 3)
        assert shown.min() >= 0
        assert shown.max() <= 1
        scores = (one - rows.mean(0)) @ vectors
        inside = (shown > 0) & (shown < 1)
        for i in range(3):
            r = np.corrcoef(scores[..., i][inside[..., i]], shown[..., i][inside[..., i]])[0, 1]
            assert abs(r) == pytest.approx(1, abs=1e-9)


def test_equal_patches_have_equal_colors_in_all_maps(rng):
    one = rng.normal(size=(5, 5, 8))
    other = rng.normal(size=(5, 5, 8))
    other[2, 3] = one[1, 1]
    first, second = pca_colors([one, other])
    np.testing.assert_allclose(second[2, 3], first[1, 1], rtol=0, atol=1e-12)


def test_a_patch_without_values_has_no_color_and_no_distance(rng):
    one = rng.normal(size=(8, 8, 6))
    one[3, 4] = np.nan
    colors = pca_colors([one])[0]
    distance = PatchControls.fit([rng.normal(size=(8, 8, 6))]).distance(one)
    for found in (colors.max(-1), distance):
        assert np.isnan(found[3, 4])
        assert np.isfinite(np.delete(found.ravel(), 3 * 8 + 4)).all()


def test_distance_is_that_of_mahalanobis_where_all_components_are_kept(rng):
    mixing = rng.normal(size=(5, 5))
    control = rng.normal(size=(20, 20, 5)) @ mixing
    one = rng.normal(size=(4, 3, 5)) @ mixing + 1
    rows = control.reshape(-1, 5)
    inverse = np.linalg.inv(np.cov(rows.T))
    expected = [np.sqrt((x - rows.mean(0)) @ inverse @ (x - rows.mean(0)) / 5) for x in one.reshape(-1, 5)]
    np.testing.assert_allclose(PatchControls.fit([control]).distance(one).ravel(), expected, rtol=1e-9)


def test_patches_like_the_controls_are_about_one_away_and_planted_ones_far(rng):
    controls = [rng.normal(size=(16, 16, 24)) for _ in range(4)]
    fresh = rng.normal(size=(16, 16, 24))
    fresh[2:4, 5:7] += 8
    distance = PatchControls.fit(controls).distance(fresh)
    planted = np.zeros((16, 16), bool)
    planted[2:4, 5:7] = True
    assert distance[~planted].mean() == pytest.approx(1, abs=0.05)
    assert distance[planted].min() > 3 * distance[~planted].max() / 2


def test_too_little_to_compare_with_is_refused(rng):
    with pytest.raises(
        CamaeError, match="the controls have 39 patches; at least 40 are needed to say how they vary"
    ):
        PatchControls.fit([rng.normal(size=(13, 3, 4))])
    with pytest.raises(CamaeError, match="the patches of the controls are all alike"):
        PatchControls.fit([np.ones((8, 8, 4))])
    with pytest.raises(CamaeError, match="colors need at least 4 patches with values, not 3"):
        pca_colors([rng.normal(size=(1, 3, 4))])
