"""Figure of calibration: shares of p values against what uniform ones would have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from camae.maps.calibration import TESTS, calibration_summary
from camae.reporting.style import CYCLE, INK, house_style, new_figure, strip_axes


def p_values_against_uniform(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of p values at most a, against a: one panel for each table, one line for each test.

    panels: by title, the columns test and p_value (`maps.calibration`). Diagonal: uniform p values. The gray band is
    what n independent uniform p values stay within with probability .99 (Dvoretzky, Kiefer and Wolfowitz), for the
    fewest p values of the panel. A line above the band finds effects where there are none; one below is cautious.
    """
    names = list(TESTS)
    with house_style():
        columns = min(len(panels), 2)
        lines = -(-len(panels) // columns)
        figure = new_figure(3.2 * columns + 0.4, 3.2 * lines + 0.7)
        every = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, table) in zip(every, panels.items(), strict=False):
            strip_axes(axes, grid="both")
            bound, a = calibration_summary(table).bound.max(), np.linspace(0, 1, 101)
            axes.fill_between(
                a, np.maximum(a - bound, 0), np.minimum(a + bound, 1), color=INK, alpha=0.1, linewidth=0
            )
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            for test, part in table.dropna(subset="p_value").groupby("test", sort=False):
                p = np.sort(part.p_value.to_numpy())
                axes.step(
                    [0, *p, 1],
                    [0, *np.arange(1, len(p) + 1) / len(p), 1],
                    where="post",
                    color=CYCLE[names.index(str(test)) % len(CYCLE)],
                    linewidth=1.4,
                    label=TESTS[str(test)],
                )
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="a", title=title)
        for axes in every[::columns]:
            axes.set_ylabel("share of p values at most a")
        handles, labels = every[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7.5)
    return figure
