"""Prefetch: a thread that makes items ahead of the loop that uses them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """The last entry of the queue: no more items, or the error that making one raised."""

    error: BaseException | None


@contextmanager
def prefetched(items: Iterable[T], ahead: int, name: str) -> Iterator[Iterator[T]]:
    """Items in order, of which a thread makes up to `ahead` (at least 1) while earlier ones are in use.

    name: of the thread. An error in making an item is raised where the item would have come. Leaving the context
    stops the thread after the item that it is making.
    """
    queue: SimpleQueue[T | _End] = SimpleQueue()
    # Besides the item that is asked for, one is in the thread's hands and the others wait in the queue.
    free, stopped = threading.Semaphore(ahead - 1), threading.Event()

    def make() -> None:
        error = None
        try:
            for item in items:
                free.acquire()
                if stopped.is_set():
                    return
                queue.put(item)
        except BaseException as raised:
            error = raised
        finally:
            queue.put(_End(error))

    def taken() -> Iterator[T]:
        while True:
            free.release()
            item = queue.get()
            if isinstance(item, _End):
                break
            yield item
        if item.error is not None:
            raise item.error

    thread = threading.Thread(target=make, name=name, daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        free.release()
        thread.join()
