"""Tables in the forms of other tools and back: every row, name and number (property tests)."""

import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from camae.embedding import from_anndata, to_anndata
from camae.embedding_table import read_table, write_table
from camae.errors import CamaeError, MissingBackendError, MissingFileError
from camae.maps.profiles import read_profile_table

anndata = pytest.importorskip("anndata", reason="anndata is not installed: pip install 'camae[anndata]'")

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=6)
CELL = st.one_of(TEXT, st.sampled_from(["", "NA", "nan", "negcon", "poscon", "1", "A/B"]))
NAMES = st.lists(TEXT, unique=True, max_size=3).map(lambda names: [f"Metadata_{name}" for name in names])
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def tables(draw):
    """Tables of the kinds that `write_table` takes: text with missing cells, numbers and flags beside vectors."""
    rows = draw(st.integers(1, 6))
    columns = {"Metadata_Plate": ["P"] * rows, "Metadata_Well": [f"A{i:02d}" for i in range(rows)]}
    for name in draw(NAMES):
        cells = st.one_of(CELL, st.none()) if draw(st.booleans()) else CELL
        columns[name] = draw(st.lists(cells, min_size=rows, max_size=rows))
    if draw(st.booleans()):
        columns["count"] = draw(arrays(np.int64, rows))
        columns["Metadata_flag"] = draw(arrays(bool, rows))
    if draw(st.booleans()):
        columns["Metadata_control_type"] = draw(
            st.lists(st.sampled_from(["", "negcon", "trt"]), min_size=rows, max_size=rows)
        )
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    vectors = draw(arrays(dtype, (rows, draw(st.integers(1, 4))), elements=NUMBERS))
    features = {f"emb_{k:04d}": vectors[:, k] for k in range(vectors.shape[1])}
    return pd.DataFrame(columns | features)


@pytest.mark.filterwarnings("ignore::UserWarning")
@QUICK
@given(tables())
def test_parquet_to_anndata_to_parquet_keeps_every_row_name_and_number(tmp_path, table):
    about = {"model": "a", "layers": [1, 2], "origin": {"commit": "abc"}}
    first = write_table(tmp_path / "a.parquet", table, about)
    to_anndata(first, tmp_path / "a.h5ad")
    from_anndata(tmp_path / "a.h5ad", tmp_path / "b.parquet")
    (one, said), (other, said_again) = read_table(first), read_table(tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert said == said_again == about
    assert pq.read_schema(first).remove_metadata() == pq.read_schema(tmp_path / "b.parquet").remove_metadata()
    # Bits, not only values: NaN stays NaN of the same kind, -0.0 stays -0.0.
    for name in one.filter(like="emb_"):
        assert one[name].to_numpy().tobytes() == other[name].to_numpy().tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning")
@QUICK
@given(tables())
def test_both_forms_are_read_as_the_same_profiles(tmp_path, table):
    assume(all(name == name.strip() for name in table))  # other names are refused in text tables too
    to_anndata(write_table(tmp_path / "a.parquet", table, {}), tmp_path / "a.h5ad")
    one, other = (read_profile_table(tmp_path / f"a.{suffix}") for suffix in ("parquet", "h5ad"))
    pd.testing.assert_frame_equal(one.meta, other.meta)
    np.testing.assert_array_equal(one.x, other.x)
    assert (one.features, one.unit) == (other.features, other.unit)


def screen(rows=4, **more):
    return pd.DataFrame(
        {"Metadata_Plate": "P", "Metadata_Well": [f"A{i:02d}" for i in range(rows)]}
        | more
        | {"emb_0000": np.arange(rows, dtype=np.float32)}
    )


def test_words_of_the_schema_stand_beside_the_given_ones():
    data = to_anndata(screen(Metadata_control_type=["negcon", "", "poscon_orf", "empty"]))
    assert data.obs["Metadata_Control_Type"].tolist() == ["negcon", "treatment", "poscon", "empty"]
    assert data.obs["Metadata_Control"].tolist() == [True, False, True, True]
    assert data.obs["Metadata_control_type"].tolist() == ["negcon", "", "poscon_orf", "empty"]
    assert data.obs["Metadata_Batch"].tolist() == ["P"] * 4
    assert data.uns["mantispy"]["resolution"] == "well"
    assert set(data.var["feature_kind"]) == {"embedding"}
    given = screen(Metadata_Control_Type=["trt", "NEGCON", "", ""])
    pd.testing.assert_frame_equal(from_anndata(to_anndata(given)), given)
    with pytest.warns(UserWarning, match="'vehicle', which is none of trt, treatment, negcon"):
        data = to_anndata(screen(Metadata_control_type=["vehicle", "", "", ""]))
    assert "Metadata_Control_Type" not in data.obs


def test_a_selection_of_rows_and_features_is_a_table_of_those():
    table = screen(Metadata_Gene=["a", None, "b", None]).assign(emb_0001=np.float32(2))
    data = to_anndata(table)
    part = from_anndata(data[[3, 1, 0], ["emb_0001"]].copy())
    expected = table.drop(columns="emb_0000").iloc[[3, 1, 0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, expected)


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(CamaeError, match="holds the character NUL, which HDF5 cannot store"):
        to_anndata(screen(Metadata_Gene=["a\0", "b", "c", "d"]))
    with pytest.raises(CamaeError, match=r"this AnnData is not of camae; maps\.read_profiles reads those"):
        from_anndata(anndata.AnnData(np.zeros((2, 2), np.float32)))
    with pytest.raises(MissingFileError, match="no such AnnData file"):
        from_anndata(tmp_path / "a.h5ad")
    (tmp_path / "a.h5ad").write_text("no HDF5")
    with pytest.raises(CamaeError, match=r"a\.h5ad is not a readable AnnData file"):
        from_anndata(tmp_path / "a.h5ad")
    with pytest.raises(CamaeError, match=r"an embeddings table is written as \.parquet"):
        from_anndata(to_anndata(screen()), tmp_path / "a.csv")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(MissingBackendError, match="reading AnnData needs the package anndata, which is not"):
        from_anndata(tmp_path / "a.h5ad")
