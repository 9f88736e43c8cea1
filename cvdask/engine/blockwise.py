"""Run a function over the blocks of a plan: in order, in threads, or on Dask workers.

A task reads its own region from the store and writes its own region, so there are no edges between
tasks. Tasks carry several blocks when blocks are cheap, and only a few tasks per worker are under
way at a time; scheduler and client therefore hold the same few kilobytes at a thousand and at a
million blocks::

    blocks   0 1 2 3 4 5 6 7 8 9 …         done before: skipped
    tasks    (0)(1)(2 3 4 5)(6 … 37) …     sized to last about half a second each
    window        [  2 per worker  ]       submitted when an earlier one ends

1. :func:`run` skips the blocks that the ledger knows to be done and keeps the window full.
2. A worker runs each block of its batch, retries what fails, then marks what succeeded.
3. A block that keeps failing is set aside; the rest goes on; the end is a ``BlocksFailed``. Where
   a worker dies, its batch is split, and what is suspected still runs alone at the end.

:func:`reduce` is the other shape of work: a small partial per block, combined as a tree on the
workers, voxels never.
"""

from __future__ import annotations

import errno
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from cvdask.engine.cluster import Pool, connect
from cvdask.engine.ledger import Ledger, Record
from cvdask.engine.plan import Failure, Plan, Summary, check_plan, note_summary
from cvdask.engine.progress import ProgressBar
from cvdask.errors import BlocksFailed
from cvdask.volume.boxes import Block, Grid
from cvdask.volume.objects import watch_traffic
from cvdask.volume.store import Level, read_box

Partial = TypeVar("Partial")

# Long enough to hide the scheduler's milliseconds, short enough to lose little in a crash.
BATCH_SECONDS = 0.5
# Client and scheduler take about four milliseconds for a task, one after another. Where so many
# workers wait for them that this would pass half a second, tasks last longer.
HANDING_OUT_SECONDS = 0.008
LARGEST_BATCH = 1024
# A reduction's tasks must not depend on the clock, or sums of floats would: each has as many blocks
# as keep the number of tasks bounded.
SMALLEST_REDUCTION = 16
MOST_REDUCTIONS = 2048
# Under way per worker: one that runs and one that waits for it.
WINDOW_PER_SLOT = 2
# Give up where most blocks fail: the cause is then no single block's.
MANY_FAILURES = 100
# What no other block will be spared: no space, no quota, read-only.
FATAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True)
class Mask:
    """Where work is wanted: blocks whose part of the mask is all zero are skipped.

    Parameters
    ----------
    url : str
        Sample of the mask.
    level : Level
        Its level, usually a coarse one.
    factors : tuple of int
        Voxels of the plan's grid per voxel of the mask, z, y, x.
    """

    url: str
    level: Level
    factors: tuple[int, ...]

    def excludes(self, block: Block) -> bool:
        """Tell whether no voxel of the block is wanted."""
        fine = block.write.align(self.factors)
        coarse = type(fine)(
            tuple(a // f for a, f in zip(fine.start, self.factors, strict=True)),
            tuple(b // f for b, f in zip(fine.stop, self.factors, strict=True)),
        ).intersect(self.level.box)
        return coarse.size == 0 or not read_box(self.url, self.level, coarse).any()


@dataclass
class Report:
    """What one task sends back: a few hundred bytes, whatever it worked on."""

    n_done: int = 0
    n_empty: int = 0
    n_voxels: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class _Job:
    """What every task of a run needs; travels with each task, so it holds no data."""

    function: Callable[[Block], Record | None]
    grid: Grid
    ledger: Ledger | None
    mask: Mask | None
    retries: int


def run(
    function: Callable[[Block], Record | None],
    plan: Plan,
    *,
    client: Any = None,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    ledger: Ledger | None = None,
    mask: Mask | None = None,
    retries: int = 2,
) -> Summary:
    """Run a function over the blocks of a plan.

    Parameters
    ----------
    function : callable
        Takes a :class:`Block`, reads and writes the store by itself, and returns what the ledger
        is to remember of the block: a JSON-ready dictionary, or None. ``{"empty": True}`` says
        that there was nothing to do. It must be picklable and give the same bytes every time.
    plan : Plan
        The blocks, and what they need.
    client, workers, resources
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    ledger : Ledger, optional
        Blocks it knows are skipped, blocks that end are marked.
    mask : Mask, optional
        Blocks outside it are not run.
    retries : int
        How often a failing block is tried again.

    Returns
    -------
    Summary

    Raises
    ------
    BlocksFailed
        At the end, when blocks were set aside, or early, when nothing else can succeed either.
    MemoryError, OSError
        Before any work, when the plan does not fit the workers or the disk.
    """
    started = time.perf_counter()
    with connect(client, workers=workers, resources=resources) as pool:
        done = ledger.done(len(plan.grid)) if ledger else np.zeros(len(plan.grid), bool)
        summary = Summary(plan.stage, len(plan.grid), n_resumed=int(done.sum()))
        check_plan(plan, pool.slots, pool.worker_bytes, summary.n_resumed)
        job = _Job(function, plan.grid, ledger, mask, retries)
        note = f"dashboard: {pool.dashboard}" if pool.dashboard else None
        with ProgressBar(plan.stage, len(done) - summary.n_resumed, note) as bar:
            failures = _drive(pool, job, done, summary, bar)
    summary.seconds = time.perf_counter() - started
    note_summary(summary)
    if failures:
        failures = sorted(failures, key=lambda f: f.block)
        n_done = summary.n_resumed + summary.n_done
        raise BlocksFailed(plan.stage, failures, summary.n_blocks, n_done)
    return summary


def _drive(
    pool: Pool, job: _Job, done: np.ndarray, summary: Summary, bar: ProgressBar
) -> list[Failure]:
    """Keep a window of batches under way until all blocks have ended."""
    failures: list[Failure] = []
    under_way: dict[Any, Sequence[int]] = {}
    again: list[int] = []  # blocks of a batch whose worker died; each gets a task of its own
    suspects: list[int] = []  # blocks whose own task lost its worker; each runs with no other
    alone = False
    position, batch = 0, 1
    while True:
        while len(under_way) < WINDOW_PER_SLOT * pool.slots and not _hopeless(failures, summary):
            if again:
                numbers: Sequence[int] = [again.pop()]
            else:
                numbers, position = _take(done, position, batch)
            if not numbers and suspects and not under_way:
                numbers = [suspects.pop()]
                alone = True
            if not numbers:
                break
            under_way[pool.submit(_run_batch, job, numbers)] = numbers
        if not under_way:
            return failures
        for future in pool.wait(under_way):
            numbers = under_way.pop(future)
            try:
                report: Report = future.result()
            except Exception as error:
                if not _worker_died(error):
                    raise
                report = Report()
                if len(numbers) > 1:
                    again += numbers
                elif not alone:
                    suspects += numbers
                else:
                    report.failures.append(_killer(job, numbers[0], error))
            failures += report.failures
            _count(report, summary)
            bar.advance(report.n_done, report.n_voxels)
            if report.n_done:
                per_block = max(report.seconds / report.n_done, 1e-6)
                wanted = batch_seconds(pool.slots) / per_block
                batch = int(min(wanted, 4 * batch, LARGEST_BATCH)) or 1


def batch_seconds(slots: int) -> float:
    """Return how long a task should last, so that all workers are served in time.

    >>> batch_seconds(2), batch_seconds(1000)
    (0.5, 8.0)
    """
    return max(BATCH_SECONDS, HANDING_OUT_SECONDS * slots)


def _take(done: np.ndarray, position: int, most: int) -> tuple[Sequence[int], int]:
    """Take the next blocks that are not done, and say where to look on.

    A range where they follow one another, as they mostly do: a few bytes in a task, where a list of
    a thousand numbers would be what a million blocks leave in the scheduler's memory.
    """
    found: list[int] = []
    while position < len(done) and len(found) < most:
        part = done[position : position + LARGEST_BATCH]
        free = (np.flatnonzero(~part)[: most - len(found)] + position).tolist()
        found += free
        position = found[-1] + 1 if len(found) == most else position + len(part)
    if found and found[-1] - found[0] + 1 == len(found):
        return range(found[0], found[-1] + 1), position
    return found, position


def _hopeless(failures: Sequence[Failure], summary: Summary) -> bool:
    """Tell whether going on makes no sense."""
    if any(failure.fatal for failure in failures):
        return True
    return len(failures) >= MANY_FAILURES and len(failures) > summary.n_done


def _count(report: Report, summary: Summary) -> None:
    summary.n_done += report.n_done
    summary.n_empty += report.n_empty
    summary.n_voxels += report.n_voxels
    summary.bytes_read += report.bytes_read
    summary.bytes_written += report.bytes_written
    summary.peak_worker_bytes = max(summary.peak_worker_bytes, report.peak_bytes)


def _worker_died(error: Exception) -> bool:
    """Tell a worker that died (out of memory, killed) from a fault of the task."""
    if "distributed" not in sys.modules:
        return False
    from distributed import KilledWorker

    return isinstance(error, KilledWorker)


def _killer(job: _Job, number: int, error: Exception) -> Failure:
    """Set aside a block that killed its workers while it ran alone.

    The scheduler has given it to several workers by then (``allowed-failures``). Alone, because
    the scheduler suspects whatever lay on a worker that died, also what only waited there.
    """
    block = job.grid[number]
    cause = f"its worker died each time, perhaps out of memory ({error})"
    return Failure(block.index, block.write, cause, job.retries + 1)


def _run_batch(job: _Job, numbers: Sequence[int]) -> Report:
    """Run blocks on a worker, then mark those that succeeded."""
    report = Report()
    records: dict[int, Record] = {}
    started = time.perf_counter()
    with watch_traffic() as traffic:
        for number in numbers:
            block = job.grid[number]
            outcome = _run_block(job, block)
            if isinstance(outcome, Failure):
                report.failures.append(outcome)
                if outcome.fatal:
                    break
                continue
            records[number] = outcome
            report.n_done += 1
            report.n_voxels += block.write.size
            report.n_empty += bool(outcome.get("empty"))
        if job.ledger and records:
            try:
                job.ledger.mark(records)
            except OSError as error:
                # Unmarked blocks count as not done, as a later run will see them.
                report = Report(failures=[_failure(job.grid[n], error, 1) for n in numbers])
    report.seconds = time.perf_counter() - started
    report.bytes_read, report.bytes_written = traffic.bytes_read, traffic.bytes_written
    report.peak_bytes = peak_memory_bytes()
    return report


def _run_block(job: _Job, block: Block) -> Record | Failure:
    for attempt in range(1, job.retries + 2):
        try:
            if job.mask is not None and job.mask.excludes(block):
                return {"empty": True}
            return job.function(block) or {}
        except Exception as error:
            failure = _failure(block, error, attempt)
            if failure.fatal:
                return failure
    return failure


def _failure(block: Block, error: Exception, attempts: int) -> Failure:
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    fatal = isinstance(error, OSError) and error.errno in FATAL_ERRNOS
    return Failure(block.index, block.write, cause, attempts, fatal)


def peak_memory_bytes() -> int:
    """Return the largest resident set this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---------------------------------------------------------------------------------------------
# Reductions


@dataclass(frozen=True)
class _Reduction:
    function: Callable[[Block], Any]
    combine: Callable[[list[Any]], Any]
    grid: Grid
    mask: Mask | None
    retries: int


@dataclass
class _Partial:
    value: Any
    report: Report


def reduce(
    function: Callable[[Block], Partial],
    combine: Callable[[list[Partial]], Partial],
    plan: Plan,
    *,
    client: Any = None,
    workers: int | None = None,
    mask: Mask | None = None,
    retries: int = 2,
    batch: int | None = None,
    fan_in: int = 8,
) -> tuple[Partial | None, Summary]:
    """Reduce the blocks of a plan to one value.

    Blocks are combined in order, ``batch`` to a task and then ``fan_in`` to a node of the tree,
    whatever the pool: the same plan gives the same tree, so even floating-point sums agree. Only
    the last level of each subtree is held, on the workers; the client holds their names.

    Parameters
    ----------
    function : callable
        Takes a :class:`Block` and returns its partial: small, picklable, never voxels.
    combine : callable
        Takes a list of partials in block order and returns one.
    plan, client, workers, mask, retries
        As in :func:`run`.
    batch, fan_in : int, optional
        Shape of the tree: blocks of a task, and nodes below a node. By default a task has 16
        blocks, more where there would be over 2048 tasks: each leaves some kilobytes in the
        scheduler.

    Returns
    -------
    value, summary
        The value is None where no block was wanted.

    Raises
    ------
    BlocksFailed
        When blocks failed: a reduction without them would be a wrong number.
    """
    started = time.perf_counter()
    summary = Summary(plan.stage, len(plan.grid))
    job = _Reduction(function, combine, plan.grid, mask, retries)
    with connect(client, workers=workers) as pool:
        check_plan(plan, pool.slots, pool.worker_bytes)
        note = f"dashboard: {pool.dashboard}" if pool.dashboard else None
        with ProgressBar(plan.stage, len(plan.grid), note) as bar:
            tree: list[list[Any]] = [[]]
            size = batch or max(SMALLEST_REDUCTION, -(-len(plan.grid) // MOST_REDUCTIONS))
            for leaf in _leaves(pool, job, size, bar):
                _grow(tree, leaf, pool, job, fan_in)
            remaining = [node for level in reversed(tree) for node in level]
            if not remaining:
                return None, summary
            top: _Partial = pool.submit(_combine, job, remaining).result()
    _count(top.report, summary)
    summary.seconds = time.perf_counter() - started
    note_summary(summary)
    if top.report.failures:
        raise BlocksFailed(plan.stage, top.report.failures, summary.n_blocks, summary.n_done)
    return top.value, summary


def _leaves(pool: Pool, job: _Reduction, batch: int, bar: ProgressBar) -> Iterator[Any]:
    """Submit the batches in order, a window at a time; yield their futures in order."""
    under_way: dict[Any, range] = {}
    for first in range(0, len(job.grid), batch):
        numbers = range(first, min(first + batch, len(job.grid)))
        while len(under_way) >= WINDOW_PER_SLOT * pool.slots:
            _note_ended(pool, under_way, bar)
        future = pool.submit(_reduce_batch, job, numbers)
        under_way[future] = numbers
        yield future
    while under_way:
        _note_ended(pool, under_way, bar)


def _note_ended(pool: Pool, under_way: dict[Any, range], bar: ProgressBar) -> None:
    for future in pool.wait(under_way):
        bar.advance(len(under_way.pop(future)), 0)


def _grow(tree: list[list[Any]], node: Any, pool: Pool, job: _Reduction, fan_in: int) -> None:
    """Add a node to the tree; a full level becomes one node of the next, like a carry."""
    depth = 0
    tree[0].append(node)
    while len(tree[depth]) == fan_in:
        carry = pool.submit(_combine, job, tree[depth])
        tree[depth] = []
        depth += 1
        if depth == len(tree):
            tree.append([])
        tree[depth].append(carry)


def _reduce_batch(job: _Reduction, numbers: range) -> _Partial:
    report = Report()
    values = []
    started = time.perf_counter()
    as_job = _Job(
        lambda block: {"value": job.function(block)}, job.grid, None, job.mask, job.retries
    )
    with watch_traffic() as traffic:
        for number in numbers:
            block = job.grid[number]
            outcome = _run_block(as_job, block)
            if isinstance(outcome, Failure):
                report.failures.append(outcome)
                continue
            report.n_done += 1
            report.n_voxels += block.write.size
            report.n_empty += bool(outcome.get("empty"))
            if "value" in outcome:
                values.append(outcome["value"])
        value = job.combine(values) if values else None
    report.seconds = time.perf_counter() - started
    report.bytes_read, report.bytes_written = traffic.bytes_read, traffic.bytes_written
    report.peak_bytes = peak_memory_bytes()
    return _Partial(value, report)


def _combine(job: _Reduction, parts: list[_Partial]) -> _Partial:
    values = [part.value for part in parts if part.value is not None]
    report = Report(
        n_done=sum(part.report.n_done for part in parts),
        n_empty=sum(part.report.n_empty for part in parts),
        n_voxels=sum(part.report.n_voxels for part in parts),
        failures=[failure for part in parts for failure in part.report.failures],
        bytes_read=sum(part.report.bytes_read for part in parts),
        bytes_written=sum(part.report.bytes_written for part in parts),
        peak_bytes=max(part.report.peak_bytes for part in parts),
    )
    return _Partial(job.combine(values) if values else None, report)
