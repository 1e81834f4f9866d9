"""The explorer in a real Chromium: what a person searches, hovers, clicks and reads, beside the numbers of `maps`."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from chromium import Chromium, find_chromium
from explored_screen import NAMES, PAIRS, PageData, numbers_in, wells_table, write_images, write_profiles
from PIL import Image

from camae import maps, reporting

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (apt-get install chromium)"),
]
MARKUP = NAMES[20]
SIZE = 64  # of a thumbnail


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """Page of a screen with two models, and the map and cosines of the first as `maps` has them."""
    folder = tmp_path_factory.mktemp("explored")
    profiles = {"a": write_profiles(folder / "a.parquet"), "b": write_profiles(folder / "b.parquet", 1)}
    page = reporting.explore(
        profiles,
        write_images(folder / "images"),
        folder / "out",
        pairs={"CORUM": PAIRS},
        dose="Metadata_Dose",
        size=SIZE,
        layout="pca",
    )
    known = maps.map_screen(profiles["a"], "tvn")
    return page, known.names.tolist(), maps.relate(known.vectors), profiles


@pytest.fixture
def browser(screen):
    """A tab with the page open; it must show no error."""
    with Chromium() as tab:
        tab.open(screen[0])
        yield tab
        assert tab.errors == []


def search_for(browser, text):
    browser.run("document.querySelector('#search').value = ''")
    browser.click("#search")
    browser.type(text)


def choose(browser, name):
    search_for(browser, name)
    browser.press("Enter")
    browser.wait(f"document.documentElement.dataset.drawn === {name!r}")


def cells(browser, table):
    """Cells of the body of a table."""
    return browser.run(
        f"[...document.querySelectorAll('{table} tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )


def test_search_gives_the_neighbors_of_maps(browser, screen):
    _, names, cosine, _ = screen
    search_for(browser, "gene0")
    found = browser.run("[...document.querySelectorAll('#found li')].map((e) => e.firstChild.textContent)")
    assert found == [f"gene0{i}" for i in range(10)]
    assert "10 perturbations found" in browser.text("#search-status")
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        browser.press(key)
    assert browser.text("#selected") == "gene02"
    for name in ("gene02", "drug1"):
        choose(browser, name)
        own = cosine[names.index(name)]
        order = [i for i in np.argsort(-own, kind="stable") if names[i] != name]
        for table, expected in (("#nearest", order[:8]), ("#opposite", order[::-1][:8])):
            shown = cells(browser, table)
            assert [row[0] for row in shown] == [names[i] for i in expected]
            values = [numbers_in(row[1])[0] for row in shown]
            assert np.allclose(values, own[expected], atol=6e-4)
    partner = "drug2"
    assert [row[:3:2] for row in cells(browser, "#known")] == [[partner, "CORUM"]]
    place = order.index(names.index(partner)) + 1
    assert cells(browser, "#known")[0][3] == f"{place} of {len(names) - 1}"


def test_metadata_is_searched_and_markup_stays_text(browser):
    search_for(browser, "onerror")
    browser.press("Enter")
    assert browser.text("#selected") == MARKUP
    assert browser.run("document.title") == "Map of perturbations"
    assert browser.run("document.querySelectorAll('main b, main img[onerror]').length") == 0
    search_for(browser, "<b>pathway1")
    count = sum(name.startswith("gene") and int(name[-1]) % 3 == 1 for name in NAMES)
    assert browser.text("#search-status").startswith(f"{count} perturbations found")


def test_heat_map_hovered_zoomed_and_walked(browser, screen):
    page, names, cosine, _ = screen
    order = PageData(page).array(PageData(page).data["models"][0]["order"])
    x, y = browser.center("#heat")
    left, top, side = browser.run(
        "(() => { const b = document.querySelector('#heat').getBoundingClientRect(); return [b.x, b.y, b.width]; })()"
    )
    margin = 96  # of the names
    cell = (side - margin) / len(names)
    i, j = 3, 15
    browser.move(left + margin + (j + 0.5) * cell, top + (i + 0.5) * cell)
    a, b = order[i], order[j]
    tip = browser.text("#heat + .tip")
    assert tip.startswith(f"{names[a]} and {names[b]}: cosine")
    assert numbers_in(tip)[0] == pytest.approx(cosine[a, b], abs=6e-4)
    whole = browser.text("#heat-note")
    browser.wheel(x, y, -100)
    assert browser.text("#heat-note") != whole
    browser.run("document.querySelector('#heat').focus()")
    browser.press("0")
    assert browser.text("#heat-note") == whole
    selected = names.index(browser.text("#selected"))
    place = int(np.flatnonzero(order == selected)[0])
    browser.press("ArrowRight" if place < len(names) - 1 else "ArrowLeft")
    other = order[place + 1 if place < len(names) - 1 else place - 1]
    said = browser.text("#heat-status")
    assert said.startswith(f"{names[selected]} and {names[other]}: cosine")
    assert numbers_in(said)[0] == pytest.approx(cosine[selected, other], abs=6e-4)


def test_scatter_hovered_colored_and_walked(browser):
    choose(browser, "gene05")
    browser.run(
        "(() => { const s = document.querySelector('#color'); s.value = '.Pathway'; "
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert "<b>pathway2</b>" in browser.text("#legend")
    browser.run("document.querySelector('#scatter').focus()")
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        browser.press(key)
    said = browser.text("#scatter-status")
    name, _, value = said.partition(", Pathway: ")
    assert name in NAMES
    assert value == (f"<b>pathway{int(name[-1]) % 3}</b>" if name.startswith("gene") else "not given")
    browser.press("Enter")
    assert browser.text("#selected") == name


def test_a_well_clicked_shows_its_thumbnail_beside_controls(browser, screen):
    page, *_ = screen
    choose(browser, "gene07")
    entry = PageData(page).data["thumbnails"]["wells"]["gene07"][1]
    browser.click(f'#wells button[data-file="{entry["file"]}"]')
    captions = browser.run("[...document.querySelectorAll('#beside figcaption')].map((e) => e.textContent)")
    table = wells_table()
    row = np.flatnonzero((table["Metadata_Perturbation"] == "gene07") & (table["Metadata_Plate"] == "P2"))[0]
    controls = table[(table["Metadata_control_type"] == "negcon") & (table["Metadata_Plate"] == "P2")]
    first = controls["Metadata_Well"].tolist()[:2]
    assert captions == [
        f"gene07: {table['Metadata_Well'][row]}",
        *(f"negative control: {well}" for well in first),
    ]
    assert browser.run("document.querySelectorAll('#wells [aria-pressed=true]').length") == 1
    browser.run(
        "(() => { const s = document.querySelector('#channel'); s.value = 'DNA'; "
        "s.dispatchEvent(new Event('change')); })()"
    )
    loaded = (
        "[...document.querySelectorAll('#beside img')].every((i) => i.complete && i.naturalWidth === 192)"
    )
    browser.wait(loaded)
    alt = browser.run("document.querySelector('#beside img').alt")
    assert alt == f"gene07, well {table['Metadata_Well'][row]} of plate P2: DNA"
    # What is seen on the screen: two gray values, by the contrast of the controls that are shown.
    browser.center("#beside .strip")
    box = browser.run(
        "(() => { const b = document.querySelector('#beside .strip').getBoundingClientRect(); return [b.x, b.y]; })()"
    )
    seen = picture(browser)[int(box[1]) : int(box[1]) + SIZE, int(box[0]) : int(box[0]) + SIZE]
    low, high = 100 + 2 * controls.index[0], 100 + 2 * controls.index[1] + 50
    for columns, value in ((slice(4, 28), 100 + 2 * row), (slice(36, 60), 150 + 2 * row)):
        expected = 255 * np.clip((value - low) / (high - low), 0, 1)
        assert abs(seen[4:60, columns].mean() - expected) < 6


def picture(browser):
    """What the window shows, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(browser.picture())).convert("RGB")).astype(float)


def test_recall_and_doses_are_read(browser, screen):
    _, _, _, profiles = screen
    for (model, shown, found, pairs), path in zip(cells(browser, "#recall"), profiles.values(), strict=True):
        known = maps.map_screen(path, "tvn")
        expected = maps.recall(known.vectors, known.names, PAIRS).iloc[0]
        assert (model, int(found), int(pairs)) == (path.stem, expected["n_found"], expected["n_pairs"])
        assert float(shown) == pytest.approx(expected["recall"], abs=6e-4)
    choose(browser, "drug1")
    doses = cells(browser, "#doses")
    assert [row[0] for row in doses] == ["0.1", "1", "10"]
    strength = [float(row[2]) for row in doses]
    assert strength[0] < strength[1] < strength[2]
    choose(browser, "gene05")
    assert browser.run("document.querySelector('#dose-part').hidden")


def test_what_is_shown_is_downloaded(browser, screen, tmp_path):
    _, names, cosine, _ = screen
    choose(browser, "gene00")
    browser.downloads_to(tmp_path)
    for button, file in (("#neighbors-csv", "gene00_cosines.csv"), ("#heat-csv", "a_cosines.csv")):
        browser.click(button)
        browser.wait("true")
        wait_for(browser, tmp_path / file)
    table = pd.read_csv(tmp_path / "gene00_cosines.csv", keep_default_na=False)
    assert sorted([*table["other"], "gene00"]) == names
    expected = [cosine[names.index("gene00"), names.index(other)] for other in table["other"]]
    assert np.allclose(table["cosine"], expected, atol=2e-4)
    assert table.loc[table["known"] == "CORUM", "other"].tolist() == ["gene01"]
    heat = pd.read_csv(tmp_path / "a_cosines.csv", index_col=0)
    assert np.allclose(heat.loc[names, names], cosine, atol=2e-4)


def wait_for(browser, path):
    for _ in range(500):
        if path.is_file() and path.stat().st_size:
            return
        browser.run("new Promise((done) => setTimeout(done, 20))")
    raise AssertionError(f"{path.name} was not downloaded")


def test_models_are_switched_and_schemes_followed(browser, screen):
    _, _, _, profiles = screen
    choose(browser, "gene03")
    browser.run(
        "(() => { const s = document.querySelector('#model'); s.value = '1'; "
        "s.dispatchEvent(new Event('change')); })()"
    )
    known = maps.map_screen(profiles["b"], "tvn")
    own = maps.relate(known.vectors)[known.names.tolist().index("gene03")]
    best = np.argsort(-own)[1]
    name, value, _ = cells(browser, "#nearest")[0]
    assert browser.text("#selected") == "gene03"
    assert (name, numbers_in(value)[0]) == (known.names[best], pytest.approx(own[best], abs=6e-4))
    assert picture(browser).mean() > 200
    browser.scheme("dark")
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert picture(browser).mean() < 90


def test_keyboards_and_screen_readers_reach_everything(browser):
    unnamed = browser.run(
        "[...document.querySelectorAll('button, input, select, canvas, img, table, svg[role=img]')].filter((e) => "
        "e.checkVisibility() && !(e.textContent.trim() || e.getAttribute('aria-label') || e.alt || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert unnamed == []
    assert browser.run("[...document.querySelectorAll('[role=status]')].length") == 3
    browser.run("document.querySelector('.skip').focus()")
    reached = []
    for _ in range(20):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.id || document.activeElement.textContent"))
    wanted = ["search", "model", "layout", "color", "+", "scatter-csv", "scatter", "heat-csv", "heat", "rows"]
    assert reached[:4] == wanted[:4]
    assert [name for name in wanted if name not in reached] == []


def test_ten_thousand_perturbations_are_fluid(tmp_path):
    rng = np.random.default_rng(0)
    count, width = 10_000, 128
    names = [f"GENE{i:05d}" for i in range(count)] + ["DMSO"] * 200
    meta = pd.DataFrame(
        {
            "Metadata_Plate": "P1",
            "Metadata_Perturbation": names,
            "Metadata_control_type": [""] * count + ["negcon"] * 200,
        }
    )
    x = pd.DataFrame(
        rng.standard_normal((len(names), width)).astype(np.float32),
        columns=[f"emb_{i:04d}" for i in range(width)],
    )
    page = reporting.explore(
        pd.concat([meta, x], axis=1), out=tmp_path / "map.html", method="center", layout="pca"
    )
    with Chromium() as tab:
        tab.open(page)
        assert (
            float(tab.run("document.documentElement.dataset.ready")) < 3000
        )  # ms from the start of navigation
        searched = []
        for name in ("GENE00001", "GENE04321", "GENE09999"):
            choose(tab, name)
            searched.append(
                sum(float(tab.run(f"document.documentElement.dataset.{k}")) for k in ("search", "select"))
            )
        assert np.median(searched) < 100  # ms
        assert tab.errors == []
