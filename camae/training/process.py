"""Process settings: signals of the scheduler, the timer of checkpoints, and the allocator of freed memory."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

# Signals that stop a run at the end of the step: of the scheduler, of Ctrl-C, of a closed terminal.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names, malloc.h
_LARGEST_FROM_THE_HEAP = 32 << 20  # glibc allows no more


class Interrupts:
    """Signal handlers and timer: while the context is open, they request a checkpoint at the next step's end.

    SIGTERM (preemption), SIGINT (Ctrl-C) and SIGHUP (a closed terminal) also request a stop, and a second one stops at
    once, without a checkpoint. Under torchrun that is a second one of the same kind, because its agent passes a Ctrl-C
    that all processes get on as SIGTERM. A signal that is ignored (SIGHUP under nohup) stays so. SIGUSR1 does not stop
    (`sbatch --signal=USR1@120` before a time limit).
    minutes: time between checkpoints; None leaves the timer out.
    Outside the main thread Python cannot take signals: then only the timer works.
    """

    def __init__(self, minutes: float | None):
        self.seconds = None if minutes is None else 60 * minutes
        self._stop, self._save = 0, False
        self._since = time.monotonic()
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_stop)
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._on_save)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop and (number == self._stop or "TORCHELASTIC_RUN_ID" not in os.environ):
            before = self._before.get(number)
            signal.signal(number, signal.SIG_DFL if before is None else before)
            os.kill(os.getpid(), number)
        self._stop = self._stop or number

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def requested(self) -> tuple[bool, int]:
        """(checkpoint now, number of the signal to stop by, 0 for none), as this process sees it."""
        due = self.seconds is not None and time.monotonic() - self._since >= self.seconds
        return self._stop > 0 or self._save or due, self._stop

    def saved(self) -> None:
        """Restart the timer after a checkpoint."""
        self._save, self._since = False, time.monotonic()


def signal_name(number: int) -> str:
    """Name of a signal, e.g. "SIGTERM"."""
    return signal.Signals(number).name


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
