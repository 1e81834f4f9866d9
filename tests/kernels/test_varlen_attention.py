"""varlen_attention in plain torch against softmax written out in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camae.errors import CamaeError, MissingBackendError
from camae.kernels.varlen_attention import backends, lengths_of, varlen_attention
from camae.kernels.varlen_attention.reference import attention_formulas


def packed(lengths, heads, d, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), heads, d, generator=g, dtype=torch.float64).to(dtype)


def bounds(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def independent(q, k, v, lengths_q, lengths_k, scale):
    """Row by row: softmax of the scores, weighted mean of the values; zeros without keys."""
    out = torch.zeros_like(q)
    t = s = 0
    for n, m in zip(lengths_q, lengths_k, strict=True):
        for i in range(t, t + n):
            for h in range(q.shape[1]):
                if m:
                    scores = (k[s : s + m, h] @ q[i, h]) * scale
                    p = torch.exp(scores - scores.max())
                    out[i, h] = (p / p.sum()) @ v[s : s + m, h]
        t, s = t + n, s + m
    return out


SHAPES = [
    ((4, 4, 4), (4, 4, 4)),
    ((5, 1, 5, 3), (5, 1, 5, 3)),
    ((4, 4), (9, 9)),
    ((3, 0, 7, 2), (2, 5, 0, 6)),
    ((0, 0), (0, 0)),
    ((), ()),
    ((2, 3), (0, 0)),
]


@pytest.mark.parametrize(("lengths_q", "lengths_k"), SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_definition(lengths_q, lengths_k, scale):
    q, k, v = packed(lengths_q, 2, 8), packed(lengths_k, 2, 8, seed=1), packed(lengths_k, 2, 8, seed=2)
    out = varlen_attention(q, k, v, bounds(lengths_q), bounds(lengths_k), scale=scale)
    truth = independent(q, k, v, lengths_q, lengths_k, scale or 1 / math.sqrt(8))
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6), st.integers(0, 99))
def test_formulas_and_grouping_agree(pairs, seed):
    """The sequence-by-sequence formulas (what the kernels are compared with) and the grouped SDPA."""
    lengths_q, lengths_k = [p[0] for p in pairs], [p[1] for p in pairs]
    q, k, v = (packed(n, 2, 4, seed=seed + i) for i, n in enumerate((lengths_q, lengths_k, lengths_k)))
    cu_q, cu_k = bounds(lengths_q), bounds(lengths_k)
    out, lse = attention_formulas(q, k, v, cu_q, cu_k, 0.5)
    torch.testing.assert_close(out, varlen_attention(q, k, v, cu_q, cu_k, scale=0.5), rtol=1e-12, atol=1e-13)
    assert lse.shape == (2, sum(lengths_q))
    assert lengths_of(cu_q) == tuple(lengths_q)


def test_gradients():
    lengths_q, lengths_k = (3, 0, 2, 3), (4, 2, 0, 4)
    inputs = [packed(n, 2, 4, seed=i) for i, n in enumerate((lengths_q, lengths_k, lengths_k))]
    cu_q, cu_k = bounds(lengths_q), bounds(lengths_k)
    assert torch.autograd.gradcheck(
        lambda q, k, v: varlen_attention(q, k, v, cu_q, cu_k), [x.requires_grad_() for x in inputs]
    )


def test_sequences_do_not_see_each_other():
    q = packed((5, 6), 1, 8)
    cu = bounds((5, 6))
    before = varlen_attention(q, q, q, cu, cu)
    changed = q.clone()
    changed[5:] = 100.0
    after = varlen_attention(changed, changed, changed, cu, cu)
    assert torch.equal(before[:5], after[:5])


def test_bf16_follows_torch_in_bf16():
    """Self-calibrated: no further from fp64 than twice what SDPA in bf16 is, plus one bf16 rounding of 1."""
    lengths = (40, 25)
    q, k, v = (packed(lengths, 2, 16, seed=i) for i in range(3))
    truth = varlen_attention(q, k, v, bounds(lengths), bounds(lengths))
    low = varlen_attention(*(x.bfloat16() for x in (q, k, v)), bounds(lengths), bounds(lengths)).double()
    dense = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(
                *(x[rows].bfloat16().transpose(0, 1) for x in (q, k, v))
            ).transpose(0, 1)
            for rows in (slice(0, 40), slice(40, 65))
        ]
    ).double()
    assert (low - truth).abs().max() <= 2 * (dense - truth).abs().max() + 2**-9


def test_query_and_key_norm():
    q = packed((6, 3), 2, 8)
    cu = bounds((6, 3))
    norms = [(torch.rand(8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)) for _ in range(2)]
    fused = varlen_attention(q, q, q, cu, cu, q_norm=norms[0], k_norm=norms[1])

    def norm(x, weight, bias):
        centered = x - x.mean(-1, keepdim=True)
        return centered / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt() * weight + bias

    plain = varlen_attention(norm(q, *norms[0]), norm(q, *norms[1]), q, cu, cu)
    torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)


def test_missing_backends_are_named():
    q = packed((3,), 1, 16, torch.float32)
    cu = bounds((3,))
    for backend in backends("cpu"):
        if not backend.usable:
            with pytest.raises(MissingBackendError, match=backend.name):
                varlen_attention(q, q, q, cu, cu, backend=backend.name)
    with pytest.raises(CamaeError, match="it has triton, triton_atomic, torch_varlen"):
        varlen_attention(q, q, q, cu, cu, backend="xformers")


def test_shapes_must_fit():
    q = packed((3,), 1, 16)
    with pytest.raises(CamaeError, match="attention needs q"):
        varlen_attention(q, q[:, :, :8], q[:, :, :8], bounds((3,)), bounds((3,)))
    with pytest.raises(CamaeError, match="must both be"):
        varlen_attention(q, q, q, bounds((3,)), bounds((1, 2)))
