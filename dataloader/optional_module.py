"""Import of optional packages."""

from __future__ import annotations

import importlib
from types import ModuleType

from camae.errors import MissingBackendError


def optional_module(name: str, purpose: str, package: str | None = None) -> ModuleType:
    """Module of an optional package, imported at first need.

    purpose: what needs it, the start of the error. package: its name at the registry where that differs.
    Raises MissingBackendError when it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingBackendError(
            f"{purpose} needs the package {package or name}, which is not installed ({error})"
        ) from None
