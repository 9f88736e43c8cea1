"""Workers that are numbers: the engine runs as ever, its tasks take the time that others took.

1. :class:`RecordingPool` runs real blocks one after another, and notes what each costs.
2. :class:`VirtualPool` takes the engine's tasks and says when each would end: a worker is the time
   at which it is free, the client a clock that moves on with each task it hands out. Which blocks
   make a task, how many are under way and how a reduction grows, the engine decides.
3. :func:`simulate` lets the engine run over some of the blocks, and goes on in a straight line.
"""

from __future__ import annotations

import functools
import heapq
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from cvdask.engine import blockwise
from cvdask.engine.blockwise import Report
from cvdask.engine.cluster import SerialPool
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block, Grid
from cvdask.volume.objects import watch_traffic

# Tasks per worker that are simulated before the rest is taken to go on as before.
TASKS_PER_WORKER = 8


@dataclass(frozen=True)
class Cost:
    """What a block takes.

    Parameters
    ----------
    seconds : float
        On one core, with its reads from and writes to a local disk.
    reads, writes : float
        Requests to the store.
    bytes_read, bytes_written : float
    record : dict
        What the function returned.
    """

    seconds: float
    reads: float = 0
    writes: float = 0
    bytes_read: float = 0
    bytes_written: float = 0
    record: dict[str, Any] = field(default_factory=dict)


class RecordingPool(SerialPool):
    """Run blocks in this thread and note what each costs, by the name of its function."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, list[Cost]] = {}

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a call; where it is over blocks, note each."""
        job, *rest = args
        if isinstance(job, blockwise._Job | blockwise._Reduction):
            job = replace(job, function=functools.partial(self._note, job.function))
        return super().submit(function, job, *rest)

    def _note(self, function: Any, block: Block) -> Any:
        started = time.perf_counter()
        with watch_traffic() as traffic:
            outcome = function(block)
        cost = Cost(
            time.perf_counter() - started,
            traffic.reads,
            traffic.writes,
            traffic.bytes_read,
            traffic.bytes_written,
            outcome if isinstance(outcome, dict) else {},
        )
        self.costs.setdefault(function.func.__name__, []).append(cost)
        return outcome

    def typical(self, name: str) -> Cost:
        """Return the mean of the blocks inside a volume: those that ask for most objects.

        Of a small volume most blocks lie at its faces, where there is less to do.
        """
        costs = self.costs[name]
        most = max(cost.reads for cost in costs)
        inner = [cost for cost in costs if cost.reads >= 0.75 * most]
        names = ("seconds", "reads", "writes", "bytes_read", "bytes_written")
        return Cost(*(sum(getattr(c, name) for c in inner) / len(inner) for name in names))


@dataclass(eq=False)
class VirtualFuture:
    """A call whose end is known when it is submitted."""

    pool: VirtualPool
    end: float
    value: Any

    def result(self) -> Any:
        """Wait for it: the client's clock moves on."""
        self.pool.now = max(self.pool.now, self.end)
        return self.value


class VirtualPool(SerialPool):
    """Take the engine's tasks and say when they would end.

    Parameters
    ----------
    n_workers : int
        Each runs one task at a time.
    block_seconds : float
        Of a block on a worker.
    task_seconds : float
        Of client and scheduler for a task: they hand out one after another.
    marker_seconds : float
        Of a worker for the marker of a task.
    leaf_value : callable
        Takes the number of blocks of a leaf of a reduction and returns its partial.
    combine_seconds : callable
        Takes what a node of a reduction returns and says what it takes.
    worker_bytes : int
    """

    def __init__(
        self,
        n_workers: int,
        block_seconds: float,
        *,
        task_seconds: float,
        marker_seconds: float = 0.0,
        leaf_value: Callable[[int], float] = float,
        combine_seconds: Callable[[float], float] = lambda value: 0.0,
        worker_bytes: int = 2**62,
    ) -> None:
        super().__init__()
        self.slots, self.worker_bytes = n_workers, worker_bytes
        self.now = 0.0
        self.busy = 0.0
        self.n_tasks = 0
        self._block_seconds, self._task_seconds = block_seconds, task_seconds
        self._marker_seconds = marker_seconds
        self._leaf_value, self._combine_seconds = leaf_value, combine_seconds
        self._free = [0.0] * n_workers
        self._ending: list[tuple[float, int, VirtualFuture]] = []

    @property
    def blocks_per_task(self) -> int:
        """How many blocks the engine gives to a task once it knows what they take."""
        wanted = blockwise.batch_seconds(self.slots) / self._block_seconds
        return max(1, min(blockwise.LARGEST_BATCH, math.ceil(wanted)))

    def submit(self, function: Callable[..., Any], *args: Any) -> VirtualFuture:
        """Give a call to the worker that is free first."""
        self.now += self._task_seconds
        self.n_tasks += 1
        job, work = args
        if function is blockwise._combine:
            # Workers do something else until what is combined is there; nodes are few.
            value = function(job, [part.value for part in work])
            begin = max(self.now, *(part.end for part in work))
            seconds = self._combine_seconds(value.value)
            return VirtualFuture(self, begin + seconds, value)
        seconds = len(work) * self._block_seconds
        report = Report(n_done=len(work), seconds=seconds)
        value = report
        if function is blockwise._reduce_batch:
            partial = self._leaf_value(len(work))
            seconds += self._combine_seconds(partial)
            value = blockwise._Partial(partial, report)
        else:
            seconds += self._marker_seconds
        begin = max(self.now, heapq.heappop(self._free))
        future = VirtualFuture(self, begin + seconds, value)
        heapq.heappush(self._free, future.end)
        heapq.heappush(self._ending, (future.end, self.n_tasks, future))
        self.busy += seconds
        return future

    def wait(self, futures: Iterable[Any]) -> set[Any]:
        """Move the clock on to the first end, and return all that have ended."""
        self.now = max(self.now, self._ending[0][0])
        ended = set()
        while self._ending and self._ending[0][0] <= self.now:
            ended.add(heapq.heappop(self._ending)[2])
        return ended


@dataclass(frozen=True)
class Outcome:
    """What a simulated run took.

    Parameters
    ----------
    seconds : float
        Wall time.
    n_tasks : float
    busy : float
        Seconds of all workers.
    """

    seconds: float
    n_tasks: float
    busy: float


def simulate(plan: Plan, open_pool: Callable[[], VirtualPool]) -> Outcome:
    """Let the engine run over the blocks of a plan; over as many as show how it goes on.

    Raises
    ------
    MemoryError
        When a block does not fit a worker: the engine's own refusal.
    """

    def engine(n: int) -> Outcome:
        pool = open_pool()
        blockwise.run(_nothing, as_many(plan, n), client=pool)
        return Outcome(pool.now, pool.n_tasks, pool.busy)

    n_blocks, pool = len(plan.grid), open_pool()
    shown = TASKS_PER_WORKER * pool.slots * pool.blocks_per_task
    if n_blocks <= 2 * shown:
        return engine(n_blocks)
    half, whole = engine(shown), engine(2 * shown)
    rest = (n_blocks - 2 * shown) / shown
    return Outcome(
        *(
            getattr(whole, name) + rest * (getattr(whole, name) - getattr(half, name))
            for name in ("seconds", "n_tasks", "busy")
        )
    )


def as_many(plan: Plan, n_blocks: int) -> Plan:
    """Return a plan of so many blocks; each needs the memory that it does in the plan."""
    return replace(plan, grid=Grid((n_blocks, 1, 1), (1, 1, 1)), output=os.sep, stored_bytes=0)


def _nothing(block: Block) -> None:
    """Stand for a function that is never called."""
