"""Profile tables: the same names, metadata and features from every format, and what is no feature."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camae import maps
from camae.embedding_table import (
    by_well,
    feature_columns,
    features_of,
    make_table,
    read_table,
    unit_of,
    write_table,
)
from camae.errors import CamaeError
from camae.maps.profiles import read_profile_table
from camae.omissions import Omissions

FORMATS = ("csv", "tsv", "csv.gz", "CSV", "parquet", "h5ad")
GENES = ["NA", "nan", "NULL", "None", "", "null", "N/A", "-1", "1e5", "TRUE", "0012", "800000"]


def written(folder, table, ending):
    """The table in one of FORMATS."""
    path = folder / f"profiles.{ending}"
    features = [name for name in table if not name.startswith("Metadata_")]
    if ending == "parquet":
        table.to_parquet(path, index=False)
    elif ending == "h5ad":
        anndata = pytest.importorskip("anndata")
        obs = table.drop(columns=features).set_axis([str(k) for k in range(len(table))])
        var = pd.DataFrame(index=pd.Index(features))
        anndata.AnnData(table[features].to_numpy(), obs=obs, var=var).write_h5ad(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    return path


def same_everywhere(folder, table, x):
    meta = table[[name for name in table if name.startswith("Metadata_")]]
    for ending in FORMATS:
        got = read_profile_table(written(folder, table, ending))
        assert got.features == [name for name in table if not name.startswith("Metadata_")], ending
        assert got.meta.to_dict("list") == meta.to_dict("list"), ending
        assert got.x.dtype == x.dtype, ending
        np.testing.assert_array_equal(got.x, x, err_msg=ending)


def test_fault_09_genes_named_na_stay(tmp_path):
    x = np.random.default_rng(0).normal(size=(len(GENES), 3))
    table = pd.DataFrame({"Metadata_Gene": GENES, "Metadata_Plate": "0012"}).join(
        pd.DataFrame(x, columns=["f0", "f1", "f2"])
    )
    same_everywhere(tmp_path, table, x)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_one_table_through_every_format(tmp_path_factory, data):
    """Property: CSV, TSV, .csv.gz, Parquet and AnnData give the same names, metadata and features."""
    n = data.draw(st.integers(1, 5))
    word = st.one_of(st.sampled_from(GENES), st.text("abcXYZ012 ,;\"'-=é", max_size=6)).map(str.strip)
    meta = {f"Metadata_{key}": data.draw(st.lists(word, min_size=n, max_size=n)) for key in ("Gene", "Batch")}
    embeddings = data.draw(st.booleans())
    kind = np.float32 if embeddings else np.float64
    number = st.floats(width=32 if embeddings else 64, allow_nan=False, allow_infinity=False)
    x = np.array(data.draw(st.lists(st.lists(number, min_size=2, max_size=2), min_size=n, max_size=n)), kind)
    names = feature_columns(2) if embeddings else ["Cells_AreaShape_Area", "Nuclei_Texture_Entropy"]
    table = pd.DataFrame(meta).join(pd.DataFrame(x, columns=names))
    same_everywhere(tmp_path_factory.mktemp("p"), table, x)


def test_fault_09_numeric_ids_beside_blanks_stay_text(tmp_path):
    text = "Metadata_id,Metadata_Plate,Metadata_Well,f0\n800000,0012,a1,0.5\n,0012,A2,1.5\n0800,0012,r01c03,2.5\n"
    (tmp_path / "t.csv").write_text(text)
    meta, x = maps.read_profiles(tmp_path / "t.csv")
    assert meta.to_dict("list") == {
        "Metadata_id": ["800000", "", "0800"],
        "Metadata_Plate": ["0012"] * 3,
        "Metadata_Well": ["A01", "A02", "A03"],
    }
    assert x.tolist() == [[0.5], [1.5], [2.5]]
    pd.DataFrame({"Metadata_id": [800000.0, np.nan], "f0": [0.5, 1.5]}).to_parquet(tmp_path / "t.parquet")
    assert maps.read_profiles(tmp_path / "t.parquet")[0]["Metadata_id"].tolist() == ["800000", ""]


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, np.nan])
def test_fault_09_a_missing_label_in_a_list_is_refused(missing):
    x = np.eye(3)
    for call in (
        lambda: maps.aggregate(x, ["a", missing, "b"]),
        lambda: maps.perturbation_names(("a", missing, "b")),
        lambda: maps.align(x, "center", ["p", missing, "p"]),
        lambda: maps.consistency(x, ["a", "a", "b"], null=["b", missing]),
        lambda: maps.strongest(x, ["a", missing, "b"]),
        lambda: maps.recall_at_fpr(x, ["a", "b", "c"], [("a", "b")], genes=["a", "b", missing]),
        lambda: maps.map_profiles(x, ["a", missing, "b"], None, [True, False, False], "center"),
    ):
        with pytest.raises(CamaeError, match=r"missing in row [12]"):
            call()
    with pytest.raises(CamaeError, match="a name is missing in pair 1"):
        maps.recall(x, ["a", "b", "c"], [("a", "b"), ("b", missing)])


def test_fault_09_masked_arrays_keep_their_mask():
    labels = np.ma.masked_array(np.array(["a", "b", "a"]), [False, True, False])
    with pytest.raises(CamaeError, match="missing in row 1"):
        maps.aggregate(np.eye(3), labels)
    with pytest.raises(CamaeError, match="masked"):
        maps.relate(np.ma.masked_array(np.eye(3), np.eye(3) > 0))


def cellprofiler():
    rng = np.random.default_rng(0)
    numbers = {
        "Unnamed: 0": np.arange(6),
        "ImageNumber": np.arange(6) + 1,
        "ObjectNumber": np.arange(6) + 1.0,
        "Cells_Number_Object_Number": np.arange(6.0),
        "Location_Center_X": rng.normal(size=6),
        "Nuclei_Location_Center_Y": rng.normal(size=6),
        "Cells_Parent_Nuclei": np.arange(6.0),
        "Image_Metadata_Site": np.arange(6.0),
        "Image_ImageNumber": np.arange(6),
        "imagenumber": np.arange(6) * 1.0,
        "extra": rng.normal(size=6),
    }
    features = {
        name: rng.normal(size=6) for name in ("Cells_AreaShape_Area", "Nuclei_Texture_Gabor", "Image_Count")
    }
    meta = {"Metadata_Plate": ["P"] * 6, "Metadata_Gene": list("aabbcc"), "FileName_OrigDNA": ["x.tif"] * 6}
    return pd.DataFrame(meta | numbers | features), list(numbers), list(features)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_fault_10_numbers_that_are_no_features(tmp_path, ending):
    table, numbers, features = cellprofiler()
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    omitted = Omissions()
    meta, x = maps.read_profiles(path, omitted=omitted)
    np.testing.assert_array_equal(x, table[features])
    assert {o.item for o in omitted} == set(numbers)
    assert {o.kind for o in omitted} == {"feature"}
    assert {"Metadata_Site", "Metadata_Gene"} <= set(meta.columns)
    np.testing.assert_array_equal(features_of(table), table[features].to_numpy(np.float32))
    with pytest.warns(
        UserWarning, match=r"features left out: an identifier or a position, no feature \(first:"
    ):
        maps.read_profiles(path)


def test_fault_10_features_by_rule_and_by_name(tmp_path):
    rng = np.random.default_rng(0)
    bare = pd.DataFrame({"gene": list("abc"), "count": [1.0, 2, 3], "age": [1, 2, 3], "note": [""] * 3})
    bare = bare.join(pd.DataFrame(rng.normal(size=(3, 2)), columns=["f0", "f1"]))
    for ending in ("csv", "parquet", "large.parquet"):
        got = read_profile_table(written_bare(tmp_path, bare, ending))
        assert got.features == ["f0", "f1"]
        assert {o.item: o.reason for o in got.omitted} == {
            "count": "an identifier or a position, no feature",
            "age": "whole numbers beside the features",
            "note": "no value in any row",
        }
    embeddings = bare.rename(columns={"f0": "emb_0000"})
    got = read_profile_table(written_bare(tmp_path, embeddings, "csv"))
    assert got.features == ["emb_0000"]
    assert "f1" in {o.item for o in got.omitted}
    assert read_profile_table(tmp_path / "bare.csv", features=["f1", "age"]).features == ["f1", "age"]
    with pytest.raises(CamaeError, match="has no feature column f9"):
        maps.read_profiles(tmp_path / "bare.csv", features=["f9"])
    bare[["gene", "age"]].to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(CamaeError, match="has no feature columns among gene, age"):
        maps.read_profiles(tmp_path / "none.csv")


def written_bare(folder, table, ending):
    path = folder / f"bare.{ending}"
    if ending == "large.parquet":  # as pandas 3 writes text
        wide = {"gene": pa.large_string(), "note": pa.large_string()}
        fields = [
            f.with_type(wide.get(f.name, f.type)) for f in pa.Schema.from_pandas(table, preserve_index=False)
        ]
        pq.write_table(pa.Table.from_pandas(table, pa.schema(fields), preserve_index=False), path)
        return path
    table.to_parquet(path) if ending == "parquet" else table.to_csv(path, index=False)
    return path


def test_fault_10_streamed_tables_obey_the_rule(tmp_path):
    table, _, features = cellprofiler()
    table["Metadata_control_type"] = ["negcon", ""] * 3
    table.to_parquet(tmp_path / "t.parquet")
    maps.align_parquet([tmp_path / "t.parquet"], tmp_path / "z.parquet", maps.Center())
    assert features_of(read_table(tmp_path / "z.parquet")[0]).shape == (6, len(features))


def test_a_cell_that_is_no_number_is_refused_with_its_line(tmp_path):
    rows = "".join(f'"A\n{k:02d}",{k}.5\n' for k in range(1, 6))
    (tmp_path / "t.csv").write_text("Metadata_Well,f0\n" + rows.replace("4.5", "0,5".replace(",", ";")))
    with pytest.raises(CamaeError, match=r"t.csv, line 9, column 'f0': '0;5' is not a number"):
        maps.read_profiles(tmp_path / "t.csv")
    (tmp_path / "u.csv.gz").write_bytes(
        gzip.compress(b"Metadata_Well,emb_0000\nA01, 1.5\nA02,\nA03,NaN\nA04,NA\n")
    )
    with pytest.raises(CamaeError, match=r"line 5, column 'emb_0000': 'NA' is not a number"):
        maps.read_profiles(tmp_path / "u.csv.gz")
    (tmp_path / "v.csv").write_text("Metadata_Well,emb_0000\nA01, 1.5\nA02,\nA03,NaN\n")
    np.testing.assert_array_equal(maps.read_profiles(tmp_path / "v.csv")[1].ravel(), [1.5, np.nan, np.nan])


def test_a_feature_that_is_missing_in_a_row_is_named(tmp_path):
    text = "Metadata_Plate,Metadata_Perturbation,Metadata_control_type,f0,f1\nP,a,negcon,0.5,1.5\nP,b,,,2.5\n"
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(
        CamaeError, match=r"1 of 2 features have rows without a finite number \(f0; first in row 1\)"
    ):
        maps.map_screen(tmp_path / "t.csv", "center")


def sites(**columns):
    meta = pd.DataFrame(
        {
            "Metadata_Plate": ["0012"] * 4,
            "Metadata_Well": ["A1", "a01", "B1", "r02c01"],
            "Metadata_Site": list("1212"),
            "Metadata_Perturbation": list("xxyy"),
        }
    ).assign(**columns)
    return make_table(meta, np.arange(8.0).reshape(4, 2))


def test_fault_03_wells_are_averaged_by_their_normal_name():
    wells = by_well(sites())
    assert wells.to_dict("list") == {
        "Metadata_Plate": ["0012"] * 2,
        "Metadata_Well": ["A01", "B01"],
        "Metadata_Perturbation": ["x", "y"],
        "emb_0000": [1, 5],
        "emb_0001": [2, 6],
    }


def test_fault_03_two_perturbations_in_one_well_are_refused_with_both_named():
    with pytest.raises(
        CamaeError, match=r"plate 0012, well A01: Metadata_Perturbation says 'x' and 'z' \(1 such"
    ):
        by_well(sites(Metadata_Perturbation=list("xzyy")))
    for column in ("Metadata_pert_iname", "Metadata_control_type", "Metadata_Gene", "Metadata_Concentration"):
        with pytest.raises(CamaeError, match=rf"{column} says '1' and ''"):
            by_well(sites(**{column: ["1", "", "2", "2"]}))
    assert "Metadata_FileName" not in by_well(sites(Metadata_FileName=list("abcd")))


def test_fault_03_time_points_and_depths_are_kept_apart_and_a_site_is_there_once():
    for column in ("Metadata_Time", "Metadata_Z"):
        apart = by_well(sites(**{column: list("0101"), "Metadata_Site": "1"}))
        assert apart["emb_0000"].tolist() == [0, 2, 4, 6]
        assert apart[column].tolist() == list("0101")
    with pytest.raises(CamaeError, match="plate 0012, well A01, site 1 is there twice"):
        by_well(sites(Metadata_Site="1"))


def test_fault_03_a_well_in_two_spellings_is_one_well(tmp_path):
    table = sites().drop(columns="Metadata_Site")
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(CamaeError, match="Plate 0012, Well A01 occurs more than once"):
        maps.read_profiles(tmp_path / "t.csv")


def test_fault_12_every_table_states_its_unit(tmp_path):
    import pyarrow.parquet as pq

    treatments = sites().drop(columns=["Metadata_Well", "Metadata_Site"])
    for table, unit in ((sites(), "site"), (by_well(sites()), "well"), (treatments, "treatment")):
        assert unit_of(table) == unit
        path = write_table(tmp_path / "t.parquet", table, {})
        assert pq.read_schema(path).metadata[b"camae_unit"].decode() == unit
        assert read_profile_table(path).unit == unit
