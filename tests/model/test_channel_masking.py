"""Planes hidden whole: the mask by its definition, gradients, batches of mixed channel sets, imputed channels."""

import numpy as np
import pytest
import torch

from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model.token_layout import masked_layout

NAMES = ["DNA", "ER", "RNA", "AGP", "Mito", "Brightfield"]
N = 16
PLANES = (3, 1, 6, 2)
HIDDEN = np.array([0, 1, 0] + [0] + [1, 1, 0, 1, 1, 1] + [0, 0], bool)


def mixed(image):
    return PlaneBatch.from_images([image(c, seed=c) for c in PLANES], [NAMES[:c] for c in PLANES])


def uniform(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def visible_by_definition(noise, ratio, hidden):
    """Flat indices of the visible patches: hidden planes sort last, then by noise, sample by sample."""
    found, plane = [], 0
    for count in PLANES:
        own = range(plane * N, (plane + count) * N)
        patches = [i for i in own if not hidden[i // N]]
        kept = min(int(count * N * (1 - ratio)), len(patches))
        found += sorted(sorted(patches, key=lambda i: float(noise[i]))[:kept])
        plane += count
    return found


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75, 0.9])
def test_mask_by_definition(image, ratio):
    noise = uniform(sum(PLANES) * N)
    layout = masked_layout(mixed(image), N, ratio, noise, hidden_K=HIDDEN)
    assert layout.kept.tolist() == visible_by_definition(noise.numpy(), ratio, HIDDEN)
    masked = set(range(sum(PLANES) * N)) - set(layout.kept.tolist())
    assert layout.masked.tolist() == sorted(masked)
    assert sum(layout.kept_per_sample) == len(layout.kept)


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_nothing_hidden_is_the_plain_mask(image, part):
    noise, batch = uniform(sum(PLANES) * N), mixed(image)
    plain = masked_layout(batch, N, 0.75, noise, part)
    none = masked_layout(batch, N, 0.75, noise, part, hidden_K=np.zeros(sum(PLANES), bool))
    assert torch.equal(plain.kept, none.kept)
    assert plain.decoded.per_sample == none.decoded.per_sample


def test_decoded_part_is_a_fair_share_of_hidden_and_visible_planes(image):
    """Each masked patch is decoded with probability `part`, wherever it lies: within 5 standard errors of 400 draws."""
    batch, counts, drawn = mixed(image), np.zeros((sum(PLANES), N)), np.zeros((sum(PLANES), N))
    for seed in range(400):
        layout = masked_layout(batch, N, 0.75, uniform(sum(PLANES) * N, seed), 0.5, hidden_K=HIDDEN)
        decoded, masked = layout.decoded.index_M.numpy(), layout.masked.numpy()
        assert np.isin(decoded, masked).all()
        assert len(decoded) == sum(layout.decoded.per_sample)
        counts.flat[decoded] += 1
        drawn.flat[masked] += 1
    for part in (HIDDEN, ~HIDDEN):
        share, n = counts[part].sum() / drawn[part].sum(), drawn[part].sum()
        assert abs(share - 0.5) < 5 * np.sqrt(0.25 / n)


def test_all_planes_of_a_crop_hidden_is_refused(image):
    hidden = np.zeros(sum(PLANES), bool)
    hidden[3] = True
    with pytest.raises(CamaeError, match="all 1 planes of sample 1 are hidden; leave one to predict from"):
        masked_layout(mixed(image), N, 0.75, uniform(sum(PLANES) * N), hidden_K=hidden)


@pytest.mark.parametrize("cross", ["shared", "per_channel"])
@pytest.mark.parametrize("context", ["all", "visible"])
def test_hidden_pixels_reach_the_loss_as_targets_alone(tiny, image, cross, context):
    """The prediction of a hidden plane does not depend on its pixels, and does on those of the others."""
    model, x = tiny(decoder={"cross_attention": cross, "context": context}).double(), image(3)
    patches, mask = model.reconstruct(x, NAMES[:3], mask_ratio=0.0, hidden=["ER"])
    assert mask.reshape(3, N).sum(1).tolist() == [0, N, 0]
    changed = x.clone()
    changed[1] = image(1, seed=9)[0]
    same, _ = model.reconstruct(changed, NAMES[:3], mask_ratio=0.0, hidden=["ER"])
    torch.testing.assert_close(same, patches, atol=1e-12, rtol=0)
    changed = x.clone()
    changed[0] = image(1, seed=9)[0]
    other, _ = model.reconstruct(changed, NAMES[:3], mask_ratio=0.0, hidden=["ER"])
    assert (other - patches).reshape(3, N, -1)[1].abs().max() > 1e-6


@pytest.mark.parametrize("depth_and_part", [(1, 1.0), (0, 0.5)])
def test_gradients_of_a_mixed_batch_are_those_of_its_samples(tiny, image, depth_and_part):
    depth, part = depth_and_part
    model = tiny(decoder={"depth": depth, "part": part}).double().train()
    batch, noise = mixed(image), uniform(sum(PLANES) * N)

    def gradients(parts):
        model.zero_grad()
        for first, last in parts:
            planes = slice(sum(PLANES[:first]), sum(PLANES[:last]))
            own = noise[planes.start * N : planes.stop * N]
            losses = model(
                batch.part(first, last), own, mask_ratio=0.75, n_samples=4, hidden_K=HIDDEN[planes]
            )
            losses["total"].backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together, apart = gradients([(0, 4)]), gradients([(0, 1), (1, 3), (3, 4)])
    assert together.keys() == apart.keys()
    for name, value in together.items():
        torch.testing.assert_close(value, apart[name], atol=1e-10, rtol=1e-8)
    assert together["decoder.channel_tokens_CD"][1].abs().sum() > 0


def test_gradient_by_finite_differences(tiny, image):
    model = tiny().double()
    batch, noise, weight = mixed(image), uniform(sum(PLANES) * N), model.decoder.mask_token_D

    def loss():
        return model(batch, noise, mask_ratio=0.75, hidden_K=HIDDEN)["total"]

    loss().backward()
    step = 1e-6
    with torch.no_grad():
        weight[3] += step
        high = loss()
        weight[3] -= 2 * step
        low = loss()
        weight[3] += step
    assert float(weight.grad[3]) == pytest.approx(float((high - low) / (2 * step)), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("hidden", "sentence"),
    [
        (["Actin"], "hidden names channel 'Actin', which no image shows; the images show 'DNA', 'ER'"),
        (["DNA", "ER"], "all 2 planes of sample 0 are hidden"),
        ("DNA", "hidden is the single string 'DNA'; give a list of channel names"),
    ],
)
def test_refusals_of_reconstruct(tiny, image, hidden, sentence):
    with pytest.raises(CamaeError, match=sentence):
        tiny().reconstruct(image(2), NAMES[:2], hidden=hidden)
