"""The C++ attention kernel, every instruction set of this processor, against softmax in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from camae.errors import CamaeError, MissingBackendError
from camae.kernels import _cpu
from camae.kernels._cpu import instructions
from camae.kernels.varlen_attention import backends, cpu, varlen_attention
from camae.kernels.varlen_attention.cpu import cpu_attention_backward_op, cpu_attention_op
from camae.kernels.varlen_attention.reference import attention_formulas

needs_kernel = pytest.mark.skipif(not instructions(), reason="no AVX2 here, or no native module")
every_set = pytest.mark.parametrize("instruction_set", instructions())
ROUNDING = 2.0**-24


def packed(lengths, heads, d, seed):
    return torch.randn(sum(lengths), heads, d, generator=torch.Generator().manual_seed(seed))


def bounds(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def tolerance(q, k, v, scale):
    """What fp32 sums may be off, to first order (Higham's gamma_n), a sequence at a time being at most all of it.

    A score of d products is off by (d + 2) roundings of its absolute terms; a probability by twice that of its row
    plus four for the power; the mean over S keys by S roundings more, relative to the largest value.
    """
    d, S = q.shape[-1], len(k)
    terms = torch.einsum("thd,shd->hts", q.abs(), k.abs()).max().detach() * scale
    return float((2 * (d + 2) * terms + S + 8) * ROUNDING * v.abs().max().detach())


def run(instruction_set, q, k, v, lengths_q, lengths_k, scale, norms=(None, None)):
    cu = bounds(lengths_q), bounds(lengths_k)
    return cpu_attention_op(q, k, v, *cu, scale, *norms, 1e-6, instruction_set)[0]


def check(instruction_set, lengths_q, lengths_k, heads, d, seed=0, scale=None):
    scale = scale or d**-0.5
    q, k, v = (packed(n, heads, d, seed + i) for i, n in enumerate((lengths_q, lengths_k, lengths_k)))
    out = run(instruction_set, q, k, v, lengths_q, lengths_k, scale)
    truth, _ = attention_formulas(
        *(x.double() for x in (q, k, v)), bounds(lengths_q), bounds(lengths_k), scale
    )
    assert out.shape == q.shape
    if len(q) and len(k):
        assert (out - truth).abs().max() <= tolerance(q, k, v, scale)
    else:
        assert not out.any()


def check_gradient(instruction_set, lengths_q, lengths_k, heads, d, seed=0):
    """dq, dk and dv, and what the backward pass keeps, against the formulas in fp64.

    The gradient of a probability is p * (grad . v - mean): the tolerance of probabilities times the largest
    |grad . v|, then sums of that over keys (or queries) with the largest |k| (or |q|); dv as out, over queries.
    """
    scale = d**-0.5
    q, k, v = (
        packed(n, heads, d, seed + i).requires_grad_()
        for i, n in enumerate((lengths_q, lengths_k, lengths_k))
    )
    grad, cu = packed(lengths_q, heads, d, seed + 3), (bounds(lengths_q), bounds(lengths_k))
    out, sums_HT = cpu_attention_op(q, k, v, *cu, scale, None, None, 1e-6, instruction_set)
    gradients = cpu_attention_backward_op(
        grad, *(x.detach() for x in (q, k, v, out)), sums_HT, *cu, scale, instruction_set
    )
    doubles = [x.detach().double() for x in (q, k, v)]
    truth = attention_formulas(*doubles, *cu, scale, grad.double())
    _, sums = attention_formulas(*doubles, *cu, scale)
    if not (len(q) and len(k)):
        assert not any(x.any() for x in gradients)
        return
    bound = tolerance(q, k, v, scale)
    torch.testing.assert_close(sums_HT.double(), sums, rtol=0, atol=2 * bound / float(v.abs().max()))
    longest = max(*lengths_q, *lengths_k)
    slopes = 2 * bound / v.abs().max() * torch.einsum("thd,shd->hts", grad.abs(), v.abs()).max()
    bounds_of = (scale * slopes * k.abs().max(), scale * slopes * q.abs().max() * longest, bound * longest)
    factors = (1, 1, float(grad.abs().max() / v.abs().max()))
    for found, expected, limit, factor in zip(gradients, truth, bounds_of, factors, strict=True):
        assert (found - expected).abs().max() <= float(limit) * factor


# Around the kernel's steps: six queries, panels of 64 keys, blocks of 512 (of 576 at the end), bands of 192 rows.
SHAPES = [
    ((1,), (1,)),
    ((5, 6, 7, 13), (63, 64, 65, 3)),
    ((12, 1), (512, 513)),
    ((192, 2, 3), (576, 577, 1089)),
    ((3, 0, 7, 2), (2, 5, 0, 1100)),
    ((800,), (70,)),
    ((0, 2), (0, 0)),
    (
        (3, 1, 0, 7, 200, 2, 9, 6, 5),
        (70, 1, 3, 0, 200, 2, 64, 65, 5),
    ),  # enough for threads to take them whole
]


@needs_kernel
@every_set
@pytest.mark.parametrize(("lengths_q", "lengths_k"), SHAPES)
@pytest.mark.parametrize("d", [16, 32, 48, 64, 128])
def test_equals_the_formulas(instruction_set, lengths_q, lengths_k, d):
    check(instruction_set, lengths_q, lengths_k, 2, d)
    check_gradient(instruction_set, lengths_q, lengths_k, 2, d)


@needs_kernel
@pytest.mark.parametrize(
    ("lengths_k", "heads"), [((5000, 5000, 700, 5000), 1), ((9000, 10), 3), ((10, 17000), 2)]
)
def test_more_than_one_round_of_packing(lengths_k, heads):
    """A round packs at most 4 Mi floats: some sequences, or some heads of one, or a head that is larger."""
    lengths_q = [7 + i for i in range(len(lengths_k))]
    check(instructions()[0], lengths_q, lengths_k, heads, 128)


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(instructions() or ("none",)),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 150)), min_size=1, max_size=5),
    st.integers(1, 3),
    st.sampled_from([16, 32, 64, 80]),
    st.integers(0, 999),
)
def test_random_shapes(instruction_set, pairs, heads, d, seed):
    lengths = [p[0] for p in pairs], [p[1] for p in pairs]
    check(instruction_set, *lengths, heads, d, seed)
    check_gradient(instruction_set, *lengths, heads, d, seed)


@needs_kernel
@every_set
def test_strided_input_and_norms(instruction_set):
    """q, k and v as views of one projection, LayerNorm inside against LayerNorm outside in fp64."""
    lengths, heads, d = (40, 25), 3, 32
    qkv = torch.randn(65, 3 * heads * d, generator=torch.Generator().manual_seed(3)) * 5 + 2
    q, k, v = (x.unflatten(1, (heads, d)) for x in qkv.chunk(3, 1))
    norms = [torch.rand(2, d, generator=torch.Generator().manual_seed(i)) for i in (4, 5)]
    out = run(instruction_set, q, k, v, lengths, lengths, d**-0.5, norms)

    def normed(x, norm):
        return torch.nn.functional.layer_norm(x.double(), (d,), *norm.double(), 1e-6)

    q, k = normed(q, norms[0]), normed(k, norms[1])
    truth, _ = attention_formulas(q, k, v.double().contiguous(), bounds(lengths), bounds(lengths), d**-0.5)
    # The norm adds its own roundings: d + 4 for sums and the division, on both sides of each product.
    assert (out - truth).abs().max() <= 3 * tolerance(q, k, v, d**-0.5)


@needs_kernel
@every_set
def test_large_scores_pick_the_largest(instruction_set):
    """Scores of some 1e6: all weight on one key, no overflow."""
    q, k, v = (packed((9,), 1, 16, seed) for seed in range(3))
    out = run(instruction_set, q, k, v, (9,), (9,), 1e6)
    best = torch.einsum("td,sd->ts", q[:, 0].double(), k[:, 0].double()).argmax(1)
    assert torch.equal(out[:, 0], v[best, 0])


@needs_kernel
@every_set
def test_nan_stays_in_its_rows(instruction_set):
    q, k, v = (packed((7, 7), 2, 16, seed) for seed in range(3))
    q[2, 1, 3] = torch.nan
    k[9, 0, 0] = torch.nan
    out = run(instruction_set, q, k, v, (7, 7), (7, 7), 0.25)
    broken = torch.zeros(14, 2, dtype=torch.bool)
    broken[2, 1] = True
    broken[7:, 0] = True
    assert torch.equal(out.isnan().all(-1), broken)
    assert torch.equal(out.isnan().any(-1), broken)


@needs_kernel
def test_same_bits_alone_in_a_batch_and_on_one_thread():
    lengths = (700, 33, 410)
    q, k, v = (packed(lengths, 2, 32, seed) for seed in range(3))
    together = run(instructions()[0], q, k, v, lengths, lengths, 0.2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(run(instructions()[0], q, k, v, lengths, lengths, 0.2), together)
    finally:
        torch.set_num_threads(threads)
    alone = [
        run(instructions()[0], *parts, (n,), (n,), 0.2)
        for n, parts in zip(lengths, zip(*(x.split(lengths) for x in (q, k, v)), strict=True), strict=True)
    ]
    assert torch.equal(torch.cat(alone), together)


@needs_kernel
def test_opcheck():
    q, k, v = (packed((5, 7), 2, 16, seed) for seed in range(3))
    norm, cu = torch.rand(2, 16), bounds((5, 7))
    opcheck(cpu_attention_op, (q, k, v, cu, cu, 0.25, norm, None, 1e-6, instructions()[0]))
    out, sums_HT = cpu_attention_op(q, k, v, cu, cu, 0.25, None, None, 1e-6, instructions()[0])
    backward = cpu_attention_backward_op
    opcheck(backward, (q, q, k, v, out, sums_HT, cu, cu, 0.25, instructions()[0]))


@needs_kernel
def test_gradients_through_norms_and_weights():
    """As a block calls it: autograd through varlen_attention with both norms, native against plain SDPA."""
    cu, names = bounds((9, 20)), ("native", "reference")
    results = {}
    for name in names:
        torch.manual_seed(0)
        leaves = [torch.randn(29, 2, 16, requires_grad=True) for _ in range(3)]
        norms = [[torch.rand(16, requires_grad=True) for _ in range(2)] for _ in range(2)]
        out = varlen_attention(*leaves, cu, cu, backend=name, q_norm=norms[0], k_norm=norms[1])
        out.square().sum().backward()
        results[name] = [x.grad for x in (*leaves, *norms[0], *norms[1])]
    for ours, theirs in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_kernel
def test_refusals():
    q, cu = torch.randn(4, 2, 16), bounds((4,))
    native = {"backend": "native"}
    with pytest.raises(CamaeError, match=r"takes float32 .*not torch\.float64 and 16"):
        varlen_attention(q.double(), q.double(), q.double(), cu, cu, **native)
    with pytest.raises(CamaeError, match=r"not torch\.float32 and 12"):
        varlen_attention(q[..., :12], q[..., :12], q[..., :12], cu, cu, **native)
    with pytest.raises(ValueError, match="bounds_q: must rise from 0 to the number of rows"):
        run(instructions()[0], q, q, q, (3,), (4,), 0.25)
    with pytest.raises(ValueError, match="no CPU kernel for 'sve'"):
        run("sve", q, q, q, (4,), (4,), 0.25)


@needs_kernel
def test_default_in_float32(monkeypatch):
    """The native kernel, in float32 also for 16-bit inputs; plain SDPA in float64 and other head dims."""
    used = []
    original = cpu.cpu_attention
    monkeypatch.setattr(cpu, "cpu_attention", lambda *a: used.append(1) or original(*a))
    q, cu = torch.randn(4, 2, 16), bounds((4,))
    varlen_attention(q[..., :8], q[..., :8], q[..., :8], cu, cu)
    varlen_attention(q.double(), q.double(), q.double(), cu, cu)
    assert not used
    ours = varlen_attention(q, q, q, cu, cu)
    assert used == [1]
    torch.testing.assert_close(ours, varlen_attention(q, q, q, cu, cu, backend="reference"))
    monkeypatch.setattr(_cpu, "has_tiles", lambda: False)
    low, exact = q.bfloat16().requires_grad_(), q.bfloat16().float().requires_grad_()
    found, expected = (varlen_attention(x, x, x, cu, cu) for x in (low, exact))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    found.sum().backward(), expected.sum().backward()
    # q, k and v are one leaf: three gradients, rounded alone and in their sum.
    torch.testing.assert_close(low.grad.float(), exact.grad, rtol=2**-6, atol=2**-6)
    with torch.autocast("cpu", torch.bfloat16):  # inputs that autocast would round are taken as they are
        assert torch.equal(varlen_attention(q, q, q, cu, cu), ours.bfloat16())
    assert len(used) == 4
    monkeypatch.setattr(_cpu, "has_tiles", lambda: True)  # AMX: SDPA in bfloat16, but for its backward pass
    varlen_attention(low, low, low, cu, cu)
    assert len(used) == 5
    with torch.no_grad():
        varlen_attention(low, low, low, cu, cu)
    assert len(used) == 5


def test_a_machine_without_it(monkeypatch):
    """No module, or another processor: said by name, nothing else is used instead."""
    monkeypatch.setattr(_cpu, "instructions", lambda: ())
    assert not next(b for b in backends() if b.name == "native").usable
    q, cu = torch.randn(4, 2, 16), bounds((4,))
    with pytest.raises(MissingBackendError, match="native"):
        varlen_attention(q, q, q, cu, cu, backend="native")
