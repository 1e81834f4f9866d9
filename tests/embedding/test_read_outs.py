"""Read-outs `pool="moments"` and `intensity=True` against NumPy, in memory, for screens and at the shell."""

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import camae
from camae.cli import app
from camae.dataloader import Manifest
from camae.dataloader.plane_batch import PlaneBatch
from camae.dataloader.read_pixels import read_site
from camae.embedding import BagOfChannels, EmbedConfig, accelerate, intensity_names
from camae.embedding_table import feature_names, features_of, read_table
from camae.errors import CamaeError

NAMES = ["DNA", "ER", "Mito"]
D = 32  # width of the tiny model
CLOSE = {"atol": 2e-5, "rtol": 0}  # float32 sums of a few hundred values of order 1 in another order
# float32 rounds a statistic of up to 65535 gray levels once.
GRAY = {"rtol": 2.0**-23, "atol": 0}


def picture(channels=3, size=32, dtype=np.uint16, seed=0):
    values = np.random.default_rng(seed).integers(0, 60_000, (channels, size, size))
    return (values / 60_000).astype(dtype) if np.dtype(dtype).kind == "f" else values.astype(dtype)


def patch_tokens(model, crops, names=NAMES, **options):
    """Patch tokens of each crop, (C, N, D) float64."""
    batch = PlaneBatch.from_images([torch.from_numpy(c) for c in crops], [names[: len(c)] for c in crops])
    with torch.inference_mode():
        tokens, layout = model.encode(batch, **options)
    parts = tokens.double().numpy()
    ends = np.cumsum(layout.lengths)
    return [
        parts[end - n + 1 : end].reshape(len(crop), -1, D)
        for end, n, crop in zip(ends, layout.lengths, crops, strict=True)
    ]


def moments(tokens_SD):
    return np.concatenate([tokens_SD.mean(0), np.sqrt(((tokens_SD - tokens_SD.mean(0)) ** 2).mean(0))])


def statistics(planes_CHW):
    """Seven statistics of each plane from its sorted pixels: (C * 7,) float64."""
    found = []
    for plane in planes_CHW.reshape(len(planes_CHW), -1):
        ordered = np.sort(plane.astype(np.float64))
        mean = ordered.sum() / len(ordered)
        found += [mean, np.sqrt(((ordered - mean) ** 2).sum() / len(ordered))]
        for share in (0.01, 0.25, 0.5, 0.75, 0.99):
            place = share * (len(ordered) - 1)
            found.append(np.interp(place, np.arange(len(ordered)), ordered))
    return np.array(found)


def test_moments_of_ragged_channel_sets(model):
    images = [picture(3), picture(1, seed=1), picture(2, seed=2)]
    tokens = patch_tokens(model, images)
    names = [NAMES[: len(image)] for image in images]
    for got, t in zip(camae.embed(images, names, model, "moments"), tokens, strict=True):
        np.testing.assert_allclose(got, moments(t.reshape(-1, D)), **CLOSE)
    each = camae.embed(images, names, model, "moments_per_channel")
    for got, t in zip(each, tokens, strict=True):
        assert got.shape == (len(t), 2 * D)
        np.testing.assert_allclose(got, [moments(plane) for plane in t], **CLOSE)
    np.testing.assert_allclose(each[0][:, :D], camae.embed(images[0], NAMES, model, "per_channel"), **CLOSE)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_moments_over_tiles_are_those_of_all_tokens(model, overlap):
    image = picture(3, 48)
    crops = [image[:, y : y + 32, x : x + 32] for y in (0, 16) for x in (0, 16)]
    tokens = np.concatenate(patch_tokens(model, crops), axis=1)
    got = camae.embed(image, NAMES, model, "moments", tiles="cover", overlap=overlap)
    np.testing.assert_allclose(got, moments(tokens.reshape(-1, D)), **CLOSE)
    got = camae.embed(image, NAMES, model, "moments_per_channel", tiles="cover", overlap=overlap)
    np.testing.assert_allclose(got, [moments(plane) for plane in tokens], **CLOSE)


def test_moments_of_interpolated_positions_and_layers(model):
    image = picture(3, 48)
    (tokens,) = patch_tokens(model, [image], interpolate=True)
    got = camae.embed(image, NAMES, model, "moments", tiles="interpolate")
    np.testing.assert_allclose(got, moments(tokens.reshape(-1, D)), **CLOSE)
    both = camae.embed(picture(), NAMES, model, "moments", layers=[0, 1])
    assert both.shape == (2, 2 * D)
    np.testing.assert_array_equal(both[1], camae.embed(picture(), NAMES, model, "moments", layers=1))


def test_moments_by_the_fast_encoder_and_a_bag_of_channels(model):
    images = np.stack([picture(3), picture(3, seed=1)])
    fast = camae.embed(images, NAMES, accelerate(model), "moments")
    np.testing.assert_allclose(fast, camae.embed(images, NAMES, model, "moments"), **CLOSE)
    tokens = np.stack([patch_tokens(model, [images[0][c : c + 1]])[0][0] for c in range(3)])
    bag = BagOfChannels(model)
    got = camae.embed(images[0], NAMES, bag, "moments")
    np.testing.assert_allclose(got, moments(tokens.reshape(-1, D)), **CLOSE)
    got = camae.embed(images[0], NAMES, bag, "moments_per_channel")
    np.testing.assert_allclose(got, [moments(plane) for plane in tokens], **CLOSE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_intensity_after_the_vector_in_camera_units(model, dtype):
    image, span = picture(3, dtype=dtype), (0.0, 1.0) if np.dtype(dtype).kind == "f" else None
    plain = camae.embed(image, NAMES, model, value_range=span)
    got = camae.embed(image, NAMES, model, intensity=True, value_range=span)
    assert got.shape == (D + 21,)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:D], plain)
    np.testing.assert_allclose(got[D:], statistics(image), **GRAY)
    names = intensity_names(NAMES)
    assert names[:3] == ["intensity_DNA_mean", "intensity_DNA_sd", "intensity_DNA_q01"]
    assert names[-1] == "intensity_Mito_q99"
    assert got[D + names.index("intensity_ER_q50")] == np.float32(np.median(image[1]))


def test_intensity_of_tensors_batches_and_ragged_lists(model):
    images = np.stack([picture(3), picture(3, seed=1)])
    arrays = camae.embed(images, NAMES, model, "per_channel", intensity=True)
    assert arrays.shape == (2, 3, D + 7)
    np.testing.assert_allclose(arrays[1, :, D:].ravel(), statistics(images[1]), **GRAY)
    tensors = camae.embed(torch.from_numpy(images), NAMES, model, "per_channel", intensity=True)
    np.testing.assert_array_equal(tensors.numpy(), arrays)
    ragged = camae.embed([images[0], images[1][:1]], [NAMES, NAMES[:1]], model, intensity=True)
    assert [len(v) for v in ragged] == [D + 21, D + 7]
    np.testing.assert_allclose(ragged[1][D:], statistics(images[1][:1]), **GRAY)


def test_intensity_of_tiles_is_their_mean(model):
    image = picture(3, 48)
    tiles = [image[:, y : y + 32, x : x + 32] for y in (0, 16) for x in (0, 16)]
    expected = np.mean([statistics(tile) for tile in tiles], axis=0)
    got = camae.embed(image, NAMES, model, tiles="cover", overlap=0.5, intensity=True)
    np.testing.assert_allclose(got[D:], expected, **GRAY)
    whole = camae.embed(image, NAMES, model, tiles="interpolate", intensity=True)
    np.testing.assert_allclose(whole[D:], statistics(image), **GRAY)


def test_a_tile_left_out_has_no_intensity_either(model):
    image = picture(3, 64)
    image[1, :32, :32] = 7
    with pytest.warns(UserWarning, match="'ER' is constant"):
        got = camae.embed(image, NAMES, model, tiles="grid", intensity=True)
    kept = [image[:, y : y + 32, x : x + 32] for y, x in ((0, 32), (32, 0), (32, 32))]
    np.testing.assert_allclose(got[D:], np.mean([statistics(tile) for tile in kept], axis=0), **GRAY)


def test_read_outs_of_regions(model):
    """Moments over the tokens that touch a region, intensities of its own pixels; one larger than the window too."""
    image = picture(3, 96)
    small, large = np.zeros((96, 96), bool), np.zeros((96, 96), bool)
    small[40:50, 60:66] = True
    small[41, 61] = False
    large[8:56, 8:56] = True  # 48 px: windows at 8 and 24
    got = camae.embed(image, NAMES, model, "moments", region=np.stack([small, large]), intensity=True)
    assert got.shape == (2, 2 * D + 21)
    np.testing.assert_allclose(got[0, 2 * D :], statistics(image[:, small]), **GRAY)
    np.testing.assert_allclose(got[1, 2 * D :], statistics(image[:, large]), **GRAY)
    crops = [image[:, y : y + 32, x : x + 32] for y in (8, 24) for x in (8, 24)]
    tokens = np.concatenate(patch_tokens(model, crops), axis=1)
    np.testing.assert_allclose(got[1, : 2 * D], moments(tokens.reshape(-1, D)), **CLOSE)
    means = camae.embed(image, NAMES, model, region=small)
    np.testing.assert_allclose(got[0, :D], means, **CLOSE)
    table = {"Metadata_Cell_X": [40.0], "Metadata_Cell_Y": [50.0]}
    square = camae.embed(image, NAMES, model, region=table, region_size=10, intensity=True)
    np.testing.assert_allclose(square[0, D:], statistics(image[:, 45:55, 35:45]), **GRAY)
    window = camae.embed(image, NAMES, model, region=table, intensity=True)
    np.testing.assert_allclose(window[0, D:], statistics(image[:, 34:66, 24:56]), **GRAY)
    none = camae.embed(image, NAMES, model, "moments", region=np.zeros((96, 96), int), intensity=True)
    assert none.shape == (0, 2 * D + 21)


def test_the_model_in_use_has_the_same_read_outs(model):
    image = picture()
    camae.use(model)
    try:
        got = camae.embed(image, NAMES, pool="moments", intensity=True)
        assert camae.embed(image, NAMES).shape == (D,)  # nobody gets them unasked
    finally:
        camae.use(None)
    np.testing.assert_array_equal(got, camae.embed(image, NAMES, model, "moments", intensity=True))
    assert (EmbedConfig().pool, EmbedConfig().intensity) == ("mean", False)


@pytest.mark.parametrize("pool", ["mean", "moments", "moments_per_channel"])
def test_screens_name_their_columns_and_equal_embed(screen, model, tmp_path, pool):
    table = camae.embed_screen(
        screen, model, tmp_path / "emb", tiles="cover", pool=pool, intensity=True, quiet=True
    )
    manifest = Manifest.read(screen)
    image, names = read_site(manifest, 0)
    alone = camae.embed(image, names, model, pool, tiles="cover", intensity=True)
    features = table[feature_names(table)]
    columns = list(features.columns)
    assert columns[-21:] == intensity_names(names)
    row = features.iloc[0]
    np.testing.assert_allclose(
        row["intensity_ER_mean"], alone[1, -7] if alone.ndim == 2 else alone[-14], **GRAY
    )
    if pool == "mean":
        assert columns[:2] == ["emb_0000", "emb_0001"]
        np.testing.assert_allclose(row, alone, **CLOSE | {"rtol": 1e-6})
    elif pool == "moments":
        assert columns[0] == "emb_mean_0000"
        assert columns[D] == "emb_sd_0000"
        np.testing.assert_allclose(row, alone, **CLOSE | {"rtol": 1e-6})
    else:
        assert columns[D] == "emb_DNA_sd_0000"
        np.testing.assert_allclose(
            row[[f"emb_ER_sd_{i:04d}" for i in range(D)]], alone[1, D : 2 * D], **CLOSE
        )
    assert not any(c.startswith("Metadata_") for c in columns)


def test_the_file_says_so_and_another_read_out_does_not_resume(screen, model, tmp_path):
    out = tmp_path / "emb"
    camae.embed_screen(screen, model, out, pool="moments", intensity=True, quiet=True, sites_per_shard=3)
    table, about = read_table(out / "wells.parquet")
    assert (about["pool"], about["intensity"]) == ("moments", True)
    assert features_of(table).shape == (8, 2 * D + 21)
    with pytest.raises(CamaeError, match="made with another intensity; choose another folder"):
        camae.embed_screen(screen, model, out, pool="moments", quiet=True, sites_per_shard=3)
    with pytest.raises(CamaeError, match="made with another pool; choose another folder"):
        camae.embed_screen(screen, model, out, intensity=True, quiet=True, sites_per_shard=3)
    (out / "sites" / "part-00001.parquet").unlink()
    again = camae.embed_screen(
        screen, model, out, pool="moments", intensity=True, quiet=True, sites_per_shard=3
    )
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    camae.embed_screen(screen, model, tmp_path / "plain", quiet=True)
    assert "intensity" not in read_table(tmp_path / "plain" / "wells.parquet")[1]


def test_layers_of_a_screen_say_their_number(screen, model, tmp_path):
    table = camae.embed_screen(screen, model, tmp_path, pool="moments", layers=[0, -1], quiet=True)
    assert feature_names(table)[D] == "emb_layer0_sd_0000"
    assert feature_names(table)[2 * D] == "emb_layer1_mean_0000"


def test_the_shell_has_them(screen, model_file, tmp_path):
    words = ["embed", str(screen), "--model", str(model_file), "--out", str(tmp_path / "emb"), "--quiet"]
    result = CliRunner().invoke(app, [*words, "--pool", "moments", "--intensity"])
    assert result.exit_code == 0, result.output
    assert read_table(tmp_path / "emb" / "wells.parquet")[1]["intensity"] is True


def test_what_cannot_be_is_refused(model, make_screen, tmp_path):
    with pytest.raises(CamaeError, match="pool 'sd' is not one of mean, cls, per_channel, moments, moments_"):
        camae.embed(picture(), NAMES, model, "sd")
    with pytest.raises(CamaeError, match="intensity=True goes with the output of one layer"):
        camae.embed(picture(), NAMES, model, layers=[0, 1], intensity=True)
    table = pd.read_csv(make_screen("mixed"), dtype=str, keep_default_na=False)
    table.loc[0, "Mito"] = ""
    mixed = Manifest(table, tmp_path / "mixed")
    with pytest.raises(
        CamaeError, match="intensity=True needs sites with the same channels; select them or leave"
    ):
        camae.embed_screen(mixed, model, tmp_path / "a", intensity=True, quiet=True)
    with pytest.raises(CamaeError, match=r"pool='moments_per_channel' needs sites .* or use pool='moments'"):
        camae.embed_screen(mixed, model, tmp_path / "b", pool="moments_per_channel", quiet=True)
