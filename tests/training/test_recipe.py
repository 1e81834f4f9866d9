"""Recipes of the paper's Table 3, batches from passes, and mask ratios that differ by step."""

import pytest

from camae.errors import CamaeError
from camae.model import preset
from camae.training.config import resolve
from camae.training.optimization import mask_ratio_at
from camae.training.recipes import TABLE_3
from camae.training.toml_file import to_toml

# Paper: section 4.2.2 (mask ratios), Eq. 3 and Table 3 ("+" is alpha 0.01); Lion's settings as published with it.
PAPER = {
    "ca_mae_vit_b16": (768, 12, 16, 0.75, 0.0, 1e-4, 0.1),
    "ca_mae_vit_b16+": (768, 12, 16, 0.75, 0.01, 1e-4, 0.1),
    "ca_mae_vit_l16+": (1024, 24, 16, 0.85, 0.01, 3e-5, 0.3),
    "ca_mae_vit_l8+": (1024, 24, 8, 0.85, 0.01, 3e-5, 0.3),
}


@pytest.mark.parametrize(("name", "row"), PAPER.items())
def test_rows_of_table_3(name, row):
    recipe = resolve(recipe=name)
    model = preset(recipe.model, **recipe.model_options)
    found = (model.width, model.depth, model.patch, recipe.mask_ratio, recipe.alpha, recipe.peak_lr)
    assert (*found, model.drop_path) == row
    assert (recipe.optimizer, recipe.betas, recipe.weight_decay) == ("lion", (0.9, 0.95), 0.05)
    assert (recipe.schedule, recipe.warmup, recipe.batch_size) == ("onecycle", 0.1, 16_384)
    assert model.decoder.cross_attention == "per_channel"  # "separate decoders for each channel"


def test_every_row_is_there():
    assert set(TABLE_3) == set(PAPER)


def test_arguments_win_over_the_recipe_and_the_copy_repeats_it(tmp_path):
    recipe = resolve(
        recipe="ca_mae_vit_l8+", lr=1e-3, model_options={"crop": 128}, mask_ratio=[[0, 0.6], [1, 0.8]]
    )
    assert (recipe.lr, recipe.weight_decay) == (1e-3, 0.05)
    assert recipe.model_options == {"crop": 128, "drop_path": 0.3, "decoder": "paper"}
    (tmp_path / "config.toml").write_text(to_toml(recipe.to_dict()))
    assert resolve(tmp_path / "config.toml") == recipe


@pytest.mark.parametrize(("ranks", "passes"), [(1, 256), (8, 32), (256, 1)])
def test_passes_give_the_global_batch(ranks, passes):
    assert resolve(recipe="ca_mae_vit_b16").passes(ranks) == passes


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(CamaeError, match="not a multiple of 192 crops, 3 ranks with micro_batch 64"):
        resolve(recipe="ca_mae_vit_b16").passes(3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"recipe": "mae"}, "there is no recipe 'mae'; recipes are ca_mae_vit_b16"),
        ({"mask_ratio": [0.5, 1.0]}, "mask_ratio"),
        ({"mask_ratio": [[0.5, 0.6], [0.2, 0.7]]}, "mask_ratio"),
        ({"micro_batch": 4, "accumulate": 2}, "either it or accumulate"),
        ({"ema": 1.0}, "not a decay"),
        ({"ema_final": True}, "needs ema"),
        ({"recompute": -1}, "recompute"),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence):
    with pytest.raises(CamaeError, match=sentence):
        resolve(**settings)


def test_mask_ratio_by_step():
    assert mask_ratio_at(7, 10, 0.75) == 0.75
    assert [mask_ratio_at(s, 10, (0.75, 0.85)) for s in range(4)] == [0.75, 0.85, 0.75, 0.85]
    ramp = ((0.2, 0.6), (0.6, 0.8))
    # 11 steps: step s is at share s / 10; on the line 0.6 + 0.2 * (share - 0.2) / 0.4
    assert [mask_ratio_at(s, 11, ramp) for s in (0, 2, 4, 6, 10)] == pytest.approx([0.6, 0.6, 0.7, 0.8, 0.8])
