"""How far is segmenting a volume from the network alone, and the network from the hardware?

1. Whole-volume ``segment`` (halo, reading, writing, markers) against the same network on the same
   device with the same slices in memory: a volume whose slices fit a block, and one that is tiled
   in y and x. Peak memory beside what the plan said.
2. The network in float32 against the largest rate of matrix products that the machine reaches, and
   bfloat16 against float32.

Weights are random: speed does not depend on them. On a GPU the same script prints its figures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from report import report

import cvdask
from cvdask.engine.blockwise import peak_memory_bytes
from cvdask.engine.cluster import machine_limits
from cvdask.engine.plan import watch_summaries
from cvdask.segmentation import model_file
from cvdask.segmentation.forward import (
    Network,
    NetworkSettings,
    has_gpu,
    load_network,
    supports_bfloat16,
)
from cvdask.segmentation.model_file import UNet
from cvdask.segmentation.predict import segment
from cvdask.segmentation.unet import PRESETS, Architecture, build, flops_per_pixel
from cvdask.volume.cell import CLASSES
from cvdask.volume.store import Volume

VOXEL_NM = 20.0


def write_model(path: Path, preset: str) -> Path:
    architecture = Architecture(n_classes=len(CLASSES) + 1, preset=preset)
    unet = UNet(architecture, CLASSES, 128.0, 40.0, (VOXEL_NM,) * 3, "uint8")
    model_file.save(unet, build(architecture), path)
    return path


def load(path: Path, precision: str = "float32") -> Network:
    cores = machine_limits().cores
    digest = model_file.digest(path)
    return load_network(NetworkSettings(str(path), digest, precision, threads=cores))


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Take the median of several runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def compare(
    folder: Path, model: Path, side: int, block: int | None, depth: int, repeats: int
) -> tuple[str, ...]:
    """Compare segment with the network alone, on the same voxels."""
    volume = phantom(folder / f"{side}.zarr", side, depth)
    images = volume.read()
    network = load(model)
    options: dict[str, Any] = {
        "block_yx": (block, block) if block else None,
        "overwrite": True,
        "client": "threads" if has_gpu() else None,
    }
    plan = segment(volume, model, dry_run=True, **options)[0]
    network.classify(images[:1, :64, :64], 1)
    before = peak_memory_bytes()
    used = 0
    inside, alone, command = [], [], []
    for _ in range(repeats):
        started = time.perf_counter()
        with watch_summaries() as summaries:
            segment(volume, model, **options)
        command.append(time.perf_counter() - started)
        inside.append(summaries[0].seconds)
        # Of the first run: the peak never falls, and whole slices in memory come next.
        used = used or peak_memory_bytes() - before
        started = time.perf_counter()
        network.classify(images, plan.notes["batch_size"])
        alone.append(time.perf_counter() - started)
    rate = images.size / 1e6
    return (
        "tiled in y and x" if block else "whole slices",
        " × ".join(map(str, images.shape)),
        " × ".join(map(str, plan.grid.block_shape)),
        f"{plan.notes['halo_share']:.1%}",
        f"{rate / np.median(alone):.2f}",
        f"{rate / np.median(inside):.2f}",
        f"{np.median(np.divide(alone, inside)):.2f}",
        f"{rate / np.median(command):.2f}",
        f"{used / 1e9:.2f} of {plan.task_bytes / 1e9:.2f}",
    )


def whole_volume(folder: Path, model: Path, sides: Sequence[int], depth: int, repeats: int) -> None:
    """Report both kinds of volume, each from a process of its own, whose peak memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        blocks = (None, sides[1] // 2)
        cases = [
            pool.submit(compare, folder, model, side, block, depth, repeats)
            for side, block in zip(sides, blocks, strict=True)
        ]
        rows = [case.result() for case in cases]
    columns = (
        "volume",
        "shape",
        "block",
        "halo",
        "network in memory (Mpixel/s)",
        "segment, level 0",
        "ratio",
        "with loading and levels",
        "memory used of planned (GB)",
    )
    report(f"Segment against its network, {device()}", columns, rows)


def phantom(path: Path, side: int, depth: int) -> Volume:
    size = [n * VOXEL_NM / 1000 for n in (depth, side, side)]
    written = cvdask.phantom(path, size_um=size, voxel_nm=VOXEL_NM, client="threads")
    assert isinstance(written, cvdask.Volume)
    return written


def matrix_peak(bfloat16: bool) -> float:
    """Measure the largest rate of matrix products in GFLOP/s."""
    import keras

    best = 0.0
    for n in (1024, 2048, 4096):
        kind = "bfloat16" if bfloat16 else "float32"
        a = keras.ops.cast(keras.random.normal((n, n)), kind)
        product = lambda a=a: keras.ops.convert_to_numpy(keras.ops.matmul(a, a)[:1, :1])  # noqa: E731
        product()
        best = max(best, 2 * n**3 / seconds(product, 5) / 1e9)
    return best


def hardware(folder: Path, side: int, repeats: int) -> None:
    """Compare the networks with the machine, and the precisions with one another."""
    rows = []
    batch = 8 if has_gpu() else 1
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side), np.uint8)
    precisions = ["float32", "bfloat16"] if supports_bfloat16() else ["float32"]
    peaks = {precision: matrix_peak(precision == "bfloat16") for precision in precisions}
    for preset in PRESETS:
        path = write_model(folder / f"{preset}.keras", preset)
        flops = flops_per_pixel(model_file.describe(path).architecture)
        networks = {precision: load(path, precision) for precision in precisions}
        times: dict[str, list[float]] = {precision: [] for precision in precisions}
        for network in networks.values():
            network.classify(images, batch)
        for _ in range(repeats):
            for precision, network in networks.items():
                times[precision].append(
                    seconds(lambda network=network: network.classify(images, batch), 1)
                )
        for precision in precisions:
            taken = np.median(times[precision])
            achieved = flops * images.size / taken / 1e9
            rows.append(
                (
                    preset,
                    precision,
                    f"{images.size / taken / 1e6:.2f}",
                    f"{achieved:.0f}",
                    f"{peaks[precision]:.0f}",
                    f"{achieved / peaks[precision]:.2f}",
                    f"{np.median(times['float32']) / taken:.2f} ×",
                )
            )
    columns = (
        "preset",
        "precision",
        "Mpixel/s",
        "GFLOP/s",
        "matrix products (GFLOP/s)",
        "ratio",
        "against float32",
    )
    report(f"Networks, {batch} × {side}² pixels a call, {device()}", columns, rows)


def device() -> str:
    return "GPU" if has_gpu() else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs=2, default=(1024, 4096), metavar="PIXELS")
    parser.add_argument("--depth", type=int, default=16, help="slices")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="fast")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cvdask-segment-"))
    try:
        model = write_model(folder / "model.keras", arguments.preset)
        whole_volume(folder, model, arguments.sides, arguments.depth, arguments.repeats)
        hardware(folder, 1024, arguments.repeats)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
