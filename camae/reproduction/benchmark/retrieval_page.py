"""HTML of the benchmark's retrieval: fraction retrieved, activity, calibration with its figure, mechanisms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from camae.maps.calibration import TESTS
from camae.reporting import html
from camae.reporting.calibration_figure import p_values_against_uniform
from camae.reporting.style import svg


def retrieval_html(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Headings, tables and figures of what `tables` holds of retrieval."""
    parts = []
    if "table4" in tables:
        parts += ["<h3>Fraction retrieved (Table 4)</h3>", _fractions(tables["table4"])]
    if "table4_mean" in tables:
        parts += ["<h3>Fraction retrieved, mean and spread over conditions (Table 4)</h3>"]
        parts += [_mean_fractions(tables["table4_mean"])]
    if "agreement" in tables:
        parts += [
            "<h3>Activity by three measures, and where they disagree</h3>",
            _agreement(tables["agreement"]),
        ]
    if "calibration" in tables:
        parts.append("<h3>Calibration: controls against controls</h3>")
        for model, rows in tables["calibration_p_values"].groupby("model", sort=False):
            parts.append(_calibration_figure(str(model), rows))
        parts.append(_calibration(tables["calibration"]))
    if "mechanisms" in tables:
        parts += ["<h3>Mechanism of action of the nearest treatment</h3>", _mechanisms(tables["mechanisms"])]
    return parts


def _fractions(table: pd.DataFrame) -> str:
    by_condition = ["condition"] if "condition" in table else []
    texts, numbers = ["model", *by_condition, "task", "alignment"], ["n_groups", "n_retrieved"]
    shares = ["fraction_retrieved", "mean_ap", "mean_normalized_ap"]
    cells = _cells(table, texts, numbers, shares)
    smallest = [f"{value:.1e}" for value in table.smallest_p]
    header = [
        *texts,
        "groups",
        "retrieved",
        "fraction",
        "AP",
        "normalized AP",
        "smallest p",
    ]
    return html.table(
        header,
        [[*row, p] for row, p in zip(cells, smallest, strict=True)],
        numeric=range(len(texts), len(header)),
    )


def _mean_fractions(table: pd.DataFrame) -> str:
    cells = _cells(table, ["model", "task", "alignment"], ["n_conditions"], ["mean", "sd"])
    return html.table(
        ["model", "task", "alignment", "conditions", "mean", "spread"], cells, numeric=(3, 4, 5)
    )


def _agreement(table: pd.DataFrame) -> str:
    shown = table[table.n > 0]
    cells = _cells(shown, ["model", "alignment", "active_by"], ["n"], ["share"])
    header = ["model", "alignment", "active by", "perturbations", "share", "such as"]
    rows = [[*row, str(names)] for row, names in zip(cells, shown.examples, strict=True)]
    return html.table(header, rows, numeric=(3, 4))


def _calibration(table: pd.DataFrame) -> str:
    named = table.assign(test=table.test.map(TESTS))
    cells = _cells(
        named,
        ["model", "alignment", "groups", "test"],
        ["n"],
        ["share_below_05", "too_small", "too_large", "bound"],
    )
    header = [
        "model",
        "alignment",
        "groups",
        "p value",
        "n",
        "p <= .05",
        "too small by",
        "too large by",
        "chance",
    ]
    return html.table(header, cells, numeric=range(4, len(header)))


def _calibration_figure(model: str, rows: pd.DataFrame) -> str:
    panels = {
        f"{alignment}: {groups}": part[["test", "p_value"]]
        for (alignment, groups), part in rows.groupby(["alignment", "groups"], sort=False)
    }
    caption = (
        f"{model}: controls against controls. Random groups should follow the diagonal: above the band, a test finds "
        "effects where there are none; below, it is cautious. Groups of one well position differ from random ones by "
        "the plate's layout alone: whatever lies above the band there is no biology."
    )
    return html.figure(svg(p_values_against_uniform(panels), f"calibration-{model}"), caption)


def _mechanisms(table: pd.DataFrame) -> str:
    cells = _cells(
        table,
        ["model", "alignment", "neighbor"],
        ["n_treatments", "n_compounds", "n_mechanisms"],
        ["accuracy", "shuffled", "majority"],
    )
    header = [
        "model",
        "alignment",
        "neighbor",
        "treatments",
        "compounds",
        "mechanisms",
        "accuracy",
        "shuffled",
    ]
    return html.table([*header, "majority"], cells, numeric=range(3, 9))


def _cells(
    table: pd.DataFrame, texts: Sequence[str], numbers: Sequence[str], shares: Sequence[str]
) -> list[list[str]]:
    return [
        [
            *(str(row[name]) for name in texts),
            *(f"{row[name]:,}" for name in numbers),
            *(f"{row[name]:.3f}" for name in shares),
        ]
        for row in table.to_dict("records")
    ]
