"""What does a block cost that does nothing? Time per block, and memory of scheduler and client.

The peers are what one would otherwise write with dask: ``map_blocks`` over block numbers (the block
reads its own region) and ``map_overlap`` (dask moves the halos). Every figure is taken in a process
of its own; scheduler and client live in it, the two workers do not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time

import psutil
from report import report

from cvdask.engine.blockwise import reduce, run
from cvdask.engine.cluster import local_client
from cvdask.engine.ledger import Ledger
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block, Grid


def nothing(block: Block) -> None:
    """Do nothing."""


def count(block: Block) -> int:
    """Return the smallest partial there is."""
    return block.write.size


def plan(n_blocks: int) -> Plan:
    return Plan("nothing", Grid((n_blocks, 1, 1), (1, 1, 1)), tempfile.gettempdir())


def by_engine(client, n_blocks: int) -> None:
    run(nothing, plan(n_blocks), client=client)


def by_engine_with_markers(client, n_blocks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(nothing, plan(n_blocks), client=client, ledger=Ledger(folder, "0"))


def by_reduction(client, n_blocks: int) -> None:
    value, _ = reduce(count, sum, plan(n_blocks), client=client)
    assert value == n_blocks


def by_map_blocks(client, n_blocks: int) -> None:
    import dask.array as da
    import numpy as np

    numbers = da.arange(n_blocks, chunks=1)
    blocks = numbers.map_blocks(lambda block: np.zeros(1, np.uint8), dtype=np.uint8)
    client.compute(blocks.sum(), sync=True)


def by_map_overlap(client, n_blocks: int) -> None:
    import dask.array as da

    side = round(n_blocks ** (1 / 3))
    volume = da.zeros((8 * side,) * 3, chunks=8, dtype="uint8")
    blocks = volume.map_overlap(lambda block: block, depth=1, boundary="none", dtype="uint8")
    client.compute(blocks.sum(), sync=True)


def measure(way: str, n_blocks: int) -> dict[str, float]:
    """Run one way in this process: seconds and growth of its resident memory."""
    with local_client(2) as client:
        by_engine(client, 100)  # connections, imports
        process = psutil.Process()
        before = process.memory_info().rss
        started = time.perf_counter()
        globals()[way](client, n_blocks)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "growth": process.memory_info().rss - before}


CASES = {
    "cvdask": ("by_engine", (10_000, 100_000, 1_000_000)),
    "cvdask, with done markers": ("by_engine_with_markers", (10_000, 100_000, 1_000_000)),
    "cvdask reduce": ("by_reduction", (10_000, 100_000)),
    "dask map_blocks": ("by_map_blocks", (10_000,)),
    "dask map_overlap": ("by_map_overlap", (1_000,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "BLOCKS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    rows = []
    for name, (way, sizes) in CASES.items():
        for n_blocks in sizes:
            command = [sys.executable, __file__, "--one", way, str(n_blocks)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            per_block = figures["seconds"] / n_blocks * 1e3
            rows.append(
                (name, f"{n_blocks:,}", f"{per_block:.3f}", f"{figures['growth'] / 1e6:.0f}")
            )
    report(
        "Engine: blocks that do nothing, 2 workers",
        ("way", "blocks", "ms per block", "scheduler + client growth (MB)"),
        rows,
    )


if __name__ == "__main__":
    main()
