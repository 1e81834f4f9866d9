"""Cross-well alignment: pairs by definition, the term against fp64, resume, passes, mixed channel sets, refusals."""

import numpy as np
import pandas as pd
import pytest
import torch

from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.replicates import Replicates
from camae.errors import CamaeError
from camae.training.cross_well import siamese_loss
from camae.training.data import micro_batches

SETTINGS = {"cross_well": 0.5, "batch_size": 8, "cross_well_group": 4, "cross_well_prototypes": 8}


def losses(run, key="loss"):
    return [row[key] for row in run.history]


@pytest.fixture
def replicated(make_screen):
    """Two plates of eight wells: three perturbations in two wells of each, and two wells without a label."""

    def make(name, **options):
        path = make_screen(name, wells=8, **options)
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        label = [["a", "b", "c", ""][i % 8 // 2] for i in range(16)]
        return Manifest(table.assign(Metadata_Perturbation=label), path.parent)

    return make


def by_definition(logits_BK, paired_B, group):
    """The term in NumPy fp64, crop by crop (Assran et al., Eq. 1, over groups)."""
    p_BK = np.exp(logits_BK) / np.exp(logits_BK).sum(1, keepdims=True)
    total = 0.0
    for start in range(0, len(p_BK), group):
        chosen = [b for b in range(start, start + group) if paired_B[b]]
        for b in chosen:
            sharp = p_BK[b ^ 1] ** 4
            total -= (sharp / sharp.sum() * np.log(p_BK[b])).sum()
        if chosen:
            mean = p_BK[chosen].mean(0)
            total += len(chosen) * (np.log(len(mean)) + (mean * np.log(mean)).sum())
    return total


def test_term_and_gradient_by_definition():
    """Value against NumPy; gradient against central differences with the targets held, both fp64."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    paired = torch.tensor([1, 1, 0, 0, 1, 1, 1, 1.0])
    value = siamese_loss(logits, paired, 4)
    np.testing.assert_allclose(value.item(), by_definition(logits.detach().numpy(), paired, 4), rtol=1e-12)
    (gradient,) = torch.autograd.grad(value, logits)
    x, step = logits.detach().numpy(), 1e-6
    target = np.exp(4 * x) / np.exp(4 * x).sum(1, keepdims=True)

    def held(y):
        p = np.exp(y) / np.exp(y).sum(1, keepdims=True)
        total = 0.0
        for start in (0, 4):
            chosen = [b for b in range(start, start + 4) if paired[b]]
            mean = p[chosen].mean(0)
            total -= sum((target[b ^ 1] * np.log(p[b])).sum() for b in chosen)
            total += len(chosen) * (mean * np.log(mean)).sum()
        return total

    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        # Central differences: error step^2 of the third derivative, and 1e-16 / step of rounding.
        assert abs((held(up) - held(down)) / (2 * step) - gradient[index].item()) < 1e-8
    assert not gradient[2:4].any()


def test_a_group_without_a_pair_has_no_share():
    """Neither in the value nor, as a number that is not finite, in the gradient."""
    logits = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    value = siamese_loss(logits, torch.tensor([1.0] * 4 + [0.0] * 4), 4)
    (gradient,) = torch.autograd.grad(value, logits)
    alone = siamese_loss(logits[:4], torch.ones(4), 4)
    torch.testing.assert_close(value, alone)
    torch.testing.assert_close(gradient[:4], torch.autograd.grad(alone, logits)[0][:4])
    assert not gradient[4:].any()


def test_pairs_by_definition(replicated):
    manifest = replicated("screen")
    loader = CropLoader(manifest, crop=32, batch_size=8, seed=3, replicates="Metadata_Perturbation")
    label, plate = (manifest.table[c].to_numpy() for c in ("Metadata_Perturbation", "Metadata_Plate"))
    firsts = []
    for step in range(4):
        rows = loader.batch_at(step).rows_B
        firsts += rows[::2].tolist()
        for a, b in rows.reshape(-1, 2):
            if label[a]:
                assert label[a] == label[b]
                assert plate[a] != plate[b]
            else:
                assert a == b
    assert sorted(firsts) == list(range(16))  # an epoch shows every site once as the first of a pair
    alone = CropLoader(manifest, crop=32, batch_size=4, seed=3, replicates="Metadata_Perturbation")
    halves = np.concatenate([alone.batch_at(step).rows_B for step in range(8)])
    np.testing.assert_array_equal(halves, np.concatenate([loader.batch_at(s).rows_B for s in range(4)]))


def test_a_replicate_of_the_same_plate_where_there_is_no_other(replicated):
    wells = [f"A{i + 1:02d}" for i in range(16)]
    table = replicated("screen").table.assign(Metadata_Plate="P0", Metadata_Well=wells)
    replicates = Replicates(Manifest(table, "."), "Metadata_Perturbation")
    rows = np.arange(16)
    partner = replicates.partners(rows, np.full(16, 0.999))
    labeled = (table["Metadata_Perturbation"] != "").to_numpy()
    np.testing.assert_array_equal(replicates.are_replicates(rows, partner), labeled)
    assert (partner[labeled] != rows[labeled]).all()


def test_resume_is_exact_with_every_option(replicated, tmp_path, train, interrupt):
    """Mixed channel sets, two passes a step, channels hidden, a teacher, an average of the weights."""
    data = [replicated("three"), replicated("two", channels=("DNA", "ER"), seed=1)]
    teacher = train(data, tmp_path / "teacher", 1).path
    settings = SETTINGS | {"checkpoint_every": 2, "ema": 0.9, "mask_channels": 0.3, "accumulate": 2}
    settings |= {"teacher": str(teacher)}
    whole = train(data, tmp_path / "whole", 6, **settings)
    with interrupt(3):
        train(data, tmp_path / "parts", 6, **settings)
    resumed = train(data, tmp_path / "parts", 6, **settings)
    for key in ("loss", "cross_well", "distillation"):
        assert losses(whole, key) == losses(resumed, key)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert not [name for name in whole.model.state_dict() if "training_only" in name]


def test_passes_and_mixed_channel_sets_change_rounding_alone(replicated, tmp_path, train):
    data = [replicated("three"), replicated("two", channels=("DNA", "ER"), seed=1)]
    settings = SETTINGS | {"mask_channels": 0.3}
    one = train(data, tmp_path / "one_pass", 4, **settings)
    several = train(data, tmp_path / "passes", 4, **settings, accumulate=2)
    cut = train(data, tmp_path / "cut", 4, **settings, token_budget=4 * 3 * 16)
    for key in ("loss", "cross_well"):
        np.testing.assert_allclose(losses(one, key), losses(several, key), rtol=1e-5)
        np.testing.assert_allclose(losses(one, key), losses(cut, key), rtol=1e-5)
    assert losses(one) != losses(train(data, tmp_path / "off", 4, batch_size=8, mask_channels=0.3))


def test_the_term_brings_replicates_together(replicated, tmp_path, train):
    data = replicated("screen")
    run = train(data, tmp_path / "run", 40, **SETTINGS | {"optimizer": "adamw", "lr": 3e-3})
    found = losses(run, "cross_well")
    assert np.mean(found[-5:]) < np.mean(found[:5])
    assert min(found) >= 0  # a spike is told by a loss relative to the mean of those before
    assert run.history[-1]["skipped"] == 0


def test_off_is_as_before(replicated, tmp_path, train):
    """Without the weight the other settings of the term change nothing, and the rows of the log have no such loss."""
    data = replicated("screen")
    plain = train(data, tmp_path / "a", 3)
    off = train(data, tmp_path / "b", 3, cross_well=0.0, cross_well_group=8, cross_well_prototypes=3)
    assert losses(plain) == losses(off)
    assert "cross_well" not in plain.history[0]


def test_groups_stay_in_one_pass():
    assert micro_batches((5, 5, 5, 5, 5, 5, 5, 5), 20, together=4) == [(0, 4), (4, 8)]
    assert micro_batches((5,) * 8, None, 2, 4) == [(0, 4), (4, 8)]
    with pytest.raises(
        CamaeError, match=r"token_budget 19 is less than the 20 tokens of the 4 crops of a cross_well_group"
    ):
        micro_batches((5,) * 8, 19, together=4)


def test_refusals(replicated, tmp_path, train):
    data = replicated("screen")
    with pytest.raises(
        CamaeError,
        match=r"cross_well_group 16 does not divide a pass, 8 crops in 1 parts; choose a batch_size that is a "
        r"multiple of 16",
    ):
        train(data, tmp_path / "a", 2, cross_well=1.0, batch_size=8)
    with pytest.raises(CamaeError, match=r"cross_well_group 5 is odd; crops come in pairs of replicates"):
        train(data, tmp_path / "b", 2, cross_well=1.0, cross_well_group=5)
    with pytest.raises(CamaeError, match=r"pairs of replicates need the column Metadata_Gene, which .* has"):
        train(data, tmp_path / "c", 2, **SETTINGS, cross_well_label="Metadata_Gene")
    alone = Manifest(data.table.assign(Metadata_Perturbation=[str(i) for i in range(len(data))]), data.root)
    with pytest.raises(
        CamaeError, match=r"no two wells of .* have the same Metadata_Perturbation, so there are"
    ):
        train(alone, tmp_path / "d", 2, **SETTINGS)
    with pytest.raises(
        CamaeError, match=r"cross_well=0\.5 needs a CA-MAE, and mae_vit\S* is none; leave it out"
    ):
        train(data, tmp_path / "e", 2, **SETTINGS | {"model": "mae_vit_s16", "model_options": {"crop": 32}})
