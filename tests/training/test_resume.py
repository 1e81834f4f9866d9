"""Moving averages and new channels across a stop; mask ratios by step and recomputed activations in a run."""

import hashlib
import json
import warnings

import pytest
import torch

from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.training import checkpoint_files as checkpoints
from camae.training import trainer as loop
from camae.training.warm_start import TOKENS, appended


@pytest.mark.parametrize("final", [False, True])
def test_average_resumes_exactly_and_is_the_model_when_asked(screen, tmp_path, train, interrupt, final):
    settings = {"ema": 0.9, "ema_final": final, "checkpoint_every": 2}
    whole = train(screen, tmp_path / "whole", 6, **settings)
    with interrupt(3):
        train(screen, tmp_path / "parts", 6, **settings)
    resumed = train(screen, tmp_path / "parts", 6, **settings)
    averages = [
        checkpoints.read_average(checkpoints.checkpoint_folders(run.path)[-1]) for run in (whole, resumed)
    ]
    assert averages[0]["updates"] == 6
    for name, value in averages[0].items():
        assert torch.equal(value, averages[1][name]), name
    state = whole.model.state_dict()
    same = [torch.equal(state[n], a) for n, a in averages[0].items() if n != "updates"]
    assert all(same) if final else not any(same)


def test_other_sites_or_another_order_are_said_on_resume(make_screen, tmp_path, train, interrupt):
    manifest = Manifest.read(make_screen("screen", wells=6))
    half, other = manifest.select(range(0, 12, 2)), manifest.select(range(1, 12, 2))
    for name, then in (("others", other), ("sorted", half.select(range(5, -1, -1)))):
        with interrupt(3):
            train(half, tmp_path / name, checkpoint_every=2)
        with pytest.warns(UserWarning, match="trained on other sites than now, or on these in another order"):
            train(then, tmp_path / name, checkpoint_every=2)
    with interrupt(3):
        train(half, tmp_path / "same", checkpoint_every=2)
    # What a checkpoint of an earlier version says of its data has no fingerprint.
    folder = checkpoints.checkpoint_folders(tmp_path / "same")[-1]
    state = json.loads((folder / "state.json").read_text())
    del state["data"][0]["fingerprint"]
    (folder / "state.json").write_text(json.dumps(state))
    sums = json.loads((folder / "checksums.json").read_text())
    sums["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(half, tmp_path / "same", checkpoint_every=2)


def test_average_does_not_change_training(screen, tmp_path, train):
    plain, averaged = train(screen, tmp_path / "a", 4), train(screen, tmp_path / "b", 4, ema=0.9)
    assert [r["loss"] for r in plain.history] == [r["loss"] for r in averaged.history]


def test_recomputed_activations_train_the_same(screen, tmp_path, train):
    plain, again = train(screen, tmp_path / "a", 3), train(screen, tmp_path / "b", 3, recompute=1)
    assert [r["loss"] for r in plain.history] == [r["loss"] for r in again.history]


def test_mask_ratio_by_step(screen, tmp_path, train, monkeypatch):
    from camae.model import CAMAE

    seen, original = [], CAMAE.forward

    def forward(self, batch, noise, **options):
        if self.training:
            seen.append(options["mask_ratio"])
        return original(self, batch, noise, **options)

    monkeypatch.setattr(CAMAE, "forward", forward)
    train(screen, tmp_path / "run", 4, mask_ratio=[0.5, 0.75])
    assert seen == [0.5, 0.75, 0.5, 0.75]


def without(screen, channel, path):
    """The screen's manifest without a channel."""
    manifest = Manifest.read(screen)
    Manifest(manifest.table.drop(columns=[channel]), manifest.root).write(path)
    return path


@pytest.mark.parametrize("cross", ["shared", "per_channel"])
@pytest.mark.parametrize("optimizer", ["lion", "adamw"])
def test_a_new_channel_gets_a_decoder_on_resume(screen, tmp_path, tiny, train, interrupt, cross, optimizer):
    """Weights and optimizer state of all that was there are untouched; the new decoder then learns."""
    fewer = without(screen, "Mito", screen.parent / f"fewer_{cross}_{optimizer}.csv")
    model_options = tiny["model_options"] | {
        "decoder": tiny["model_options"]["decoder"] | {"cross_attention": cross}
    }
    settings = {"model_options": model_options, "optimizer": optimizer, "checkpoint_every": 2, "ema": 0.9}
    with interrupt(4):
        train(fewer, tmp_path / "run", 6, **settings)
    folder = checkpoints.checkpoint_folders(tmp_path / "run")[-1]
    before = {p.name: checkpoints.load_file(p) for p in folder.glob("*.safetensors")}

    grown = {}
    original = loop.Trainer._steps

    def look(self, first, log, live):
        grown["first"] = first
        grown["weights"] = {k: v.clone() for k, v in self.model.state_dict().items()}
        grown["optimizer"] = {
            k: v.clone() for k, v in checkpoints._optimizer_tensors(self.model, self.optimizer).items()
        }
        return original(self, first, log, live)

    loop.Trainer._steps = look
    try:
        run = train(screen, tmp_path / "run", 6, **settings)
    finally:
        loop.Trainer._steps = original

    assert grown["first"] == 4
    assert run.model.channels == ["DNA", "ER", "Mito"]
    for name, value in before["model.safetensors"].items():
        now = grown["weights"][name]
        assert torch.equal(now[:2] if name == TOKENS else now, value), name
    for key, value in before["optimizer.safetensors"].items():
        now = grown["optimizer"][key]
        rows = now[:2] if key.startswith(TOKENS) and value.ndim == 2 else now
        assert torch.equal(rows, value), key
        if key.startswith(TOKENS) and value.ndim == 2:
            assert not now[2:].any()
    new = [n for n in grown["weights"] if n not in before["model.safetensors"]]
    assert new
    assert all(n.startswith(("decoder.stacks.2.", "decoder.cross.2.", "decoder.heads.2.")) for n in new)
    state = run.model.state_dict()
    assert any(not torch.equal(state[n], grown["weights"][n]) for n in new)


def test_channels_are_appended_in_order():
    assert appended(["a", "b"], ["c", "b", "d"]) == ("a", "b", "c", "d")


def test_a_missing_average_is_named(tmp_path):
    with pytest.raises(CamaeError, match="moving average"):
        checkpoints.read_average(tmp_path)
