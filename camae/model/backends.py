"""Back-ends of a model's ops, and the base class of modules that run them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Self

import torch
from torch import nn

from camae.errors import CamaeError
from camae.kernels._dispatch import backends_of, default_backend

VARIABLE = "CAMAE_BACKENDS"
# Op that a setting is about; "elementwise" is also about gelu_split, which has the same back-ends.
_OPS = {
    "tokenize": "tokenize",
    "attention": "varlen_attention",
    "loss": "reconstruction_loss",
    "elementwise": "residual_norm",
    "block": "transformer_block",
}


@dataclass(frozen=True)
class Backends:
    """Names of the back-ends that a model's ops run on; None is an op's default for the device.

    tokenize: of `kernels.tokenize` and the plane statistics. attention: of `kernels.varlen_attention`.
    loss: of `kernels.reconstruction_loss`. elementwise: of `kernels.residual_norm` and `kernels.gelu_split`, "triton"
    or "reference". block: of whole blocks where a model is only read, "native" (packed weights on a CPU) or "reference"
    (layer by layer). Raises CamaeError for a name that the op does not have.
    """

    tokenize: str | None = None
    attention: str | None = None
    loss: str | None = None
    elementwise: str | None = None
    block: str | None = None

    def __post_init__(self) -> None:
        for setting, name in asdict(self).items():
            known = [backend.name for backend in backends_of(_OPS[setting], "cpu")]
            if name is not None and name not in known:
                raise CamaeError(
                    f"backends: {setting} has no back-end {name!r}; choose from {', '.join(known)}"
                )

    @classmethod
    def of(cls, settings: BackendSettings) -> Backends:
        """Back-ends of settings, {"attention": "triton", "loss": "reference"} or "attention=triton,loss=reference".

        What they leave out is as CAMAE_BACKENDS says.

        Raises CamaeError for unknown settings and names.
        """
        if isinstance(settings, Backends):
            return settings
        if not settings:
            return _from_environment()
        given = _parsed(settings, "backends") if isinstance(settings, str) else dict(settings)
        if unknown := given.keys() - {field.name for field in fields(cls)}:
            raise CamaeError(f"backends: unknown {', '.join(sorted(unknown))}; known are {', '.join(_OPS)}")
        return replace(_from_environment(), **given)

    def __str__(self) -> str:
        """The settings as text, "attention=triton,loss=reference"."""
        return ",".join(f"{setting}={name}" for setting, name in asdict(self).items() if name)

    def names(
        self,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        sizes: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, str]:
        """The back-end that runs for each setting on a device, defaults by name; several are joined by "+".

        dtype: of attention's inputs; None: bf16 on CUDA, fp32 elsewhere. sizes: that defaults depend on, the head dims
        of "attention", the patch side of "tokenize" and "loss" (`Model.op_sizes`); of the presets where left out.
        """
        sizes = sizes or {}
        return {
            setting: name
            or "+".join(
                dict.fromkeys(
                    default_backend(_OPS[setting], device, dtype, n) for n in sizes.get(setting, (None,))
                )
            )
            for setting, name in asdict(self).items()
        }


BackendSettings = Backends | Mapping[str, str | None] | str | None


@cache
def _from_environment() -> Backends:
    """Back-ends of CAMAE_BACKENDS; read once."""
    return Backends(**_parsed(os.environ.get(VARIABLE, ""), VARIABLE))


def _parsed(text: str, where: str) -> dict[str, str | None]:
    """Settings of a text such as "attention=triton,loss=reference"."""
    settings: dict[str, str | None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        setting, equals, name = (word.strip() for word in part.partition("="))
        if not equals or setting not in _OPS:
            raise CamaeError(
                f"{where}: {part!r} is not a setting; write attention=triton,loss=reference, known are "
                f"{', '.join(_OPS)}"
            )
        settings[setting] = name
    return settings


@contextmanager
def using_backends(model: BackendModule, settings: BackendSettings) -> Iterator[None]:
    """Context in which a model runs on the back-ends of `settings`; on its own without any."""
    before = model.backends
    if settings:
        model.use_backends(Backends.of(settings))
    try:
        yield
    finally:
        if settings:
            model.use_backends(before)


class BackendModule(nn.Module):
    """Module with back-ends: given to its constructor, and changed by `use_backends` alone."""

    def __init__(self, backends: Backends | None = None):
        super().__init__()
        self.backends = backends or Backends.of(None)

    def use_backends(self, backends: Backends) -> Self:
        """Change the back-ends of this module and of every module within it; returns the module itself."""
        for module in self.modules():
            if isinstance(module, BackendModule):
                module.backends = backends
                module.on_backends_changed()
        return self

    def on_backends_changed(self) -> None:
        """Hook for modules that prepare their weights for a back-end."""
