"""`camae evaluate`: options as in Python, and a word among numbers refused."""

from dataclasses import fields

import pytest
import typer

from camae.cli import app
from camae.cli.options import _numbers
from camae.errors import CamaeError
from camae.evaluate import ChannelsConfig, EvaluateConfig


@pytest.mark.parametrize(("name", "config"), [("layers", EvaluateConfig), ("channels", ChannelsConfig)])
def test_options_are_those_of_python(name, config):
    command = typer.main.get_command(app).commands["evaluate"].commands[name]
    assert {p.name for p in command.params} == {"data", "model", "out"} | {f.name for f in fields(config)}


@pytest.mark.parametrize(
    ("given", "value"), [(["best"], "best"), (["-1", "2"], (-1, 2)), (["3"], (3,)), ([], None), (None, None)]
)
def test_layers_are_numbers_or_one_word(given, value):
    assert _numbers("layers", given) == value


def test_a_word_among_numbers_is_refused():
    with pytest.raises(CamaeError, match="--layers best: give one word alone, or numbers"):
        _numbers("layers", ["1", "best"])


def test_a_screen_that_cannot_be_scored_is_one_sentence(shell, screen, model_file, tmp_path):
    code, _, err = shell(
        "evaluate",
        "layers",
        screen,
        "--model",
        model_file,
        "--out",
        tmp_path / "o",
        "--quiet",
        "--device",
        "cpu",
    )
    assert code == 2
    assert "perturbations have replicates on two plates, and 4 are needed" in err
