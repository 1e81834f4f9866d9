"""Training end to end on a tiny screen: resume is exact, settings are checked, runs say what they did."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import torch

import camae
from camae.errors import CamaeError
from camae.training.run_log import read_log

TINY = {
    "model_options": {
        "crop": 32,
        "patch": 8,
        "width": 32,
        "heads": 2,
        "depth": 2,
        "drop_path": 0.2,
        "decoder": {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4},
    },
    "batch_size": 4,
    "quiet": True,
}


def run(screen, out, steps=6, **settings):
    return camae.train(screen, "ca_mae_vit_ti16", out, steps, **(TINY | settings))


def losses(history):
    return [row["loss"] for row in history]


@pytest.mark.parametrize("optimizer", ["lion", "adamw"])
def test_resume_is_bitwise(screen, tmp_path, interrupt, optimizer):
    whole = run(screen, tmp_path / "whole", optimizer=optimizer, checkpoint_every=100)
    with interrupt(4):
        run(screen, tmp_path / "parts", optimizer=optimizer, checkpoint_every=3)
    assert len(read_log(tmp_path / "parts" / "log.jsonl")) >= 3
    resumed = run(screen, tmp_path / "parts", optimizer=optimizer, checkpoint_every=3)
    assert losses(resumed.history) == losses(whole.history)
    for (name, a), (_, b) in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_killed_process_resumes_exactly(screen, tmp_path):
    """SIGKILL at an arbitrary moment, then the same command again: one unbroken loss sequence."""
    whole = run(screen, tmp_path / "whole", steps=30, checkpoint_every=5)
    script = (
        "import camae, torch\n"
        f"camae.train({str(screen)!r}, 'ca_mae_vit_ti16', {str(tmp_path / 'killed')!r}, 30, "
        f"checkpoint_every=5, **{TINY!r})"
    )
    log = tmp_path / "killed" / "log.jsonl"
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(read_log(log)) < 12 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = run(screen, tmp_path / "killed", steps=30, checkpoint_every=5)
    assert [row["step"] for row in resumed.history] == list(range(1, 31))
    assert losses(resumed.history) == pytest.approx(losses(whole.history), rel=0, abs=0)


def test_accumulation_equals_one_batch(screen, tmp_path):
    """Gradients of two half batches add to that of the whole: losses agree to fp32 rounding."""
    options = TINY["model_options"] | {"drop_path": 0.0}
    one = run(screen, tmp_path / "one", steps=1, model_options=options, optimizer="adamw")
    two = run(screen, tmp_path / "two", steps=1, model_options=options, optimizer="adamw", accumulate=2)
    # masks are drawn batch by batch from one stream, so the same numbers are drawn in the same order
    assert two.history[0]["loss"] == pytest.approx(one.history[0]["loss"], rel=1e-5)
    assert two.history[0]["grad_norm"] == pytest.approx(one.history[0]["grad_norm"], rel=1e-4)


def test_loss_falls(screen, tmp_path):
    options = TINY["model_options"] | {"decoder": TINY["model_options"]["decoder"] | {"cross_residual": True}}
    settings = {"optimizer": "adamw", "lr": 3e-3, "augment": False, "model_options": options}
    history = run(screen, tmp_path / "run", steps=120, **settings).history
    first, last = losses(history)[:10], losses(history)[-10:]
    assert sum(last) < 0.9 * sum(first)


def test_run_folder_says_what_ran(screen, tmp_path):
    done = run(screen, tmp_path / "run", steps=2, val="plate")
    record = json.loads((done.path / "run.json").read_text())
    # The installed package is 2.11.0 where the library calls itself 2.11.0+cu130.
    assert record["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record["training_sites"] == record["validation_sites"] == 4
    assert (done.path / "config.toml").read_text().startswith("model =")
    assert done.history[-1]["val_mse"] > 0
    assert camae.load(done.path).channels == ["DNA", "ER", "Mito"]


def test_resolved_copy_repeats_the_run(screen, tmp_path):
    first = run(screen, tmp_path / "first", steps=2)
    again = camae.train(screen, out=tmp_path / "again", config=first.path / "config.toml", quiet=True)
    assert losses(again.history) == losses(first.history)


def test_other_settings_do_not_continue_a_run(screen, tmp_path):
    run(screen, tmp_path / "run", steps=2)
    with pytest.raises(CamaeError, match=r"other settings \(lr\)"):
        run(screen, tmp_path / "run", steps=2, lr=1.0)
    with pytest.raises(CamaeError, match="already holds a run"):
        run(screen, tmp_path / "run", steps=2, resume=False)


def test_init_and_freeze(screen, tmp_path):
    first = run(screen, tmp_path / "first", steps=2)
    second = run(screen, tmp_path / "second", steps=2, init=str(first.path), freeze=["encoder"])
    for a, b in zip(first.model.encoder.parameters(), second.model.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    before, after = first.model.decoder.state_dict(), second.model.decoder.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_init_keeps_known_channels_and_starts_new_ones(screen, tmp_path):
    first = run(screen, tmp_path / "first", steps=2)
    channels = ["Mito", "Lipid", "DNA", "ER"]
    second = run(
        screen,
        tmp_path / "second",
        steps=1,
        lr=1e-12,
        weight_decay=0.0,
        channels=channels,
        init=str(first.path),
    )
    record = json.loads((second.path / "run.json").read_text())
    assert record["decoders_started_anew"] == ["Lipid"]
    old, new = first.model.decoder.stacks[2], second.model.decoder.stacks[0]  # Mito
    for a, b in zip(old.parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "sgd"}, "not 'lion' or 'adamw'"),
        ({"accumulate": 3}, "not a multiple of accumulate"),
        ({"color": 3}, "unknown training settings color"),
        ({"val": "well"}, "use 'plate', 'experiment'"),
        ({"val": "plate:P9"}, "no plate P9"),
        ({"val": "experiment"}, "hold out everything"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"freeze": ["color"]}, "no parameter is named 'color'"),
        ({"channels": ["DNA", "ER"]}, "no decoder for channel 'Mito'"),
        ({"model_options": {"crop": 64, "patch": 8, "width": 32, "heads": 2}}, "larger than"),
        ({"init": "nowhere"}, "no such model"),
    ],
)
def test_bad_settings_are_one_sentence(screen, tmp_path, settings, sentence):
    with pytest.raises(CamaeError, match=sentence):
        run(screen, tmp_path / "run", steps=1, **settings)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p.unlink(), "A02.*ER.*P1_A02_ER.tif"),
        (lambda p: p.write_bytes(p.read_bytes()[:2000]), "A02.*ER.*P1_A02_ER.tif"),
        (lambda p: tifffile.imwrite(p, np.zeros((16, 16), np.uint16)), "A02"),
        (lambda p: tifffile.imwrite(p, np.full((48, 48), 7, np.uint16)), "A02.*ER.*P1_A02_ER.tif.*constant"),
        (lambda p: tifffile.imwrite(p, np.full((48, 48), 0.5, np.float32)), "A02"),
    ],
)
def test_bad_files_are_named(screen, tmp_path, change, sentence):
    change(screen.parent / "P1_A02_ER.tif")
    with pytest.raises(CamaeError, match=sentence):
        run(screen, tmp_path / "run", steps=8)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_float_images_need_their_range_and_no_nan(screen, tmp_path):
    for path in screen.parent.glob("*.tif"):
        tifffile.imwrite(path, (tifffile.imread(path) / 65535).astype(np.float32))
    with pytest.raises(CamaeError, match="value_range"):
        run(screen, tmp_path / "run", steps=2, reader="tifffile")
    assert (
        run(screen, tmp_path / "ranged", steps=2, reader="tifffile", value_range=(0, 1)).history[-1]["loss"]
        < 3
    )
    tifffile.imwrite(screen.parent / "P2_A03_DNA.tif", np.full((48, 48), np.nan, np.float32))
    with pytest.raises(CamaeError, match=r"A03.*DNA.*P2_A03_DNA.tif.*NaN"):
        run(screen, tmp_path / "nan", steps=4, reader="tifffile", value_range=(0, 1))


def test_missing_and_broken_configuration(tmp_path, screen):
    with pytest.raises(CamaeError, match="no such configuration file"):
        camae.train(screen, out=tmp_path / "run", config=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(CamaeError, match="not valid TOML"):
        camae.train(screen, out=tmp_path / "run", config=tmp_path / "bad.toml")


def test_the_run_folder_is_required(screen):
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'out'"):
        camae.train(screen, steps=1)


def test_arguments_by_position(screen, tmp_path):
    done = run(screen, tmp_path / "run", 1)
    assert (done.path, done.history[-1]["step"]) == (tmp_path / "run", 1)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'out'"):
        camae.train(screen, "ca_mae_vit_ti16", tmp_path / "run", out=tmp_path / "run")
    with pytest.raises(TypeError, match="positional arguments"):
        camae.train(screen, "ca_mae_vit_ti16", tmp_path / "run", 1, "config.toml", out=tmp_path / "run")
