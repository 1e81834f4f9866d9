"""Faults that were found once, by their numbers, at the shell: outputs, markup, labels, screens, signals, progress."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from camae.cli import application, console
from camae.embedding_table import make_table, write_table
from camae.training.config import TrainConfig

CAMAE = str(Path(sys.executable).parent / "camae")
HARD = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
SMALL = [
    *("--set", "model_options.crop=32", "--set", "model_options.patch=8", "--set", "model_options.width=32"),
    *("--set", "model_options.heads=2", "--set", "model_options.depth=1", "--set", "batch_size=4"),
    *("--set", "model_options.decoder={width=32, depth=1, heads=4, cross_heads=4}"),
    *("--model", "ca_mae_vit_ti16", "--steps", "2", "--set", "val=plate"),
]


@pytest.fixture
def shell(monkeypatch, capsys):
    """shell(*arguments): what `camae` does with them in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    console._noted.clear()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["camae", *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as ended:
                application.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def one_sentence(result, *words):
    """The one line on stderr of a refusal, which holds these words."""
    code, _, errors = result
    lines = [line for line in errors.strip().splitlines() if not line.startswith("note:")]
    assert code == 2, errors
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert not lines[0].endswith(".")
    for word in words:
        assert str(word) in lines[0]
    return lines[0]


@pytest.fixture
def profiles(tmp_path):
    """profiles(name, plates, seed): a table of wells of two plates, in which gene0 and gene1 are alike."""

    def make(name="wells.parquet", plates=("P1", "P2"), seed=0, genes=None):
        rng = np.random.default_rng(seed)
        names = genes or [f"gene{i}" for i in range(8)]
        base = rng.normal(size=(len(names), 6)) * 3
        base[1] = base[0] + 0.1
        rows, vectors = [], []
        for plate in plates:
            for i in range(len(names) + 12):
                control = i >= len(names)
                rows.append(
                    {
                        "Metadata_Plate": plate,
                        "Metadata_Well": f"{'ABCD'[i // 12]}{i % 12 + 1:02d}",
                        "Metadata_Perturbation": "DMSO" if control else names[i],
                        "Metadata_control_type": "negcon" if control else "",
                    }
                )
                vectors.append(rng.normal(size=6) * 0.5 + (0 if control else base[i]))
        path = tmp_path / name
        write_table(path, make_table(pd.DataFrame(rows), np.array(vectors)), {})
        return path

    return make


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b\ngene0,gene1\n")
    return tmp_path / "pairs.csv"


# 18: text of users


MARKUP = ["x[red].tif", "no[/such]", "[bold]camae[gpu]", "a\\[b]"]


@pytest.mark.parametrize("name", MARKUP)
def test_fault_18_names_are_printed_as_they_are_by_every_command(shell, name, tmp_path):
    for arguments in (
        ["embed", name, "--out", tmp_path / "o", "--model", "m"],
        ["train", name, "--out", tmp_path / "o"],
        ["data", "check", name],
        ["data", "plan", name],
        ["pack", name, "--out", tmp_path / "o"],
        ["map", name, name],
        ["benchmark", name, "--out", tmp_path / "o"],
        ["report", name],
        ["convert", name, tmp_path / "o.safetensors"],
        ["paper", name, "--out", tmp_path / "o"],
        ["runs", "compare", name],
    ):
        one_sentence(shell(*arguments), name)


def test_fault_18_copy_commands_and_usage_errors(shell, tmp_path, screen):
    folder = tmp_path / "cpg0016-jump" / "source_4" / "images" / "b[red]"
    table = pd.read_csv(screen, dtype=str, keep_default_na=False)
    for channel in ("DNA", "ER", "Mito"):
        table[channel] = [f"{folder}/{name}" for name in table[channel]]
    table.to_csv(tmp_path / "far.csv", index=False)
    code, said, _ = shell("data", "plan", tmp_path / "far.csv", "--destination", "[/here]")
    assert code == 0
    assert "24 on S3" in said
    assert said.count("source_4/images/b[red]") == 2
    assert "[/here]" in said
    code, _, errors = shell("embed", "x", "--out", "y", "--no[/such]")
    assert code == 2
    assert "No such option: --no[/such]" in errors


def test_fault_18_terminal_codes_in_names_are_shown_not_obeyed(shell):
    assert "\\x1b[2Jx" in one_sentence(shell("data", "check", "\x1b[2Jx"))
    assert "a b" in one_sentence(shell("data", "check", "a\nb"))


def test_fault_18_stages_of_demo_and_paper_are_printed_as_they_are(capsys):
    from camae.progress import plain_printer

    plain_printer()("1/5 a small screen in runs/[red]demo[/such] " + 100 * "x")
    assert capsys.readouterr().out == "1/5 a small screen in runs/[red]demo[/such] " + 100 * "x" + "\n"


# 23: outputs


def in_the_way(tmp_path):
    """A file where a folder or another file would be made."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


def nowhere(tmp_path):
    """A folder of a file system in which nothing can be made."""
    return Path("/proc/camae-out")


def commands(screen, model_file, table, pairs, run):
    """Commands by name, each without its output, which comes last."""
    return {
        "embed": ["embed", screen, "--model", model_file, "--out"],
        "benchmark": ["benchmark", table, "--pairs", pairs, "--bootstrap", "10", "--out"],
        "map": ["map", table, pairs, "--out"],
        "convert": ["convert", model_file],
        "pack": ["pack", screen, "--out"],
        "check": ["data", "check", screen, "--out"],
        "demo": ["demo", "--out"],
        "paper": ["paper", screen, "--quick", "--system", "random", "--out"],
        "report": ["report", run, "--out"],
        "compare": ["runs", "compare", run, "--out"],
        "train": ["train", screen, *SMALL, "--out"],
    }


@pytest.fixture
def every(screen, model_file, profiles, pairs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"model": {"name": "m"}}')
    (run / "config.toml").write_text("steps = 2\n")
    (run / "log.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss": {1 / i}, "crops": {i}}}\n' for i in (1, 2))
    )
    return commands(screen, model_file, profiles(), pairs, run)


NAMES = [
    "embed",
    "benchmark",
    "map",
    "convert",
    "pack",
    "check",
    "demo",
    "paper",
    "report",
    "compare",
    "train",
]


@pytest.mark.parametrize("place", [in_the_way, nowhere])
@pytest.mark.parametrize("name", NAMES)
def test_fault_23_an_output_that_cannot_be_made_is_one_sentence(shell, every, tmp_path, name, place):
    out = place(tmp_path)
    if name == "convert":
        out = out.with_suffix(".safetensors")
    one_sentence(shell(*every[name], out), "written")


@pytest.mark.parametrize("name", NAMES)
def test_fault_23_a_full_disk_is_one_sentence(shell, every, tmp_path, name):
    """A limit of zero bytes for every file of this process stands in for a disk without space."""
    out = tmp_path / ("new.safetensors" if name == "convert" else "new")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, HARD))
    try:
        result = shell(*every[name], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
    one_sentence(result, "written")


def test_fault_23_a_full_stdout_is_one_sentence(screen):
    done = subprocess.run(
        [CAMAE, "data", "plan", screen],
        stdout=open("/dev/full", "w"),  # noqa: SIM115
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("limit", [1, 700, 3_000, 12_000, 20_000])
def test_fault_23_embed_resumes_after_a_full_disk(shell, every, tmp_path, limit):
    whole, out = tmp_path / "whole", tmp_path / "new"
    few = ["--sites-per-shard", "2"]
    assert shell(*every["embed"], whole, *few)[0] == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, HARD))
    try:
        result = shell(*every["embed"], out, *few)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
    one_sentence(result, "written")
    assert not [p for p in out.rglob(".*") if p.suffix in (".parquet", ".json")]
    assert shell(*every["embed"], out, *few)[0] == 0
    for name in ("wells.parquet", "ledger.json", "sites/part-00003.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_fault_23_anndata_on_a_full_disk_is_one_sentence(profiles, tmp_path):
    pytest.importorskip("anndata")
    from camae.embedding import to_anndata
    from camae.errors import CamaeError

    table = profiles()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, HARD))
    try:
        with pytest.raises(CamaeError, match=r"new\.h5ad cannot be written"):
            to_anndata(table, tmp_path / "new.h5ad")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
    assert not (tmp_path / "new.h5ad").exists()


# 24: devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fault_24_cuda_without_a_gpu_is_one_sentence(shell, screen, model_file, tmp_path):
    arguments = ["embed", screen, "--model", model_file, "--out", tmp_path / "emb", "--device", "cuda"]
    one_sentence(shell(*arguments), "device 'cuda'", "no GPU", "cpu")


# 30: progress where stdout is no terminal


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("embed", r"embedding sites: \d+/8 \(\d+%\)"),
        ("check", r"checking planes: \d+/24"),
        ("pack", r"packing planes: \d+/24"),
    ],
)
def test_fault_30_plain_lines_of_progress(shell, every, tmp_path, monkeypatch, name, words):
    monkeypatch.setenv("CAMAE_PROGRESS_SECONDS", "0.0001")
    code, said, _ = shell(*every[name], tmp_path / "new")
    assert code == 0
    assert len(re.findall(words, said)) >= 2
    assert "\x1b" not in said


# 32: map and benchmark at the shell


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
    code, _, errors = shell(
        "benchmark", table, "--pairs", pairs, "--out", tmp_path / "bench", "--bootstrap", "10"
    )
    assert code == 0, errors
    rows = pd.read_csv(tmp_path / "bench" / "table3.csv")
    assert float(said.splitlines()[-1].split()[1]) == rows["recall"].iloc[0] == 1


# 33: labels of a plain folder


@pytest.fixture
def plain_folder(tmp_path):
    """Three wells of two channels without labels, and a table of labels."""
    folder = tmp_path / "plate"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for well in ("A01", "A02", "B01"):
        for channel in ("DNA", "ER"):
            name = f"P1_{well}_s1_{channel}.tif"
            tifffile.imwrite(folder / name, rng.integers(0, 4000, (48, 48)).astype(np.uint16))
    (folder / "notes_of_the_day.tif").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("Well,gene\na1,TP53\nA2,DMSO\nB1,water\n")
    return folder


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


# 25, and what data check looked at


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


# 34: the same options in Python and at the shell


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


# Signals and speed


SLOW = """
import sys, time
import camae.embedding.worker as worker
original = worker.read_site
def slow(*arguments, **options):
    print("reading", flush=True)
    time.sleep({seconds})
    return original(*arguments, **options)
worker.read_site = slow
from camae.cli import main
main()
"""


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
        [CAMAE, *map(str, command), "--tokens-per-pass", "60"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "8 wells embedded" in done.stdout


def seconds(*command):
    """Processor time, the best of five, so that a busy machine does not decide."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True, env=os.environ | {"COLUMNS": "100"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_is_quick():
    assert seconds(CAMAE, "--help") < 0.3
    assert seconds(sys.executable, "-c", "import camae") < 0.1
