"""Evaluation mode of a model that several threads may share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn


@dataclass
class _Users:
    """Threads that have a model in evaluation mode, and the mode of each of its modules before the first."""

    count: int = 0
    training: list[tuple[nn.Module, bool]] = field(default_factory=list)


_lock = threading.Lock()
_users: WeakKeyDictionary[nn.Module, _Users] = WeakKeyDictionary()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context with a model in evaluation mode. The last thread to leave restores the mode of every module.

    A model that is in evaluation mode already is not touched.
    """
    with _lock:
        users = _users.setdefault(model, _Users())
        if users.count == 0:
            users.training = [(module, module.training) for module in model.modules()]
            if any(training for _, training in users.training):
                model.eval()
        users.count += 1
    try:
        yield
    finally:
        with _lock:
            users.count -= 1
            if users.count == 0:
                for module, training in users.training:
                    if module.training is not training:
                        module.training = training
                del _users[model]


def renew_lock() -> None:
    """In a forked child: a lock that another thread of the parent may have held is made anew."""
    global _lock
    _lock = threading.Lock()
    _users.clear()
