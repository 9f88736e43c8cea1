"""Do twice the workers do twice the work, what do they cost, and what does a bucket cost?

1. *Weak scaling*: n workers on n times the volume, ``measure`` and ``segment``, each with n cores
   of this machine to themselves and the scheduler. The efficiency is the time of one over that of
   n: 1 is perfect. Beside ``segment``, its network alone, slices in memory, in n processes: what
   the machine itself loses where n cores share its memory.
2. *Overhead*: the same blocks of about a second in a plain loop and on a Dask worker; first blocks
   that only compute, then those of ``measure``.
3. *Object store*: ``measure`` and ``segment`` from and to a local folder, and from and to a bucket
   of moto's S3 server on loopback, which keeps its objects in memory and has the other core.

Every figure is taken in a process of its own, after a first run on a small sample that compiles and
loads the network. Where several runs are asked for, the median is given.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from cell_samples import VOXEL_NM, repeated_cell, repeated_image
from report import report

import cvdask
from cvdask.engine.blockwise import run
from cvdask.engine.cluster import local_client
from cvdask.engine.ledger import Ledger
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block, Grid
from cvdask.volume.cell import CLASSES

SLICES = 4  # of a block of segment
NETWORK_SLICES = 8  # for the network alone
BUCKET = "scaling"
BUSY_BYTES = 2**20  # hashed at a time by a block that only computes


# ---------------------------------------------------------------------------------------------
# Ways; each in a process of its own


def timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(sample: str, client: Any, block: int) -> None:
    cvdask.measure(sample, chart=False, overwrite=True, client=client, block_shape=(block,) * 3)


def segment(sample: str, client: Any, model: str) -> None:
    cvdask.segment(sample, model, name="segmented", overwrite=True, client=client)


def seconds_of(verb: str, folder: str, sample: str, client: Any, block: int) -> float:
    """Run a stage on a small sample, then on the one that is asked for."""
    small, model = f"{folder}/small.zarr", f"{folder}/model.keras"
    if verb == "measure":
        measure(small, client, 32)
        return timed(lambda: measure(sample, client, block))
    segment(f"{folder}/small-image.zarr", client, model)
    return timed(lambda: segment(sample, client, model))


def by_workers(n: str, verb: str, folder: str, block: str) -> float:
    """Give n workers n cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(n)])
    sample = f"{folder}/{'cell' if verb == 'measure' else 'image'}-{n}.zarr"
    with local_client(int(n)) as client:
        return seconds_of(verb, folder, sample, client, int(block))


def by_network(n: str, folder: str) -> float:
    """Let n processes, each on a core of its own, classify slices in memory at the same time."""
    cores = sorted(os.sched_getaffinity(0))[: int(n)]
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(len(cores))
    with ProcessPoolExecutor(len(cores), spawn, _begin_together, (together,)) as pool:
        return max(pool.map(partial(classify, folder), cores))


def _begin_together(barrier: Any) -> None:
    global _together
    _together = barrier


def classify(folder: str, core: int) -> float:
    from cvdask.segmentation import model_file
    from cvdask.segmentation.forward import NetworkSettings, load_network

    os.sched_setaffinity(0, {core})
    model = f"{folder}/model.keras"
    network = load_network(NetworkSettings(model, model_file.digest(model), "float32", threads=1))
    volume = cvdask.open(f"{folder}/image-1.zarr")
    plan = cvdask.segment(volume, model, name="segmented", overwrite=True, dry_run=True)[0]
    images = volume.read(cvdask.Box.parse(f"0:{NETWORK_SLICES},:,:", volume.shape))
    network.classify(images[:SLICES], plan.notes["batch_size"])
    _together.wait()
    return timed(lambda: network.classify(images, plan.notes["batch_size"]))


def by_one(where: str, verb: str, folder: str, block: str) -> float:
    """Measure in a plain loop or on one worker; both have one core."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    with contextlib.nullcontext() if where == "serial" else local_client(1) as client:
        return seconds_of(verb, folder, f"{folder}/cell-1.zarr", client, int(block))


def by_store(url: str, verb: str, folder: str, block: str) -> float:
    """Run a stage in a plain loop on a sample below a URL; the network stays where it is."""
    name = "cell" if verb == "measure" else "image"
    return seconds_of(verb, folder, f"{url}/{name}-1.zarr", None, int(block))


def busy(times: int, block: Block) -> None:
    data = bytes(BUSY_BYTES)
    for _ in range(times):
        hashlib.sha256(data).digest()


def by_nothing(where: str, n_blocks: str, folder: str, times: str) -> float:
    """Run blocks that only compute, with their markers."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])

    def blocks(n: int, client: Any) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as store:
            plan = Plan("busy", Grid((n, 1, 1), (1, 1, 1)), store)
            run(partial(busy, int(times)), plan, client=client, ledger=Ledger(store, "0"))

    with contextlib.nullcontext() if where == "serial" else local_client(1) as client:
        blocks(1, client)
        return timed(lambda: blocks(int(n_blocks), client))


WAYS: dict[str, Callable[[str, str, str, str], float]] = {
    "workers": by_workers,
    "network": by_network,
    "one": by_one,
    "store": by_store,
    "nothing": by_nothing,
}


def apart(repeats: int, *words: object, environment: dict[str, str] | None = None) -> float:
    """Return the median of runs in processes of their own."""
    command = [sys.executable, __file__, "--one", *map(str, words)]
    found = []
    for _ in range(repeats):
        done = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return float(np.median(found))


# ---------------------------------------------------------------------------------------------
# Samples


def write_samples(folder: Path, arguments: argparse.Namespace) -> None:
    """Write a cell and an image for each number of workers, and what warms them up."""
    repeated_cell(str(folder / "small.zarr"), (64,) * 3, (1, 1, 1), 64)
    side = arguments.image_side
    small = str(folder / "small-image.zarr")
    repeated_image(small, side // 4, SLICES, 4 * SLICES, (SLICES, side // 4, side // 4))
    if "segment" in arguments.verbs:
        write_model(folder / "model.keras")
    for n in arguments.workers:
        cell = str(folder / f"cell-{n}.zarr")
        repeats = (n * arguments.times, 1, 1)
        repeated_cell(cell, (arguments.side,) * 3, repeats, arguments.block, "threads")
        image = str(folder / f"image-{n}.zarr")
        chunk = (SLICES, min(256, side), min(256, side))
        repeated_image(image, side, SLICES, n * arguments.depth, chunk, "threads")


def write_model(path: Path) -> None:
    """Save a network with random weights: its speed does not depend on them."""
    from cvdask.segmentation import model_file
    from cvdask.segmentation.model_file import UNet
    from cvdask.segmentation.unet import Architecture, build

    architecture = Architecture(n_classes=len(CLASSES) + 1, preset="fast")
    unet = UNet(architecture, CLASSES, 128.0, 40.0, (VOXEL_NM,) * 3, "uint8")
    model_file.save(unet, build(architecture), path)


def work_of(verb: str, arguments: argparse.Namespace) -> float:
    """Return the Mvoxel of a sample for one worker."""
    if verb == "measure":
        return float(arguments.side**3 * arguments.times / 1e6)
    if verb != "segment":
        return float(arguments.image_side**2 * NETWORK_SLICES / 1e6)
    return float(arguments.image_side**2 * arguments.depth / 1e6)


# ---------------------------------------------------------------------------------------------
# The three parts


def weak(folder: Path, arguments: argparse.Namespace) -> None:
    rows = []
    network = ["its network alone"] if "segment" in arguments.verbs else []
    for verb in [*arguments.verbs, *network]:
        base = 0.0
        for n in arguments.workers:
            if verb in arguments.verbs:
                seconds = apart(arguments.repeats, "workers", n, verb, folder, arguments.block)
            else:
                seconds = apart(arguments.repeats, "network", n, folder)
            base = base or seconds
            mvoxel = n * work_of(verb, arguments)
            rows.append(
                (
                    verb,
                    n,
                    f"{mvoxel:.0f}",
                    f"{seconds:.1f}",
                    f"{mvoxel / seconds:.1f}",
                    f"{base / seconds:.2f}",
                )
            )
    report(
        "Weak scaling: n workers on n times the volume",
        ("stage", "workers", "Mvoxel", "s", "Mvoxel/s", "efficiency"),
        rows,
    )


def overhead(folder: Path, arguments: argparse.Namespace) -> None:
    block = Grid((1, 1, 1), (1, 1, 1))[0]
    times = max(1, round(arguments.block_seconds / (timed(lambda: busy(200, block)) / 200)))
    n_blocks = arguments.blocks
    mvoxel_blocks = arguments.times * (arguments.side // arguments.block) ** 3
    rows = []
    for name, n, words in (
        ("only computing", n_blocks, ("nothing", n_blocks, folder, times)),
        ("measure", mvoxel_blocks, ("one", "measure", folder, arguments.block)),
    ):
        way, *rest = words
        serial, distributed = (
            apart(arguments.repeats, way, where, *rest) for where in ("serial", "distributed")
        )
        rows.append(
            (
                name,
                n,
                f"{serial / n:.2f}",
                f"{serial:.1f}",
                f"{distributed:.1f}",
                f"{distributed / serial - 1:+.1%}",
            )
        )
    report(
        "Overhead of a Dask worker against a plain loop, one core",
        ("blocks", "number", "s per block", "loop (s)", "one worker (s)", "overhead"),
        rows,
    )


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Start moto's server with a bucket, and yield the environment that leads to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    in_memory = {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**32)}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **in_memory},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        for attempt in range(100):
            try:
                urllib.request.urlopen(request).close()
                break
            except OSError:
                if attempt == 99 or server.poll() is not None:
                    raise
                time.sleep(0.2)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
        }
    finally:
        server.terminate()
        server.wait()


def upload(folder: Path, url: str) -> None:
    """Copy the samples of one worker into the bucket, in the environment of this process."""
    from cvdask.volume.objects import write_object

    for name in ("cell-1.zarr", "image-1.zarr"):
        for path in sorted((folder / name).rglob("*")):
            key = path.relative_to(folder / name)
            # What an earlier part has written is made anew.
            if (
                path.is_file()
                and key.parts[0] != "tables"
                and key.parts[:2]
                != (
                    "labels",
                    "segmented",
                )
            ):
                write_object(f"{url}/{name}", str(key), path.read_bytes())


def object_store(folder: Path, arguments: argparse.Namespace) -> None:
    rows = []
    url = f"s3://{BUCKET}"
    with s3_server() as environment:
        os.environ.update(environment)
        upload(folder, url)
        for verb in arguments.verbs:
            local, remote = (
                apart(arguments.repeats, "store", where, verb, folder, arguments.block)
                for where in (folder, url)
            )
            mvoxel = work_of(verb, arguments)
            rows.append(
                (
                    verb,
                    f"{mvoxel:.0f}",
                    f"{mvoxel / local:.1f}",
                    f"{mvoxel / remote:.1f}",
                    f"{local / remote:.2f}",
                )
            )
    report(
        "S3 (moto's server on loopback, in memory) against a local folder, a plain loop",
        ("stage", "Mvoxel", "local (Mvoxel/s)", "S3 (Mvoxel/s)", "S3 / local"),
        rows,
    )


PARTS = {"weak": weak, "overhead": overhead, "store": object_store}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(PARTS), nargs="+")
    parser.add_argument("--verbs", choices=["measure", "segment"], nargs="+")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=512, help="of the cell, in voxels")
    parser.add_argument("--times", type=int, default=8, help="cells for each worker")
    parser.add_argument("--block", type=int, default=256, help="of measure; shards are as large")
    parser.add_argument("--image-side", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=32, help="slices for each worker")
    parser.add_argument("--blocks", type=int, default=30, help="that only compute")
    parser.add_argument("--block-seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where samples go (1 GB)")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, *words = arguments.one
        print(json.dumps(WAYS[way](*words)))
        return
    arguments.verbs = arguments.verbs or ["measure", "segment"]
    if 1 not in arguments.workers:
        parser.error("one worker is what the others are compared with: give --workers 1 …")
    folder = Path(tempfile.mkdtemp(prefix="cvdask-scaling-", dir=arguments.folder))
    try:
        write_samples(folder, arguments)
        for part in arguments.only or PARTS:
            PARTS[part](folder, arguments)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
