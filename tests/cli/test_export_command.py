"""`camae export`: one table through every form, and the sentences of wrong calls."""

import numpy as np
import pandas as pd
import pytest
from shell_commands import one_sentence

from camae.embedding_table import make_table, read_table, write_table

ABOUT = {"model": "a", "model_hash": "0123"}


@pytest.fixture
def sites(tmp_path):
    rng = np.random.default_rng(0)
    place = [("B", "P", well, site) for well in ("A01", "B02") for site in ("1", "2")]
    names = ["Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    table = make_table(pd.DataFrame(place, columns=names), rng.normal(size=(4, 3)))
    return write_table(tmp_path / "sites.parquet", table, ABOUT)


def test_a_table_through_every_form_and_back(sites, tmp_path, shell):
    pytest.importorskip("anndata")
    layout = tmp_path / "dl"
    for source, out, options, said in (
        (sites, tmp_path / "a.h5ad", (), "1 file written"),
        (tmp_path / "a.h5ad", layout, ("--network", "a-0123"), "4 files written"),
        (layout / "embeddings", tmp_path / "npz", ("--network", "a-0123", "--form", "npz"), "and 1 more"),
        (tmp_path / "npz", tmp_path / "back.parquet", (), "back.parquet"),
    ):
        code, out_text, err = shell("export", source, "--out", out, *options)
        assert code == 0, err
        assert said in out_text
    (table, about), (back, about_back) = read_table(sites), read_table(tmp_path / "back.parquet")
    pd.testing.assert_frame_equal(table, back, check_exact=True)
    assert about == about_back == ABOUT


def test_wrong_calls_are_one_sentence(sites, tmp_path, shell):
    for words, sentence in (
        ((tmp_path / "none.parquet", "--out", tmp_path / "a.parquet"), "no such embeddings table"),
        ((sites, "--out", tmp_path / "dl"), "name the model and its hash by network="),
        ((sites, "--out", tmp_path / "dl", "--network", "a/b"), "makes no name of a folder"),
        ((sites, "--out", tmp_path / "dl", "--network", "a", "--form", "zarr"), "is none of parquet, npz"),
    ):
        code, _, err = shell("export", *words)
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sentence in err


def test_formats_that_are_none_of_a_table(shell, profiles, tmp_path):
    for name in ("x.csv", "x.npz"):
        one_sentence(
            shell("export", profiles(), "--out", tmp_path / name),
            name,
            "a table is exported as .parquet, .h5ad, or a folder of the Gallery's layout",
        )
        assert not (tmp_path / name).exists()
