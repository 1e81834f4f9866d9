"""The benchmark's figures as plain text, for the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

_TABLES = {
    "table2": ("Recall by alignment (Table 2)", ["alignment", "source", "recall", "low", "high", "n_pairs"]),
    "table3": ("Recall after alignment (Table 3)", ["step", "source", "recall", "low", "high", "n_pairs"]),
    "table4": (
        "Fraction retrieved (Table 4)",
        ["condition", "task", "alignment", "n_groups", "n_retrieved", "fraction_retrieved", "mean_ap"],
    ),
    "table4_mean": (
        "Fraction retrieved, mean and spread over conditions (Table 4)",
        ["task", "alignment", "n_conditions", "mean", "sd"],
    ),
    "table5": ("Recall at 5 % false positives (Table 5)", ["source", "gene_set", "recall"]),
    "figure6": ("CellProfiler features told from the profiles (Figure 6)", ["category", "median_r2"]),
    "mechanisms": (
        "Mechanism of action of the nearest treatment",
        ["alignment", "neighbor", "accuracy", "shuffled", "n_treatments"],
    ),
}


def console_tables(results: Mapping[str, object]) -> Iterator[str]:
    """Text of the tables that benchmark.json holds, heading first; the model is a column where there are several."""
    for name, (title, columns) in _TABLES.items():
        records = results.get(name)
        if not isinstance(records, list) or not records:
            continue
        table = pd.DataFrame(records)
        several = ["model"] if table["model"].nunique() > 1 else []
        shown = table[[column for column in (*several, *columns) if column in table]]
        yield f"{title}\n{shown.to_string(index=False, float_format='{:.3f}'.format, na_rep='')}"
