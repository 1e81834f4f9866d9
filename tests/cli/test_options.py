"""Options of the commands: the same names and defaults as in Python, and text of users printed as it is."""

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest
import typer.main
from typer.testing import CliRunner

import camae
from camae.cli import app, console
from camae.cli.settings import parse_names, parse_settings
from camae.embedding import EmbedConfig
from camae.embedding.config import EmbedOptions, ReadOptions
from camae.errors import CamaeError


def options_of(command):
    """Name -> default of a command's options and arguments."""
    parameters = typer.main.get_command(app).commands[command].params
    return {p.name: p.default for p in parameters}


def test_embed_has_the_options_of_the_configuration():
    config = {f.name: f.default for f in fields(EmbedConfig)}
    shell = options_of("embed")
    for argument in ("data", "model", "out"):
        del shell[argument]
    assert set(shell) == set(config)
    assert {name: shell[name] or () if config[name] == () else shell[name] for name in config} == config


def test_python_s_keywords_are_the_options_of_the_configuration():
    names = {f.name for f in fields(EmbedConfig)}
    # By name: the keywords' types are those of Python users, whose modules the configuration does not import.
    assert set(EmbedOptions.__annotations__) == names | {"tile"}
    signature = inspect.signature(camae.embed).parameters
    own = {"images", "channels", "model", "region", "region_size", "tile"}
    assert set(signature) - own < names
    for name in set(signature) - own:
        assert signature[name].default == getattr(EmbedConfig, name), name


def test_every_option_has_a_help_text():
    for field in fields(EmbedConfig):
        text = field.metadata["help"]
        assert text[0] != text[0].upper() or text.startswith(("'", "CPU", "GPU", "Ray")), text
        assert not text.endswith("."), text
    assert set(get_type_hints(EmbedConfig)) == {f.name for f in fields(EmbedConfig)}


def test_train_has_the_named_options_of_python():
    python = set(inspect.signature(camae.train).parameters)
    assert set(options_of("train")) == python | {"reader"}  # a setting that has an option of its own


class Called(Exception):
    """The configuration that a command made."""


@pytest.fixture
def embed_config(monkeypatch):
    """embed_config(*arguments): what `camae embed` hands to Python."""

    def embed_screen(data, model, out, *, config):
        raise Called(config)

    monkeypatch.setattr(camae, "embed_screen", embed_screen, raising=False)
    monkeypatch.setattr(ReadOptions, "read", lambda self, data: data)

    def run(*arguments):
        result = CliRunner().invoke(app, ["embed", "screen", "--out", "emb", *arguments])
        assert isinstance(result.exception, Called), result.output
        return result.exception.args[0]

    return run


@pytest.mark.parametrize(
    "form", [["--value-range", "-1", "2.5"], ["--value-range", "-1,2.5"], ["--value-range=-1,2.5"]]
)
def test_value_range_in_every_form(embed_config, form):
    assert embed_config(*form, "--reader", "tifffile") == EmbedConfig(
        value_range=(-1.0, 2.5), reader="tifffile"
    )


def test_options_become_the_configuration(embed_config):
    assert embed_config() == EmbedConfig()
    assert embed_config("--tile", "center", "--layers", "0", "--layers", "-1") == EmbedConfig(
        tiles="center", layers=(0, -1)
    )
    got = embed_config("--bag-of-channels", "--linear", "bfloat16", "--quiet", "--threads", "3")
    assert got == EmbedConfig(bag_of_channels=True, linear="bfloat16", quiet=True, threads=3)


def test_text_is_never_markup(capsys):
    names = "x[red].tif camae[gpu] no[/such] [bold]"
    console.say(names)
    console.say_error(CamaeError(names))
    console.show_warning(UserWarning(names + "!"), UserWarning, "", 0)
    console.show_warning(UserWarning(names + "!"), UserWarning, "", 0)
    console.say_table([["a", names]], ["channel [x]", "path"], title="[t]")
    said = capsys.readouterr()
    assert said.out.count(names) == 2
    assert "channel [x]" in said.out
    assert said.err == f"error: {names}\nnote: {names}!\n"


def test_a_copy_command_with_brackets_is_printed_whole(screen, tmp_path):
    table = screen.read_text().replace("P1_A01_DNA.tif", "P1_[red]A01_DNA.tif")
    screen.write_text(table)
    result = CliRunner().invoke(app, ["data", "check", str(screen)], env={"COLUMNS": "400"})
    assert result.exit_code == 1
    assert "P1_[red]A01_DNA.tif" in result.output


def test_settings():
    got = parse_settings(["lr=3e-4", "a.b=[1, 2]", "a.c=word", "pattern=(?P<x>=)"])
    assert got == {"lr": 3e-4, "a": {"b": [1, 2], "c": "word"}, "pattern": "(?P<x>=)"}
    assert parse_settings(["value_range=0,1", "freeze=a,b"]) == {"value_range": [0, 1], "freeze": "a,b"}
    assert parse_names(["w1=1"], "--channel-map") == {"w1": "1"}
    with pytest.raises(CamaeError, match="--set a: write it as name=value"):
        parse_settings(["a"])
    with pytest.raises(CamaeError, match="a has a value already"):
        parse_settings(["a=1", "a.b=2"])
    with pytest.raises(CamaeError, match="--channel-map w1: write it"):
        parse_names(["w1"], "--channel-map")
