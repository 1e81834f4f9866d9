"""C++ blocks run on the workers that torch has: none beside them, as many as torch is set to, in a forked child one."""

import subprocess
import sys

import pytest

from camae.kernels._cpu import instructions

pytestmark = pytest.mark.skipif(not instructions(), reason="no AVX2 here, or no native module")

SCRIPT = """
import os, sys
import numpy as np, torch
import camae
from camae.model import CAMAE, preset

torch.set_num_threads(int(sys.argv[1]))
decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
small = {"width": 64, "heads": 2, "depth": 2, "crop": 64, "patch": 8, "decoder": decoder}
model = CAMAE(preset("ca_mae_vit_ti16", channels=("DNA", "ER"), **small)).eval()
images = np.random.default_rng(0).integers(0, 999, (4, 2, 64, 64)).astype(np.uint16)
vectors = camae.embed(images, ["DNA", "ER"], model, backends="block=reference")
torch.randn(512, 512) @ torch.randn(512, 512)
before = len(os.listdir("/proc/self/task"))
vectors = camae.embed(images, ["DNA", "ER"], model)
print(before, len(os.listdir("/proc/self/task")))
sys.stdout.flush()
child = os.fork()
if child == 0:
    same = np.array_equal(camae.embed(images, ["DNA", "ER"], model), vectors)
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_no_threads_beside_those_of_torch(threads):
    """Three on two cores too: as many as torch's own products have, whose number is the user's."""
    command = [sys.executable, "-c", SCRIPT, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    before, after, child = map(int, done.stdout.split())
    assert before == after
    assert child == 0
