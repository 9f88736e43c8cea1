"""Does a training step ever wait for slices that come straight from the store?

A step takes a batch, then computes for ``--step-ms`` on one core, as a device would; the other
cores are the loader's. Slices per second, over several passes, beside the same steps on an array
that holds all slices in memory:

1. from shards on a local disk, everything fits the cache;
2. the same with a cache of a quarter of the slices, so that every pass decodes every shard again;
3. and 4. the same from a bucket (moto's S3 server, a process of its own).

Batches of 32 slices of 128² pixels, reduced by majority from 512² voxels of a synthetic cell. The
default step is twice as fast as the fastest training that is known at this size.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from report import report
from threadpoolctl import threadpool_limits

import cvdask
from cvdask.synthesis.slices import Batch, SliceSet, open_slices
from cvdask.volume.store import create, describe, publish

RESOLUTION, BATCH = 128, 32
DEPTH, SIDE, SLAB = 512, 512, 64
PASSES = 4


def write_labels(url: str, labels: np.ndarray, classes: dict[int, str]) -> None:
    """Write a sample whose shards are slabs of whole slices."""
    common = {"shape": labels.shape, "dtype": "uint8", "voxel_size_nm": (20, 20, 20)}
    common |= {"chunk_shape": (64, 64, 64), "shard_shape": (SLAB, SIDE, SIDE)}
    image = describe(url, **common)  # type: ignore[arg-type]
    volume = describe(url, labels="classes", classes=classes, **common)  # type: ignore[arg-type]
    for part in (image, volume):
        create(part, {"stage": "benchmark", "version": "", "options": {}, "inputs": []})
    for shard in volume.levels[0].shards:
        volume.write(shard.write, labels[shard.write.slices])
    publish(volume)
    publish(image)


@contextmanager
def bucket() -> Iterator[str]:
    """A bucket on loopback, reached through the environment as a user would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark",
    }  # fmt: skip
    try:
        import boto3

        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        while True:  # until it listens
            try:
                client.create_bucket(Bucket="slices")
                break
            except Exception:
                if server.poll() is not None:
                    raise
        yield "s3://slices"
    finally:
        server.terminate()
        server.wait()


def calibrated(step_ms: float) -> Callable[[Batch], float]:
    """Return work on a batch that takes about this long on one core."""
    square = np.random.default_rng(0).random((256, 256), np.float32)

    def multiply(n: int) -> float:
        return sum(float((square @ square)[0, 0]) for _ in range(n))

    multiply(50)
    started = time.perf_counter()
    multiply(200)
    n = max(1, round(step_ms / 1000 / (time.perf_counter() - started) * 200))
    return lambda batch: multiply(n) + float(batch.channels[0, 0, 0, 0])


def in_memory(slices: SliceSet) -> Iterator[Batch]:
    """Yield batches of an array of all slices, in a shuffled order."""
    everything = slices.read(range(slices.n_slices))
    chance = np.random.default_rng(0)
    while True:
        index = chance.integers(0, slices.n_slices, (BATCH, 1))
        yield Batch(everything[index], slices.places(index), index)


def rate(batches: Iterator[Batch], step: Callable[[Batch], float], n_steps: int) -> float:
    """Return slices per second, after the first batch."""
    step(next(batches))
    started = time.perf_counter()
    for _ in range(n_steps):
        step(next(batches))
    return n_steps * BATCH / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=100.0)
    parser.add_argument("--depth", type=int, default=DEPTH)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    folder = Path(tempfile.mkdtemp(prefix="cvdask-slices-"))
    rows = []
    try:
        size = (arguments.depth * 0.02, SIDE * 0.02, SIDE * 0.02)
        truth = cvdask.phantom(
            str(folder / "cell.zarr"), size_um=size, voxel_nm=20, n_levels=1, client="threads"
        ).label("truth")  # type: ignore[union-attr]
        labels = truth.read()
        quarter = arguments.depth * RESOLUTION**2 // 4
        with threadpool_limits(1, "blas"), bucket() as remote:
            step = calibrated(arguments.step_ms)
            n_steps = PASSES * arguments.depth // BATCH
            for place, url in (("local", str(folder / "slices.zarr")), ("S3", f"{remote}/c.zarr")):
                write_labels(url, labels, dict(truth.classes))
                for cache, cache_bytes in (("all", 2**30), ("a quarter", quarter)):
                    slices = open_slices(url, resolution=RESOLUTION, cache_bytes=cache_bytes)
                    batches = slices.batches(BATCH)
                    memory = in_memory(slices)
                    # Before and after, so that a machine that slows down slows both down.
                    before = rate(memory, step, n_steps // 2)
                    found = rate(batches, step, n_steps)
                    held = (before + rate(memory, step, n_steps // 2)) / 2
                    batches.close()  # type: ignore[attr-defined]
                    slices.close()
                    rows.append(
                        (place, cache, f"{held:.0f}", f"{found:.0f}", f"{found / held:.3f}")
                    )
    finally:
        shutil.rmtree(folder)
    report(
        f"Slices: {arguments.depth} × {SIDE}² to {RESOLUTION}², batches of {BATCH}, "
        f"steps of {arguments.step_ms:g} ms, {PASSES} passes",
        ("store", "cache holds", "slices/s in memory", "slices/s from the store", "ratio"),
        rows,
    )


if __name__ == "__main__":
    main()
