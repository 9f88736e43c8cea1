"""How long does it take, and how much memory, to compare many volumes?

1. Tables of objects of 25, 50 … volumes, in two groups: time and the largest memory of a process of
   its own, which must not grow with the number of volumes, save for what is kept of them.
2. The mutual Jaccard matrix of volumes of 96×512×512, beside the time in which their packed bits
   are read from memory as often as each pair needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import report

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


def matrix(urls: list[str], shape: tuple[int, int, int]) -> tuple[object, ...]:
    started = time.perf_counter()
    distances = volume_jaccard_matrix(urls, client="threads")
    seconds = time.perf_counter() - started
    assert distances.shape == (len(urls),) * 2
    # Two bits a voxel hold three classes; the smallest pass over memory reads each volume once.
    n_bytes = len(urls) * np.prod(shape) / 4
    block = np.ones(2**27, np.uint8)
    block.sum(dtype=np.uint64)
    started = time.perf_counter()
    block.view(np.uint64).sum()
    bandwidth = block.size / (time.perf_counter() - started)
    pairs = len(urls) * (len(urls) + 1) / 2
    bits = pairs * np.prod(shape) * 2
    return (
        len(urls), f"{seconds:.1f}", f"{bits / seconds / 8e9:.2f}", f"{bandwidth / 1e9:.2f}",
        f"{n_bytes / 1e6:.0f}",
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
        report(
            f"Comparison of volumes with {arguments.objects} objects each",
            ("volumes", "s", "ms a volume", "largest memory MB"),
            tables(urls, folder),
        )
        report(
            f"Mutual Jaccard matrix of volumes of {'×'.join(map(str, shape))}",
            ("volumes", "s", "packed GB/s", "memory GB/s", "MB of bits"),
            [matrix(urls, shape)],
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
