"""Array namespaces: which library an array belongs to, and the one way of taking numbers back to the host.

CuPy's arrays have NumPy's interface; signatures write NumPy's type for both.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)


def namespace(x: object) -> ModuleType:
    """numpy for NumPy arrays, cupy for CuPy's, else what `x.__array_namespace__()` names; TypeError otherwise."""
    if isinstance(x, np.ndarray):
        return np
    if type(x).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    raise TypeError(f"expected a NumPy array, a CuPy array or a torch tensor, got {type(x).__name__}")


def to_numpy(x: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """`x` on the host: NumPy arrays as they are, others by `.get()`."""
    return x if isinstance(x, np.ndarray) else x.get()


def to_host(value: Any) -> np.ndarray:
    """`value`, an array of any library or what `numpy.asarray` takes, as a NumPy array."""
    elsewhere = hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray) and hasattr(value, "get")
    return np.asarray(value.get() if elsewhere else value)


def beside(value: Any, x: np.ndarray) -> np.ndarray:
    """`value`, an array of any library or numbers, as an array of x's library."""
    xp = namespace(x)
    return to_host(value) if xp is np else cast(np.ndarray, xp.asarray(value))
