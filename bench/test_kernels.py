"""The ops beside eager torch and torch's own attention. Floors: bench/FLOORS.md; targets there are for a GPU.

By default small sizes on the CPU; --full, and any run on CUDA, takes the table's sizes. On a CPU "ours" is the plain
torch form that a CPU user gets, with the native attention beside it; on CUDA it is the kernels, and the plain form is
one of the competitors.
"""

from __future__ import annotations

from functools import partial

import floors
import pytest
import torch
import torch.nn.functional as F
from rows import close

from camae.kernels.lion import Lion, lion_reference
from camae.kernels.reconstruction_loss import reconstruction_loss
from camae.kernels.tokenize import plane_statistics, tokenize
from camae.kernels.varlen_attention import backends, varlen_attention


class Batch:
    """Random planes, a random mask and the parameters of a tokenizer, on one device."""

    def __init__(
        self, shape: floors.Shape, samples: int, stored: torch.dtype, device: str, working: torch.dtype
    ):
        g = torch.Generator().manual_seed(0)
        K, side, P, D = samples * shape.channels, shape.crop, shape.patch, shape.width
        self.shape, self.samples, self.eps = shape, samples, 1e-3
        top = 255 if stored == torch.uint8 else 65535
        self.planes_KHW = torch.randint(0, top, (K, side, side), generator=g, dtype=torch.int32).to(stored)
        self.sample_K = torch.arange(samples).repeat_interleave(shape.channels)
        N = (side // P) ** 2
        noise = torch.rand(samples, shape.patches, generator=g)
        kept = noise.argsort(1)[:, : shape.tokens - 1].sort(1).values
        self.keep = (kept + torch.arange(samples)[:, None] * shape.patches).flatten()
        visible = torch.zeros(K * N, dtype=torch.bool)
        visible[self.keep] = True
        masked = (~visible).nonzero().squeeze(1)
        self.plane_M, self.patch_M = masked // N, masked % N
        self.parameters = [torch.randn(s, generator=g) * 0.1 for s in ((D, P * P), (D,), (N, D), (D,))]
        self.pred_MP2 = torch.randn(len(masked), P * P, generator=g)
        for name in ("planes_KHW", "sample_K", "keep", "plane_M", "patch_M"):
            setattr(self, name, getattr(self, name).to(device))
        self.parameters = [p.to(device, working) for p in self.parameters]
        self.pred_MP2 = self.pred_MP2.to(device, working)

    def standardized(self) -> torch.Tensor:
        """What one writes by hand: the whole image in fp32."""
        x = self.planes_KHW.float()
        mean, var = x.mean((1, 2), keepdim=True), x.var((1, 2), correction=0, keepdim=True)
        return (x - mean) / (var + self.eps**2).sqrt()

    def patches(self) -> torch.Tensor:
        """All patches of all planes, (K*N, P*P), fp32."""
        P = self.shape.patch
        return F.unfold(self.standardized()[:, None], P, stride=P).transpose(1, 2).flatten(0, 1)

    def eager_tokens(self) -> torch.Tensor:
        """Standardize, convolve every patch, then drop the masked ones (uniform samples)."""
        weight, bias, pos, cls = self.parameters
        P = self.shape.patch
        x = self.standardized().to(weight.dtype)[:, None]
        every = F.conv2d(x, weight.view(-1, 1, P, P), bias, stride=P).flatten(2).transpose(1, 2) + pos
        kept = every.flatten(0, 1)[self.keep].unflatten(0, (self.samples, -1))
        return torch.cat([cls.expand(self.samples, 1, -1), kept], 1).flatten(0, 1)

    def eager_loss(self, pred: torch.Tensor) -> torch.Tensor:
        """Targets of all patches, complex transforms of both, autograd."""
        P, alpha = self.shape.patch, 0.01
        N = (self.shape.crop // P) ** 2
        target = self.patches()[self.plane_M * N + self.patch_M]
        guess = pred.float()
        spectra = (torch.fft.fft2(x.unflatten(1, (P, P))).abs() for x in (guess, target))
        a, b = spectra
        return (1 - alpha) * F.mse_loss(guess, target) + alpha * F.l1_loss(a, b)

    def ours_tokens(self, backend: str) -> torch.Tensor:
        return tokenize(
            self.planes_KHW,
            self.sample_K,
            self.keep,
            *self.parameters,
            eps=self.eps,
            n_samples=self.samples,
            backend=backend,
        )

    def gradient(self, loss) -> torch.Tensor:
        pred = self.pred_MP2.detach().requires_grad_()
        loss(pred).backward()
        return pred.grad

    def ours_gradient(self, backend: str) -> torch.Tensor:
        return self.gradient(
            lambda pred: reconstruction_loss(
                pred, self.planes_KHW, self.plane_M, self.patch_M, 0.01, eps=self.eps, backend=backend
            )
        )


@pytest.fixture
def setting(recorder):
    """(device, back-end that is ours, working dtype, crops of a full batch)."""
    if recorder.device == "cuda":
        return "cuda", "triton", torch.bfloat16, 256
    return "cpu", "reference", torch.float32, 16


SHAPES = {"L/16 85 %": floors.TRAINING[2], "L/8 75 %": floors.TRAINING[3]}


@pytest.fixture
def batch(recorder, setting):
    """A factory of batches: the named shape at full size, a quarter of the width and side otherwise."""
    device, _, working, samples = setting

    def make(name, stored):
        s = SHAPES[name]
        if not recorder.full:
            s = floors.Shape(s.name, s.width // 4, s.depth, s.patch, s.mask_ratio, s.channels, 128)
            samples_now = 4
        else:
            samples_now = samples if s.patch == 16 or device == "cpu" else samples // 4
        return Batch(s, samples_now, stored, device, working)

    return make


@pytest.mark.parametrize("stored", [torch.uint8, torch.uint16], ids=["uint8", "uint16"])
@pytest.mark.parametrize("name", SHAPES)
def test_tokenize(recorder, setting, batch, benchmark, name, stored):
    device, backend, working, _ = setting
    b = batch(name, stored)
    # bf16 rounds weights, pixels and tokens at 2^-9; fp32 loses the sums of 256 products.
    tolerance = 1e-2 if working == torch.bfloat16 else 1e-5
    pixel = 1 if stored == torch.uint8 else 2
    per_crop = floors.statistics_bytes(b.shape, pixel) + floors.tokenize_bytes(
        b.shape, pixel, b.parameters[0].element_size()
    )
    competitors = {"eager torch": b.eager_tokens}
    if device == "cuda":
        competitors["reference"] = lambda: b.ours_tokens("reference")
    with torch.no_grad():
        recorder.row(
            "tokenize",
            f"statistics + tokens, {name}, {str(stored).removeprefix('torch.')}",
            shape=(b.samples, b.shape.channels, b.shape.crop, b.shape.crop, b.shape.width),
            dtype=str(working).removeprefix("torch."),
            ours={backend: lambda: b.ours_tokens(backend)},
            competitors=competitors,
            check=lambda: close(b.ours_tokens(backend), b.eager_tokens(), tolerance),
            size_bytes=b.samples * per_crop,
            flops=b.samples * floors.tokenizer_flops(b.shape.tokens, b.shape.patch, b.shape.width),
            target="65 % of the byte floor, 12x eager torch",
            benchmark=benchmark,
        )


def test_statistics(recorder, setting, batch, benchmark):
    _, backend, _, _ = setting
    b = batch("L/16 85 %", torch.uint8)

    def eager():
        x = b.planes_KHW.float()
        return x.mean((1, 2)), x.var((1, 2), correction=0)

    def check():
        for a, e in zip(plane_statistics(b.planes_KHW, backend=backend), eager(), strict=True):
            close(a, e, 1e-5)

    recorder.row(
        "plane_statistics",
        "uint8",
        shape=tuple(b.planes_KHW.shape),
        dtype="uint8",
        ours={backend: lambda: plane_statistics(b.planes_KHW, backend=backend)},
        competitors={"eager torch": eager},
        check=check,
        size_bytes=b.samples * floors.statistics_bytes(b.shape),
        flops=0,
        benchmark=benchmark,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_reconstruction_loss(recorder, setting, batch, benchmark, name):
    device, backend, working, _ = setting
    b = batch(name, torch.uint8)
    competitors = {"eager torch": lambda: b.gradient(b.eager_loss)}
    if device == "cuda":
        competitors["reference"] = lambda: b.ours_gradient("reference")
    value = b.pred_MP2.element_size()
    masked = len(b.pred_MP2) / b.samples
    recorder.row(
        "reconstruction_loss",
        f"forward + gradient, {name}, uint8",
        shape=tuple(b.pred_MP2.shape),
        dtype=str(working).removeprefix("torch."),
        ours={backend: lambda: b.ours_gradient(backend)},
        competitors=competitors,
        check=lambda: close(b.ours_gradient(backend), b.gradient(b.eager_loss), 5e-3),
        size_bytes=b.samples * masked * b.shape.patch**2 * (2 * value + 1),
        flops=b.samples * masked * 3 * floors.transform_flops(b.shape.patch),
        target="50 % of max(bytes, transforms), 15x eager torch",
        benchmark=benchmark,
    )


# (name, lengths of the queries, of the keys, heads, head dim, small factor)
ATTENTION = {
    "encoder L/8, T = 6145": ((6145,) * 4, None, 16, 64),
    "encoder L/8 masked, T = 1537": ((1537,) * 16, None, 16, 64),
    "encoder L/16 masked, T = 231": ((231,) * 128, None, 16, 64),
    "decoder within a channel, T = 256": ((256,) * 192, None, 16, 32),
    "decoder cross, 1536 x 1536": ((1536,) * 16, None, 8, 64),
    "decoder cross, visible context, 1536 x 384": ((1536,) * 16, (384,) * 16, 8, 32),
    "ragged, 1 to 11 channels": (tuple(256 * c + 1 for c in (1, 3, 5, 6, 11, 6, 5, 3)) * 2, None, 6, 64),
}


def packed_attention(case, device, working, small):
    lengths_q, lengths_k, heads, d = ATTENTION[case]
    lengths_k = lengths_k or lengths_q
    if small:
        lengths_q, lengths_k = (tuple(n // 16 + 1 for n in x[:8]) for x in (lengths_q, lengths_k))
    g = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(sum(n), heads, d, generator=g).to(device, working).requires_grad_()
        for n in (lengths_q, lengths_k, lengths_k)
    ]
    bounds = [torch.tensor([0, *n]).cumsum(0).to(torch.int32).to(device) for n in (lengths_q, lengths_k)]
    return inputs, bounds, lengths_q, lengths_k


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", ATTENTION)
def test_varlen_attention(recorder, setting, benchmark, case, backward):
    device, backend, working, _ = setting
    (q, k, v), (cu_q, cu_k), lengths_q, lengths_k = packed_attention(case, device, working, not recorder.full)
    lengths = {"lengths_q": lengths_q, "lengths_k": lengths_k}

    def by(name):
        return varlen_attention(q, k, v, cu_q, cu_k, backend=name, **lengths)

    def one_by_one():
        """SDPA in a loop over the samples: what one writes without a packed op."""
        parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
        outs = [F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in p)) for p in parts]
        return torch.cat([o[0].transpose(0, 1) for o in outs])

    slope = torch.randn_like(q)

    def timed(forward):
        if not backward:

            def run():
                with torch.no_grad():
                    return forward()

            return run
        out = forward()
        return lambda: torch.autograd.grad(out, (q, k, v), slope, retain_graph=True)

    usable = [b.name for b in backends(device) if b.usable and b.name != backend]
    ours = [backend, *(name for name in ("native", "triton_atomic") if name in usable)]
    others = [name for name in usable if name not in ours]
    shape, pairs = q.shape[1:], list(zip(lengths_q, lengths_k, strict=True))
    flops = sum(floors.attention_flops(n, m, *shape, backward) for n, m in pairs)
    # bf16: outputs of order 1/sqrt(T) rounded at 2^-9, probabilities too.
    tolerance = 2e-2 if working == torch.bfloat16 else 1e-4

    def check():
        theirs = timed(one_by_one)()
        for name in ours:
            result = timed(partial(by, name))()
            pairs = zip(result, theirs, strict=True) if backward else [(result, theirs)]
            for a, e in pairs:
                close(a, e, tolerance)

    recorder.row(
        "varlen_attention",
        f"{'backward' if backward else 'forward'}, {case}",
        shape=(len(lengths_q), sum(lengths_q), sum(lengths_k), q.shape[1], q.shape[2]),
        dtype=str(working).removeprefix("torch."),
        ours={name: timed(partial(by, name)) for name in ours},
        competitors={
            "SDPA sample by sample": timed(one_by_one),
            **{name: timed(partial(by, name)) for name in others},
        },
        check=check,
        size_bytes=(2 if not backward else 5) * (q.numel() + k.numel()) * q.element_size(),
        flops=flops,
        target="1.1x torch's FlashAttention-2" if backward else "1.2x torch's FlashAttention-2",
        benchmark=benchmark,
    )


def test_lion(recorder, setting, benchmark):
    """All parameters of a ViT (a fortieth of a B by default) against a loop over tensors."""
    device, backend, _, _ = setting
    width, depth = (768, 12) if recorder.full else (128, 12)
    sizes = [
        s for _ in range(depth) for s in ((7 * width, width), (width, width), (width, 4 * width), (width,))
    ]

    def parameters():
        g = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=g).to(device)) for s in sizes]
        for p in params:
            p.grad = torch.randn(p.shape, generator=g).to(device)
        return params

    fused_params, plain_params = parameters(), parameters()
    fused = Lion(fused_params, lr=1e-4, weight_decay=0.05, backend=backend)
    momenta = [torch.zeros_like(p) for p in plain_params]

    @torch.no_grad()
    def loop():
        for p, m in zip(plain_params, momenta, strict=True):
            lion_reference(p, p.grad, m, lr=1e-4, beta1=0.9, beta2=0.95, weight_decay=0.05)

    def check():
        fused.step()
        loop()
        for p, e in zip(fused_params, plain_params, strict=True):
            close(p.detach(), e.detach(), 1e-6)

    count = sum(p.numel() for p in fused_params)
    recorder.row(
        "lion",
        "fp32, no clipping",
        shape=(count,),
        dtype="float32",
        ours={backend: fused.step},
        competitors={"loop over tensors": loop},
        check=check,
        size_bytes=floors.lion_bytes(count),
        flops=0,
        target="20 bytes per parameter",
        benchmark=benchmark,
    )
