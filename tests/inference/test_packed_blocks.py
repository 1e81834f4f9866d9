"""`embed` on a CPU packs the blocks of models that are only read: same vectors, fresh weights, the model untouched."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import camae
from camae.inference import packed_blocks
from camae.inference.accelerate import accelerate
from camae.kernels._cpu import fingerprint, has_tiles, instructions
from camae.model.backends import Backends

NAMES = ["DNA", "ER", "Mito"]
PLAIN = {"backends": "block=reference"}
pytestmark = pytest.mark.skipif(not instructions(), reason="no AVX2 here, or no native module")
fused_low = pytest.mark.skipif(
    not instructions("bfloat16") or has_tiles(),
    reason="no AVX512_BF16 here, or AMX, where torch's products run",
)


@pytest.fixture
def packs(monkeypatch):
    """How many blocks have been packed."""
    count = []

    class Counted(packed_blocks.PackedBlock):
        def __init__(self, block, kind):
            count.append(kind)
            super().__init__(block, kind)

    monkeypatch.setattr(packed_blocks, "PackedBlock", Counted)
    return count


def as_double(model, image):
    """Mean vector in fp64."""
    batch = model.as_batch(image[None], NAMES)
    with torch.no_grad():
        return copy.deepcopy(model).double().encode(batch)[0][1:].mean(0)


@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_as_near_to_fp64_as_the_plain_path(build, picture, packs, block):
    """At most four times its error, which is what the kernels are held to op by op, and one rounding of the largest."""
    model = build(block=block)
    exact = as_double(model, picture()).numpy()
    plain, packed = (camae.embed(picture(), NAMES, model, **options) for options in (PLAIN, {}))
    assert packs == ["float32"] * 4
    assert not np.array_equal(plain, packed)
    limit = 4 * np.abs(plain - exact).max() + 2**-24 * np.abs(exact).max()
    assert np.abs(packed - exact).max() <= limit
    np.testing.assert_array_equal(packed, camae.embed(picture(), NAMES, accelerate(model)))


@fused_low
def test_bfloat16_is_the_accelerated_model(build, picture, packs):
    model = build()
    got = camae.embed(picture(), NAMES, model, dtype="bfloat16", pool="cls")
    assert packs == ["bfloat16"] * 4
    expected = camae.embed(picture(), NAMES, model, pool="cls")
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    # Factors rounded to 2^-9: sqrt(2/3) of it for each of 4 x 4 products whose errors are independent, and the tokens.
    assert 0 < error < 2**-9 * 17**0.5


def test_packed_once_and_again_after_any_change(build, picture, packs):
    """Also changes that version counters do not see, and ones that leave every sum as it was."""
    model = build(depth=2)
    changes = {
        "optimizer": lambda w: w.detach().mul_(1.01),
        "data": lambda w: w.data.mul_(1.01),
        "numpy": lambda w: w.detach().numpy().__imul__(np.float32(1.01)),
        "rows exchanged": lambda w: w.data.copy_(w.data.flip(0)),
        "one bit": lambda w: w.data.view(torch.int32)[3, 5].bitwise_xor_(1),
    }
    for _ in range(2):
        camae.embed(picture(), NAMES, model)
    assert len(packs) == 2
    for i, change in enumerate(changes.values()):
        change(model.encoder.blocks[1].attn_out_proj.weight)
        got = camae.embed(picture(), NAMES, model)
        assert len(packs) == 2 * (i + 2)
        np.testing.assert_allclose(got, camae.embed(picture(), NAMES, model, **PLAIN), atol=2e-5)
    model.encoder.blocks[0].in_proj = torch.nn.Linear(64, 64 * 7, bias=False)
    got = camae.embed(picture(), NAMES, model)
    np.testing.assert_allclose(got, camae.embed(picture(), NAMES, model, **PLAIN), atol=2e-5)


def test_the_model_is_left_as_it_was(build, picture):
    model = build().train()
    before = {name: (id(module), module.training) for name, module in model.named_modules()}
    keys = {name: list(vars(module)) for name, module in model.named_modules()}
    camae.embed(picture(), NAMES, model)
    assert {name: (id(module), module.training) for name, module in model.named_modules()} == before
    assert {name: list(vars(module)) for name, module in model.named_modules()} == keys
    assert all(parameter.requires_grad for parameter in model.encoder.parameters())


def test_what_cannot_be_packed_runs_as_it_is(build, picture, packs):
    seen = []
    hooked, adapted, other, double = build(), build(), build(), build().double()
    hooked.encoder.blocks[1].in_norm.register_forward_hook(lambda *_: seen.append(1))
    adapted.encoder.blocks[0].in_norm = torch.nn.Identity()
    other.use_backends(Backends(attention="reference"))
    for model in (hooked, other, accelerate(build())):
        camae.embed(picture(), NAMES, model)
    for model in (adapted, double):
        with packed_blocks.packed_blocks(model, "float32"), torch.inference_mode():
            assert packed_blocks._packable(model.encoder, "float32") == []
    assert len(packs) == 0


def test_same_bits_alone_in_a_batch_and_on_one_thread(build, picture):
    model, images = build(), [picture(seed=i) for i in range(5)]
    together = camae.embed(np.stack(images), NAMES, model)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        alone = [camae.embed(image, NAMES, model) for image in images]
    finally:
        torch.set_num_threads(threads)
    # Pooling and the tokens themselves are torch's: their bits are compared in tests/embedding as before.
    np.testing.assert_allclose(alone, together, atol=1e-6)
    batch = model.as_batch(np.stack(images), NAMES)
    with torch.inference_mode(), packed_blocks.packed_blocks(model, "float32"):
        tokens, layout = model.encode(batch)
        for i, part in enumerate(tokens.split(layout.lengths)):
            one = model.encode(model.as_batch(images[i][None], NAMES))[0]
            assert torch.equal(one, part)


def test_threads_read_while_one_trains(build, picture):
    """Every vector is that of the weights before or after a change, none of a mixture that was packed halfway."""
    first, second = build(), build()
    for parameter in second.encoder.blocks.parameters():
        parameter.data.mul_(1.5)
    expected = [camae.embed(picture(), NAMES, model) for model in (first, second)]
    model, go = build(), threading.Event()

    def read(_):
        go.wait()
        return camae.embed(picture(), NAMES, model)

    with ThreadPoolExecutor(4) as pool:
        before = [pool.submit(read, i) for i in range(20)]
        go.set()
        found = [future.result() for future in before]
        model.load_state_dict(second.state_dict())
        after = [future.result() for future in [pool.submit(read, i) for i in range(20)]]
    assert all(np.array_equal(vector, expected[0]) for vector in found)
    assert all(np.array_equal(vector, expected[1]) for vector in after)


def test_a_fingerprint_is_that_of_all_bytes():
    x = torch.arange(600_007, dtype=torch.float32)
    whole = fingerprint([x])
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert fingerprint([x.clone()]) == whole
    finally:
        torch.set_num_threads(threads)
    for i in (0, 7, 15, 16, 262_143, 262_144, 600_006):
        y = x.clone()
        y.view(torch.int32)[i] ^= 1 << 31
        assert fingerprint([y]) != whole
    assert fingerprint([x[:100], x[100:]]) != fingerprint([x[:101], x[101:]])
    assert fingerprint([x.roll(1)]) != whole
    assert fingerprint([]) == fingerprint([])
