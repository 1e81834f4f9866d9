"""Evaluation configuration: every option of `camae evaluate layers` and `camae evaluate channels`, declared once.

Imports neither torch nor NumPy: the shell makes its options from the fields in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from camae.embedding.config import EmbedConfig, ReadKeywords, ReadOptions, check_base
from camae.errors import CamaeError
from camae.typed_settings import frozen, option

if TYPE_CHECKING:
    import os

    import torch

    from camae.model.backends import BackendSettings


class EvaluateOptions(ReadKeywords, total=False):
    """Keyword arguments of `camae.evaluate.layers`: the fields of `EvaluateConfig`."""

    label: str
    plate: str
    control: str
    negative: str
    seed: int
    pool: str
    tiles: str | None
    value_range: tuple[float, float] | None
    dtype: torch.dtype | str | None
    backends: BackendSettings
    tokens_per_pass: int | None
    device: torch.device | str | None
    reader: str | None
    threads: int | None
    quiet: bool


class ChannelsOptions(EvaluateOptions, total=False):
    """Keyword arguments of `camae.evaluate.channels`: the fields of `ChannelsConfig`."""

    pairs: str | os.PathLike[str] | None
    layers: int | str | Sequence[int] | None
    nested: bool
    imputed: bool


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ReadOptions):
    """Evaluation configuration: the columns that say what wells are, and how they are embedded.

    Raises CamaeError for a value that cannot be, before any image is read or file written.
    """

    label: str = option("Metadata_Perturbation", "column of perturbations")
    plate: str = option("Metadata_Plate", "column of plates, the groups that are held out in turn")
    control: str = option("Metadata_control_type", "column that marks controls")
    negative: str = option("negcon", "its value for negative controls")
    seed: int = option(0, "seed of the split of the perturbations into halves", low=0, below=2**32)
    pool: str = option("mean", "pooling, as in `camae embed`")
    tiles: str | None = option(None, "tiles of larger images, as in `camae embed`; default 'grid'")
    value_range: tuple[float, float] | None = option(
        None, "lowest and highest possible value of the images; needed for float images"
    )
    dtype: str | None = option(
        None, "compute type, 'float32' or 'bfloat16'; default bfloat16 on a GPU, else float32"
    )
    backends: str | None = option(None, "back-ends of the ops, see `camae doctor`")
    tokens_per_pass: int | None = option(
        None, "encoder tokens computed at once; default by the memory of the device"
    )
    device: str | None = option(None, "'cpu', 'cuda', 'cuda:1' ...; default a GPU if there is one")
    reader: str | None = option(
        None, "image back-end: 'native' (default: 8 and 16 bit), 'tifffile' (also float) or 'dali'"
    )
    threads: int | None = option(None, "sites read at once; default half the cores, at most 8")
    quiet: bool = option(False, "no progress bar")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.embedding()

    @classmethod
    def of(cls, base: Self | None = None, **options: object) -> Self:
        """`base` with changed options, in the forms that `camae.embed_screen` takes."""
        check_base(base, cls)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(options.keys() - known):
            raise CamaeError(
                f"unknown evaluation options {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        shared: Any = {name: value for name, value in options.items() if name in _EMBED_FIELDS}
        plain = EmbedConfig.of(**shared)
        own = {name: frozen(value) for name, value in options.items() if name not in _EMBED_FIELDS}
        changes: Any = own | {name: getattr(plain, name) for name in shared}
        return replace(base or cls(), **changes)

    def embedding(self, layers: Sequence[int] | None = None) -> EmbedConfig:
        """The configuration of `camae.embed_screen` for a manifest that is read already. layers: blocks to take."""
        read = {f.name for f in fields(ReadOptions)}
        own: Any = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _EMBED_FIELDS - read}
        if layers is not None:
            own["layers"] = tuple(layers)
        return replace(EmbedConfig(), **own)


_EMBED_FIELDS = {f.name for f in fields(EmbedConfig)}


@dataclass(frozen=True, kw_only=True)
class ChannelsConfig(EvaluateConfig):
    """Evaluation configuration of missing channels: `EvaluateConfig`, known pairs, and which sets are embedded."""

    pairs: str | None = option(
        None, "file of known pairs of perturbations, two columns of names: also their recall"
    )
    layers: int | str | tuple[int, ...] | None = option(
        None, "encoder block, as in `camae embed`: a number or 'best'"
    )
    nested: bool = option(
        False, "also leave out two, three ... channels, in the order in which they can be spared"
    )
    imputed: bool = option(
        False,
        "also impute each channel left out from the others, as in `camae embed --impute`, and score that",
    )
