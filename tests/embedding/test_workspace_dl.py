"""The Gallery's workspace_dl and DeepProfiler's npz: every row, name and number there and back (property tests)."""

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import camae
from camae.anndata_form import as_anndata
from camae.dataloader import Manifest
from camae.embedding import export_table
from camae.embedding_table import read_table, write_table
from camae.errors import CamaeError
from camae.maps.profiles import read_profile_table
from camae.omissions import Omissions
from camae.wells import spelled
from camae.workspace_dl import read_workspace, write_workspace

ABOUT = {"model": "a", "model_hash": "0123", "pool": "mean"}
NAME = st.text("abcXYZ019_-. ", min_size=1, max_size=5).filter(
    lambda n: n.strip() and not n.strip().startswith(".")
)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=6)
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def cells(draw):
    """Table of the cells of a few sites: places as they make folders, any text, vectors with any number."""
    sites = draw(st.lists(st.tuples(NAME, NAME, NAME, NAME), min_size=1, max_size=3, unique=True))
    place = [site for site in sites for _ in range(draw(st.integers(1, 3)))]
    names = ["Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    table = pd.DataFrame(place, columns=names)
    rows = len(table)
    table["Metadata_Object"] = [str(i) for i in range(rows)]
    table["Metadata_Gene"] = draw(st.lists(st.one_of(TEXT, st.none()), min_size=rows, max_size=rows))
    if draw(st.booleans()):
        table["count"] = draw(arrays(np.int64, rows))
        table["Metadata_flag"] = draw(arrays(bool, rows))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    vectors = draw(arrays(dtype, (rows, draw(st.integers(1, 3))), elements=NUMBERS))
    return pd.concat([table, pd.DataFrame(vectors).rename(columns=lambda k: f"emb_{k:04d}")], axis=1)


def in_order(table):
    return table.sort_values("Metadata_Object").reset_index(drop=True)


@pytest.mark.parametrize("form", ["npz", "parquet"])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=cells())
def test_parquet_to_the_gallery_and_back(form, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("w")
    first = write_table(folder / "a.parquet", table, ABOUT)
    export_table(first, folder / "dl", "net_0123", form)
    export_table(folder / "dl" / "embeddings" / "net_0123", folder / "b.parquet")
    (one, said), (other, said_again) = read_table(first), read_table(folder / "b.parquet")
    pd.testing.assert_frame_equal(in_order(one), in_order(other), check_exact=True)
    assert said == said_again == ABOUT
    # And once more from there: npz -> Parquet -> npz, the same files byte for byte.
    export_table(folder / "b.parquet", folder / "again", "net_0123", form)
    files = [sorted((folder / name).rglob("embedding.*")) for name in ("dl", "again")]
    places = [spelled(table[name], name) for name in table.columns[:4]]
    assert len(files[0]) == len(set(zip(*places, strict=True)))
    for a, b in zip(*files, strict=True):
        assert a.relative_to(folder / "dl") == b.relative_to(folder / "again")
        assert a.read_bytes() == b.read_bytes()


def deep_profiler(folder, wells=("A01", "B02"), sites=(1, 2), flat=False, pickled=True):
    """Features of 3 cells of each site as DeepProfiler saves them, with its pickled dictionary."""
    rng, written = np.random.default_rng(0), {}
    for well in wells:
        for site in sites:
            path = folder / "P1" / (f"{well}_{site}.npz" if flat else f"{well}/{site}.npz")
            path.parent.mkdir(parents=True, exist_ok=True)
            found = {
                "features": rng.normal(size=(3, 5)).astype(np.float32),
                "locations": rng.uniform(0, 99, (3, 2)),
            }
            about = {"metadata": np.array({"Metadata_Plate": "P1"}, dtype=object)} if pickled else {}
            np.savez_compressed(path, **found, **about)
            written[well, str(site)] = found
    return written


@pytest.mark.parametrize("flat", [False, True])
def test_files_of_deep_profiler_are_read_without_unpickling(flat, tmp_path):
    written = deep_profiler(tmp_path / "features", flat=flat)
    omitted = Omissions()
    table, about = read_workspace(tmp_path / "features", omitted)
    assert about == {}
    assert omitted.lines()[0].startswith("4 pickles left out: metadata are not unpickled")
    for (well, site), rows in table.groupby(["Metadata_Well", "Metadata_Site"]):
        np.testing.assert_array_equal(rows.filter(like="emb_"), written[well, site]["features"])
        np.testing.assert_array_equal(rows.filter(like="Location_Center"), written[well, site]["locations"])
        assert set(rows["Metadata_Plate"]) == {"P1"}
    profiles = read_profile_table(tmp_path / "features")
    assert (profiles.x.shape, profiles.unit) == ((12, 5), "site")
    assert profiles.by_well().x.shape == (2, 5)
    # Written as DeepProfiler's layout of the Gallery, and read there by another program.
    write_workspace(table, about, tmp_path / "dl", "dp", "npz")
    path = tmp_path / "dl" / "embeddings" / "dp" / "batch" / "P1" / "B02" / "2" / "embedding.npz"
    load = pytest.importorskip("pycytominer.cyto_utils.load")
    np.testing.assert_array_equal(load.load_npz_features(path), written["B02", "2"]["features"])
    np.testing.assert_array_equal(load.load_npz_locations(path), written["B02", "2"]["locations"])


def test_a_site_has_one_folder_however_its_well_is_spelled(tmp_path):
    sites = pd.DataFrame(
        {"Metadata_Plate": "0012", "Metadata_Well": ["a1", "A01"], "Metadata_Site": ["01", "1"]}
    )
    files = write_workspace(sites.assign(emb_0000=np.float32([1, 2])), ABOUT, tmp_path, "net")
    assert [str(f.relative_to(tmp_path)) for f in files] == [
        "embeddings/net/batch/0012/A01-1/embedding.parquet"
    ]
    assert read_workspace(tmp_path)[0]["emb_0000"].tolist() == [1, 2]


def test_wells_and_treatments_have_files_of_their_own(tmp_path):
    wells = pd.DataFrame(
        {"Metadata_Batch": "B", "Metadata_Plate": ["P1", "P1", "P2"], "Metadata_Well": ["A01", "A02", "A01"]}
    ).assign(emb_0000=np.arange(3, dtype=np.float32))
    files = write_workspace(wells, ABOUT, tmp_path, "net")
    assert [str(f.relative_to(tmp_path)) for f in files] == [
        "profiles/net/B/P1/P1.parquet",
        "profiles/net/B/P2/P2.parquet",
        "collated/net/collated.parquet",
    ]
    for source in ("profiles", "collated"):
        pd.testing.assert_frame_equal(read_workspace(tmp_path / source)[0], wells)
    genes = pd.DataFrame({"Metadata_Perturbation": ["a", "b"], "emb_0000": np.float32([1, 2])})
    assert write_workspace(genes, ABOUT, tmp_path, "net")[0].name == "consensus.parquet"
    pd.testing.assert_frame_equal(read_workspace(tmp_path / "consensus")[0], genes)


def test_parquet_files_of_other_programs_take_their_place_from_the_path(tmp_path):
    path = tmp_path / "embeddings" / "net" / "B" / "P1" / "a1-2" / "embedding.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"emb_0000": [0.5]}).to_parquet(path)
    table, _ = read_workspace(tmp_path)
    assert table.iloc[0].tolist() == ["B", "P1", "A01", "2", 0.5]


def test_long_form_of_jump_lite_becomes_rows_of_tiles(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2, 2, 12)).astype(np.float32)  # source, tile, feature
    for k, source in enumerate(("source_1", "source_4")):
        path = (
            tmp_path / "embeddings" / "net" / "release" / source / "B" / "P" / "A01-3" / "embedding.parquet"
        )
        path.parent.mkdir(parents=True)
        tile, metric = (a.ravel() for a in np.indices((2, 12)))
        columns = {"tile": tile, "label": 0, "branch": "b", "metric": [f"X_{m}" for m in metric]}
        columns |= {"value": vectors[k].ravel(), "object": "net", "tp": 0}
        pd.DataFrame(columns).sample(frac=1, random_state=0).to_parquet(path)
    table, _ = read_workspace(tmp_path)
    assert table["Metadata_Source"].tolist() == ["source_1"] * 2 + ["source_4"] * 2
    assert table.loc[0, ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]].tolist() == ["P", "A01", "3"]
    np.testing.assert_array_equal(table.filter(like="emb_"), vectors.reshape(4, 12))
    assert read_profile_table(tmp_path).by_well().x.shape == (2, 12)
    for rows, sentence in (
        ({**columns, "branch": tile}, "holds several values of branch; write the rows of one"),
        ({**columns, "tile": 0}, "a number of a tile is there twice; keep one row"),
    ):
        pd.DataFrame(rows).to_parquet(path)
        with pytest.raises(CamaeError, match=sentence):
            read_workspace(tmp_path)


def test_refusals(tmp_path):
    place = {"Metadata_Batch": "B", "Metadata_Plate": "P", "Metadata_Well": "A01"}
    wells = pd.DataFrame(place | {"emb_0000": np.float32([1])})
    sites = wells.assign(Metadata_Site="1")
    with pytest.raises(CamaeError, match="npz files hold the rows of a site, and this table is one of wells"):
        write_workspace(wells, ABOUT, tmp_path, "net", "npz")
    with pytest.raises(CamaeError, match="form 'zarr' is none of parquet, npz"):
        write_workspace(sites, ABOUT, tmp_path, "net", "zarr")
    with pytest.raises(CamaeError, match="the table has no column Metadata_Plate, which names a folder"):
        write_workspace(sites.drop(columns="Metadata_Plate"), ABOUT, tmp_path, "net")
    for name, table in (("a/b", wells), ("net", wells.assign(Metadata_Plate=".."))):
        with pytest.raises(CamaeError, match="makes no name of a folder; it must not be empty"):
            write_workspace(table, ABOUT, tmp_path, name)
    with pytest.raises(CamaeError, match=r"holds no files of profiles \(embedding\.parquet"):
        read_workspace(tmp_path)
    with pytest.raises(CamaeError, match="the table has no feature columns: nothing to export"):
        write_workspace(sites.drop(columns="emb_0000"), ABOUT, tmp_path, "net", "npz")
    write_workspace(sites, ABOUT, tmp_path, "net", "npz")
    with pytest.raises(
        CamaeError, match=r"is of another model .*choose another network name, output is never mixed"
    ):
        write_workspace(sites, ABOUT | {"model_hash": "9"}, tmp_path, "net")
    with pytest.raises(
        CamaeError, match=r"npz holds vectors made with another pool, layers; choose another network"
    ):
        write_workspace(sites, ABOUT | {"pool": "other", "layers": [1]}, tmp_path, "net")
    write_workspace(sites, ABOUT, tmp_path / "copy", "net", "npz")
    with pytest.raises(CamaeError, match=r"npz and .*npz are both of B P A01 1; name the folder of one"):
        read_workspace(tmp_path)
    shutil.rmtree(tmp_path / "copy")
    write_workspace(sites, ABOUT, tmp_path, "other", "npz")
    with pytest.raises(CamaeError, match="holds profiles of several networks, net and other; name one"):
        read_workspace(tmp_path)
    write_workspace(sites.assign(Metadata_Site="2", x=1), ABOUT, tmp_path, "net", "npz")
    with pytest.raises(CamaeError, match="files of one table have the same"):
        read_workspace(tmp_path / "embeddings" / "net")
    np.savez(tmp_path / "flat.npz", features=np.zeros(3))
    with pytest.raises(CamaeError, match=r"features have the shape \(3,\), and one row for each cell"):
        _read_alone(tmp_path, "flat.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(CamaeError, match=r"bad\.npz: not a readable npz file of features"):
        _read_alone(tmp_path, "bad.npz")
    for out in ("e.h5ad", "e.parquet", "e"):
        with pytest.raises(CamaeError, match=r"none\.parquet has no rows: nothing to export"):
            export_table(write_table(tmp_path / "none.parquet", wells.iloc[:0], ABOUT), tmp_path / out, "n")
    with pytest.raises(CamaeError, match="the table has no rows: nothing to export"):
        as_anndata(wells.iloc[:0], ABOUT)
    with pytest.raises(CamaeError, match="name the model and its hash by network="):
        export_table(write_table(tmp_path / "a.parquet", wells, ABOUT), tmp_path / "x")


def _read_alone(folder, name):
    alone = folder / f"only_{name}" / "P1" / "A01"
    alone.mkdir(parents=True)
    (folder / name).rename(alone / name)
    return read_workspace(folder / f"only_{name}")


def test_a_plain_folder_of_wells_of_one_site_is_a_table_of_wells(model, screen, tmp_path):
    """Its batch is empty, and no row of it is a site."""
    manifest = Manifest.read(screen)
    unnamed = Manifest(manifest.table.assign(Metadata_Batch=""), manifest.root)
    wells = camae.embed_screen(unnamed, model, tmp_path / "emb", quiet=True)
    assert "Metadata_Site" not in wells
    files = export_table(tmp_path / "emb" / "wells.parquet", tmp_path / "out", "net")
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == [
        "profiles/net/batch/P1/P1.parquet",
        "profiles/net/batch/P2/P2.parquet",
        "collated/net/collated.parquet",
    ]
    half = wells.assign(Metadata_Batch=["", *["B"] * (len(wells) - 1)])
    with pytest.raises(CamaeError, match="Metadata_Batch '' makes no name of a folder"):
        write_workspace(half, ABOUT, tmp_path / "half", "net")
