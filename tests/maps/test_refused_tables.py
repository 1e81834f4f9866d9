"""Tables and files of profiles, pairs and aligners that cannot be used, refused in one sentence."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from explored_screen import wells_table

from camae import maps
from camae.errors import CamaeError, MissingFileError

TABLE = pd.DataFrame({"f0": np.arange(20) + 0.5, "f1": np.arange(20) - 0.5})


def refused(call, sentence):
    with pytest.raises(CamaeError, match=sentence):
        call()


@pytest.mark.parametrize("ending", ["csv", "parquet", "memory"])
def test_features_without_metadata_have_rows(tmp_path, ending):
    path = tmp_path / f"p.{ending}"
    if ending == "memory":
        path = TABLE
    elif ending == "csv":
        TABLE.to_csv(path, index=False)
    else:
        TABLE.to_parquet(path, index=False)
    if ending != "memory":
        meta, x = maps.read_profiles(path)
        assert (meta.shape, x.shape) == ((20, 0), (20, 2))
    refused(
        lambda: maps.map_screen(path), "have no column Metadata_Plate for the plate; there are features alone"
    )
    refused(lambda: maps.map_screen(path, perturbation=3), "have no column Metadata_Plate")


@pytest.mark.parametrize("values", [["1"] * 24, [True] * 24, [0.5, "x"] * 12])
def test_features_in_memory_are_numbers(values):
    table = wells_table()
    table["emb_0003"] = pd.Series(values * (-(-len(table) // 24)))[: len(table)]
    refused(
        lambda: maps.map_screen(table), "the column 'emb_0003' holds .* where numbers are needed; convert it"
    )


def test_features_in_types_of_pandas():
    table = wells_table()
    other = table.astype({"emb_0003": "Float64", "emb_0004": "Float32"})
    np.testing.assert_allclose(maps.map_screen(other).vectors, maps.map_screen(table).vectors, atol=1e-5)
    other.loc[2, "emb_0003"] = pd.NA
    refused(lambda: maps.map_screen(other), "1 of 16 features have rows without a finite number")


def test_folders_and_features_asked_for(tmp_path):
    (tmp_path / "pf").mkdir()
    for call in (maps.read_profiles, maps.map_screen):
        refused(
            lambda call=call: call(tmp_path / "pf"), "pf is a folder, and not one of the Gallery or of DeepPr"
        )
    refused(
        lambda: maps.read_profiles(tmp_path / "pf", ["f0"]),
        "name its files of profiles, or leave features out",
    )
    TABLE.to_csv(tmp_path / "w.csv", index=False)
    refused(
        lambda: maps.read_profiles(tmp_path / "w.csv", "f0"),
        "features is 'f0'; give a list of columns, or No",
    )
    refused(
        lambda: maps.read_profiles(tmp_path / "w.csv", []),
        r"features is \[\]; give a list of columns, or No",
    )
    refused(
        lambda: maps.map_screen(wells_table(), perturbation=3),
        "the column of the perturbation is 3; give its",
    )
    with pytest.raises(MissingFileError, match="none does not exist"):
        maps.read_profiles(tmp_path / "none")


@pytest.mark.parametrize(
    "call", [maps.read_profiles, maps.load_aligner, maps.read_pairs, maps.read_pairs_folder]
)
def test_what_is_no_path(call):
    refused(lambda: call(None), "is a value of type NoneType; give the path of a file or folder")
    refused(lambda: call(""), "is empty; is a variable of the shell unset")


def test_files_of_streamed_alignment(tmp_path):
    csv, good, path = tmp_path / "w.csv", tmp_path / "good.parquet", tmp_path / "w.parquet"
    table = wells_table()
    table.to_csv(csv, index=False)
    table.to_parquet(good)
    refused(
        lambda: maps.fit_parquet(maps.TVN(), [csv]),
        r"w\.csv cannot be read as a Parquet file \(.*\); save the t",
    )
    refused(lambda: maps.fit_parquet(maps.TVN(), [None]), "files is a value of type NoneType")
    for files in (None, 3, [], str(good)):
        refused(
            lambda files=files: maps.align_parquet(files, tmp_path / "o.parquet", maps.Center()),
            "files must be a list with at least one Parquet file",
        )
    for aligner in (None, "tvn", maps.TVN):
        for call in (
            lambda aligner=aligner: maps.fit_parquet(aligner, [good]),
            lambda aligner=aligner: maps.transform_parquet(aligner, [good], tmp_path / "o.parquet"),
            lambda aligner=aligner: maps.save_aligner(aligner, tmp_path / "saved"),
        ):
            refused(call, r"the aligner is .*; give an object such as maps\.TVN\(\)")
    fitted = maps.fit_parquet(maps.Center(), [good])
    for rows in (0, -1, 1.5):
        for call in (
            lambda rows=rows: maps.fit_parquet(maps.Center(), [good], rows=rows),
            lambda rows=rows: maps.transform_parquet(fitted, [good], tmp_path / "o.parquet", rows=rows),
            lambda rows=rows: maps.align_parquet([good], tmp_path / "o.parquet", maps.Center(), rows=rows),
        ):
            refused(call, f"rows is {rows}, which is not an integer, at least 1")
    table.loc[[4, 9], "Metadata_Plate"] = [None, ""]
    table.to_parquet(path)
    sentence = (
        r"w\.parquet: Metadata_Plate is empty in 2 of \d+ rows \(first: row 4\); name the batch of these rows"
    )
    refused(lambda: maps.align_parquet([good, path], tmp_path / "o.parquet", maps.Center(), rows=3), sentence)
    refused(lambda: maps.transform_parquet(fitted, [path], tmp_path / "o.parquet"), sentence)
    assert not (tmp_path / "o.parquet").exists()
    table.assign(emb_0000="x").to_parquet(path)
    refused(
        lambda: maps.fit_parquet(maps.Center(), [path], batch=None),
        r"w\.parquet: the column 'emb_0000' holds .*string where numbers are needed",
    )


def test_a_batch_column_may_have_any_name(tmp_path):
    table = wells_table()
    table.to_parquet(tmp_path / "a.parquet", index=False)
    table.rename(columns={"Metadata_Plate": "run"}).to_parquet(tmp_path / "b.parquet", index=False)
    for name, batch in (("a", "Metadata_Plate"), ("b", "run")):
        maps.align_parquet(
            [tmp_path / f"{name}.parquet"], tmp_path / f"{name}z.parquet", maps.Center(), batch=batch
        )
    a, b = (pd.read_parquet(tmp_path / f"{name}z.parquet") for name in "ab")
    pd.testing.assert_frame_equal(a, b.rename(columns={"run": "Metadata_Plate"}), check_like=True)


def test_files_of_two_savings_are_no_aligner(tmp_path):
    x, batch = np.random.default_rng(0).normal(size=(30, 4)), np.repeat(["a", "b"], 15)
    maps.save_aligner(maps.Standardize().fit(x, batch), tmp_path / "old")
    maps.save_aligner(maps.Standardize().fit(2 * x + 1, batch), tmp_path / "new")
    shutil.copy(tmp_path / "new" / "aligner.safetensors", tmp_path / "old")  # killed before the second file
    refused(
        lambda: maps.load_aligner(tmp_path / "old"),
        "aligner.json and aligner.safetensors are of two savings, or the second is damaged; save the aligner again",
    )
    header = json.loads((tmp_path / "new" / "aligner.json").read_text())
    assert len(header.pop("sha256")) == 64
    (tmp_path / "new" / "aligner.json").write_text(json.dumps(header))  # as saved before there was a digest
    loaded = maps.load_aligner(tmp_path / "new")
    np.testing.assert_allclose(loaded.transform(2 * x + 1, batch), maps.align(x, "standardize", batch))


def test_a_header_of_names_of_genes_is_told(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("ID1,ID2\nTP53,MDM2\n")
    with pytest.warns(UserWarning, match=r"\(ID1 - ID2\) is read as a header, though genes have these names"):
        assert maps.read_pairs(path).tolist() == [["TP53", "MDM2"]]
    path.write_text("gene1,gene2\nID1,ID2\nTP53,MDM2\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert maps.read_pairs(path).tolist() == [["ID1", "ID2"], ["TP53", "MDM2"]]


def test_an_unknown_tier_is_refused_without_a_file_of_tiers(tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b\nx,y\n")
    refused(
        lambda: maps.read_pairs_folder(tmp_path, refchemdb_tier="Tier9"), "'Tier9' is not one of Tier0, Tier1"
    )
