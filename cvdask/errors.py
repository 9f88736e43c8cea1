"""What can go wrong that a caller may want to catch.

Bad input is a :class:`ValueError` (or an :class:`OSError` of the file system) raised before work
starts; the command line turns both into exit code 2. Blocks that failed for good are a
:class:`BlocksFailed`, exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class DamagedData(OSError):
    """Stored bytes do not match their checksum, or cannot be decoded."""


class BlocksFailed(RuntimeError):
    """A stage ended with blocks set aside; those that are done stay done.

    Parameters
    ----------
    stage : str
        Name of the stage.
    failures : sequence of Failure
        The blocks and their causes, in block order.
    n_blocks : int
        Number of blocks of the stage.
    n_done : int
        Of these, the ones that are done, by this run or an earlier one.
    """

    def __init__(self, stage: str, failures: Sequence[Any], n_blocks: int, n_done: int) -> None:
        self.stage = stage
        self.failures = tuple(failures)
        self.n_blocks = n_blocks
        self.n_done = n_done
        n_untried = n_blocks - n_done - len(self.failures)
        untried = f", {n_untried} were not tried" if n_untried else ""
        shown = "\n".join(f"  {failure}" for failure in self.failures[:20])
        more = len(self.failures) - 20
        super().__init__(
            f"{stage}: {len(self.failures)} of {n_blocks} blocks failed, {n_done} are done"
            f"{untried}. Mend the cause and run the same command again.\n{shown}"
            + (f"\n  … and {more} more" if more > 0 else "")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.failures, self.n_blocks, self.n_done)
