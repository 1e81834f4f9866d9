"""Linear layers for inference against fp64, and their refusals."""

import pytest
import torch

from camae.errors import CamaeError
from camae.inference.inference_linear import InferenceLinear, to_fp8


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
    layer = InferenceLinear(weight, bias, kind)
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


def test_refusals():
    with pytest.raises(CamaeError, match="fp8 layers need widths that 16 divides"):
        InferenceLinear(torch.zeros(24, 16), None, "fp8")
    with pytest.raises(CamaeError, match="choose from float32, bfloat16, fp8"):
        InferenceLinear(torch.zeros(16, 16), None, "int4")
