"""How does a network never wait for its data? A thread prepares the next batches meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], n: int) -> Generator[Item, None, None]:
    """Yield items in order, while a thread prepares up to ``n`` more.

    What the thread raises is raised here. Closing the generator ends the thread.

    Parameters
    ----------
    items : iterator
        Used by the thread only.
    n : int
        Items that wait, at most.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(n)
    closed = threading.Event()

    def put(entry: tuple[str, Any]) -> None:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def prepare() -> None:
        try:
            for item in items:
                put(("item", item))
                if closed.is_set():
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    thread = threading.Thread(target=prepare, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        closed.set()
        thread.join()
