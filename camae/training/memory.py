"""What a training process does with freed memory on a CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names, malloc.h
_LARGEST_FROM_THE_HEAP = 32 << 20  # glibc allows no more


def keep_freed_pages() -> bool:
    """Let this process keep the pages of freed tensors for the next step, where the C library is glibc.

    Otherwise every step gives megabytes back and faults them in anew: 8 % of the CPU time of a small model's step.
    The process stays as large as its largest step. Returns whether the C library took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_THE_HEAP))
