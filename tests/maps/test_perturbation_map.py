"""From a table of wells to perturbation vectors, and known pairs from files."""

import numpy as np
import pandas as pd
import pytest

from camae import maps
from camae.embedding_table import make_table
from camae.errors import CamaeError


def wells(features=6, plates=2, seed=0):
    rng = np.random.default_rng(seed)
    rows, vectors = [], []
    effect = {f"gene{i}": rng.normal(size=features) for i in range(5)}
    for plate in range(plates):
        shift = rng.normal(size=features) * 5
        for name in [*effect, *["ctl"] * 20]:
            rows.append(
                {
                    "Metadata_Plate": f"P{plate}",
                    "Metadata_Perturbation": name,
                    "Metadata_control_type": "negcon" if name == "ctl" else "",
                }
            )
            vectors.append(effect.get(name, 0) + rng.normal(size=features) * 0.1 + shift)
    return make_table(pd.DataFrame(rows), np.array(vectors))


def test_one_vector_per_perturbation_and_no_controls():
    result = maps.map_screen(wells(), "center")
    assert result.names.tolist() == [f"gene{i}" for i in range(5)]
    assert result.vectors.shape == (5, 6)


def test_equals_the_steps_by_hand():
    table = wells()
    x = table.filter(regex="^emb_").to_numpy()
    plate, control = (
        table["Metadata_Plate"].to_numpy(str),
        (table["Metadata_control_type"] == "negcon").to_numpy(),
    )
    z = maps.align(x, "tvn", batch=plate, control=control)
    by = table["Metadata_Perturbation"].to_numpy(str)[~control]
    expected = maps.aggregate(z[~control], by=by, method="spherical_mean", origin=z[control].mean(0))
    np.testing.assert_allclose(maps.map_screen(table, "tvn").vectors, expected, atol=1e-6)


def test_components_are_limited_by_the_controls():
    result = maps.map_screen(wells(features=30), "tvn")
    assert result.options["components"] == 40 // 2
    assert result.vectors.shape[1] == 20
    assert maps.map_screen(wells(features=30), "tvn", components=5).vectors.shape[1] == 5


def test_profiles_and_table_give_the_same_map():
    table = wells(features=30)
    x = table.filter(regex="^emb_").to_numpy()
    name, plate = (table[f"Metadata_{key}"].to_numpy(str) for key in ("Perturbation", "Plate"))
    control = (table["Metadata_control_type"] == "negcon").to_numpy()
    by_columns, by_arrays = maps.map_screen(table), maps.map_profiles(x, name, plate, control)
    np.testing.assert_array_equal(by_arrays.vectors, by_columns.vectors)
    assert by_arrays.names.tolist() == by_columns.names.tolist()
    assert by_arrays.options == by_columns.options
    every = maps.map_profiles(x, name, None, control, "pca", components=None)
    assert every.vectors.shape == (5, 30)
    assert every.options == {}
    with pytest.raises(CamaeError, match="no row has a perturbation"):
        maps.map_profiles(x, np.where(control, name, ""), plate, control)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ("Metadata_Plate", "no column Metadata_Plate"),
        ("Metadata_control_type", "no column Metadata_control_type"),
    ],
)
def test_missing_columns_are_named(column, sentence):
    with pytest.raises(CamaeError, match=sentence):
        maps.map_screen(wells().drop(columns=column), "tvn")


def test_no_controls():
    table = wells()
    table["Metadata_control_type"] = ""
    with pytest.raises(CamaeError, match="no well is a negative control"):
        maps.map_screen(table)


def test_pairs_from_csv_and_tsv(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\nA,B\nC,NA\n")
    (tmp_path / "a.tsv").write_text("x\ty\tz\nA\tB\t1\n")
    assert maps.read_pairs(tmp_path / "a.csv").tolist() == [["A", "B"], ["C", "NA"]]
    assert maps.read_pairs(tmp_path / "a.tsv").tolist() == [["A", "B"]]
    (tmp_path / "license.txt").write_text("one column\nof text\n")
    # By source, with the ending where two files share a name; the other file is no table of pairs.
    with pytest.warns(UserWarning, match=r"1 file left out: needs two columns .*license.txt"):
        assert list(maps.read_pairs_folder(tmp_path)) == ["a.csv", "a.tsv"]
    with pytest.raises(CamaeError, match="needs two columns"):
        maps.read_pairs(tmp_path / "license.txt")
    with pytest.raises(CamaeError, match="no such file"):
        maps.read_pairs(tmp_path / "none.csv")
