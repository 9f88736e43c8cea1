"""How fast does a GPU segment, and is it ever waiting for us?

The goal is 150 Mpixel/s with the preset ``fast``, the GPU busy at least nine tenths of the time.

1. The network alone: the same slices from memory, again and again.
2. ``cvdask.segment``: a volume on disk, read, classified and written, block by block; how busy the
   GPU is counts between the first tenth of that and its last.

While either runs, ``nvidia-smi`` tells how busy the GPU is, a few times a second. Weights are
random: speed does not depend on them. Without a GPU, the script says so and measures nothing. It
takes the backend that ``KERAS_BACKEND`` names, or else the first of TensorFlow, JAX and PyTorch
that is installed and sees a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from report import report

GOAL_MPIXEL = 150.0
GOAL_BUSY = 90.0
SAMPLE_SECONDS = 0.2
# At both ends of a run, reading has nothing to overlap with: this share of its samples is left out.
SHARE_LEFT_OUT = 0.1
VOXEL_NM = 20.0
BACKENDS = ("tensorflow", "jax", "torch")
PROBE = "import sys; from cvdask.segmentation.forward import has_gpu; sys.exit(not has_gpu())"


# ---------------------------------------------------------------------------------------------
# Which GPU, and how busy it is


def missing() -> str | None:
    """Choose the backend of this process; return why nothing can be measured, or None."""
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver: nvidia-smi is not to be found"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    if listed.returncode or "GPU" not in listed.stdout:
        return f"nvidia-smi sees no GPU: {(listed.stdout + listed.stderr).strip()}"
    named = os.environ.get("KERAS_BACKEND")
    tried = [named] if named else [one for one in BACKENDS if importlib.util.find_spec(one)]
    for backend in tried:
        # In a process of its own: a framework that was imported here would keep the GPU.
        environment = {**os.environ, "KERAS_BACKEND": backend}
        probe = [sys.executable, "-c", PROBE]
        if subprocess.run(probe, env=environment, capture_output=True).returncode == 0:
            os.environ["KERAS_BACKEND"] = backend
            return None
    return f"no backend sees the GPU; tried: {', '.join(tried) or 'none is installed'}"


def gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", gpu_index()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def gpu_index() -> str:
    """Return the GPU that the framework takes: the first that it is shown."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"


class Watch:
    """Follows how busy a GPU is, in per cent, and its memory, in MiB, while the block runs.

    Parameters
    ----------
    over : callable
        Says when what comes is of no interest any more.
    """

    def __init__(self, over: Callable[[], bool] = lambda: False) -> None:
        self.samples: list[tuple[float, float, float]] = []  # when (s), busy, memory
        self._over = over
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        query = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        command = ["nvidia-smi", *query, "-i", gpu_index()]
        while not self._ended.wait(SAMPLE_SECONDS) and not self._over():
            line = subprocess.run(command, capture_output=True, text=True).stdout
            try:
                busy, memory = (float(one) for one in line.split(","))
            except ValueError:  # "[N/A]": shared GPUs do not tell
                continue
            self.samples.append((time.perf_counter(), busy, memory))

    def columns(self, seconds: float) -> tuple[str, str, str]:
        """Tell how busy it was, in the mean and in its lowest tenth, and the memory used.

        Of the last ``seconds``, without both ends.
        """
        end = max((when for when, *_ in self.samples), default=0.0)
        left_out = SHARE_LEFT_OUT * seconds
        steady = [
            (busy, memory)
            for when, busy, memory in self.samples
            if end - seconds + left_out <= when <= end - left_out
        ]
        if not steady:
            return "not told", "not told", "not told"
        busy, memory = np.transpose(steady)
        return (
            f"{busy.mean():.0f} %",
            f"{np.percentile(busy, 10):.0f} %",
            f"{memory.max() / 1024:.1f}",
        )


# ---------------------------------------------------------------------------------------------
# What is measured


def write_model(path: Path, preset: str) -> Path:
    from cvdask.segmentation import model_file
    from cvdask.segmentation.model_file import UNet
    from cvdask.segmentation.unet import Architecture, build
    from cvdask.volume.cell import CLASSES

    architecture = Architecture(n_classes=len(CLASSES) + 1, preset=preset)
    unet = UNet(architecture, CLASSES, 128.0, 40.0, (VOXEL_NM,) * 3, "uint8")
    model_file.save(unet, build(architecture), path)
    return path


def write_volume(folder: Path, depth: int, side: int) -> Any:
    """Write a volume that looks like a cell: one small cell, side by side as often as it takes."""
    import tifffile

    import cvdask
    from cvdask.volume.boxes import Box
    from cvdask.volume.cell import Cell, render

    small = (16, min(side, 512), min(side, 512))
    image = render(Cell(small, (VOXEL_NM,) * 3), Box.whole(small)).image
    assert image is not None
    repeats = -(-side // small[1])
    slices = np.tile(image, (1, repeats, repeats))[:, :side, :side]
    with tifffile.TiffWriter(folder / "stack.tif", bigtiff=True) as stack:
        for z in range(depth):
            stack.write(slices[z % len(slices)], contiguous=True, metadata=None)
    written = cvdask.ingest(
        folder / "stack.tif",
        folder / "volume.zarr",
        voxel_nm=VOXEL_NM,
        n_levels=1,
        check=False,
        client="threads",
    )
    assert not isinstance(written, list)
    return written.volume


def in_memory(
    model: Path, images: np.ndarray, precision: str, batch: int, seconds: float
) -> tuple[str, ...]:
    """Measure the network alone."""
    from cvdask.engine.cluster import machine_limits
    from cvdask.segmentation import model_file
    from cvdask.segmentation.forward import NetworkSettings, load_network

    digest = model_file.digest(model)
    cores = machine_limits().cores
    network = load_network(NetworkSettings(str(model), digest, precision, threads=cores))
    for _ in range(2):  # compiled, and its kernels chosen
        network.classify(images[:batch], batch)
    n_pixels = 0
    with Watch() as watch:
        started = time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds:
            network.classify(images, batch)
            n_pixels += images.size
    return f"{n_pixels / taken / 1e6:.0f}", *watch.columns(taken)


def whole_volume(volume: Any, model: Path, precision: str, batch: int) -> tuple[str, ...]:
    """Measure the blocks of :func:`cvdask.segment`, without loading and coarser levels."""
    import cvdask
    from cvdask.engine.plan import watch_summaries

    # A random network's classes change wherever they were as likely as others: let them.
    options: dict[str, Any] = {
        "precision": precision,
        "batch_size": batch,
        "max_changed": 1.0,
        "client": "threads",
        "overwrite": True,
    }
    cvdask.segment(volume, model, roi=f"0:{batch},:,:", **options)  # compiled
    with watch_summaries() as summaries, Watch(over=lambda: bool(summaries)) as watch:
        cvdask.segment(volume, model, **options)
    rate = summaries[0].n_voxels / summaries[0].seconds / 1e6
    return f"{rate:.0f}", *watch.columns(summaries[0].seconds)


def measure(arguments: argparse.Namespace, folder: Path) -> list[tuple[str, ...]]:
    from cvdask.volume.boxes import Box

    volume = write_volume(folder, arguments.depth, arguments.side)
    batch, seconds = arguments.batch_size, arguments.seconds
    images = volume.read(Box((0, 0, 0), (min(4 * batch, volume.shape[0]), *volume.shape[1:])))
    rows = []
    for preset in arguments.presets:
        model = write_model(folder / f"{preset}.keras", preset)
        for precision in ("float32", "bfloat16"):
            alone = in_memory(model, images, precision, batch, seconds)
            rows.append((preset, precision, "network, slices in memory", *alone))
            whole = whole_volume(volume, model, precision, batch)
            rows.append((preset, precision, "segment, volume on disk", *whole))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=2048, help="pixels of a slice along y and x")
    parser.add_argument("--depth", type=int, default=768, help="slices: 3.2 GB, twice on disk")
    parser.add_argument("--batch-size", type=int, default=8, help="slices per call")
    parser.add_argument("--seconds", type=float, default=20, help="of the network alone")
    parser.add_argument("--presets", nargs="+", default=["fast"], choices=("fast", "paper"))
    parser.add_argument("--folder", type=Path, help="where the volume goes, on a fast disk")
    arguments = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(f"\nSegmentation on a GPU was not measured: {reason}.")
        return
    folder = Path(tempfile.mkdtemp(prefix="cvdask-segment-gpu-", dir=arguments.folder))
    try:
        rows = measure(arguments, folder)
    finally:
        shutil.rmtree(folder)
    columns = (
        "preset",
        "precision",
        "way",
        "Mpixel/s",
        "GPU busy, mean",
        "its lowest tenth",
        "GPU memory (GiB)",
    )
    title = f"Segmentation on {gpu_name()}, {os.environ['KERAS_BACKEND']}"
    report(f"{title}; the goal: {GOAL_MPIXEL:.0f} Mpixel/s, busy {GOAL_BUSY:.0f} %", columns, rows)


if __name__ == "__main__":
    main()
