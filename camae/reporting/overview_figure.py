"""Overview figure of a demo run: reconstructions of two fields beside the recall of every system (the README's)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from camae.errors import CamaeError
from camae.files import write_atomic
from camae.reporting.figures import draw_recall_bars, gray_panels
from camae.reporting.run_folder import Reconstructions, RunFolder, Score
from camae.reporting.style import house_style, new_figure, png, strip_axes

KINDS = ("masked input", "reconstruction", "original")
SYSTEMS = (
    "random",
    "pixel",
    "untrained",
    "texture",
    "trained",
)  # texture: runs of earlier versions have none
SIZE = (9.0, 4.8)  # inches, shown at 100 px each and stored with twice as many
FONT_SIZE = 11.5  # points
MAX_BYTES = 300_000
PALETTES = (128, 96, 64, 48, 32, 24)  # colors of the PNG; the first under MAX_BYTES is taken


def write_overview(run: str | Path, out: str | Path) -> Path:
    """Write the overview figure of a finished `camae demo` folder as a PNG of 1,800 px width, and return its path.

    Raises MissingFileError for a folder that does not exist, CamaeError for one without reconstructions or recall.
    """
    folder = RunFolder.open(run)
    if folder.reconstructions is None:
        raise CamaeError(f"{folder.path}: no reconstructions.npz in it or its models; run camae demo again")
    recall = folder.summary.get("recall", {})
    if missing := [system for system in SYSTEMS if system not in recall and system != "texture"]:
        raise CamaeError(f"{folder.path}: summary.json has no recall of {', '.join(missing)}")
    figure = overview_figure(
        folder.reconstructions, {system: recall[system] for system in SYSTEMS if system in recall}
    )
    return _write_small_png(figure, out)


def overview_figure(reconstructions: Reconstructions, recall: Mapping[str, Score]) -> Figure:
    """Two fields of up to five channels beside bars of recall by system, 9 by 4.8 in (900 px wide).

    Fields: masked input, reconstruction and original of the first two rows. recall: by system, in the order of bars.
    """
    with house_style():
        figure = new_figure(*SIZE)
        figure.set_layout_engine("none")  # the places below are in inches
        _draw_fields(_axes(figure, 1.25, 0.08, 3.65, 4.4), reconstructions)
        axes = strip_axes(_axes(figure, 5.98, 0.75, 2.82, 3.73), grid="x")
        draw_recall_bars(axes, recall, fontsize=FONT_SIZE)
        axes.set_xlabel("recall of known relationships\n(dashed: chance, 10%)", fontsize=FONT_SIZE)
        axes.set_xlim(0, 1.16)  # room for the numbers
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    return figure.add_axes((left / SIZE[0], bottom / SIZE[1], width / SIZE[0], height / SIZE[1]))


def _draw_fields(axes: Axes, r: Reconstructions) -> None:
    """One picture: a row of panels for each kind of each field, a column for each channel."""
    panels = gray_panels(r.masked[:2], r.reconstruction[:2], r.original[:2])[:, :, :5]
    F, T, C, H, W = panels.shape[:5]
    thin, wide = max(1, H // 40), max(4, H // 8)
    field = T * (H + thin) - thin
    mosaic = np.zeros((F * (field + wide) - wide, C * (W + thin) - thin, 4), np.float32)
    for f, t, c in np.ndindex(F, T, C):
        y, x = f * (field + wide) + t * (H + thin), c * (W + thin)
        mosaic[y : y + H, x : x + W] = panels[f, t, c]
    axes.imshow(mosaic, interpolation="antialiased", aspect="equal")
    axes.set_anchor("NE")
    axes.spines[:].set_visible(False)
    axes.set_xticks([c * (W + thin) + W / 2 for c in range(C)], r.channels[:C], fontsize=FONT_SIZE)
    rows = [f * (field + wide) + t * (H + thin) + H / 2 for f in range(F) for t in range(T)]
    axes.set_yticks(rows, list(KINDS) * F, fontsize=FONT_SIZE)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)


def _write_small_png(figure: Figure, out: str | Path) -> Path:
    """Write a PNG with a palette of as many colors as keep it under `MAX_BYTES`."""
    data = b""
    with Image.open(io.BytesIO(png(figure, dpi=200))) as picture:
        true_color = picture.convert("RGB")
    for colors in PALETTES:
        buffer = io.BytesIO()
        true_color.quantize(colors, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
        data = buffer.getvalue()
        if len(data) < MAX_BYTES:
            break
    return write_atomic(out, lambda path: path.write_bytes(data))
