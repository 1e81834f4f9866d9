"""The C++ block, every instruction set of this processor, against the same formulas in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from camae.errors import CamaeError, MissingBackendError
from camae.kernels import _cpu
from camae.kernels._cpu import instructions
from camae.kernels.transformer_block import block_tail_op, pack_weight, self_attention_op
from camae.kernels.transformer_block.reference import block_tail_reference
from camae.kernels.varlen_attention.reference import attention_formulas

pytestmark = pytest.mark.skipif(not instructions(), reason="no AVX2 here, or no native module")
every_set = pytest.mark.parametrize("instruction_set", instructions())
ROUNDING, EPS = 2.0**-24, 1e-6
# The quotient of two polynomials of six positive terms each in Horner's form, and what surrounds it; fit: 1.9e-8.
GELU_ROUNDINGS = 2 * 11 + 6


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bounds(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def assert_as_exact_as_torch(found, formula, *inputs):
    """No further from the formula in fp64 than four times what the formula in fp32 is.

    The kernels sum every product in one chain, torch in parts, at least 16 of them (its vectors): roundings add up as
    their root. Two roundings more where there are too few values for torch's largest error to mean much.
    """
    exact, plain = formula(*(x.double() for x in inputs)), formula(*inputs)
    assert found.shape == exact.shape
    if found.numel():
        limit = 4 * (plain - exact).abs().max() + 2 * ROUNDING * exact.abs().max()
        assert (found - exact).abs().max() <= limit


class Tail:
    """Random weights of what follows attention, and the op on them."""

    def __init__(self, D, hidden, parallel):
        self.parallel, self.norm = parallel, normal(2, D, seed=9)
        shapes = ((D, D), (hidden, D), (D, hidden))
        self.layers = [
            (normal(*shape, seed=i) / shape[1] ** 0.5, normal(shape[0], seed=10 + i))
            for i, shape in enumerate(shapes)
        ]

    def __call__(self, instruction_set, x, attended):
        packed = [(pack_weight(weight), bias) for weight, bias in self.layers]
        return block_tail_op(
            x,
            attended,
            *packed[0],
            self.parallel,
            self.norm,
            EPS,
            *packed[1],
            *packed[2],
            instruction_set,
        )

    def formula(self, x, attended):
        """The same in plain torch, in the dtype of x."""
        proj, *layers = [tuple(t.to(x.dtype) for t in layer) for layer in self.layers]
        norm = self.norm.to(x.dtype)
        return block_tail_reference(x, attended, proj, self.parallel, (norm[0], norm[1]), EPS, layers)


# Around the steps: six rows, bands of 24 to 96 rows, 64 columns; widths of presets and odd multiples of 16.
@every_set
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize(("D", "hidden"), [(16, 16), (48, 80), (64, 256), (192, 768)])
@pytest.mark.parametrize("T", [0, 1, 6, 23, 97, 400])
def test_tail_equals_the_formulas(instruction_set, parallel, D, hidden, T):
    tail, x, attended = Tail(D, hidden, parallel), normal(T, D, seed=20) * 3 + 1, normal(T, D, seed=21)
    assert_as_exact_as_torch(tail(instruction_set, x, attended), tail.formula, x, attended)


@every_set
def test_gelu_everywhere(instruction_set):
    """Unit weights and no norm leave y + gelu(y), with y the attended rows."""
    y = torch.cat([torch.linspace(-8, 8, 100_000), torch.tensor([-3e4, -100.0, 0.0, 100.0, 3e4])])
    y = F.pad(y, (0, -len(y) % 16)).view(-1, 16)
    unit = pack_weight(torch.eye(16))
    rest = (None, True, None, EPS, unit, None, unit, None, instruction_set)
    nothing = torch.zeros_like(y)
    found = block_tail_op(y, nothing, unit, *rest).double()
    exact = y.double() + F.gelu(y.double())
    limit = (GELU_ROUNDINGS * ROUNDING + 1.9e-8) * y.abs()
    assert ((found - exact).abs() <= limit).all()
    far = y < -5.6
    assert torch.equal(found[far], y[far].double())  # gelu is 0 there, not a rounding of y


def self_attention(instruction_set, x, norm, weight, bias, heads, lengths, head_norms=(None, None)):
    panels = [pack_weight(w) for w in weight.chunk(3)]
    scale = (x.shape[1] // heads) ** -0.5
    return self_attention_op(
        x, norm, EPS, panels, bias, heads, *head_norms, EPS, bounds(lengths), scale, instruction_set
    )


@every_set
@pytest.mark.parametrize("with_head_norms", [False, True])
@pytest.mark.parametrize(("heads", "d"), [(1, 16), (3, 16), (2, 48), (3, 64)])
@pytest.mark.parametrize("lengths", [(1,), (0,), (5, 0, 13), (193, 6, 192), (640,), (9, 1, 0, 300) * 3])
def test_self_attention_equals_the_formulas(instruction_set, with_head_norms, heads, d, lengths):
    T, D = sum(lengths), heads * d
    x, norm = normal(T, D) * 2 + 1, normal(2, D, seed=1)
    weight, bias = normal(3 * D, D, seed=2) / D**0.5, normal(3 * D, seed=3)
    head_norms = [torch.rand(2, d, generator=torch.Generator().manual_seed(i)) for i in (4, 5)]
    head_norms = head_norms if with_head_norms else [None, None]
    found = self_attention(instruction_set, x, norm, weight, bias, heads, lengths, head_norms)

    def normed(x, norm):
        return x if norm is None else F.layer_norm(x, x.shape[-1:], *norm.to(x.dtype), EPS)

    def formula(x, norm, weight, bias):
        qkv = F.linear(normed(x, norm), weight, bias).unflatten(1, (3, heads, d))
        q, k, v = normed(qkv[:, 0], head_norms[0]), normed(qkv[:, 1], head_norms[1]), qkv[:, 2]
        return attention_formulas(q, k, v, bounds(lengths), bounds(lengths), d**-0.5)[0].flatten(1)

    assert_as_exact_as_torch(found, formula, x, norm, weight, bias)


def test_same_bits_alone_in_a_batch_and_on_one_thread():
    lengths, D, heads = (200, 33, 411), 48, 3
    x, norm, weight = normal(sum(lengths), D), normal(2, D, seed=1), normal(3 * D, D, seed=2)
    tail, best = Tail(D, 64, False), instructions()[0]

    def block(x, lengths):
        attended = self_attention(best, x, norm, weight, None, heads, lengths)
        return tail(best, x, attended)

    together = block(x, lengths)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(block(x, lengths), together)
    finally:
        torch.set_num_threads(threads)
    alone = [block(part, (len(part),)) for part in x.split(lengths)]
    assert torch.equal(torch.cat(alone), together)


def test_nan_stays_in_its_sequence():
    lengths, D = (7, 9), 32
    x, norm, weight = normal(16, D), normal(2, D, seed=1), normal(3 * D, D, seed=2)
    x[3, 5] = torch.nan
    best = instructions()[0]
    attended = self_attention(best, x, norm, weight, None, 2, lengths)
    assert attended[:7].isnan().all()
    assert not attended[7:].isnan().any()
    out = Tail(D, 32, True)(best, x, normal(16, D, seed=3))
    assert torch.equal(out.isnan().all(1), torch.arange(16) == 3)
    assert torch.equal(out.isnan().any(1), torch.arange(16) == 3)


def test_packed_weights():
    """Outputs in panels of 64, term after term, zeros after the last."""
    weight = normal(80, 32)
    panels = pack_weight(weight)
    assert panels.shape == (2, 32, 64)
    assert torch.equal(panels.transpose(1, 2).reshape(128, 32)[:80], weight)
    assert not panels[1, :, 16:].any()


def test_opcheck():
    x, norm = normal(10, 32), normal(2, 32, seed=1)
    panels, best = [pack_weight(normal(32, 32, seed=i)) for i in range(5)], instructions()[0]
    attention = (x, norm, EPS, panels[:3], None, 2, None, None, EPS, bounds((4, 6)), 0.25, best)
    opcheck(self_attention_op, attention)
    tail = (x, x, panels[3], None, True, norm, EPS, panels[4], None, panels[0], norm[1], best)
    opcheck(block_tail_op, tail)


def test_refusals(monkeypatch):
    x, norm, best = normal(10, 32), normal(2, 32), instructions()[0]
    panels = [pack_weight(normal(32, 32))] * 3
    with pytest.raises(CamaeError, match=r"needs widths that 16 divides, not \(24, 32\)"):
        pack_weight(normal(24, 32))
    with pytest.raises(ValueError, match="bounds: must rise from 0 to the number of rows"):
        self_attention_op(x, norm, EPS, panels, None, 2, None, None, EPS, bounds((3,)), 1.0, best)
    with pytest.raises(ValueError, match="x: \\(T, D\\), D the heads times a multiple of 16"):
        self_attention_op(x, norm, EPS, panels, None, 4, None, None, EPS, bounds((10,)), 1.0, best)
    tall = pack_weight(normal(80, 32))
    with pytest.raises(ValueError, match="first layer of the MLP: a weight packed for these widths"):
        block_tail_op(x, x, panels[0], None, True, norm, EPS, tall, None, panels[0], None, best)
    with pytest.raises(ValueError, match="proj: a bias as wide as the layer"):
        block_tail_op(x, x, panels[0], normal(16), True, norm, EPS, panels[0], None, panels[0], None, best)
    monkeypatch.setattr(_cpu, "instructions", lambda: ())
    with pytest.raises(MissingBackendError, match="block back-end 'native'"):
        pack_weight(normal(32, 32))
