"""Batches are prepared in order, a few ahead, and what goes wrong is told."""

from __future__ import annotations

import threading
from itertools import count, islice

import pytest

from cvdask.networks.prefetch import prefetch


def test_prefetched_items_come_in_order():
    assert list(prefetch(iter(range(50)), 3)) == list(range(50))


def test_only_so_many_are_prepared_ahead_and_closing_ends_the_thread():
    made, enough = [], threading.Event()

    def make():
        for number in count():
            made.append(number)
            if number == 4:
                enough.set()
            yield number

    supply = prefetch(make(), 3)
    assert list(islice(supply, 2)) == [0, 1]
    # Two are taken, three wait in the queue: item 4 is made without anybody asking for it.
    assert enough.wait(10)
    supply.close()
    assert len(made) <= 7
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_what_the_thread_raises_is_raised():
    def fail():
        yield 1
        raise OSError("disk gone")

    supply = prefetch(fail(), 2)
    assert next(supply) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(supply)
