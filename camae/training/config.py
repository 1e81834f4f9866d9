"""Training configuration: every setting of a run besides its data, from arguments or a TOML file."""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from camae.errors import CamaeError
from camae.training.recipes import MODEL_OPTIONS, TABLE_3
from camae.training.toml_file import read_toml

T = TypeVar("T")
Check = tuple[bool, str]

# One ratio; ratios to cycle through, one a step; or pairs (share of the run, ratio) joined by straight lines.
MaskSchedule = float | tuple[float, ...] | tuple[tuple[float, float], ...]


def option(default: T, help: str) -> T:
    """A field with a default and the text that the shell and the docs show."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """Training configuration. The defaults are the paper's (Lion, one-cycle schedule, weight decay 0.05).

    Raises CamaeError for a value of the wrong type or out of range. `options` lists the fields with their text.
    """

    recipe: str | None = option(
        None,
        "row of the paper's Table 3 whose settings the others change: a name of "
        "`camae.training.recipes.TABLE_3`",
    )
    model: str = option("ca_mae_vit_b16", "preset name of the model")
    model_options: dict[str, object] = field(
        default_factory=dict,
        metadata={
            "help": "fields of the model's configuration to change: crop, depth, decoder = 'small' ..."
        },
    )
    channels: tuple[str, ...] = option((), "channels that get a decoder; empty for those of the data")
    steps: int = option(10_000, "optimizer steps")
    batch_size: int = option(64, "crops per optimizer step, over all ranks")
    accumulate: int = option(1, "passes of every rank that an optimizer step adds up")
    micro_batch: int | None = option(None, "crops of one pass of a rank; instead of `accumulate`")
    optimizer: str = option("lion", "optimizer, 'lion' or 'adamw'")
    lr: float | None = option(
        None,
        "peak learning rate; None is 1e-4, and 3e-5 for ViT-L (the paper's, for Lion)",
    )
    betas: tuple[float, float] = option((0.9, 0.95), "momentum coefficients of the optimizer")
    weight_decay: float = option(
        0.05,
        "decoupled weight decay of matrices; biases, norms and tokens have none",
    )
    schedule: str = option("onecycle", "learning-rate schedule, 'onecycle', 'cosine' or 'constant'")
    warmup: float = option(0.1, "share of the steps in which the learning rate rises")
    clip: float = option(1.0, "largest norm of the gradient, which is scaled down to it; 0 for no clipping")
    mask_ratio: float | tuple[float, ...] | tuple[tuple[float, float], ...] | None = option(
        None,
        "share of patches that are masked; None is the preset's. A list is cycled through, one a step; a "
        "list of pairs (share of the run, ratio) is joined by straight lines",
    )
    alpha: float | None = option(None, "weight of the Fourier loss; None is the preset's")
    recompute: int = option(
        0,
        "activation checkpointing: every n-th encoder block, and all decoder blocks, compute their "
        "activations again in the backward pass; 0 keeps all",
    )
    recompute_selective: bool = option(
        False,
        "activation checkpointing of norms and GELUs alone, in all blocks; no product or attention is "
        "computed again",
    )
    ema: float = option(0.0, "decay of the exponential moving average of the weights; 0 for none")
    ema_final: bool = option(False, "export the EMA weights as the run's model")
    seed: int = option(0, "seed of weights, data order, masks and stochastic depth")
    val: str | None = option(
        None,
        "held-out data: None, 'plate' or 'experiment' (about 10 %, at least one), or 'plate:NAME,NAME'",
    )
    val_every: int = option(0, "steps between validations, besides those at checkpoints; 0 for none")
    init: str | None = option(None, "run, checkpoint or model file whose weights the run starts from")
    freeze: tuple[str, ...] = option((), "prefixes of the names of parameters that are not trained")
    augment: bool = option(
        True,
        "random flips and rotations by quarter turns, the same for all channels of a crop",
    )
    precision: str | None = option(
        None,
        "autocast precision, 'fp32' or 'bf16'; None is bf16 on CUDA and fp32 elsewhere",
    )
    device: str | None = option(None, "device, 'cpu' or 'cuda'; None is CUDA where there is one")
    value_range: tuple[float, float] | None = option(
        None, "lowest and highest possible value of float images"
    )
    token_budget: int | None = option(
        None,
        "most tokens (planes x patches, masked ones included) of one pass; a rank's part of the batch is "
        "cut into as few passes as that allows. For screens with different channel counts",
    )
    parallel: str = option(
        "ddp",
        "data parallelism under torchrun: 'ddp' (a copy of the model in each process) or 'fsdp' (FSDP2, "
        "sharded)",
    )
    checkpoint_every: int = option(
        1000,
        "steps between checkpoints, besides those at SIGUSR1, at SIGTERM (which also stops the run) and "
        "at the end",
    )
    checkpoint_minutes: float | None = option(30.0, "minutes between checkpoints; None for no timer")
    keep_checkpoints: int = option(2, "newest checkpoints that stay; 0 for all")
    spike: float = option(
        5.0,
        "skip a step whose loss is this many times the mean of about the last 20; 0 skips only steps "
        "whose loss or gradient is not finite, which are always skipped",
    )
    rollback_after: int = option(
        10,
        "skipped steps in a row (as seen when values are logged) after which the last checkpoint's "
        "weights come back",
    )
    max_bad_share: float = option(
        0.0,
        "share of the sites that may be unreadable; they are replaced, and listed in `bad_sites.json`",
    )
    log_every: int | None = option(
        None,
        "steps between rows of the log; None is 1 on a CPU and 10 elsewhere",
    )
    detail_every: int = option(
        50,
        "steps between losses by channel and data set in the log (of steps that are logged); 0 for none",
    )
    picture_every: int = option(
        0,
        "steps between pictures of reconstructions; 0 draws them at the end alone, and not where output "
        "is quiet",
    )
    workers: int = option(1, "threads that read images ahead")
    reader: str | None = option(
        None,
        "image back-end, 'native' (the default: 8- and 16-bit), 'tifffile' (also float) or 'dali'",
    )
    probe: dict[str, object] = field(
        default_factory=dict,
        metadata={
            "help": "probe of the embedding while training, fields of `camae.training.evaluation.Probe`; empty for "
            "none"
        },
    )
    tensorboard: bool = option(False, "write TensorBoard event files too (needs the package tensorboard)")

    def __post_init__(self) -> None:
        check_types(self)
        for good, sentence in itertools.chain(
            _batch_checks(self), _optimization_checks(self), _run_checks(self)
        ):
            if not good:
                raise CamaeError(sentence)

    def passes(self, world_size: int = 1) -> int:
        """Passes of every rank per optimizer step. Raises CamaeError where the batch does not divide."""
        if self.micro_batch is None:
            return self.accumulate
        crops = world_size * self.micro_batch
        if self.batch_size % crops:
            raise CamaeError(
                f"batch_size {self.batch_size} is not a multiple of {crops} crops, {world_size} ranks with "
                f"micro_batch {self.micro_batch}"
            )
        return self.batch_size // crops

    @property
    def peak_lr(self) -> float:
        """Learning rate at the top of the schedule."""
        if self.lr is not None:
            return self.lr
        return 3e-5 if "_vit_l" in self.model else 1e-4

    def to_dict(self) -> dict[str, object]:
        """Plain types, for JSON and TOML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


# Settings that may differ when a run is continued: none changes which crops and masks a step sees. Passes and ranks
# change the order of sums, and which samples stochastic depth drops.
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
        "log_every",
        "detail_every",
        "picture_every",
        "workers",
        "device",
        "reader",
        "tensorboard",
        "probe",
        "recompute",
        "recompute_selective",
        "val_every",
        "ema_final",
        "accumulate",
        "micro_batch",
        "token_budget",
        "parallel",
        "spike",
        "rollback_after",
        "max_bad_share",
    }
)


def _batch_checks(c: TrainConfig) -> Iterator[Check]:
    yield c.steps > 0, f"steps is {c.steps}, it must be at least 1"
    yield c.batch_size > 0, f"batch_size is {c.batch_size}, it must be at least 1"
    yield (
        c.accumulate > 0 and c.batch_size % c.accumulate == 0,
        f"batch_size {c.batch_size} is not a multiple of accumulate {c.accumulate}",
    )
    yield (
        c.micro_batch is None or (c.micro_batch > 0 and c.accumulate == 1),
        f"micro_batch is {c.micro_batch}; give at least 1, and either it or accumulate",
    )
    yield c.token_budget is None or c.token_budget > 0, f"token_budget {c.token_budget} is not at least 1"
    yield 0 <= c.max_bad_share < 1, f"max_bad_share {c.max_bad_share} is not a share in [0, 1)"


def _optimization_checks(c: TrainConfig) -> Iterator[Check]:
    yield c.optimizer in ("lion", "adamw"), f"optimizer {c.optimizer!r} is not 'lion' or 'adamw'"
    yield (
        c.schedule in ("onecycle", "cosine", "constant"),
        f"schedule {c.schedule!r} is not 'onecycle', 'cosine' or 'constant'",
    )
    yield 0 <= c.warmup < 1, f"warmup {c.warmup} is not a fraction in [0, 1)"
    yield c.precision in (None, "fp32", "bf16"), f"precision {c.precision!r} is not 'fp32' or 'bf16'"
    yield (
        c.mask_ratio is None or is_mask_schedule(c.mask_ratio),
        f"mask_ratio {c.mask_ratio} is not in (0, 1), where something is masked and something is not, nor a list of "
        "such numbers or of pairs (share of the run, ratio) in order",
    )
    yield 0 <= c.ema < 1, f"ema {c.ema} is not a decay in [0, 1)"
    yield c.ema > 0 or not c.ema_final, "ema_final needs ema, the decay of the average"
    yield (
        c.recompute >= 0,
        f"recompute is {c.recompute}; 0 keeps activations, n recomputes every n-th block",
    )
    yield c.spike == 0 or c.spike > 1, f"spike {c.spike} is not 0 (off) or a factor above 1"
    yield c.rollback_after > 0, "rollback_after must be at least 1"


def _run_checks(c: TrainConfig) -> Iterator[Check]:
    yield c.checkpoint_every > 0, "checkpoint_every must be at least 1"
    yield (
        c.checkpoint_minutes is None or c.checkpoint_minutes > 0,
        f"checkpoint_minutes {c.checkpoint_minutes} is not a positive number",
    )
    yield c.parallel in ("ddp", "fsdp"), f"parallel {c.parallel!r} is not 'ddp' or 'fsdp'"
    yield (
        c.parallel == "ddp" or not c.ema,
        "ema needs parallel='ddp': averages of sharded weights are not kept",
    )
    yield (
        c.parallel == "ddp" or not c.probe,
        "probe needs parallel='ddp': one process embeds the probe's sites",
    )


def is_mask_schedule(schedule: MaskSchedule) -> bool:
    """Whether every ratio is in (0, 1), and the shares of pairs are in order."""
    if isinstance(schedule, (int, float)):
        return 0 < schedule < 1
    ratios = [s[1] if isinstance(s, tuple) else s for s in schedule]
    shares = [s[0] for s in schedule if isinstance(s, tuple)]
    in_order = all(a < b for a, b in itertools.pairwise(shares))
    return bool(ratios) and in_order and all(0 < ratio < 1 for ratio in ratios)


def resolve(config: str | Path | None = None, **arguments: object) -> TrainConfig:
    """The configuration of a TOML file and arguments, which win over it.

    Raises CamaeError for an unknown name, a wrong type or a value out of range.
    """
    values = {} if config is None else read_toml(config)
    from_file = values.keys() - arguments.keys()
    values |= arguments
    name = values.get("recipe")
    if name is not None:
        if not isinstance(name, str) or name not in TABLE_3:
            raise CamaeError(f"there is no recipe {name!r}; recipes are {', '.join(TABLE_3)}")
        own = values.get("model_options", {})
        options = MODEL_OPTIONS[name] | own if isinstance(own, dict) else own
        values = TABLE_3[name] | values | {"model_options": options}
    known = {f.name for f in fields(TrainConfig)}
    where = f"{config}: " if from_file - known else ""
    return from_settings(TrainConfig, values, f"{where}unknown training settings")


def from_settings(build: Callable[..., T], settings: Mapping[str, object], complaint: str) -> T:
    """A dataclass from named values; lists become tuples, paths text.

    complaint: how the message begins. Raises CamaeError for a name that is not a field.
    """
    known = inspect.signature(build).parameters
    if unknown := settings.keys() - known:
        raise CamaeError(f"{complaint} {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
    return build(**{name: _frozen(value) for name, value in settings.items()})


def _frozen(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return str(value) if isinstance(value, Path) else value


def check_types(settings: object) -> None:
    """Raise CamaeError for a field of a dataclass whose value is not of the declared type."""
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _is_a(value, kind):
            declared = getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)
            raise CamaeError(f"{name} is {value!r}, which is not of type {declared}")


def _is_a(value: object, kind: object) -> bool:
    """Whether a value is of a declared type: a class, tuple, dict or union; an int may stand for a float."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(kinds) == len(value) and all(map(_is_a, value, kinds))
    expected = origin or kind
    if not isinstance(expected, type):
        raise TypeError(f"a setting cannot be declared as {kind}")
    return isinstance(value, (int, float) if expected is float else expected)


class Option(NamedTuple):
    """One setting: its name, declared type, default and documentation."""

    name: str
    type: str
    default: object
    help: str


def options() -> list[Option]:
    """Fields of `TrainConfig` in order, for the shell and the docs."""
    made = TrainConfig()
    return [Option(f.name, str(f.type), getattr(made, f.name), f.metadata["help"]) for f in fields(made)]
