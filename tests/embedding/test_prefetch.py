"""Prefetch: items in order, made ahead and not further, errors where the item would have come, and no thread left."""

import threading
import time

import pytest

from camae.embedding.prefetch import prefetched


def names():
    return [t.name for t in threading.enumerate()]


def test_items_come_in_order_and_a_little_ahead():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i

    with prefetched(items(), 2, "maker") as taken:
        for i, item in enumerate(taken):
            assert item == i
            deadline = time.monotonic() + 5
            while len(made) < min(10, i + 3) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert len(made) == min(10, i + 3)
    assert "maker" not in names()


def test_an_error_comes_in_its_place():
    def items():
        yield 0
        raise KeyError("lost")

    taken = []

    def take():
        with prefetched(items(), 2, "maker") as made:
            for item in made:
                taken.append(item)

    with pytest.raises(KeyError, match="lost"):
        take()
    assert taken == [0]


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_leaving_early_stops_the_thread(ahead):
    def items():
        number = 0
        while True:
            yield number
            number += 1

    with prefetched(items(), ahead, "maker") as taken:
        for item in taken:
            if item == 3:
                break
    assert "maker" not in names()
