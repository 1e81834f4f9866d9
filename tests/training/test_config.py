"""Training configuration: files and arguments, checks of every setting, rows of the paper's Table 3."""

import re
import tomllib

import pytest

from camae.errors import CamaeError
from camae.model import preset
from camae.model.flops import model_flops
from camae.training.config import MAY_CHANGE_ON_RESUME, TrainConfig, options, resolve
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
    config = resolve(recipe=name)
    model = preset(config.model, **config.model_options)
    found = (model.width, model.depth, model.patch, config.mask_ratio, config.alpha, config.peak_lr)
    assert (*found, model.drop_path) == row
    assert (config.optimizer, config.betas, config.weight_decay) == ("lion", (0.9, 0.95), 0.05)
    assert (config.schedule, config.warmup, config.batch_size) == ("onecycle", 0.1, 16_384)
    assert model.decoder.cross_attention == "per_channel"  # "separate decoders for each channel"


def test_every_row_is_there():
    assert set(TABLE_3) == set(PAPER)


def test_recipes_for_small_budgets():
    fast, hour = resolve(recipe="fast-cpu"), resolve(recipe="one-gpu-hour")
    small, base = (preset(c.model, **c.model_options) for c in (fast, hour))
    assert (small.width, small.depth, small.patch, small.crop, small.layer_scale) == (96, 4, 16, 128, 1.0)
    assert (base.width, base.depth, base.patch, base.crop, base.layer_scale) == (768, 12, 16, 256, 1.0)
    assert small.decoder.local_start  # no plateau at the start
    assert base.decoder.local_start
    assert hour.passes(1) * hour.micro_batch == hour.batch_size
    assert resolve(recipe="fast-cpu", steps=7, model_options={"depth": 2}).steps == 7
    five = preset(hour.model, channels=("a", "b", "c", "d", "e"), **hour.model_options)
    flops = model_flops(five, (5,), five.mask_ratio).training * hour.steps * hour.batch_size
    # docs/beyond.md: the rate of its first steps on an H100.
    assert 0.9 < flops / 246e12 / 3600 < 1.1


def test_arguments_win_over_the_recipe_and_the_copy_repeats_it(tmp_path):
    config = resolve(
        recipe="ca_mae_vit_l8+", lr=1e-3, model_options={"crop": 128}, mask_ratio=[[0, 0.6], [1, 0.8]]
    )
    assert (config.lr, config.weight_decay) == (1e-3, 0.05)
    assert config.model_options == {"crop": 128, "drop_path": 0.3, "decoder": "paper"}
    (tmp_path / "config.toml").write_text(to_toml(config.to_dict()))
    assert resolve(tmp_path / "config.toml") == config


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
        ({"mask_ratio": [[5, 0.5], [7, 0.8]]}, "pairs (share of the run from 0 to 1, ratio) in order"),
        ({"val_every": 10}, "val_every needs val, the data that are held out"),
        ({"micro_batch": 4, "accumulate": 2}, "either it or accumulate"),
        ({"ema": 1.0}, "ema is 1.0, and must be at least 0 and below 1"),
        ({"ema_final": True}, "needs ema"),
        ({"recompute": -1}, "recompute"),
        ({"steps": "many"}, "steps is 'many', which is not of type int"),
        ({"lr": "0.1"}, "lr is '0.1', which is not of type float | None"),
        ({"betas": [0.9]}, "betas is (0.9,), which is not of type tuple"),
        ({"channels": "DNA"}, "channels is 'DNA'"),
        ({"model_options": 3}, "model_options is 3, which is not of type dict"),
        ({"recipe": "ca_mae_vit_b16", "model_options": 3}, "model_options is 3"),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence):
    with pytest.raises(CamaeError, match=re.escape(sentence)):
        resolve(**settings)


# The resolved copy of a run of version 0.1, as it was written.
OLD = """recipe = "ca_mae_vit_l16+"
model = "ca_mae_vit_l16"
channels = []
steps = 200
batch_size = 16384
accumulate = 1
micro_batch = 64
optimizer = "lion"
lr = 3e-05
betas = [0.9, 0.95]
weight_decay = 0.05
schedule = "onecycle"
warmup = 0.1
clip = 1.0
mask_ratio = 0.85
alpha = 0.01
recompute = 0
recompute_selective = false
ema = 0.0
ema_final = false
seed = 0
val_every = 0
freeze = []
augment = true
parallel = "ddp"
checkpoint_every = 1000
checkpoint_minutes = 30.0
keep_checkpoints = 2
spike = 5.0
rollback_after = 10
max_bad_share = 0.0
detail_every = 50
picture_every = 0
workers = 1
tensorboard = false

[model_options]
drop_path = 0.3
decoder = "paper"

[probe]
"""


def test_files_of_earlier_versions_load(tmp_path):
    (tmp_path / "config.toml").write_text(OLD)
    config = resolve(tmp_path / "config.toml")
    assert config == resolve(recipe="ca_mae_vit_l16+", steps=200)
    # Settings that came later stand beside those of the file, at their defaults.
    later = {"mask_channels": 0.0, "teacher_weight": 1.0, "cross_well": 0.0, "cross_well_group": 16}
    later |= {"cross_well_label": "Metadata_Perturbation", "cross_well_prototypes": 64}
    assert tomllib.loads(to_toml(config.to_dict())) == tomllib.loads(OLD) | later


def test_every_option_has_a_type_a_default_and_a_text():
    listed = {option.name: option for option in options()}
    assert listed["steps"] == ("steps", "int", 10_000, "optimizer steps")
    assert listed["probe"].default == {}
    assert all(
        (option.help and not option.help.endswith(".")) or "..." in option.help for option in listed.values()
    )
    assert listed.keys() > MAY_CHANGE_ON_RESUME
    assert TrainConfig(**{name: option.default for name, option in listed.items()}) == TrainConfig()
