"""What will be done, and what was done: plans and summaries, as values.

A :class:`Plan` is made from integers alone, before a pixel is read. It is printed by ``--dry-run``,
and :func:`check_plan` refuses what cannot work with the numbers that say why. A :class:`Summary` is
what a run leaves: one line for people, one dictionary for machines.
"""

from __future__ import annotations

import contextvars
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cvdask.volume.boxes import Box, Grid
from cvdask.volume.objects import is_remote, redact


@dataclass(frozen=True)
class Plan:
    """One stage over the blocks of a grid.

    Parameters
    ----------
    stage : str
        Name of the stage, as in provenance and messages.
    grid : Grid
        The blocks.
    output : str
        URL that is written.
    read_bytes, write_bytes : int
        Voxels that all blocks together read (halos included) and write, uncompressed.
    task_bytes : int
        Memory of one block at its peak.
    stored_bytes : int
        Estimate of what the output will take, compressed.
    notes : mapping
        What else the stage has decided and the reader should see.
    """

    stage: str
    grid: Grid
    output: str
    read_bytes: int = 0
    write_bytes: int = 0
    task_bytes: int = 0
    stored_bytes: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return {
            "stage": self.stage,
            "output": redact(self.output),
            "n_blocks": len(self.grid),
            "block_shape": list(self.grid.block_shape),
            "halo": [list(pair) for pair in self.grid.pairs],
            "shape": list(self.grid.shape),
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "task_bytes": self.task_bytes,
            "stored_bytes_estimate": self.stored_bytes,
            **self.notes,
        }

    def __str__(self) -> str:
        rows = (f"  {key:<22} {_readable(key, value)}" for key, value in self.as_dict().items())
        return "\n".join(("plan:", *rows))


def check_plan(plan: Plan, n_workers: int, worker_bytes: int, n_done: int = 0) -> None:
    """Refuse a plan that cannot work here, before any work.

    Parameters
    ----------
    plan : Plan
    n_workers : int
        Blocks that are worked on at the same time.
    worker_bytes : int
        Memory that each of them may use.
    n_done : int
        Blocks whose output is on the disk already.

    Raises
    ------
    MemoryError
        When one block needs more memory than a worker has.
    OSError
        When the output is estimated not to fit on the local disk.
    """
    if plan.task_bytes > worker_bytes:
        raise MemoryError(
            f"{plan.stage}: a block of {plan.grid.block_shape} voxels needs about "
            f"{size_text(plan.task_bytes)}, each of {n_workers} workers has "
            f"{size_text(worker_bytes)}. Use fewer workers (--workers) or smaller shards"
        )
    _check_space(plan.stage, plan.output, plan.stored_bytes, n_done / max(1, len(plan.grid)))


def check_plans(plans: Sequence[Plan], n_workers: int, worker_bytes: int) -> None:
    """Refuse the plans of a stage that cannot work here, before anything is created.

    Parameters
    ----------
    plans : sequence of Plan
        All that write to one output: together they have to fit its disk.
    n_workers, worker_bytes : int
        As in :func:`check_plan`.

    Raises
    ------
    MemoryError, OSError
        As :func:`check_plan`.
    """
    for plan in plans:
        check_plan(plan, n_workers, worker_bytes)
    _check_space(plans[0].stage, plans[0].output, sum(plan.stored_bytes for plan in plans), 0.0)


def _check_space(stage: str, output: str, stored_bytes: int, done: float) -> None:
    """Refuse an output that is estimated not to fit; ``done`` is the share that is there."""
    if is_remote(output) or not stored_bytes:
        return
    free = shutil.disk_usage(existing_parent(output)).free
    needed = stored_bytes * (1 - done)
    if needed > free:
        still = "what is left of the output" if done else "the output"
        raise OSError(
            f"{stage}: {still} is estimated at {size_text(needed)}, the disk of "
            f"{output} has {size_text(free)} free. Free some, or give another destination"
        )


def existing_parent(path: str) -> Path:
    """Return the path itself or its nearest parent that exists."""
    candidate = Path(path)
    while not candidate.exists():
        candidate = candidate.parent
    return candidate


@dataclass(frozen=True)
class Failure:
    """A block that was set aside.

    Parameters
    ----------
    block : int
        Its number in the grid.
    box : Box
        What it would have written.
    cause : str
        The exception, in one line.
    attempts : int
        How often it was tried.
    fatal : bool
        Whether every other block would meet the same cause, such as a full disk.
    """

    block: int
    box: Box
    cause: str
    attempts: int
    fatal: bool = False

    def __str__(self) -> str:
        return f"block {self.block} (box {self.box}), tried {self.attempts} ×: {self.cause}"


@dataclass
class Summary:
    """What a run did.

    Parameters
    ----------
    stage : str
    n_blocks : int
        Blocks of the grid.
    n_done : int
        Blocks computed by this run.
    n_resumed : int
        Blocks that an earlier run had finished.
    n_empty : int
        Of the blocks of this run, those skipped because they were empty or masked out.
    n_voxels : int
        Voxels of the blocks of this run.
    seconds : float
        Wall time.
    bytes_read, bytes_written : int
        What went through the store, compressed.
    peak_worker_bytes : int
        Largest resident set of any process that worked.
    """

    stage: str
    n_blocks: int = 0
    n_done: int = 0
    n_resumed: int = 0
    n_empty: int = 0
    n_voxels: int = 0
    seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_worker_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        rate = self.n_voxels / self.seconds if self.seconds else 0.0
        return {**asdict(self), "voxels_per_second": rate}

    def __str__(self) -> str:
        rate = self.n_voxels / self.seconds / 1e6 if self.seconds else 0.0
        extra = f", {self.n_empty} empty" if self.n_empty else ""
        extra += f", {self.n_resumed} done before" if self.n_resumed else ""
        return (
            f"{self.stage}: {self.n_done} of {self.n_blocks} blocks{extra}, "
            f"{self.n_voxels / 1e6:.1f} Mvoxel in {self.seconds:.1f} s ({rate:.1f} Mvoxel/s), "
            f"read {size_text(self.bytes_read)}, wrote {size_text(self.bytes_written)}, "
            f"peak worker memory {size_text(self.peak_worker_bytes)}"
        )


_summaries: contextvars.ContextVar[list[Summary] | None] = contextvars.ContextVar(
    "summaries", default=None
)


class watch_summaries:
    """Gather the summaries of all stages that run inside a ``with`` statement, in order.

    For whoever reports on a function that returns what it wrote rather than how. A stage that
    ends with failed blocks leaves its summary too.

    Examples
    --------
    >>> with watch_summaries() as summaries:
    ...     note_summary(Summary("label", n_blocks=8))
    >>> [summary.stage for summary in summaries]
    ['label']
    """

    def __enter__(self) -> list[Summary]:
        summaries: list[Summary] = []
        self._token = _summaries.set(summaries)
        return summaries

    def __exit__(self, *_: object) -> None:
        _summaries.reset(self._token)


def note_summary(summary: Summary) -> None:
    """Show a summary to whoever is watching."""
    watching = _summaries.get()
    if watching is not None:
        watching.append(summary)


def size_text(n_bytes: float) -> str:
    """Write a number of bytes for people.

    >>> size_text(134217728)
    '134.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} PB"


def _readable(key: str, value: Any) -> str:
    if "bytes" in key and isinstance(value, int):
        return size_text(value)
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value)) if value else "none"
    return str(value)
