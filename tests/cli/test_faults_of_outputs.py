"""Numbered faults of what is printed and written: markup, disks that refuse, devices, progress."""

import re
import resource
import subprocess

import pandas as pd
import pytest
import torch
from shell_commands import (
    HARD,
    MARKUP,
    NAMES,
    PROGRAM,
    in_the_way,
    nowhere,
    one_sentence,
    output_of,
)

import camae
from camae.errors import CamaeError


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
    assert "a\\nb" in one_sentence(shell("data", "check", "a\nb"))


def test_fault_18_stages_of_demo_and_paper_are_printed_as_they_are(capsys):
    from camae.progress import plain_printer

    plain_printer()("1/5 a small screen in runs/[red]demo[/such] " + 100 * "x")
    assert capsys.readouterr().out == "1/5 a small screen in runs/[red]demo[/such] " + 100 * "x" + "\n"


@pytest.mark.parametrize("place", [in_the_way, nowhere])
@pytest.mark.parametrize("name", NAMES)
def test_fault_23_an_output_that_cannot_be_made_is_one_sentence(shell, every, tmp_path, name, place):
    out = output_of(name, place(tmp_path))
    one_sentence(shell(*every[name], out), "written")


@pytest.mark.parametrize("name", NAMES)
def test_fault_23_a_full_disk_is_one_sentence(shell, every, tmp_path, name):
    """A limit of zero bytes for every file of this process stands in for a disk without space."""
    out = output_of(name, tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, HARD))
    try:
        result = shell(*every[name], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
    one_sentence(result, "written")


def test_fault_23_a_full_stdout_is_one_sentence(screen):
    done = subprocess.run(
        [PROGRAM, "data", "plan", screen],
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fault_24_cuda_without_a_gpu_is_one_sentence(shell, screen, model_file, tmp_path):
    arguments = ["embed", screen, "--model", model_file, "--out", tmp_path / "emb", "--device", "cuda"]
    one_sentence(shell(*arguments), "device 'cuda'", "no GPU", "cpu")


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


def test_no_output_replaces_what_is_read(shell, profiles, pairs, screen, model_file):
    table = profiles()
    inputs = [table, pairs, screen, model_file]
    before = [path.read_bytes() for path in inputs]
    one_sentence(shell("map", table, pairs, "--out", table), table, "this is written as .csv")
    one_sentence(shell("map", table, pairs, "--out", pairs), pairs, "is read here")
    one_sentence(shell("map", table, pairs.parent, "--activity", pairs), pairs, "is read here")
    new = table.with_name("new.csv")
    one_sentence(shell("map", table, pairs, "--out", new, "--activity", new), new, "is named for two outputs")
    one_sentence(shell("data", "check", screen, "--out", screen), screen, "is read here")
    assert [path.read_bytes() for path in inputs] == before
    assert not new.exists()


def test_a_report_replaces_no_model(shell, every, model_file):
    _, run, _ = every["report"]
    before = model_file.read_bytes()
    one_sentence(shell("report", run, "--out", model_file), model_file, "this is written as .html")
    assert model_file.read_bytes() == before


def test_no_output_goes_among_the_images(shell, screen, model_file):
    folder = screen.parent
    before = sorted(folder.rglob("*"))
    for command in (
        ["train", folder, "--out", folder],
        ["embed", folder, "--model", model_file, "--out", folder / "."],
        ["pack", folder, "--out", folder],
    ):
        one_sentence(shell(*command), folder, "is the folder that is read; name another for what is written")
    with pytest.raises(CamaeError, match="is the folder that is read"):
        camae.embed_screen(folder, model_file, folder)
    assert sorted(folder.rglob("*")) == before
