"""The recipe: every setting of a training run, from arguments or a TOML file, with a resolved copy kept."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from camae.dataloader.plane_batch import ValueRange
from camae.errors import CamaeError, MissingFileError
from camae.training.schedule import is_mask_schedule

# The channel-agnostic rows of the paper's Table 3 ("+": Fourier loss, alpha 0.01), and L/8+, which it did not train.
# Its text gives batches "of up to 16,384 crops", separate decoders per channel, 75 % masking for B/16 and 85 % for
# L/16; how long each was trained it does not say, so `steps` stays the user's. L/8+ takes what L/16+ has.
_PAPER = {
    "optimizer": "lion",
    "betas": (0.9, 0.95),
    "weight_decay": 0.05,
    "schedule": "onecycle",
    "warmup": 0.1,
    "batch_size": 16_384,
    "micro_batch": 64,
}
_B = {"model": "ca_mae_vit_b16", "lr": 1e-4, "mask_ratio": 0.75}
_L = {"lr": 3e-5, "mask_ratio": 0.85, "alpha": 0.01}
_B_OPTIONS: dict[str, Any] = {"drop_path": 0.1, "decoder": "paper"}
_L_OPTIONS: dict[str, Any] = {"drop_path": 0.3, "decoder": "paper"}
RECIPES: dict[str, dict[str, Any]] = {
    "ca_mae_vit_b16": _PAPER | _B | {"alpha": 0.0, "model_options": _B_OPTIONS},
    "ca_mae_vit_b16+": _PAPER | _B | {"alpha": 0.01, "model_options": _B_OPTIONS},
    "ca_mae_vit_l16+": _PAPER | _L | {"model": "ca_mae_vit_l16", "model_options": _L_OPTIONS},
    "ca_mae_vit_l8+": _PAPER | _L | {"model": "ca_mae_vit_l8", "model_options": _L_OPTIONS, "recompute": 1},
}


@dataclass(frozen=True)
class Recipe:
    """Settings of a run besides the data. The defaults are the paper's (Lion, one-cycle, weight decay 0.05).

    model: preset name; `model_options` change its fields (crop, depth, decoder = "small" ...).
    recipe: a name of `RECIPES`, a row of the paper's Table 3, whose settings the others change.
    batch_size: crops per optimizer step over all ranks; `accumulate` splits it into that many passes, or
        `micro_batch` says how many crops a rank takes in one pass.
    lr: peak learning rate; None is 1e-4, and 3e-5 for ViT-L (paper's Lion settings).
    mask_ratio, alpha: None takes the preset's. mask_ratio may differ by step: a list is cycled through, a list
        of pairs (share of the run, ratio) is joined by straight lines.
    recompute: every n-th block of the encoder, and all of the decoders, compute their activations again in the
        backward pass; 0 keeps all. recompute_selective: in all blocks, norms and GELUs (never a product or an
        attention) are computed again.
    ema: decay of an exponential moving average of the weights, 0 for none; `ema_final`: the run's model is it.
    probe: an online look at biology, see `camae.training.probe.Probe`; empty for none.
    tensorboard: write TensorBoard event files too (needs the package tensorboard).
    val: None, "plate" or "experiment" (hold out about 10 %, at least one), or "plate:NAME,NAME".
    val_every: steps between validations besides those at checkpoints; 0 for none.
    freeze: parameter-name prefixes that are not trained.
    precision: "fp32" or "bf16" (autocast); None is bf16 on CUDA and fp32 elsewhere.
    token_budget: most tokens (planes x patches, masked ones included) of one pass; a rank's part of the batch is
        cut into as few passes as that allows. For screens with different channel counts.
    parallel: under torchrun, "ddp" (a copy of the model in each process) or "fsdp" (FSDP2, shared among them).
    checkpoint_every (steps), checkpoint_minutes (None for no timer): when checkpoints are written, besides SIGTERM
        (which also stops the run), SIGUSR1 and the end. keep_checkpoints: how many stay, 0 for all.
    spike: a step whose loss is this many times the mean of about the last 20 is skipped, as are steps whose loss or
        gradient is not finite; 0 skips only those. rollback_after: after this many skipped steps in a row (as seen
        when values are logged) the last checkpoint's weights come back, and the data go on.
    max_bad_share: share of the sites that may be unreadable; they are replaced and listed in `bad_sites.json`.
    detail_every: steps between losses by channel and data set in the log (of steps that are logged), 0 for none.
    value_range: lowest and highest possible value of float images.
    reader: image back-end, "native" (default: 8- and 16-bit), "tifffile" (also float) or "dali".
    """

    recipe: str | None = None
    model: str = "ca_mae_vit_b16"
    model_options: dict[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    steps: int = 10_000
    batch_size: int = 64
    accumulate: int = 1
    micro_batch: int | None = None
    optimizer: str = "lion"
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    schedule: str = "onecycle"
    warmup: float = 0.1
    clip: float = 1.0
    mask_ratio: float | tuple[float, ...] | tuple[tuple[float, float], ...] | None = None
    alpha: float | None = None
    recompute: int = 0
    recompute_selective: bool = False
    ema: float = 0.0
    ema_final: bool = False
    seed: int = 0
    val: str | None = None
    val_every: int = 0
    init: str | None = None
    freeze: tuple[str, ...] = ()
    augment: bool = True
    precision: str | None = None
    device: str | None = None
    value_range: ValueRange | None = None
    token_budget: int | None = None
    parallel: str = "ddp"
    checkpoint_every: int = 1000
    checkpoint_minutes: float | None = 30.0
    keep_checkpoints: int = 2
    spike: float = 5.0
    rollback_after: int = 10
    max_bad_share: float = 0.0
    log_every: int | None = None
    detail_every: int = 50
    picture_every: int = 0
    workers: int = 1
    reader: str | None = None
    probe: dict[str, Any] = field(default_factory=dict)
    tensorboard: bool = False

    def __post_init__(self) -> None:
        checks = [
            (self.steps > 0, f"steps is {self.steps}, it must be at least 1"),
            (self.batch_size > 0, f"batch_size is {self.batch_size}, it must be at least 1"),
            (
                self.accumulate > 0 and self.batch_size % self.accumulate == 0,
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}",
            ),
            (self.optimizer in ("lion", "adamw"), f"optimizer {self.optimizer!r} is not 'lion' or 'adamw'"),
            (
                self.schedule in ("onecycle", "cosine", "constant"),
                f"schedule {self.schedule!r} is not 'onecycle', 'cosine' or 'constant'",
            ),
            (0 <= self.warmup < 1, f"warmup {self.warmup} is not a fraction in [0, 1)"),
            (
                self.precision in (None, "fp32", "bf16"),
                f"precision {self.precision!r} is not 'fp32' or 'bf16'",
            ),
            (
                is_mask_schedule(self.mask_ratio),
                f"mask_ratio {self.mask_ratio} is not in (0, 1), where something is masked and something is not, "
                "nor a list of such numbers or of pairs (share of the run, ratio) in order",
            ),
            (
                self.micro_batch is None or (self.micro_batch > 0 and self.accumulate == 1),
                f"micro_batch is {self.micro_batch}; give at least 1, and either it or accumulate",
            ),
            (0 <= self.ema < 1, f"ema {self.ema} is not a decay in [0, 1)"),
            (self.ema > 0 or not self.ema_final, "ema_final needs ema, the decay of the average"),
            (
                self.recompute >= 0,
                f"recompute is {self.recompute}; 0 keeps activations, n recomputes every n-th block",
            ),
            (self.checkpoint_every > 0, "checkpoint_every must be at least 1"),
            (
                self.checkpoint_minutes is None or self.checkpoint_minutes > 0,
                f"checkpoint_minutes {self.checkpoint_minutes} is not a positive number",
            ),
            (self.parallel in ("ddp", "fsdp"), f"parallel {self.parallel!r} is not 'ddp' or 'fsdp'"),
            (
                self.parallel == "ddp" or not self.ema,
                "ema needs parallel='ddp': averages of sharded weights are not kept",
            ),
            (
                self.parallel == "ddp" or not self.probe,
                "probe needs parallel='ddp': one process embeds the probe's sites",
            ),
            (
                self.spike == 0 or self.spike > 1,
                f"spike {self.spike} is not 0 (off) or a factor above 1",
            ),
            (self.rollback_after > 0, "rollback_after must be at least 1"),
            (0 <= self.max_bad_share < 1, f"max_bad_share {self.max_bad_share} is not a share in [0, 1)"),
            (
                self.token_budget is None or self.token_budget > 0,
                f"token_budget {self.token_budget} is not at least 1",
            ),
        ]
        for good, sentence in checks:
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
        """The learning rate at the top of the schedule."""
        if self.lr is not None:
            return self.lr
        return 3e-5 if "_vit_l" in self.model else 1e-4

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and TOML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def resolve(config: str | Path | None = None, **arguments: Any) -> Recipe:
    """A recipe from a TOML file and arguments; arguments win. Unknown names are an error."""
    values = read_toml(config) if config is not None else {}
    values |= arguments
    if (name := values.get("recipe")) is not None:
        if name not in RECIPES:
            raise CamaeError(f"there is no recipe {name!r}; recipes are {', '.join(RECIPES)}")
        options = RECIPES[name].get("model_options", {}) | values.get("model_options", {})
        values = RECIPES[name] | values | {"model_options": options}
    names = {f.name for f in fields(Recipe)}
    if unknown := set(values) - names:
        where = f"{config}: " if config is not None and unknown - set(arguments) else ""
        raise CamaeError(
            f"{where}unknown training settings {', '.join(sorted(unknown))}; known are {', '.join(sorted(names))}"
        )
    for name in ("channels", "betas", "freeze", "value_range", "mask_ratio"):
        if isinstance(values.get(name), list):
            values[name] = tuple(tuple(v) if isinstance(v, list) else v for v in values[name])
    try:
        return Recipe(**values)
    except TypeError as error:
        raise CamaeError(f"a training setting has the wrong type: {error}") from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as a dict."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such configuration file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CamaeError(f"{path}: not valid TOML ({error})") from None


def to_toml(values: dict[str, Any]) -> str:
    """TOML text of nested dicts of strings, numbers, booleans and lists; None is left out."""

    def scalar(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (int, float)):
            return repr(value)
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(scalar(v) for v in value) + "]"
        escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'

    def table(values: dict[str, Any], prefix: str) -> list[str]:
        plain = {k: v for k, v in values.items() if not isinstance(v, dict) and v is not None}
        lines = [f"{k} = {scalar(v)}" for k, v in plain.items()]
        for k, v in values.items():
            if isinstance(v, dict):
                lines += ["", f"[{prefix}{k}]", *table(v, f"{prefix}{k}.")]
        return lines

    return "\n".join(table(values, "")) + "\n"
