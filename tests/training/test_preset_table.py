"""`camae models`: its numbers against models that were built, the bench's own formulas, and the memory plan."""

import json

import pytest
import torch
from typer.testing import CliRunner

from camae.cli import app
from camae.embedding.encode import bytes_per_token
from camae.errors import CamaeError
from camae.model import CAMAE, PRESETS, preset
from camae.training.preset_table import preset_table


@pytest.mark.parametrize("channels", [1, 5])
def test_parameters_are_those_of_a_model(channels):
    for row in preset_table(channels).itertuples():
        with torch.device("meta"):
            model = CAMAE(preset(row.preset, channels=tuple(map(str, range(channels)))))
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert row.encoder_parameters == sum(p.numel() for p in model.encoder.parameters())


def test_tokens_and_flops_are_those_of_the_floors(bench_module):
    floors = bench_module("floors")
    table = preset_table(6).set_index("preset")
    assert list(table.index) == list(PRESETS)
    for name, c in PRESETS.items():
        embedded = floors.Shape(name, c.width, c.depth, c.patch, 0.0)
        masked = floors.Shape(name, c.width, c.depth, c.patch, c.mask_ratio)
        assert table.embed_tokens[name] == embedded.tokens
        assert table.train_tokens[name] == masked.tokens
        # The floors give the class token a projection too: one token of many.
        assert table.embed_flops[name] == pytest.approx(floors.encoder_flops(embedded), rel=1e-4)
        assert table.train_flops[name] > 3 * floors.encoder_flops(masked) * (1 - 1e-2)


def test_memory_is_what_the_passes_are_planned_with():
    table = preset_table(3).set_index("preset")
    for name, c in PRESETS.items():
        assert table.embed_bytes[name] == (3 * c.n_patches + 1) * bytes_per_token(c)
    twice = preset_table(6).set_index("preset")
    assert twice.train_bytes.to_numpy() == pytest.approx(2 * table.train_bytes.to_numpy(), rel=0.02)


@pytest.mark.parametrize("channels", [0, -1, 4097])
def test_a_number_of_channels_that_cannot_be_is_refused(channels):
    with pytest.raises(CamaeError, match=rf"channels {channels}: give a number from 1 to 4,096"):
        preset_table(channels)


def test_the_shell_lists_every_preset_whole_on_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["models", "--channels", "3"])
    assert result.exit_code == 0, result.output
    for name in PRESETS:
        assert result.output.count(f"{name} ") == 3
    assert "for crops of 3 x 256 x 256 px" in result.output
    rows = json.loads(CliRunner().invoke(app, ["models", "--json"]).output)
    assert rows == json.loads(preset_table(6).to_json(orient="records"))
