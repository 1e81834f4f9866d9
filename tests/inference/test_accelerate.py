"""Accelerated encoders give the same vectors, to a stated error."""

import copy

import numpy as np
import pytest
import torch

import camae
from camae.errors import CamaeError
from camae.inference.accelerate import accelerate
from camae.inference.inference_block import KernelBlock, LayerwiseBlock, block_layers
from camae.kernels._cpu import has_tiles, instructions
from camae.model import CAMAE, preset, save
from camae.model.backends import Backends
from camae.model.blocks import Sequences, Stream
from camae.model.token_layout import full_layout
from camae.model.weights import model_hash

NAMES = ["DNA", "ER", "Mito"]


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    "changes", [{}, {"bias_layout": "timm<=1.0.24"}, {"block": "sequential"}], ids=["own", "shifted", "vit"]
)
@pytest.mark.parametrize("pool", ["mean", "cls", "per_channel"])
def test_float32_is_the_same_up_to_rounding(build, picture, changes, pool):
    model = build(**changes)
    fast = accelerate(model)
    images, names = [picture(), picture(2, seed=1), picture(1, seed=2)], [NAMES, NAMES[:2], NAMES[:1]]
    expected = camae.embed(images, names, model, pool=pool)
    for got, vector in zip(camae.embed(images, names, fast, pool=pool), expected, strict=True):
        # fp32 sums of up to 256 terms in another order, 4 blocks deep, values of order one
        np.testing.assert_allclose(got, vector, atol=2e-5)


@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_what_runs_a_block(build, picture, block):
    """C++ ops on a CPU, in bfloat16 where it has AVX512_BF16; else layer by layer, as for the compiler and for another
    attention."""
    model = build(block=block)
    expected = camae.embed(picture(), NAMES, model)

    def runners(fast):
        return {type(b.runner).__name__ for b in fast.encoder.blocks}

    fused_low = instructions("bfloat16") and not has_tiles()
    assert runners(accelerate(model)) == {"FusedBlock" if instructions() else "LayerwiseBlock"}
    assert runners(accelerate(model, "bfloat16")) == {"FusedBlock" if fused_low else "LayerwiseBlock"}
    assert runners(accelerate(model, compile=True)) == {"LayerwiseBlock"}
    model.use_backends(Backends(attention="reference"))
    by_layers = accelerate(model)
    assert runners(by_layers) == {"LayerwiseBlock"}
    np.testing.assert_allclose(camae.embed(picture(), NAMES, by_layers), expected, atol=2e-5)
    by_layers.use_backends(Backends())
    np.testing.assert_allclose(camae.embed(picture(), NAMES, by_layers), expected, atol=2e-5)
    assert runners(by_layers) == {"FusedBlock" if instructions() else "LayerwiseBlock"}


@pytest.mark.full
def test_float32_at_full_size(picture):
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


def test_layers_and_regions_work_as_before(build, picture):
    model = build()
    fast = accelerate(model)
    mask = np.zeros((32, 32), bool)
    mask[3:9, 12:20] = True
    for options in ({"region": mask}, {"layers": [0, -1]}, {"dtype": "float32", "tokens_per_pass": 60}):
        expected = camae.embed(picture(), NAMES, model, **options)
        np.testing.assert_allclose(camae.embed(picture(), NAMES, fast, **options), expected, atol=2e-5)


# Relative rounding of one input: 2^-9 in bfloat16. Errors of a product's terms are independent, so that a product errs
# by about sqrt(2/3) of the largest, and updates add up over blocks at LayerScale 0.5: a relative error e of the vector
# is a cosine of 1 - e^2 / 2.
@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_low_precision_states_its_error(build, picture, block):
    model = build(block=block)
    fast = accelerate(model, linear="bfloat16")
    batch = np.stack([picture(seed=i) for i in range(4)])
    expected, got = camae.embed(batch, NAMES, model), camae.embed(batch, NAMES, fast)
    similar = [cosine(a, b) for a, b in zip(got, expected, strict=True)]
    assert min(similar) > 0.9999, similar
    assert not np.array_equal(got, expected)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, {"bias_layout": "timm<=1.0.24"}, {"block": "sequential"}])
def test_block_of_a_gpu_is_the_layerwise_one(build, picture, kind, changes):
    """Its plain-torch form on a CPU: the same products between the same elementwise steps."""
    model = build(**changes)
    batch = model.as_batch(picture()[None], NAMES)
    layout = full_layout(batch, model.n_patches(batch))
    sequences = Sequences(layout.cu_seqlens, layout.lengths)
    backends = Backends(elementwise="reference", attention="reference")
    with torch.inference_mode():
        x = model.encoder.embed(batch, layout, model.eps(batch), False)
        for block in model.encoder.blocks:
            layers = block_layers(block)
            expected = LayerwiseBlock(layers, kind, False, backends)(x, sequences)
            got = block.value(KernelBlock(layers, kind, backends)(Stream(x), sequences))
            exact = block(x, sequences)
            assert got.dtype == torch.float32
            # As near the block itself as layer by layer, to a factor of two and a rounding of the largest value.
            rounding = {"float32": 2**-22, "bfloat16": 2**-8}[kind] * float(exact.abs().max())
            assert (got - exact).abs().max() <= 2 * (expected - exact).abs().max() + rounding
            x = exact


def test_the_original_is_untouched_and_the_copy_is_another_model(build, picture, tmp_path):
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


def test_wrong_requests_are_one_sentence(build):
    model = build()
    with pytest.raises(CamaeError, match="choose from float32, bfloat16"):
        accelerate(model, "int4")
    with pytest.raises(CamaeError, match="not a Linear"):
        accelerate(torch.nn.Linear(2, 2))
    with pytest.raises(CamaeError, match="accelerated model already"):
        accelerate(accelerate(model))


@pytest.mark.full
def test_compiled_blocks_give_the_same_vectors(build, picture):
    model = build(depth=2)
    fast = accelerate(model, compile=True)
    batch = np.stack([picture(seed=i) for i in range(3)])
    expected = camae.embed(batch, NAMES, model)
    np.testing.assert_allclose(camae.embed(batch, NAMES, fast), expected, atol=2e-5)
