"""Presets: the paper's parameter counts, exact by the closed formula and within 3 % of its rounded figures."""

import pytest

from camae.errors import CamaeError
from camae.model.config import PRESETS, ModelConfig, encoder_parameters, preset
from camae.model.encoder import Encoder

PAPER_MILLIONS = {"ca_mae_vit_s16": 22, "ca_mae_vit_b16": 86, "ca_mae_vit_l16": 304}  # section 4.2


@pytest.mark.parametrize("name", ["ca_mae_vit_ti16", "ca_mae_vit_ti8", "ca_mae_vit_s16"])
@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_formula_equals_the_built_encoder(name, block):
    config = preset(name, block=block)
    assert sum(p.numel() for p in Encoder(config).parameters()) == encoder_parameters(config)


@pytest.mark.parametrize(("name", "millions"), PAPER_MILLIONS.items())
def test_paper_counts(name, millions):
    assert encoder_parameters(PRESETS[name]) == pytest.approx(millions * 1e6, rel=0.03)


def test_sizes_and_patches_are_all_there():
    assert set(PRESETS) == {f"ca_mae_vit_{s}{p}" for s in ("ti", "s", "b", "l") for p in (8, 16)}
    assert PRESETS["ca_mae_vit_l16"].mask_ratio == 0.85  # section 4.2.2


def test_config_survives_json():
    config = preset("ca_mae_vit_s8", channels=["DNA", "ER"], decoder="small")
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"crop": 100}, "not a multiple of the patch"),
        ({"heads": 5}, "not a multiple of heads"),
        ({"channels": ["a", "a"]}, "repeat"),
        ({"color": 1}, "unknown model settings"),
        ({"decoder": {"color": 1}}, "unknown decoder settings"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
    ],
)
def test_bad_configurations_are_one_sentence(changes, sentence):
    with pytest.raises(CamaeError, match=sentence):
        preset("ca_mae_vit_s16", **changes)


def test_unknown_preset_lists_the_known():
    with pytest.raises(CamaeError, match="ca_mae_vit_ti16"):
        preset("vit_huge")
