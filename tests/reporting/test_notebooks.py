"""What a notebook shows of runs, models, manifests, maps and figures, and how progress is shown in it."""

import io
import warnings
from html import escape

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from camae.dataloader import read_manifest
from camae.errors import CamaeError
from camae.inference.bag_of_channels import BagOfChannels
from camae.maps import ScreenMap
from camae.model import CAMAE, preset
from camae.model.registry import build
from camae.progress import is_live
from camae.reporting.figures import loss_curves
from camae.training import Run

SMALL = {"width": 32, "heads": 2, "depth": 2, "crop": 32, "patch": 8}
SMALL |= {"decoder": {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}}


@pytest.fixture
def model():
    return CAMAE(preset("ca_mae_vit_ti16", channels=("DNA", "<ER>"), **SMALL)).eval()


@pytest.fixture
def run(model, tmp_path):
    history = [{"step": i, "loss": 1 / i, "mse": 1 / i, "crops_per_second": 10.0} for i in range(1, 41)]
    history[-1]["val_loss"] = 0.03125
    return Run(tmp_path / "<a>", model, history)


def drawn(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("L"))


def test_a_run_says_its_last_numbers(run):
    assert repr(run) == (
        f"Run({str(run.path)!r}: model ca_mae_vit_ti16, step 40, loss 0.025, held-out loss 0.03125, crops/s 10)"
    )
    shown = run._repr_html_()
    assert "&lt;a&gt;" in shown
    assert "<a>" not in shown
    assert "<tr><th>held-out loss</th><td>0.03125</td></tr>" in shown
    assert shown.count("data:image/png;base64,") == 1


def test_curves_of_a_run_and_of_several(run, model, tmp_path):
    (axes,) = run.curves().axes
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["<a>"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [row["loss"] for row in run.history])
    other = Run(tmp_path / "b" / "<a>", model, run.history[:20])
    (axes,) = run.curves(other, y="mse").axes
    assert [t.get_text() for t in axes.figure.legends[0].get_texts()] == [str(run.path), str(other.path)]
    assert (drawn(run.curves()._repr_png_()) < 128).any()


def test_a_run_without_a_logged_step_has_no_curve(model, tmp_path):
    run = Run(tmp_path / "a", model, [])
    assert repr(run) == f"Run({str(run.path)!r}: model ca_mae_vit_ti16)"
    assert "data:image" not in run._repr_html_()
    with pytest.raises(CamaeError, match="the run has no logged step, so it has no curve"):
        run.curves()
    with pytest.raises(CamaeError, match="has no columns step and loss"):
        loss_curves({"x": [{"step": 1}]})


def test_a_model_is_one_line(model):
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert repr(model) == (
        "CAMAE(ca_mae_vit_ti16: 32 x 2, patch 8, crop 32 px, channels [DNA, <ER>], "
        f"{count:,.1f} M parameters, cpu, eval)"
    )
    assert repr(model.train()).endswith("cpu, training)")
    model.origin = {
        "repository": "a/b",
        "revision": "main",
        "commit": "c" * 40,
        "file": "x",
        "sha256": "d" * 64,
    }
    assert f", from hf://a/b@{'c' * 40}/x)" in repr(model)
    assert repr(BagOfChannels(model)).startswith("BagOfChannels(ca_mae_vit_ti16 (bag of channels): ")
    many = build("mae_vit_ti16", channels=tuple(map(str, range(20))), crop=32)
    assert "channels [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...]" in repr(many)


def test_a_manifest_counts_plates_wells_and_perturbations(screen):
    manifest = read_manifest(screen)
    assert repr(manifest) == (
        "Manifest(8 sites, 2 plates, 8 wells, 3 perturbations, channels=['DNA', 'ER', 'Mito'], "
        f"root={str(screen.parent)!r})"
    )
    shown = manifest._repr_html_()
    assert "8 sites, 2 plates" in shown
    assert shown.count("<tr") == 1 + 5
    manifest.left_out.add("file", "<x>.tif", "no image")
    (line,) = manifest.left_out.lines()
    assert escape(line) in manifest._repr_html_()


def test_a_map_says_its_size_and_first_names():
    found = ScreenMap(np.eye(7), np.array([f"g{i}" for i in range(7)]), {"components": 3})
    assert repr(found) == "ScreenMap(7 perturbations [g0, g1, g2, g3, g4, ...] in 7 dimensions, components=3)"


def test_a_notebook_without_ipywidgets_gets_plain_lines(monkeypatch):
    """Rich would show nothing there but a warning."""
    console = Console(force_jupyter=True)
    monkeypatch.setattr("camae.progress.find_spec", lambda name: None)
    assert not is_live(console)
    monkeypatch.setattr("camae.progress.find_spec", lambda name: object())
    assert is_live(console)
    assert not is_live(Console(file=io.StringIO()))
    assert is_live(Console(force_terminal=True))


def test_shown_objects_touch_no_global_state(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run._repr_html_()
    import matplotlib

    assert matplotlib.rcParams["svg.fonttype"] == matplotlib.rcParamsDefault["svg.fonttype"]
