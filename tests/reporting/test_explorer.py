"""The explorer's data beside the numbers of `maps`, its thumbnails beside the images, and what it refuses."""

from __future__ import annotations

import sys
import types

import numpy as np
import pandas as pd
import pytest
from explored_screen import DOSES, NAMES, PAIRS, PageData, wells_table, write_images, write_profiles
from PIL import Image

from camae import maps, reporting
from camae.embedding_table import features_of
from camae.errors import CamaeError, MissingBackendError, MissingFileError
from camae.reporting.explorer.layout import GROUP, compact, heat_map_order, layouts


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """Page, profiles and manifest of a screen with two models and everything there is to show."""
    folder = tmp_path_factory.mktemp("explored")
    profiles = {
        "a": write_profiles(folder / "emb" / "wells.parquet"),
        "b": write_profiles(folder / "b.parquet", 1),
    }
    manifest = write_images(folder / "images")
    given = {"a": folder / "emb", "b": profiles["b"]}  # a folder as camae embed writes it
    page = reporting.explore(
        given, manifest, folder / "out", pairs={"CORUM": PAIRS}, dose="Metadata_Dose", size=32, layout="pca"
    )
    return page, profiles, manifest


def test_cosines_are_those_of_maps(explored):
    page, profiles, _ = explored
    data = PageData(page)
    for k, path in enumerate(profiles.values()):
        known = maps.map_screen(path, "tvn")
        assert data.data["models"][k]["names"] == known.names.tolist() == sorted(NAMES)
        vectors = data.vectors(k)
        assert np.abs(vectors @ vectors.T - maps.relate(known.vectors)).max() < 2e-4
        assert sorted(data.array(data.data["models"][k]["order"])) == list(range(len(NAMES)))


def test_recall_and_known_pairs_are_those_of_maps(explored):
    page, profiles, _ = explored
    data = PageData(page)
    assert data.data["sources"] == ["CORUM"]
    names = sorted(NAMES)
    pairs = {(names[a], names[b], k) for a, b, k in data.array(data.data["models"][0]["pairs"])}
    assert pairs == {(*sorted(pair), 0) for pair in PAIRS}
    for row, path in zip(data.data["recall"], profiles.values(), strict=True):
        known = maps.map_screen(path, "tvn")
        expected = maps.recall(known.vectors, known.names, PAIRS).iloc[0]
        assert (row["found"], row["pairs"]) == (expected["n_found"], len(PAIRS))
        curve = maps.recall_curve(known.vectors, known.names, PAIRS)
        assert np.allclose(row["recall"], curve["recall"], atol=1e-5)


def test_strength_doses_and_metadata_by_hand(tmp_path):
    page = reporting.explore(
        write_profiles(tmp_path / "wells.parquet"), out=tmp_path / "map.html", method="none", dose="Dose"
    )
    data = PageData(page)
    model, table = data.data["models"][0], wells_table()
    x, name = features_of(table).astype(np.float64), table["Metadata_Perturbation"].to_numpy(str)
    origin = x[name == "DMSO"].mean(axis=0)
    spread = np.sqrt(((x[name == "DMSO"] - origin) ** 2).sum(axis=1).mean())
    strength = [np.linalg.norm(x[name == n].mean(axis=0) - origin) / spread for n in sorted(NAMES)]
    assert np.allclose(data.array(model["strength"]), strength, rtol=1e-5)
    wells = dict(zip(model["names"], data.array(model["wells"]), strict=True))
    assert (wells["gene00"], wells["drug1"]) == (2, 2 * len(DOSES))

    doses = {key: data.array(part) for key, part in model["doses"].items() if isinstance(part, dict)}
    chosen = np.flatnonzero(doses["row"] == model["names"].index("drug2"))
    assert doses["dose"][chosen].tolist() == [0.1, 1, 10]
    assert doses["wells"][chosen].tolist() == [2, 2, 2]

    def direction(rows):
        away = x[rows] - origin
        mean = (away / np.linalg.norm(away, axis=1, keepdims=True)).mean(axis=0)
        return mean / np.linalg.norm(mean)

    for i, dose in zip(chosen, DOSES, strict=True):
        rows = (name == "drug2") & (table["Metadata_Dose"] == dose).to_numpy()
        assert np.isclose(
            doses["strength"][i], np.linalg.norm(x[rows].mean(axis=0) - origin) / spread, rtol=1e-5
        )
        assert np.isclose(doses["cosine"][i], direction(rows) @ direction(name == "drug2"), atol=1e-5)

    pathway = model["metadata"]["Pathway"]
    texts = [pathway["levels"][c] for c in data.array(pathway["code"])]
    assert texts[model["names"].index("gene04")] == "<b>pathway1</b>"
    assert "Plate" not in model["metadata"]  # every perturbation is on both
    assert model["metadata"]["Dose"]["levels"] == ["", "several values"]


def test_text_of_users_is_never_markup(explored, tmp_path):
    title = "</title><script>alert(1)</script>@@data@@"
    page = reporting.explore(
        wells_table(), out=tmp_path / "x.html", title=title, pairs={"</script><b>": PAIRS}, layout="pca"
    )
    data = PageData(page)
    assert data.tags.count("b") == data.tags.count("img") == 0
    assert set(data.scripts) == {"data", "code"} | {f"block-{i}" for i in range(len(data.scripts) - 2)}
    assert data.data["about"]["title"] == title
    assert data.data["sources"] == ["</script><b>"]
    for address in ("http:", "https:", "//cdn", "url("):
        assert address not in page.read_text().replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in page.read_text()


def test_thumbnails_show_their_wells_with_the_contrast_of_the_controls(explored):
    page, *_ = explored
    shown = PageData(page).data["thumbnails"]
    assert (shown["size"], shown["channels"]) == (32, ["DNA", "ER"])
    assert sorted(shown["wells"]) == sorted(NAMES)
    assert [len(shown["controls"][plate]) for plate in ("P1", "P2")] == [2, 2]
    assert len(shown["wells"]["drug1"]) == 3
    table = wells_table()
    row_of = {
        key: i for i, key in enumerate(zip(table["Metadata_Plate"], table["Metadata_Well"], strict=True))
    }
    controls = np.flatnonzero(
        (table["Metadata_control_type"] == "negcon") & (table["Metadata_Plate"] == "P2")
    )[:2]
    # A plane is two gray values, half of the pixels each; so are the controls' limits, at percentiles 1 and 99.7.
    low, high = 100 + 2 * controls[0], 100 + 2 * controls[1] + 50
    for entry in [*shown["controls"]["P2"], shown["wells"]["gene19"][1]]:
        strip = np.asarray(Image.open(page.parent / entry["file"])).astype(float)
        assert strip.shape == (32, 3 * 32, 3)
        dna = strip[:, 32:64].mean(axis=2)
        row = row_of[entry["plate"], entry["well"]]
        for side, value in ((dna[:, 2:14], 100 + 2 * row), (dna[:, 18:30], 150 + 2 * row)):
            expected = 255 * np.clip((value - low) / (high - low), 0, 1)
            assert abs(side.mean() - expected) < 6  # JPEG of quality 85


def test_wells_without_an_image_are_counted(tmp_path):
    manifest = write_images(tmp_path / "images")
    sites = pd.read_csv(manifest, dtype=str).iloc[1:]
    sites.to_csv(manifest, index=False)
    (tmp_path / "images" / "1_ER.tif").write_bytes(b"no image")
    page = reporting.explore(write_profiles(tmp_path / "wells.parquet"), manifest, tmp_path / "out", size=32)
    left_out = pd.read_csv(tmp_path / "out" / "left_out.csv")
    assert left_out["item"].tolist() == ["P1 A01", "P1 A02"]
    assert left_out["reason"].tolist() == [
        "the manifest of the images has no site of it",
        "its image cannot be read for a thumbnail",
    ]
    notes = " ".join(PageData(page).data["notes"])
    assert "1 well left out: its image cannot be read for a thumbnail (first: P1 A02)" in notes


def test_doses_and_pairs_that_are_not_shown_are_counted(tmp_path):
    table = wells_table()
    table.loc[table["Metadata_Dose"] == "10", "Metadata_Dose"] = "high"
    with pytest.warns(UserWarning, match="pair"):
        page = reporting.explore(
            table, out=tmp_path / "x.html", pairs=[*PAIRS, ("gene00", "elsewhere")], dose="Dose", layout="pca"
        )
    notes = PageData(page).data["notes"]
    assert "map: 4 wells are in no dose: Dose is no number (first: high)" in notes
    assert "map: known pairs not shown, because the map lacks one of their names: 1 (pairs)" in notes


def test_umap_is_used_where_it_is_installed(monkeypatch):
    x = unit_rows(np.random.default_rng(0), 20, 4)
    fake = types.ModuleType("umap")
    fake.UMAP = lambda **options: types.SimpleNamespace(fit_transform=lambda rows: 2.0 * rows[:, :2])
    monkeypatch.setitem(sys.modules, "umap", fake)
    assert list(layouts(x, "auto")) == ["UMAP", "PCA"]
    assert np.array_equal(layouts(x, "umap")["UMAP"], 2 * x[:, :2])
    assert list(layouts(x[:10], "auto")) == ["PCA"]
    with pytest.raises(
        CamaeError, match="UMAP needs more than 15 perturbations, there are 10; choose layout 'pca'"
    ):
        layouts(x[:10], "umap")


REFUSED = {
    "unknown layout 'tsne'": {"layout": "tsne"},
    "wells=0: must be 1 or more": {"wells": 0},
    "size=8: must be 16 or more": {"size": 8},
    "holds no number in any row of a perturbation": {"dose": "Metadata_Perturbation"},
    "the profiles have no column Metadata_Conc for the dose": {"dose": "Metadata_Conc"},
    "out= is missing": {"out": None},
    "thumbnails need a folder beside the page": {"images": "x.csv"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(sentence, tmp_path):
    given = {"out": tmp_path / "x.html", "method": "none"} | REFUSED[sentence]
    with pytest.raises(CamaeError, match=sentence) as refused:
        reporting.explore(wells_table(), **given)
    assert not str(refused.value).endswith(".")
    assert list(tmp_path.iterdir()) == []


def test_refusals_of_files(tmp_path, monkeypatch):
    with pytest.raises(CamaeError, match="nothing to explore"):
        reporting.explore({})
    with pytest.raises(
        MissingFileError, match=r"has no wells\.parquet; name a folder that camae embed wrote"
    ):
        reporting.explore(tmp_path)
    manifest = write_images(tmp_path / "images")
    other = wells_table()
    other["Metadata_Plate"] = "elsewhere " + other["Metadata_Plate"]
    with pytest.raises(CamaeError, match=r"no site of any well of the profiles \(first: elsewhere"):
        reporting.explore(other, manifest, tmp_path / "out")
    with pytest.raises(
        CamaeError, match="the profiles have no column Metadata_Well, so wells cannot be matched"
    ):
        reporting.explore(wells_table().drop(columns="Metadata_Well"), manifest, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingBackendError, match="needs the package umap-learn; pip install umap-learn"):
        reporting.explore(wells_table(), out=tmp_path / "x.html", layout="umap")


def unit_rows(rng, n, d):
    x = rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (5, 1), (1, 4)])
def test_compact_vectors_keep_cosines(shape):
    x = unit_rows(np.random.default_rng(0), *shape)
    x[-1] = x[0]
    y = compact(x)
    assert y.shape[1] <= min(shape)
    assert np.abs(y @ y.T - x @ x.T).max() < 1e-4


def test_pca_is_that_of_an_svd():
    x = unit_rows(np.random.default_rng(1), 40, 7)
    left, values, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    assert np.allclose(np.abs(layouts(x, "pca")["PCA"]), np.abs(left * values)[:, :2], atol=1e-4)


def test_order_of_a_large_map_keeps_clusters_together():
    rng = np.random.default_rng(2)
    cluster = rng.integers(0, 6, 3 * GROUP)
    x = rng.normal(size=(6, 32))[cluster] + 0.3 * rng.normal(size=(len(cluster), 32))
    order = heat_map_order((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    assert sorted(order) == list(range(len(cluster)))
    assert (np.diff(cluster[order]) != 0).sum() == 5
    same = np.ones((2 * GROUP, 3), np.float32) / np.sqrt(np.float32(3))
    assert sorted(heat_map_order(same)) == list(range(2 * GROUP))
