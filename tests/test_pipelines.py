"""Pipelines of the page and of `examples/`: the commands that rules run, exit codes, going on after a stop."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer.main

from camae.cli.application import app

ROOT = Path(__file__).parents[1]
SNAKEFILE = ROOT / "examples" / "Snakefile"
WORDS = {
    "input": "plates/P1", "input.plate": "plates/P1", "output": "out/x.csv", "log": "log.txt",
    "params.model": "runs/a", "params.folder": "out/P1", "params.metadata": "--metadata wells.csv",
    "params.profiles": "camae=a.parquet", "params.pairs": "pairs", "plate": "plates/P1", "plate.name": "P1",
    "params.shards": "shards",
}  # fmt: skip


def commands():
    """Commands `camae ...` of the Snakefile's rules and of the page's Nextflow process, with words for the blanks."""
    rules = re.findall(r'shell:\n((?:\s+"[^\n]*"\n)+)', SNAKEFILE.read_text())
    lines = ["".join(re.findall(r'"([^"]*)"', rule)) for rule in rules]
    page = (ROOT / "docs" / "pipelines.md").read_text()
    lines += re.findall(r"^\s*(camae embed \$.*)$", page, re.MULTILINE)
    return [re.sub(r"\$?\{([\w.]+)\}", lambda found: WORDS[found[1]], line).split(" > ")[0] for line in lines]


@pytest.mark.parametrize("line", commands())
def test_commands_of_rules_are_commands_with_these_options(line):
    program, *words = shlex.split(line)
    assert program == "camae"
    command = typer.main.get_command(app)
    while getattr(command, "commands", None):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words, resilient_parsing=False)


def test_every_rule_is_looked_at():
    assert len(commands()) == SNAKEFILE.read_text().count("shell:") + 1 == 4


def snakemake(folder, *options, program):
    config = ["screen=plates", "model=model", "pairs=plates/known.csv", "out=results", "metadata=wells.csv"]
    command = [program, "-s", str(SNAKEFILE), "--cores", "1", *options, "--config", *config]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_snakefile_stops_and_goes_on(tmp_path):
    program = os.environ.get("SNAKEMAKE") or shutil.which("snakemake")
    if program is None:
        pytest.skip("snakemake is not installed; SNAKEMAKE names one of another environment")
    write_example(tmp_path)
    broken = tmp_path / "plates" / "plate2" / "plate2_A01_s1_w1.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    done = snakemake(tmp_path, "--keep-going", program=program)
    assert done.returncode == 1, done.stderr
    first = tmp_path / "results" / "embeddings" / "plate1" / "wells.parquet"
    before = first.stat().st_mtime_ns
    assert "1 problems found" in (tmp_path / "results" / "logs" / "check-plate2.txt").read_text()
    assert not (tmp_path / "results" / "map.csv").exists()
    broken.write_bytes(whole)
    done = snakemake(tmp_path, program=program)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == before  # what was done is not done again
    assert len(pd.read_csv(tmp_path / "results" / "map.csv")) > 10


def write_example(folder):
    """Two plates of the generated screen, a folder each, a table of wells, known pairs and a small model."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "examples")!r})
from generated_screen import write_screen
from pathlib import Path
import camae, shutil
from camae.dataloader import read_manifest
folder = Path({str(folder)!r})
write_screen(folder / "all", plates=2)
for plate in ("plate1", "plate2"):
    (folder / "plates" / plate).mkdir(parents=True)
    for path in (folder / "all").glob(plate + "_*"):
        shutil.move(path, folder / "plates" / plate)
shutil.move(folder / "all" / "known_pairs.csv", folder / "plates" / "known.csv")
shutil.move(folder / "all" / "wells.csv", folder / "wells.csv")
small = {{"crop": 96, "width": 48, "depth": 1, "heads": 3, "decoder": "small", "layer_scale": 1.0}}
camae.train(
    read_manifest(folder / "plates" / "plate1"), "ca_mae_vit_ti16", folder / "model", steps=2, batch_size=4,
    model_options=small,
)
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=folder
    )


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_ray_example_goes_on_by_plate_and_exits_with_the_codes_of_the_page(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'camae[ray]'")

    def run(*options):
        command = [sys.executable, str(ROOT / "examples" / "ray_data.py"), "--cpus", "2", *map(str, options)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)

    done = run("--out", tmp_path)
    assert done.returncode == 0, done.stderr
    plates = [tmp_path / "plates" / f"plate{i}.parquet" for i in (1, 2)]
    first, kept = plates[0].read_bytes(), plates[1].stat().st_mtime_ns
    assert len(pd.read_parquet(plates[0])) == 72
    plates[0].unlink()
    options = ("--images", tmp_path / "images", "--model", tmp_path / "model")
    again = run("--out", tmp_path, *options)
    assert "plate plate2: there already" in again.stdout
    assert plates[1].stat().st_mtime_ns == kept
    one, other = pd.read_parquet(plates[0]), pd.read_parquet(tmp_path / "plates" / "plate1.parquet")
    assert plates[0].read_bytes() == first or one.equals(other)
    wrong = run("--out", tmp_path / "other", "--images", tmp_path / "nowhere", "--model", "x")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: ")
