"""Training through reader="dali": the steps of `native` bit for bit, planes that never pass through the host."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from camae.dataloader import Manifest, dali_sites, read_manifest
from camae.dataloader.mixture import MixedLoader, Source
from camae.errors import CamaeError
from camae.model import registry as families
from camae.training.data import SignalGuard
from camae.training.randomness import mask_noise

HAVE_DALI = bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))
needs_dali = pytest.mark.skipif(not HAVE_DALI, reason="nvidia-dali-cuda130 is not installed")


def weights(run):
    return load_file(run.path / "model.safetensors")


def rows(run):
    lines = (run.path / "log.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "loss" in k or "mse" in k or "norm" in k}
        for line in lines
    ]


def assert_same_training(first, second):
    assert rows(first) == rows(second)
    assert len(rows(first)) > 3
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@needs_dali
def test_training_equals_native_bit_for_bit(make_screen, train, tmp_path):
    """Two data sets of different channels, turned crops, validation, and a resumed run."""
    data = [(make_screen("three"), 2.0), (make_screen("two", channels=("DNA", "ER"), seed=1), 1.0)]
    options = {"log_every": 1, "val": "plate", "val_every": 3}
    native = train(data, tmp_path / "native", reader="native", **options)
    dali = train(data, tmp_path / "dali", reader="dali", **options)
    assert_same_training(native, dali)


@needs_dali
def test_resumed_training_equals_native_bit_for_bit(screen, train, tmp_path, interrupt):
    options = {"log_every": 1, "checkpoint_every": 2}
    native = train(screen, tmp_path / "native", reader="native", **options)
    with interrupt(3):
        train(screen, tmp_path / "dali", reader="dali", **options)
    dali = train(screen, tmp_path / "dali", reader="dali", resume=True, **options)
    assert_same_training(native, dali)


@needs_dali
def test_planes_without_signal_are_refused_as_by_native(screen, train, tmp_path):
    import tifffile

    path = Manifest.read(screen).path(2, "ER")
    tifffile.imwrite(path, np.full((48, 48), 7, np.uint16))
    sentences = []
    for reader in ("native", "dali"):
        with pytest.raises(
            CamaeError, match=r"row 2 .*channel ER: .*every pixel is 7, the plane is"
        ) as caught:
            train(screen, tmp_path / reader, reader=reader)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]


def test_planes_on_a_device_reach_the_model_without_the_host(screen, tiny, monkeypatch):
    """DALI's planes on the meta device, which has no values: fetching one, or looking at one, would raise."""

    def on_device(paths, y, x, size, device, symmetry_K):
        assert len(symmetry_K) == len(paths)
        return torch.empty((len(paths), size, size), dtype=torch.uint16, device="meta")

    monkeypatch.setattr(dali_sites.dali, "read_windows", on_device)
    monkeypatch.setattr(
        "camae.dataloader.loader.constant_planes", lambda planes_KHW: np.zeros(len(planes_KHW), bool)
    )
    source = Source("a", read_manifest(screen), 1.0)
    other = Source("b", read_manifest(screen), 1.0)
    for sources in ([source], [source, other]):
        loader = MixedLoader(sources, batch_size=4, crop=32, reader="dali")
        batch = next(iter(loader))
        SignalGuard([s.manifest for s in sources], "dali").check(batch)
        assert batch.planes_KHW.is_meta
        model = (
            families.build("ca_mae_vit_ti16", channels=batch.channels, **tiny["model_options"])
            .train()
            .to("meta")
        )
        for first, last in ((0, 2), (2, 4)):
            part = batch.part(first, last).to("meta", non_blocking=True)
            noise = mask_noise(0, torch.arange(2), (48, 48), torch.device("meta"))
            losses = model(part, noise, mask_ratio=0.75, alpha=0.01, n_samples=4)
            losses["total"].backward()
    with pytest.raises(TypeError, match="meta"):
        batch.planes_KHW.numpy()


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_by_mixed_decoding_equals_native_on_the_same_device(screen, train, tmp_path):
    options = {"device": "cuda", "precision": "fp32", "log_every": 1}
    native = train(screen, tmp_path / "native", reader="native", **options)
    dali = train(screen, tmp_path / "dali", reader="dali", **options)
    # The pixels are equal; sums of gradients by atomic additions are not the same twice.
    losses = [[row["loss"] for row in rows(run)] for run in (native, dali)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
