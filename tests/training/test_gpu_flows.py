"""Public flows on a GPU with default settings: training beside plain torch, embedding in bf16 beside fp32 on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import camae
from camae.model import Backends

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PLAIN = {"tokenize": "reference", "attention": "reference", "loss": "reference", "elementwise": "reference"}


def losses(run) -> np.ndarray:
    return np.array([row["loss"] for row in run.history])


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_default_training_equals_plain_torch(make_screen, train, tmp_path, precision):
    """Ragged batches of two screens, six steps: the kernels' losses beside those of plain torch on the same device."""
    data = [(make_screen("three"), 1), (make_screen("two", channels=("DNA", "ER"), seed=1), 1)]
    options = {"device": "cuda", "log_every": 1, "precision": precision, "warmup": 0}
    ours = train(data, tmp_path / "ours", **options)
    plain = train(data, tmp_path / "plain", backends=PLAIN, **options)
    # bf16 rounds at 2^-9 and fp32 (tf32x3 products) at 2^-22; Lion moves every weight by lr whatever the gradient's
    # size, so that a gradient of rounding size may go either way: six steps of lr 1e-4 in weights of order 0.1.
    np.testing.assert_allclose(losses(ours), losses(plain), rtol=1e-2 if precision == "bf16" else 2e-3)
    assert np.isfinite(losses(ours)).all()


def test_a_screen_is_embedded_as_on_a_cpu(make_screen, train, tmp_path):
    """The default, bf16 on the kernels, and float32 on the kernels, beside float32 on a CPU."""
    screen = make_screen("screen", size=64)
    run = train([(screen, 1)], tmp_path / "run", device="cuda")
    found = {}
    for name, options in {
        "cpu": {"device": "cpu"},
        "default": {"device": "cuda"},
        "float32": {"device": "cuda", "dtype": "float32"},
    }.items():
        table = camae.embed_screen(screen, model=run.path, out=tmp_path / name, quiet=True, **options)
        keys = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
        table = table.sort_values(keys, ignore_index=True)
        found[name] = table[[c for c in table if not c.startswith("Metadata_")]].to_numpy(np.float64)
    truth = found["cpu"]
    for name, allowed in (("default", 2e-2), ("float32", 1e-4)):
        error = np.linalg.norm(found[name] - truth) / np.linalg.norm(truth)
        assert error < allowed, name


@pytest.mark.parametrize("stored", ["uint8", "uint16", "float32"])
def test_imputed_channels_are_those_of_a_cpu(stored):
    """The first pass, the decoders and the stored plane on the device, beside float32 on a CPU."""
    from camae.model import CAMAE, preset

    torch.manual_seed(0)
    names = ["DNA", "ER", "Mito"]
    model = CAMAE(preset("ca_mae_vit_ti16", channels=names, crop=64, layer_scale=0.5)).eval()
    images = torch.rand(3, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    span = (0.0, 1.0) if stored == "float32" else None
    if span is None:
        images = (images * torch.iinfo(getattr(torch, stored)).max).to(getattr(torch, stored))
    options = {"pool": "per_channel", "impute": ["Mito"], "value_range": span}
    truth = camae.embed(images.numpy(), names[:2], model, **options)
    found = camae.embed(images, names[:2], model.cuda(), dtype="float32", **options)
    # An 8-bit plane rounds to steps of 1/16 standard deviation, and a value near the middle may go either way.
    error = np.linalg.norm(found.numpy() - truth) / np.linalg.norm(truth)
    assert error < (1e-2 if stored == "uint8" else 1e-3)


@pytest.mark.parametrize("stored", ["uint8", "uint16"])
def test_embed_accelerated_and_plain(stored):
    """`camae.embed` of a released form: bf16 by default, float32, accelerated; cosines to float32 on a CPU."""
    from camae.inference import accelerate
    from camae.model import CAMAE, preset

    torch.manual_seed(0)
    names = [f"c{i}" for i in range(6)]
    model = CAMAE(preset("ca_mae_vit_s16", channels=tuple(names), layer_scale=0.1, decoder="small")).eval()
    g = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(0, 255, (4, 6, 256, 256), generator=g, dtype=torch.int32)
    images_BCHW = images_BCHW.to(getattr(torch, stored))
    truth = camae.embed(images_BCHW, names, model)
    model = model.cuda()
    for net, options, least in (
        (model, {}, 0.999),
        (model, {"dtype": "float32"}, 0.999999),
        (accelerate(model, "bfloat16"), {}, 0.999),
        (accelerate(model), {}, 0.999999),
    ):
        vectors = camae.embed(images_BCHW, names, net, **options)
        cosine = torch.cosine_similarity(torch.as_tensor(vectors).float().cpu(), truth, dim=1)
        assert cosine.min() > least


def test_back_ends_that_run_are_named():
    names = Backends().names("cuda")
    assert names.pop("block") == "reference"  # the block of one op is for CPUs
    assert names == dict.fromkeys(names, "triton")
