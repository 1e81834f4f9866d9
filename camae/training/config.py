"""Training configuration: every setting of a run besides its data, from arguments or a TOML file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from camae.errors import CamaeError
from camae.training.recipes import MODEL_OPTIONS, RECIPES
from camae.training.toml_file import read_toml
from camae.typed_settings import check_settings, from_settings, option

Check = tuple[bool, str]

_MANY = 10**9  # more steps, crops or minutes than any run has

# One ratio; ratios to cycle through, one a step; or pairs (share of the run, ratio) joined by straight lines.
MaskSchedule = float | tuple[float, ...] | tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class TrainConfig:
    """Training configuration. The defaults are the paper's (Lion, one-cycle schedule, weight decay 0.05).

    Raises CamaeError for a value of the wrong type or out of range. `options` lists the fields with their text.
    """

    recipe: str | None = option(
        None,
        "recipe whose settings the others change, a name of `camae.training.recipes.RECIPES`: a row of the paper's "
        "Table 3, 'fast-cpu' or 'one-gpu-hour'",
    )
    model: str = option("ca_mae_vit_b16", "preset name of the model")
    model_options: dict[str, object] = field(
        default_factory=dict,
        metadata={
            "help": "fields of the model's configuration to change: crop, depth, decoder = 'small' ..."
        },
    )
    channels: tuple[str, ...] = option(
        (), "channels that get a decoder; empty for those of the data", most=4096
    )
    steps: int = option(10_000, "optimizer steps", low=1, high=_MANY)
    batch_size: int = option(64, "crops per optimizer step, over all ranks", low=1, high=10**7)
    accumulate: int = option(1, "passes of every rank that an optimizer step adds up", low=1, high=10**7)
    micro_batch: int | None = option(
        None, "crops of one pass of a rank; instead of `accumulate`", low=1, high=10**7
    )
    optimizer: str = option("lion", "optimizer, 'lion' or 'adamw'", choices=("lion", "adamw"))
    lr: float | None = option(
        None,
        "peak learning rate; None is 1e-4, and 3e-5 for ViT-L (the paper's, for Lion)",
        above=0,
        high=100,
    )
    betas: tuple[float, float] = option((0.9, 0.95), "momentum coefficients of the optimizer", low=0, below=1)
    weight_decay: float = option(
        0.05, "decoupled weight decay of matrices; biases, norms and tokens have none", low=0, high=100
    )
    schedule: str = option(
        "onecycle",
        "learning-rate schedule, 'onecycle', 'cosine' or 'constant'",
        choices=("onecycle", "cosine", "constant"),
    )
    warmup: float = option(0.1, "share of the steps in which the learning rate rises", low=0, below=1)
    clip: float = option(
        1.0, "largest norm of the gradient, which is scaled down to it; 0 for no clipping", low=0, high=1e9
    )
    mask_ratio: float | tuple[float, ...] | tuple[tuple[float, float], ...] | None = option(
        None,
        "share of patches that are masked; None is the preset's. A list is cycled through, one a step; a "
        "list of pairs (share of the run, ratio) is joined by straight lines",
    )
    mask_channels: float = option(
        0.0,
        "share of planes that are hidden whole, besides single patches, and predicted from the other channels; a crop "
        "keeps at least one plane and as many visible patches as mask_ratio says",
        low=0,
        below=1,
    )
    cross_well: float = option(
        0.0,
        "weight of the cross-well term: replicates of a perturbation, in other wells or plates, are to agree; 0: none",
        low=0,
        high=1000,
    )
    cross_well_label: str = option(
        "Metadata_Perturbation", "column of replicate identity for cross_well; empty: no replicates"
    )
    cross_well_group: int = option(
        16, "crops, in pairs of replicates, that cross_well compares at once", low=4, high=10**6
    )
    cross_well_prototypes: int = option(64, "prototypes of cross_well", low=2, high=10**6)
    teacher: str | None = option(
        None,
        "run, checkpoint, model file or hf://owner/name@revision whose features of each plane the encoder learns to "
        "predict (distillation)",
    )
    teacher_weight: float = option(1.0, "weight of the distillation term", above=0, high=1000)
    alpha: float | None = option(None, "weight of the Fourier loss; None is the preset's", low=0, below=1)
    recompute: int = option(
        0,
        "activation checkpointing: every n-th encoder block, and all decoder blocks, compute their "
        "activations again in the backward pass; 0 keeps all",
        low=0,
        high=1000,
    )
    recompute_selective: bool = option(
        False,
        "activation checkpointing of norms and GELUs alone, in all blocks; no product or attention is "
        "computed again",
    )
    ema: float = option(
        0.0, "decay of the exponential moving average of the weights; 0 for none", low=0, below=1
    )
    ema_final: bool = option(False, "export the EMA weights as the run's model")
    seed: int = option(0, "seed of weights, data order, masks and stochastic depth", low=0, below=2**32)
    val: str | None = option(
        None,
        "held-out data: None, 'plate' or 'experiment' (about 10 %, at least one), or 'plate:NAME,NAME'",
    )
    val_every: int = option(
        0, "steps between validations, besides those at checkpoints; 0 for none", low=0, high=_MANY
    )
    init: str | None = option(
        None, "run, checkpoint, model file or hf://owner/name@revision whose weights the run starts from"
    )
    freeze: tuple[str, ...] = option(
        (), "prefixes of the names of parameters that are not trained", most=10_000
    )
    augment: bool = option(
        True,
        "random flips and rotations by quarter turns, the same for all channels of a crop",
    )
    precision: str | None = option(
        None,
        "autocast precision, 'fp32' or 'bf16', or 'auto': on a CPU the faster one on the first batch, which the log "
        "says and a resumed run keeps; None is bf16 on CUDA and fp32 elsewhere",
        choices=("fp32", "bf16", "auto"),
    )
    device: str | None = option(None, "device, 'cpu' or 'cuda'; None is CUDA where there is one")
    value_range: tuple[float, float] | None = option(
        None, "lowest and highest possible value of float images"
    )
    token_budget: int | None = option(
        None,
        "most tokens (planes x patches, masked ones included) of one pass; a rank's part of the batch is "
        "cut into as few passes as that allows. For screens with different channel counts",
        low=1,
        high=10**12,
    )
    parallel: str = option(
        "ddp",
        "data parallelism under torchrun: 'ddp' (a copy of the model in each process) or 'fsdp' (FSDP2, "
        "sharded)",
        choices=("ddp", "fsdp"),
    )
    checkpoint_every: int = option(
        1000,
        "steps between checkpoints, besides those at SIGUSR1, at SIGTERM (which also stops the run) and "
        "at the end",
        low=1,
        high=_MANY,
    )
    checkpoint_minutes: float | None = option(
        30.0, "minutes between checkpoints; None for no timer", above=0, high=_MANY
    )
    keep_checkpoints: int = option(2, "newest checkpoints that stay; 0 for all", low=0, high=_MANY)
    spike: float = option(
        5.0,
        "skip a step whose loss is this many times the mean of about the last 20; 0 skips only steps "
        "whose loss or gradient is not finite, which are always skipped",
        low=0,
        high=1e9,
    )
    rollback_after: int = option(
        10,
        "skipped steps in a row (as seen when values are logged) after which the last checkpoint's "
        "weights come back",
        low=1,
        high=_MANY,
    )
    max_bad_share: float = option(
        0.0,
        "share of the sites that may be unreadable; they are replaced, and listed in `bad_sites.json`",
        low=0,
        below=1,
    )
    log_every: int | None = option(
        None, "steps between rows of the log; None is 1 on a CPU and 10 elsewhere", low=1, high=_MANY
    )
    detail_every: int = option(
        50,
        "steps between losses by channel and data set in the log (of steps that are logged); 0 for none",
        low=0,
        high=_MANY,
    )
    picture_every: int = option(
        0,
        "steps between pictures of reconstructions; 0 draws them at the end alone, and not where output "
        "is quiet",
        low=0,
        high=_MANY,
    )
    workers: int = option(1, "threads that read images ahead", low=1, high=256)
    reader: str | None = option(
        None,
        "image back-end, 'native' (the default: 8- and 16-bit), 'tifffile' (also float) or 'dali'",
        choices=("native", "tifffile", "dali"),
    )
    backends: str | None = option(
        None,
        "back-ends of the ops, such as 'attention=triton,elementwise=reference'; default those of the device, see "
        "`camae doctor`",
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
        check_settings(self)
        for good, sentence in _joint_checks(self):
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
        "backends",
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


def _joint_checks(c: TrainConfig) -> Iterator[Check]:
    """Checks of several settings together, and of one whose values are more than a range."""
    yield (
        c.batch_size % c.accumulate == 0,
        f"batch_size {c.batch_size} is not a multiple of accumulate {c.accumulate}",
    )
    yield (
        c.micro_batch is None or c.accumulate == 1,
        f"micro_batch is {c.micro_batch} and accumulate {c.accumulate}; give either it or accumulate",
    )
    yield (
        c.mask_ratio is None or is_mask_schedule(c.mask_ratio),
        f"mask_ratio {c.mask_ratio} is not in (0, 1), where something is masked and something is not, nor a list of "
        "such numbers or of pairs (share of the run from 0 to 1, ratio) in order",
    )
    yield (
        c.cross_well_group % 2 == 0,
        f"cross_well_group {c.cross_well_group} is odd; crops come in pairs of replicates",
    )
    yield c.spike == 0 or c.spike > 1, f"spike {c.spike} is not 0 (off) or a factor above 1"
    span = c.value_range
    yield (
        span is None or span[0] < span[1],
        f"value_range {span} must be (lowest, highest) possible value, the first below the second",
    )
    yield (
        c.device is None or re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", c.device) is not None,
        f"device {c.device!r} is not 'cpu', 'cuda' or 'cuda:' with a number",
    )
    kind = None if c.val is None else c.val.partition(":")[0]
    yield (
        kind in (None, "plate", "experiment"),
        f"val={c.val!r}: use 'plate', 'experiment', or names as in 'plate:P1,P2'",
    )
    yield len(set(c.channels)) == len(c.channels), f"channels {', '.join(c.channels)}: a name occurs twice"
    yield c.ema > 0 or not c.ema_final, "ema_final needs ema, the decay of the average"
    yield not c.val_every or c.val is not None, "val_every needs val, the data that are held out"
    yield (
        c.parallel == "ddp" or not c.ema,
        "ema needs parallel='ddp': averages of sharded weights are not kept",
    )
    yield (
        c.parallel == "ddp" or not c.probe,
        "probe needs parallel='ddp': one process embeds the probe's sites",
    )


def is_mask_schedule(schedule: MaskSchedule) -> bool:
    """Whether every ratio is in (0, 1), and the shares of pairs are in [0, 1] and in order."""
    if isinstance(schedule, (int, float)):
        return 0 < schedule < 1
    if len({isinstance(s, tuple) for s in schedule}) > 1:
        return False
    ratios = [s[1] if isinstance(s, tuple) else s for s in schedule]
    shares = [s[0] for s in schedule if isinstance(s, tuple)]
    in_order = all(a < b for a, b in itertools.pairwise(shares))
    within = all(0 <= share <= 1 for share in shares)
    return bool(ratios) and in_order and within and all(0 < ratio < 1 for ratio in ratios)


def resolve(config: str | Path | None = None, **arguments: object) -> TrainConfig:
    """The configuration of a TOML file and arguments, which win over it.

    Raises CamaeError for an unknown name, a wrong type or a value out of range.
    """
    values = {} if config is None else read_toml(config)
    from_file = values.keys() - arguments.keys()
    values |= arguments
    name = values.get("recipe")
    if name is not None:
        if not isinstance(name, str) or name not in RECIPES:
            raise CamaeError(f"there is no recipe {name!r}; recipes are {', '.join(RECIPES)}")
        own = values.get("model_options", {})
        options = MODEL_OPTIONS[name] | own if isinstance(own, dict) else own
        values = RECIPES[name] | values | {"model_options": options}
    known = {f.name for f in fields(TrainConfig)}
    where = f"{config}: " if from_file - known else ""
    return from_settings(TrainConfig, values, f"{where}unknown training settings")


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
