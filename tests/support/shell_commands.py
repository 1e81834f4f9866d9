"""Shell commands that write, and what their outputs are refused with, for the tests of the shell."""

import os
import resource
import subprocess
import sys
from pathlib import Path

PROGRAM = str(Path(sys.executable).parent / "camae")


HARD = resource.getrlimit(resource.RLIMIT_FSIZE)[1]


SMALL = [
    *("--set", "model_options.crop=32", "--set", "model_options.patch=8", "--set", "model_options.width=32"),
    *("--set", "model_options.heads=2", "--set", "model_options.depth=1", "--set", "batch_size=4"),
    *("--set", "model_options.decoder={width=32, depth=1, heads=4, cross_heads=4}"),
    *("--model", "ca_mae_vit_ti16", "--steps", "2", "--set", "val=plate"),
]


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


MARKUP = ["x[red].tif", "no[/such]", "[bold]camae[gpu]", "a\\[b]"]


def in_the_way(tmp_path):
    """A file where a folder or another file would be made."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


def nowhere(tmp_path):
    """A folder of a file system in which nothing can be made."""
    return Path("/proc/camae-out")


def commands(screen, model_file, table, pairs, run, genes, labeled):
    """Commands by name, each without its output, which comes last."""
    tables = ["--arms", genes["arms"], "--expression", genes["expression"], "--target", "Metadata_Target"]
    evaluate = ["--model", model_file, "--quiet", "--device", "cpu", "--out"]
    return {
        "embed": ["embed", screen, "--model", model_file, "--out"],
        "benchmark": ["benchmark", table, "--pairs", pairs, *tables, "--out"],
        "map": ["map", table, pairs, "--out"],
        "convert": ["convert", model_file],
        "pack": ["pack", screen, "--out"],
        "check": ["data", "check", screen, "--out"],
        "demo": ["demo", "--out"],
        "paper": ["paper", screen, "--quick", "--system", "random", "--out"],
        "report": ["report", run, "--out"],
        "compare": ["runs", "compare", run, "--out"],
        "train": ["train", screen, *SMALL, "--out"],
        "patch-map": ["patch-map", labeled, "--model", model_file, "--perturbation", "gene0", "--out"],
        "explore": ["explore", table, "--images", labeled, "--pairs", pairs, "--layout", "pca", "--out"],
        "explore-page": ["explore", table, "--layout", "pca", "--out"],
        "layers": ["evaluate", "layers", labeled, *evaluate],
        "channels": ["evaluate", "channels", labeled, "--nested", *evaluate],
    }


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
    "patch-map",
    "explore",
    "explore-page",
    "layers",
    "channels",
]
# What an output is called whose name says what it is.
FILES = {"convert": "new.safetensors", "explore-page": "new.html"}


def output_of(name, folder):
    """Output of a command in a folder."""
    return folder / FILES.get(name, "new")


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


def seconds(*command):
    """Processor time, the best of five, so that a busy machine does not decide."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True, env=os.environ | {"COLUMNS": "100"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)
