"""Channel masking in a run: the draw by an independent definition, exact resume, passes, and off as before."""

import numpy as np
import pytest
import torch

from camae.errors import CamaeError
from camae.training import checkpoint_files as checkpoints
from camae.training.config import TrainConfig
from camae.training.randomness import hidden_planes
from camae.training.run_record import check_same_config

WORD = 2**64


def mixed(x):
    """SplitMix64's finalizer in Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
    return x ^ (x >> 31)


def hidden_by_definition(seed, slots, planes, share):
    found = []
    for slot, count in zip(slots, planes, strict=True):
        key = mixed(mixed((slot * 0x9E3779B97F4A7C15 + seed) % WORD) ^ 0x5851F42D4C957F2D)
        u = [(mixed((key + (k + 1) * 0x9E3779B97F4A7C15) % WORD) >> 40) * 2.0**-24 for k in range(count)]
        hidden = [v < share for v in u]
        if all(hidden):
            hidden[u.index(max(u))] = False
        found += hidden
    return np.array(found)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_draw_by_definition(share):
    slots, planes = list(range(1000, 1200)), tuple(1 + s % 6 for s in range(200))
    got = hidden_planes(7, torch.tensor(slots), planes, share)
    np.testing.assert_array_equal(got, hidden_by_definition(7, slots, planes, share))
    halves = [hidden_planes(7, torch.tensor(slots[i::2]), planes[i::2], share) for i in (0, 1)]
    whole = [
        g for half in range(2) for g, s in zip(np.split(got, np.cumsum(planes)[:-1]), slots) if s % 2 == half
    ]
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate(halves))


def test_share_of_hidden_planes():
    """Of five planes each with probability 0.2, but for crops that keep their last; within 5 standard errors."""
    got = hidden_planes(0, torch.arange(4000), (5,) * 4000, 0.2).reshape(4000, 5)
    assert not got.all(1).any()
    assert abs(got.mean() - (0.2 - 0.2**5 / 5)) < 5 * np.sqrt(0.2 * 0.8 / 20_000)


def losses(run):
    return [row["loss"] for row in run.history]


def test_resume_is_exact(screen, tmp_path, train, interrupt):
    settings = {"mask_channels": 0.3, "checkpoint_every": 2}
    whole = train(screen, tmp_path / "whole", 6, **settings)
    with interrupt(3):
        train(screen, tmp_path / "parts", 6, **settings)
    resumed = train(screen, tmp_path / "parts", 6, **settings)
    assert losses(whole) == losses(resumed)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_passes_and_mixed_channel_sets_change_rounding_alone(make_screen, tmp_path, train):
    data = [
        make_screen("three"),
        make_screen("two", channels=("DNA", "ER"), seed=1),
        make_screen("one", channels=("DNA",)),
    ]
    one = train(data, tmp_path / "one_pass", 4, mask_channels=0.4, batch_size=8)
    several = train(data, tmp_path / "passes", 4, mask_channels=0.4, batch_size=8, accumulate=4)
    np.testing.assert_allclose(losses(one), losses(several), rtol=1e-5)
    assert losses(one) != losses(train(data, tmp_path / "off", 4, batch_size=8))


def test_off_passes_nothing_to_the_model(screen, tmp_path, train, monkeypatch):
    """By default the model is called as before the setting was there, so that every number is the same."""
    from camae.model import CAMAE

    seen, original = [], CAMAE.forward

    def forward(self, batch, noise, **options):
        seen.append(set(options))
        return original(self, batch, noise, **options)

    monkeypatch.setattr(CAMAE, "forward", forward)
    plain, zero = train(screen, tmp_path / "a", 3), train(screen, tmp_path / "b", 3, mask_channels=0.0)
    assert losses(plain) == losses(zero)
    assert seen
    assert all(options == {"mask_ratio", "alpha", "n_samples"} for options in seen)


def test_a_run_from_before_the_setting_goes_on(screen, tmp_path, train, interrupt):
    whole = train(screen, tmp_path / "whole", 6, checkpoint_every=2)
    with interrupt(5):
        train(screen, tmp_path / "run", 6, checkpoint_every=2)
    folder = checkpoints.checkpoint_folders(tmp_path / "run")[-1]
    state = checkpoints.read_state(folder)
    recipe = dict(state["recipe"])
    del recipe["mask_channels"]
    settings = dict(recipe)
    config = TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    check_same_config(state | {"recipe": recipe}, config, folder)
    with pytest.raises(CamaeError, match=r"other settings \(mask_channels\)"):
        train(screen, tmp_path / "run", 6, checkpoint_every=2, mask_channels=0.2)
    assert losses(train(screen, tmp_path / "run", 6, checkpoint_every=2)) == losses(whole)


def test_refusals(screen, make_screen, tmp_path, tiny, train):
    with pytest.raises(CamaeError, match=r"mask_channels is 1\.0, and must be at least 0 and below 1"):
        train(screen, tmp_path / "a", 2, mask_channels=1.0)
    with pytest.raises(
        CamaeError, match=r"mask_channels=0\.2 needs images of two or more channels; leave it out"
    ):
        train(make_screen("one", channels=("DNA",)), tmp_path / "b", 2, mask_channels=0.2)
    alone = tiny["model_options"] | {
        "decoder": tiny["model_options"]["decoder"] | {"cross_attention": "none"}
    }
    with pytest.raises(CamaeError, match=r"mask_channels=0\.2 needs decoders that look at other channels"):
        train(screen, tmp_path / "c", 2, mask_channels=0.2, model_options=alone)
    assert not list(tmp_path.glob("[abc]/*"))
