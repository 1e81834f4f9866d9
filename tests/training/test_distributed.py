"""Several processes as one run: gradients, order of the data, killed ranks, other world sizes on resume."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from camae.training.run_log import read_log

# What a rank runs; `arguments` come as JSON, or as a global from the fork server. Rank 1 can be told to die, once.
SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
arguments = globals().get("arguments") or json.loads(sys.argv[1])
os.environ.update(arguments["env"])
sys.stderr = open(arguments["out"] + ".stderr", "a")
import camae
from camae.training import trainer as loop
step = loop.Trainer._step
def watched(self, n, batches):
    mark = arguments.get("die")
    if mark and n == mark["step"] and os.environ.get("RANK") == "1" and not os.path.exists(mark["file"]):
        open(mark["file"], "w").close()
        os.kill(os.getpid(), 9)
    taken = []
    def tapped():
        for batch in batches:
            taken.extend(int(s) for s in batch.slots_B)
            yield batch
    found = step(self, n, tapped())
    with open(f"{arguments['out']}.rank{self.world.rank}of{self.world.size}.jsonl", "a") as file:
        file.write(json.dumps([n, taken]) + "\\n")
    return found
loop.Trainer._step = watched
data = arguments["data"]
camae.train(data if isinstance(data, str) else [tuple(d) for d in data], out=arguments["out"], **arguments["settings"])
"""
_LIMIT = 600  # seconds; a machine under load starts processes slowly


@pytest.fixture(scope="module")
def server():
    """Processes are forked from one that has imported everything: a rank starts in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["camae.training.trainer", "camae.training.sharded_checkpoint", "torch.distributed.fsdp"]
    )
    return context


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def arguments_of(tiny, data, out, settings, **more):
    return {"data": data, "out": str(out), "settings": tiny | settings, "env": {}} | more


@pytest.fixture
def launch(tmp_path, tiny, server):
    """launch(ranks, data, out, **settings): that many processes, to their end; ranks=1 is a run without groups."""
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)

    def start(ranks, data, out, **settings):
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
        processes = []
        for rank in range(ranks):
            env = address | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            given = {"arguments": arguments_of(tiny, data, out, settings, env=env)}
            processes.append(server.Process(target=runpy.run_path, args=(str(script), given)))
        for process in processes:
            process.start()
        for process in processes:
            process.join(_LIMIT)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * ranks, (out.parent / f"{out.name}.stderr").read_text()[-3000:]

    return start


@pytest.fixture
def torchrun(tmp_path, tiny):
    """torchrun(data, out, restarts, die=None, **settings) -> its process, with two ranks."""
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)

    def start(data, out, restarts=0, die=None, **settings):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--monitor-interval=0.1",
        ]
        command += [f"--max-restarts={restarts}", f"--master-port={free_port()}", str(script)]
        return subprocess.Popen(
            [*command, json.dumps(arguments_of(tiny, data, out, settings, die=die))],
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )

    return start


def slots_by_step(out, since=0):
    """step -> slots that any rank of any launch of a run took, in order of slot."""
    taken = {}
    for path in out.parent.glob(f"{out.name}.rank*.jsonl"):
        for line in path.read_text().splitlines():
            step, slots = json.loads(line)
            taken.setdefault(step, set()).update(slots)
    return {step: sorted(slots) for step, slots in sorted(taken.items()) if step >= since}


def rows(out, key):
    return [row[key] for row in read_log(out / "log.jsonl")]


def close(ours, theirs, rel):
    assert ours == pytest.approx(theirs, rel=rel)


@pytest.fixture
def mixture(make_screen):
    """Two screens, one of them with channels the other lacks: ranks see different channels in a step."""
    six = make_screen("six", channels=("DNA", "ER", "RNA", "AGP", "Mito", "Actin"), wells=2, seed=1)
    three = make_screen("three", channels=("DNA", "ER", "Lipid"), wells=3, seed=2)
    return [[str(six), 1], [str(three), 1]]


# Losses and gradient norms after k steps: fp32 sums in another order (1e-7 relative each) amplified by AdamW's
# first steps, where a gradient near its rounding still moves a weight by up to lr. Three steps stay below 1e-4.
REL = 1e-4


@pytest.mark.parametrize(
    ("parallel", "mask_channels"), [("ddp", 0.0), ("fsdp", 0.0), ("ddp", 0.4), ("fsdp", 0.4)]
)
def test_ranks_compute_what_one_process_does(launch, mixture, tmp_path, parallel, mask_channels):
    """Three ranks, uneven shares of 8 crops, two passes a step, channels not seen by a rank or hidden."""
    settings = {"steps": 3, "batch_size": 8, "accumulate": 2, "optimizer": "adamw", "detail_every": 1}
    settings["mask_channels"] = mask_channels
    launch(1, mixture, tmp_path / "one", **settings)
    launch(3, mixture, tmp_path / parallel, parallel=parallel, **settings)
    for key in ("loss", "mse", "grad_norm", "data/six", "channel/DNA"):
        close(rows(tmp_path / parallel, key), rows(tmp_path / "one", key), REL)
    assert slots_by_step(tmp_path / parallel) == slots_by_step(tmp_path / "one")
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in (parallel, "one"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # AdamW turns a gradient of rounding size into a step of up to lr in each of 3 steps (lr peaks at 1e-4).
        assert (value - theirs[name]).abs().max() < 3 * 2 * 1e-4, name


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_compute_the_terms_that_one_process_does(launch, mixture, tmp_path, parallel, train):
    """Two ranks with replicate pairs, a teacher, channels hidden, two passes a step; heads in the checkpoint too."""
    teacher = train([path for path, _ in mixture], tmp_path / "teacher", 1).path
    settings = {"steps": 3, "batch_size": 16, "accumulate": 2, "optimizer": "adamw", "checkpoint_every": 3}
    settings |= {"cross_well": 0.5, "cross_well_group": 4, "teacher": str(teacher), "mask_channels": 0.3}
    launch(1, mixture, tmp_path / "one", **settings)
    launch(2, mixture, tmp_path / parallel, parallel=parallel, **settings)
    for key in ("loss", "cross_well", "distillation", "grad_norm"):
        close(rows(tmp_path / parallel, key), rows(tmp_path / "one", key), REL)
    assert slots_by_step(tmp_path / parallel) == slots_by_step(tmp_path / "one")
    whole = rows(tmp_path / parallel, "loss")
    launch(1, mixture, tmp_path / parallel, **settings | {"steps": 3})
    assert rows(tmp_path / parallel, "loss") == whole


@pytest.mark.parametrize(
    ("parallel", "before", "after", "optimizer"),
    [
        ("ddp", 2, 1, "lion"),
        ("ddp", 1, 2, "adamw"),
        ("fsdp", 4, 2, "lion"),
        ("fsdp", 2, 1, "adamw"),
        ("fsdp", 1, 2, "lion"),
    ],
)
def test_another_world_size_on_resume(launch, mixture, tmp_path, parallel, before, after, optimizer):
    """The last three steps again, from the checkpoint before, by another number of ranks: same data and losses."""
    settings = {"steps": 6, "batch_size": 8, "optimizer": optimizer, "checkpoint_every": 3}
    out = tmp_path / "run"
    plain = {"parallel": parallel} if before > 1 else {}
    launch(before, mixture, out, **settings | plain)
    whole = rows(out, "loss")
    newest = out / "checkpoints" / "step_00000006"
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    launch(after, mixture, out, **settings | ({"parallel": parallel} if after > 1 else {}))
    assert rows(out, "step") == [1, 2, 3, 4, 5, 6]
    close(rows(out, "loss"), whole, REL)
    assert slots_by_step(out) == {n: list(range(8 * n, 8 * n + 8)) for n in range(6)}


def test_a_killed_rank_and_torchruns_restart(launch, torchrun, screen, tmp_path):
    """SIGKILL of rank 1 in step 4: torchrun starts both again, and they go on from step 3."""
    out, settings = tmp_path / "run", {"steps": 6, "checkpoint_every": 3}
    mark = tmp_path / "died"
    process = torchrun(str(screen), out, restarts=1, die={"step": 4, "file": str(mark)}, **settings)
    assert process.wait(_LIMIT) == 0
    assert mark.exists()
    launch(2, str(screen), tmp_path / "whole", **settings)
    assert rows(out, "step") == [1, 2, 3, 4, 5, 6]
    assert rows(out, "loss") == rows(tmp_path / "whole", "loss")


def test_sigterm_to_torchrun_saves_and_stops_all_ranks(torchrun, screen, tmp_path):
    out = tmp_path / "run"
    process = torchrun(str(screen), out, steps=100_000, checkpoint_every=100_000)
    deadline = time.monotonic() + _LIMIT
    while len(read_log(out / "log.jsonl")) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(_LIMIT) != 0
    steps = [p.name for p in (out / "checkpoints").iterdir()]
    assert len(steps) == 1
    assert int(steps[0].removeprefix("step_")) == len(read_log(out / "log.jsonl"))
