"""Numbered faults of tables, labels, readers and options at the shell; signals, and the time of the help."""

import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import tifffile
from shell_commands import PROGRAM, SLOW, SMALL, one_sentence, seconds

from camae.cli import application
from camae.training.config import TrainConfig


def test_fault_32_map_takes_any_table_and_any_names_of_columns(shell, profiles, pairs, tmp_path):
    table = pd.read_parquet(profiles())
    code, usual, _ = shell("map", tmp_path / "wells.parquet", pairs)
    assert code == 0
    renamed = table.rename(
        columns={
            "Metadata_Perturbation": "Metadata_Gene",
            "Metadata_Plate": "Metadata_Barcode",
            "Metadata_control_type": "Metadata_Role",
        }
    ).replace({"Metadata_Role": {"negcon": "neg"}})
    renamed.to_csv(tmp_path / "wells.csv", index=False)
    columns = ["--perturbation", "Metadata_Gene", "--plate", "Metadata_Barcode"]
    columns += ["--control", "Metadata_Role", "--negative", "neg"]
    code, other, errors = shell("map", tmp_path / "wells.csv", pairs, *columns)
    assert code == 0, errors
    assert other.splitlines()[-1] == usual.splitlines()[-1]


def test_fault_32_files_of_plates_are_one_screen_and_named_files_are_models(shell, profiles, pairs, tmp_path):
    whole = pd.read_parquet(profiles())
    for plate, rows in whole.groupby("Metadata_Plate"):
        rows.to_parquet(tmp_path / f"{plate}.parquet", index=False)
    other = profiles("other.parquet", seed=5)
    code, one, _ = shell("map", tmp_path / "wells.parquet", pairs)
    code, parts, errors = shell("map", tmp_path / "P1.parquet", tmp_path / "P2.parquet", pairs)
    assert code == 0, errors
    assert parts.splitlines()[-1] == one.splitlines()[-1]
    names = [f"ours={tmp_path / 'wells.parquet'}", f"theirs={other}"]
    code, both, errors = shell("map", *names, pairs, "--out", tmp_path / "top.csv")
    assert code == 0, errors
    assert "ours:" in both
    assert "theirs:" in both
    assert set(pd.read_csv(tmp_path / "top.csv")["model"]) == {"ours", "theirs"}


def test_fault_32_map_and_benchmark_give_the_same_recall(shell, profiles, pairs, tmp_path):
    table = profiles()
    code, said, errors = shell("map", table, pairs, "--method", "tvn")
    assert code == 0, errors
    code, _, errors = shell("benchmark", table, "--pairs", pairs, "--out", tmp_path / "bench")
    assert code == 0, errors
    rows = pd.read_csv(tmp_path / "bench" / "table3.csv")
    assert float(said.splitlines()[-1].split()[1]) == rows["recall"].iloc[0] == 1


@pytest.mark.parametrize("command", ["embed", "train", "pack", "check", "plan"])
def test_fault_33_a_plain_folder_is_labeled_at_the_shell(shell, plain_folder, model_file, tmp_path, command):
    labels = ["--metadata", tmp_path / "labels.csv"]
    labels += ["--negative-control", "DMSO", "--negative-control", "water"]
    out = tmp_path / "out"
    arguments = {
        "embed": ["embed", plain_folder, "--model", model_file, "--out", out],
        "train": ["train", plain_folder, "--out", out, *[w for w in SMALL if w != "val=plate"][:-1]],
        "pack": ["pack", plain_folder, "--out", out],
        "check": ["data", "check", plain_folder, "--out", out / "problems.csv"],
        "plan": ["data", "plan", plain_folder],
    }
    code, said, errors = shell(*arguments[command], *labels)
    assert code == 0, errors + said
    assert "3 of 3 rows matched" in said
    assert "1 file left out" in said
    if command in ("embed", "pack"):
        table = pd.read_parquet(out / {"embed": "wells.parquet", "pack": "manifest.parquet"}[command])
        assert table["Metadata_Perturbation"].tolist() == ["TP53", "DMSO", "water"]
        assert table["Metadata_control_type"].tolist() == ["", "negcon", "negcon"]
    if command != "plan":
        name = "problems.left_out.csv" if command == "check" else "left_out.csv"
        assert "notes_of_the_day.tif" in (out / name).read_text()


def test_fault_33_labels_that_match_nothing_are_refused(shell, plain_folder, tmp_path):
    (tmp_path / "labels.csv").write_text("Well,gene\nH11,TP53\n")
    one_sentence(
        shell("data", "check", plain_folder, "--metadata", tmp_path / "labels.csv"), "no row matches"
    )
    one_sentence(shell("data", "check", plain_folder, "--negative-control", "DMSO"))


def test_fault_33_a_plan_of_a_screen_that_is_not_here(shell, screen):
    for file in screen.parent.glob("*.tif"):
        file.unlink()
    code, said, errors = shell("data", "plan", screen)
    assert code == 0, errors
    assert "24 missing" in said
    code, said, _ = shell("data", "check", screen)
    assert code == 1
    assert "24 problems found, looked at 24 planes of 8 sites" in said


def test_fault_25_every_command_that_reads_images_has_a_reader(shell, screen, model_file, tmp_path):
    for file in screen.parent.glob("*.tif"):
        tifffile.imwrite(file, tifffile.imread(file).astype(np.float32))
    check = ["data", "check", screen]
    assert shell(*check)[0] == 1
    code, said, _ = shell(*check, "--reader", "tifffile")
    assert code == 0
    assert "no problems found, looked at 24 planes of 8 sites in 8 wells of 2 plates" in said
    assert shell("pack", screen, "--out", tmp_path / "p", "--reader", "tifffile")[0] == 0
    train = ["train", screen, "--out", tmp_path / "run", *SMALL, "--set", "value_range=[0, 65535]"]
    code, _, errors = shell(*train, "--reader", "tifffile")
    assert code == 0, errors
    one_sentence(shell(*check, "--reader", "magic"), "magic")
    one_sentence(shell(*check, "--known", "magic"), "magic")


def test_fault_34_options_of_reading_are_the_same_everywhere():
    import inspect

    import typer.main

    import camae
    from camae.embedding.config import ReadOptions

    group = typer.main.get_command(application.app).commands
    reading = set(ReadOptions.__dataclass_fields__)
    for command in (group[n] for n in ("train", "embed", "pack", "paper")):
        assert reading | {"reader"} <= {p.name for p in command.params}, command.name
    for command in group["data"].commands.values():
        assert reading | {"reader"} <= {p.name for p in command.params}, command.name
    assert reading <= set(inspect.signature(camae.train).parameters)
    assert "reader" in TrainConfig.__dataclass_fields__


def test_fault_34_arguments_of_python_are_options_of_the_shell():
    import inspect

    import typer.main

    import camae
    from camae.maps import map_screen
    from camae.reproduction.benchmark.run_benchmark import run_benchmark
    from camae.reproduction.demo.run_demo import run_demo
    from camae.reproduction.paper.run_paper import run_paper

    group = typer.main.get_command(application.app).commands
    for name, function, other in (
        ("map", map_screen, {"wells", "options"}),
        ("benchmark", run_benchmark, set()),
        ("paper", run_paper, {"recipe", "reading", "console"}),
        ("demo", run_demo, {"console"}),
        ("report", camae.report, set()),
    ):
        shell = {p.name for p in group[name].params}
        assert set(inspect.signature(function).parameters) - other <= shell, name


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_stops_embed_with_whole_shards(screen, model_file, tmp_path, signals):
    out = tmp_path / "emb"
    command = [
        "embed",
        screen,
        "--model",
        model_file,
        "--out",
        out,
        "--sites-per-shard",
        "1",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(seconds=0.4), *map(str, command), "--tokens-per-pass", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(out.glob("sites/part-*.parquet")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    if signals == 2:
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "goes on from there" in said
    assert 0 < len(list(out.glob("sites/part-*.parquet"))) < 8
    assert not [p.name for p in (out / "sites").iterdir() if p.name.startswith(".")]
    done = subprocess.run(
        [PROGRAM, *map(str, command), "--tokens-per-pass", "60"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "8 wells embedded" in done.stdout


def test_help_is_quick():
    assert seconds(PROGRAM, "--help") < 0.3
    assert seconds(sys.executable, "-c", "import camae") < 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embed", "", "--out", "o"], "an argument is empty; is a variable of the shell unset?"),
        (["embed", "x", "--out", ""], "the value of --out is empty; is a variable of the shell unset?"),
        (["map", "x", "y", "--out="], "the value of --out is empty; is a variable of the shell unset?"),
        (["explore", ""], "an argument is empty; is a variable of the shell unset?"),
        (["map", "x", "y", "--plate", ""], "x does not exist"),
    ],
)
def test_an_unset_variable_of_the_shell_is_not_the_folder_one_is_in(
    shell, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    assert words in one_sentence(shell(*arguments))
    assert list(tmp_path.iterdir()) == []
