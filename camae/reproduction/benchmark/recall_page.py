"""HTML of the benchmark's recall: by alignment, after alignment, in gene sets; and of features told from profiles."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from camae.reporting import html

_RECALL = (
    ("table2", "alignment", "Recall of known pairs in both 5 % tails, by alignment (Table 2)"),
    ("table3", "step", "Recall after alignment (Table 3)"),
)
_OTHERS = (
    ("table5", "gene_set", "source", "recall", "Recall at 5 % false positives in gene sets (Table 5)"),
    (
        "figure6",
        "category",
        None,
        "median_r2",
        "CellProfiler features told from the profiles: median R² (Figure 6)",
    ),
)


def recall_html(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Headings and tables of what `tables` holds of recall and features, models side by side."""
    parts = []
    for name, row, title in _RECALL:
        if name in tables:
            note = "In brackets: 95 % intervals, over groups of related perturbations."
            parts += [f"<h3>{title}</h3>", _with_intervals(tables[name], row), html.paragraph(note)]
    for name, row, column, value, title in _OTHERS:
        if name in tables:
            parts += [f"<h3>{title}</h3>", _wide(tables[name], row, column, value)]
    return parts


def _with_intervals(table: pd.DataFrame, row: str) -> str:
    """One line per model and value of the column `row`, one column per source."""
    text = [f"{r.recall:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in table.itertuples()]
    return _wide(table.assign(text=text), row, "source", "text")


def _wide(table: pd.DataFrame, row: str, column: str | None, value: str) -> str:
    shown = table.assign(**{"": value}) if column is None else table
    index = ["model", row]
    wide = shown.pivot_table(index=index, columns=column or "", values=value, sort=False, aggfunc="first")
    cells = [
        [*map(str, key), *("" if pd.isna(v) else v if isinstance(v, str) else f"{v:.3f}" for v in values)]
        for key, values in zip(wide.index, wide.to_numpy(object), strict=True)
    ]
    header = [*index, *("median R²" if column is None else str(name) for name in wide.columns)]
    return html.table(header, cells, numeric=range(2, len(header)))
