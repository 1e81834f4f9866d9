"""HTML report of a run folder: recall, map, reconstructions, training, run record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.errors import CamaeError
from camae.files import check_outputs, path_of, write_text
from camae.reporting import figures, html
from camae.reporting.html import Section
from camae.reporting.ordering import cluster_order
from camae.reporting.patch_map import PATCH_MAP, patch_map_section
from camae.reporting.run_folder import RunFolder, RunSummary, Score, last_tenth
from camae.reporting.style import data_uri, png, svg
from camae.reporting.verdict import SYSTEM_MEANING, verdict

Paths = str | Path | Sequence[str | Path]
MAP_ROWS = 400  # of the heat map
TAIL = "mean loss of the last tenth"


def report(run: Paths, out: str | Path | None = None, *, title: str | None = None) -> Path:
    """Write one self-contained HTML file about a run, or about several one below the other, and return its path.

    run: a run folder or a list of them; see `RunFolder` for the files that are looked for. A missing piece leaves
    its place with a line that says so. out: the HTML file (default: `report.html` in the first run folder).
    Raises MissingFileError for a folder that does not exist and CamaeError for one that holds no run or a damaged
    file.
    """
    if not isinstance(run, str | Path | Sequence):
        raise CamaeError(f"run is a value of type {type(run).__name__}; give a run folder, or a list of them")
    if title is not None and not isinstance(title, str):
        raise CamaeError(f"title is a value of type {type(title).__name__}; give a text")
    paths = [run] if isinstance(run, str | Path) else list(run)
    if not paths:
        raise CamaeError("there is no run to report: name at least one run folder")
    runs = _with_different_names([RunFolder.open(path) for path in paths])
    target = path_of(out, "out") if out is not None else runs[0].path / "report.html"
    check_outputs([target], ".html")
    sections = [Section("recall", "Known relationships", _each(runs, _recall))]
    if not all(run.summary.get("screens") for run in runs):  # each screen has a report of its own with these
        sections += [
            Section("map", "Map", _each(runs, _map)),
            Section("reconstructions", "Reconstructions", _each(runs, _reconstructions)),
            Section("training", "Training", _training(runs)),
        ]
    if any((run.path / PATCH_MAP).is_file() for run in runs):
        sections.append(Section("patches", "Patch map", _each(runs, lambda run: patch_map_section(run.path))))
    sections.append(Section("run", "What was run", _each(runs, _run)))
    names = ", ".join(run.name for run in runs)
    page = html.page(
        title or f"camae report: {names}",
        _subtitle(runs[0]) if len(runs) == 1 else f"{len(runs)} runs",
        _headlines(runs),
        sections,
        f"Written by camae on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}. This file needs no network.",
    )
    return write_text(target, page)


def _with_different_names(runs: list[RunFolder]) -> list[RunFolder]:
    """Runs named by as many of the folders above as make the names differ."""
    for depth in range(1, 8):
        names = ["/".join(run.path.resolve().parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    return runs


def _each(runs: list[RunFolder], body: Callable[[RunFolder], str]) -> str:
    """The section of every run, under the run's name when there are several."""
    if len(runs) == 1:
        return body(runs[0])
    return "".join(f"<h3>{html.escape(run.name)}</h3>{body(run)}" for run in runs)


def _headlines(runs: list[RunFolder]) -> str:
    """What each run found, under its name, model and channels when there are several."""
    if len(runs) == 1:
        return _headline(runs[0])
    return "".join(
        f"<h3>{html.escape(run.name)}</h3>"
        + (html.paragraph(words, "remark") if (words := _subtitle(run)) else "")
        + _headline(run)
        for run in runs
    )


def _subtitle(run: RunFolder) -> str:
    model = run.record.get("model", {})
    channels = model.get("channels")
    parts = [str(model.get("name", "")), str(run.summary.get("device", ""))]
    if isinstance(channels, list):
        parts.insert(1, ", ".join(map(str, channels)))
    return " · ".join(part for part in parts if part)


def _score(score: Score) -> str:
    error = figures.standard_error(score)
    return f"{score['value']:.3f}" + ("" if error is None else f" ± {error:.3f}") + _interval(score, "")


def _interval(score: Score, sign: str) -> str:
    """The 95 % interval of a score, in brackets. sign: "+" to write plus signs."""
    if "low" not in score or "high" not in score:
        return ""
    return f" [{score['low']:{sign}.3f}, {score['high']:{sign}.3f}]"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _headline(run: RunFolder) -> str:
    """What follows from the numbers, in words, and the numbers."""
    summary = run.summary
    sentence = verdict(summary)
    words = html.paragraph(sentence, "verdict") if sentence else ""
    cells: list[tuple[str, str, str]] = []
    recall = summary.get("recall", {})
    if "trained" in recall:
        error = figures.standard_error(recall["trained"]) or 0.0
        remark = f"± {100 * error:.0f} points; chance is 10\u00a0%"
        cells.append((f"{recall['trained']['value']:.0%}", "of known relationships found", remark))
    best = summary.get("trained_minus_best")
    gain = best or summary.get("trained_minus_untrained")
    if gain:
        against = f"the best baseline, {summary['best_baseline']}" if best else "untrained"
        remark = f"standard error {100 * gain['se']:.0f} points"
        cells.append((f"{100 * gain['value']:+.0f} points", f"trained against {against}", remark))
    if "wells" in summary:
        sites = f"{summary['sites']:,} sites" if "sites" in summary else ""
        cells.append((f"{summary['wells']:,}", "wells embedded", sites))
    if "seconds" in summary:
        cells.append((_duration(summary["seconds"]), "from start to report", str(summary.get("device", ""))))
    speed = [table["crops_per_second"].median() for table in run.logs.values() if "crops_per_second" in table]
    if speed:
        cells.append((f"{np.median(speed):.1f}", "training crops per second", "median"))
    return words + (html.tiles(cells) if cells else "")


def _recall(run: RunFolder) -> str:
    recall = run.summary.get("recall")
    if not recall:
        return html.absent("recall of known relationships", "recall in summary.json")
    about = html.paragraph(
        "Share of the known pairs of perturbations whose cosine lies in the lowest or highest 5 % of all pairs, "
        "after alignment to the negative controls of each plate. Chance is 10 %."
    )
    bars = svg(figures.recall_bars(recall), f"{run.name}-bars")
    table = _recall_table(recall, run.summary.get("recall_without_alignment", {}))
    left = (
        html.figure(
            bars, "Recall by system; whiskers are 95 % intervals, or standard errors where there are none."
        )
        + table
    )
    if run.curves is not None:
        curve = svg(figures.recall_against_percentile(run.curves), f"{run.name}-curve")
        right = html.figure(curve, "Recall as more of the extreme cosines are kept; dotted: chance.")
    else:
        right = html.absent("recall against percentile", "recall_curves.csv")
    return html.pair(left, right + _differences_table(run.summary)) + about + _screens_table(run.summary)


def _differences_table(summary: RunSummary) -> str:
    """The trained encoder against each baseline without training, and both encoders by read-out."""
    parts = []
    if differences := summary.get("trained_minus"):
        rows = [[SYSTEM_MEANING.get(system, system), _signed(score)] for system, score in differences.items()]
        parts.append(html.table(["trained less", "difference ± s.e. [95 % interval]"], rows, numeric=(1,)))
    if read_outs := summary.get("read_outs"):
        chosen = summary.get("read_out", {})
        rows = [
            [
                SYSTEM_MEANING.get(system, system),
                name,
                _score(score),
                "yes" if chosen.get(system) == name else "",
            ]
            for system, read in read_outs.items()
            for name, score in read.items()
        ]
        parts.append(html.table(["encoder", "read-out", "recall ± s.e.", "shown"], rows, numeric=(2,)))
    return "".join(parts)


def _screens_table(summary: RunSummary) -> str:
    """Recall on each of several screens."""
    if not (screens := summary.get("screens")):
        return ""
    header = ["screen", "trained", screens[0]["best_baseline"], "difference ± s.e.", "report"]
    rows = [
        [
            str(s["seed"]),
            _score(s["trained"]),
            _score(s["baseline"]),
            _signed(s["difference"]),
            f"screens/{s['seed']}/report.html",
        ]
        for s in screens
    ]
    return "<h3>Screen by screen</h3>" + html.table(header, rows, numeric=(1, 2, 3))


def _signed(score: Score) -> str:
    error = figures.standard_error(score)
    return f"{score['value']:+.3f}" + ("" if error is None else f" ± {error:.3f}") + _interval(score, "+")


def _recall_table(recall: Mapping[str, Score], unaligned: Mapping[str, Score]) -> str:
    header = ["system", "recall ± s.e. [95 % interval]"] + (["without alignment"] if unaligned else [])
    rows = []
    for system, score in recall.items():
        row = [SYSTEM_MEANING.get(system, system), _score(score)]
        if unaligned:
            row.append(_score(unaligned[system]) if system in unaligned else "")
        rows.append(row)
    return html.table(header, rows, numeric=(1, 2))


def _map(run: RunFolder) -> str:
    parts: list[str] = []
    order: list[str] | None = None
    if run.map is not None:
        vectors, names = run.map
        shown = _shown_rows(names, run.relationships)
        vectors, names = vectors[shown], [names[i] for i in shown]
        heat = figures.relationship_map(vectors, names, run.known_pairs)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        order = [names[i] for i in cluster_order(unit @ unit.T)]
        caption = "Cosines between perturbations, ordered by clustering. Open squares below the diagonal: known pairs."
        parts.append(html.figure(svg(heat, f"{run.name}-map"), caption))
    else:
        parts.append(html.absent("the map of perturbations", "map.parquet"))
    if run.relationships is None:
        return "".join(parts) + html.absent("the strongest relationships", "relationships.csv")
    wheel = svg(figures.relationship_wheel(run.relationships, order), f"{run.name}-wheel")
    caption = (
        f"The {len(run.relationships)} strongest relationships. Red: similar, blue: opposite; "
        "faint: not among the known pairs."
    )
    strongest = "<h3>Strongest relationships</h3>" + _strongest_table(run.relationships.head(14))
    return "".join(parts) + html.pair(html.figure(wheel, caption), strongest)


def _shown_rows(names: list[str], relationships: pd.DataFrame | None) -> npt.NDArray[np.intp]:
    """At most `MAP_ROWS` rows for the heat map: those of the strongest relationships first."""
    if len(names) <= MAP_ROWS or relationships is None:
        return np.arange(len(names))[:MAP_ROWS]
    strong = set(relationships[["a", "b"]].to_numpy().ravel())
    return np.argsort([name not in strong for name in names], kind="stable")[:MAP_ROWS]


def _strongest_table(strongest: pd.DataFrame) -> str:
    header = ["perturbation", "perturbation", "cosine"]
    rows = [[str(row.a), str(row.b), f"{row.cosine:+.3f}"] for row in strongest.itertuples()]
    if "known" in strongest:
        header.append("known")
        for cells, known in zip(rows, strongest["known"].astype(bool), strict=True):
            cells.append("yes" if known else "")
    return html.table(header, rows, numeric=(2,))


def _reconstructions(run: RunFolder) -> str:
    caption = (
        "Fixed fields as the trained model completes them, channel by channel: masked input, reconstruction (visible "
        "patches as they are), original."
    )
    arrays = run.reconstructions
    if arrays is not None:
        grid = figures.reconstruction_grid(
            arrays.masked,
            arrays.reconstruction,
            arrays.original,
            arrays.labels,
            arrays.channels,
        )
        return html.figure(html.image(data_uri(png(grid)), "Reconstructed images"), caption, "picture")
    if run.reconstruction_picture is not None:
        picture = html.image(data_uri(run.reconstruction_picture), "Reconstructed images")
        return html.figure(picture, caption, "picture")
    return html.absent("reconstructions", "reconstructions.npz or .png")


def _training(runs: list[RunFolder]) -> str:
    several = len(runs) > 1
    logs = {
        f"{run.name} {name}" if several and name != run.name else name: log
        for run in runs
        for name, log in run.logs.items()
    }
    logs = {name: log for name, log in logs.items() if {"step", "loss"} <= set(log.columns)}
    if not logs:
        return html.absent("loss curves", "log.jsonl with steps and losses")
    caption = (
        "Reconstruction loss on masked patches, logarithmic axes. Faint: every logged step. Dashed: held out."
    )
    curves = html.figure(svg(figures.loss_curves(logs), "loss"), caption)
    header = ["run", "steps", "crops", "first loss", "last loss", TAIL, "held-out loss", "crops/s"]
    rows = [[name, *_log_row(log)] for name, log in logs.items()]
    return curves + html.table(header, rows, numeric=range(1, 8))


def _log_row(log: pd.DataFrame) -> list[str]:
    last = log.iloc[-1]
    held = log["val_loss"].dropna() if "val_loss" in log else pd.Series(dtype=float)
    return [
        f"{int(last['step']):,}",
        f"{int(last['crops']):,}" if "crops" in log else "",
        f"{log['loss'].iloc[0]:.4f}",
        f"{last['loss']:.4f}",
        f"{last_tenth(log)['loss'].mean():.4f}",
        f"{held.iloc[-1]:.4f}" if len(held) else "",
        f"{log['crops_per_second'].median():.1f}" if "crops_per_second" in log else "",
    ]


def _run(run: RunFolder) -> str:
    summary, record = run.summary, run.record
    counts: dict[str, str] = {}
    for name, value in {**record, **summary}.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            counts[_words(name)] = f"{value:,.0f}" if isinstance(value, float) else f"{value:,}"
    model = {name: value for name, value in record.get("model", {}).items() if not isinstance(value, dict)}
    backends = summary.get("backends", record.get("backends", {}))
    device = str(summary.get("device", record.get("device", "")))
    groups = {
        "Counts": counts,
        "Device and back-ends": {"device": device, **_texts(backends)},
        "Model": _texts(model),
        "Versions": {k: _text(v) for k, v in summary.get("versions", record.get("versions", {})).items()},
    }
    shown = [
        f"<h3>{title}</h3>{html.facts(values)}" for title, values in groups.items() if any(values.values())
    ]
    return html.paragraph(f"Folder: {run.path.resolve()}") + "".join(shown)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {_words(name): _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    if value is None:
        return "default"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
