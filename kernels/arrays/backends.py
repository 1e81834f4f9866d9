"""Array back-ends: NumPy on the host or CuPy on a CUDA device, chosen by name; "auto" takes what there is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import cast

import numpy as np

from camae.errors import CamaeError, MissingBackendError

BACKENDS = ("auto", "numpy", "cupy")


@dataclass(frozen=True)
class ArrayBackend:
    """Library that arrays are computed with. name: "numpy" or "cupy". why: version and device, or why not CuPy."""

    name: str
    module: ModuleType
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"

    def asarray(self, x: np.ndarray) -> np.ndarray:
        """`x`, an array on the host, in this library: as it is for NumPy, a copy on the device for CuPy.

        Raises CamaeError where the device's memory is too small.
        """
        try:
            return cast(np.ndarray, self.module.asarray(x))
        except MemoryError as error:  # CuPy's is one
            raise CamaeError(
                f"a table of shape {x.shape} ({x.nbytes / 1e9:.1f} GB) does not fit in the memory of the device "
                f"({str(error).strip()}); use backend numpy, or free memory there"
            ) from None


def array_backend(backend: str | ArrayBackend = "auto") -> ArrayBackend:
    """Choice of the array library: "numpy", "cupy", or "auto", which is CuPy where it runs and NumPy elsewhere.

    A choice that was made is returned as it is. Raises CamaeError for another name; MissingBackendError, with the
    reason, where CuPy is asked for and cannot run.
    """
    if isinstance(backend, ArrayBackend):
        return backend
    if backend not in BACKENDS:
        raise CamaeError(f"unknown backend '{backend}'; choose one of {', '.join(BACKENDS)}")
    if backend == "numpy":
        return ArrayBackend("numpy", np, f"{np.__version__}, as asked for")
    cupy, reason = _running_cupy()
    if cupy is not None:
        name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
        return ArrayBackend("cupy", cupy, f"{cupy.__version__} on {name}")
    if backend == "cupy":
        raise MissingBackendError(f"backend cupy cannot run here: {reason}; use backend numpy or auto")
    return ArrayBackend("numpy", np, f"{np.__version__}; cupy cannot run here: {reason}")


def _running_cupy() -> tuple[ModuleType | None, str]:
    """CuPy, or None and why it cannot run, with what to do about it.

    A product and an eigenproblem show that the libraries of CUDA that maps need are there and fit the driver.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of a missing CUDA folder, which the wheels do not need
            import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("cupy", None):
            return None, "CuPy is not installed (pip install 'camae[gpu]')"
        return None, f"CuPy cannot be imported ({_sentence(error)})"
    if not cupy.cuda.is_available():
        return None, "there is no CUDA device, or its driver is older than CuPy's CUDA (see camae doctor)"
    try:
        ones = cupy.ones((2, 2))
        float(cupy.linalg.eigh(ones @ ones)[0].sum())
    except (
        Exception
    ) as error:  # any failure of CUDA, its compiler or its libraries: each has a class of its own
        return None, f"CuPy fails on the CUDA device ({_sentence(error)})"
    return cupy, ""


def _sentence(error: Exception) -> str:
    """First line of an error's message, or its class."""
    return str(error).strip().split("\n")[0] or type(error).__name__
