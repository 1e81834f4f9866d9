"""Window pass of cosine_tails on a GPU: one CUDA kernel per block of cosines, compiled by CuPy (windows.cu).

NumPy's form needs about ten passes over a block for every window: comparisons, a count, a selection. The kernel reads
the block once for all windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from camae.kernels.arrays.cosine_tails.blocks import Array, pair_blocks
from camae.kernels.arrays.namespaces import namespace, to_numpy

SOURCE = Path(__file__).with_name("windows.cu")
CAPACITY = 1 << 28  # values kept of all windows: 1 GB in fp32
THREADS = 256
TYPES = {"float32": "float", "float64": "double"}


def has_kernels(xp: ModuleType) -> bool:
    """Whether arrays of this namespace lie where CUDA kernels run."""
    return hasattr(xp, "RawModule")


def options(dtype: str, windows: int) -> tuple[str, ...]:
    """Compiler options of `windows.cu` for a dtype and a number of windows."""
    return ("-std=c++17", f"-DCOSINE={TYPES[dtype]}", f"-DWINDOWS={windows}")


@cache
def _kernel(xp: ModuleType, dtype: str, windows: int) -> Any:
    return xp.RawModule(code=SOURCE.read_text(), options=options(dtype, windows)).get_function("window_pass")


def device_windows(
    x_ND: Array, block: int, limits: Sequence[tuple[np.floating, np.floating]]
) -> list[tuple[int, Array]] | None:
    """Pairs below each window (low, high), and the values inside it, in any order, on the device.

    x_ND: CuPy, unit rows. None where the windows hold more than `CAPACITY` values.
    """
    xp, count = namespace(x_ND), len(limits)
    n = x_ND.shape[0]
    capacity = min(CAPACITY // count, n * (n - 1) // 2)
    low, high = (xp.asarray([pair[i] for pair in limits], dtype=x_ND.dtype) for i in (0, 1))
    below, filled = (xp.zeros(count, dtype=np.uint64) for _ in range(2))
    inside = xp.empty((count, capacity), dtype=x_ND.dtype)
    kernel = _kernel(xp, x_ND.dtype.name, count)
    for cosines, diagonal in pair_blocks(x_ND, block):
        rows, columns = cosines.shape
        sizes = np.int32(rows), np.int32(columns), np.int32(diagonal)
        grid = (-(-columns // THREADS), min(rows, 256))
        kernel(
            grid,
            (THREADS,),
            (xp.ascontiguousarray(cosines), *sizes, low, high, below, filled, inside, np.uint64(capacity)),
        )
    counts, lengths = to_numpy(below).tolist(), to_numpy(filled).tolist()
    if max(lengths) > capacity:
        return None
    return [(int(counts[w]), inside[w, : int(lengths[w])]) for w in range(count)]
