"""Keys of figures: a legend covers no error bar, and a color bar has the colors it is read by."""

from __future__ import annotations

import numpy as np
import pandas as pd

from camae.evaluate.figures import layer_figure
from camae.reporting.patch_map import PatchMap


def test_the_legend_of_the_layers_covers_no_axes():
    scores = np.linspace(0.9, 0.5, 6)
    table = pd.DataFrame({"block": range(6), "chance": 0.5, "chosen": np.arange(6) == 3})
    for name in ("separability", "consistency"):
        table = table.assign(**{name: scores, f"held_out_{name}": scores, f"{name}_se": 0.1})
        table[f"held_out_{name}_se"] = 0.1
    figure = layer_figure(table)
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert [t.get_text() for t in legend.get_texts()][:2] == ["chosen: block 3", "chance"]


def test_the_color_bar_of_a_patch_map_is_opaque_and_of_the_maps_scale():
    """Faded over the white page its low end was gray, where the map is black."""
    rng = np.random.default_rng(0)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    distance = rng.uniform(0.2, 3, (1, 4, 4))
    found = PatchMap(images, rng.random((1, 4, 4, 3)), distance, 2.0, ["a"], ["DNA"], 1)
    figure = found.figure()
    figure.canvas.draw()
    bar, heat = figure.axes[-1], figure.axes[2].images[-1]
    assert bar.get_ylim() == heat.get_clim()
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1]
    box = bar.get_window_extent()
    lowest = pixels[int(box.y0) + 4, int((box.x0 + box.x1) / 2), :3]
    assert lowest.max() < 16
