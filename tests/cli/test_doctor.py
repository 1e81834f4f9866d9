"""`camae doctor`: back-ends of every op, and codecs, as text and as JSON."""

import json

from typer.testing import CliRunner

from camae.cli import app
from camae.cli.doctor import examine


def doctor(*arguments):
    result = CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.output


def test_doctor_names_back_ends():
    said = doctor()
    codecs = ("uncompressed", "LZW", "PackBits", "deflate", "zstd")
    for word in ("torch", "tokenize", "reconstruction_loss", "varlen_attention", "reference", *codecs):
        assert word in said


def test_json_is_what_examine_finds():
    assert json.loads(doctor("--json")) == examine()
