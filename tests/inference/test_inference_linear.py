"""Linear layers for inference against fp64, and their refusals."""

import pytest
import torch

from camae.errors import CamaeError
from camae.inference.inference_linear import InferenceLinear


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_linear_layers_against_fp64(kind):
    generator = torch.Generator().manual_seed(1)
    x, weight, bias, other = (
        torch.randn(shape, generator=generator) for shape in ((70, 64), (48, 64), (48,), (70, 48))
    )
    layer = InferenceLinear(weight, bias, kind)
    exact = x.double() @ weight.double().T + bias.double()
    # A sum of 64 terms has norm 8 and reaches 30 among these. Inputs rounded to 2^-9 move it by 0.02 rms, four of
    # which are seen among 3,000, and its own rounding to bf16 by 0.06.
    limit = {"float32": 1e-5, "bfloat16": 0.2}[kind]
    assert (layer(x) - exact).abs().max() < limit
    assert (layer(x, gelu=True) - torch.nn.functional.gelu(exact)).abs().max() < limit
    added = layer(x, add_TF=other)
    assert added.dtype == torch.float32
    assert (added - (other + exact)).abs().max() < limit


def test_refusals():
    with pytest.raises(CamaeError, match="choose from float32, bfloat16"):
        InferenceLinear(torch.zeros(16, 16), None, "int4")
