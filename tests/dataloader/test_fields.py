"""Folders of files that hold all channels of a field: names, metadata, order of pages, projections, and refusals."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from field_images import image
from PIL import Image

from camae.dataloader import CropLoader, read_manifest, read_plane
from camae.dataloader.datasets.tiff_axes import images_in
from camae.dataloader.read_pixels import read_crops, read_site
from camae.dataloader.screen_tools.check import check
from camae.errors import CamaeError


def two(folder: Path, first: dict, second: dict, axes: tuple[str, str] = ("CYX", "CYX")) -> Path:
    for name, about, order in zip(("P1_A01.tif", "P1_A02.tif"), (first, second), axes, strict=True):
        metadata = {"axes": order, **about.pop("metadata", {})}
        tifffile.imwrite(folder / name, image(order), metadata=metadata, **about)
    return folder


AB = {"Labels": ["a", "b"]}
ORDERS = ["".join(p) + "YX" for p in itertools.permutations("TZC")]


@pytest.mark.parametrize("axes", ORDERS)
@pytest.mark.parametrize("ome", [True, False], ids=["OME", "tifffile"])
def test_pages_are_those_that_tifffile_finds(tmp_path: Path, axes: str, ome: bool) -> None:
    path = tmp_path / "A01.tif"
    tifffile.imwrite(path, image(axes), ome=ome, metadata={"axes": axes}, photometric="minisblack")
    (found,) = images_in(str(path))
    with tifffile.TiffFile(path) as file:
        series, pages = file.series[0], [page.asarray() for page in file.pages]
        assert found.axes == series.axes == axes
        whole = np.moveaxis(series.asarray(), [axes.index(a) for a in "TCZ"], [0, 1, 2])
    for index in np.ndindex(found.pages_TCZ.shape):
        np.testing.assert_array_equal(pages[found.pages_TCZ[index]], whole[index])


def test_imagej_writes_time_then_z_then_channels(tmp_path: Path) -> None:
    path = tmp_path / "A01.tif"
    tifffile.imwrite(path, image("TZCYX"), imagej=True, metadata={"axes": "TZCYX"})
    (found,) = images_in(str(path))
    assert found.axes == "TZCYX"
    for t, c, z in np.ndindex(found.pages_TCZ.shape):
        np.testing.assert_array_equal(
            read_plane(f"{path}#{found.pages_TCZ[t, c, z]}"), image("TZCYX")[t, z, c]
        )


def test_labels_of_slices_are_no_names_of_channels(tmp_path: Path) -> None:
    labels = [f"z{z}-{c}" for z in range(3) for c in ("DNA", "GFP")]
    tifffile.imwrite(
        tmp_path / "A01.tif", image("ZCYX"), imagej=True, metadata={"axes": "ZCYX", "Labels": labels}
    )
    assert images_in(str(tmp_path / "A01.tif"))[0].channels == ("", "")


@pytest.mark.parametrize(
    ("name", "plate", "well", "site"),
    [
        ("P1_A01_s3.tif", "P1", "A01", "3"),
        ("P1_b2.ome.tif", "P1", "B02", "1"),
        ("week 2/AF48_f02.tiff", "week 2", "AF48", "2"),
        ("exp_P1_A01_f02.tif", "exp_P1", "A01", "2"),
        ("C03_field-7.tif", "", "C03", "7"),
        ("r02c03f04.tif", "", "B03", "4"),
        ("P1_C03_s1_stack.tif", "P1", "C03", "1"),
    ],
)
def test_wells_and_sites_of_names(tmp_path: Path, name: str, plate: str, well: str, site: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    tifffile.imwrite(tmp_path / name, image("CYX"), imagej=True, metadata={"axes": "CYX", **AB})
    manifest = read_manifest(tmp_path)
    row = manifest.table.iloc[0]
    found = row.Metadata_Plate, row.Metadata_Well, row.Metadata_Site
    assert found == (plate or tmp_path.name, well, site)
    np.testing.assert_array_equal(read_site(manifest, 0)[0], image("CYX"))
    assert manifest.notes == ["1 field, 2 channels in each file (a, b), axes CYX"]


PLATE = """<Plate ID="Plate:0" Name="BR7"><Well ID="Well:0" Row="1" Column="4">
<WellSample ID="s0"><ImageRef ID="Image:0"/></WellSample>
<WellSample ID="s1"><ImageRef ID="Image:1"/></WellSample></Well></Plate>"""


def with_plate(path: Path, fields: int = 2) -> None:
    """An OME-TIFF of several fields in one file, with a plate's wells in its description."""
    with tifffile.TiffWriter(path, ome=True) as file:
        for seed in range(fields):
            file.write(image("CYX", seed), metadata={"axes": "CYX", "Channel": {"Name": ["DNA", "GFP"]}})
    text = tifffile.tiffcomment(path)
    tifffile.tiffcomment(path, text.replace("</OME>", f"{PLATE}</OME>").encode())


def test_wells_and_sites_of_ome_plates(tmp_path: Path) -> None:
    with_plate(tmp_path / "export.ome.tif")
    manifest = read_manifest(tmp_path)
    assert manifest.table[["Metadata_Plate", "Metadata_Well", "Metadata_Site"]].to_numpy().tolist() == [
        ["BR7", "B05", "1"],
        ["BR7", "B05", "2"],
    ]
    for row in range(2):
        np.testing.assert_array_equal(read_site(manifest, row)[0], image("CYX", row))
    assert manifest.notes == ["2 fields, 2 channels in each file (DNA, GFP), axes CYX"]


def test_fields_of_one_file_without_a_plate_are_numbered(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "P1_A01.ome.tif", ome=True) as file:
        for seed in range(2):
            file.write(image("CYX", seed), metadata={"axes": "CYX"})
    manifest = read_manifest(tmp_path, channels=["DNA", "GFP"])
    assert manifest.table["Metadata_Site"].tolist() == ["1", "2"]
    np.testing.assert_array_equal(read_site(manifest, 1)[0], image("CYX", 1))


def test_planes_in_other_files_are_looked_for_there(tmp_path: Path) -> None:
    """Exports that repeat the description of all files in each: an image counts where its planes are."""
    for seed in range(2):
        path = tmp_path / f"A0{seed + 1}.ome.tif"
        with tifffile.TiffWriter(path, ome=True) as file:
            file.write(image("CYX", seed), metadata={"axes": "CYX", "Channel": {"Name": ["DNA", "GFP"]}})
        text = tifffile.tiffcomment(path)
        (mine,) = re.findall(r"<Image .*</Image>", text)
        blocks = [
            mine.replace("Image:0", f"Image:{n}").replace(
                '<TiffData IFD="0" PlaneCount="2"/>',
                f'<TiffData IFD="0" PlaneCount="2"><UUID FileName="A0{n + 1}.ome.tif">urn:uuid:{n}</UUID></TiffData>',
            )
            for n in range(2)
        ]
        tifffile.tiffcomment(path, text.replace(mine, "".join(blocks)).encode())
    manifest = read_manifest(tmp_path)
    assert manifest.table["Metadata_Well"].tolist() == ["A01", "A02"]
    np.testing.assert_array_equal(read_site(manifest, 1)[0], image("CYX", 1))


def test_a_pattern_without_channel(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "exp7 G9 pos12.tif", image("CYX"), photometric="minisblack", metadata=None)
    pattern = r"(?P<plate>\w+) (?P<well>[A-P]\d+) pos(?P<site>\d+)"
    manifest = read_manifest(tmp_path, pattern=pattern, channels=["DNA", "GFP"])
    row = manifest.table.iloc[0]
    assert (row.Metadata_Plate, row.Metadata_Well, row.Metadata_Site) == ("exp7", "G09", "12")
    with pytest.raises(CamaeError, match=r"does not say which well and site it shows: .*give a pattern"):
        read_manifest(tmp_path, channels=["DNA", "GFP"])


def test_single_planes_of_one_channel_are_named_by_the_user(tmp_path: Path) -> None:
    for well in ("A01", "A02"):
        Image.fromarray(image("YX", dtype=np.uint8)).save(tmp_path / f"P1_{well}.png")
    manifest = read_manifest(tmp_path, channels=["brightfield"])
    assert manifest.notes == ["2 fields, 1 channel in each file (brightfield), axes YX"]
    np.testing.assert_array_equal(read_site(manifest, 1)[0][0], image("YX"))


def test_names_given_in_file_order_and_names_chosen(tmp_path: Path) -> None:
    named = {"imagej": True, "metadata": {"Labels": ["DNA", "GFP"]}}
    two(tmp_path, {**named}, {**named})
    assert read_manifest(tmp_path, channels=["GFP"]).path(0, "GFP").endswith("P1_A01.tif#1")
    assert read_manifest(tmp_path, channels=["Hoechst", "AGP"]).path(0, "AGP").endswith("P1_A01.tif#1")
    assert read_manifest(tmp_path, file_channels=["ER"]).channels == ("DNA", "GFP")
    assert read_manifest(tmp_path, channel_names={"GFP": "ER"}).channels == ("DNA", "ER")
    with pytest.raises(
        CamaeError, match=r"P1_A01\.tif: names its channels DNA, GFP, .*GFP, ER were named: give names"
    ):
        read_manifest(tmp_path, channels=["GFP", "ER"])


IJ = {"imagej": True}
LABELS = [
    {"imagej": True, "metadata": {"Labels": names}} for names in (["DNA", "GFP"], ["DNA", "ER"], ["a", "a"])
]
REFUSED = [
    (
        (IJ, IJ),
        "CYX CYX",
        {"channels": ["DNA"]},
        r"P1_A01\.tif: holds 2 channels, and the names given are 1 \(DNA\): name",
    ),
    (
        (IJ, IJ),
        "CYX CYX",
        {},
        r"P1_A01\.tif: holds 2 channels \(axes CYX\) and does not name all .*--channels DNA,GFP",
    ),
    (
        (IJ, IJ),
        "CYX ZCYX",
        {"z": "max"},
        r"P1_A01\.tif has the axes CYX and .*P1_A02\.tif has ZCYX: the fields",
    ),
    (
        LABELS[:2],
        "CYX CYX",
        {},
        r"P1_A01\.tif has the channels DNA, GFP and .*P1_A02\.tif has DNA, ER: the fields",
    ),
    (LABELS[2:] * 2, "CYX CYX", {}, r"P1_A01\.tif: names two channels 'a': pass other names"),
    ((IJ, IJ), "CYX CYX", {"channels": ["a", "a"]}, r"channels a, a: the name 'a' stands twice"),
    (LABELS[:1] * 2, "CYX CYX", {"z": 1}, r"P1_A01\.tif: has no z plane 1: it has 1, counted from 0"),
    (LABELS[:1] * 2, "CYX CYX", {"z": "sum"}, r"z='sum': give 'max' or 'mean', or a number counted from 0"),
    (LABELS[:1] * 2, "CYX CYX", {"time": -1}, r"time=-1: give 'each', or a number counted from 0"),
    (
        (IJ, IJ),
        "TCYX TCYX",
        {"channels": ["a", "b"]},
        r"axes TCYX, with 2 time points: pass time='each' or a number \(--time\)$",
    ),
    (
        (IJ, IJ),
        "ZCYX ZCYX",
        {"channels": ["a", "b"]},
        r"axes ZCYX, with 3 z planes: pass z='max', 'mean' or a number \(--z\)$",
    ),
]


@pytest.mark.parametrize(("files", "axes", "options", "sentence"), REFUSED)
def test_refusals(tmp_path: Path, files: list[dict], axes: str, options: dict, sentence: str) -> None:
    first, second = axes.split()
    two(tmp_path, {**files[0]}, {**files[1]}, (first, second))
    with pytest.raises(CamaeError, match=sentence):
        read_manifest(tmp_path, **options)


def test_pages_that_nothing_explains(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "P1_A01.tif", image("ZYX"), photometric="minisblack", metadata=None)
    with pytest.raises(
        CamaeError, match=r"holds 3 pages and does not say what they are: .* with 3 names, or with one"
    ):
        read_manifest(tmp_path)
    with pytest.raises(
        CamaeError, match=r"holds 3 pages without metadata, and 2 of its channels named \(a, b\)"
    ):
        read_manifest(tmp_path, channels=["a", "b"])
    with pytest.raises(CamaeError, match="holds 3 pages without metadata, and 1 of its channels named"):
        read_manifest(tmp_path, channels=["a"])
    manifest = read_manifest(tmp_path, channels=["a"], time="each")
    assert manifest.table["Metadata_Time"].tolist() == ["0", "1", "2"]
    np.testing.assert_array_equal(read_site(manifest, 2)[0][0], image("ZYX")[2])
    np.testing.assert_array_equal(
        read_site(read_manifest(tmp_path, channels=["a"], z="max"), 0)[0][0], image("ZYX").max(0)
    )


def test_files_that_are_no_fields(tmp_path: Path) -> None:
    path = tmp_path / "P1_A01.tif"
    tifffile.imwrite(path, np.zeros((16, 24, 3), np.uint8), photometric="rgb")
    with pytest.raises(CamaeError, match=r"has 3 samples per pixel \(color, .*each channel as a page"):
        read_manifest(tmp_path, channels=["a", "b", "c"])
    tifffile.imwrite(
        path,
        image("CYX"),
        photometric="minisblack",
        description="ImageJ=1.53\nimages=1\n",
        metadata=None,
    )
    with pytest.raises(CamaeError, match="its ImageJ description says 1 planes, and the file has 2 pages"):
        read_manifest(tmp_path)
    tifffile.imwrite(path, image("CYX"), ome=True, metadata={"axes": "CYX"})
    text = tifffile.tiffcomment(path)
    for old, new, sentence in (
        ('PlaneCount="2"', 'PlaneCount="1"', r"says 2 planes of Image0, and not all are among the 2 pages"),
        ('IFD="0"', 'IFD="1"', r"not all are among the 2 pages of this file"),
        (
            'DimensionOrder="XY',
            'DimensionOrder="XYQ',
            r"its OME description is damaged \(ValueError: DimensionOrder",
        ),
        ('SizeC="2"', 'SizeC="2000000"', "is damaged"),
        ("<OME ", '<!DOCTYPE x [<!ENTITY a "b">]><OME ', "declares a document type"),
        ("</Pixels>", "", r"is damaged \(ParseError"),
    ):
        assert old in text
        tifffile.tiffcomment(path, text.replace(old, new, 1).encode())
        with pytest.raises(CamaeError, match=sentence):
            read_manifest(tmp_path, channels=["a", "b"])
    with (
        pytest.raises(CamaeError, match=r"no image of it|which well and site"),
        pytest.warns(UserWarning, match="cannot be read"),
    ):
        read_manifest(tmp_path, channels=["a", "b"], incomplete="skip")


def test_a_choice_is_never_passed_over(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "P1_A01_s1_w1.tif", image("YX"))
    with pytest.raises(CamaeError, match=r"z='max': chooses among the planes of image files .* leave it out"):
        read_manifest(tmp_path, z="max")
    manifest = read_manifest(tmp_path)
    manifest.write(tmp_path / "manifest.csv")
    for data in (manifest, tmp_path / "manifest.csv"):
        with pytest.raises(CamaeError, match=r"time='each': chooses among .* leave it out"):
            read_manifest(data, time="each")


def test_two_files_of_one_field(tmp_path: Path) -> None:
    for name in ("P1_A01.tif", "P1_A1.tif"):
        tifffile.imwrite(tmp_path / name, image("CYX"), photometric="minisblack", metadata=None)
    with pytest.raises(CamaeError, match=r"P1_A01\.tif and P1_A1\.tif both claim plate P1 well A01 site 1"):
        read_manifest(tmp_path, channels=["a", "b"])


@pytest.mark.parametrize("how", ["max", "mean"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_projections_of_windows_and_of_whole_planes(tmp_path: Path, how: str, dtype: type) -> None:
    path, stack_ZYX = tmp_path / "stack.tif", image("ZYX", dtype=dtype)
    tifffile.imwrite(path, stack_ZYX, photometric="minisblack", metadata=None, compression="zlib")
    chosen = stack_ZYX[[0, 2]]
    mean = chosen.astype(np.float64).mean(0)
    truth = chosen.max(0) if how == "max" else (mean if dtype is np.float32 else np.rint(mean)).astype(dtype)
    address = f"{path}#{how}:0+2"
    for reader in ("tifffile",) if dtype is np.float32 else ("native", "tifffile"):
        np.testing.assert_array_equal(read_plane(address, reader), truth)
        for addresses in ([address], [address, f"{path}#1"]):
            window = read_crops(addresses, 3, 5, 8, reader)
            np.testing.assert_array_equal(window[0], truth[3:11, 5:13])
            np.testing.assert_array_equal(
                window[-1], (stack_ZYX[1] if len(addresses) > 1 else truth)[3:11, 5:13]
            )


def test_training_crops_of_projections_are_turned_alike(tmp_path: Path) -> None:
    for well in ("A01", "A02"):
        tifffile.imwrite(tmp_path / f"P1_{well}.tif", image("ZCYX"), imagej=True, metadata={"axes": "ZCYX"})
    stacks = read_manifest(tmp_path, channels=["DNA", "GFP"], z="max")
    whole = tmp_path / "whole"
    whole.mkdir()
    for well in ("A01", "A02"):
        projected = image("ZCYX").max(0)
        tifffile.imwrite(whole / f"P1_{well}.tif", projected, photometric="minisblack", metadata=None)
    planes = read_manifest(whole, channels=["DNA", "GFP"])
    for one, other in itertools.islice(
        zip(
            *(CropLoader(m, crop=8, batch_size=4, seed=1, cache_bytes=0) for m in (stacks, planes)),
            strict=True,
        ),
        3,
    ):
        np.testing.assert_array_equal(one.planes_KHW.numpy(), other.planes_KHW.numpy())


def test_projections_that_cannot_be(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(image("YX"), photometric="minisblack")
        file.write(image("YX")[:8], photometric="minisblack")
    for reader in ("native", "tifffile"):
        with pytest.raises(
            CamaeError, match=r"a\.tif#max:0\+1: the plane .*#1 differs from the first in size or dtype"
        ):
            read_plane(tmp_path / "a.tif#max:0+1", reader)
        with pytest.raises(CamaeError, match=r"a\.tif.*(page 7|out of range)"):
            read_plane(tmp_path / "a.tif#max:0+7", reader)


def test_damaged_files_are_refused_left_out_or_kept_for_a_check(tmp_path: Path) -> None:
    two(tmp_path, {**IJ}, {**IJ})
    (tmp_path / "P1_A02.tif").write_bytes((tmp_path / "P1_A02.tif").read_bytes()[:20])
    with pytest.raises(
        CamaeError, match=r"P1_A02\.tif: .*; pass incomplete='skip' \(--incomplete skip\) to leave it out"
    ):
        read_manifest(tmp_path, channels=["a", "b"])
    with pytest.warns(UserWarning, match=r"1 of 2 images .* cannot be read: P1_A02\.tif"):
        manifest = read_manifest(tmp_path, channels=["a", "b"], incomplete="skip")
    assert (len(manifest), manifest.left_out.lines()) == (
        1,
        ["1 file left out: it cannot be read (first: P1_A02.tif)"],
    )
    problems = check(read_manifest(tmp_path, channels=["a", "b"], incomplete="keep"))
    assert set(problems["path"].map(lambda path: Path(path).name)) == {"P1_A02.tif#0", "P1_A02.tif#1"}
