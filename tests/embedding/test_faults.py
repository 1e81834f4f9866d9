"""Faults that were found once, by their numbers: masks of many cells, NaN, names of centers, limits."""

import json
import signal
import time
import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
import torch

import camae
from camae.dataloader import Manifest
from camae.embedding.pieces import count_pieces
from camae.embedding.stopping import stop_after_pass
from camae.embedding.store import shards
from camae.embedding.store.inputs import InputStates
from camae.errors import CamaeError, MissingBackendError

CLOSE = {"atol": 1e-5}


NAMES = ["DNA", "ER", "Mito"]


def embed(data, model, out, **options):
    return camae.embed_screen(data, model, out, quiet=True, **options)


def image(size=32, channels=3):
    return np.random.default_rng(0).integers(0, 4000, (channels, size, size)).astype(np.uint16)


def three_cells(dtype, value):
    mask = np.zeros((32, 32), dtype)
    for y, x in ((2, 2), (14, 20), (26, 4)):
        mask[y : y + 4, x : x + 4] = value
    return mask


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 255), (np.int32, 1), (bool, True)])
def test_fault_15_one_label_with_many_components_is_named(model, dtype, value):
    with pytest.warns(UserWarning, match=r"one region with 3 connected components.*ndimage\.label") as noted:
        camae.embed(image(), NAMES, model, region=three_cells(dtype, value))
    assert len(noted) == 1
    assert noted[0].filename == __file__


def test_fault_15_labels_and_whole_masks_are_silent(model):
    labels = three_cells(np.int32, 1)
    labels[14:18] *= 2
    labels[26:] *= 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(camae.embed(image(), NAMES, model, region=labels)) == 3
        camae.embed(image(), NAMES, model, region=labels == 2)
        camae.embed(image(), NAMES, model, region=np.stack([labels == 2, labels > 0]))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.97])
@pytest.mark.parametrize("shape", [(64, 50), (1, 9), (9, 1), (120, 130)])
def test_fault_15_components_are_counted_as_scipy_does(share, shape):
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(0).random(shape) < share
    assert count_pieces(mask) == ndimage.label(mask, np.ones((3, 3)))[1]


@pytest.mark.parametrize("where", ["image", "batch", "list", "region"])
def test_fault_15_masked_arrays_are_refused(model, where):
    hidden = np.ma.MaskedArray(image(), mask=image() > 3000)
    given = {"image": hidden, "batch": np.ma.stack([hidden, hidden]), "list": [hidden], "region": image()}
    options = {}
    if where == "region":
        options["region"] = np.ma.MaskedArray(three_cells(np.int32, 1), mask=three_cells(bool, True))
    with pytest.raises(CamaeError, match=r"is a NumPy masked array with [\d,]+ masked values.*\.filled"):
        camae.embed(given[where], NAMES, model, **options)
    unmasked = np.ma.MaskedArray(image())
    np.testing.assert_array_equal(camae.embed(unmasked, NAMES, model), camae.embed(image(), NAMES, model))


def test_fault_16_a_model_that_gives_nan_is_named(screen, model, tmp_path):
    model.encoder.cls_D.data[3] = float("nan")
    sentence = r"the model .* gives a vector with NaN or infinity, by all its channels \(DNA, ER, Mito\)"
    with pytest.raises(CamaeError, match="image 0: " + sentence):
        camae.embed(image(), NAMES, model)
    with pytest.raises(CamaeError, match="image 0: " + sentence):
        camae.embed([image(), image()], NAMES, model, region=[three_cells(np.int32, 1)] * 2)
    with pytest.raises(CamaeError, match=r"row 0 \(plate P1, well A01, site 1\): " + sentence):
        embed(screen, model, tmp_path / "emb")
    assert not list((tmp_path / "emb").rglob("*.parquet"))


def test_fault_16_the_channel_that_gives_nan_is_named(screen, model, tmp_path, monkeypatch):
    """One channel's planes become NaN in the encoder, as values beyond float32 do."""
    encode = model.encode

    def broken(batch, *args, **options):
        tokens_TD, layout = encode(batch, *args, **options)
        bad = [i for i, names in enumerate(batch.channels) if "ER" in names]
        if bad:
            tokens_TD = tokens_TD.clone()
            tokens_TD[:] = float("nan")
        return tokens_TD, layout

    monkeypatch.setattr(model, "encode", broken)
    sentence = "gives a vector with NaN or infinity, by its channel 'ER'; look at these pixels"
    with pytest.raises(CamaeError, match=r"image 0: the model ca_mae\S* " + sentence):
        camae.embed(image(), NAMES, model)
    with pytest.raises(CamaeError, match=r"row 0 .*well A01.*" + sentence):
        embed(screen, model, tmp_path / "emb")


@pytest.mark.parametrize("value_range", [(0, 1), (0, 1e-38), (0, 4e-38), (-1e-38, 1e-38)])
def test_fault_16_tiny_float_images_are_refused(model, value_range):
    tiny = (image() / 4000 * 1e-38).astype(np.float32)
    try:
        vector = camae.embed(tiny, NAMES, model, value_range=value_range)
    except CamaeError:
        return
    assert np.isfinite(vector).all()


@pytest.mark.parametrize("span", [(0, float("inf")), (float("nan"), 1), (5, 5), (2, 1), (0,), ("a", "b"), 3])
def test_fault_16_ranges_that_are_none_are_refused(model, span):
    with pytest.raises(CamaeError, match="value_range"):
        camae.embed(image().astype(np.float32), NAMES, model, value_range=span)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_fault_24_a_device_that_is_not_here_is_one_sentence(screen, model, model_file, tmp_path, device):
    for given in (model, model_file):
        with pytest.raises(MissingBackendError, match=r"device 'cuda.*finds no GPU here; take 'cpu'"):
            embed(screen, given, tmp_path / "emb", device=device)
    with pytest.raises(MissingBackendError, match="finds no GPU"):
        camae.use(model, device=device)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "meta", ""])
def test_fault_24_a_device_that_is_none_is_one_sentence(screen, model, tmp_path, device):
    with pytest.raises(CamaeError, match="device"):
        embed(screen, model, tmp_path / "emb", device=device)


@pytest.mark.parametrize("size", [300, 512, 2048])
def test_fault_26_an_overlap_of_a_thousand_tiles_is_refused_at_once(model, size):
    started = time.perf_counter()
    with pytest.raises(
        CamaeError, match=r"overlap of 0\.999 makes [\d,]+ tiles of 32 x 32 px.*smaller overlap"
    ):
        camae.embed(image(size), NAMES, model, tiles="cover", overlap=0.999)
    assert time.perf_counter() - started < 2


def test_fault_26_an_overlap_of_a_half_is_taken(model):
    assert camae.embed(image(200), NAMES, model, tiles="cover", overlap=0.5).shape == (32,)


@pytest.mark.parametrize(
    "name",
    ["Metadata_Cell_X", "Location_Center_X", "Nuclei_Location_Center_X", "Cells_Location_Center_X"],
)
def test_fault_34_cellprofiler_s_names_of_centers(model, name):
    table = pd.DataFrame({"ObjectNumber": [1, 2], name: [10.2, 30.0], f"{name[:-1]}Y": [12.0, 20.7]})
    like = {"Metadata_Cell_X": table[name], "Metadata_Cell_Y": table[f"{name[:-1]}Y"]}
    got = camae.embed(image(48), NAMES, model, region=table, region_size=16)
    np.testing.assert_array_equal(got, camae.embed(image(48), NAMES, model, region=like, region_size=16))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"location_center_x": [1], "location_center_y": [1]},
            "no column Metadata_Cell_X or Location_Center_X",
        ),
        ({"Location_Center_X": [1]}, "has Location_Center_X but no column Location_Center_Y"),
        (
            {"Nuclei_Location_Center_X": [1], "Nuclei_Location_Center_Y": [1]}
            | {"Cells_Location_Center_X": [2], "Cells_Location_Center_Y": [1]},
            "two sets of centers, Nuclei_Location_Center_X and Cells_Location_Center_X",
        ),
    ],
)
def test_fault_34_centers_that_are_none_are_refused(model, columns, sentence):
    with pytest.raises(CamaeError, match=sentence):
        camae.embed(image(), NAMES, model, region=columns)


def folder_of_two_channels(folder):
    folder.mkdir()
    for well in ("A01", "A02", "B01"):
        for channel in ("DNA", "ER"):
            name = f"P1_{well}_s1_{channel}.tif"
            pixels = np.random.default_rng(len(name)).integers(0, 4000, (48, 48))
            tifffile.imwrite(folder / name, pixels.astype(np.uint16))
    (folder / "P1_B01_s1_ER.tif").unlink()
    return folder


def test_fault_33_a_plain_folder_is_labeled_while_it_is_read(model, tmp_path):
    folder = folder_of_two_channels(tmp_path / "plate")
    labels = tmp_path / "labels.csv"
    labels.write_text("Well,gene\nA1,TP53\nA2,DMSO\n")
    options = {"metadata": [labels], "negative_controls": ["DMSO"], "incomplete": "skip"}
    with pytest.warns(UserWarning, match="B01"):
        table = embed(folder, model, tmp_path / "emb", **options)
    assert table["Metadata_Perturbation"].tolist() == ["TP53", "DMSO"]
    assert table["Metadata_control_type"].tolist() == ["", "negcon"]
    left_out = pd.read_csv(tmp_path / "emb" / "left_out.csv")
    assert list(left_out.columns) == ["kind", "item", "reason"]
    assert "B01" in left_out.to_string()


@pytest.mark.parametrize(
    "options",
    [
        {"overlap": "much"},
        {"overlap": float("nan")},
        {"sites_per_shard": 2.5},
        {"threads": "3"},
        {"compile": "no"},
        {"layers": 1.5},
        {"layers": "last"},
        {"value_range": (0, 1, 2)},
        {"rank": "0", "world": 2},
        {"tokens_per_pass": float("inf")},
        {"metadata": "table.csv"},
        {"pool": 3},
    ],
)
def test_options_of_another_type_are_one_sentence(screen, model, tmp_path, options):
    with pytest.raises(CamaeError, match=next(iter(options))):
        embed(screen, model, tmp_path / "emb", **options)
    assert not (tmp_path / "emb").exists()


def test_ctrl_c_stops_after_the_pass_and_a_second_one_at_once():
    # A process that a shell started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_after_pass() as stopped:
            signal.raise_signal(signal.SIGINT)
            assert stopped.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_stays_ignored_in_the_background():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_after_pass() as stopped:
            signal.raise_signal(signal.SIGINT)
        assert not stopped.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_states_are_in_the_metadata_of_every_shard(screen, model, tmp_path):
    embed(screen, model, tmp_path / "emb", sites_per_shard=3)
    manifest = Manifest.read(screen)
    path = shards.shard_path(tmp_path / "emb", 1)
    about = json.loads(pq.read_schema(path).metadata[b"camae"])
    assert about["inputs"] == InputStates(manifest).of_rows([3, 4, 5])
