"""Sentences of refusals of maps and benchmarks that no other test reads."""

import numpy as np
import pandas as pd
import pytest

from camae import maps
from camae.embedding_table import check_wells_agree, read_table
from camae.errors import CamaeError
from camae.maps.arms import arm_bias, read_arms
from camae.maps.probes import feature_regression, nearest_neighbor
from camae.maps.replicates import independent_rows
from camae.reproduction.benchmark.model_files import profiles_by_model
from camae.text_table import MOST_COLUMNS, read_text_table

X = np.random.default_rng(0).normal(size=(6, 3))
META = pd.DataFrame({"Metadata_Plate": ["P"] * 6, "Metadata_Well": [f"A0{i}" for i in range(1, 7)]})


def test_metadata_of_another_length():
    with pytest.raises(
        CamaeError, match="the metadata has 5 rows and the embeddings 6; they must correspond"
    ):
        maps.consistency(X, ["a"] * 6, meta=META[:5])
    with pytest.raises(CamaeError, match="the metadata has 5 rows and the embeddings 6"):
        maps.retrieval(X, META[:5], ["Metadata_Plate"], [], [], ["Metadata_Plate"])
    with pytest.raises(CamaeError, match="unknown unit 'plate'; choose 'well' or 'site'"):
        independent_rows(X, META, ["Metadata_Plate"], "plate", np.ones(6, bool))


def test_alignments_without_what_they_are_fitted_on():
    with pytest.raises(CamaeError, match="is fitted on negative controls; give control= with one boolean"):
        maps.align(X, "tvn")
    fitted = maps.Standardize().fit(X, batch=np.array(list("aaabbb")))
    with pytest.raises(CamaeError, match="was fitted by batch; give batch= for the rows to transform"):
        fitted.transform(X)


def test_arms_and_probes():
    with pytest.raises(
        CamaeError, match="the map has no two chromosome arms with genes; check the gene names"
    ):
        arm_bias(X, list("abcdef"), {"a": "chr1p", "b": "chr1p"})
    with pytest.raises(CamaeError, match="features do not match: 1 names, 3 and 3 columns of y"):
        feature_regression(X, X, X, X, ["one"])


def test_wells_that_disagree():
    table = META.assign(Metadata_Well="A01", Metadata_Perturbation=list("aabbbb"))
    with pytest.raises(CamaeError, match=r"Metadata_Perturbation says 'a' and 'b' \(1 such wells in all\)"):
        check_wells_agree(table)


def test_files_of_profiles(tmp_path):
    with pytest.raises(CamaeError, match="no embeddings are given; name at least one profile file"):
        profiles_by_model([])
    with pytest.raises(CamaeError, match="have a model's name and some have none; write model=file for all"):
        profiles_by_model(["a=one.csv", "two.csv"])
    with pytest.raises(CamaeError, match="no profile file is given for the model a"):
        profiles_by_model({"a": []})
    (tmp_path / "x.xlsx").write_bytes(b"x")
    with pytest.raises(CamaeError, match=r"x\.xlsx: cannot tell the format; profiles are read from \.csv"):
        maps.read_profiles(tmp_path / "x.xlsx")
    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(f"f{i}" for i in range(MOST_COLUMNS + 1)) + "\n")
    with pytest.raises(CamaeError, match=r"has 20,001 columns, at most 20,000 are read"):
        read_text_table(wide)


def test_anndata_without_features(tmp_path):
    anndata = pytest.importorskip("anndata")
    ids = pd.DataFrame(index=["Cells_Number_Object_Number"])
    data = anndata.AnnData(X=np.arange(2.0)[:, None], obs=pd.DataFrame({"well": ["A01", "A02"]}), var=ids)
    data.obs.index = ["0", "1"]
    data.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(CamaeError, match=r"x\.h5ad has no features among"):
        maps.read_profiles(tmp_path / "x.h5ad")


def test_tables_without_rows_that_are_needed(tmp_path):
    with pytest.raises(CamaeError, match=r"wells\.parquet: no such embeddings table"):
        read_table(tmp_path / "wells.parquet")
    (tmp_path / "arms.csv").write_text("gene,chrom_arm_name\nTP53,17p\n,8q\n")
    with pytest.raises(CamaeError, match=r"arms\.csv: a row has no gene \(row 1\); complete or delete it"):
        read_arms(tmp_path / "arms.csv")
    pd.DataFrame({"Metadata_Well": ["A01"], "emb_0000": [True]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(CamaeError, match=r"the column 'emb_0000' holds bool where numbers are needed"):
        maps.read_profiles(tmp_path / "x.parquet", ["emb_0000"])
    (tmp_path / "header.csv").write_text('"a,b\n')
    with pytest.raises(CamaeError, match=r"header\.csv, line 1: not a row of a table"):
        read_text_table(tmp_path / "header.csv")


def test_groups_that_are_too_small():
    control = np.array([True, True, True, True, True, False])
    with pytest.raises(
        CamaeError, match="batch 'b' has 1 negative controls, at least 2 are needed; leave the batch"
    ):
        maps.align(X, "standardize", batch=np.array(list("aaaabb")), control=control)
    with pytest.raises(CamaeError, match="null names z, which no row has; give names that occur in by="):
        maps.consistency(X, list("aabbcc"), null=["z"])
    with pytest.raises(CamaeError, match="no row has a neighbor outside its own group; check exclude="):
        nearest_neighbor(X, list("aabbcc"), exclude=["one"] * 6)
    with pytest.raises(CamaeError, match=r"z: expected .*; convert it before the call"):
        maps.aggregate("text", ["a"])


def test_anndata_lacks_a_feature(tmp_path):
    anndata = pytest.importorskip("anndata")
    data = anndata.AnnData(X=X, obs=META.rename(index=str), var=pd.DataFrame(index=["f1", "f2", "f3"]))
    data.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(CamaeError, match=r"x\.h5ad lacks a feature of f1, f4; it has f1, f2, f3"):
        maps.read_profiles(tmp_path / "x.h5ad", ["f1", "f4"])
