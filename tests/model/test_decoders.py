"""Decoders: the exact rewrites against the plain form, parts of the masked patches, recomputed activations."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from camae.errors import CamaeError
from camae.model import CAMAE, Backends, preset
from camae.model.config import DECODERS
from camae.model.flops import model_flops, peak_flops
from camae.model.token_layout import Part, masked_layout

NAMES = ["DNA", "ER", "RNA", "AGP", "Mito", "Brightfield"]
CROSS = {"depth": 0, "cross_depth": 2, "context": "visible", "cross_residual": True}


def attention(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)
    return (weights @ v).transpose(0, 1).flatten(1)


def plain_decoder(model, tokens_TD, kept_V, names):
    """One sample as the released form reads: every channel for itself, from tokens and mask tokens (fp64)."""
    g, d = model.decoder, model.config.decoder
    N, channels = model.config.n_patches, [g.channels.index(n) for n in names]
    x = g.mask_token_D.repeat(len(names) * N, 1)
    x[kept_V] = g.project(tokens_TD[1:])
    x = x + (g.channel_tokens_CD[channels][:, None] + g.positions_ND).flatten(0, 1)
    context = x[kept_V] if d.context == "visible" else x
    pixels = []
    for i, c in enumerate(channels):
        y = x[i * N : (i + 1) * N]
        own = [g.cross[c]] if d.cross_attention == "per_channel" else g.cross
        for cross in own:
            k, v = cross.kv(cross.context_norm(context)).chunk(2, -1)  # again for every channel
            z = cross.proj(attention(cross.q(cross.query_norm(y)), k, v, cross.heads))
            z = z + y if d.cross_residual else z
            y = z + cross.fc2(F.gelu(cross.fc1(cross.out_norm(z))))
        for block in g.stacks[c]:
            q, k, v = block.qkv(block.norm1(y)).chunk(3, -1)
            y = y + block.proj(attention(q, k, v, block.heads))
            y = y + block.fc2(F.gelu(block.fc1(block.norm2(y))))
        pixels.append(g.heads[c if len(g.heads) > 1 else 0](y))
    return torch.cat(pixels)


@pytest.mark.parametrize(
    "decoder",
    [
        {},  # the released form
        {"context": "visible", "cross_residual": True, "local_start": True, "cross_heads": 2},
        {"cross_attention": "per_channel"},
        {"cross_attention": "none"},
        CROSS,
        CROSS | {"context": "all"},
    ],
)
def test_rewrites_are_exact(tiny, image, decoder):
    """Values and gradients of a ragged batch equal those of the plain form, sample by sample."""
    model = tiny(decoder=decoder).double()
    images, names = [image(2), image(4, 1)], [NAMES[:2], NAMES[2:6]]
    batch = model.as_batch(images, names)
    noise = torch.rand(16 * 6, generator=torch.Generator().manual_seed(0))
    layout = masked_layout(batch, 16, 0.75, noise)
    tokens, _ = model.encode(batch, layout)
    tokens = tokens.detach()
    decoded = model.decoder(tokens, layout, batch.names_K)
    expected, first, row = [], 0, 0
    for count, sample_names in zip(layout.kept_per_sample, names, strict=True):
        kept = layout.keep_index[first : first + count] - row * 16
        expected.append(plain_decoder(model, tokens[first + row // 2 :][: count + 1], kept, sample_names))
        first, row = first + count, row + len(sample_names)
    expected = torch.cat(expected)
    # fp64: rounding of sums of some hundred terms of order one
    torch.testing.assert_close(decoded, expected, atol=1e-11, rtol=1e-11)
    some = layout.decoded
    torch.testing.assert_close(
        model.decoder(tokens, layout, batch.names_K, some),
        expected[some.index_M],
        atol=1e-11,
        rtol=1e-11,
    )
    weight = torch.randn(decoded.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = list(model.decoder.parameters())
    ours = torch.autograd.grad((decoded * weight).sum(), parameters, allow_unused=True)
    plain = torch.autograd.grad((expected * weight).sum(), parameters, allow_unused=True)
    for a, b in zip(ours, plain, strict=True):
        zero = torch.zeros(1, dtype=torch.float64)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, atol=1e-9, rtol=1e-9)


def test_expected_loss_over_parts_is_the_full_loss(tiny, image, monkeypatch):
    """Every part of 2 of the masked patches of a sample, each as likely: their mean loss is the full one."""
    from camae.model import ca_mae

    model = tiny(decoder=CROSS | {"part": 0.5}).double().train()
    images, names = image(1), ["DNA"]
    noise = torch.rand(16, generator=torch.Generator().manual_seed(0))
    full = model.eval().loss(images, names, noise, mask_ratio=0.75)["total"]
    model.train()
    whole = ca_mae.masked_layout
    masked = whole(model.as_batch([images], [names]), 16, 0.75, noise).masked
    assert len(masked) == 12
    losses = []
    for pair in itertools.combinations(masked.tolist(), 2):
        part = Part(torch.tensor(pair), (2,))

        def chosen(*args, part=part, **options):
            layout = whole(*args, **options)
            object.__setattr__(layout, "decode", part)
            return layout

        monkeypatch.setattr(ca_mae, "masked_layout", chosen)
        losses.append(model.loss(images, names, noise, mask_ratio=0.75)["total"])
    torch.testing.assert_close(torch.stack(losses).mean(), full, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["samples", "tokens"])
def test_random_parts_estimate_the_loss_without_bias(tiny, image, reduction):
    """Over many draws of noise above the mask's threshold, the mean loss is the full one within 4 standard errors."""
    model = tiny(decoder=CROSS | {"part": 0.25})
    images, names = [image(1), image(3, 1)], [NAMES[:1], NAMES[:3]]
    mask = torch.rand(64, generator=torch.Generator().manual_seed(0))
    mask = [mask[:16], mask[16:]]
    full = model.loss(images, names, mask, reduction=reduction)["total"].item()
    model.train()
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(200):
        # Above the threshold the noise is drawn anew: the same mask, another part.
        noise = []
        for m in mask:
            limit = m.sort().values[len(m) // 4 - 1]
            noise.append(torch.where(m <= limit, m, 1 + torch.rand(len(m), generator=generator)))
        with torch.no_grad():
            losses.append(model.loss(images, names, noise, reduction=reduction)["total"])
    losses = torch.stack(losses)
    assert losses.std() > 0
    assert abs(losses.mean().item() - full) < 4 * losses.std().item() / len(losses) ** 0.5


def test_part_is_the_share_asked_for(tiny, image):
    batch = tiny().as_batch([image(1), image(3, 1)], [NAMES[:1], NAMES[:3]])
    noise = torch.rand(64, generator=torch.Generator().manual_seed(0))
    layout = masked_layout(batch, 16, 0.75, noise, part=0.5)
    assert layout.decoded.per_sample == (6, 18)
    assert not set(layout.decoded.index_M.tolist()) & set(layout.kept.tolist())
    assert masked_layout(batch, 16, 0.75, noise).decoded.per_sample == (12, 36)


@pytest.mark.parametrize("decoder", [{}, CROSS])
def test_recomputed_activations_give_equal_gradients(tiny, image, decoder):
    """Stochastic depth included: the backward pass draws what the forward pass drew. Bitwise on a CPU."""
    gradients = []
    for every in (0, 1, 2):
        model = tiny(decoder=decoder, drop_path=0.5).train()
        model.encoder.recompute = model.decoder.recompute = every
        torch.manual_seed(5)
        noise = torch.rand(2, 48, generator=torch.Generator().manual_seed(0))
        model.loss(torch.stack([image(3), image(3, 1)]), NAMES[:3], noise)["total"].backward()
        gradients.append([p.grad for p in model.parameters()])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("decoder", ["released", "small", "cross", "none"])
def test_flops_equal_what_torch_counts(decoder):
    """The formula against torch's own counter of matrix products."""
    form = {"cross_attention": "none", "width": 64, "depth": 2, "heads": 4} if decoder == "none" else decoder
    config = preset("ca_mae_vit_ti16", crop=64, depth=2, channels=NAMES[:3], decoder=form)
    model = CAMAE(config, Backends(attention="reference")).train()  # the counter knows torch's own operations
    images = torch.randint(0, 4000, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(
        torch.uint16
    )
    batch, noise = model.as_batch(images, NAMES[:3]), torch.rand(96)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(batch, noise)
    flops = model_flops(model.config, (3, 3), 0.75)
    assert counter.get_total_flops() == flops.forward


def test_published_gflops():
    """Per crop of 6x256x256 px, forward: B/16 71.0, L/16 85 % 145, L/8 75 % 1161 (24 T D^2 + 4 T^2 D by hand)."""
    for name, ratio, expected in [("b16", 0.75, 71.0), ("l16", 0.85, 145), ("l8", 0.75, 1161)]:
        flops = model_flops(preset(f"ca_mae_vit_{name}"), (6,), ratio)
        assert flops.encoder / 1e9 == pytest.approx(expected, rel=0.01)
    released = model_flops(preset("ca_mae_vit_s16", decoder="released"), (6,), 0.75, plain=True)
    assert released.decoder / 1e9 == pytest.approx(107, rel=0.1)


def test_peaks():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("AMD EPYC") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp32") is None


def test_named_decoders_are_the_four_forms():
    assert set(DECODERS) == {"paper", "released", "small", "cross"}
    assert DECODERS["paper"].cross_attention == "per_channel"
    assert (DECODERS["small"].width, DECODERS["small"].depth) == (256, 2)
    assert DECODERS["cross"].depth == 0 < DECODERS["cross"].part < 1


@pytest.mark.parametrize(
    ("decoder", "sentence"),
    [
        ({"part": 0.5}, "part below 1 needs depth 0"),
        ({"depth": 0, "cross_attention": "none"}, "depth 0 needs cross_attention"),
        ({"cross_depth": 2, "cross_attention": "per_channel"}, "cross_depth above 1"),
        ("color", "decoder must be 'paper', 'released', 'small', 'cross'"),
    ],
)
def test_bad_decoders_are_one_sentence(decoder, sentence):
    with pytest.raises(CamaeError, match=sentence):
        preset("ca_mae_vit_s16", decoder=decoder)
