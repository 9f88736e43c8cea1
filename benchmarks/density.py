"""How fast are density and descriptors, on one core, from the store to the result?

1. Density of mitochondria over myofibrils in a synthetic cell, kernel 4 µm, stride 0.4 µm, beside
   SciPy's mean filter over the whole array in memory, and the cube cut out for each window. The
   largest difference from the cubes that were cut out is told.
2. Every kind of descriptor alone. The two-point correlation beside the FFT of the whole array; its
   counts must be equal.

All in one process and thread, after a first run that compiles.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import report
from scipy.ndimage import uniform_filter

import cvdask
from cvdask.morphometry.descriptors import KINDS

VOXEL_NM = 20
WINDOWS_CUT_OUT = 64
LAGS = 101  # 0 to 2 µm


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - started, result


def mean_filters(labels: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Return the ratio of two mean filters, at the places of the windows."""
    sums = [uniform_filter((labels == v).astype(np.float32), kernel) for v in (1, 2)]
    first, last = kernel // 2, labels.shape[0] - (kernel - kernel // 2) + 1
    places = (slice(first, last, stride),) * 3
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[0][places] / sums[1][places]


def cut_out(labels: np.ndarray, kernel: int, stride: int, found: np.ndarray) -> float:
    """Return the largest difference from windows that are cut out one by one."""
    generator = np.random.default_rng(0)
    largest = 0.0
    for place in generator.integers(0, found.shape, (WINDOWS_CUT_OUT, 3)):
        cube = labels[tuple(slice(p * stride, p * stride + kernel) for p in place)]
        below = np.count_nonzero(cube == 2)
        direct = np.float32(np.count_nonzero(cube == 1) / below) if below else np.float32(np.nan)
        value = found[tuple(place)]
        largest = max(largest, 0.0 if np.isnan([value, direct]).all() else abs(value - direct))
    return largest


def density(cell: str, labels: np.ndarray) -> None:
    kernel, stride = 4000 // VOXEL_NM, 400 // VOXEL_NM
    options = {
        "labels": "truth", "numerator": 1, "denominator": 2, "client": "serial", "overwrite": True,
    }  # fmt: skip
    cvdask.density(cell, **options)
    seconds, written = timed(cvdask.density, cell, **options)
    found = written.read()
    filtered_seconds, filtered = timed(mean_filters, labels, kernel, stride)
    cut_seconds, difference = timed(cut_out, labels, kernel, stride, found)
    ways = (
        ("cvdask density, store to store", seconds, f"{difference:.1e}"),
        (
            "two scipy.ndimage.uniform_filter, in memory",
            filtered_seconds,
            f"{np.nanmax(np.abs(filtered - found)):.1e}",
        ),
        ("every cube cut out (extrapolated)", cut_seconds / WINDOWS_CUT_OUT * found.size, ""),
    )
    # Voxels that a window holds.
    n_voxels = ((found.shape[0] - 1) * stride + kernel) ** 3
    report(
        f"Density: {labels.shape[0]}³ voxels, kernel {kernel}³, stride {stride}, one core",
        ("way", "s", "Mvoxel/s", "× cvdask's time", "largest difference"),
        [
            (name, f"{s:.2f}", f"{n_voxels / s / 1e6:.1f}", f"{s / seconds:.1f}", difference)
            for name, s, difference in ways
        ],
    )


def correlate(labels: np.ndarray, value: int) -> np.ndarray:
    """Count pairs along each axis by the FFT of the whole array: (3, LAGS)."""
    counts = []
    for axis in range(3):
        rows = np.moveaxis(labels == value, axis, -1)
        total = np.zeros(LAGS)
        for plane in rows:  # slice by slice: the transform of all would be 32 times the labels
            spectrum = np.fft.rfft(plane.astype(np.float64), 2 * plane.shape[-1], axis=-1)
            power = (np.abs(spectrum) ** 2).sum(axis=0)
            total += np.fft.irfft(power, 2 * plane.shape[-1])[:LAGS]
        counts.append(np.rint(total))
    return np.array(counts)


def descriptors(cell: str, labels: np.ndarray, folder: Path) -> None:
    rows = []
    options = {"labels": "truth", "client": "serial", "overwrite": True}
    for kind in (*KINDS, None):
        out = str(folder / "descriptors.parquet")
        for _ in range(2):
            seconds, table = timed(cvdask.descriptors, cell, only=kind, out=out, **options)
        rows.append((kind or "all", f"{seconds:.1f}", f"{labels.size / seconds / 1e6:.1f}"))
    seconds, counts = timed(correlate, labels, 1)
    pairs = labels.size / labels.shape[0] * (labels.shape[0] - np.arange(LAGS))
    name = cvdask.open(cell).label("truth").classes[1]
    ours = np.array(
        [
            row["value"]
            for row in table.to_pylist()
            if (row["descriptor"], row["class"]) == ("two_point", name)
        ]
    ).reshape(3, LAGS)
    equal = "equal" if np.array_equal(ours, counts / pairs) else "DIFFERENT"
    n_classes = len({row["class"] for row in table.to_pylist() if row["axis"]})
    rows.append(
        (
            f"two_point by FFT in memory, one class of {n_classes}: {equal}",
            f"{seconds:.1f}",
            f"{labels.size / seconds / 1e6:.1f}",
        )
    )
    report(
        f"Descriptors: {labels.shape[0]}³ voxels, {n_classes} classes, {LAGS} distances, one core",
        ("kind", "s", "Mvoxel/s"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-um", type=float, default=10.24)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # a nucleus is thicker than any ball
    folder = Path(tempfile.mkdtemp(prefix="cvdask-density-"))
    try:
        cell = str(folder / "cell.zarr")
        cvdask.phantom(cell, size_um=(arguments.size_um,) * 3, voxel_nm=VOXEL_NM)
        labels = cvdask.open(cell).label("truth").read()
        density(cell, labels)
        descriptors(cell, labels, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
