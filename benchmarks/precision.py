"""How near is a network to what the processor can multiply, and what do fewer bits bring?

In one run: the fastest float32 matrix product of TensorFlow on all cores, then each preset's
network on slices in memory, as ``segment`` calls it, in float32 and bfloat16 on TensorFlow and on
OpenVINO, and in int8. Operations are those of the convolutions, 2 per multiply and add. Weights are
random, and so are biases and slopes: OpenVINO leaves out what fresh ones do nothing with, which
would make ``paper`` four times as fast in int8 as any trained network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from report import report

from cvdask.engine.cluster import machine_limits
from cvdask.segmentation import model_file
from cvdask.segmentation.forward import (
    RUNTIMES,
    NetworkSettings,
    load_network,
    quantise_network,
    supports_bfloat16,
    supports_int8,
)
from cvdask.segmentation.model_file import UNet
from cvdask.segmentation.unet import PRESETS, Architecture, build, flops_per_pixel

MATRIX = 4096


def rate(work: Callable[[], Any], amount: float, seconds: float) -> float:
    """Return the median amount per second of runs that fill some seconds, after one to warm up."""
    work()
    rates: list[float] = []
    begun = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - started))
    return float(np.median(rates))


def peak_flops(seconds: float) -> float:
    """Measure a large float32 matrix product: operations per second."""
    one = tf.random.normal((MATRIX, MATRIX))
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(one, one)))
    return rate(lambda: product().numpy(), 2 * MATRIX**3, seconds)


def as_if_trained(model: Any) -> Any:
    """Move biases, slopes and normalisations away from the ones and zeros that they start with."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name != "kernel":
            weight.assign(weight + random.uniform(0.05, 0.25, weight.shape))
    return model


def measure(folder: Path, preset: str, side: int, seconds: float, peak: float) -> list[list[str]]:
    """Return a row per precision and runtime; each is held against float32 of the same runtime."""
    architecture = Architecture(n_classes=4, preset=preset)
    classes = {1: "mitochondria", 2: "myofibrils", 3: "z_discs"}
    path = folder / f"{preset}.keras"
    unet = UNet(architecture, classes, 128.0, 40.0, (20.0,) * 3, "uint8")
    model_file.save(unet, as_if_trained(build(architecture)), path)
    images = np.random.default_rng(0).integers(0, 256, (2, side, side), np.uint8)
    cores = machine_limits().cores
    exact = NetworkSettings(str(path), model_file.digest(path), threads=cores)
    precisions = ["float32", *(["bfloat16"] if supports_bfloat16() else [])]
    networks = {
        (runtime, precision): load_network(replace(exact, precision=precision, runtime=runtime))
        for runtime in RUNTIMES
        for precision in precisions
    }
    if supports_int8():
        networks["openvino", "int8"] = quantise_network(exact, images[:, :512, :512])[1]
    rows = []
    in_float32: dict[str, float] = {}
    for (runtime, precision), network in networks.items():
        pixels = rate(lambda n=network: n.classify(images[:1]), side**2, seconds)  # type: ignore[misc]
        flops = pixels * flops_per_pixel(architecture)
        in_float32.setdefault(runtime, pixels)
        rows.append(
            [
                preset,
                runtime,
                precision,
                f"{pixels / 1e6:.3f}",
                f"{flops / 1e9:.0f}",
                f"{flops / peak:.2f}",
                f"{pixels / in_float32[runtime]:.2f}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--side", type=int, default=1024, help="pixels of a slice along y and x")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    options = parser.parse_args()
    peak = peak_flops(options.seconds)
    rows = [["float32 product", "keras", "float32", "", f"{peak / 1e9:.0f}", "1.00", ""]]
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.presets:
            rows += measure(Path(folder), preset, options.side, options.seconds, peak)
    report(
        f"Networks in memory, slices of {options.side}²",
        [
            "network",
            "runtime",
            "precision",
            "Mpixel/s",
            "GFLOP/s",
            "of the product's",
            "of its float32",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
