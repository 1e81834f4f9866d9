"""One command each for the folders of microscopes; the truth is the manifest with `#page`, or projected files."""

import numpy as np
import pandas as pd
import pytest
import tifffile

WELLS = ("B02", "C03")


def written(folder, axes, names=WELLS, suffix=".tif", seed=0, **options):
    """File name -> array, one file for each name: two channels, three z planes and two time points, as `axes` says."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    sizes = {"T": 2, "Z": 3, "C": 2, "P": 2, "Y": 48, "X": 64}
    arrays = {}
    for name in names:
        arrays[name + suffix] = rng.integers(0, 65536, [sizes[a] for a in axes], dtype=np.uint16)
        tifffile.imwrite(folder / (name + suffix), arrays[name + suffix], **options)
    return arrays


def manifest(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def vectors(shell, model_file, tmp_path):
    """vectors(data, *options): well -> vectors of `camae embed`, in the order of time; and what it said."""

    def run(data, *options):
        out = tmp_path / f"emb{len(list(tmp_path.glob('emb*')))}"
        code, said, err = shell(
            "embed", data, "--model", model_file, "--out", out, "--device", "cpu", "--quiet", *options
        )
        assert code == 0, err
        table = pd.read_parquet(out / "wells.parquet")
        values = table.filter(like="emb_").to_numpy()
        moments = table.get("Metadata_Time", pd.Series("", index=table.index))
        return dict(zip(zip(table["Metadata_Well"], moments, strict=True), values, strict=True)), said

    return run


def equal(one, other):
    assert one.keys() == other.keys()
    for key, vector in one.items():
        assert np.isfinite(vector).all()
        np.testing.assert_array_equal(vector, other[key])
    assert not np.array_equal(*list(one.values())[:2])


def by_page(folder, pages, suffix=".tif"):
    """Manifest file that names every plane: channel -> page."""
    rows = [
        {"Metadata_Plate": "P", "Metadata_Well": well, "Metadata_Site": "1"}
        | {c: f"{well}{suffix}#{page}" for c, page in pages.items()}
        for well in WELLS
    ]
    return manifest(folder / "manifest.csv", rows)


FOLDERS = {
    "ImageJ with labels": ({"imagej": True, "metadata": {"axes": "CYX", "Labels": ["DNA", "GFP"]}}, ()),
    "ImageJ without labels": ({"imagej": True, "metadata": {"axes": "CYX"}}, ("--channels", "DNA,GFP")),
    "pages alone": ({"photometric": "minisblack", "metadata": None}, ("--channels", "DNA,GFP")),
    "compressed pages": (
        {"photometric": "minisblack", "metadata": None, "compression": "zlib", "predictor": True},
        ("--channels", "DNA", "--channels", "GFP"),
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_files_with_two_channels_embeds_as_its_manifest(kind, tmp_path, vectors):
    written_as, options = FOLDERS[kind]
    written(tmp_path / "in", "CYX", **written_as)
    found, said = vectors(tmp_path / "in", *options)
    assert "2 fields, 2 channels in each file (DNA, GFP), axes CYX" in said
    equal(found, vectors(by_page(tmp_path / "in", {"DNA": 0, "GFP": 1}))[0])


@pytest.mark.parametrize(("axes", "pages"), [("ZCYX", (2, 3)), ("CZYX", (1, 4))])
def test_ome_files_name_their_channels_and_order_their_planes(axes, pages, tmp_path, vectors):
    about = {"axes": axes, "Channel": {"Name": ["DNA", "GFP"]}}
    written(tmp_path / "in", axes, suffix=".ome.tif", metadata=about)
    found, said = vectors(tmp_path / "in", "--z", "1")
    assert f"2 channels in each file (DNA, GFP), axes {axes}, plane 1 of 3 z planes" in said
    equal(
        found, vectors(by_page(tmp_path / "in", dict(zip(("DNA", "GFP"), pages, strict=True)), ".ome.tif"))[0]
    )


@pytest.mark.parametrize("z", ["max", "mean"])
@pytest.mark.parametrize("options", [{"imagej": True}, {"compression": "zlib", "photometric": "minisblack"}])
def test_projections_equal_those_of_whole_planes(z, options, tmp_path, vectors):
    arrays = written(tmp_path / "in", "ZCYX", metadata={"axes": "ZCYX"}, **options)
    rows = []
    for file, array_ZCYX in arrays.items():
        whole = array_ZCYX.max(0) if z == "max" else np.rint(array_ZCYX.mean(0)).astype(np.uint16)
        row = {"Metadata_Plate": "P", "Metadata_Well": file[:3], "Metadata_Site": "1"}
        for channel, plane in zip(("DNA", "GFP"), whole, strict=True):
            row[channel] = f"{file[:3]}_{channel}.tif"
            tifffile.imwrite(tmp_path / row[channel], plane)
        rows.append(row)
    found, said = vectors(tmp_path / "in", "--channels", "DNA,GFP", "--z", z)
    assert f"axes ZCYX, {'maximum' if z == 'max' else 'mean'} over 3 z planes" in said
    equal(found, vectors(manifest(tmp_path / "whole.csv", rows))[0])


def test_time_points_are_sites_of_their_own_or_one_is_chosen(tmp_path, vectors):
    written(tmp_path / "in", "TCYX", imagej=True, metadata={"axes": "TCYX"})
    given = ("--channels", "DNA,GFP")
    rows = [
        {"Metadata_Plate": "P", "Metadata_Well": well, "Metadata_Site": "1", "Metadata_Time": str(t)}
        | {"DNA": f"in/{well}.tif#{2 * t}", "GFP": f"in/{well}.tif#{2 * t + 1}"}
        for well in WELLS
        for t in range(2)
    ]
    found, said = vectors(tmp_path / "in", *given, "--time", "each")
    assert "2 fields, 2 channels in each file (DNA, GFP), axes TCYX, every time point" in said
    equal(found, vectors(manifest(tmp_path / "each.csv", rows))[0])
    found, _ = vectors(tmp_path / "in", *given, "--time", "1")
    equal(found, vectors(by_page(tmp_path / "in", {"DNA": 2, "GFP": 3}))[0])


def test_a_stack_of_one_channel_named_by_the_file(tmp_path, vectors):
    """ImageXpress and its like: one file for each channel, its pages are z planes without metadata."""
    names = [f"P1_{well}_s1_{channel}" for well in WELLS for channel in ("w1", "w2")]
    written(tmp_path / "in", "ZYX", names, photometric="minisblack", metadata=None)
    rows = [
        {"Metadata_Plate": "P1", "Metadata_Well": well, "Metadata_Site": "1"}
        | {c: f"in/P1_{well}_s1_{c}.tif#2" for c in ("w1", "w2")}
        for well in WELLS
    ]
    found, said = vectors(tmp_path / "in", "--z", "2")
    assert "axes ZYX, plane 2 of 3 z planes" in said
    equal(found, vectors(manifest(tmp_path / "pages.csv", rows))[0])


def test_without_a_choice_one_sentence_says_what_to_pass(tmp_path, shell, model_file):
    written(tmp_path / "in", "TZCYX", imagej=True, metadata={"axes": "TZCYX"})
    command = [
        "embed",
        tmp_path / "in",
        "--model",
        model_file,
        "--out",
        tmp_path / "emb",
        "--channels",
        "DNA,GFP",
    ]
    code, _, err = shell(*command)
    assert code == 2
    assert err == (
        f"error: {tmp_path}/in/B02.tif: has the axes TZCYX, with 2 time points and 3 z planes: pass time='each' or "
        "a number (--time) and z='max', 'mean' or a number (--z)\n"
    )
    assert not (tmp_path / "emb").exists()
    code, _, err = shell("data", "plan", tmp_path / "in", "--z", "max", "--time", "each")
    assert code == 2
    assert "holds 2 channels (axes TZCYX) and does not name all of them: pass channels=" in err


def test_training_and_the_data_commands_read_such_a_folder(tmp_path, shell):
    wells = [f"{row}{column:02d}" for row in "BC" for column in (2, 3)]
    written(tmp_path / "in", "ZCYX", wells, imagej=True, metadata={"axes": "ZCYX"})
    reading = [tmp_path / "in", "--channels", "DNA,GFP", "--z", "max"]
    code, said, _ = shell("data", "check", *reading)
    assert (code, "no problems found" in said) == (0, True)
    small = ["width=32", "heads=2", "depth=1", "crop=32", "patch=8"]
    options = [word for setting in small for word in ("--set", f"model_options.{setting}")]
    out = tmp_path / "run"
    code, said, err = shell(
        *("train", *reading, "--out", out, "--model", "ca_mae_vit_ti16", "--steps", 2, "--quiet", "--set"),
        *("batch_size=4", "--set", "device=cpu", "--set", "checkpoint_every=2", *options),
    )
    assert code == 0, err
    assert "4 fields, 2 channels in each file (DNA, GFP), axes ZCYX, maximum over 3 z planes" in said
    import camae

    assert tuple(camae.load(out).channels) == ("DNA", "GFP")


def test_python_takes_the_same_options(tmp_path, model_file, vectors):
    import camae

    written(tmp_path / "in", "TZCYX", imagej=True, metadata={"axes": "TZCYX"})
    table = camae.embed_screen(
        tmp_path / "in",
        model_file,
        tmp_path / "emb-python",
        channels=["DNA", "GFP"],
        z=2,
        time="each",
        device="cpu",
        quiet=True,
    )
    found, _ = vectors(tmp_path / "in", "--channels", "DNA,GFP", "--z", "2", "--time", "each")
    keys = zip(table["Metadata_Well"], table["Metadata_Time"], strict=True)
    equal(dict(zip(keys, table.filter(like="emb_").to_numpy(), strict=True)), found)
    assert len(table) == 4


def test_another_choice_does_not_continue_a_folder(tmp_path, shell, model_file):
    written(tmp_path / "in", "ZCYX", imagej=True, metadata={"axes": "ZCYX"})
    command = ["embed", tmp_path / "in", "--model", model_file, "--out", tmp_path / "emb", "--device", "cpu"]
    command += ["--quiet", "--channels", "DNA,GFP"]
    assert shell(*command, "--z", "max")[0] == 0
    code, _, err = shell(*command, "--z", "mean")
    assert code == 2
    assert "manifest" in err


def write_czi(path, planes_TCZYX, names):
    """A CZI file by Zeiss's own writer."""
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as file:
        for t, c, z in np.ndindex(planes_TCZYX.shape[:3]):
            file.write(data=planes_TCZYX[t, c, z][..., None], plane={"T": t, "C": c, "Z": z})
        file.write_metadata(document_name="field", channel_names=dict(enumerate(names)))


@pytest.mark.parametrize("z", ["1", "max"])
def test_a_folder_of_czi_files_embeds_as_its_manifest_and_as_tiff(z, tmp_path, vectors):
    pytest.importorskip("bioio_czi", reason="the extra formats is not installed")
    (tmp_path / "in").mkdir()
    (tmp_path / "tiff").mkdir()
    rng, by_plane, whole = np.random.default_rng(0), [], []
    for well in WELLS:
        planes = rng.integers(0, 65536, (1, 2, 3, 48, 64), dtype=np.uint16)
        write_czi(tmp_path / "in" / f"{well}.czi", planes, ("DNA", "GFP"))
        row = {"Metadata_Plate": "P", "Metadata_Well": well, "Metadata_Site": "1"}
        by_plane.append(row | {name: f"in/{well}.czi#0,0,{c},1" for c, name in enumerate(("DNA", "GFP"))})
        whole.append(row | {name: f"tiff/{well}_{name}.tif" for name in ("DNA", "GFP")})
        for c, name in enumerate(("DNA", "GFP")):
            shown = planes[0, c, 1] if z == "1" else planes[0, c].max(0)
            tifffile.imwrite(tmp_path / "tiff" / f"{well}_{name}.tif", shown)
    found, said = vectors(tmp_path / "in", "--z", z)
    assert "2 fields, 2 channels in each file (DNA, GFP), axes CZYX" in said
    equal(found, vectors(manifest(tmp_path / "tiff.csv", whole))[0])
    if z == "1":
        equal(found, vectors(manifest(tmp_path / "planes.csv", by_plane))[0])
