"""Faults 1, 12 and 17 once more: what cannot be is refused, what a map leaves out is counted."""

import pandas as pd
import pytest
from explored_screen import PAIRS, wells_table

from camae import maps
from camae.errors import CamaeError
from camae.maps.profiles import read_profile_table


def test_fault_12_an_unknown_unit_is_refused():
    with pytest.raises(CamaeError, match="unknown unit 'plate'; choose 'well' or 'site'"):
        maps.map_screen(wells_table(), unit="plate")


def test_rows_without_a_perturbation_are_counted():
    table = wells_table()
    treated = table.index[table["Metadata_control_type"] != "negcon"][:2]
    table.loc[treated, "Metadata_Perturbation"] = [None, " "]
    notes = " ".join(maps.map_screen(table).notes)
    assert (
        f"2 rows name no perturbation in Metadata_Perturbation and are left out (first: row {treated[0]})"
        in notes
    )


def test_fault_01_tables_in_memory_with_a_column_twice_or_no_rows_are_refused():
    table = wells_table()
    with pytest.raises(CamaeError, match="has the column emb_0000 twice"):
        maps.map_screen(pd.concat([table, table[["emb_0000"]]], axis=1))
    with pytest.raises(CamaeError, match="has no rows"):
        maps.map_screen(table.iloc[:0])


def test_fault_17_tails_that_overlap_and_names_of_other_vectors_are_refused():
    found = maps.map_screen(wells_table())
    with pytest.raises(CamaeError, match="overlap, so that every pair is found"):
        maps.recall(found.vectors, found.names, PAIRS, tails=(0.95, 0.05))
    for call in (maps.recall, maps.recall_curve):
        with pytest.raises(
            CamaeError, match=f"names needs one label for each of the {len(found.names)} rows"
        ):
            call(found.vectors, found.names[:3], PAIRS)


@pytest.mark.parametrize("cell", ["NA", "#N/A", "1,000.5", "15%", "0x10", "TRUE"])
def test_fault_09_a_feature_of_which_half_is_no_number_is_counted(tmp_path, cell):
    path = tmp_path / "p.csv"
    path.write_text(f'Metadata_Plate,Metadata_Well,f1,f2,gene\nP,A1,"{cell}",2.5,x\nP,A2,2,3.5,y\n')
    table = read_profile_table(path)
    assert table.features == ["f2"]
    assert table.omitted.lines() == [
        "1 feature left out: half of its cells or more are no numbers (first: f1)"
    ]
