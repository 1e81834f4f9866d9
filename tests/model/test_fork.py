"""Forked processes and threads: a child of fork() computes, and a model that threads share is left as it was."""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from camae.model.eval_mode import eval_mode

FORK = """
import os, sys
import numpy as np, torch
import camae
from camae.model import CAMAE, preset, save
assert torch.get_num_threads() == 2
decoder = {"width": 32, "depth": 1, "heads": 4}
options = {"crop": 32, "patch": 8, "width": 32, "heads": 2, "depth": 2, "decoder": decoder}
save(CAMAE(preset("ca_mae_vit_ti16", channels=("a", "b"), **options)), sys.argv[1])
model = camae.load(sys.argv[1])
images = np.random.default_rng(0).integers(0, 5000, (8, 2, 32, 32)).astype(np.uint16)
embed = lambda: camae.embed(images, ["a", "b"], model=model)
before = embed() if sys.argv[2] == "used" else None
if sys.argv[2] == "used":
    torch.rand(1500, 1500) @ torch.rand(1500, 1500)
    model.loss(images, ["a", "b"])["total"].backward()
child = os.fork()
if child == 0:
    assert torch.get_num_threads() == 1
    found = embed()
    model.loss(images, ["a", "b"])["total"].backward()
    os._exit(0 if np.isfinite(found).all() and (before is None or np.allclose(found, before, atol=1e-5)) else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert torch.get_num_threads() == 2
embed()
sys.exit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.parametrize("parent", ["loaded", "used"])
def test_fault_20_a_forked_child_embeds(tmp_path, parent):
    """The parent has loaded a model, or also computed with it on two threads; the child must not wait for ever."""
    command = [sys.executable, "-c", FORK, str(tmp_path / "model.safetensors"), parent]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_fault_21_the_last_thread_restores_the_mode():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()  # frozen by the user: it must stay so
    with ExitStack() as first:
        first.enter_context(eval_mode(model))
        with eval_mode(model):
            assert not model.training
        assert not model[0].training
    assert (model.training, model[0].training, model[1].training, model[1][0].training) == (
        True,
        True,
        False,
        False,
    )


def test_fault_21_many_threads_always_see_evaluation_mode():
    model, wrong = nn.Dropout(0.5).train(), []
    ones = torch.ones(100)

    def work():
        for _ in range(200):
            with eval_mode(model):
                if not torch.equal(model(ones), ones):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert model.training
