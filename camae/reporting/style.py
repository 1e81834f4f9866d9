"""Style of all figures: palette, typeface, and colors that the HTML page can replace on dark screens."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from camae.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

Dashes: TypeAlias = tuple[float, tuple[float, ...]]  # a line style of Matplotlib; (0, ()) is solid
# In SVG these two are replaced by the page's own ink and rule colors; in PNG they read well on white.
INK, RULE = "#1b1f23", "#d5d9de"
# Okabe-Ito colors: told apart with any color vision.
SYSTEM_COLORS = {
    "trained": "#0072b2",
    "untrained": "#e69f00",
    "pixel": "#009e73",
    "random": "#8b929a",
    "texture": "#d55e00",
    "cells": "#cc79a7",
    "position": "#56b4e9",
    "shuffled": "#b4bac1",
    "oracle": "#5c6670",
}
_GRAYS = ("#8b929a", "#b4bac1", "#5c6670")
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b929a")
_SETTINGS: dict[RcKeyType, object] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with $ is no formula
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib settings of every figure; the user's own settings come back afterwards."""
    with matplotlib.rc_context(_SETTINGS):
        yield


class NotebookFigure(Figure):
    """Figure that a notebook shows, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        return png(self, dpi=110)


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, outside pyplot: nothing global is touched."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(figure: Figure, *, grid: Literal["x", "y", "both"] | None = None) -> Axes:
    """New axes of the figure, as `strip_axes` leaves them."""
    return strip_axes(figure.subplots(), grid=grid)


def strip_axes(axes: Axes, *, grid: Literal["x", "y", "both"] | None = None) -> Axes:
    """Leave only the left and bottom line of axes. grid: direction of the grid lines, None for none."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid)
    return axes


def color(system: str, position: int) -> str:
    """A system's own color, or the next of the cycle for names the palette does not know."""
    return SYSTEM_COLORS.get(system, CYCLE[position % len(CYCLE)])


def dashes(colors: Sequence[str]) -> list[Dashes]:
    """Line styles of curves of these colors: solid where a color comes first, a pattern of its own each later time.

    All grays count as one color.
    """
    seen = ["gray" if name in _GRAYS else name for name in colors]
    return [_dashes(seen[:i].count(name)) for i, name in enumerate(seen)]


def _dashes(times: int) -> Dashes:
    return (0, (5, 2, *(1, 1.5) * (times - 1))) if times else (0, ())


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with a label at several ticks whatever its range, and no two labels alike.

    Call it after everything is drawn.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
    axis.set_minor_formatter(NullFormatter())
    if 0 < low <= high < 8 * low:  # powers of ten would label one tick, or none
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2000 * low else (1,)))
        axis.set_major_formatter(_log_label)


def _log_label(value: float, _: float) -> str:
    return f"{value:,.0f}" if 1 <= value < 1e7 else f"{value:g}"


def legend_below(figure: Figure, axes: Axes, fontsize: float = 7.5) -> None:
    """The legend of the axes below them, in as many columns as fit, so that it covers nothing that is drawn."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    longest = max(map(len, labels))
    inches = fontsize * (0.0069 * longest + 0.075)  # a letter is so wide on average; a line with its gaps
    columns = min(len(labels), 4, max(1, int(figure.get_figwidth() / inches)))
    figure.set_figheight(figure.get_figheight() + 0.021 * fontsize * -(-len(labels) // columns))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=fontsize, handlelength=3.4
    )


def legend_label(name: str) -> str:
    """A name as legends show it: Matplotlib leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def svg(figure: Figure, name: str) -> str:
    """The figure as inline SVG that follows the page's colors. `name` keeps ids of several figures apart."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(RULE, "var(--rule)")
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(
        r'<svg ([^>]*?)width="([\d.]+)pt"', r'<svg \1style="max-width:\2pt;width:100%"', text, count=1
    )
    return re.sub(r"'DejaVu Sans'", "system-ui, 'DejaVu Sans'", text)


def png(figure: Figure, dpi: int = 160, facecolor: str = "white") -> bytes:
    """The figure as PNG bytes on a solid ground."""
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=facecolor)
    return buffer.getvalue()


def save_png(figure: Figure, path: str | Path, dpi: int = 160) -> Path:
    """Write the figure as PNG, whole or not at all."""
    data = png(figure, dpi)
    return write_atomic(path, lambda temporary: _write(temporary, data))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def data_uri(data: bytes) -> str:
    """PNG bytes as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
