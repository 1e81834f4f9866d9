"""Numbered faults of files, wells, joins and names: what a reader must not guess at."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from screen_files import first_pixels, load_data, manifest_of, platemap, table, write

from camae.dataloader import Manifest, read_manifest
from camae.dataloader.screen_tools.check import check
from camae.dataloader.screen_tools.pack import pack
from camae.errors import CamaeError, MissingFileError


@pytest.mark.parametrize("name", ["m.csv", "m.CSV", "m.tsv", "m.txt", "m.csv.gz"])
def test_fault_01_rows_that_do_not_fit_the_header_are_refused(tmp_path: Path, name: str) -> None:
    import gzip

    text = "Metadata_Plate,Metadata_Well,Metadata_Site,DNA,ER\nP,A01,1,dna.tif,er.tif,\n"
    text = text.replace(",", "\t") if name.endswith((".tsv", ".txt")) else text
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    for dna, value in (("dna", 1), ("er", 2)):
        write(tmp_path / f"{dna}.tif", value)
    with pytest.raises(CamaeError, match=rf"{name}, line 2: 6 cells where the header names 5"):
        read_manifest(tmp_path / name)


def test_fault_01_names_of_columns_are_not_mended(tmp_path: Path) -> None:
    for header, sentence in (
        ("Metadata_Well,DNA,DNA", "stands twice"),
        ("Metadata_Well,DNA,", "has no name"),
        ("Metadata_Well,Well,DNA", "'Well' would be taken for a channel"),
        ("Metadata_Well,metadata_well,DNA", "are the same"),
    ):
        with pytest.raises(CamaeError, match=sentence):
            read_manifest(table(tmp_path / "m.csv", f"{header}\nA01,a.tif,b.tif\n"))


def test_fault_02_unpadded_wells_are_wells(tmp_path: Path) -> None:
    for well in ("A1", "A2", "A10"):
        for channel in ("DNA", "ER"):
            write(tmp_path / f"P1_{well}_s1_{channel}.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manifest = read_manifest(tmp_path)
    assert manifest.table.Metadata_Well.tolist() == ["A01", "A02", "A10"]
    assert len(manifest.left_out) == 0
    assert check(manifest).attrs["looked_at"] == "6 planes of 3 sites in 3 wells of 1 plate"


@pytest.mark.parametrize(
    ("name", "well"),
    [
        ("p1_a1_s1_w2.TIF", "A01"),
        ("p1_aa7_s1_w2.tif", "AA07"),
        ("P1_AF48_S3_W2.TIFF", "AF48"),
        ("P1_A001_s1_DNA.tif", "A01"),
        ("P1_r02c13_s1_DNA.tif", "B13"),
        ("P1_A-1_s1_DNA.tif", "A01"),
        ("P1/a1_s01_DNA.PNG", "A01"),
        ("R32C48F01P01-CH1SK1FK1FL1.TIFF", "AF48"),
        ("p1_q01_T0001F006L01A02Z01C02.tif", "Q01"),
        ("P1_AB3_T0001F0006L01A02Z01C02.TIF", "AB03"),
    ],
)
def test_fault_02_case_padding_and_large_plates(tmp_path: Path, name: str, well: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    manifest = read_manifest(tmp_path)
    assert manifest.table.Metadata_Well.tolist() == [well]


def test_fault_02_files_that_fit_no_scheme_are_counted(tmp_path: Path) -> None:
    for name in (
        "P1_A01_s1_DNA.tif",
        "P1_A02_s1_DNA.tif",
        "overview.tif",
        "P1-A03-s1-DNA.tif",
        "P1_A04_s1_DNA.jpg",
    ):
        write(tmp_path / name)
    with pytest.warns(UserWarning, match="left out") as caught:
        manifest = read_manifest(tmp_path)
    assert any("2 of 4 images" in str(w.message) and "P1-A03-s1-DNA.tif" in str(w.message) for w in caught)
    assert len(manifest) == 2
    assert manifest.left_out.lines() == [
        "1 file left out: its image format is not read (first: P1_A04_s1_DNA.jpg)",
        "2 files left out: the name does not fit the scheme of the others (first: P1-A03-s1-DNA.tif)",
    ]
    with pytest.warns(UserWarning, match="3 of 4 images"):
        by_pattern = read_manifest(tmp_path, pattern=r"(?P<well>A01)_s(?P<site>\d)_(?P<channel>\w+)\.tif")
    assert [o.reason for o in by_pattern.left_out][-1] == "the name does not fit the pattern"
    # What a selection does not take is no omission, and what was left out before stays known.
    assert len(manifest.select([0]).left_out) == 3


def test_fault_02_rxrx_and_tables_count_too(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "HUVEC-1" / "Plate1"
    folder.mkdir(parents=True)
    for channel in range(1, 7):
        Image.fromarray(np.full((8, 8), channel, np.uint8)).save(
            folder / f"b3_s1_w{channel}.PNG", format="PNG"
        )
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "thumbnail.png")
    table(tmp_path / "metadata.CSV", "experiment,plate,well,sirna\nHUVEC-1,1,B3,s1\n")
    with pytest.warns(UserWarning, match="1 of 7 images"):
        manifest = read_manifest(tmp_path)
    assert manifest.table.Metadata_Well.tolist() == ["B03"]
    assert manifest.table.Metadata_Perturbation.tolist() == ["s1"]
    assert "1 of 1 rows matched, with 1 of its 1 rows" in manifest.notes[0]
    table(tmp_path / "metadata.CSV", "experiment,plate,well,sirna\nHUVEC-9,1,B3,s1\n")
    with pytest.raises(CamaeError, match=r"metadata\.CSV: no row matches .*HUVEC-9.*HUVEC-1"):
        read_manifest(tmp_path)
    with pytest.raises(CamaeError, match=r"has images of channel w6.* one of rxrx1"):
        read_manifest(tmp_path, format="rxrx19a")


def test_fault_03_wells_are_one_well_however_they_are_written(tmp_path: Path) -> None:
    text = "Metadata_Plate,Metadata_Well,DNA\n" + "".join(
        f"P,{w},{i}.tif\n" for i, w in enumerate(["A1", "a01", "A01", "r01c01"])
    )
    frame = pd.read_csv(table(tmp_path / "m.csv", text), dtype=str)
    frame.to_parquet(tmp_path / "m.parquet")
    for manifest in (
        read_manifest(tmp_path / "m.csv"),
        read_manifest(tmp_path / "m.parquet"),
        Manifest(frame),
    ):
        assert manifest.table.Metadata_Well.tolist() == ["A01"] * 4


def test_fault_03_one_site_with_two_files_is_refused() -> None:
    site = {"Metadata_Plate": "P", "Metadata_Well": "A1", "Metadata_Site": "1", "DNA": "a.tif"}
    with pytest.raises(
        CamaeError,
        match=r"rows 0 and 1 are both plate P, well A01, site 1 but name different files \(DNA: a.tif and b.tif\)",
    ):
        manifest_of([site, site | {"Metadata_Well": "A01", "DNA": "b.tif"}])
    # Cells of one image are rows of one site with the same files.
    assert len(manifest_of([site | {"Metadata_Cell_X": "1"}, site | {"Metadata_Cell_X": "9"}])) == 2
    for column in ("Metadata_Time", "Metadata_Z", "Metadata_Timepoint"):
        assert len(manifest_of([site | {column: "1"}, site | {column: "2", "DNA": "b.tif"}])) == 2


@pytest.mark.parametrize("second", ["TP53", ""])
def test_fault_03_two_perturbations_in_one_well_are_refused(second: str) -> None:
    rows = [
        {
            "Metadata_Plate": "P",
            "Metadata_Well": w,
            "Metadata_Site": s,
            "Metadata_Perturbation": p,
            "DNA": f"{s}.tif",
        }
        for w, s, p in (("A1", "1", "MYC"), ("a01", "2", second))
    ]
    with pytest.raises(
        CamaeError,
        match=f"plate P, well A01 has two perturbations, 'MYC' and {repr(second) if second else 'none'}",
    ):
        manifest_of(rows)


def test_fault_03_time_points_and_planes_are_kept_apart(tmp_path: Path) -> None:
    for time_point in (1, 2):
        for z in (1, 2):
            write(tmp_path / f"TimePoint_{time_point}/ZStep_{z}/P_A01_s1_w1.tif", 10 * time_point + z)
    manifest = read_manifest(tmp_path)
    steps = manifest.table[["Metadata_Time", "Metadata_Z"]].to_numpy().tolist()
    assert steps == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]
    assert [first_pixels(manifest, row) for row in range(4)] == [[11], [12], [21], [22]]
    pattern = r"TimePoint_(?P<time>\d)/ZStep_1/(?P<plate>P)_(?P<well>A01)_s(?P<site>1)_(?P<channel>w1)"
    with pytest.warns(UserWarning, match="2 of 4"):
        assert read_manifest(tmp_path, pattern=pattern).table.Metadata_Time.tolist() == ["1", "2"]
    # One plane of z per site is no step: channels in other planes stay one site.
    for channel, z in ((1, "01"), (5, "02")):
        write(tmp_path / f"phenix/r01c01f01p{z}-ch{channel}sk1fk1fl1.tiff")
    assert len(read_manifest(tmp_path / "phenix")) == 1


def test_fault_03_packed_time_points_keep_their_pixels(tmp_path: Path) -> None:
    for time_point in (1, 2):
        write(tmp_path / f"in/TimePoint_{time_point}/P_A01_s1_w1.tif", 10 * time_point)
    packed = pack(read_manifest(tmp_path / "in"), tmp_path / "out").manifest
    assert [first_pixels(packed, row) for row in (0, 1)] == [[10], [20]]


def test_fault_04_joins_normalize_wells_and_say_what_matched(tmp_path: Path) -> None:
    for well in ("A01", "A02"):
        write(tmp_path / f"{well}.tif")
    data = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,DNA\n0012,A01,A01.tif\n0012,A02,A02.tif\n")
    names = table(
        tmp_path / "t.csv", "Metadata_Plate,Metadata_Well,Metadata_Perturbation\n0012,A1,MYC\n0012,a2,DMSO\n"
    )
    manifest = read_manifest(data, metadata=[names], negative_controls=["DMSO"])
    assert manifest.table.Metadata_Perturbation.tolist() == ["MYC", "DMSO"]
    assert manifest.table.Metadata_Plate.tolist() == ["0012", "0012"]
    assert "2 of 2 rows matched, with 2 of its 2 rows" in manifest.notes[-1]
    plain = table(tmp_path / "plain.csv", "Plate,well_position,gene\n0012,A1,MYC\n0012,P24,TP53\n")
    with pytest.warns(
        UserWarning, match=r"1 of 2 rows matched, not Plate '0012', Well 'A02', with 1 of its 2 rows"
    ):
        assert read_manifest(data, metadata=[plain]).table.Metadata_Perturbation.tolist() == ["MYC", ""]
    other = table(tmp_path / "other.csv", "Metadata_Plate,Metadata_Well,Metadata_Perturbation\n12,A1,MYC\n")
    with pytest.raises(
        CamaeError,
        match=r"other\.csv: no row matches by Metadata_Plate and Metadata_Well: its first is Plate '12'.* Plate '0012'",
    ):
        read_manifest(data, metadata=[other])
    twice = table(tmp_path / "twice.csv", "Metadata_Well,Metadata_Perturbation\nA1,MYC\nA01,TP53\n")
    with pytest.raises(
        CamaeError, match=r"twice\.csv: has several rows for Well 'A01' that differ in Metadata_Perturbation"
    ):
        read_manifest(data, metadata=[twice])
    with pytest.raises(CamaeError, match="no site has the perturbation 'EMPTY'"):
        read_manifest(data, metadata=[names], negative_controls=["DMSO", "EMPTY"])


@pytest.mark.parametrize(
    "header", ["well_position\tgene", "Well Position,gene", "WELL;Gene", "Metadata_Well,Metadata_gene"]
)
def test_fault_04_platemaps_in_any_spelling(tmp_path: Path, header: str) -> None:
    separator = next(s for s in "\t;," if s in header)
    write(tmp_path / "images/B1/PL1/r01c01f01.tiff")
    load_data(tmp_path, "PL1", "/mnt/x/images/B1/PL1")
    platemap(tmp_path, f"{header}\na1{separator}MYC\n")
    manifest = read_manifest(tmp_path)
    assert manifest.table.Metadata_Perturbation.tolist() == ["MYC"]
    assert "map.txt (plate PL1): 1 of 1 rows matched, with 1 of its 1 rows" in manifest.notes[0]


def test_fault_04_platemaps_that_match_nothing_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "images/B1/PL1/r01c01f01.tiff")
    load_data(tmp_path, "PL1", "/mnt/x/images/B1/PL1")
    file = platemap(tmp_path, "well_position\tgene\nB01\tMYC\n")
    with pytest.raises(
        CamaeError,
        match=r"map\.txt \(plate PL1\): no row matches by Metadata_Well: its first is Well 'B01', .* Well 'A01'",
    ):
        read_manifest(tmp_path)
    platemap(tmp_path, "place\tgene\nB01\tMYC\n")
    with pytest.raises(CamaeError, match=r"map\.txt: has no column well_position or well"):
        read_manifest(tmp_path)
    file.unlink()
    with pytest.raises(MissingFileError, match="the platemap of plate PL1 is missing"):
        read_manifest(tmp_path)
    platemap(tmp_path, "well\tgene\nA1\tMYC\n", "Assay_Plate_Barcode,Plate_Map_Name\nPL9,map\n")
    with pytest.raises(CamaeError, match="plate PL1 is not among its 1 plates"):
        read_manifest(tmp_path)


def test_fault_05_a_path_is_not_resolved_to_another_plates_files(tmp_path: Path) -> None:
    for root in (tmp_path / "deep", tmp_path / "flat"):
        load_data(root, "PL1", "/mnt/store/PL1__2020/Images/")
        load_data(root, "PL2", "/mnt/store/PL2__2020/Images/")
    write(tmp_path / "deep/PL1__2020/Images/r01c01f01.tiff")
    write(tmp_path / "flat/Images/r01c01f01.tiff")
    with pytest.raises(
        CamaeError, match=r"1 of 2 sites .* plate PL2 well A01 site 1: channel DNA: no such file .*PL2__2020"
    ):
        read_manifest(tmp_path / "deep")
    with pytest.warns(UserWarning, match="left out"):
        kept = read_manifest(tmp_path / "deep", incomplete="skip")
    assert kept.table.Metadata_Plate.tolist() == ["PL1"]
    assert kept.left_out.lines() == [
        "1 site left out: the file of its channel DNA is not there (first: B1 plate PL2 well A01 site 1)"
    ]
    # Nothing says whose images a folder "Images" holds.
    with pytest.raises(CamaeError, match="2 of 2 sites"):
        read_manifest(tmp_path / "flat")
    (tmp_path / "flat/workspace/load_data_csv/B1/PL2/load_data.csv").unlink()
    assert len(read_manifest(tmp_path / "flat")) == 1


def test_fault_05_the_folder_that_is_read_may_be_a_plates_own(tmp_path: Path) -> None:
    root = tmp_path / "PL1__2020"
    write(root / "Images/r01c01f01.tiff")
    load_data(root, "PL1", "/mnt/store/PL1__2020/Images/")
    assert len(read_manifest(root)) == 1
    load_data(root, "PL2", "/mnt/store/PL2__2020/Images/")
    with pytest.raises(CamaeError, match=r"1 of 2 sites .*plate PL2"):
        read_manifest(root)
    (root / "workspace/load_data_csv/B1/PL1/load_data.csv").unlink()
    with pytest.raises(CamaeError, match=r"1 of 1 sites .*plate PL2"):
        read_manifest(root)


def test_fault_05_two_plates_that_name_one_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "r01c01f01.tiff")
    for plate in ("PL1", "PL2"):
        load_data(tmp_path, plate, "")
    with pytest.raises(
        CamaeError, match="plate PL1 well A01 site 1 and plate PL2 well A01 site 1 name one file"
    ):
        read_manifest(tmp_path)


def test_fault_06_compounds_are_not_pooled_by_their_target(tmp_path: Path) -> None:
    for i in range(1, 5):
        write(tmp_path / f"images/B1/PL1/{i}.tiff", i)
    rows = "".join(f"PL1,A0{i},1,{i}.tiff,/x/images/B1/PL1\n" for i in range(1, 5))
    table(
        tmp_path / "workspace/load_data_csv/B1/PL1/load_data.csv",
        f"Metadata_Plate,Metadata_Well,Metadata_Site,FileName_OrigDNA,PathName_OrigDNA\n{rows}",
    )
    platemap(
        tmp_path, "well_position\tbroad_sample\nA01\tBRD-K1\nA02\tBRD-K2\nA03\tBRD-K3\nA04\tccsbBroad304_1\n"
    )
    external = tmp_path / "workspace/metadata/external_metadata"
    table(
        external / "compounds.TSV",
        "broad_sample\tpert_iname\tgene\nBRD-K1\taspirin\tPTGS1\nBRD-K2\tketorolac\tPTGS1\nBRD-K3\t\tPTGS2\n",
    )
    table(external / "orf.csv", "broad_sample,gene,pert_iname\nccsbBroad304_1,TP53,TP53 clone 7\n")
    manifest = read_manifest(tmp_path)
    assert manifest.table.Metadata_Perturbation.tolist() == ["aspirin", "ketorolac", "BRD-K3", "TP53"]
    assert manifest.table.Metadata_gene.tolist() == ["PTGS1", "PTGS1", "PTGS2", "TP53"]


def test_fault_09_genes_named_like_missing_values_keep_their_names(tmp_path: Path) -> None:
    names = ["NA", "nan", "None", "NULL", "null"]
    for i in range(5):
        write(tmp_path / f"P_A0{i + 1}_s1_DNA.tif", i)
    genes = table(
        tmp_path / "genes.csv",
        "Metadata_Well,gene\n" + "".join(f"A{i + 1},{n}\n" for i, n in enumerate(names)),
    )
    assert read_manifest(tmp_path, metadata=[genes]).table.Metadata_Perturbation.tolist() == names
