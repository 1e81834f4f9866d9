"""The model against transcriptions of the paper's text in fp64, and its channel-agnostic promises."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from camae.errors import CamaeError
from camae.model.positions import sincos_positions
from camae.model.token_layout import full_layout, masked_layout

NAMES = ["DNA", "ER", "RNA", "AGP", "Mito", "Brightfield"]


def standardize(image, eps=1e-3):
    x = image.double()
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) / ((x - mean).square().mean((-2, -1), keepdim=True) + eps**2).sqrt()


def patchify(x, P):
    C, H, W = x.shape
    return x.reshape(C, H // P, P, W // P, P).permute(0, 1, 3, 2, 4).reshape(C, -1, P * P)


def plain_encoder(model, image, keep=None):
    """One sample, written out from the equations: tokens of the last block, class token first."""
    e, c = model.encoder, model.config
    tokens = patchify(standardize(image), c.patch) @ e.patch_weight_DP2.T + e.patch_bias_D
    tokens = (tokens + e.positions_ND).reshape(-1, c.width)
    if keep is not None:
        tokens = tokens[keep]
    x = torch.cat([e.cls_D[None], tokens])
    for block in e.blocks:
        h = block.in_norm(x)
        hidden, D = c.width * c.mlp_ratio, c.width
        fused = h @ block.in_proj.weight.T + block.in_bias()
        mlp, q, k, v = fused[:, :hidden], *fused[:, hidden:].split(D, 1)
        q, k, v = (t.reshape(-1, c.heads, D // c.heads).transpose(0, 1) for t in (q, k, v))
        q, k = block.q_norm(q), block.k_norm(k)
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(D // c.heads), -1)
        attention = (weights @ v).transpose(0, 1).reshape(-1, D)
        gelu = 0.5 * mlp * (1 + torch.erf(mlp / math.sqrt(2)))
        x = x + block.gamma * (block.attn_out_proj(attention) + block.mlp_out_proj(gelu))
    return x


def test_encoder_equals_the_written_out_form(tiny, image):
    model = tiny().double()
    batch = model.as_batch([image(3), image(5, 1)], [NAMES[:3], NAMES[:5]])
    tokens, layout = model.encode(batch)
    # fp64 throughout: differences are rounding of sums of some hundred terms of order one
    expected = torch.cat([plain_encoder(model, image(3)), plain_encoder(model, image(5, 1))])
    torch.testing.assert_close(tokens, expected, atol=1e-10, rtol=1e-10)
    assert layout.lengths == (3 * 16 + 1, 5 * 16 + 1)


def test_masked_encoder_sees_only_kept_tokens(tiny, image):
    model = tiny().double()
    batch = model.as_batch([image(2)], [NAMES[:2]])
    noise = torch.rand(32, generator=torch.Generator().manual_seed(1))
    layout = masked_layout(batch, 16, 0.75, noise)
    tokens, _ = model.encode(batch, layout)
    keep = noise.argsort()[:8].sort().values
    torch.testing.assert_close(tokens, plain_encoder(model, image(2), keep), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("total", "ratio", "kept"), [(1536, 0.75, 384), (1536, 0.85, 230), (96, 0.75, 24)])
def test_kept_counts(tiny, image, total, ratio, kept):
    planes = total // 16
    batch = tiny().as_batch([image(planes)], [[str(i) for i in range(planes)]])
    layout = masked_layout(batch, 16, ratio, torch.rand(total))
    assert layout.kept_per_sample == (kept,)
    assert len(layout.masked) == total - kept


def test_masking_is_joint_over_channels(tiny, image):
    batch = tiny().as_batch([image(6)], [NAMES])
    layout = masked_layout(batch, 16, 0.75, torch.rand(96, generator=torch.Generator().manual_seed(0)))
    per_channel = torch.bincount(layout.kept // 16, minlength=6)
    assert per_channel.sum() == 24
    assert len(set(per_channel.tolist())) > 1


@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_mixed_channel_counts_equal_one_by_one(tiny, image, block):
    from camae.embedding import embed

    model = tiny(block=block)
    samples = [image(c, seed=c) for c in (1, 3, 5, 6)]
    names = [NAMES[: len(s)] for s in samples]
    together = embed(samples, names, model)
    for sample, name, vector in zip(samples, names, together, strict=True):
        torch.testing.assert_close(vector, embed(sample, name, model), atol=1e-5, rtol=0)


def test_channel_order_does_not_change_the_mean(tiny, image):
    from camae.embedding import embed

    model, x = tiny(), image(6)
    order = [4, 2, 0, 5, 3, 1]
    forward = embed(x, NAMES, model)
    shuffled = embed(x[order], [NAMES[i] for i in order], model)
    torch.testing.assert_close(forward, shuffled, atol=1e-5, rtol=0)


def equations(pred, target, P, alpha):
    """Eq. 1, 2 and 3 for the masked patches of one sample."""
    mse = torch.stack([((y - p) ** 2).mean() for y, p in zip(target, pred, strict=True)]).mean()
    magnitude = [torch.fft.fft2(t.reshape(-1, P, P)).abs() for t in (pred, target)]
    fourier = (magnitude[0] - magnitude[1]).abs().mean()
    return (1 - alpha) * mse + alpha * fourier, mse, fourier


@pytest.mark.parametrize("cross", ["shared", "per_channel", "none"])
def test_loss_is_equations_1_to_3(tiny, image, cross):
    model = tiny(decoder={"cross_attention": cross}).double()
    images, names = [image(2), image(4, 1)], [NAMES[:2], NAMES[2:6]]
    noise = [
        torch.rand(16 * len(x), generator=torch.Generator().manual_seed(i)) for i, x in enumerate(images)
    ]
    losses = model.loss(images, names, noise, mask_ratio=0.75, alpha=0.01)
    patches, mask = model.reconstruct(images, names, noise, mask_ratio=0.75)
    totals = []
    for x, p, m in zip(images, patches, mask, strict=True):
        target = patchify(standardize(x), 8).flatten(0, 1)
        totals.append(equations(p[m == 1], target[m == 1], 8, 0.01))
    expected = torch.stack([torch.stack(t) for t in totals]).mean(0).detach()  # per sample, then over samples
    got = torch.stack([losses["total"], losses["mse"], losses["fourier"]])
    torch.testing.assert_close(got.detach(), expected, atol=1e-9, rtol=1e-9)


def test_token_reduction_pools_all_patches(tiny, image):
    model = tiny().double()
    images, names = [image(1), image(6, 1)], [NAMES[:1], NAMES]
    noise = [
        torch.rand(16 * len(x), generator=torch.Generator().manual_seed(i)) for i, x in enumerate(images)
    ]
    patches, mask = model.reconstruct(images, names, noise)
    squares = [
        (p - patchify(standardize(x), 8).flatten(0, 1)).square().mean(1)[m == 1]
        for x, p, m in zip(images, patches, mask, strict=True)
    ]
    got = model.loss(images, names, noise, reduction="tokens")["mse"]
    torch.testing.assert_close(got, torch.cat(squares).mean(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("block", ["parallel", "sequential"])
@pytest.mark.parametrize("cross", ["shared", "per_channel", "none"])
@pytest.mark.parametrize("context", ["all", "visible"])
def test_decoding_a_mixed_batch_equals_one_by_one(tiny, image, block, cross, context):
    model = tiny(block=block, decoder={"cross_attention": cross, "context": context}).double()
    images, names = [image(1), image(6, 1), image(3, 2)], [NAMES[:1], NAMES, NAMES[3:6]]
    noise = [
        torch.rand(16 * len(x), generator=torch.Generator().manual_seed(i)) for i, x in enumerate(images)
    ]
    patches, masks = model.reconstruct(images, names, noise)
    for x, name, n, p, m in zip(images, names, noise, patches, masks, strict=True):
        alone, mask = model.reconstruct(x, name, n)
        torch.testing.assert_close(p, alone, atol=1e-9, rtol=1e-9)
        assert torch.equal(m, mask)


def test_shapes_of_reconstruct(tiny, image):
    model = tiny()
    batch = torch.stack([image(3), image(3, 1)])
    patches, mask = model.reconstruct(batch, NAMES[:3])
    assert patches.shape == (2, 48, 64)
    assert mask.shape == (2, 48)
    assert model.reconstruct(image(3), NAMES[:3])[0].shape == (48, 64)


def test_positions_follow_the_formula():
    table = sincos_positions(3, 5, 16, dtype=torch.float64)
    omega = 10000.0 ** (-np.arange(4) / 4)
    row, column = 2, 4
    expected = np.concatenate(
        [np.sin(row * omega), np.cos(row * omega), np.sin(column * omega), np.cos(column * omega)]
    )
    np.testing.assert_allclose(table[row * 5 + column], expected, atol=1e-12)


def test_shifted_bias_layout(tiny):
    block = tiny(bias_layout="timm<=1.0.24").encoder.blocks[0]
    torch.nn.init.normal_(block.mlp_bias)
    bias, D = block.in_bias(), 32
    assert torch.equal(bias[: 3 * D], torch.zeros(3 * D))
    assert torch.equal(bias[3 * D :], block.mlp_bias)


def test_unknown_decoder_channel_is_named(tiny, image):
    with pytest.raises(CamaeError, match="no decoder for channel 'Lipid'"):
        tiny().loss(image(2), ["DNA", "Lipid"])


def test_wrong_size_is_refused_and_interpolated_by_request(tiny, image):
    model = tiny()
    batch = model.as_batch([image(2, size=64)], [NAMES[:2]])
    with pytest.raises(CamaeError, match="64 x 64 px but the model's crop is 32 x 32"):
        model.encode(batch)
    tokens, layout = model.encode(batch, interpolate=True)
    assert tokens.shape == (2 * 64 + 1, 32)
    assert layout.n_patches == 64


def test_gradients_reach_every_parameter(tiny, image):
    model = tiny().train()
    model.loss([image(6), image(3)], [NAMES, NAMES[:3]])["total"].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_layers_give_block_outputs(tiny, image):
    model = tiny()
    batch = model.as_batch([image(2)], [NAMES[:2]])
    outputs, _ = model.encode_layers(batch, (0, 2))
    last, _ = model.encode(batch, full_layout(batch, 16))
    assert len(outputs) == 2
    torch.testing.assert_close(outputs[1], last)


def test_exact_gelu_is_used(tiny):
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    exact = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(F.gelu(x), exact, atol=1e-12, rtol=0)
