"""How far is it? A progress bar with rate and remaining time on standard error.

Silent where standard error is no terminal, so that logs of batch jobs hold one summary line.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """Show blocks done, voxels per second and the remaining time of a stage.

    Parameters
    ----------
    title : str
        Name of the stage.
    n_blocks : int
        Blocks to do.
    note : str, optional
        Said once before the bar, such as a dashboard's address.
    unit : str
        What is counted instead of blocks; the rate is then in these.
    """

    def __init__(
        self, title: str, n_blocks: int, note: str | None = None, unit: str = "blocks"
    ) -> None:
        console = Console(file=sys.stderr)
        self._n_voxels = 0
        self._unit = unit
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn(f"{{task.completed}}/{{task.total}} {unit}, {{task.fields[rate]}}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        if note and console.is_terminal:
            console.print(note)
        self._task = self._bar.add_task(title, total=n_blocks, rate="starting")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, n_blocks: int, n_voxels: int) -> None:
        """Count blocks that have ended."""
        self._n_voxels += n_voxels
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = "starting"
        if elapsed and self._unit == "blocks":
            rate = f"{self._n_voxels / elapsed / 1e6:.1f} Mvoxel/s"
        elif elapsed:
            rate = f"{self._n_voxels / elapsed:.1f} {self._unit}/s"
        self._bar.update(self._task, advance=n_blocks, rate=rate)
