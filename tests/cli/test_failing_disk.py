"""Every command on a disk that is full, or that kills its writer, at the n-th write, for a sample of all n."""

import io
import random
import re
import shutil

import numpy as np
import pytest
from failing_disk import FULL, KILL, FailingDisk
from PIL import Image
from shell_commands import NAMES

pytestmark = pytest.mark.timeout(900)

# Journals grow line by line; their times, and a stopped run's events, differ from run to run.
JOURNALS = ("log.jsonl", "events.jsonl", "pack_zstd.jsonl")
OF_TIMES = ("results.json", "paper.html")
LOCKS = (".lock", ".lock.merge")
# Pictures of a training are drawn anew at later steps; without them it is finished all the same, and says so.
PICTURES = (".png", ".npz")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler: the failing disk cannot be built")
    disk = FailingDisk(tmp_path_factory.mktemp("failing_disk"))
    yield disk
    disk.close()


@pytest.fixture
def command(every, tmp_path):
    """command(name): its arguments, and its output in a folder of its own."""

    def make(name):
        out = tmp_path / "disk" / ("new.safetensors" if name == "convert" else "new")
        more = {
            "embed": ["--sites-per-shard", "4"],
            "train": ["--set", "checkpoint_every=1", "--set", "picture_every=1", "--set", "ema=0.9"],
        }
        return [*every[name], out, *more.get(name, [])], out

    return make


def files_in(folder):
    """Bytes of every file by its name, locks and times apart."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in LOCKS):
        data = b"" if path.name in OF_TIMES + JOURNALS else path.read_bytes()
        if path.suffix in (".html", ".csv"):  # the time of writing, the seconds of the paper's systems
            data = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d|,\d+(?=,embeddings/)", b"", data)
        found[str(path.relative_to(folder))] = data
    return {name: data for name, data in found.items() if not name.endswith("events.jsonl")}


def sample(writes, most):
    """Numbers of writes, from 1: the first, middle and last of each kind; at most so many, spread evenly."""
    kinds = {}
    for number, write in enumerate(writes, 1):
        kinds.setdefault(re.sub(r"\d+", "0", write), []).append(number)
    chosen = sorted({numbers[i] for numbers in kinds.values() for i in (0, len(numbers) // 2, -1)})
    if len(chosen) <= most:
        return chosen
    return sorted({chosen[round(i * (len(chosen) - 1) / (most - 1))] for i in range(most)})


def is_complete(name, found, whole):
    """Every file under its own name is whole: it is as the uninterrupted run has it."""
    hidden = [n for n in found if any(part.startswith(".") for part in n.split("/"))]
    half = [n for n in found if n not in hidden and found[n] != whole.get(n) and not is_picture(n, found[n])]
    assert half == [], f"{name}: half-written files under their own names"


def is_picture(name, data):
    """Whether it is a whole picture of a training: it opens to the end."""
    if not name.startswith("new/") or not name.endswith(PICTURES):
        return False
    if name.endswith(".npz"):
        with np.load(io.BytesIO(data)) as arrays:
            return all(arrays[key].size for key in arrays)
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
    return True


def resumed(disk, arguments, folder, whole, where):
    again = disk.run(arguments, folder)
    assert again.code == 0, f"{where}: {again.err}"
    found = files_in(folder)
    assert sorted(found) == sorted(whole), where
    assert [n for n in whole if found[n] != whole[n]] == [], where


def uninterrupted(disk, arguments, folder):
    whole = disk.run(arguments, folder)
    assert whole.code == 0, whole.err
    again = files_in(folder)
    shutil.rmtree(folder)
    return whole, again


def every_write(disk, arguments, folder, mode, most, name):
    first, whole = uninterrupted(disk, arguments, folder)
    numbers = sample(first.writes, most)
    assert numbers
    for number in numbers:
        folder.mkdir()
        ended = disk.run(arguments, folder, mode, number)
        where = f"{name}, write {number}: {first.writes[number - 1]}"
        if mode == KILL:
            assert ended.code in (-9, 0), where
        elif ended.code == 0 and len(ended.writes) < number:
            pass  # threads put lines together: this run made fewer writes, and none was refused
        elif ended.code == 0:
            missing = [n for n in whole if files_in(folder).get(n) != whole[n]]
            assert name == "train", where
            assert [n for n in missing if not n.endswith(PICTURES)] == [], where
            assert missing == [] or "could not be" in ended.err, where
        else:
            assert ended.code == 2, f"{where}: {ended.err}"
            assert "cannot be written: the disk is full" in ended.sentence, where
        is_complete(where, files_in(folder), whole)
        resumed(disk, arguments, folder, whole, where)
        shutil.rmtree(folder)


# The demo trains, embeds and reports through the functions of the other commands.
COMMANDS = [name for name in NAMES if name != "demo"]
FEW, MANY = 2, 24


def check_every_write(disk, command, mode, most, name):
    arguments, out = command(name)
    out.parent.mkdir()
    every_write(disk, arguments, out.parent, mode, most, name)


@pytest.mark.parametrize("name", COMMANDS)
def test_fault_23_a_full_disk_at_some_writes_of_every_command(disk, command, name):
    check_every_write(disk, command, FULL, FEW, name)


@pytest.mark.parametrize("name", ["train", "pack", "benchmark", "report"])
def test_killed_at_some_writes_of_every_command(disk, command, name):
    check_every_write(disk, command, KILL, FEW, name)


@pytest.mark.full
@pytest.mark.parametrize("name", COMMANDS)
def test_fault_23_a_full_disk_at_many_writes_of_every_command(disk, command, name):
    check_every_write(disk, command, FULL, MANY, name)


@pytest.mark.full
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_many_writes_of_every_command(disk, command, name):
    check_every_write(disk, command, KILL, MANY, name)


@pytest.mark.full
@pytest.mark.parametrize("name", ["pack", "benchmark", "report", "train", "map"])
def test_killed_again_and_again_at_arbitrary_moments(disk, command, name):
    """Every run is killed at a random moment, and each goes on from what the ones before it left."""
    arguments, out = command(name)
    folder = out.parent
    folder.mkdir()
    uninterrupted(disk, arguments, folder)  # the next has its imports
    folder.mkdir()
    first, whole = uninterrupted(disk, arguments, folder)
    folder.mkdir()
    random_, killed = random.Random(0), 0
    for _ in range(10):
        ended = disk.run(arguments, folder, kill_after=random_.uniform(0.1, 0.8) * first.seconds)
        assert ended.code in (-9, 0), ended.err
        killed += ended.code == -9
        is_complete(name, files_in(folder), whole)
        if ended.code == 0:  # faster than the first: from the start again
            shutil.rmtree(folder)
            folder.mkdir()
    assert killed > 0
    resumed(disk, arguments, folder, whole, name)
