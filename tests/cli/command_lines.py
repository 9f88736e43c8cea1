"""What the tests of the command line share: the command in a process of its own, and its help."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

# 25 × 50 × 50 voxels: one shard, no coarser level.
SMALL = "--size-um 1 2 2 --voxel-nm 40"
VOLUME_COMMANDS = ("phantom", "ingest", "info", "pyramid", "verify", "export")
SEGMENTATION_COMMANDS = ("train-unet", "study-imbalance", "segment", "evaluate")
FIELD_COMMANDS = ("density", "descriptors")
OBJECT_COMMANDS = ("label", "measure")
MESH_COMMANDS = ("mesh",)
SYNTHESIS_COMMANDS = ("train-gan",)
ENSEMBLE_COMMANDS = ("generate", "distance")
ORDERING_COMMANDS = ("order",)
COMPARISON_COMMANDS = ("compare", "report", "view")
PIPELINE_COMMANDS = ("run", "init")
CLUSTER_COMMANDS = ("cluster",)
COMMANDS = (
    *VOLUME_COMMANDS,
    *SEGMENTATION_COMMANDS,
    *FIELD_COMMANDS,
    *OBJECT_COMMANDS,
    *MESH_COMMANDS,
    *SYNTHESIS_COMMANDS,
    *ENSEMBLE_COMMANDS,
    *ORDERING_COMMANDS,
    *COMPARISON_COMMANDS,
    *PIPELINE_COMMANDS,
    *CLUSTER_COMMANDS,
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")

Call = Callable[..., tuple[int, str, str]]


def in_own_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command line as the shell does."""
    return subprocess.run(
        [sys.executable, "-m", "cvdask", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def example_of(text: str) -> str:
    """Return the command that a help text ends in; it stands on one line, so it can be copied."""
    last = ANSI.sub("", text).strip().splitlines()[-1].strip()
    assert last.startswith("Example: cvdask "), last
    return last.removeprefix("Example: cvdask ")
