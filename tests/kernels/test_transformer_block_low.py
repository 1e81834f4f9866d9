"""The C++ block with bfloat16 products, every such instruction set of this processor: exact where integers make it so,
else against the formulas in fp64, beside torch with the same roundings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from camae.kernels._cpu import arrays, bounds, instructions, native_module
from camae.kernels.transformer_block import block_tail_op, pack_weight, self_attention_op
from camae.kernels.transformer_block.reference import block_tail_reference

pytestmark = pytest.mark.skipif(
    not instructions("bfloat16"), reason="no AVX512_BF16 here, or no native module"
)
every_set = pytest.mark.parametrize("instruction_set", instructions("bfloat16"))
EPS = 1e-6


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape, most=8, seed=0):
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def cu(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def attention(instruction_set, x, norm, weight, bias, heads, lengths, head_norms=(None, None)):
    panels = [pack_weight(w, instruction_set) for w in weight.chunk(3)]
    scale = (x.shape[1] // heads) ** -0.5
    return self_attention_op(
        x, norm, EPS, panels, bias, heads, *head_norms, EPS, cu(lengths), scale, instruction_set
    )


def tail(instruction_set, x, attended, layers, parallel, norm):
    packed = [(pack_weight(weight, instruction_set), bias) for weight, bias in layers]
    return block_tail_op(
        x, attended, *packed[0], parallel, norm, EPS, *packed[1], *packed[2], instruction_set
    )


def layers_of(D, hidden):
    shapes = ((D, D), (hidden, D), (D, hidden))
    return [
        (normal(*shape, seed=i) / shape[1] ** 0.5, normal(shape[0], seed=10 + i))
        for i, shape in enumerate(shapes)
    ]


def relative(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


def assert_as_exact_as_torch(found, exact, plain):
    """At most a quarter more than torch's error with the same factors rounded, which rounds norms and sums besides.

    A quarter: errors are of random sign, and a hundred values of one draw vary by no more.
    """
    assert found.shape == exact.shape
    assert relative(found, exact) <= 1.25 * relative(plain, exact), (
        relative(found, exact),
        relative(plain, exact),
    )


@every_set
@pytest.mark.parametrize(("D", "hidden"), [(16, 16), (48, 80), (192, 256)])
@pytest.mark.parametrize("T", [0, 1, 6, 23, 97, 400])
def test_products_of_integers_are_exact(instruction_set, D, hidden, T):
    """Up to 256 integers are bfloat16, and sums of their products float32: no rounding anywhere."""
    x, attended = integers(T, D, most=256, seed=1), integers(T, D, most=256, seed=2)
    proj, bias = integers(D, D, seed=3), integers(D, seed=4)
    nothing = [(torch.zeros(hidden, D), None), (torch.zeros(D, hidden), None)]
    found = tail(instruction_set, x, attended, [(proj, bias), *nothing], True, None)
    assert torch.equal(found, x + attended @ proj.T + bias)
    # Through the MLP: GELU passes large values on and stops large negative ones, exactly.
    units = torch.eye(D, hidden) if hidden < D else torch.eye(hidden, D)
    first = (units[:hidden, :D].contiguous() * 64, None)
    second = (integers(D, hidden, seed=5), None)
    attended = torch.zeros_like(x)
    found = tail(instruction_set, x, attended, [(torch.zeros(D, D), None), first, second], True, None)
    assert torch.equal(found, x + F.relu(x @ first[0].T) @ second[0].T)


@every_set
@pytest.mark.parametrize(
    "lengths", [(1,), (5, 0, 13), (64, 65, 63), (193, 6, 192), (1200,), (9, 1, 0, 300) * 3]
)
def test_equal_scores_are_the_mean_of_the_values(instruction_set, lengths):
    """Every probability is 1 before its sum divides: pairs of keys, odd ones too, at their places."""
    D, T = 32, sum(lengths)
    x, weight = integers(T, D, most=16), torch.zeros(3 * D, D)
    weight[2 * D :] = torch.eye(D)
    found = attention(instruction_set, x, None, weight, None, 2, lengths)
    expected = [part.double().mean(0).expand(len(part), D) for part in x.split(lengths)]
    # One division by the number of keys, then a product.
    torch.testing.assert_close(found, torch.cat(expected).float(), rtol=2**-23, atol=0)


@every_set
@pytest.mark.parametrize("T", [16, 64, 144])
def test_a_key_like_the_query_gives_its_value(instruction_set, T):
    """Scores 2^8 apart leave one probability of 1; the others add 2^-126 at most."""
    x, order = torch.eye(T), torch.randperm(T, generator=torch.Generator().manual_seed(0))
    values = integers(T, T, most=256)
    weight = torch.cat([torch.eye(T) * 4096, torch.eye(T)[order], values.T])
    found = attention(instruction_set, x, None, weight, None, 1, (T,))
    assert torch.equal(found, values[order])


@every_set
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize(("D", "hidden"), [(48, 80), (64, 256), (192, 768)])
@pytest.mark.parametrize("T", [23, 97, 400])
def test_tail_against_fp64(instruction_set, parallel, D, hidden, T):
    x, attended, layers = normal(T, D, seed=20) * 3 + 1, normal(T, D, seed=21), layers_of(D, hidden)
    norm = normal(2, D, seed=9)
    found = tail(instruction_set, x, attended, layers, parallel, norm)

    def formula(dtype):
        proj, *rest = [tuple(t.to(dtype) for t in layer) for layer in layers]
        weights = norm.to(dtype)
        return block_tail_reference(
            x.to(dtype), attended.to(dtype), proj, parallel, (weights[0], weights[1]), EPS, rest
        )

    with torch.autocast("cpu", torch.bfloat16):
        plain = formula(torch.float32)
    assert_as_exact_as_torch(found, formula(torch.float64), plain)


@every_set
@pytest.mark.parametrize("with_head_norms", [False, True])
@pytest.mark.parametrize(("heads", "d"), [(3, 16), (2, 48), (3, 64), (1, 128)])
@pytest.mark.parametrize("lengths", [(40, 13), (193, 6, 192), (640,), (9, 1, 0, 300) * 3])
def test_self_attention_against_fp64(instruction_set, with_head_norms, heads, d, lengths):
    T, D = sum(lengths), heads * d
    x, norm = normal(T, D) * 2 + 1, normal(2, D, seed=1)
    weight, bias = normal(3 * D, D, seed=2) / D**0.5, normal(3 * D, seed=3)
    head_norms = [torch.rand(2, d, generator=torch.Generator().manual_seed(i)) for i in (4, 5)]
    head_norms = head_norms if with_head_norms else [None, None]
    found = attention(instruction_set, x, norm, weight, bias, heads, lengths, head_norms)

    def formula(dtype):
        def normed(x, norm):
            return x if norm is None else F.layer_norm(x, x.shape[-1:], *norm.to(x.dtype), EPS)

        qkv = F.linear(normed(x.to(dtype), norm), weight.to(dtype), bias.to(dtype)).unflatten(
            1, (3, heads, d)
        )
        qkv = normed(qkv[:, 0], head_norms[0]), normed(qkv[:, 1], head_norms[1]), qkv[:, 2]
        parts = zip(*(t.transpose(0, 1).split(lengths, 1) for t in qkv), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*part).transpose(0, 1).flatten(1) for part in parts])

    with torch.autocast("cpu", torch.bfloat16):
        plain = formula(torch.float32)
    assert_as_exact_as_torch(found, formula(torch.float64), plain)


@every_set
def test_same_bits_alone_in_a_batch_and_on_one_thread(instruction_set):
    lengths, D = (200, 33, 411), 48
    x, norm, weight = normal(sum(lengths), D), normal(2, D, seed=1), normal(3 * D, D, seed=2)
    layers = layers_of(D, 64)

    def block(x, lengths):
        attended = attention(instruction_set, x, norm, weight, None, 3, lengths)
        return tail(instruction_set, x, attended, layers, False, norm)

    together = block(x, lengths)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert torch.equal(block(x, lengths), together)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([block(part, (len(part),)) for part in x.split(lengths)]), together)


@every_set
def test_nan_stays_in_its_sequence(instruction_set):
    lengths, D = (7, 9), 32
    x, norm, weight = normal(16, D), normal(2, D, seed=1), normal(3 * D, D, seed=2)
    x[3, 5] = torch.nan
    attended = attention(instruction_set, x, norm, weight, None, 2, lengths)
    assert attended[:7].isnan().all()
    assert not attended[7:].isnan().any()
    out = tail(instruction_set, x, normal(16, D, seed=3), layers_of(D, 32), True, norm)
    assert torch.equal(out.isnan().all(1), torch.arange(16) == 3)
    assert torch.equal(out.isnan().any(1), torch.arange(16) == 3)


@every_set
def test_packed_weights(instruction_set):
    """Outputs in panels of 64, two terms after two terms, rounded to nearest, ties to even; zeros after the last."""
    weight = normal(80, 32)
    weight[0, :4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.inf, -0.0])
    panels = pack_weight(weight, instruction_set)
    assert panels.shape == (2, 16, 64)
    pairs = panels.view(torch.bfloat16).unflatten(2, (64, 2))
    found = pairs.permute(0, 2, 1, 3).reshape(128, 32)
    assert torch.equal(found[:80], weight.bfloat16())
    assert not found[80:].any()


@every_set
def test_refusals(instruction_set):
    x, norm = normal(10, 32), normal(2, 32)
    panels = [pack_weight(normal(32, 32))] * 3  # of float32
    with pytest.raises(ValueError, match="q: a weight packed for these widths"):
        self_attention_op(x, norm, EPS, panels, None, 2, None, None, EPS, cu((10,)), 1.0, instruction_set)
    q = torch.zeros(3, 2, 16)
    given = (*arrays(q, q, q, q, q, torch.zeros(2, 3), q, q, q), *bounds(cu((3,)), cu((3,))), 1.0, 1)
    with pytest.raises(ValueError, match=f"no backward pass in '{instruction_set}'"):
        native_module("attention").attention_backward(*given, instruction_set)
    with pytest.raises(ValueError, match="no CPU kernel for 'avx1024' on this processor"):
        pack_weight(normal(32, 32), "avx1024")
