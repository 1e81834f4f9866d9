"""`camae explore`: the same options as in Python, folders of embeddings and models by name."""

import inspect

import pandas as pd
import pytest
from explored_screen import PAIRS, PageData, write_images, write_profiles
from shell_commands import one_sentence

from camae.cli.explore import explore as command
from camae.reporting import explore


def test_options_are_those_of_python():
    names = [set(inspect.signature(f).parameters) for f in (command, explore)]
    assert names[0] == names[1]
    ours, python = (inspect.signature(f).parameters for f in (command, explore))
    assert {n for n in ours if ours[n].default != python[n].default} == set()


def test_folder_of_embeddings_and_images(shell, tmp_path):
    write_profiles(tmp_path / "emb" / "wells.parquet")
    manifest = write_images(tmp_path / "images")
    pd.DataFrame(PAIRS, columns=["gene_a", "gene_b"]).to_csv(tmp_path / "CORUM.csv", index=False)
    code, out, errors = shell(
        *("explore", tmp_path / "emb", "--images", manifest, "--pairs", tmp_path / "CORUM.csv"),
        *("--dose", "Metadata_Dose", "--size", 32, "--layout", "pca", "--title", "A [b]screen[/b]"),
    )
    assert code == 0, errors
    page = tmp_path / "emb" / "explore" / "index.html"
    assert str(page) in out
    data = PageData(page).data
    assert (data["about"]["title"], data["sources"], data["models"][0]["name"]) == (
        "A [b]screen[/b]",
        ["CORUM"],
        "wells",
    )
    assert (page.parent / data["thumbnails"]["wells"]["gene00"][0]["file"]).is_file()


def test_models_by_name_into_one_file(shell, tmp_path):
    a, b = write_profiles(tmp_path / "a" / "wells.parquet"), write_profiles(tmp_path / "b.parquet", 1)
    out = tmp_path / "both.html"
    code, _, errors = shell("explore", f"first={a.parent}", f"second={b}", "--out", out, "--layout", "pca")
    assert code == 0, errors
    assert [model["name"] for model in PageData(out).data["models"]] == ["first", "second"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b.parquet", "both.html"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layout", "tsne"], ["unknown layout 'tsne'; choose one of auto, pca, umap"]),
        (["--crop", "-1"], ["crop=-1: must be 0 or more"]),
        (["--size", "100000"], ["size=100000: thumbnails have sides of at most 2048 px"]),
        (["--dose", "Conc"], ["the profiles have no column Conc for the dose"]),
    ],
)
def test_refusals(shell, tmp_path, options, words):
    path = write_profiles(tmp_path / "wells.parquet")
    one_sentence(shell("explore", path, *options), *words)


def test_what_was_left_out_is_said(shell, tmp_path):
    path, manifest = write_profiles(tmp_path / "wells.parquet"), write_images(tmp_path / "images")
    (tmp_path / "images" / "3_DNA.tif").write_text("junk")
    arguments = (
        "explore",
        path,
        "--images",
        manifest,
        "--out",
        tmp_path / "o",
        "--size",
        32,
        "--layout",
        "pca",
    )
    code, _, errors = shell(*arguments)
    assert code == 0, errors
    assert "1 well left out: its image cannot be read for a thumbnail (first: P1 A04)" in errors
    assert "P1 A04" in (tmp_path / "o" / "left_out.csv").read_text()


def test_components_that_an_alignment_does_not_keep(shell, profiles, tmp_path):
    one_sentence(
        shell(
            "explore", profiles(), "--method", "center", "--components", "3", "--out", tmp_path / "page.html"
        ),
        "components=3 would change nothing: the alignment 'center' keeps no principal components",
    )
