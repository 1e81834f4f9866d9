"""Prefetching: batches are read by threads while the consumer works on an earlier one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from camae.dataloader.plane_batch import PlaneBatch


class ReadAhead(ABC):
    """Base of loaders that prefetch: an endless sequence of batches, each a pure function of its step.

    start_step:   first step that iterating yields.
    workers:      batches read at once. At most `workers + 1` batches wait in memory.
    wait_seconds: seconds the consumer has waited for batches, in all.
    """

    def __init__(self, start_step: int, workers: int) -> None:
        self.start_step, self.workers, self.wait_seconds = start_step, workers, 0.0

    @abstractmethod
    def batch_at(self, step: int) -> PlaneBatch:
        """The batch of one step."""

    def __iter__(self) -> Iterator[PlaneBatch]:
        """Batches from start_step on, without end."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="camae-crops")
        ahead: deque[Future[PlaneBatch]] = deque()
        step = self.start_step
        try:
            while True:
                while len(ahead) < self.workers + 1:
                    ahead.append(pool.submit(self.batch_at, step))
                    step += 1
                began = time.perf_counter()
                batch = ahead.popleft().result()
                self.wait_seconds += time.perf_counter() - began
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
