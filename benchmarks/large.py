"""Does a voxel of a large volume cost what one of a small volume costs, in time and in memory?

1. The classes of a synthetic cell are rendered and stored again until the volume is full: every
   period costs the same. They compress well, so 50 Gvoxel take a few GB of disk.
2. ``measure``, ``density`` and ``pyramid`` on workers of this machine, on a small and on the large
   volume, each size in a process of its own after a first run that compiles. Times of the passes
   are told one by one.
3. The largest memory of a worker, the growth of the client's (the scheduler lives in it), and what
   the disk held at most.

The folder is deleted in the end, also where something fails. Nothing begins where the disk has less
free than ``--most-disk`` allows to be used.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cell_samples import repeated_cell
from report import report

import cvdask
from cvdask.engine.cluster import local_client
from cvdask.engine.plan import Summary, watch_summaries

# What a voxel of these classes takes on the disk, with the scratch of a measure: an upper bound.
BYTES_PER_VOXEL = 0.25
# Passes whose share of the time of their stage is below this are not worth a line.
LEAST_SHARE = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--period", type=int, default=1024, help="voxels of the cell, each axis")
    parser.add_argument("--shard", type=int, default=512)
    triple: dict[str, Any] = {"type": int, "nargs": 3, "metavar": ("Z", "Y", "X")}
    parser.add_argument("--small", **triple, default=[2, 1, 1], help="periods of the small volume")
    parser.add_argument("--large", **triple, default=[12, 2, 2], help="and of the large one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kernel-um", type=float, default=4.0, help="of the density")
    parser.add_argument("--stride-um", type=float, default=0.4)
    parser.add_argument("--most-disk", type=float, default=20, metavar="GB")
    parser.add_argument("--folder", type=Path, help="where volumes go")
    parser.add_argument("--one", metavar="REPEATS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(go_through(arguments, json.loads(arguments.one))))
        return
    check_disk(arguments)
    small = apart(arguments, arguments.small)
    large = apart(arguments, arguments.large)
    tell(arguments, small, large)


def check_disk(arguments: argparse.Namespace) -> None:
    """Refuse before work what might fill the disk."""
    voxels = arguments.period**3
    for n in arguments.large:
        voxels *= n
    expected = voxels * BYTES_PER_VOXEL / 1e9
    free = shutil.disk_usage(arguments.folder or tempfile.gettempdir()).free / 1e9
    if expected > arguments.most_disk or arguments.most_disk > free:
        sys.exit(
            f"{voxels / 1e9:.1f} Gvoxel may take {expected:.1f} GB; --most-disk allows "
            f"{arguments.most_disk:g} GB and {free:.1f} GB are free. Give a smaller --large"
        )


def apart(arguments: argparse.Namespace, repeats: list[int]) -> dict[str, Any]:
    """Run one size in a process of its own, whose peak of memory is its own."""
    command = [sys.executable, *sys.argv, "--one", json.dumps(repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def go_through(arguments: argparse.Namespace, repeats: list[int]) -> dict[str, Any]:
    """Write one volume, run the three stages on it, and say what they took."""
    warnings.simplefilter("ignore", UserWarning)  # a stride that is no whole number of voxels
    folder = Path(tempfile.mkdtemp(prefix="cvdask-large-", dir=arguments.folder))
    try:
        with local_client(arguments.workers) as client, watched_disk(folder) as disk:
            warm_up(folder, arguments, client)
            cell = str(folder / "cell.zarr")
            period = (arguments.period,) * 3
            writing, _ = timed(
                lambda: repeated_cell(cell, period, repeats, arguments.shard, client)
            )
            before = peak_bytes()
            stages = {
                name: timed(lambda stage=stage: stage(cell, arguments, client))
                for name, stage in STAGES.items()
            }
            return {
                "voxels": arguments.period**3 * repeats[0] * repeats[1] * repeats[2],
                "writing": writing,
                "client": peak_bytes() - before,
                "disk": max(disk),
                "stages": {
                    name: {"seconds": seconds, "passes": [one.as_dict() for one in passes]}
                    for name, (seconds, passes) in stages.items()
                },
            }
    finally:
        shutil.rmtree(folder)


def warm_up(folder: Path, arguments: argparse.Namespace, client: Any) -> None:
    """Compile everything on every worker, on a cell of several blocks."""
    small = str(folder / "warm.zarr")
    repeated_cell(small, (64,) * 3, (2 * arguments.workers, 2, 2), 64, client)
    for options in ({"block_shape": (32,) * 3}, {}):
        cvdask.measure(small, chart=False, overwrite=True, client=client, **options)
    cvdask.density(small, numerator=1, denominator=2, kernel_um=0.4, stride_um=0.1, client=client)
    cvdask.pyramid(small, labels="classes", client=client)
    shutil.rmtree(small)


def measure(cell: str, arguments: argparse.Namespace, client: Any) -> None:
    cvdask.measure(cell, chart=False, client=client)


def density(cell: str, arguments: argparse.Namespace, client: Any) -> None:
    sizes = {"kernel_um": arguments.kernel_um, "stride_um": arguments.stride_um}
    cvdask.density(cell, numerator=1, denominator=2, client=client, **sizes)


def pyramid(cell: str, arguments: argparse.Namespace, client: Any) -> None:
    cvdask.pyramid(cell, labels="classes", client=client)


STAGES: dict[str, Callable[[str, argparse.Namespace, Any], None]] = {
    "measure": measure,
    "density": density,
    "pyramid": pyramid,
}


def timed(function: Callable[[], Any]) -> tuple[float, list[Summary]]:
    started = time.perf_counter()
    with watch_summaries() as summaries:
        function()
    return time.perf_counter() - started, summaries


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def watched_disk(folder: Path) -> Iterator[list[int]]:
    """Note what the disk of a folder holds more than in the beginning, twice a second."""
    before = shutil.disk_usage(folder).used
    found, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            found.append(shutil.disk_usage(folder).used - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def tell(arguments: argparse.Namespace, small: dict[str, Any], large: dict[str, Any]) -> None:
    sizes = [f"{one['voxels'] / 1e9:.3g} Gvoxel" for one in (small, large)]
    rows = []
    for name in STAGES:
        both = [one["stages"][name] for one in (small, large)]
        rows.append((f"**{name}**", *compared([one["seconds"] for one in both], small, large)))
        for own in zip(*(one["passes"] for one in both), strict=False):
            if own[1]["seconds"] >= LEAST_SHARE * both[1]["seconds"]:
                seconds = [one["seconds"] for one in own]
                rows.append((own[1]["stage"], *compared(seconds, small, large)))
    report(
        f"The same cell again and again, {arguments.workers} workers: time",
        ("stage, pass", *(f"ns per voxel, {size}" for size in sizes), "large / small", "large (s)"),
        rows,
    )
    rows = []
    for size, one in zip(sizes, (small, large), strict=True):
        peaks = [
            max(each["peak_worker_bytes"] for each in one["stages"][name]["passes"])
            for name in STAGES
        ]
        blocks = sum(each["n_blocks"] for name in STAGES for each in one["stages"][name]["passes"])
        rows.append(
            (
                size,
                f"{blocks:,}",
                *(f"{peak / 2**20:.0f}" for peak in peaks),
                f"{one['client'] / 2**20:.1f}",
                f"{one['disk'] / 1e9:.2f}",
                f"{one['writing']:.0f}",
            )
        )
    report(
        "The same: memory and disk (a worker's peak never falls from stage to stage)",
        (
            "volume",
            "blocks of all passes",
            *(f"peak of a worker, {name} (MiB)" for name in STAGES),
            "growth of client and scheduler (MiB)",
            "disk at most (GB)",
            "writing the volume (s)",
        ),
        rows,
    )


def compared(
    seconds: list[float], small: dict[str, Any], large: dict[str, Any]
) -> tuple[str, str, str, str]:
    per_voxel = [
        1e9 * each / one["voxels"] for each, one in zip(seconds, (small, large), strict=True)
    ]
    return (
        f"{per_voxel[0]:.2f}",
        f"{per_voxel[1]:.2f}",
        f"{per_voxel[1] / per_voxel[0]:.2f}",
        f"{seconds[1]:.1f}",
    )


if __name__ == "__main__":
    main()
