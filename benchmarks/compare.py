"""How long does it take, and how much memory, to compare many volumes?

1. Tables of objects and density images of 25, 50 … volumes, in two groups: time and the largest
   memory of a process of its own, which must not grow with the number of volumes, save for what is
   kept of them.
2. The mutual Jaccard matrix of volumes of 96×512×512. Each pair needs the packed bits of one volume
   beside the other's; how many bytes a second that is, with reading and packing, and for the
   comparison of what is packed, stands beside what the memory of this machine delivers to as many
   threads.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import report

import cvdask
from cvdask.engine.cluster import machine_limits
from cvdask.synthesis.jaccard import Packed, count_common, packed_shape
from cvdask.synthesis.volume_jaccard import volume_jaccard_matrix
from cvdask.volume.boxes import Box
from cvdask.volume.store import create, describe, publish

CLASSES = {1: "mitochondria", 2: "myofibrils", 3: "z_discs"}
MEASURES = (
    "volume_um3", "surface_um2", "sa_v_per_um", "compactness", "sphericity", "elongation",
    "flatness", "sparseness",
)  # fmt: skip

CHILD = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import cvdask
groups, out = json.loads(sys.argv[1]), sys.argv[2]
started = time.perf_counter()
cvdask.compare(groups=groups, out=out, figures=False, client="threads")
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_volume(url: Path, shape: tuple[int, int, int], n_objects: int, seed: int) -> None:
    """Write random classes, in patches, and a table of objects that has nothing to do with them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, [-(-n // 8) for n in shape], np.uint8)
    data = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[tuple(slice(n) for n in shape)]
    for labels in (None, "classes"):
        volume = describe(
            str(url), shape=shape, dtype="uint8", voxel_size_nm=(20, 20, 20), labels=labels,
            classes=CLASSES if labels else None,
        )  # fmt: skip
        create(volume, {"stage": "benchmark"})
        if labels:
            volume.write(Box.whole(shape), np.ascontiguousarray(data))
        publish(volume)
    columns: dict[str, object] = {
        "label": np.arange(n_objects),
        "class": np.array(list(CLASSES.values()))[rng.integers(0, 3, n_objects)],
        "centroid_z_um": rng.uniform(0, shape[0] * 0.02, n_objects),
        "touches_border": rng.random(n_objects) < 0.1,
        **{measure: rng.gamma(2, size=n_objects) for measure in MEASURES},
    }
    (url / "tables").mkdir()
    pq.write_table(pa.table(columns), url / "tables" / "objects.parquet")


def measure_densities(urls: list[str]) -> None:
    """Give each volume a density image of cubes of 1.28 µm, 0.32 µm apart."""
    for url in urls:
        cvdask.density(
            url, numerator="mitochondria", denominator="myofibrils", kernel_um=1.28, stride_um=0.32,
            client="serial",
        )  # fmt: skip


def tables(urls: list[str], folder: Path) -> list[tuple[object, ...]]:
    rows = []
    n = len(urls)
    for used in sorted({n // 8, n // 4, n // 2, n}):
        groups = {"a": urls[: used // 2], "b": urls[used // 2 : used]}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(groups), str(folder / f"out{used}")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds, megabytes = map(float, done.stdout.split())
        rows.append((used, f"{seconds:.1f}", f"{1000 * seconds / used:.0f}", f"{megabytes:.0f}"))
    return rows


@numba.njit(nogil=True)
def add_up(words: np.ndarray) -> int:
    total = np.uint64(0)
    for word in words:
        total += word
    return total


def in_threads(function: Callable[[Any], Any], parts: Sequence[Any]) -> float:
    """Return the seconds of one thread for each part."""
    with ThreadPoolExecutor(len(parts)) as threads:
        started = time.perf_counter()
        list(threads.map(function, parts))
        return time.perf_counter() - started


def memory_bandwidth(n_threads: int) -> float:
    """Return the bytes a second that threads read, of more than any cache holds."""
    parts = np.ones((n_threads, 2**26), np.uint64)
    add_up(parts[0, :8])
    return parts.nbytes / in_threads(add_up, parts)


def product_bandwidth(n_volumes: int, n_threads: int) -> float:
    """Return the packed bytes a second of the comparison alone, each thread with its own bits."""
    n_voxels = 2**20
    shape = packed_shape(n_volumes, n_voxels, 2)
    bits = np.random.default_rng(0).integers(0, 2**64, shape, np.uint64)
    stacks = [Packed(bits.copy(), n_volumes) for _ in range(n_threads)]
    count_common(stacks[0], stacks[0])
    seconds = in_threads(lambda stack: count_common(stack, stack), stacks)
    return n_threads * n_pairs(n_volumes) * n_voxels / 4 / seconds


def n_pairs(n_volumes: int) -> int:
    return n_volumes * (n_volumes + 1) // 2


def matrix(urls: list[str], shape: tuple[int, int, int]) -> tuple[object, ...]:
    volume_jaccard_matrix(urls[:2], client="threads")  # compiles
    started = time.perf_counter()
    distances = volume_jaccard_matrix(urls, client="threads")
    seconds = time.perf_counter() - started
    assert distances.shape == (len(urls),) * 2
    # Two bits a voxel hold three classes.
    n_bytes = n_pairs(len(urls)) * np.prod(shape) / 4
    n_threads = machine_limits().cores
    memory = memory_bandwidth(n_threads)
    product = product_bandwidth(len(urls), n_threads)
    return (
        len(urls), n_threads, f"{seconds:.1f}", f"{n_bytes / seconds / 1e9:.2f}",
        f"{product / 1e9:.2f}", f"{memory / 1e9:.2f}", f"{n_bytes / seconds / memory:.2f}",
        f"{product / memory:.2f}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 512, 512))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cvdask-compare-"))
    shape = tuple(arguments.shape)
    try:
        urls = [str(folder / f"{k:04d}.zarr") for k in range(arguments.volumes)]
        for k, url in enumerate(urls):
            write_volume(Path(url), shape, arguments.objects, k)
        measure_densities(urls)
        report(
            f"Comparison of volumes with {arguments.objects} objects and a density image each",
            ("volumes", "s", "ms a volume", "largest memory MB"),
            tables(urls, folder),
        )
        report(
            f"Mutual Jaccard matrix of volumes of {'×'.join(map(str, shape))}",
            (
                "volumes", "threads", "s", "packed GB/s", "comparison alone", "memory GB/s",
                "with reading / memory", "comparison / memory",
            ),
            [matrix(urls, shape)],
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
