"""Distillation: the term against fp64, teachers of other patch and crop, exact resume, passes, off, refusals."""

import numpy as np
import pytest
import torch

import camae
from camae.dataloader.mixture import Source
from camae.errors import CamaeError
from camae.model import CAMAE, preset
from camae.model.weights import save
from camae.training.distillation import Distillation
from camae.training.randomness import mask_noise

DECODER = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
WIDE = {"crop": 32, "patch": 4, "width": 48, "heads": 3, "depth": 1, "drop_path": 0.0, "decoder": DECODER}


@pytest.fixture
def teacher(tmp_path):
    """teacher(**options) -> path of an untrained model, with another patch and width than the runs'."""

    def make(channels=("DNA", "ER", "Mito"), **options):
        torch.manual_seed(5)
        model = CAMAE(preset("ca_mae_vit_ti16", channels=channels, **WIDE | options))
        return str(save(model, tmp_path / "teacher.safetensors"))

    return make


def losses(run, key="loss"):
    return [row[key] for row in run.history]


def test_term_by_definition(teacher, tiny):
    """Against plain torch in fp64, plane by plane; planes that show no patch have no share."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    student = CAMAE(preset("ca_mae_vit_ti16", channels=("DNA", "ER", "Mito"), **tiny["model_options"]))
    images = [rng.integers(0, 4000, (c, 32, 32)).astype(np.uint16) for c in (3, 2)]
    batch = student.as_batch(images, [["DNA", "ER", "Mito"], ["Mito", "DNA"]])
    manifest = type("M", (), {"channels": ("DNA", "ER", "Mito")})()
    term = Distillation(teacher(), 32, [Source("a", manifest, 1.0)], torch.device("cpu"))
    noise = mask_noise(0, torch.tensor([0, 1]), (48, 32), torch.device("cpu"))
    hidden = np.array([False, True, False, False, True])
    layout = student.mask(batch, noise, 0.75, hidden_K=hidden)
    tokens = student.encode(batch, layout)[0].detach()
    got = term(tokens, layout, term.targets(batch), 7)

    head, model = term.head.double(), camae.load(teacher())
    total = 0.0
    kept, row = layout.kept.tolist(), 0
    for b, (image, names) in enumerate(zip(images, (["DNA", "ER", "Mito"], ["Mito", "DNA"]))):
        row += 1
        of_plane = {c: [] for c in range(len(image))}
        first = sum(len(x) for x in images[:b])
        for flat in [k for k in kept if first <= k // 16 < first + len(image)]:
            of_plane[flat // 16 - first].append(tokens[row].double())
            row += 1
        y = torch.from_numpy(camae.embed(image, names, model=model, pool="per_channel")).double()
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        errors = [
            ((head(torch.stack(rows).mean(0)) - y[c]) ** 2).mean() for c, rows in of_plane.items() if rows
        ]
        assert len(errors) == len(image) - 1
        total += torch.stack(errors).mean() / 7
    # fp32 against fp64 on sums of a few dozen values of order one.
    torch.testing.assert_close(got.double(), total, rtol=1e-5, atol=0)


@pytest.mark.parametrize("crop", [32, 48])
def test_resume_and_passes(screen, teacher, tmp_path, train, interrupt, crop):
    settings = {"teacher": teacher(crop=crop), "teacher_weight": 0.5, "checkpoint_every": 2}
    whole = train(screen, tmp_path / "whole", 6, **settings)
    with interrupt(3):
        train(screen, tmp_path / "parts", 6, **settings)
    resumed = train(screen, tmp_path / "parts", 6, **settings)
    assert losses(whole) == losses(resumed)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    passes = train(screen, tmp_path / "passes", 6, **settings, accumulate=2)
    for key in ("loss", "distillation"):
        np.testing.assert_allclose(losses(whole, key)[:3], losses(passes, key)[:3], rtol=1e-5)


def test_the_student_learns_the_teacher(screen, teacher, tmp_path, train):
    """The teacher stays as it is, is in no file of the run, and is predicted better than by its mean (1)."""
    path = teacher()
    before = camae.load(path).state_dict()
    settings = {"teacher": path, "optimizer": "adamw", "lr": 3e-3, "checkpoint_every": 60}
    run = train(screen, tmp_path / "run", 60, **settings)
    assert losses(run, "distillation")[-1] < 0.5
    after = camae.load(path).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    stored = camae.load(tmp_path / "run" / "checkpoints" / "step_00000060").state_dict()
    assert stored.keys() == run.model.state_dict().keys()
    assert not any("training_only" in name for name in stored)


def test_off_is_as_before(screen, tmp_path, train):
    plain, off = train(screen, tmp_path / "a", 3), train(screen, tmp_path / "b", 3, teacher_weight=5.0)
    assert losses(plain) == losses(off)
    assert "distillation" not in plain.history[0]


def test_refusals(screen, teacher, tmp_path, train):
    path = teacher(channels=("DNA", "ER"))
    with pytest.raises(
        CamaeError,
        match=r"teacher \S+ knows the channels DNA, ER, and the data also have Mito; rename the columns of the "
        r"manifest, or leave these channels out",
    ):
        train(screen, tmp_path / "a", 2, teacher=path)
    unet = camae.model.registry.build("mu_net_m", channels=("DNA", "ER", "Mito"))
    other = str(save(unet, tmp_path / "unet.safetensors"))
    with pytest.raises(
        CamaeError, match=r"teacher \S+ is mu_net_m, which has no tokens of channels; give a CA-MAE"
    ):
        train(screen, tmp_path / "b", 2, teacher=other)
    with pytest.raises(CamaeError, match=r"teacher='x' needs a CA-MAE, and mae_vit\S* is none; leave it out"):
        train(screen, tmp_path / "c", 2, teacher="x", model="mae_vit_s16", model_options={"crop": 32})
