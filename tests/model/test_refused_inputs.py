"""Sentences of refusals of models, embedding and training that no other test reads."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import camae
from camae.dataloader.plane_batch import PlaneBatch
from camae.embedding.default_model import VARIABLE
from camae.errors import CamaeError
from camae.evaluate.imputation import impute
from camae.kernels import _dispatch
from camae.kernels.reconstruction_loss import reconstruction_losses
from camae.kernels.varlen_attention.packages import cudnn_attention
from camae.model import registry, tensor_files, weights
from camae.model.activation_checkpointing import set_recompute
from camae.model.backends import Backends
from camae.model.devices import check_device
from camae.model.image_arrays import split_images
from camae.model.standardization import standardization_eps
from camae.reproduction.paper.paper_systems import chosen
from camae.reproduction.paper.run_paper import run_paper
from camae.reproduction.systems.imagenet import ImageNetConfig
from camae.reproduction.systems.mu_net import MUNetConfig
from camae.reproduction.systems.wsl_densenet import DenseNetConfig
from camae.training.compare_runs import compare_runs
from camae.training.distributed import ParallelModel, World
from camae.training.evaluation import Probe, reconstruct_rows
from camae.training.optimization import EMA, freeze


def test_embedding_without_a_model(monkeypatch, image):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("camae.embedding.default_model._chosen", {})
    with pytest.raises(CamaeError, match=r"no model: pass model=, or name one with camae\.use\(path\)"):
        camae.embed(image(2), ["DNA", "ER"])


def test_images_of_another_size_or_kind(tiny, image):
    model = tiny()
    with pytest.raises(
        CamaeError, match=r"image 0 is 40 x 40 px but the model's crop is 32 x 32 px; tile it"
    ):
        camae.embed(image(2, size=40), ["DNA", "ER"], model=model)
    with pytest.raises(
        CamaeError, match=r"looks like an image scaled to .*; say its lowest and highest possible"
    ):
        camae.embed(torch.rand(2, 32, 32), ["DNA", "ER"], model=model)
    with pytest.raises(CamaeError, match=r"value_range \(1, 1\) is empty: give \(lowest, highest\)"):
        standardization_eps("own", torch.uint16, (1, 1))


def test_regions_without_pixels(tiny, image):
    options = {"model": tiny(), "channels": ["DNA", "ER"]}
    with pytest.raises(CamaeError, match="image 0, region 0 is empty: its mask has no true pixel"):
        camae.embed(image(2), region=np.zeros((32, 32), bool), **options)
    with pytest.raises(CamaeError, match="image 0: the label image has negative labels"):
        camae.embed(image(2), region=np.full((32, 32), -1), **options)


def test_noise_and_reduction(tiny, image):
    model = tiny()
    with pytest.raises(CamaeError, match="noise has 3 values but the images have 32 patches"):
        model.loss(image(2), ["DNA", "ER"], noise=torch.rand(1, 3))
    with pytest.raises(CamaeError, match="reduction 'mean' is not 'samples' or 'tokens'"):
        model.loss(image(2), ["DNA", "ER"], reduction="mean")


def test_devices_and_recomputing():
    with pytest.raises(CamaeError, match="device 'meta': camae runs on 'cpu' and on 'cuda'"):
        check_device("meta")
    with pytest.raises(CamaeError, match="recompute=2: Linear has no blocks that can be computed again"):
        set_recompute(torch.nn.Linear(2, 2), 2)


def test_settings_of_training(tiny, tmp_path):
    model = tiny()
    with pytest.raises(CamaeError, match=r"freeze=\['encoder', 'decoder', .* leaves nothing to train"):
        freeze(model, ("encoder", "decoder", *{name for name, _ in model.named_parameters()}))
    with pytest.raises(CamaeError, match="a probe of kind 'recall' needs pairs, a CSV of known pairs"):
        Probe(tmp_path, kind="recall")


def test_settings_of_the_paper(tmp_path):
    with pytest.raises(CamaeError, match="size 'huge' is not 'smallest' or 'paper'"):
        chosen("huge", None)
    with pytest.raises(CamaeError, match="checkpoints 'first' is not 'last' or 'all'"):
        run_paper(tmp_path, tmp_path / "out", checkpoints="first")


def test_models_that_cannot_what_is_asked(tiny, image):
    with pytest.raises(CamaeError, match="a channel is imputed by the decoders of a CA-MAE; give one"):
        impute(torch.nn.Linear(2, 2), image(2), ["DNA", "ER"], "ER")
    model = registry.from_config(ImageNetConfig(channels=("DNA", "ER")))
    batch = batch_of(image(2))
    with pytest.raises(CamaeError, match="has no training loss"):
        model(batch, torch.rand(8))
    with pytest.raises(CamaeError, match="does not reconstruct images"):
        reconstruct_rows(model, batch, ["A01"], mask_ratio=0.75)
    stored = tiny(stored_positions=2)
    with pytest.raises(CamaeError, match="stored position tables cannot be interpolated; tile the images"):
        camae.embed(image(2, size=64), ["DNA", "ER"], model=stored, tiles="interpolate")


def batch_of(image_CHW, channels=("DNA", "ER")):
    index = torch.arange(len(channels))
    return PlaneBatch(image_CHW[: len(index)], torch.zeros_like(index), index, channels)


def test_models_of_fixed_channels(image):
    with pytest.raises(CamaeError, match=r"channel names repeat: \['DNA', 'DNA'\]"):
        MUNetConfig(channels=("DNA", "DNA"))
    model = registry.from_config(MUNetConfig(channels=("DNA", "ER")))
    two = PlaneBatch(image(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), ("DNA", "ER"))
    with pytest.raises(CamaeError, match="needs all of DNA, ER in every image"):
        model.plane_index(two)


def test_classifiers_need_classes_and_labels(image):
    with pytest.raises(CamaeError, match="learns to tell perturbations apart; it was given 1 of them"):
        registry.from_config(DenseNetConfig(channels=("DNA", "ER"), classes=("TP53",)))
    model = registry.from_config(DenseNetConfig(channels=("DNA", "ER"), classes=("TP53", "MYC")))
    with pytest.raises(CamaeError, match="is trained on labels, and the batch has none"):
        model(batch_of(image(2)), torch.rand(8))


def test_kernels_take_some_shapes_and_types_only(monkeypatch):
    with pytest.raises(CamaeError, match=r"cuDNN's attention takes no sequence of one token"):
        cudnn_attention(*[torch.zeros(1, 1, 16)] * 3, [1], [1], None)
    monkeypatch.setattr(_dispatch, "choose", lambda *arguments, **options: "triton")
    with pytest.raises(
        CamaeError, match=r"reconstruction_loss: the kernel has patches of 8 and 16 px, not 4"
    ):
        reconstruction_losses(
            torch.zeros(1, 16),
            torch.zeros(1, 8, 8),
            torch.zeros(1).long(),
            torch.zeros(1).long(),
            0.0,
            eps=1e-6,
        )


def test_ranks_without_a_launcher(tiny):
    with pytest.raises(CamaeError, match="parallel='fsdp' shares one model among processes: launch with"):
        ParallelModel(tiny(), World(0, 1, torch.device("cpu")), "fsdp", False)


def test_lists_of_images_and_backends(image):
    with pytest.raises(
        CamaeError, match=r"image 1 of the list has shape \(32, 32\); each must be \(C, H, W\)"
    ):
        split_images([image(1), image(1)[0]])
    with pytest.raises(CamaeError, match=r"backends: unknown images; known are "):
        Backends.of({"images": "native"})
    with pytest.raises(CamaeError, match=r"ema 1 is not a decay in \[0, 1\)"):
        EMA(torch.nn.Linear(2, 2), 1)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(
        CamaeError, match=r"a folder without model\.safetensors or checkpoints in it; name a run"
    ):
        camae.load(tmp_path)
    save_file(
        {"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": weights._FORMAT, "config": "{"}
    )
    with pytest.raises(CamaeError, match="the configuration in its header is damaged; take another copy"):
        camae.load(tmp_path)


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(CamaeError, match=r"not a run of camae\.train \(it has no config\.toml\)"):
        compare_runs([tmp_path])
    with pytest.raises(CamaeError, match="the same run is named twice: "):
        compare_runs([tmp_path, tmp_path])
    for text, words in (
        (b"[1]", r"summary\.json: holds a list where a table of names and values is meant"),
        (b"\xff\xfe{", r"summary\.json: not readable as JSON"),
    ):
        (tmp_path / "summary.json").write_bytes(text)
        with pytest.raises(CamaeError, match=words):
            camae.report(tmp_path)


def test_pairs_of_data_sets(tmp_path):
    with pytest.raises(CamaeError, match=r"data set 0: give a manifest or a pair \(manifest, weight\), not"):
        camae.train([("a.csv", "b.csv")], out=tmp_path / "run", steps=1)


def test_files_of_too_many_tensors(tmp_path, monkeypatch):
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(tensor_files, "_MOST_TENSORS", 1)
    with pytest.raises(CamaeError, match=r"model\.safetensors: it lists 2 tensors; at most 1 are read"):
        camae.load(tmp_path)


def test_values_of_another_kind(tiny, image, tmp_path):
    model, names = tiny(), ["DNA", "ER"]
    with pytest.raises(CamaeError, match="images are a value of type NoneType; give NumPy arrays or tensors"):
        model.reconstruct(None, names)
    with pytest.raises(CamaeError, match="image 0 of the list is a value of type str"):
        model.reconstruct(["a"], names)
    with pytest.raises(CamaeError, match="channels is a value of type NoneType; give a list of names"):
        model.reconstruct(image(2), None)
    with pytest.raises(CamaeError, match=r"noise is not numbers \(.*\); give one for each patch"):
        model.reconstruct(image(2), names, "a")
    with pytest.raises(
        CamaeError, match="noise has values that are NaN, from which no order of patches follows"
    ):
        model.reconstruct(image(2), names, torch.full((1, 32), torch.nan))
    with pytest.raises(CamaeError, match=r"value_range \(0, 'a'\) is not two numbers"):
        model.reconstruct(image(2), names, value_range=(0, "a"))
    with pytest.raises(CamaeError, match="channels is the single string 'DNA'"):
        impute(model, image(2), "DNA", "DNA")
    with pytest.raises(CamaeError, match=r"one image \(C, H, W\) is imputed at a time"):
        impute(model, image(2)[None], names, "DNA")
    with pytest.raises(
        CamaeError, match="config is a value of type int; give EmbedConfig, or options by name"
    ):
        camae.embed_screen(tmp_path, model, tmp_path / "out", config=3)
    with pytest.raises(
        CamaeError, match="config is a value of type int; give EvaluateConfig, or options by name"
    ):
        camae.evaluate.layers(tmp_path, model, tmp_path / "out", config=3)
    table = pd.DataFrame({"Location_Center_X": [16], "Location_Center_Y": [16]})
    with pytest.raises(CamaeError, match=r"region_size 2\.5 is not a whole number of pixels above 0"):
        camae.embed(image(2), names, model=model, region=table, region_size=2.5)


def test_images_smaller_than_the_crop_are_told_what_to_do(tiny, image):
    model, names = tiny(), ["DNA", "ER"]
    for tiles in (None, "cover", "grid"):
        with pytest.raises(
            CamaeError, match=r"image 0: the image is 24 x 20 px, smaller .*; pad it, or give tiles='i"
        ):
            camae.embed(image(2, size=24)[..., :20], names, model=model, tiles=tiles)
    with pytest.raises(
        CamaeError,
        match=r"image 0: planes of 24 x 20 px are not .* 8 px; crop or pad them, for example to 24 x 16",
    ):
        camae.embed(image(2, size=24)[..., :20], names, model=model, tiles="interpolate")
    assert camae.embed(image(2, size=24), names, model=model, tiles="interpolate").ndim == 1
