"""Every reader on the folders its data set has: small ones written here, and the real samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from camae.dataloader import CropLoader, read_manifest
from camae.dataloader.datasets.rxrx import STAINS_6
from camae.dataloader.read_pixels import read_site, read_window
from camae.errors import CamaeError, MissingFileError

ELSEWHERE = "/home/ubuntu/bucket/cpg0016-jump/source_4/images"
BATCH = "2021_04_26_Batch1"


def gallery(root: Path, channels: tuple[str, ...] = ("AGP", "DNA"), illumination: bool = False) -> Path:
    """Two wells of two sites as a Gallery source has them; PathName_ columns are those of another machine."""
    source = root / "source_4"
    for plate in ("BR1", "BR2"):
        images = (
            source / "images" / BATCH / "images" / f"{plate}__2021-05-02T16_02_51-Measurement1" / "Images"
        )
        images.mkdir(parents=True)
        rows = []
        for well in ("A01", "A02"):
            for site in ("1", "2"):
                row = {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": site}
                for c, name in enumerate(channels):
                    file = f"{well}_{site}_{c}.tiff"
                    tifffile.imwrite(images / file, np.full((32, 40), 100 * c + int(site), np.uint16))
                    row[f"FileName_Orig{name}"] = file
                    row[f"PathName_Orig{name}"] = f"{ELSEWHERE}/{BATCH}/images/{images.parent.name}/Images/"
                    if illumination:
                        row[f"FileName_Illum{name}"] = f"{plate}_Illum{name}.npy"
                        row[f"PathName_Illum{name}"] = f"{ELSEWHERE}/{BATCH}/illum/{plate}"
                rows.append(row)
        folder = source / "workspace" / "load_data_csv" / BATCH / plate
        folder.mkdir(parents=True)
        stem = "load_data_with_illum" if illumination else "load_data"
        pd.DataFrame(rows).to_csv(folder / f"{stem}.csv", index=False)
    maps = source / "workspace" / "metadata" / "platemaps" / BATCH
    (maps / "platemap").mkdir(parents=True)
    (maps / "barcode_platemap.csv").write_text("Assay_Plate_Barcode,Plate_Map_Name\nBR1,map\nBR2,map\n")
    (maps / "platemap" / "map.txt").write_text(
        "well_position\tbroad_sample\tsolvent\nA01\tBRD-1\tDMSO\na02\t\tDMSO\n"
    )
    return source


def test_gallery_paths_platemaps_and_control_wells(tmp_path: Path) -> None:
    gallery(tmp_path)
    for data in (tmp_path, tmp_path / "source_4"):
        manifest = read_manifest(data)
        assert manifest.channels == ("AGP", "DNA")
        assert len(manifest) == 8
        first = manifest.table.iloc[0]
        assert (first.Metadata_Source, first.Metadata_Batch, first.Metadata_Plate) == (
            "source_4",
            BATCH,
            "BR1",
        )
        assert manifest.table.Metadata_Perturbation.tolist() == ["BRD-1", "BRD-1", "DMSO", "DMSO"] * 2
        assert manifest.table.Metadata_control_type.tolist() == ["", "", "negcon", "negcon"] * 2
        image, names = read_site(manifest, 1)
        assert names == ["AGP", "DNA"]
        assert image[:, 0, 0].tolist() == [2, 102]


def test_gallery_external_metadata_names_perturbations(tmp_path: Path) -> None:
    source = gallery(tmp_path)
    external = source / "workspace" / "metadata" / "external_metadata"
    external.mkdir()
    (external / "compounds.tsv").write_text(
        "broad_sample\tpert_iname\tcontrol_type\nBRD-1\taloxistatin\tposcon_cp\n"
    )
    table = read_manifest(tmp_path).table
    assert table.Metadata_Perturbation.tolist()[:3] == ["aloxistatin", "aloxistatin", "DMSO"]
    assert table.Metadata_control_type.tolist()[:3] == ["poscon", "poscon", "negcon"]


def test_channels_go_by_name_when_sources_differ(tmp_path: Path) -> None:
    one = gallery(tmp_path / "one", ("DNA", "AGP", "ER"))
    two = gallery(tmp_path / "two", ("AGP", "DNA"))
    (tmp_path / "both").mkdir()
    one.rename(tmp_path / "both" / "source_1")
    two.rename(tmp_path / "both" / "source_2")
    manifest = read_manifest(tmp_path / "both")
    assert manifest.channels == ("DNA", "AGP", "ER")
    assert manifest.site_channels(0) == ["DNA", "AGP", "ER"]
    assert manifest.site_channels(8) == ["DNA", "AGP"]
    assert read_site(manifest, 0)[0][:, 0, 0].tolist() == [1, 101, 201]
    assert read_site(manifest, 8)[0][:, 0, 0].tolist() == [101, 1]


def test_gallery_missing_files_are_listed_and_skipped_on_demand(tmp_path: Path) -> None:
    gallery(tmp_path)
    next(tmp_path.rglob("A02_1_1.tiff")).unlink()
    with pytest.raises(
        CamaeError, match=r"1 of 8 sites .* well A02 site 1: channel DNA: no such file .*A02_1_1"
    ):
        read_manifest(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        assert len(read_manifest(tmp_path, incomplete="skip")) == 7


def test_illumination_functions_are_applied(tmp_path: Path) -> None:
    source = gallery(tmp_path, illumination=True)
    for plate in ("BR1", "BR2"):
        folder = source / "images" / BATCH / "illum" / plate
        folder.mkdir(parents=True)
        ramp = np.linspace(1, 3, 40)[None].repeat(32, 0)
        for name in ("AGP", "DNA"):
            np.save(folder / f"{plate}_Illum{name}.npy", ramp)
    manifest = read_manifest(tmp_path)
    image, _ = read_site(manifest, 0)
    expected = np.rint(101 / ramp.astype(np.float32)).astype(np.uint16)
    assert np.array_equal(image[1], expected)
    assert np.array_equal(read_window(manifest, 0, 4, 9, 20)[0][1], expected[4:24, 9:29])
    whole = CropLoader(manifest, crop=16, batch_size=8).batch_at(0)
    windows = CropLoader(manifest, crop=16, batch_size=8, cache_bytes=0).batch_at(0)
    assert np.array_equal(whole.planes_KHW.numpy(), windows.planes_KHW.numpy())
    np.save(folder / "BR2_IllumDNA.npy", np.ones((5, 5)))
    with pytest.raises(CamaeError, match=r"row 4 .*channel DNA: .*BR2_IllumDNA\.npy.*must cover"):
        read_site(read_manifest(tmp_path), 4)


def test_planes_on_s3_are_refused_with_the_copy_command(tmp_path: Path) -> None:
    folder = tmp_path / "workspace" / "load_data_csv" / BATCH / "BR9"
    folder.mkdir(parents=True)
    url = "s3://cellpainting-gallery/cpg0016-jump/source_4/images/x/images/p/a.tiff"
    (folder / "load_data.csv").write_text(
        f"Metadata_Plate,Metadata_Well,Metadata_Site,URL_OrigDNA\nBR9,A01,1,{url}\n"
    )
    manifest = read_manifest(tmp_path)
    with pytest.raises(CamaeError, match=rf"row 0 .*channel DNA: {url}.*aws s3 cp --no-sign-request {url}"):
        read_site(manifest, 0)
    with pytest.raises(CamaeError, match=r"aws s3 cp"):
        CropLoader(manifest, crop=8, batch_size=1).batch_at(0)


def write_png(path: Path, value: int, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 20), value, dtype)).save(path)


def test_rxrx_nested_flat_and_metadata(tmp_path: Path) -> None:
    for channel in range(1, 7):
        for site in (1, 2):
            write_png(tmp_path / f"HUVEC-1/Plate1/M23_s{site}_w{channel}.png", 10 * site + channel)
        write_png(tmp_path / f"U2OS-03_2_B02_w{channel}.png", channel)
    (tmp_path / "metadata.csv").write_text(
        "experiment,plate,well,site,cell_type,well_type,sirna\n"
        "HUVEC-1,1,M23,1,HUVEC,treatment,s15652\nU2OS-03,2,B02,1,U2OS,negative_control,EMPTY\n"
    )
    manifest = read_manifest(tmp_path)
    assert manifest.channels == ("w1", "w2", "w3", "w4", "w5", "w6")
    assert manifest.table.Metadata_Plate.tolist() == ["HUVEC-1_1", "HUVEC-1_1", "U2OS-03_2"]
    assert manifest.table.Metadata_Perturbation.tolist() == ["s15652", "s15652", "EMPTY"]
    assert manifest.table.Metadata_control_type.tolist() == ["", "", "negcon"]
    assert read_site(manifest, 1)[0][:, 0, 0].tolist() == [21, 22, 23, 24, 25, 26]
    inside = read_manifest(tmp_path / "HUVEC-1")
    assert len(inside) == 2


def test_rxrx19a_and_rxrx3(tmp_path: Path) -> None:
    for channel in range(1, 6):
        write_png(tmp_path / f"a/HRCE-1/Plate1/AA02_s3_w{channel}.png", channel)
    (tmp_path / "a/metadata.csv").write_text(
        "experiment,plate,well,site,cell_type,disease_condition,treatment\nHRCE-1,1,AA02,3,HRCE,Mock,UNTREATED\n"
    )
    manifest = read_manifest(tmp_path / "a", format="rxrx19a", channel_names={"w1": "DNA"})
    assert manifest.channels == ("DNA", "w2", "w3", "w4", "w5")
    assert manifest.table.Metadata_control_type.tolist() == ["negcon"]
    for channel in range(1, 7):
        write_png(tmp_path / f"b/gene-001/Plate9/AB32_s1_w{channel}.png", 60_000 + channel, np.uint16)
    (tmp_path / "b/metadata_rxrx3.csv").write_text(
        "well_id,experiment_name,plate,address,gene,treatment,cell_type\n"
        "gene-001_9_AB32,gene-001,9,AB32,CTNNB1,CTNNB1_guide_2,HUVEC\n"
    )
    manifest = read_manifest(tmp_path / "b", format="rxrx3")
    assert manifest.table.Metadata_Perturbation.tolist() == ["CTNNB1"]
    image, _ = read_site(manifest, 0)
    assert image.dtype == np.uint16
    assert image[:, 0, 0].tolist() == [60_001, 60_002, 60_003, 60_004, 60_005, 60_006]


def test_rxrx2_and_rxrx19b(tmp_path: Path) -> None:
    """RxRx2: six channels, four sites, many immune stimuli; RxRx19b: six channels whose stains are published."""
    for channel in range(1, 7):
        for site in range(1, 5):
            write_png(tmp_path / f"2/HUVEC-04/Plate12/AF05_s{site}_w{channel}.png", 10 * site + channel)
        write_png(tmp_path / f"19b/HUVEC-2/Plate3/B02_s1_w{channel}.png", 100 + channel)
    (tmp_path / "2/metadata.csv").write_text(
        "site_id,well_id,cell_type,experiment,plate,well,site,treatment,treatment_conc\n"
        "HUVEC-04_12_AF05_1,HUVEC-04_12_AF05,HUVEC,HUVEC-04,12,AF05,1,IL-4,0.3\n"
    )
    manifest = read_manifest(tmp_path / "2", format="rxrx2")
    assert manifest.channels == ("w1", "w2", "w3", "w4", "w5", "w6")
    assert manifest.table.Metadata_Site.tolist() == ["1", "2", "3", "4"]
    assert manifest.table.Metadata_Perturbation.tolist() == ["IL-4"] * 4
    assert manifest.table.Metadata_Plate.tolist() == ["HUVEC-04_12"] * 4
    assert read_site(manifest, 2)[0][:, 0, 0].tolist() == [31, 32, 33, 34, 35, 36]
    (tmp_path / "19b/metadata.csv").write_text(
        "site_id,well_id,cell_type,experiment,plate,well,site,disease_condition,treatment,treatment_conc,SMILES\n"
        "HUVEC-2_3_B02_1,HUVEC-2_3_B02,HUVEC,HUVEC-2,3,B02,1,storm-severe,,,\n"
    )
    manifest = read_manifest(tmp_path / "19b", format="rxrx19b", channel_names=STAINS_6)
    assert manifest.channels == ("DNA", "ER", "Actin", "RNA", "Mito", "AGP")
    assert manifest.table.Metadata_cell_type.tolist() == ["HUVEC"]
    image, names = read_site(manifest, 0, channels=["AGP", "DNA"])
    assert (names, image[:, 0, 0].tolist()) == (["AGP", "DNA"], [106, 101])


def test_incomplete_rxrx_sites_are_listed(tmp_path: Path) -> None:
    for channel in (1, 2, 3, 4, 6):
        write_png(tmp_path / f"HUVEC-2/Plate3/B02_s1_w{channel}.png", channel)
    for format in ("rxrx1", "rxrx2", "rxrx19b"):
        with pytest.raises(CamaeError, match=r"1 of 1 sites .*plate HUVEC-2_3 well B02 site 1: lacks w5"):
            read_manifest(tmp_path, format=format)


def test_rxrx3_core_parquet(tmp_path: Path, real_images: Path) -> None:
    rows = [
        {
            "__key__": f"compound-001/Plate3/AA41_s1_{c}",
            "jp2": {"bytes": file.read_bytes(), "path": file.name},
        }
        for c, file in enumerate(sorted((real_images / "openphenom_sample").glob("*.jp2")), start=1)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    manifest = read_manifest(tmp_path)
    assert manifest.table.Metadata_Plate.tolist() == ["compound-001_3"]
    image, names = read_site(manifest, 0)
    assert names == ["w1", "w2", "w3", "w4", "w5", "w6"]
    direct = read_site(read_manifest(real_images / "openphenom_sample"), 0)[0]
    assert np.array_equal(image, direct)
    assert image.shape == (6, 512, 512)


def test_ome_zarr_plate(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    pixels = np.random.default_rng(0).integers(0, 65536, (1, 3, 1, 24, 32), dtype=np.uint16)
    plate = zarr.open_group(str(tmp_path / "P1.zarr"), mode="w")
    plate.attrs["plate"] = {"wells": [{"path": "B/03"}]}
    well = plate.create_group("B/03")
    well.attrs["well"] = {"images": [{"path": "0"}]}
    image = well.create_group("0")
    image.attrs["multiscales"] = [
        {"axes": [{"name": a} for a in "tczyx"], "datasets": [{"path": "0"}, {"path": "1"}]}
    ]
    image.attrs["omero"] = {"channels": [{"label": n} for n in ("DNA", "ER", "AGP")]}
    image.create_array("0", data=pixels, chunks=(1, 1, 1, 16, 16))
    for data in (tmp_path, tmp_path / "P1.zarr"):
        manifest = read_manifest(data)
        assert manifest.channels == ("DNA", "ER", "AGP")
        assert manifest.table.iloc[0][["Metadata_Plate", "Metadata_Well", "Metadata_Site"]].tolist() == [
            "P1",
            "B03",
            "1",
        ]
        assert np.array_equal(read_site(manifest, 0)[0], pixels[0, :, 0])
        assert np.array_equal(read_window(manifest, 0, 3, 5, 16)[0], pixels[0, :, 0, 3:19, 5:21])


@pytest.mark.parametrize("axes", ["tczyx", "czyx", "zyx", "tyx", "yx"])
def test_ome_zarr_of_several_z_planes_and_time_points(tmp_path: Path, axes: str) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    sizes = {"t": 2, "c": 2, "z": 3, "y": 16, "x": 24}
    pixels = np.random.default_rng(0).integers(0, 65536, [sizes[a] for a in axes], dtype=np.uint16)
    image = zarr.open_group(str(tmp_path / "P1.zarr"), mode="w")
    image.attrs["multiscales"] = [{"axes": [{"name": a} for a in axes], "datasets": [{"path": "0"}]}]
    image.create_array("0", data=pixels, chunks=pixels.shape)
    whole = np.expand_dims(pixels, tuple(i for i, a in enumerate("tczyx") if a not in axes))
    names = {"channels": ["DNA", "GFP"][: whole.shape[1]]}
    chosen = {"z": "max"} if "z" in axes else {}
    chosen |= {"time": "each"} if "t" in axes else {}
    if chosen:
        with pytest.raises(CamaeError, match=rf"has the axes {axes.upper()}, with .*: pass .*\(--"):
            read_manifest(tmp_path)
    manifest = read_manifest(tmp_path, **names, **chosen)
    assert len(manifest) == whole.shape[0]
    for t in range(len(manifest)):
        np.testing.assert_array_equal(read_site(manifest, t)[0], whole[t].max(1))
    if chosen:
        last = read_manifest(tmp_path, **{key: whole.shape["tcz".index(key[0])] - 1 for key in chosen})
        assert last.channels == tuple(map(str, range(whole.shape[1])))
        np.testing.assert_array_equal(read_site(last, 0)[0], whole[-1, :, -1])


def test_jump_metadata_tables_name_perturbations(tmp_path: Path) -> None:
    gallery(tmp_path / "data")
    for maps in (tmp_path / "data").rglob("platemaps"):
        maps.rename(maps.with_name("unused"))
    (tmp_path / "well.csv").write_text(
        "Metadata_Source,Metadata_Plate,Metadata_Well,Metadata_JCP2022\n"
        "source_4,BR1,A01,JCP2022_1\nsource_4,BR1,A02,JCP2022_2\nsource_4,BR2,A01,JCP2022_1\nsource_4,BR2,A02,JCP2022_2\n"
    )
    (tmp_path / "crispr.csv").write_text(
        "Metadata_JCP2022,Metadata_Symbol\nJCP2022_1,TP53\nJCP2022_2,non-targeting\n"
    )
    (tmp_path / "control.csv").write_text("Metadata_JCP2022,Metadata_pert_type\nJCP2022_2,negcon\n")
    tables = [tmp_path / n for n in ("well.csv", "crispr.csv", "control.csv")]
    manifest = read_manifest(tmp_path / "data", metadata=tables)
    assert (
        manifest.table.Metadata_Perturbation.tolist()
        == ["TP53", "TP53", "non-targeting", "non-targeting"] * 2
    )
    assert manifest.table.Metadata_control_type.tolist() == ["", "", "negcon", "negcon"] * 2
    renamed = read_manifest(tmp_path / "data", metadata=tables[:2], negative_controls=["non-targeting"])
    assert renamed.table.Metadata_control_type.tolist() == ["", "", "negcon", "negcon"] * 2


@pytest.mark.parametrize(
    ("name", "plate", "well", "site", "channel"),
    [
        ("Exp 1_B03_s2_w31E94C24B-45E4-450A-9919-257C714278F7.tif", "Exp 1", "B03", "2", "w3"),
        ("BR1_AF12_s4_DNA.tif", "BR1", "AF12", "4", "DNA"),
        ("BR1__x/r02c13f07p01-ch5sk1fk1fl1.tiff", "BR1__x", "B13", "7", "ch5"),
        ("CP-1_P24_T0001F006L01A02Z01C02.tif", "CP-1", "P24", "6", "C02"),
        ("plate7/AA41_s1_6.tif", "plate7", "AA41", "1", "6"),
    ],
)
def test_file_name_patterns(
    tmp_path: Path, name: str, plate: str, well: str, site: str, channel: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    tifffile.imwrite(tmp_path / name, np.zeros((8, 8), np.uint8))
    manifest = read_manifest(tmp_path)
    assert manifest.channels == (channel,)
    row = manifest.table.iloc[0]
    assert (row.Metadata_Plate, row.Metadata_Well, row.Metadata_Site) == (plate, well, site)


def test_bad_folders_and_patterns_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file or folder"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(CamaeError, match="holds no TIFF"):
        read_manifest(tmp_path)
    tifffile.imwrite(tmp_path / "odd-name.tif", np.zeros((8, 8), np.uint8))
    with pytest.raises(CamaeError, match=r"no image name fits a known scheme .*odd-name\.tif"):
        read_manifest(tmp_path)
    with pytest.raises(CamaeError, match="not a regular expression"):
        read_manifest(tmp_path, pattern="(?P<well")
    with pytest.raises(CamaeError, match="no group"):
        read_manifest(tmp_path, pattern="odd-(name)")
    with pytest.raises(
        CamaeError, match=r"holds 1 channel .*--channels.* or give a pattern with a group channel"
    ):
        read_manifest(tmp_path, pattern="(?P<well>.*)")
    with pytest.raises(CamaeError, match="unknown, choose one of gallery"):
        read_manifest(tmp_path, format="czi")


def test_real_samples(real_images: Path) -> None:
    rxrx = real_images / "rxrx1_sample"
    with pytest.raises(CamaeError, match=r"18 of 36 sites .* lacks w5, w6"):
        read_manifest(rxrx)
    with pytest.warns(UserWarning, match="18 of 36"):
        manifest = read_manifest(rxrx, incomplete="skip")
    assert len(manifest) == 18
    assert set(manifest.table.Metadata_control_type) == {"negcon"}
    assert set(manifest.table.Metadata_cell_type) == {"HEPG2", "HUVEC", "RPE", "U2OS"}
    for row in range(18):
        image, _ = read_site(manifest, row, check_constant=True)
        assert image.shape == (6, 512, 512)
    for folder, sites, channels in (
        ("bbbc022_dna", 7, ("w1",)),
        ("faim_imagexpress_projection_mix", 4, ("w1", "w2", "w3")),
        ("cytodataframe/JUMP_plate_BR00117006", 1, ("ch2", "ch3", "ch5")),
    ):
        manifest = read_manifest(real_images / folder)
        assert (len(manifest), manifest.channels) == (sites, channels)
        for row in range(sites):
            assert read_site(manifest, row, check_constant=True)[0].dtype == np.uint16
