"""The report page: self-contained, complete, honest about what is missing, clear about what is damaged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import camae
from camae.errors import CamaeError, MissingFileError
from camae.reporting.html import table
from camae.reporting.run_folder import RunFolder, last_tenth

VOID = {"meta", "img", "br", "hr", "link", "input"}


class WellFormed(HTMLParser):
    """Every opened element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(path):
    parser = WellFormed()
    parser.feed(path.read_text())
    assert parser.open == []
    return re.sub(r"\s+", " ", " ".join(parser.texts))


def test_a_complete_run_gives_every_section_and_number(complete_page):
    assert (complete_page.name, complete_page.parent.name) == ("report.html", "my-run")
    text = parsed(complete_page)
    for part in ("Known relationships", "Map", "Reconstructions", "Training", "What was run"):
        assert part in text
    for value in (
        "0.400 ± 0.020",
        "2.5 standard errors",
        "10.0 points more",
        "7.2 min",
        "1,234,567",
        "2.13.0",
    ):
        assert value in text
    assert "Not shown" not in text
    html = complete_page.read_text()
    assert html.count("<svg") == 5
    assert html.count("data:image/png;base64,") >= 1
    assert "gene&lt;0&gt;" in html
    assert "gene<0>" not in html


def test_the_page_needs_no_network(complete_page):
    html = complete_page.read_text()
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html) + re.findall(r"url\(([^)]*)\)", html)
    assert addresses
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert "<script" not in html
    assert "@import" not in html


def test_ids_of_different_figures_do_not_clash(complete_page):
    html = complete_page.read_text()
    clips = re.findall(r'<clipPath id="([^"]+)"', html)
    assert len(clips) == len(set(clips))


@pytest.mark.parametrize(
    ("piece", "line"),
    [
        ("recall_curves.csv", "recall against percentile"),
        ("map.parquet", "the map of perturbations"),
        ("relationships.csv", "the strongest relationships"),
        ("models/seed-0/reconstructions.npz", "reconstructions"),
        ("models/seed-0/log.jsonl", "loss curves"),
        ("summary.json", "recall of known relationships"),
    ],
)
def test_a_missing_piece_is_named_in_its_place(run_folder, piece, line):
    (run_folder / piece).unlink()
    assert f"Not shown: {line}" in parsed(camae.report(run_folder))


def log_of(folder, losses, **record):
    folder.mkdir(parents=True)
    rows = [{"step": i + 1, "loss": loss, "crops_per_second": 60.8} for i, loss in enumerate(losses)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"model": record}))
    return folder


def test_several_runs_stand_one_below_the_other_each_with_its_name_and_channels(run_folder, tmp_path):
    other = log_of(tmp_path / "other-run", [2.0, 1.0], name="ca_mae_vit_s16", channels=["DNA", "Mito"])
    page = camae.report([run_folder, other], tmp_path / "both.html", title="Two runs")
    text = parsed(page)
    assert page.name == "both.html"
    assert "Two runs 2 runs Known relationships" in text
    assert "my-run seed-0" in text
    lead = text[: text.index("Not shown")] if "Not shown" in text else text
    first, second = (
        lead.index("wells embedded"),
        lead.index("other-run ca_mae_vit_s16 · DNA, Mito 60.8 training"),
    )
    assert lead.index("my-run") < first < second


def test_runs_of_one_folder_name_are_named_with_the_folder_above(tmp_path):
    folders = [log_of(tmp_path / name / "run", [3.0, value]) for name, value in (("a", 2.0), ("b", 1.0))]
    text = parsed(camae.report(folders, tmp_path / "both.html"))
    assert "camae report: a/run, b/run" in text
    assert "a/run 2 3.0000 2.0000" in text.replace("  ", " ")
    assert "b/run 2 3.0000 1.0000" in text.replace("  ", " ")


def test_the_last_loss_is_the_last_row_and_the_mean_over_the_last_tenth_says_so(tmp_path):
    """The last row is what the console shows; the mean is that of `camae runs compare`."""
    run = log_of(tmp_path / "run", [1.0] * 18 + [0.5, 0.25])
    text = parsed(camae.report(run))
    assert "first loss last loss mean loss of the last tenth" in text
    assert "1.0000 0.2500 0.3750" in text
    compared = RunFolder.open(run).logs["run"]
    assert len(last_tenth(compared)) == 2
    assert len(last_tenth(compared.head(3))) == 1


def test_wide_tables_break_text_and_paths_but_no_number():
    shown = table(["a", "b"], [["runs/ca_mae_vit_b16_plus", "0.1 ± 0.2"], ["CA-MAE ViT-B/16", "x"]])
    assert "runs/<wbr>ca_<wbr>mae_<wbr>vit_<wbr>b16_<wbr>plus" in shown
    assert "0.1\u00a0±\u00a00.2" in shown
    assert "CA-MAE ViT-B/16" in shown


def test_a_folder_without_a_run_and_damaged_files_are_refused(run_folder, tmp_path):
    with pytest.raises(MissingFileError, match="no such run folder"):
        camae.report(tmp_path / "nowhere")
    with pytest.raises(CamaeError, match="no run to report"):
        camae.report(tmp_path)
    with pytest.raises(CamaeError, match="at least one run folder"):
        camae.report([])
    damages = {
        "summary.json": '{"recall": ',
        "recall_curves.csv": "system,recall\na,1\n",
        "models/seed-0/reconstructions.npz": "PK",
    }
    for name, content in damages.items():
        whole = (run_folder / name).read_bytes()
        (run_folder / name).write_text(content)
        with pytest.raises(CamaeError, match=re.escape(name)):
            camae.report(run_folder)
        (run_folder / name).write_bytes(whole)
    assert not (run_folder / "report.html").exists()


def test_reporting_needs_neither_torch_nor_a_display(run_folder):
    code = (
        "import sys, camae; camae.report(sys.argv[1]); assert callable(camae.report);"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run_folder)], check=True)


def test_fault_09_names_of_a_run_folder_stay_text(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "relationships.csv").write_text("a,b,cosine,known\nNA,nan,0.5,True\nNULL,None,-0.25,False\n")
    run = RunFolder.open(tmp_path)
    assert run.relationships.to_dict("list") == {
        "a": ["NA", "NULL"],
        "b": ["nan", "None"],
        "cosine": [0.5, -0.25],
        "known": [True, False],
    }
    assert run.known_pairs == [("NA", "nan")]
    (tmp_path / "pairs.csv").write_text("entity1,entity2\nNA,nan\n")
    assert RunFolder.open(tmp_path).known_pairs == [("NA", "nan")]
    (tmp_path / "relationships.csv").write_text("a,b,cosine\nNA,nan,much\n")
    with pytest.raises(
        CamaeError, match=r"relationships.csv, line 2, column 'cosine': 'much' is not a number"
    ):
        _ = RunFolder.open(tmp_path).relationships


def test_runs_and_titles_of_another_kind(tmp_path):
    for run in (None, 3):
        with pytest.raises(
            CamaeError, match=f"run is a value of type {type(run).__name__}; give a run folder"
        ):
            camae.report(run)
    with pytest.raises(CamaeError, match="title is a value of type int; give a text"):
        camae.report(tmp_path, title=3)
