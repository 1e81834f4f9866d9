"""Results folder of `camae paper`: results.json, one CSV per table, and the HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from camae.files import remove_unfinished, write_json, write_text
from camae.reporting import html
from camae.reporting.style import data_uri
from camae.reproduction.model_settings import TrainingSettings
from camae.reproduction.paper import published
from camae.reproduction.paper.evaluate_system import Outcome
from camae.reproduction.paper.paper_systems import System
from camae.reproduction.paper.paper_tables import PaperTable

_CAPTIONS = {
    "figure2": "Masked input, reconstruction, original (Figure 2)",
    "figure3": "Squared error with and without the Fourier loss (Figure 3)",
    "figure5_left": "Recall against training FLOPs (Figure 5, left)",
    "figure5_right": "Recall against the share of most extreme cosines (Figure 5, right)",
    "figure6": "Median R² of CellProfiler features by category (Figure 6)",
}
_LEAD = (
    "Systems of the paper as they come out on this screen, in the order they fall. The paper's own numbers stand "
    "below each table as published: other data, other sizes, not comparable."
)


class FamilyResult(TypedDict):
    """Systems of one family. status: "done" or "unavailable", with the reason; systems: rows of `Outcome.row`."""

    status: str
    reason: str
    systems: list[dict[str, object]]


class PaperResults(TypedDict):
    """Content of results.json.

    settings: of every trained system, resolved. figures: file names, or why there is none. published: the paper's own
    numbers.
    """

    screen: str
    sites: int
    channels: list[str]
    size: str
    quick: bool
    recipe: TrainingSettings
    settings: list[dict[str, str]]
    alignment: str
    arrays: str
    families: dict[str, FamilyResult]
    tables: dict[str, list[dict[str, str]]]
    figures: dict[str, str]
    published: dict[str, object]
    versions: dict[str, str]
    seconds: float


def family_results(systems: Sequence[System], outcomes: Sequence[Outcome]) -> dict[str, FamilyResult]:
    """An entry for every family of `systems`, those that were not run among them."""
    return {
        family: _family_result([o for o in outcomes if o.system.family == family])
        for family in dict.fromkeys(system.family for system in systems)
    }


def _family_result(outcomes: Sequence[Outcome]) -> FamilyResult:
    rows = [o.row() for o in outcomes]
    if any(o.status == "done" for o in outcomes):
        return {"status": "done", "reason": "", "systems": rows}
    reasons = list(dict.fromkeys(o.reason for o in outcomes if o.reason))
    reason = "; ".join(reasons) or "not among the systems chosen"
    return {"status": "unavailable", "reason": reason, "systems": rows}


def table_rows(tables: Sequence[PaperTable]) -> dict[str, list[dict[str, str]]]:
    """Rows of every table as name -> cell."""
    return {t.name: [dict(zip(t.header, row, strict=True)) for row in t.rows] for t in tables}


def published_rows(tables: Sequence[PaperTable]) -> dict[str, object]:
    """The paper's own rows of every table, and the medians of Figure 6 that its text gives."""
    rows: dict[str, object] = {
        t.name: [dict(zip(t.published_header, row, strict=True)) for row in t.published_rows] for t in tables
    }
    rows["figure6"] = {category: list(values) for category, values in published.FIGURE_6.items()}
    return rows


def write_results(out: Path, results: PaperResults, tables: Sequence[PaperTable]) -> None:
    """Write results.json, `<table>.csv` and paper.html into `out`, where the figures are."""
    for folder in (out, *out.glob("embeddings/*")):
        remove_unfinished(folder)
    for table in tables:
        write_text(out / f"{table.name}.csv", table.frame().to_csv(index=False))
    write_json(out / "results.json", results)
    write_text(out / "paper.html", _page(out, results, tables))


def _page(out: Path, results: PaperResults, tables: Sequence[PaperTable]) -> str:
    sections = [html.Section(t.name, t.title.rpartition("(")[2].rstrip(")"), _table(t)) for t in tables]
    sections.append(html.Section("settings", "Settings", _settings(results["settings"])))
    sections.append(html.Section("figures", "Figures", _figures(out, results["figures"])))
    what = "quick run, shows that the parts work" if results["quick"] else f"size: {results['size']}"
    return html.page(
        "The paper's systems on one screen",
        f"{results['screen']} · {results['sites']:,} sites · {what}",
        html.paragraph(_LEAD),
        sections,
        "Written by camae paper.",
    )


def _table(table: PaperTable) -> str:
    theirs = html.table(table.published_header, table.published_rows)
    notes = "".join(html.paragraph(note) for note in table.notes)
    ours = f"<h3>{html.escape(table.title)}</h3>{html.table(table.header, table.rows)}{notes}"
    return f"{ours}<details><summary>Published</summary>{theirs}</details>" if table.published_rows else ours


def _settings(rows: Sequence[Mapping[str, str]]) -> str:
    """Resolved settings of every trained system: those that differ as a table, the others once."""
    if not rows:
        return html.paragraph("No system was trained.")
    first = next(iter(rows[0]))
    shared = {name: text for name, text in rows[0].items() if name != first and _same(rows, name)}
    differing = [name for name in rows[0] if name not in shared]
    table = html.table(differing, [[row[name] for name in differing] for row in rows])
    return f"{table}<h3>The same for every trained system</h3>{html.facts(shared)}" if shared else table


def _same(rows: Sequence[Mapping[str, str]], name: str) -> bool:
    return len({row[name] for row in rows}) == 1


def _figures(out: Path, files: Mapping[str, str]) -> str:
    return "".join(_figure(out, files[name], caption) for name, caption in _CAPTIONS.items())


def _figure(out: Path, file: str, caption: str) -> str:
    if not file.endswith(".png"):
        return html.paragraph(f"{caption}: not shown, {file}.", "absent")
    return html.figure(html.image(data_uri((out / file).read_bytes()), caption), caption, "picture")
