"""Forked processes: a child computes on one thread.

OpenMP's workers do not live on in a child of fork(), and its runtime would wait for them for ever. One thread needs
none. `spawn` or `forkserver` (multiprocessing) keep all threads.
"""

from __future__ import annotations

import os

import torch

from camae.model.eval_mode import renew_lock


def _in_child() -> None:
    torch.set_num_threads(1)
    renew_lock()


def compute_on_one_thread_after_fork() -> None:
    """Register the handler of forked children; called once, when models are first imported."""
    os.register_at_fork(after_in_child=_in_child)
