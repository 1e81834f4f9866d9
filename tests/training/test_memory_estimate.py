"""Memory of a run: estimated before the first step, refused with the setting to lower, cut to passes on a CPU."""

import json
import subprocess
import sys

import pytest

from camae.errors import CamaeError
from camae.model import CAMAE, preset
from camae.training import trainer as loop
from camae.training.checkpoint_files import checkpoint_folders, read_state
from camae.training.config import TrainConfig
from camae.training.memory_estimate import estimate, parameter_count

_FACTOR = 1.5  # how far a peak may be from its estimate, either way

# What a step's process reaches at most, in bytes, and what was estimated.
PEAK = """
import json, resource, sys, warnings
import torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
import camae
from camae.training import memory_estimate
found = []
estimate = memory_estimate.estimate
memory_estimate.estimate = lambda *given: found.append(estimate(*given)) or found[-1]
memory_estimate.choose_passes = lambda *given: None
camae.train(sys.argv[1], out=sys.argv[2], steps=1, quiet=True, **json.loads(sys.argv[3]))
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, found[0].total(found[0].tokens)]))
"""


@pytest.mark.full
@pytest.mark.parametrize(
    "settings",
    [
        {"model": "ca_mae_vit_ti16", "batch_size": 12},
        {"model": "ca_mae_vit_s16", "batch_size": 12, "model_options": {"decoder": "small"}},
        {"model": "ca_mae_vit_s16", "batch_size": 6, "recompute": 1, "optimizer": "adamw"},
        {"model": "ca_mae_vit_b16", "batch_size": 2, "model_options": {"decoder": "cross"}},
    ],
)
def test_fault_22_peaks_are_near_their_estimates(make_screen, tmp_path, settings):
    screen = make_screen("large", size=300, plates=1, wells=2)
    command = [sys.executable, "-c", PEAK, str(screen), str(tmp_path / "run"), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, estimated = json.loads(done.stdout.splitlines()[-1])
    assert peak / _FACTOR < estimated < peak * _FACTOR


@pytest.mark.parametrize("decoder", ["paper", "released", "small", "cross"])
@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_parameters_by_formula(decoder, block):
    c = preset("ca_mae_vit_ti16", channels=("a", "b", "c"), decoder=decoder, block=block)
    assert parameter_count(c) == sum(p.numel() for p in CAMAE(c).parameters())


def test_fault_22_the_default_run_is_cut_to_passes_of_a_few_gigabytes():
    found = estimate(TrainConfig(), preset("ca_mae_vit_b16", channels=tuple("abcdef")), [6], 1, False)
    assert found.total(found.tokens) > 20e9  # "takes 21.5 GB and is killed"
    from camae.training.memory_estimate import choose_passes

    budget = choose_passes(found, 23e9)
    assert found.total(budget) < 9e9
    assert budget >= found.largest_crop
    assert found.total(choose_passes(found, 7e9)) <= 7e9


def test_fault_22_too_little_memory_is_refused_before_anything_is_made(screen, train, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "free_memory", lambda: 10**8)
    with pytest.raises(
        CamaeError, match=r"would take about .* GB of memory and this machine has 0.1 GB free"
    ):
        train(screen, tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()


def test_fault_22_a_batch_set_by_hand_is_refused_with_the_setting_to_lower(
    screen, train, tmp_path, monkeypatch
):
    free = 2 * 10**9
    monkeypatch.setattr(loop, "free_memory", lambda: free)
    with pytest.raises(
        CamaeError, match=r"set micro_batch to at most \d+, or lower batch_size, or set recompute = 1"
    ):
        train(screen, tmp_path / "run", 1, batch_size=20_000, micro_batch=20_000)
    with pytest.raises(CamaeError, match=r"set token_budget to at most \d+"):
        train(screen, tmp_path / "run", 1, batch_size=20_000, token_budget=20_000 * 48)


def test_images_read_ahead_that_do_not_fit_are_named(screen, train, tmp_path):
    with pytest.raises(
        CamaeError,
        match=r"GB for images read ahead, .*the images of batch_size = 10,000,000 crops.*lower batch_size$",
    ):
        train(screen, tmp_path / "run", batch_size=10_000_000)
    assert not (tmp_path / "run").exists()


def test_fault_22_wide_and_deep_models_are_refused_before_they_are_allocated(screen, train, tmp_path):
    options = {"crop": 32, "patch": 8, "width": 2**15, "heads": 2, "depth": 1000}
    with pytest.raises(CamaeError, match=r"GB of memory .* take a smaller model or crop"):
        train(screen, tmp_path / "run", 1, model_options=options)


def test_fault_22_chosen_passes_change_no_loss_and_are_kept_on_resume(
    screen, train, tiny, tmp_path, monkeypatch, interrupt
):
    """Losses of two passes are those of one up to rounding; with stochastic depth the event says what differs."""
    whole = train(screen, tmp_path / "whole", 4, optimizer="adamw")
    monkeypatch.setattr(
        "camae.training.memory_estimate.choose_passes", lambda found, free, *_: found.tokens // 2
    )
    with pytest.warns(
        UserWarning, match=r"each step's 4 crops are computed in passes of at most 2, .* up to rounding;"
    ):
        cut = train(screen, tmp_path / "cut", 4, optimizer="adamw", checkpoint_every=2)
    assert [r["loss"] for r in cut.history] == pytest.approx([r["loss"] for r in whole.history], rel=1e-4)
    assert read_state(checkpoint_folders(cut.path)[-1])["token_budget"] == 4 * 3 * 16 // 2
    deep = {"model_options": tiny["model_options"] | {"drop_path": 0.2}, "checkpoint_every": 2}
    with pytest.warns(UserWarning, match="only stochastic depth .* drops other samples"):
        unbroken = train(screen, tmp_path / "unbroken", 4, **deep)
    with pytest.warns(UserWarning, match="in passes"), interrupt(3):
        train(screen, tmp_path / "parts", 4, **deep)
    monkeypatch.setattr(
        "camae.training.memory_estimate.choose_passes", lambda found, free, *_: None
    )  # more memory than before
    resumed = train(screen, tmp_path / "parts", 4, **deep)
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in unbroken.history]


def test_fault_22_an_allocator_that_refuses_is_one_sentence(screen, train, tmp_path, monkeypatch):
    def refuse(self, *rest):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loop.Trainer, "_train_losses", refuse)
    with pytest.raises(
        CamaeError, match="a step of 4 crops does not fit into the memory of cpu; set micro_batch"
    ):
        train(screen, tmp_path / "run", 1)
