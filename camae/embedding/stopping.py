"""Stop by Ctrl-C: at the end of the pass that is being computed, so that nothing half done is left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_after_pass() -> Iterator[threading.Event]:
    """Event that the first SIGINT (Ctrl-C) sets; a second one raises KeyboardInterrupt at once.

    Outside the main thread, and where SIGINT is ignored, the event stays unset: Python takes no signals there.
    """
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield stopped
        return

    def on_stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stopped.set()

    signal.signal(signal.SIGINT, on_stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
