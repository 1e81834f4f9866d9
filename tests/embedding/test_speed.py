"""Accelerated encoders give the same vectors, to a stated error; a bag of channels is what it says."""

import copy

import numpy as np
import pytest
import torch

import camae
from camae.errors import CamaeError
from camae.inference.accelerate import accelerate
from camae.inference.bag_of_channels import BagOfChannels
from camae.inference.fast_linear import FastLinear, to_fp8
from camae.kernels._cpu import instructions
from camae.model import CAMAE, preset, save
from camae.model.backends import Backends
from camae.model.weights import model_hash

NAMES = ["DNA", "ER", "Mito"]


def picture(c=3, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 60000, (c, size, size)).astype(np.uint16)


def build(**changes):
    """Widths that 16 divides, and LayerScale 0.5, so that every block counts in the vectors."""
    torch.manual_seed(0)
    small = {"width": 64, "heads": 2, "depth": 4, "crop": 32, "patch": 8, "layer_scale": 0.5}
    decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
    model = CAMAE(preset("ca_mae_vit_ti16", channels=NAMES, decoder=decoder, **(small | changes)))
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    "changes", [{}, {"bias_layout": "timm<=1.0.24"}, {"block": "sequential"}], ids=["own", "shifted", "vit"]
)
@pytest.mark.parametrize("pool", ["mean", "cls", "per_channel"])
def test_float32_is_the_same_up_to_rounding(changes, pool):
    model = build(**changes)
    fast = accelerate(model)
    images, names = [picture(), picture(2, seed=1), picture(1, seed=2)], [NAMES, NAMES[:2], NAMES[:1]]
    expected = camae.embed(images, names, model, pool=pool)
    for got, vector in zip(camae.embed(images, names, fast, pool=pool), expected, strict=True):
        # fp32 sums of up to 256 terms in another order, 4 blocks deep, values of order one
        np.testing.assert_allclose(got, vector, atol=2e-5)


@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_what_runs_a_block(block):
    """C++ ops in float32 on a CPU; layer by layer in other kinds, for the compiler, and for another attention."""
    model = build(block=block)
    expected = camae.embed(picture(), NAMES, model)

    def runners(fast):
        return {type(b.runner).__name__ for b in fast.encoder.blocks}

    assert runners(accelerate(model)) == {"NativeBlock" if instructions() else "LayeredBlock"}
    assert runners(accelerate(model, "bfloat16")) == {"LayeredBlock"}
    assert runners(accelerate(model, compile=True)) == {"LayeredBlock"}
    model.backends = Backends(attention="reference")
    by_layers = accelerate(model)
    assert runners(by_layers) == {"LayeredBlock"}
    np.testing.assert_allclose(camae.embed(picture(), NAMES, by_layers), expected, atol=2e-5)
    by_layers.backends.attention = None
    np.testing.assert_allclose(camae.embed(picture(), NAMES, by_layers), expected, atol=2e-5)
    assert runners(by_layers) == {"NativeBlock" if instructions() else "LayeredBlock"}


@pytest.mark.full
def test_float32_at_full_size():
    """S/16 on 6 x 256 x 256: as far from fp64 as the plain float32 encoder, to a factor of two."""
    torch.manual_seed(0)
    model = CAMAE(preset("ca_mae_vit_s16", layer_scale=0.1, channels=tuple("abcdef"))).eval()
    image, names = picture(6, 256), list("abcdef")
    batch = model.as_batch(image[None], names)
    exact = copy.deepcopy(model).double()
    with torch.inference_mode():
        truth, plain, fast = (m.encode(batch)[0].double() for m in (exact, model, accelerate(model)))
    plain_error, fast_error = (float((x - truth).abs().max()) for x in (plain, fast))
    print(f"S/16 tokens, largest error to fp64: plain {plain_error:.2e}, accelerated {fast_error:.2e}")
    assert fast_error <= 2 * plain_error


def test_layers_and_regions_work_as_before():
    model = build()
    fast = accelerate(model)
    mask = np.zeros((32, 32), bool)
    mask[3:9, 12:20] = True
    for options in ({"region": mask}, {"layers": [0, -1]}, {"dtype": "float32", "tokens_per_pass": 60}):
        expected = camae.embed(picture(), NAMES, model, **options)
        np.testing.assert_allclose(camae.embed(picture(), NAMES, fast, **options), expected, atol=2e-5)


# Relative rounding of one input: 2^-9 in bfloat16, 2^-4 in e4m3 (half a step of a 3-bit fraction). Errors of a
# product's terms are independent, so that a product errs by about sqrt(2/3) of the largest, and updates add up over
# blocks at LayerScale 0.5: a relative error e of the vector is a cosine of 1 - e^2 / 2.
@pytest.mark.parametrize("block", ["parallel", "sequential"])
@pytest.mark.parametrize(("linear", "least"), [("bfloat16", 0.9999), ("fp8", 0.999)])
def test_low_precision_states_its_error(linear, least, block):
    model = build(block=block)
    fast = accelerate(model, linear=linear)
    batch = np.stack([picture(seed=i) for i in range(4)])
    expected, got = camae.embed(batch, NAMES, model), camae.embed(batch, NAMES, fast)
    similar = [cosine(a, b) for a, b in zip(got, expected, strict=True)]
    assert min(similar) > least, similar
    assert not np.array_equal(got, expected)


@pytest.mark.full
def test_fp8_error_of_the_small_model():
    """S/16 on 6 x 256 x 256 with LayerScale 0.1: cosine to float32, the number in the documentation."""
    torch.manual_seed(0)
    model = CAMAE(preset("ca_mae_vit_s16", layer_scale=0.1, channels=tuple("abcdef"))).eval()
    image = picture(6, 256)
    expected = camae.embed(image, list("abcdef"), model)
    similar = cosine(camae.embed(image, list("abcdef"), accelerate(model, "fp8")), expected)
    print(f"fp8, S/16, cosine to fp32: {similar:.6f}")
    assert similar >= 0.999


def test_fp8_rounds_by_rows():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 5)[:, None]
    values, scale = to_fp8(x)
    assert values.dtype == torch.float8_e4m3fn
    # half a step of a 3-bit fraction, and the subnormal step of e4m3 near zero
    error = (values.float() * scale - x).abs()
    assert (error <= x.abs() * 2**-4 + scale * 2**-10).all()
    assert torch.equal(to_fp8(torch.zeros(2, 16))[0].float(), torch.zeros(2, 16))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "fp8"])
def test_linear_layers_against_fp64(kind):
    generator = torch.Generator().manual_seed(1)
    x, weight, bias, other = (
        torch.randn(shape, generator=generator) for shape in ((70, 64), (48, 64), (48,), (70, 48))
    )
    layer = FastLinear(weight, bias, kind)
    exact = x.double() @ weight.double().T + bias.double()
    # A sum of 64 terms has norm 8 and reaches 30 among these. Inputs rounded to 2^-9 move it by 0.02 rms, four of
    # which are seen among 3,000, and its own rounding to bf16 by 0.06; e4m3 inputs, 2^-4, by 32 times as much less
    # the share of large terms.
    limit = {"float32": 1e-5, "bfloat16": 0.2, "fp8": 2.0}[kind]
    assert (layer(x) - exact).abs().max() < limit
    assert (layer(x, gelu=True) - torch.nn.functional.gelu(exact)).abs().max() < limit
    added = layer(x, add_TF=other)
    assert added.dtype == torch.float32
    assert (added - (other + exact)).abs().max() < limit


def test_the_original_is_untouched_and_the_copy_is_another_model(tmp_path):
    model = build()
    before = model_hash(model)
    fast = accelerate(model, "bfloat16")
    assert model_hash(model) == before
    assert model_hash(fast) != before
    assert fast.decoder is model.decoder
    assert next(model.parameters()).requires_grad
    moved = camae.embed(picture(), NAMES, fast.to("cpu"))  # packs again
    np.testing.assert_array_equal(moved, camae.embed(picture(), NAMES, fast))
    save(model, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        camae.embed(picture(), NAMES, tmp_path / "model.safetensors"), camae.embed(picture(), NAMES, model)
    )


def test_wrong_requests_are_one_sentence():
    model = build()
    with pytest.raises(CamaeError, match="choose from float32, bfloat16, fp8"):
        accelerate(model, "int4")
    with pytest.raises(CamaeError, match="not a Linear"):
        accelerate(torch.nn.Linear(2, 2))
    with pytest.raises(CamaeError, match="accelerated model already"):
        accelerate(accelerate(model))
    with pytest.raises(CamaeError, match="fp8 layers need widths that 16 divides"):
        FastLinear(torch.zeros(24, 16), None, "fp8")
    with pytest.raises(CamaeError, match="needs a CA-MAE, not a Linear"):
        BagOfChannels(torch.nn.Linear(2, 2))


def test_bag_of_channels_is_each_channel_alone():
    model = build()
    bag = BagOfChannels(model)
    images, names = [picture(), picture(2, seed=1)], [NAMES, NAMES[1:]]
    for image, channels, mean, cls, each in zip(
        images,
        names,
        camae.embed(images, names, bag),
        camae.embed(images, names, bag, pool="cls"),
        camae.embed(images, names, bag, pool="per_channel"),
        strict=True,
    ):
        alone = [camae.embed(image[c : c + 1], channels[c : c + 1], model) for c in range(len(image))]
        classes = [
            camae.embed(image[c : c + 1], channels[c : c + 1], model, pool="cls") for c in range(len(image))
        ]
        np.testing.assert_allclose(each, np.stack(alone), atol=1e-5)
        np.testing.assert_allclose(mean, np.mean(alone, 0), atol=1e-5)
        np.testing.assert_allclose(cls, np.mean(classes, 0), atol=1e-5)
    assert not np.allclose(
        camae.embed(images[0], NAMES, model), camae.embed(images[0], NAMES, bag), atol=1e-3
    )


def test_bag_of_channels_embeds_a_screen_of_its_own(screen, tmp_path):
    model = build()
    bag = camae.embed_screen(screen, BagOfChannels(model), tmp_path / "bag", tiles="center", quiet=True)
    assert len(bag) == 8
    with pytest.raises(CamaeError, match="another model"):
        camae.embed_screen(screen, model, tmp_path / "bag", tiles="center", quiet=True)
    mask = np.zeros((32, 32), bool)
    mask[:8] = True
    with pytest.raises(CamaeError, match="need a CA-MAE"):
        camae.embed(picture(), NAMES, BagOfChannels(model), region=mask)


@pytest.mark.full
def test_compiled_blocks_give_the_same_vectors():
    model = build(depth=2)
    fast = accelerate(model, compile=True)
    batch = np.stack([picture(seed=i) for i in range(3)])
    expected = camae.embed(batch, NAMES, model)
    np.testing.assert_allclose(camae.embed(batch, NAMES, fast), expected, atol=2e-5)
