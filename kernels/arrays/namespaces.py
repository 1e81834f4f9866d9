"""Array namespaces: which library an array belongs to, and the one way of taking numbers back to the host.

CuPy's arrays have NumPy's interface; signatures write NumPy's type for both.
"""

from __future__ import annotations

from types import ModuleType
from typing import TypeVar

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
    raise TypeError(f"expected a NumPy or CuPy array, got {type(x).__name__}")


def to_numpy(x: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """`x` on the host: NumPy arrays as they are, others by `.get()`."""
    return x if isinstance(x, np.ndarray) else x.get()
