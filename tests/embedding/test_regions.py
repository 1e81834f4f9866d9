"""`camae.embed(region=...)`: exactly the tokens that touch a region, in the context of a model-sized window."""

import numpy as np
import pandas as pd
import pytest
import torch

import camae
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.kernels.patches import plane_statistics_reference
from camae.model.blocks import Sequences

NAMES = ["DNA", "ER", "Mito"]
# Sums of a few hundred float32 values of order 1 in another order: 2^-24 * sqrt(hundreds) * a few layers.
CLOSE = {"atol": 2e-5, "rtol": 0}


def picture(size=96, seed=0):
    return np.random.default_rng(seed).integers(0, 60_000, (3, size, size)).astype(np.uint16)


def box(size, top, left, bottom, right):
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def by_hand(model, image, y, x, patches):
    """fp64: tokens of the window's `patches` of every plane, standardized over the whole window, through the blocks."""
    double = model.double()
    crop, P = model.config.crop, model.config.patch
    window = torch.from_numpy(image[:, y : y + crop, x : x + crop].copy())
    mean, var = plane_statistics_reference(window)
    planes = (window.double() - mean[:, None, None]) / (var[:, None, None] + 1e-6).sqrt()
    grid = crop // P
    cut = planes.reshape(3, grid, P, grid, P).permute(0, 1, 3, 2, 4).reshape(3, grid * grid, P * P)
    e = double.encoder
    tokens = cut @ e.patch_weight_DP2.T + e.patch_bias_D + e.positions_ND.double()
    tokens = torch.cat([e.cls_D[None], tokens[:, patches].flatten(0, 1)])
    lengths = torch.tensor([0, len(tokens)], dtype=torch.int32)
    for block in e.blocks:
        tokens = block(tokens, Sequences(lengths, (len(tokens),)))
    model.float()
    return tokens.detach().numpy()


def test_only_the_touched_tokens_in_the_window_s_context(model):
    """Rows 40..50, columns 60..66: window (29, 47), in it rows 11..21, columns 13..19, so patches 1, 2 both ways."""
    image = picture()
    mask = box(96, 40, 60, 50, 66)
    tokens = by_hand(model, image, 29, 47, [5, 6, 9, 10])
    got = camae.embed(image, NAMES, model, region=mask)
    assert got.shape == (32,)
    np.testing.assert_allclose(got, tokens[1:].mean(0), **CLOSE)
    np.testing.assert_allclose(camae.embed(image, NAMES, model, "cls", region=mask), tokens[0], **CLOSE)
    channels = camae.embed(image, NAMES, model, "per_channel", region=mask)
    np.testing.assert_allclose(channels, tokens[1:].reshape(3, 4, 32).mean(1), **CLOSE)


def test_a_region_at_the_edge_moves_its_window_into_the_image(model):
    image = picture()
    tokens = by_hand(model, image, 0, 64, [3])
    np.testing.assert_allclose(
        camae.embed(image, NAMES, model, region=box(96, 0, 92, 3, 96)), tokens[1:].mean(0), **CLOSE
    )


def test_the_whole_image_as_region_equals_the_image(model):
    crop, field = picture(32), picture(80)
    whole = camae.embed(crop, NAMES, model, region=np.ones((32, 32), bool))
    np.testing.assert_allclose(whole, camae.embed(crop, NAMES, model), **CLOSE)
    covered = camae.embed(field, NAMES, model, region=np.ones((80, 80), bool))
    np.testing.assert_allclose(covered, camae.embed(field, NAMES, model, tile="cover"), **CLOSE)


def test_a_large_region_is_the_mean_over_the_tokens_of_its_windows(model):
    """Rows 10..20, columns 8..72: windows at x = 8 and 40 (the box is 64 wide), y = (10 + 20 - 32) // 2 < 0, so 0."""
    image = picture()
    mask = box(96, 10, 8, 20, 72)
    mask[10:20, 40:60] = False
    left = by_hand(model, image, 0, 8, [4, 5, 6, 7, 8, 9, 10, 11])
    right = by_hand(model, image, 0, 40, [6, 7, 10, 11])
    expected = np.concatenate([left[1:], right[1:]]).mean(0)
    np.testing.assert_allclose(camae.embed(image, NAMES, model, region=mask), expected, **CLOSE)


def test_masks_labels_and_torch_agree(model):
    image = picture()
    masks = np.stack([box(96, 4, 4, 20, 30), box(96, 50, 50, 61, 59), box(96, 70, 2, 80, 90)])
    labels = np.zeros((96, 96), np.int32)
    for value, mask in zip((3, 7, 90), masks, strict=True):
        labels[mask] = value
    expected = np.stack([camae.embed(image, NAMES, model, region=mask) for mask in masks])
    together = camae.embed(image, NAMES, model, region=masks)
    assert together.shape == (3, 32)
    np.testing.assert_allclose(together, expected, **CLOSE)
    np.testing.assert_array_equal(camae.embed(image, NAMES, model, region=labels), together)
    as_torch = camae.embed(torch.from_numpy(image), NAMES, model, region=torch.from_numpy(masks))
    np.testing.assert_array_equal(as_torch.numpy(), together)


def test_table_of_centers(model):
    """(x 50, y 30) with a side of 16: rows 22..38, columns 42..58; without a side the whole window around it."""
    image = picture()
    table = pd.DataFrame({"Metadata_Cell_X": [50.0, 3.2], "Metadata_Cell_Y": ["30", "90.4"]})
    squares = camae.embed(image, NAMES, model, region=table, region_size=16)
    np.testing.assert_allclose(
        squares[0], camae.embed(image, NAMES, model, region=box(96, 22, 42, 38, 58)), **CLOSE
    )
    windows = camae.embed(image, NAMES, model, region=table)
    np.testing.assert_allclose(windows[0], camae.embed(image[:, 14:46, 34:66], NAMES, model), **CLOSE)
    np.testing.assert_allclose(windows[1], camae.embed(image[:, 64:96, 0:32], NAMES, model), **CLOSE)


def test_batches_and_lists_of_regions(model):
    a, b = picture(seed=1), picture(seed=2)
    mask, other = box(96, 4, 4, 20, 30), box(96, 50, 50, 61, 59)
    batch = camae.embed(np.stack([a, b]), NAMES, model, region=np.stack([mask, other]))
    assert batch.shape == (2, 32)
    np.testing.assert_allclose(batch[1], camae.embed(b, NAMES, model, region=other), **CLOSE)
    several = camae.embed(np.stack([a, b]), NAMES, model, region=[np.stack([mask, other]), other[None]])
    assert [v.shape for v in several] == [(2, 32), (1, 32)]
    ragged = camae.embed([a, b[:2]], [NAMES, NAMES[:2]], model, "per_channel", region=[mask, other])
    assert [v.shape for v in ragged] == [(3, 32), (2, 32)]
    none = camae.embed(a, NAMES, model, region=np.zeros((0, 96, 96), bool))
    assert none.shape == (0, 32)
    assert camae.embed(a, NAMES, model, region=np.zeros((96, 96), int), layers=(0, 1)).shape == (0, 2, 32)


def test_many_regions_are_packed_and_the_packing_does_not_matter(model, monkeypatch):
    """20 cells with 16 x 16 px in one pass; one by one they are equal within CLOSE."""
    image = picture(256)
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.uniform(0, 256, (20, 2)), columns=["Metadata_Cell_X", "Metadata_Cell_Y"])
    passes = []
    original = PlaneBatch.from_images.__func__

    def counted(cls, images, channels, **options):
        passes.append(len(images))
        return original(cls, images, channels, **options)

    monkeypatch.setattr(PlaneBatch, "from_images", classmethod(counted))
    together = camae.embed(image, NAMES, model, region=table, region_size=16)
    assert passes == [20]
    alone = camae.embed(image, NAMES, model, region=table, region_size=16, tokens_per_pass=1)
    assert passes == [20, *[1] * 20]
    np.testing.assert_allclose(together, alone, **CLOSE)


IMAGE = picture()
MASK = box(96, 4, 4, 20, 30)
CENTERS = {"Metadata_Cell_X": [5.0], "Metadata_Cell_Y": [7.0]}
DIM = IMAGE.copy()
DIM[1, :40, :40] = 9


@pytest.mark.parametrize(
    ("image", "options", "sentence"),
    [
        (IMAGE, {"region": MASK[:90]}, r"image 0 is 96 x 96 px but its region has shape \(90, 96\)"),
        (IMAGE, {"region": MASK.astype(float)}, "2 dimensions of float64; give boolean masks"),
        (IMAGE, {"region": "cells.csv"}, "region is a str; give boolean masks"),
        (IMAGE, {"region": np.stack([MASK, MASK & ~MASK])}, "image 0, region 1 is empty"),
        (IMAGE, {"region": -MASK.astype(int)}, "negative labels"),
        (
            IMAGE,
            {"region": {"x": [1], "y": [2]}},
            "no column Metadata_Cell_X or Location_Center_X; it has x, y",
        ),
        (IMAGE, {"region": CENTERS | {"Metadata_Cell_X": [96.0]}}, r"row 0 of the table.*X 96.*96 x 96 px"),
        (IMAGE, {"region": CENTERS | {"Metadata_Cell_Y": [np.nan]}}, "row 0 of the table.*Y nan"),
        (IMAGE, {"region": CENTERS | {"Metadata_Cell_Y": ["top"]}}, "must be numbers"),
        (IMAGE, {"region": CENTERS, "region_size": 0}, "region_size 0"),
        (IMAGE, {"region": MASK, "region_size": 16}, "masks have their own"),
        (IMAGE, {"region_size": 16}, "region_size needs region="),
        (IMAGE, {"region": MASK, "tile": "grid"}, "leave out tiles='grid'"),
        (picture(24), {"region": np.ones((24, 24), bool)}, "image 0: the image is 24 x 24 px, smaller"),
        (
            DIM,
            {"region": MASK},
            r"image 0, region 0, channel 'ER' is constant \(9 everywhere\) in its window",
        ),
        (np.stack([IMAGE, IMAGE]), {"region": CENTERS}, "there are 2 images"),
        (np.stack([IMAGE, IMAGE]), {"region": [MASK]}, "1 entries in region for 2 images"),
    ],
)
def test_wrong_regions_are_one_sentence(model, image, options, sentence):
    with pytest.raises(CamaeError, match=sentence):
        camae.embed(image, NAMES, model, **options)
