"""What stops a run from outside: signals of the scheduler, and the clock."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

STOP_EXIT_CODE = 128 + signal.SIGTERM


class Interrupts:
    """While the context is open, SIGTERM, SIGUSR1 and a timer ask for a checkpoint at the next step's end.

    SIGTERM also asks to stop (preemption); SIGUSR1 does not (`sbatch --signal=USR1@120` before a time limit).
    minutes: time between checkpoints; None leaves the timer out.
    Outside the main thread Python cannot take signals: then only the timer works.
    """

    def __init__(self, minutes: float | None):
        self.seconds = None if minutes is None else 60 * minutes
        self._stop = self._save = False
        self._since = time.monotonic()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_stop),
                signal.SIGUSR1: signal.signal(signal.SIGUSR1, self._on_save),
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def asked(self) -> tuple[bool, bool]:
        """(checkpoint now, then stop), as this process sees it."""
        due = self.seconds is not None and time.monotonic() - self._since >= self.seconds
        return self._stop or self._save or due, self._stop

    def saved(self) -> None:
        """A checkpoint was written: the timer starts again."""
        self._save, self._since = False, time.monotonic()
