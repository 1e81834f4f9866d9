"""Sentences of the readers' refusals that no other test reads."""

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from screen_files import load_data, platemap, table, write

from camae.dataloader import Manifest, read_manifest
from camae.dataloader.datasets import gallery, ome_zarr, rxrx, zarr_sites
from camae.dataloader.mixture import Source, _joined, quotas
from camae.dataloader.plane_batch import PlaneBatch
from camae.dataloader.read_pixels import read_crops, read_plane, read_site
from camae.errors import CamaeError
from camae.kernels.patches import check_planes, patch_side

ROW = {"Metadata_Plate": "P", "Metadata_Well": "A01", "Metadata_Site": "1", "DNA": "dna.tif"}


def test_manifests():
    with pytest.raises(CamaeError, match="the manifest is empty: it needs one row per site"):
        Manifest(pd.DataFrame(columns=list(ROW)))
    with pytest.raises(CamaeError, match=r"row 1 .*names no file for any channel"):
        Manifest(pd.DataFrame([ROW, ROW | {"Metadata_Well": "A02", "DNA": ""}]))
    with pytest.raises(CamaeError, match="the mask has 2 entries, the manifest 1 rows"):
        Manifest(pd.DataFrame([ROW])).select([True, False])


def test_no_complete_site(tmp_path):
    table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,DNA,ER\nP,A01,a.tif,\nP,A02,,b.tif\n")
    with pytest.raises(CamaeError, match=r"no complete site is left under .*plate P well A01: lacks ER"):
        read_manifest(tmp_path / "m.csv", incomplete="skip", metadata=[])
    with pytest.raises(CamaeError, match=r"2 of 2 sites under .* are incomplete"):
        read_manifest(tmp_path / "m.csv")


def test_metadata_that_shares_no_column(tmp_path):
    write(tmp_path / "dna.tif")
    path = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,DNA\nP,A01,dna.tif\n")
    extra = table(tmp_path / "extra.csv", "gene,dose\nTP53,1\n")
    with pytest.raises(CamaeError, match=r"extra\.csv: shares no Metadata_ column with the manifest"):
        read_manifest(path, metadata=[extra])


def test_patterns_without_groups(tmp_path):
    write(tmp_path / "plate" / "P1_A01_s1_DNA.tif")
    with pytest.raises(CamaeError, match=r"pattern '\.\*' has no group such as \(\?P<well>"):
        read_manifest(tmp_path / "plate", pattern=".*")


def test_one_plane_claimed_twice(tmp_path):
    """The same RxRx plane as PNG and as JP2."""
    folder = tmp_path / "images" / "HUVEC-01" / "Plate1"
    folder.mkdir(parents=True)
    for suffix in ("png", "jp2"):
        (folder / f"B02_s1_w1.{suffix}").write_bytes(b"")
    with pytest.raises(CamaeError, match=r"B02_s1_w1\.\w+ and .*B02_s1_w1\.\w+ claim the same plane"):
        rxrx.read(tmp_path)


def test_two_arrays_beside_one_table_of_sites(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "images.zarr"), mode="w")
    for name in "ab":
        group.create_array(name, shape=(1, 1, 8, 8), dtype="uint16", chunks=(1, 1, 8, 8))
    table(tmp_path / "sites.csv", "idx,plate,well\n0,P,A01\n")
    table(tmp_path / "channels.csv", "idx,channel\n0,DNA\n")
    with pytest.raises(
        CamaeError, match=r"holds 2 arrays \(site, channel, y, x\) where sites\.csv means one"
    ):
        zarr_sites.read(tmp_path)


def test_addresses_of_nothing(tmp_path):
    with pytest.raises(CamaeError, match="an empty path was given where an image is meant"):
        read_plane("")
    with pytest.raises(CamaeError, match="no path was given: one per channel is needed"):
        read_crops([], 0, 0, 8)
    pd.DataFrame({"image": [{"bytes": b""}]}).to_parquet(tmp_path / "cells.parquet")
    with pytest.raises(CamaeError, match=r"cells\.parquet: holds one image per row: name one, as in .*#0"):
        read_plane(str(tmp_path / "cells.parquet"))


def test_illumination_functions_of_other_shapes(tmp_path):
    write(tmp_path / "dna.tif")
    np.save(tmp_path / "illum.npy", np.ones((16, 16, 3), np.float32))
    manifest = Manifest(pd.DataFrame([ROW | {"Illum_DNA": "illum.npy"}]), tmp_path)
    with pytest.raises(
        CamaeError, match=r"an illumination function is numbers of \(height, width\), this is"
    ):
        read_site(manifest, 0)


def batch(dtype):
    return PlaneBatch(
        torch.zeros(1, 8, 8, dtype=dtype), torch.tensor([0]), torch.tensor([0]), ("DNA",), np.array([0])
    )


def test_batches_of_planes(screen):
    with pytest.raises(CamaeError, match=r"a plane batch needs planes \(K, H, W\) with K sample"):
        PlaneBatch(torch.zeros(1, 8, 8), torch.tensor([0, 0]), torch.tensor([0]), ("DNA",))
    sources = [Source("one", screen, 1.0), Source("two", screen, 1.0)]
    parts = [(i, np.array([0]), batch(dtype)) for i, dtype in enumerate((torch.float32, torch.uint16))]
    with pytest.raises(
        CamaeError, match="floating-point and integer images cannot be trained on together: one"
    ):
        _joined(parts, sources)


def test_planes_of_kernels():
    with pytest.raises(CamaeError, match=r"planes must be \(K, H, W\), got shape \(8, 8\)"):
        check_planes(torch.zeros(8, 8), 8)
    with pytest.raises(CamaeError, match="patches of 60 pixels are not square"):
        patch_side(60)


def test_pictures_that_are_no_gray_plane(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "color.png")
    with pytest.raises(
        CamaeError, match=r"color\.png: is of mode RGB, one gray plane of 8 or 16 bit is needed"
    ):
        read_plane(str(tmp_path / "color.png"))
    frames = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(2)]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    with pytest.raises(
        CamaeError, match=r"film\.png: holds 2 frames where one is meant: write each as a file"
    ):
        read_plane(str(tmp_path / "film.png"))
    imagecodecs = pytest.importorskip("imagecodecs")
    (tmp_path / "color.jp2").write_bytes(imagecodecs.jpeg2k_encode(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(
        CamaeError, match=r"color\.jp2: is a color image \(8, 8, 3\), one gray plane is needed"
    ):
        read_plane(str(tmp_path / "color.jp2"))


def test_addresses_with_other_numbers_than_the_file_has(tmp_path):
    zarr = pytest.importorskip("zarr")
    write(tmp_path / "dna.tif")
    with pytest.raises(CamaeError, match=r"a TIFF has one page number, as in .*dna\.tif#0"):
        read_plane(f"{tmp_path / 'dna.tif'}#0,1")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("x", shape=(2, 8, 8), dtype="uint16", chunks=(1, 8, 8))
    with pytest.raises(CamaeError, match=r"a\.zarr: is a Zarr group, name the array in it"):
        read_plane(str(tmp_path / "a.zarr"))
    with pytest.raises(CamaeError, match=r"name the 1 leading indices, as in .*x#0"):
        read_plane(str(tmp_path / "a.zarr" / "x"))


def test_names_of_channels_that_are_not_there(tmp_path):
    path = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,DNA\nP,A01,dna.tif\n")
    with pytest.raises(CamaeError, match="cannot rename channel 'ER': there is DNA"):
        read_manifest(path, channel_names={"ER": "x"})


def test_gallery_folders_without_images(tmp_path):
    with pytest.raises(CamaeError, match=r"holds no workspace/load_data_csv/<batch>/<plate>/load_data\.csv"):
        gallery.read(tmp_path)
    path = table(tmp_path / "load_data.csv", "Metadata_Plate,Metadata_Well\nP,A01\n")
    with pytest.raises(
        CamaeError, match=r"load_data\.csv: has no FileName_ or URL_ column, so it names no image"
    ):
        gallery.read(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CamaeError, match="holds no image named as RxRx images are"):
        rxrx.read(tmp_path / "empty")


def test_two_platemaps_of_one_plate(tmp_path):
    load_data(tmp_path, "PL1", "/images")
    platemap(tmp_path, "well\tgene\nA1\tMYC\n", "Assay_Plate_Barcode,Plate_Map_Name\nPL1,map\nPL1,other\n")
    with pytest.raises(CamaeError, match="names two platemaps for plate PL1, map and other: keep one"):
        gallery.read(tmp_path, incomplete="keep")


def test_two_perturbations_in_one_well():
    rows = [ROW | {"Metadata_Site": s, "Metadata_Perturbation": s, "DNA": f"{s}.tif"} for s in "12"]
    with pytest.raises(CamaeError, match=r"well A01 has two perturbations, '1' and '2': a well has one"):
        Manifest(pd.DataFrame(rows))


def ome_zarr_image(folder, attributes):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "image.zarr"), mode="w", zarr_format=2)
    group.create_array("0", shape=(1, 8, 8), dtype="uint16", chunks=(1, 8, 8))
    group.create_group("levels")
    group.attrs.update(attributes)
    return folder / "image.zarr"


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ({"datasets": [{"path": "levels"}]}, "is no array, and the image's metadata says it is"),
        ({"datasets": [{"path": "0"}], "axes": ["c", "y"]}, r"its axes \['c', 'y'\] do not fit its shape"),
        ({"datasets": [{"path": "absent"}]}, r"cannot be opened as Zarr \("),
        ({"datasets": []}, r"its OME metadata is damaged \(IndexError: "),
    ],
)
def test_ome_zarr_images_that_are_not_as_they_say(tmp_path, scale, words):
    with pytest.raises(CamaeError, match=words):
        ome_zarr.read(ome_zarr_image(tmp_path, {"multiscales": [scale]}))


def test_batches_of_one_size_and_shares_of_one_crop():
    with pytest.raises(CamaeError, match=r"image 1 is \(4, 4\) .* a batch holds one size and one dtype"):
        PlaneBatch.from_images([np.zeros((1, 8, 8), np.uint8), np.zeros((1, 4, 4), np.uint8)], [["DNA"]] * 2)
    with pytest.raises(
        CamaeError, match=r"weight 1e-09 of 1 is below 1 in .* crops: raise it, or leave the data"
    ):
        quotas([1.0, 1e-9])


def test_ome_zarr_without_images(tmp_path):
    with pytest.raises(CamaeError, match="holds no OME-Zarr plate or image"):
        ome_zarr.read(ome_zarr_image(tmp_path, {}))
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "plate.zarr"), mode="w", zarr_format=2)
    group.attrs["plate"] = {"wells": [{"path": "A/1"}]}
    group.create_group("A/1").attrs["well"] = {"images": [{"path": "0"}]}
    group.create_group("A/1/0")
    with pytest.raises(CamaeError, match=r"plate\.zarr/A/1/0: has no multiscales metadata"):
        ome_zarr.read(tmp_path / "plate.zarr")


def test_zarr_planes_of_a_million_chunks(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(10**6, 10**6), dtype="uint8", chunks=(64, 64))
    with pytest.raises(CamaeError, match=r"has planes of 1000000x1000000 in .* chunks: too large to be read"):
        read_plane(str(tmp_path / "a.zarr"))


def test_names_with_line_breaks_stay_in_one_sentence(tmp_path):
    """Found by fuzzing: a quoted header cell may hold tabs and line breaks."""
    path = tmp_path / "m.tsv"
    path.write_text('a\t"b\tc\nd"\nx\ty\tz\n')
    with pytest.raises(
        CamaeError, match=r"line 3: 3 cells where the header names 2 columns \(a, b\\tc\\nd\)"
    ) as caught:
        read_manifest(path)
    assert str(caught.value).isprintable()


def test_a_channel_called_like_metadata_is_refused(tmp_path):
    """Found by fuzzing: its files would stand in a column of metadata."""
    path = tmp_path / "load_data.csv"
    path.write_text("Metadata_Plate,Metadata_Well,Metadata_Site,FileName_Metadata_X\nP,A1,1,8.png\n")
    with pytest.raises(CamaeError, match=r"a channel cannot be called Metadata_X, as metadata are"):
        read_manifest(path)


def test_columns_nearly_called_metadata_are_no_files(tmp_path):
    """Found by fuzzing: a column of metadata in another case is metadata, and no image."""
    write(tmp_path / "8.png.tif")
    path = tmp_path / "load_data.csv"
    path.write_text(
        "Metadata_Plate,Metadata_Well,Metadata_Site,MEtadata_X,FileName_OrigDNA,PathName_OrigDNA\n"
        f"P,A1,1,odd,8.png.tif,{tmp_path}\n"
    )
    manifest = read_manifest(path)
    assert manifest.channels == ("DNA",)
    assert manifest.table["Metadata_X"].tolist() == ["odd"]
    path.write_text(
        path.read_text().replace("Metadata_Site", "Metadata_x").replace("MEtadata_X", "METADATA_x")
    )
    with pytest.raises(CamaeError, match=r"has both METADATA_x and Metadata_x: remove one"):
        read_manifest(path)


def test_manifests_of_other_values(tmp_path):
    manifest = Manifest(pd.DataFrame([ROW, ROW | {"Metadata_Well": "A02"}]))
    with pytest.raises(
        CamaeError, match="a manifest is made of a DataFrame, not of a value of type NoneType"
    ):
        Manifest(None)
    with pytest.raises(CamaeError, match="has a column named 3, which is no text; rename it"):
        Manifest(pd.DataFrame([ROW]).assign(x="").rename(columns={"x": 3}))
    for chosen in (0, ["a"], [1.7], [[True, False]]):
        with pytest.raises(CamaeError, match="selected by a mask of booleans, or by a list of row numbers"):
            manifest.select(chosen)
    for refused in (lambda: manifest.select([0, 2]), lambda: manifest.path(2, "DNA")):
        with pytest.raises(CamaeError, match="the manifest has no row 2: its rows are 0 to 1"):
            refused()
    for refused in (lambda: manifest.select([-1]), lambda: manifest.path(-1, "DNA")):
        with pytest.raises(CamaeError, match="the manifest has no row -1"):
            refused()
    with pytest.raises(CamaeError, match="the name of the manifest is a value of type NoneType"):
        manifest.write(None)
    with pytest.warns(
        UserWarning, match=r"the column Illum_ER is of no channel \(DNA\): it corrects nothing"
    ):
        Manifest(pd.DataFrame([ROW | {"Illum_ER": "er.npy", "Illum_DNA": "dna.npy"}]))


def test_what_reads_folders_is_refused_where_a_table_names_the_files(tmp_path):
    write(tmp_path / "dna.tif")
    path = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,DNA\nP,A01,dna.tif\n")
    for data, options in (
        (path, {"format": "folder"}),
        (path, {"pattern": "(?P<well>.*)"}),
        (Manifest.read(path), {"format": "gallery"}),
    ):
        with pytest.raises(
            CamaeError, match="names its files itself: format and pattern are of folders of images"
        ):
            read_manifest(data, **options)
    for data in (path, tmp_path):
        with pytest.raises(CamaeError, match="format='nope': unknown, choose one of gallery"):
            read_manifest(data, format="nope")
    with pytest.raises(
        CamaeError, match="format='rxrx1' has file names of its own: leave out pattern, or format"
    ):
        read_manifest(tmp_path, format="rxrx1", pattern="(?P<well>.*)")
    with pytest.raises(CamaeError, match="pattern is a value of type int; give a regular expression"):
        read_manifest(tmp_path, pattern=3)


@pytest.mark.parametrize("name", ["", "Metadata_X", "Illum_DNA", 3])
def test_names_that_channels_cannot_have(tmp_path, name):
    path = table(tmp_path / "m.csv", "Metadata_Plate,Metadata_Well,DNA,ER\nP,A01,dna.tif,er.tif\n")
    with pytest.raises(CamaeError, match=f"{name!r} is no name for a channel; give a text"):
        read_manifest(path, channel_names={"ER": name})


def test_a_screen_is_the_same_from_wherever_it_is_named(tmp_path, monkeypatch):
    """A table of the Gallery names its images by absolute paths."""
    folder = tmp_path / "screen"
    write(folder / "images" / "r01c01f01.tiff")
    load_data(folder, "PL1", str(folder / "images"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    plain, dotted = read_manifest(folder), read_manifest("../screen")
    assert dotted.fingerprint() == plain.fingerprint()
    assert dotted.path(0, "DNA") == str(folder / "images" / "r01c01f01.tiff")


@pytest.mark.parametrize("reader", ["native", "tifffile"])
def test_windows_of_planes_of_another_size(tmp_path, reader):
    """The window is in both, and not at the same place of the site."""
    large = tmp_path / "b.tif"
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((32, 32), np.uint16))
    tifffile.imwrite(large, np.zeros((40, 48), np.uint16))
    with pytest.raises(
        CamaeError, match=r"b\.tif: is 40x48 uint16 but .*a\.tif of the same site is 32x32 uint16"
    ):
        read_crops([tmp_path / "a.tif", large], 0, 0, 16, reader)
    with pytest.raises(CamaeError, match="y, x and size of a window are numbers of pixels, not 'a'"):
        read_crops([tmp_path / "a.tif"], "a", 0, 16, reader)
    for refused in (lambda: read_plane(None, reader), lambda: read_crops([None], 0, 0, 16, reader)):
        with pytest.raises(CamaeError, match="the path of a plane is a value of type NoneType"):
            refused()


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (np.ones((8, 8)), "must cover the image, and ends before its rows 0 to 32 or columns 0 to 32 do"),
        (np.zeros((32, 32)), "must be positive, and has a value that is 0, negative or NaN; make it anew"),
        (np.full((32, 32), np.nan), "has a value that is 0, negative or NaN"),
    ],
)
def test_illumination_functions_that_cannot_be(tmp_path, function, sentence):
    tifffile.imwrite(tmp_path / "dna.tif", np.ones((32, 32), np.uint16))
    np.save(tmp_path / "dna.npy", function)
    manifest = Manifest(pd.DataFrame([ROW | {"Illum_DNA": "dna.npy"}]), tmp_path)
    with pytest.raises(CamaeError, match=sentence):
        read_site(manifest, 0)
