"""Every command on a disk that is full, or that kills its writer, at the n-th write, for a sample of all n."""

import io
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from failing_disk import FULL, KILL, FailingDisk
from PIL import Image
from shell_commands import NAMES, output_of

pytestmark = pytest.mark.timeout(900)

# Journals grow line by line; their times, and a stopped run's events, differ from run to run.
JOURNALS = ("log.jsonl", "events.jsonl", "pack_zstd.jsonl")
OF_TIMES = ("results.json", "paper.html", "report.html")
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


@dataclass(frozen=True)
class Command:
    """A command and the folder of its output. inside: a file it writes beside, which is in that folder too."""

    name: str
    arguments: list[object]
    folder: Path
    inside: Path | None

    def fresh(self) -> Path:
        """The folder, as it is before the command's first run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if self.inside is not None:
            shutil.copy(self.inside, self.folder)
        return self.folder


@pytest.fixture
def command(every, model_file, tmp_path):
    """command(name): with its output in a folder of its own."""

    def make(name):
        folder = tmp_path / "disk"
        more = {
            "embed": ["--sites-per-shard", "4"],
            "train": ["--set", "checkpoint_every=1", "--set", "picture_every=1", "--set", "ema=0.9"],
        }
        arguments = [*every[name], output_of(name, folder), *more.get(name, [])]
        if name != "layers":
            return Command(name, arguments, folder, None)
        # The chosen block is kept beside the model.
        return Command(
            name, [folder / a.name if a == model_file else a for a in arguments], folder, model_file
        )

    return make


def files_in(folder):
    """Bytes of every file by its name, locks and times apart."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in LOCKS):
        data = b"" if path.name in OF_TIMES + JOURNALS else path.read_bytes()
        # The time of writing (a report is a page without a suffix here), the seconds of systems and of the demo.
        if path.suffix in (".html", ".csv", ".json") or data.startswith(b"<!doctype html>"):
            data = re.sub(rb'\d{4}-\d\d-\d\d \d\d:\d\d|,\d+(?=,embeddings/)|"seconds": [0-9.]+', b"", data)
        hidden = path.name.startswith(".")  # half-written
        # Of the demo: holds the times of its own images.
        if "work" in path.parts and path.suffix == ".parquet" and not hidden:
            data = pd.read_parquet(path).to_csv().encode()
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


def resumed(disk, command, whole, where):
    again = disk.run(command.arguments, command.folder)
    assert again.code == 0, f"{where}: {again.err}"
    found = files_in(command.folder)
    assert sorted(found) == sorted(whole), where
    assert [n for n in whole if found[n] != whole[n]] == [], where


def uninterrupted(disk, command):
    whole = disk.run(command.arguments, command.fresh())
    assert whole.code == 0, whole.err
    return whole, files_in(command.folder)


def check_every_write(disk, command, mode, most):
    first, whole = uninterrupted(disk, command)
    numbers = sample(first.writes, most)
    assert numbers
    for number in numbers:
        folder = command.fresh()
        ended = disk.run(command.arguments, folder, mode, number)
        where = f"{command.name}, write {number}: {first.writes[number - 1]}"
        if mode == KILL:
            assert ended.code in (-9, 0), where
        elif ended.code == 0 and len(ended.writes) < number:
            pass  # threads put lines together: this run made fewer writes, and none was refused
        elif ended.code == 0:
            missing = [n for n in whole if files_in(folder).get(n) != whole[n]]
            assert command.name == "train", where
            assert [n for n in missing if not n.endswith(PICTURES)] == [], where
            assert missing == [] or "could not be" in ended.err, where
        else:
            assert ended.code == 2, f"{where}: {ended.err}"
            assert "cannot be written: the disk is full" in ended.sentence, where
        is_complete(where, files_in(folder), whole)
        resumed(disk, command, whole, where)


FEW, MANY = 2, 24
QUICK = [name for name in NAMES if name != "demo"]  # which takes half a minute


@pytest.mark.parametrize("name", QUICK)
def test_fault_23_a_full_disk_at_some_writes_of_every_command(disk, command, name):
    check_every_write(disk, command(name), FULL, FEW)


@pytest.mark.parametrize("name", ["train", "pack", "benchmark", "report", "layers", "explore", "patch-map"])
def test_killed_at_some_writes_of_every_command(disk, command, name):
    check_every_write(disk, command(name), KILL, FEW)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_fault_23_a_full_disk_at_many_writes_of_every_command(disk, command, name):
    check_every_write(disk, command(name), FULL, MANY)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_many_writes_of_every_command(disk, command, name):
    check_every_write(disk, command(name), KILL, MANY)


@pytest.mark.full
@pytest.mark.parametrize("name", ["pack", "benchmark", "report", "train", "map", "layers", "explore"])
def test_killed_again_and_again_at_arbitrary_moments(disk, command, name):
    """Every run is killed at a random moment, and each goes on from what the ones before it left."""
    made = command(name)
    uninterrupted(disk, made)  # the next has its imports
    first, whole = uninterrupted(disk, made)
    folder = made.fresh()
    random_, killed = random.Random(0), 0
    for _ in range(10):
        ended = disk.run(made.arguments, folder, kill_after=random_.uniform(0.1, 0.8) * first.seconds)
        assert ended.code in (-9, 0), ended.err
        killed += ended.code == -9
        is_complete(name, files_in(folder), whole)
        if ended.code == 0:  # faster than the first: from the start again
            made.fresh()
    assert killed > 0
    resumed(disk, made, whole, name)
