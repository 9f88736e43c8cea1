"""Does generating an ensemble take longer than the generator alone?

1. Slices per second of ``cvdask.generate``, from the seed to shards on the disk, beside the bare
   generator: the same calls of the same shape, probabilities thrown away. Weights have learned
   nothing; that changes no time.
2. What planning a thousand volumes takes, in time and memory.

``--volumes 25 --slices 96 --resolution 512`` is the whole ensemble of the paper.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
from report import report

import cvdask
from cvdask.engine.cluster import machine_limits
from cvdask.networks.device import prepare_framework
from cvdask.synthesis import gan_file
from cvdask.synthesis.architecture import Architecture, initialise
from cvdask.synthesis.gan_file import MEAN_STYLE, Gan

BATCH = 16


def write_model(path: Path, resolution: int, n_slices: int, width: int) -> None:
    architecture = Architecture(
        resolution, 4, n_slices, continuity="volume", width=width, max_width=4 * width
    )
    weights = initialise(architecture, "generator", 0)
    weights[MEAN_STYLE] = np.zeros(architecture.latent, np.float32)
    classes = {1: "mitochondria", 2: "myofibrils", 3: "z_discs"}
    gan_file.save(Gan(architecture, classes, {}, (50, 25, 25), weights=weights), path)


def bare(model: Path, n_volumes: int, n_slices: int) -> float:
    """Return the seconds that the generator alone takes."""
    gan = gan_file.load(model)
    generator = gan.generator(BATCH)
    chance = np.random.default_rng(0)
    seeds = np.arange(BATCH, dtype=np.uint32)

    def one_call() -> None:
        latents = chance.standard_normal((BATCH, gan.n_latent), np.float32)
        places = chance.random(BATCH, np.float32)
        generator.synthesise(generator.styles(latents, places), seeds)

    one_call()  # compiles
    started = time.perf_counter()
    for _ in range(n_volumes * n_slices // BATCH):
        one_call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--slices", type=int, default=96)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    prepare_framework(machine_limits().cores)
    folder = Path(tempfile.mkdtemp(prefix="cvdask-generate-"))
    n_volumes, n_slices = arguments.volumes, arguments.slices
    try:
        model = folder / "gan.keras"
        write_model(model, arguments.resolution, n_slices, arguments.width)
        # Loads and compiles; the process keeps the generator.
        cvdask.generate(model, folder / "first.zarr", slices=BATCH, batch_size=BATCH, workers=2,
                        client="threads")  # fmt: skip
        before = bare(model, n_volumes, n_slices)
        started = time.perf_counter()
        cvdask.generate(
            model, folder / "out.zarr", volumes=n_volumes, slices=n_slices, batch_size=BATCH,
            client="threads", workers=2,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        # Before and after, so that a machine that slows down slows both down.
        alone = (before + bare(model, n_volumes, n_slices)) / 2
        n = n_volumes * n_slices
        report(
            f"Generate: {n_volumes} volumes of {n_slices} × {arguments.resolution}²",
            ("way", "s", "slices/s", "of the generator alone"),
            [
                ("the generator alone", f"{alone:.1f}", f"{n / alone:.1f}", ""),
                (
                    "cvdask generate",
                    f"{seconds:.1f}",
                    f"{n / seconds:.1f}",
                    f"{alone / seconds:.3f}",
                ),
            ],
        )
        rows = []
        for many in (1, 1000):
            tracemalloc.start()
            started = time.perf_counter()
            (plan,) = cvdask.generate(model, folder / "plan.zarr", volumes=many, dry_run=True)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            rows.append(
                (many, len(plan.grid), f"{time.perf_counter() - started:.3f}", f"{peak / 1e6:.2f}")
            )
        report("Generate: planning", ("volumes", "blocks", "s", "MB"), rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
