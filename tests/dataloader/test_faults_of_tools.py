"""Numbered faults of channels, packing, patterns and plans, and the known traps of published screens."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from screen_files import first_pixels, load_data, mixed_table, table, write

from camae.dataloader import Manifest, read_manifest, read_plane
from camae.dataloader.datasets.name_matching import match_user_pattern
from camae.dataloader.pixel_size import pixel_size, pixel_sizes
from camae.dataloader.screen_tools.check import check
from camae.dataloader.screen_tools.pack import PackResult, pack
from camae.dataloader.screen_tools.plan import plan
from camae.errors import CamaeError


def test_fault_13_an_empty_cell_of_a_plate_is_refused(tmp_path: Path) -> None:
    data = mixed_table(tmp_path / "m.csv")
    with pytest.raises(
        CamaeError, match=r"1 of 3 sites .*plate P well A02: lacks ER; pass incomplete='skip'.* or 'mixed'"
    ):
        read_manifest(data)
    with pytest.warns(UserWarning, match="left out"):
        skipped = read_manifest(data, incomplete="skip")
    assert skipped.table.Metadata_Well.tolist() == ["A01", "A03"]
    assert skipped.left_out.lines() == ["1 site left out: lacks ER (first: plate P well A02)"]
    assert len(read_manifest(data, incomplete="mixed")) == 3
    kept = read_manifest(data, incomplete="keep")
    assert ("incomplete", 1, "lacks ER, which other sites of its plate have") in list(
        check(kept)[["problem", "row", "detail"]].itertuples(index=False, name=None)
    )
    # Channels that are not asked for need not be there, and plates may differ.
    assert len(read_manifest(data, channels=["DNA"])) == 3
    assert len(read_manifest(mixed_table(tmp_path / "n.csv", "PQQ"))) == 3
    with pytest.raises(CamaeError, match="must be one of error, skip, mixed, keep"):
        read_manifest(data, incomplete="yes")


def test_fault_13_without_plates_the_whole_manifest_has_one_set(tmp_path: Path) -> None:
    data = mixed_table(tmp_path / "m.csv")
    data.write_text(data.read_text().replace("Metadata_Plate", "Metadata_Line"))
    with pytest.raises(CamaeError, match="2 of 3 sites"):
        read_manifest(data)


def test_fault_14_packed_names_are_unique_on_any_file_system(tmp_path: Path) -> None:
    channels = ["DNA 405", "DNA/405", "DNA:405", "dna_405", "DNA_405_2", "caf\u00e9", "cafe\u0301", "."]
    row = {"Metadata_Plate": "P", "Metadata_Well": "A01", "Metadata_Site": "1"}
    for i, channel in enumerate(channels):
        write(tmp_path / f"{i}.tif", i)
        row[channel] = f"{i}.tif"
    manifest = Manifest(pd.DataFrame([row]), tmp_path)
    packed = pack(manifest, tmp_path / "out").manifest
    assert first_pixels(packed) == list(range(len(channels)))
    names = [packed.path(0, c).casefold() for c in channels]
    assert len(set(names)) == len(names)
    long = Manifest(
        pd.DataFrame([{"Metadata_Plate": "P" * 300, "A" * 300: "0.tif", "A" * 299 + "B": "1.tif"}]), tmp_path
    )
    assert first_pixels(pack(long, tmp_path / "long").manifest) == [0, 1]


def test_fault_25_check_and_pack_read_floats_by_another_reader(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "f.tif", np.arange(256, dtype=np.float32).reshape(16, 16))
    manifest = Manifest(pd.DataFrame([{"Metadata_Well": "A01", "DNA": "f.tif"}]), tmp_path)
    assert check(manifest).problem.tolist() == ["unreadable"]
    assert check(manifest, reader="tifffile").empty
    packed = pack(manifest, tmp_path / "out", reader="tifffile").manifest
    assert np.array_equal(
        read_plane(packed.path(0, "DNA"), "tifffile"), read_plane(tmp_path / "f.tif", "tifffile")
    )
    assert plan(manifest, reader="tifffile").disk_bytes > 0
    for tool in (
        lambda: check(manifest, reader="pillow"),
        lambda: pack(manifest, tmp_path / "d", reader="pillow"),
        lambda: plan(manifest, reader="pillow"),
    ):
        with pytest.raises(CamaeError, match="unknown image back-end"):
            tool()


def test_fault_27_what_a_killed_pack_left_is_removed(tmp_path: Path, screen: Manifest) -> None:
    out = tmp_path / "out"
    left = out / "planes/P1/.A01_s1_DNA.4194305.tif"
    write(left)
    running = out / "planes/P1/.A01_s1_ER.1.tif"
    write(running)
    (out / ".manifest.4194305.parquet").touch()
    pack(screen, out)
    assert not left.exists()
    assert running.exists()
    assert not (out / ".manifest.4194305.parquet").exists()


def test_fault_37_a_pack_that_is_slower_says_so(screen: Manifest) -> None:
    assert "(5.0 times slower)" in str(PackResult(screen, 1, 0, 1, 1, 100.0, 20.0))
    assert "(2.0 times as fast)" in str(PackResult(screen, 1, 0, 1, 1, 100.0, 200.0))


def test_fault_26_a_pattern_that_backtracks_is_ended(tmp_path: Path) -> None:
    names = ["b_DNA.tif", "a" * 60 + "!.tif"]
    began = time.perf_counter()
    with pytest.raises(CamaeError, match=r"takes more than 1 s, at the name 'aaaa"):
        match_user_pattern(r"(?P<channel>(a+)+)$|b", names, seconds=1)
    assert time.perf_counter() - began < 4
    assert match_user_pattern(r"(?P<channel>b)", names) == [{"channel": "b"}, None]


def test_fault_26_a_table_of_100_000_columns_is_refused_at_once(tmp_path: Path) -> None:
    header = ",".join(f"c{i}" for i in range(100_000))
    data = table(tmp_path / "wide.csv", f"{header}\n{'a.tif,' * 99_999}a.tif\n")
    began = time.perf_counter()
    with pytest.raises(CamaeError, match=r"wide\.csv: the table has 100,000 columns"):
        read_manifest(data)
    assert time.perf_counter() - began < 2


def test_fault_33_a_phenix_plate_is_named_after_its_export(tmp_path: Path) -> None:
    for plate in ("BR1__2020-Measurement 1", "BR2__2020-Measurement 1"):
        write(tmp_path / plate / "Images/r01c01f01p01-ch1sk1fk1fl1.tiff")
    assert read_manifest(tmp_path).table.Metadata_Plate.tolist() == [
        "BR1__2020-Measurement 1",
        "BR2__2020-Measurement 1",
    ]
    for inside in ("BR1__2020-Measurement 1", "BR1__2020-Measurement 1/Images"):
        assert read_manifest(tmp_path / inside).table.Metadata_Plate.tolist() == ["BR1__2020-Measurement 1"]


def test_fault_33_a_plan_is_made_from_the_tables_alone(tmp_path: Path) -> None:
    root = tmp_path / "cpg0016-jump/source_4"
    load_data(
        root, "PL1", "/home/ubuntu/bucket/projects/x/cpg0016-jump/source_4/images/B1/images/PL1__2021/Images"
    )
    result = plan(read_manifest(tmp_path, incomplete="keep"), destination="data")
    folder = "cpg0016-jump/source_4/images/B1/images/PL1__2021/Images"
    assert result.table["where"].tolist() == ["s3"]
    assert result.commands == [
        f"aws s3 cp --no-sign-request --recursive s3://cellpainting-gallery/{folder}/ data/{folder} "
        "--exclude '*' --include r01c01f01.tiff"
    ]
    assert "1 on S3, of unknown size" in str(result)


def test_fault_34_load_data_in_cellprofilers_words(tmp_path: Path) -> None:
    write(tmp_path / "images/PL1/a.tiff", 7)
    data = table(
        tmp_path / "Image.csv",
        "ImageNumber,Image_Metadata_Plate,Image_Metadata_Well,Image_FileName_OrigDNA,Image_PathName_OrigDNA,Image_URL_OrigDNA\n"
        "3,PL1,a1,a.tiff,/elsewhere/images/PL1,file:/elsewhere/images/PL1/a.tiff\n",
    )
    manifest = read_manifest(data)
    assert manifest.channels == ("DNA",)
    row = manifest.table.iloc[0]
    assert (row.Metadata_Plate, row.Metadata_Well, row.Metadata_Site) == ("PL1", "A01", "3")
    assert first_pixels(manifest) == [7]
    by_row = table(
        tmp_path / "load_data.csv",
        "Metadata_Row,Metadata_Col,Metadata_FieldID,Metadata_Plate,URL_DNA\n27,5,02,PL1,file:///elsewhere/images/PL1/a.tiff\n",
    )
    row = read_manifest(by_row).table.iloc[0]
    assert (row.Metadata_Well, row.Metadata_Site) == ("AA05", "2")
    with pytest.raises(CamaeError, match="has column names and no row"):
        read_manifest(table(tmp_path / "empty.csv", "Metadata_Well,Metadata_Site,FileName_DNA\n"))
    both = table(
        tmp_path / "both.csv",
        "Metadata_Well,Image_Metadata_Well,Metadata_Site,FileName_DNA\nA1,A2,1,a.tiff\n",
    )
    with pytest.raises(CamaeError, match="has both Image_Metadata_Well and Metadata_Well"):
        read_manifest(both)


def test_check_names_zero_filled_planes_shared_files_and_pixel_sizes(tmp_path: Path) -> None:
    for i, dots in enumerate((20_000, 20_000, 20_000, 40_000)):
        write(tmp_path / f"{i}.tif", i, resolution=(dots, dots), resolutionunit="CENTIMETER")
    tifffile.imwrite(tmp_path / "zero.tif", np.zeros((16, 16), np.uint16))
    rows = [
        {"Metadata_Plate": "P", "Metadata_Well": f"A0{i}", "Metadata_Site": "1", "AGP": a, "Mito": m}
        for i, (a, m) in enumerate((("0.tif", "0.tif"), ("1.tif", "zero.tif"), ("2.tif", "3.tif")), start=1)
    ]
    manifest = Manifest(pd.DataFrame(rows), tmp_path)
    found = check(manifest)
    assert list(zip(found.row, found.channel, found.problem, strict=True)) == [
        (1, "Mito", "constant"),
        (2, "Mito", "pixel size"),
        (0, "Mito", "shared file"),
    ]
    assert "filled with zeros" in found.detail[0]
    assert "0.25 um, most planes of 0.5 um" in found.detail[1]
    assert pixel_sizes(manifest).tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_pixel_sizes_of_ome_imagej_and_dots_per_inch(tmp_path: Path) -> None:
    plane = np.ones((8, 8), np.uint16)
    tifffile.imwrite(
        tmp_path / "ome.tif", plane, ome=True, metadata={"PhysicalSizeX": 598, "PhysicalSizeXUnit": "nm"}
    )
    tifffile.imwrite(tmp_path / "ij.tif", plane, imagej=True, resolution=(1.5, 1.5), metadata={"unit": "um"})
    tifffile.imwrite(tmp_path / "dpi.tif", plane, resolution=(72, 72), resolutionunit="INCH", metadata=None)
    sizes = [pixel_size(str(tmp_path / f"{name}.tif")) for name in ("ome", "ij", "dpi", "gone")]
    assert sizes == [pytest.approx(0.598), pytest.approx(1 / 1.5), None, None]


def test_known_jump_traps(tmp_path: Path) -> None:
    rows = []
    for r in "ABCDEFGHI":
        for column in range(1, 10):
            well = f"{r}{column:02d}"
            rows.append(
                {
                    "Metadata_Source": "source_4",
                    "Metadata_Plate": "PL1",
                    "Metadata_Well": well,
                    "Metadata_Site": "1",
                    "DNA": f"raw/r{ord(r) - 64:02d}c{column:02d}f01p01-ch5sk1fk1fl1.tiff",
                    "ER": f"raw/r{ord(r) - 64:02d}c{column:02d}f01p01-ch2sk1fk1fl1.tiff",
                    "Illum_DNA": "PL1/PL1_IllumDNA.npy",
                    "Illum_ER": "PL1/PL1_IllumAGP.npy",
                }
            )
    rows[4]["DNA"] = rows[4]["DNA"].replace("ch5", "ch1").replace("raw/", "maxproj/")
    rows[7]["Metadata_Well"] = "X"
    manifest = Manifest(pd.DataFrame(rows), tmp_path)
    found = check(manifest, known="jump")
    traps = found[found.problem != "missing"]
    kinds = list(zip(traps.problem, traps.channel, traps.row, strict=True))
    assert kinds == [
        ("well name", "", 7),
        ("wells absent", "", 0),
        ("wells cut", "", 0),
        ("channel order", "DNA", 4),
        ("channel order", "ER", 0),
        ("raw and projected", "DNA", 4),
        ("illumination", "ER", 0),
    ]
    assert "number 2 in the file names, 4 is published for source_4" in traps.detail.iloc[4]
    assert check(manifest).problem.unique().tolist() == ["missing"]
    with pytest.raises(CamaeError, match="known='jumpy': choose one of jump"):
        check(manifest, known="jumpy")
