"""The recipe: every setting of a training run, from arguments or a TOML file, with a resolved copy kept."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from camae.errors import CamaeError, MissingFileError


@dataclass(frozen=True)
class Recipe:
    """Settings of a run besides the data. The defaults are the paper's (Lion, one-cycle, weight decay 0.05).

    model: preset name; `model_options` change its fields (crop, depth, decoder = "small" ...).
    batch_size: crops per optimizer step over all ranks; `accumulate` splits it into that many passes.
    lr: peak learning rate; None is 1e-4, and 3e-5 for ViT-L (paper's Lion settings).
    mask_ratio, alpha: None takes the preset's.
    val: None, "plate" or "experiment" (hold out about 10 %, at least one), or "plate:NAME,NAME".
    freeze: parameter-name prefixes that are not trained.
    precision: "fp32" or "bf16" (autocast); None is bf16 on CUDA and fp32 elsewhere.
    value_range: lowest and highest possible value of float images.
    reader: image back-end, "native" (default: 8- and 16-bit), "tifffile" (also float) or "dali".
    """

    model: str = "ca_mae_vit_b16"
    model_options: dict[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    steps: int = 10_000
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "lion"
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    schedule: str = "onecycle"
    warmup: float = 0.1
    clip: float = 1.0
    mask_ratio: float | None = None
    alpha: float | None = None
    seed: int = 0
    val: str | None = None
    init: str | None = None
    freeze: tuple[str, ...] = ()
    augment: bool = True
    precision: str | None = None
    device: str | None = None
    value_range: tuple[float, float] | None = None
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int | None = None
    picture_every: int = 0
    workers: int = 1
    reader: str | None = None

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
                self.mask_ratio is None or 0 < self.mask_ratio < 1,
                f"mask_ratio {self.mask_ratio} is not in (0, 1): nothing or everything would be masked",
            ),
            (self.checkpoint_every > 0, "checkpoint_every must be at least 1"),
        ]
        for good, sentence in checks:
            if not good:
                raise CamaeError(sentence)

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
    names = {f.name for f in fields(Recipe)}
    if unknown := set(values) - names:
        where = f"{config}: " if config is not None and unknown - set(arguments) else ""
        raise CamaeError(
            f"{where}unknown training settings {', '.join(sorted(unknown))}; known are {', '.join(sorted(names))}"
        )
    for name in ("channels", "betas", "freeze", "value_range"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
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
