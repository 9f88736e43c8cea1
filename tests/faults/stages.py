"""One stage on a small cell, in a process that kills itself where it is told to.

``python -m tests.faults.stages STAGE URL CLIENT LAST`` runs a stage and counts what it does to the
files of its output. Before operation LAST it kills itself, as the system would; with 0 it ends, and
prints how many there were. So every moment between two operations can be hit exactly.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import cvdask
from cvdask.engine import blockwise
from cvdask.morphometry import density as density_module
from cvdask.volume import ingest as ingest_module
from tests.samples import write_sample

STAGES = ("ingest", "pyramid", "label", "measure", "density")
SHAPE = (16, 32, 32)
SHAPES = {"chunk_shape": (4, 8, 8), "shard_shape": (4, 16, 16)}
COUNTED = ("open", "os.rename", "os.remove", "os.rmdir")


def prepare(stage: str, url: Path) -> None:
    """Write what a stage starts from."""
    rng = np.random.default_rng(0)
    grey = rng.integers(1, 255, SHAPE, np.uint8)
    url.parent.mkdir(parents=True)
    if stage == "ingest":
        tifffile.imwrite(url.parent / "raw.tif", grey)
        return
    write_sample(url, grey, **SHAPES)
    specks = (rng.random(SHAPE) < 0.15).astype(np.uint8)
    write_sample(url, specks, labels="classes", classes={1: "specks"}, **SHAPES)


def small_blocks(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let stages work in blocks of a small cell, each with a marker of its own.

    ``put`` is what sets an attribute: pytest's gives back what was there.
    """
    put(blockwise, "batch_seconds", lambda slots: 0.0)
    put(ingest_module, "_shapes", lambda source, itemsize: tuple(SHAPES.values()))
    put(density_module, "CHUNK", 4)
    put(density_module, "SHARD", 8)


def run(stage: str, url: Path, client: str = "serial") -> None:
    """Run a stage, or go on with it."""
    place = str(url)
    if stage == "ingest":
        cvdask.ingest(url.parent / "raw.tif", place, voxel_nm=10, n_levels=2, client=client)
    elif stage == "pyramid":
        cvdask.pyramid(place, n_levels=3, client=client)
    elif stage == "label":
        cvdask.label(place, class_="specks", block_shape=(4, 16, 16), client=client)
    elif stage == "measure":
        cvdask.measure(place, block_shape=(4, 16, 16), chart=False, csv=True, client=client)
    else:
        cvdask.density(
            place, numerator=1, denominator="all", kernel_um=0.16, stride_um=0.04, client=client
        )


def main(stage: str, url: str, client: str, last: str) -> None:
    """Run a stage and count, as the command line says."""
    seen = 0

    def look(event: str, values: tuple[object, ...]) -> None:
        nonlocal seen
        if event in COUNTED and url in str(values[0]):
            seen += 1
            if seen == int(last):
                os.kill(os.getpid(), signal.SIGKILL)

    small_blocks()
    sys.addaudithook(look)
    run(stage, Path(url), client)
    print(seen)


if __name__ == "__main__":
    main(*sys.argv[1:])
