"""What the figures draw, read back from the figures themselves."""

from __future__ import annotations

import html

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from camae.errors import CamaeError
from camae.reporting.figures import (
    loss_curves,
    recall_against_percentile,
    recall_bars,
    reconstruction_grid,
    relationship_map,
    relationship_wheel,
    save_png,
)
from camae.reporting.ordering import cluster_order
from camae.reporting.style import SYSTEM_COLORS, svg


def lines_of(figure):
    return figure.axes[0].lines


def test_loss_curves_are_log_log_and_show_rows_and_their_trailing_mean():
    loss = np.array([4.0, 2.0, 1.0, 0.5])
    rows = [{"step": s, "loss": v} for s, v in zip((10, 20, 95, 100), loss, strict=True)]
    figure = loss_curves({"a": rows})
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    np.testing.assert_array_equal(lines_of(figure)[0].get_ydata(), loss)
    # The window of step 100 reaches back to step 90: mean of 1.0 and 0.5; the others hold only themselves.
    np.testing.assert_allclose(lines_of(figure)[1].get_ydata(), [4, 2, 1, 0.75])
    with pytest.raises(CamaeError, match="no columns step and loss"):
        loss_curves({"a": [{"epoch": 1}]})


def test_recall_curve_draws_one_line_per_system_beside_chance():
    shares = np.array([0.9, 0.1, 0.5])
    curves = pd.DataFrame({"system": ["trained"] * 3, "percentile": shares, "recall": shares**2})
    lines = lines_of(recall_against_percentile(curves))
    np.testing.assert_array_equal(lines[0].get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(lines[1].get_xydata(), [[0.1, 0.01], [0.5, 0.25], [0.9, 0.81]])
    assert lines[2].get_xdata()[0] == 0.10


def test_eleven_curves_are_told_apart_and_the_legend_lies_below_them():
    """Seven colors come again with other line styles, also the grays of the demo; no curve lies under the legend."""
    shares = np.array([0.1, 0.5, 1.0])
    for systems in ([f"system {i}, with a long name" for i in range(11)], list(SYSTEM_COLORS)):
        rows = {"percentile": np.tile(shares, len(systems)), "recall": np.tile(shares, len(systems))}
        figure = recall_against_percentile(pd.DataFrame({"system": np.repeat(systems, 3), **rows}))
        looks = [(line.get_color(), line._unscaled_dash_pattern) for line in lines_of(figure)[1:-1]]
        assert len(looks) == len(set(looks)) == len(systems)
        figure.canvas.draw()
        legend = figure.legends[0]
        assert [text.get_text() for text in legend.get_texts()] == systems
        box = legend.get_window_extent()
        assert not box.overlaps(figure.axes[0].get_window_extent())
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


@pytest.mark.parametrize(
    ("low", "high"), [(0.98, 1.1), (0.88, 1.37), (1.001, 1.002), (0.1, 3), (2e-4, 9e-4), (0.003, 10)]
)
def test_loss_axes_have_several_different_labels_whatever_their_range(low, high):
    rows = [{"step": 1, "loss": high}, {"step": 200, "loss": low}]
    figure = loss_curves({"a": rows})
    figure.canvas.draw()
    axes = figure.axes[0]
    for axis, (first, last) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        shown = [t.label1.get_text() for t in axis.get_major_ticks() if first <= t.get_loc() <= last]
        assert len(shown) >= 3
        assert len(shown) == len(set(shown))
        assert not any(t.label1.get_text() for t in axis.get_minor_ticks())


def test_runs_beyond_seven_are_told_apart_and_a_single_step_is_seen():
    rows = [{"step": 1, "loss": 2.0}]
    lines = lines_of(loss_curves({str(i): rows for i in range(9)}))[1::2]
    assert len({(line.get_color(), line._unscaled_dash_pattern) for line in lines}) == 9
    assert {line.get_marker() for line in lines} == {"o"}


def test_bars_have_the_values_and_cope_without_a_standard_error():
    figure = recall_bars({"trained": {"value": 0.4, "se": float("nan")}, "random": {"value": 0.1}})
    assert [patch.get_width() for patch in figure.axes[0].patches] == [0.4, 0.1]


def test_reconstructions_stand_in_triplets_on_the_scale_of_their_original():
    R, C, H = 2, 3, 16
    original = np.random.default_rng(0).random((R, C, H, H)).astype(np.float32)
    masked = original.copy()
    masked[..., :8, :] = np.nan
    figure = reconstruction_grid(masked, original / 2, original, ["control", "KRB3"], ["DNA", "ER", "RNA"])
    mosaic = np.asarray(figure.axes[0].images[0].get_array())
    thin, wide = 1, 4
    x = 3 * H + 2 * thin + wide  # channel 1
    y = H + wide  # row 1
    low, high = np.percentile(original[1, 1], (1, 99.7))
    for t, plane in enumerate((masked, original / 2, original)):
        panel = mosaic[y : y + H, x + t * (H + thin) : x + t * (H + thin) + H]
        expected = np.clip((plane[1, 1] - low) / (high - low), 0, 1)
        seen = ~np.isnan(expected)
        # fp32 arithmetic on values below one: a few units of 2**-24 after the division by the range.
        np.testing.assert_allclose(panel[..., 0][seen], expected[seen], atol=1e-5)
        assert (panel[~seen][:, :3] == np.float32([0.50, 0.55, 0.62])).all()
    with pytest.raises(CamaeError, match="as many labels"):
        reconstruction_grid(masked, original, original, ["control"], ["DNA", "ER", "RNA"])


def test_map_is_reordered_cosines_with_known_pairs_below_the_diagonal():
    vectors = np.array([[1, 0, 0.1], [0, 1, 0], [1, 0, 0], [0, 1, 0.1]])
    axes = relationship_map(vectors, list("abcd"), [("a", "c")]).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = ["abcd".index(n) for n in names]
    np.testing.assert_allclose(axes.images[0].get_array(), (unit @ unit.T)[np.ix_(rows, rows)])
    assert {frozenset(names[:2]), frozenset(names[2:])} == {frozenset("ac"), frozenset("bd")}
    (x, y) = axes.collections[0].get_offsets()[0]
    assert (x, y) == tuple(sorted((names.index("a"), names.index("c"))))
    with pytest.raises(CamaeError, match="at most 1,000"):
        relationship_map(np.ones((1001, 2)), [str(i) for i in range(1001)])


def test_wheel_draws_every_relationship_between_its_names():
    strongest = pd.DataFrame(
        {"a": ["x", "y"], "b": ["y", "z"], "cosine": [0.9, -0.5], "known": [True, False]}
    )
    figure = relationship_wheel(strongest)
    arcs = [line for line in lines_of(figure) if len(line.get_xdata()) == 40]
    assert len(arcs) == 2
    # Drawn from weakest to strongest, so that the strongest lies on top; faint when not known.
    assert [arc.get_alpha() for arc in arcs] == [0.22, 0.85]
    np.testing.assert_allclose(arcs[1].get_xydata()[0], [1, 0], atol=1e-12)
    assert {text.get_text() for text in figure.axes[0].texts} == {"x", "y", "z"}


def test_cluster_order_puts_planted_groups_together():
    rng = np.random.default_rng(3)
    group = rng.permutation(np.repeat(np.arange(6), 5))
    vectors = np.eye(6)[group] + 0.05 * rng.standard_normal((30, 6))
    order = cluster_order(vectors @ vectors.T)
    assert sorted(order) == list(range(30))
    assert (np.diff(group[order]) != 0).sum() == 5
    assert cluster_order(np.ones((1, 1))).tolist() == [0]


def test_the_users_own_settings_stay():
    with matplotlib.rc_context({"font.size": 17}):
        recall_bars({"trained": {"value": 0.4, "se": 0.1}})
        assert matplotlib.rcParams["font.size"] == 17


def test_saved_picture_is_a_png_on_white(tmp_path):
    path = save_png(recall_bars({"trained": {"value": 0.4, "se": 0.1}}), tmp_path / "bars.png")
    picture = Image.open(path).convert("RGB")
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert [p.name for p in tmp_path.iterdir()] == ["bars.png"]


MARKED = ["$\\foo$", "_a_b$", "x^{2$", "$$", "<b>&"]


def test_fault_18_names_are_never_formulas(tmp_path):
    """A name with $ is drawn as it is, in SVG and in PNG, and axes still have plain numbers."""
    scores = {name: {"value": 0.3, "se": 0.1} for name in MARKED}
    log = [{"step": i + 1, "loss": 1 / (i + 1)} for i in range(2000)]
    shares = {"percentile": [0, 0.5, 1] * 5, "recall": [0, 0.6, 1] * 5}
    strongest = pd.DataFrame({"a": MARKED, "b": MARKED[::-1], "cosine": [0.1, 0.2, 0.3, -0.2, 0.5]})
    pictures = np.random.default_rng(0).random((2, 3, 16, 16))
    drawn = [
        relationship_map(np.random.default_rng(0).random((5, 4)), MARKED),
        recall_bars(scores),
        loss_curves(dict.fromkeys(MARKED, log)),
        recall_against_percentile(pd.DataFrame({"system": np.repeat(MARKED, 3), **shares})),
        relationship_wheel(strongest),
        reconstruction_grid(*[pictures] * 3, labels=MARKED[:2], channels=MARKED[2:]),
    ]
    for i, figure in enumerate(drawn):
        text = svg(figure, f"figure{i}")
        assert "mathdefault" not in text
        shown = [name for name in MARKED if html.escape(name, quote=False) in text]
        assert len(shown) == len(MARKED), (i, shown)
        save_png(figure, tmp_path / f"{i}.png")
