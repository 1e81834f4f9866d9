"""Faults 1 to 5 and 12 once more: names that look alike and are written otherwise, links, lists that are no lists."""

import os
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from camae.dataloader import Manifest, read_manifest, read_plane
from camae.dataloader.illumination import function_window
from camae.embedding_table import by_well, make_table
from camae.errors import CamaeError
from camae.maps.profiles import read_profile_table
from camae.maps.screens import ScreenColumns, read_screen
from camae.text_table import as_text, read_text_table
from camae.wells import normal_name, normal_site

PIXELS = {"DNA": 100, "ER": 200}


def plane(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full((16, 16), value, np.uint16))


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "site"),
    [("1", "1"), ("01", "1"), ("1.0", "1"), ("000", "0"), (" 2 ", "2"), ("f02", "f02"), ("", "")],
)
def test_fault_03_spellings_of_one_site(text, site):
    assert normal_site(text) == site


def test_fault_03_accents_and_blanks_do_not_make_another_plate(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Plätte")
    assert decomposed != "Plätte"
    assert normal_name(f" {decomposed} ") == "Plätte"
    plane(tmp_path / f"{decomposed}_A1_s1_DNA.tif")
    plane(tmp_path / "Plätte_A1_s1_ER.tif")
    manifest = read_manifest(tmp_path)
    assert len(manifest) == 1
    assert manifest.table.loc[0, ["Metadata_Plate", "Metadata_Well"]].tolist() == ["Plätte", "A01"]
    assert [int(read_plane(manifest.path(0, c)).mean()) for c in manifest.channels] == [100, 100]


def test_fault_03_one_site_in_two_spellings_with_other_files_is_refused(tmp_path):
    rows = "P,A1,1,a.tif\n P ,a01, 01 ,b.tif\n"
    path = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,Metadata_Site,DNA\n" + rows)
    with pytest.raises(
        CamaeError, match="rows 0 and 1 are both plate P, well A01, site 1 but name different files"
    ):
        read_manifest(path)


def test_fault_04_joins_go_by_one_spelling(tmp_path):
    plane(tmp_path / "a.tif")
    data = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,Metadata_Site,DNA\nPlätte,A1,1,a.tif\n")
    other = unicodedata.normalize("NFD", "Plätte")
    labels = table(tmp_path / "l.tsv", f"Plate\twell\tSite\tgene\n{other} \ta01\t001\tTP53\n")
    assert read_manifest(data, metadata=[labels]).table.loc[0, "Metadata_Perturbation"] == "TP53"


@pytest.mark.parametrize("name", ["Metadata_T", "Metadata_ZPlane", "Metadata_Timepoint", "Metadata_Plane"])
def test_fault_03_time_points_by_any_name_stay_apart_in_the_table_of_wells(name):
    metadata = pd.DataFrame(
        {"Metadata_Plate": "P", "Metadata_Well": "A01", "Metadata_Site": "1", name: ["0", "1"]}
    )
    wells = by_well(make_table(metadata, np.array([[1.0], [3.0]])))
    assert wells["emb_0000"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("well", ["well", "Metadata_well", "WELL", "Image_Metadata_Well"])
def test_fault_12_sites_are_no_replicates_whatever_the_column_of_wells_is_called(tmp_path, well):
    names = ["A1", "A01", "A2", "A2"]
    frame = pd.DataFrame(
        {"plate": "P", well: names, "Site": ["1", "2", "1", "2"], "emb_0000": [1.0, 3, 5, 7]}
    )
    frame["Metadata_control_type"] = ["", "", "negcon", "negcon"]
    frame.to_csv(tmp_path / "p.csv", index=False)
    profiles = read_profile_table(tmp_path / "p.csv")
    assert profiles.unit == "site"
    assert profiles.by_well().x.ravel().tolist() == [2.0, 6.0]
    assert profiles.by_well().meta["Metadata_Well"].tolist() == ["A01", "A02"]


def test_fault_03_plates_of_one_name_in_two_batches_are_aligned_apart():
    meta = pd.DataFrame({"Metadata_Batch": ["B1", "B1", "B2", "B2"], "Metadata_Plate": "P1"})
    meta["Metadata_Well"] = ["A1", "A2", "A1", "A2"]
    meta["Metadata_Perturbation"] = ["x", "DMSO"] * 2
    meta["Metadata_control_type"] = ["", "negcon"] * 2
    screen = read_screen(make_table(meta, np.array([[1.0], [0], [11], [10]])), ScreenColumns())
    assert screen.plate.tolist() == ["B1/P1", "B1/P1", "B2/P1", "B2/P1"]
    assert "1 names of plates stand in several batches or sources (first: P1)" in " ".join(screen.notes)
    alone = read_screen(make_table(meta.iloc[:2], np.array([[1.0], [0]])), ScreenColumns())
    assert alone.plate.tolist() == ["P1", "P1"]


def test_fault_02_linked_plates_are_read_and_loops_end(tmp_path):
    plane(tmp_path / "store" / "PL2" / "A1_s1_DNA.tif", 7)
    plane(tmp_path / "screen" / "PL1" / "A1_s1_DNA.tif", 5)
    os.symlink(tmp_path / "store" / "PL2", tmp_path / "screen" / "PL2")
    os.symlink(tmp_path / "screen", tmp_path / "screen" / "again")
    manifest = read_manifest(tmp_path / "screen")
    assert manifest.table["Metadata_Plate"].tolist() == ["PL1", "PL2"]
    assert [int(read_plane(manifest.path(i, "DNA")).mean()) for i in range(2)] == [5, 7]


def write_fields(folder: Path, orders: dict[str, list[str]]) -> Path:
    folder.mkdir()
    for well, order in orders.items():
        stack = np.stack([np.full((16, 16), PIXELS[name], np.uint16) for name in order])
        about = {"axes": "CYX", "Channel": {"Name": order}}
        tifffile.imwrite(folder / f"P1_{well}_s1.ome.tif", stack, photometric="minisblack", metadata=about)
    return folder


def test_fault_05_new_names_by_the_order_of_files_that_differ_in_it_are_refused(tmp_path):
    folder = write_fields(tmp_path / "f", {"A01": ["DNA", "ER"], "A02": ["ER", "DNA"]})
    manifest = read_manifest(folder)
    values = [[int(read_plane(manifest.path(i, c)).mean()) for c in ("DNA", "ER")] for i in range(2)]
    assert values == [[100, 200], [100, 200]]
    with pytest.raises(
        CamaeError, match=r"the channels DNA, ER and .* ER, DNA, and the names a, b go by the files' order"
    ):
        read_manifest(folder, channels=["a", "b"])
    same = write_fields(tmp_path / "g", {"A01": ["DNA", "ER"], "A02": ["DNA", "ER"]})
    assert read_manifest(same, channels=["a", "b"]).channels == ("a", "b")


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ("DNA", r"channels='DNA': give a list of names"),
        ([], r"channels=\[\]: give a list of names"),
        ([1, 2], "1 is no name of a channel"),
        (["DNA", ""], "'' is no name of a channel"),
        ([" DNA", "ER"], "' DNA' is no name of a channel"),
    ],
)
def test_fault_17_channels_that_are_no_list_of_names_are_refused(tmp_path, channels, words):
    with pytest.raises(CamaeError, match=words):
        read_manifest(write_fields(tmp_path / "f", {"A01": ["DNA", "ER"]}), channels=channels)


def test_stacks_of_several_heights_are_said(tmp_path):
    for well, n in (("A01", 2), ("A02", 3)):
        stack = np.zeros((n, 16, 16), np.uint16)
        tifffile.imwrite(tmp_path / f"P1_{well}_s1.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    assert "maximum over 2 to 3 z planes" in read_manifest(tmp_path, channels=["DNA"], z="max").notes[0]


def test_an_empty_name_is_not_the_folder_one_is_in(tmp_path, monkeypatch):
    plane(tmp_path / "P1_A1_s1_DNA.tif")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CamaeError, match="the name of the manifest or folder is empty"):
        read_manifest("")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(CamaeError, match=r"pipe\.csv: is neither a file nor a folder"):
        read_manifest("pipe.csv")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PK\x03\x04", "is an Excel workbook or a zip archive"),
        (b"\xd0\xcf\x11\xe0", "is an Excel workbook of an old kind"),
        (b"\x89HDF", "is an HDF5 file"),
        (b"BZh9", "is packed by bzip2"),
        (b"\xfd7zXZ", "is packed by xz"),
        (b"\x28\xb5\x2f\xfd", "is packed by zstd"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, start, words):
    (tmp_path / "m.csv").write_bytes(start + b"\0\1\2")
    with pytest.raises(CamaeError, match=words):
        read_text_table(tmp_path / "m.csv")


def test_fault_09_invisible_characters_are_refused_with_their_line(tmp_path):
    path = table(tmp_path / "m.csv", "Metadata_Well,gene\nA1,TP53\nA2,TP53\u200b\n")
    with pytest.raises(CamaeError, match=r"m.csv, line 3: holds the invisible character U\+200B"):
        read_text_table(path)


def test_fault_09_cells_that_are_no_text_are_refused_and_large_numbers_stay(tmp_path):
    pd.DataFrame({"Metadata_Plate": [b"P"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(CamaeError, match="the column 'Metadata_Plate' holds binary where text is needed"):
        read_text_table(tmp_path / "b.parquet")
    assert as_text(pd.Series([1.0, None, 2.0**60, 1e300])).tolist() == ["1.0", "", str(2.0**60), "1e+300"]
    assert as_text(pd.Series([1.0, np.nan])).tolist() == ["1", ""]


def test_fault_37_a_manifest_shows_itself_without_warnings():
    rows = {"Metadata_Plate": ["P", "P"], "Metadata_Perturbation": ["", "x"], "DNA": ["a.tif", "b.tif"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "1 perturbations" in repr(Manifest(pd.DataFrame(rows)))


def test_fault_33_one_table_or_name_needs_no_list(tmp_path):
    plane(tmp_path / "a.tif")
    data = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,Metadata_Site,DNA\nP,A1,1,a.tif\n")
    labels = table(tmp_path / "l.csv", "Well,gene\nA1,DMSO\n")
    for path in (labels, str(labels)):
        found = read_manifest(data, metadata=path, negative_controls="DMSO").table.loc[0]
        assert (found["Metadata_Perturbation"], found["Metadata_control_type"]) == ("DMSO", "negcon")


def test_fault_13_skip_leaves_out_sites_of_a_table_whose_files_are_not_there(tmp_path):
    for name in ("a.tif", "b.tif", "c.tif"):
        plane(tmp_path / name)
    header = "Metadata_Plate,Metadata_Well,Metadata_Site,DNA,ER\n"
    rows = "P,A1,1,a.tif#0,b.tif\nP,A2,1,a.tif,gone.tif\nP,A3,1,,c.tif\nP,A4,1,s3://bucket/a.tif,c.tif\n"
    data = table(tmp_path / "m.csv", header + rows)
    with pytest.warns(UserWarning, match="2 of 4 sites under .* are incomplete"):
        manifest = read_manifest(data, incomplete="skip")
    assert manifest.table["Metadata_Well"].tolist() == ["A01", "A04"]
    assert manifest.left_out.lines() == [
        "1 site left out: the file of its channel ER is not there (first: plate P well A02 site 1)",
        "1 site left out: lacks DNA (first: plate P well A03 site 1)",
    ]


@pytest.mark.parametrize("values", [np.ones((16, 16), complex), np.array([["a"]]), np.ones(16)])
def test_fault_17_illumination_functions_that_are_no_numbers_of_a_plane(tmp_path, values):
    np.save(tmp_path / "i.npy", values)
    with pytest.raises(
        CamaeError, match=r"an illumination function is numbers of \(height, width\), this is "
    ):
        function_window(str(tmp_path / "i.npy"), 0, 0, (16, 16), 0)
