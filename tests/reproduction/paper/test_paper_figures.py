"""Figures and settings of `camae paper`: systems are told apart and named as in the tables, and nothing covers them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from camae.maps.probes import CATEGORIES
from camae.reproduction.paper.evaluate_system import Outcome
from camae.reproduction.paper.paper_figures import feature_bars, figure_names, scaling_plot
from camae.reproduction.paper.paper_page import _settings
from camae.reproduction.paper.paper_systems import PAPER, SIZES


def outcomes(systems, steps=(None,)):
    rng = np.random.default_rng(0)
    found = []
    for system in systems:
        flops = 10 ** rng.uniform(11.1, 11.8) if system.trains else 0.0
        for step in steps if system.trains else (None,):
            score = {"value": float(rng.uniform(0.1, 0.5)), "se": 0.05}
            share = 1 if step is None else step / 1000
            facts = {"training_flops": flops * share}
            found.append(Outcome(system, "done", step=step, recall={"pairs": score}, facts=facts))
    return found


@pytest.mark.parametrize("size", SIZES)
def test_scaling_plot_tells_systems_apart_below_the_axes(size):
    figure = scaling_plot(outcomes(SIZES[size]), "pairs")
    figure.canvas.draw()
    axes, legend = figure.axes[0], figure.legends[0]
    looks = [(line.get_color(), line.get_marker(), line._unscaled_dash_pattern) for line in axes.lines]
    assert len(looks) == len(set(looks)) == len(SIZES[size])
    assert {text.get_text() for text in legend.get_texts()} == set(figure_names(SIZES[size]).values())
    assert not axes.texts
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    low, high = axes.get_xlim()
    ticks = [t for t in axes.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert len({t.label1.get_text() for t in ticks}) >= 3


def test_saved_steps_of_a_system_are_one_line_in_the_order_of_their_cost():
    trained = [s for s in PAPER if s.name == "mu_net_l"]
    found = outcomes(trained, (None, 500, 100))
    (line,) = scaling_plot(found, "pairs").axes[0].lines
    assert line.get_xdata().tolist() == sorted(o.facts["training_flops"] for o in found)


def test_systems_that_share_a_backbone_are_named_with_their_group():
    """Table 3 has a ViT-B/16 of ImageNet and one of weak supervision: two curves, not one that mixes both."""
    names = figure_names(PAPER)
    assert len(set(names.values())) == len(PAPER)
    assert names["imagenet_vit_b16"] == "ViT-B/16, ImageNet-pretrained classifiers"
    assert names["mu_net_l"] == "MU-Net-L"


def test_bars_of_features_come_in_other_patterns_when_colors_come_again():
    figure = feature_bars({str(i): pd.Series(np.linspace(0.1, 0.9, len(CATEGORIES))) for i in range(11)})
    looks = [(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in figure.axes[0].containers]
    assert len(set(looks)) == 11


def test_settings_that_are_the_same_everywhere_are_said_once():
    """A table of all fifteen would be wider than a page."""
    rows = [
        {"Model backbone": "A", "crop": "128 px", "steps": "12"},
        {"Model backbone": "B", "crop": "128 px", "steps": "24"},
    ]
    page = _settings(rows)
    table, _, rest = page.partition("The same for every trained system")
    assert "128 px" in rest
    assert "128 px" not in table
    assert all(text in table for text in ("<td>A</td>", "<td>12</td>", "<td>24</td>"))
