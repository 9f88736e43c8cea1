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
    """A stage ended with blocks set aside; all others are done and stay done.

    Parameters
    ----------
    stage : str
        Name of the stage.
    failures : sequence of Failure
        The blocks and their causes, in block order.
    n_blocks : int
        Number of blocks of the stage.
    """

    def __init__(self, stage: str, failures: Sequence[Any], n_blocks: int) -> None:
        self.stage = stage
        self.failures = tuple(failures)
        self.n_blocks = n_blocks
        shown = "\n".join(f"  {failure}" for failure in self.failures[:20])
        more = len(self.failures) - 20
        super().__init__(
            f"{stage}: {len(self.failures)} of {n_blocks} blocks failed; the others are done. "
            f"Mend the cause and run the same command again: it takes only these.\n{shown}"
            + (f"\n  … and {more} more" if more > 0 else "")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.failures, self.n_blocks)
