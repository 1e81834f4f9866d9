"""Typed settings: every option of every configuration against values of wrong types and out of range."""

import math
from dataclasses import fields

import pytest

from camae.errors import CamaeError
from camae.model.config import DecoderConfig, ModelConfig
from camae.reproduction.systems.mae_vit import ImageViTConfig
from camae.reproduction.systems.mu_net import MUNetConfig
from camae.reproduction.systems.wsl_densenet import DenseNetConfig
from camae.training.config import TrainConfig
from camae.training.evaluation import Probe
from camae.typed_settings import Limits, limits_of, option

WRONG = [
    True, 3, -1, 0, 10**6, 10**30, 10**5000, 0.5, -0.5, math.nan, math.inf, -math.inf, 1e300, "", "48", "abc", "a\0b",
    "\ud800", b"x", None, (), (1,), (1, 2), ("a",), ("a", 2), (math.nan, 1.0), (True, False), ((0.0, 0.5), 0.5), [], {},
    {"a": 1}, {1: "a"}, object(), float, tuple(map(str, range(10**5))),
]  # fmt: skip


def configurations():
    """(class, arguments that make one, name of an option) of everything that has settings."""
    made = {
        TrainConfig: {},
        ModelConfig: {},
        DecoderConfig: {},
        ImageViTConfig: {},
        MUNetConfig: {},
        DenseNetConfig: {},
        Probe: {"data": "x"},
    }
    for kind, needed in made.items():
        for f in fields(kind):
            yield pytest.param(kind, needed, f.name, id=f"{kind.__name__}.{f.name}")


def build(kind, values):
    """A configuration; a decoder's within a model's, which checks it."""
    return ModelConfig(decoder=DecoderConfig(**values)) if kind is DecoderConfig else kind(**values)


@pytest.mark.parametrize(("kind", "needed", "name"), list(configurations()))
def test_fault_17_every_option_takes_its_values_or_says_one_sentence(kind, needed, name):
    """Whatever the value: a configuration, or a CamaeError of one sentence; never another exception, NaN or a bool."""
    for value in WRONG:
        try:
            made = build(kind, needed | {name: value})
        except CamaeError as error:
            text = str(error)
            assert text, (name, value)
            assert "\n" not in text
            assert not text.endswith(".")
            assert len(text) < 5000
            continue
        kept = getattr(made.decoder if kind is DecoderConfig else made, name)
        numbers = kept if isinstance(kept, tuple) else (kept,)
        assert all(math.isfinite(n) for n in numbers if isinstance(n, (int, float))), (name, value)
        if isinstance(value, bool):
            assert "bool" in str(next(f.type for f in fields(kind) if f.name == name)) or name == "data", name


def outside(limits):
    """Values just outside of what a setting may be."""
    if limits.low is not None:
        yield limits.low - 1
    if limits.high is not None:
        yield limits.high * 2 + 1
    if limits.above is not None:
        yield limits.above
    if limits.below is not None:
        yield limits.below


@pytest.mark.parametrize(("kind", "needed", "name"), list(configurations()))
def test_fault_17_out_of_range(kind, needed, name):
    """Every number has a range; a value just beyond names the setting."""
    limits = limits_of(kind)[name]
    declared = str(next(f.type for f in fields(kind) if f.name == name))
    if ("int" in declared or "float" in declared) and name not in ("mask_ratio", "value_range"):
        assert list(outside(limits)), f"{kind.__name__}.{name} is a number without a range"
    for value in outside(limits):
        given = value if "float" in declared else int(value)
        given = (given, given) if declared.startswith("tuple[float, float]") else given
        given = (given,) if declared.startswith("tuple[int") else given
        with pytest.raises(CamaeError, match=name):
            build(kind, needed | {name: given})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clip": -1.0}, "clip is -1.0, and must be at least 0"),
        ({"clip": -1}, "clip is -1, and must be at least 0"),
        ({"lr": math.inf}, "lr is inf; a number must be finite"),
        ({"lr": math.nan}, "lr is nan; a number must be finite"),
        ({"lr": -1e-3}, "lr is -0.001, and must be above 0"),
        ({"lr": "abc"}, "lr is 'abc', which is not of type float | None"),
        ({"alpha": 2.0}, "alpha is 2.0, and must be at least 0 and below 1"),
        ({"betas": 3}, "betas is 3, which is not of type tuple"),
        ({"betas": (0.9, 1.0)}, "betas is .*, and must be at least 0 and below 1"),
        ({"workers": 0}, "workers is 0, and must be at least 1"),
        ({"steps": True}, "steps is True, which is not of type int"),
        ({"val": "well"}, "use 'plate', 'experiment'"),
        ({"value_range": (1.0, 0.0)}, "value_range"),
        ({"device": "gpu"}, "device 'gpu' is not 'cpu', 'cuda'"),
        ({"reader": "cv2"}, "reader is 'cv2', which is not 'native', 'tifffile' or 'dali'"),
        ({"channels": ("a", "a")}, "a name occurs twice"),
        ({"mask_ratio": (0.5, (0.1, 0.5))}, "mask_ratio"),
    ],
)
def test_fault_17_training_settings(settings, sentence):
    with pytest.raises(CamaeError, match=sentence):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"drop_path": 5}, "drop_path is 5, and must be at least 0 and below 1"),
        ({"norm_eps": math.nan}, "norm_eps is nan; a number must be finite"),
        ({"heads": 0}, "heads is 0, and must be at least 1"),
        ({"patch": -16}, "patch is -16, and must be at least 1"),
        ({"width": "48"}, "width is '48', which is not of type int"),
        ({"depth": 10**9}, "depth is 1000000000, and must be at least 1 and at most 1,000"),
        (
            {"channels": tuple(map(str, range(10**6)))},
            "channels has 1,000,000 items, and may have at most 4,096",
        ),
        ({"crop": 2**15, "patch": 1}, "a table of .* positions"),
        ({"decoder": DecoderConfig(depth=-1)}, "decoder.depth is -1"),
        ({"decoder": DecoderConfig(cross_attention="all")}, "decoder.cross_attention is 'all', which is not"),
    ],
)
def test_fault_17_model_settings(settings, sentence):
    with pytest.raises(CamaeError, match=sentence):
        ModelConfig(**settings)


def test_limits_in_words():
    assert str(Limits(low=0, below=1)) == "at least 0 and below 1"
    assert str(Limits(choices=("a", "b", "c"))) == "'a', 'b' or 'c'"
    assert str(Limits(high=10**6)) == "at most 1,000,000"


def test_an_option_without_limits_takes_all():
    made = option(1, "text")
    assert made.metadata["limits"] == Limits()
