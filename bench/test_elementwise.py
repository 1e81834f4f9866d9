"""Elementwise ops of a block beside eager torch and torch.compile of the same formulas.

On a CPU "ours" is the plain torch form that a CPU user gets, and torch.compile (Inductor's C++) joins with --full; on
CUDA ours are the kernels, and eager torch and torch.compile are the competitors. Floors: bench/FLOORS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import floors
import pytest
import torch
import torch.nn.functional as F
from rows import close

from camae.kernels.gelu_split import gelu_split, gelu_split_reference
from camae.kernels.residual_norm import residual_norm, residual_norm_reference
from camae.kernels.varlen_attention import varlen_attention

SHAPES = {"L/16 85 %": (floors.TRAINING[2], 256), "L/8 75 %": (floors.TRAINING[3], 64)}
DIRECTIONS = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])


class Setting:
    """Device, our back-end, dtypes of stream and products, and the size of a case."""

    def __init__(self, recorder: Any):
        self.recorder, self.device = recorder, recorder.device
        cuda = self.device == "cuda"
        self.backend = "triton" if cuda else "reference"
        self.working = torch.bfloat16 if cuda else torch.float32
        # bf16 rounds each output at 2^-9, sums of many of them less; fp32 at 6e-8.
        self.tolerance = 2e-2 if cuda else 1e-5

    def size(self, name: str) -> tuple[int, int, int]:
        """(tokens, samples, width) of the named case: full, an eighth of the crops on a CPU, or small."""
        shape, crops = SHAPES[name]
        if self.device == "cpu":
            crops = crops // 32 if self.recorder.full else 2
        width = shape.width if self.recorder.full else shape.width // 4
        return shape.tokens * crops, crops, width

    def autocast(self) -> AbstractContextManager:
        """As in training: bf16 products on CUDA."""
        return torch.autocast("cuda", torch.bfloat16) if self.device == "cuda" else nullcontext()

    def normal(self, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Random values that want a gradient."""
        return torch.randn(size, device=self.device).to(dtype).requires_grad_()

    def row(
        self,
        op: str,
        case: str,
        inputs: Sequence[torch.Tensor],
        ours: Callable[..., Sequence[torch.Tensor]],
        plain: Callable[..., Sequence[torch.Tensor]],
        backward: bool,
        size_bytes: float,
        flops: float = 0.0,
        benchmark: Any = None,
        by_hand: Callable[..., Sequence[torch.Tensor]] | None = None,
    ) -> None:
        """One row: `ours` against `plain` eager and compiled, all functions of `inputs`."""
        forms = {} if self.backend == "reference" else {"eager torch": plain}
        if self.device == "cuda" or self.recorder.full:
            # Every formula is a closure of the same code, of which torch compiles eight and runs the rest eagerly.
            torch._dynamo.reset()
            forms["torch.compile"] = torch.compile(plain, dynamic=False)
        if by_hand is not None:
            forms["step by step"] = by_hand
        slopes: list[torch.Tensor] = []

        def timed(form: Callable[..., Sequence[torch.Tensor]]) -> Callable[[], Any]:
            if not backward:

                def run() -> Any:
                    with torch.no_grad(), self.autocast():
                        return form(*inputs)

                return run
            with self.autocast():
                outputs = form(*inputs)
            if not slopes:
                slopes.extend(torch.randn_like(o) for o in outputs)
            mine = [s.to(o.dtype) for s, o in zip(slopes, outputs, strict=True)]
            return lambda: torch.autograd.grad(outputs, inputs, mine, retain_graph=True)

        runs = {name: timed(form) for name, form in ({self.backend: ours} | forms).items()}

        def check() -> None:
            truth = timed(plain)()
            for run in runs.values():
                for a, e in zip(run(), truth, strict=True):
                    close(a, e, self.tolerance)

        self.recorder.row(
            op,
            case,
            shape=tuple(inputs[0].shape),
            dtype=str(self.working).removeprefix("torch."),
            ours={self.backend: runs.pop(self.backend)},
            competitors=runs,
            check=check,
            size_bytes=size_bytes,
            flops=flops,
            target="as fast as torch.compile, or it is torch.compile's place",
            benchmark=benchmark,
        )


@pytest.fixture
def setting(recorder):
    torch.manual_seed(0)
    return Setting(recorder)


@DIRECTIONS
@pytest.mark.parametrize("kind", ["norm", "residual", "residual + norm"])
@pytest.mark.parametrize("name", SHAPES)
def test_residual_norm(setting, benchmark, name, kind, backward):
    tokens, samples, width = setting.size(name)
    working, eps = setting.working, 1e-6
    residual, norm = "residual" in kind, "norm" in kind
    factor = torch.full((samples,), 1.25, device=setting.device)
    segment = torch.arange(samples, device=setting.device).repeat_interleave(tokens // samples)
    inputs = [setting.normal(tokens, width)]
    inputs += [setting.normal(tokens, width, dtype=working), setting.normal(width)] if residual else []
    inputs += [setting.normal(width), setting.normal(width)] if norm else []

    def arguments(x, *rest):
        update, gamma = rest[:2] if residual else (None, None)
        weight, bias = rest[-2:] if norm else (None, None)
        return x, update, gamma, *((factor, segment) if residual else (None, None)), weight, bias

    def outputs(y, normed):
        return [o for o in (y if residual else None, normed) if o is not None]

    def ours(*values):
        return outputs(*residual_norm(*arguments(*values), eps=eps, backend=setting.backend))

    def plain(*values):
        y, normed = residual_norm_reference(*arguments(*values), eps)
        return outputs(y, None if normed is None else normed.to(working))

    def by_hand(*values):
        """Mean, spread and the rest as separate operations."""
        x, update, gamma, factors, segments, weight, bias = arguments(*values)
        y = x if update is None else x + gamma * update * factors[segments, None]
        if weight is None:
            return outputs(y, None)
        centered = y - y.mean(1, keepdim=True)
        spread = ((centered**2).mean(1, keepdim=True) + eps).sqrt()
        return outputs(y, (centered / spread * weight + bias).to(working))

    direction = "backward" if backward else "forward"
    sizes = floors.elementwise_bytes(tokens, width, 4, working.itemsize)
    setting.row(
        "residual_norm",
        f"{kind}, {direction}, {name}",
        inputs,
        ours,
        plain,
        backward,
        sizes[f"{kind}, {direction}"],
        benchmark=benchmark,
        by_hand=by_hand,
    )


@DIRECTIONS
@pytest.mark.parametrize("name", SHAPES)
def test_gelu_split(setting, benchmark, name, backward):
    tokens, _, width = setting.size(name)
    widths = (4 * width, width, width, width)
    inputs = [setting.normal(tokens, 7 * width, dtype=setting.working), setting.normal(4 * width)]

    def ours(fused, bias):
        return gelu_split(fused, bias, widths, backend=setting.backend)

    def plain(fused, bias):
        act, *rest = gelu_split_reference(fused, bias, widths)
        return act.to(setting.working), *rest

    def by_hand(fused, bias):
        """GELU by the error function; the other columns copied, as a projection of their own would leave them."""
        x = fused[:, : 4 * width] + bias
        act = 0.5 * x * (1 + torch.erf(x * 0.5**0.5))
        return act.to(setting.working), *(c.contiguous() for c in fused[:, 4 * width :].chunk(3, 1))

    direction = "backward" if backward else "forward"
    sizes = floors.elementwise_bytes(tokens, width, 4, setting.working.itemsize)
    setting.row(
        "gelu_split",
        f"bias + GELU + split, {direction}, {name}",
        inputs,
        ours,
        plain,
        backward,
        sizes[f"gelu, {direction}"],
        benchmark=benchmark,
        by_hand=by_hand,
    )


@DIRECTIONS
def test_normed_attention(setting, benchmark, backward):
    """LayerNorm of q and k inside attention against norms before the same back-end's attention."""
    length, heads, d = (1537, 16, 64) if setting.recorder.full else (97, 4, 64)
    samples = 16 if setting.device == "cuda" else 2
    cu = torch.arange(0, (samples + 1) * length, length, dtype=torch.int32, device=setting.device)
    lengths = (length,) * samples
    inputs = [setting.normal(samples * length, heads, d, dtype=setting.working) for _ in range(3)]
    inputs += [setting.normal(d) for _ in range(4)]
    options = {"lengths_q": lengths, "lengths_k": lengths, "backend": setting.backend}

    def ours(q, k, v, *norms):
        return (varlen_attention(q, k, v, cu, cu, q_norm=norms[:2], k_norm=norms[2:], **options),)

    def plain(q, k, v, *norms):
        q, k = (
            F.layer_norm(x, (d,), *n, eps=1e-6).to(setting.working)
            for x, n in ((q, norms[:2]), (k, norms[2:]))
        )
        return (varlen_attention(q, k, v, cu, cu, **options),)

    flops = samples * floors.attention_flops(length, length, heads, d, backward)
    size_bytes = (2 if not backward else 5) * 2 * inputs[0].numel() * inputs[0].element_size()
    forms = {"eager torch": plain} if setting.backend == "reference" else {}
    by_hand = forms.get("eager torch")
    setting.row(
        "normed_attention",
        f"q/k norm, {'backward' if backward else 'forward'}, T = {length}",
        inputs[:3],
        lambda *x: ours(*x, *inputs[3:]),
        lambda *x: plain(*x, *inputs[3:]),
        backward,
        size_bytes,
        flops,
        benchmark=benchmark,
        by_hand=None if by_hand is None else lambda *x: by_hand(*x, *inputs[3:]),
    )
