"""How many images a second does a generator learn from, and how much of the device is that?

1. The peak: a large product of matrices in the precision that is trained in, on the same device.
2. The training: whole rounds of 16 steps, each with its lazy phases, on slices of random blocks in
   memory; compiling is not counted. The networks are those that ``train-gan`` chooses for the
   device, unless ``--width`` and ``--max-width`` say otherwise.

What a step computes is counted, for each image, from the forward passes G and D of the two
networks; backward to inputs and weights costs as much as forward, each::

    discriminator   G + 2 · 3 D          r1     6 D, every 16th step
    generator       3 G + 2 D            path   6 G for half of the batch, every 4th step

Only products count, not what is added, blurred or drawn, so the share of the peak is a lower bound.
With ``--peer`` the same networks are trained in PyTorch beside it, for as long
(``gan_torch_peer.py``), in an environment of its own.

On a GPU the figures stand beside those of the authors of StyleGAN2-ADA on an A100: 147 images/s at
128², 80 at 256², 24 at 512².
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as train-gan does

import numpy as np
from keras import ops
from report import report
from torch_environment import CannotInstall, torch_python

from cvdask.networks.device import has_gpu
from cvdask.synthesis.architecture import Architecture, flops_per_slice
from cvdask.synthesis.autodiff import backend, compiled, devices
from cvdask.synthesis.parallel import Devices
from cvdask.synthesis.steps import Recipe, Steps, draw, start
from cvdask.synthesis.train import PHASES, GanOptions, plan

GOALS = {128: 147, 256: 80, 512: 24}
ROUND = 16
N_CHANNELS = 4


class Slices:
    """As much of a SliceSet as the plan of a training asks for."""

    n_channels, n_slices, depth = N_CHANNELS, 1000, 1000
    notes: tuple[str, ...] = ()

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution


def wait_for(arrays: Any) -> None:
    """Wait until a device has computed."""
    for one in arrays.values():
        ops.convert_to_numpy(one)


def peak_flops(dtype: str, gpu: bool, seconds: float) -> float:
    """Measure a large product of matrices."""
    side, n = (8192, 20) if gpu else (2048, 4)
    a = ops.cast(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32), dtype)

    def products(x: Any) -> Any:
        for _ in range(n):
            x = ops.matmul(x, a) * (1 / side)
        return ops.sum(ops.cast(x, "float32"))

    function = compiled(products, xla=gpu)
    float(function(a))
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        float(function(a))
        done += n
    return 2 * side**3 * done / (time.perf_counter() - begun)


def flops_per_image(architecture: Architecture, recipe: Recipe) -> float:
    """Count a step, for each image; see the module."""
    s = architecture.slices_per_sample
    g = s * flops_per_slice(architecture, "generator")
    d = flops_per_slice(architecture, "discriminator")
    total = g + 6 * d + 3 * g + 2 * d
    total += 6 * d / recipe.penalty_every if recipe.penalty_every else 0
    return total + (3 * g / recipe.path_every if recipe.path_every else 0)


def images_per_second(
    architecture: Architecture, recipe: Recipe, size: int, seconds: float
) -> float:
    """Take whole rounds of steps until the time is over."""
    steps, taker = Steps(architecture, recipe, has_gpu()), Devices(devices(1))
    random = np.random.default_rng(0)
    r, s = architecture.resolution, architecture.slices_per_sample
    blocks = random.integers(0, N_CHANNELS, (size, s, r // 8, r // 8)).astype(np.uint8)
    channels = blocks.repeat(8, 2).repeat(8, 3)
    places = np.sort(random.random((size, s)).astype(np.float32), axis=1)
    state: dict[str, Any] = dict(start(architecture, 0))

    def take(first: int) -> None:
        nonlocal state
        for step in range(first, first + ROUND):
            for phase in recipe.phases(step):
                n = size // 2 if phase == "path" else size
                drawn = draw(architecture, recipe, (0, step, PHASES.index(phase)), n)
                samples = {"channels": channels[:n], "places": places[:n], **drawn}
                samples |= dict.fromkeys(("fade", "grain", "share_weight"), np.float32(1))
                pace = {"rate": np.float32(1e-3), "kept": np.float32(0.99)}
                pace["n_images"] = np.float32(n)
                state, _ = taker.step(steps, phase, state, samples, pace)
        wait_for(state)

    take(0)
    done, begun = 1, time.perf_counter()
    while done == 1 or time.perf_counter() - begun < seconds:
        take(done * ROUND)
        done += 1
    return (done - 1) * ROUND * size / (time.perf_counter() - begun)


def images_per_second_in_torch(
    architecture: Architecture, recipe: Recipe, size: int, seconds: float, cache: Path
) -> float:
    """Have PyTorch train the same networks."""
    task = {
        "resolution": architecture.resolution,
        "channels": architecture.channels,
        "n_channels": architecture.n_channels,
        "n_code": architecture.n_code,
        "latent": architecture.latent,
        "n_mapping": architecture.n_mapping,
        "batch_size": size,
        "learning_rate": recipe.learning_rate,
        "penalty_every": recipe.penalty_every,
        "path_every": recipe.path_every,
        "precision": recipe.dtype,
        "round": ROUND,
        "seconds": seconds,
    }
    script = Path(__file__).with_name("gan_torch_peer.py")
    command = [str(torch_python(cache)), str(script), json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolutions", type=int, nargs="+", help="by default for the device")
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    parser.add_argument("--width", type=int, help="channels at the finest resolution")
    parser.add_argument("--max-width", type=int, help="most channels")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", default="auto", help="float32, mixed_bfloat16 or auto")
    parser.add_argument("--continuity", default="order", choices=("order", "volume"))
    parser.add_argument("--peer", action="store_true", help="train in PyTorch as well")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cvdask-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="of its environment")
    chosen = parser.parse_args()
    gpu = has_gpu()
    rows = []
    peaks: dict[str, float] = {}
    for resolution in chosen.resolutions or ([128, 256, 512] if gpu else [32, 64]):
        options = GanOptions(
            width=chosen.width,
            max_width=chosen.max_width,
            batch_size=chosen.batch_size,
            mixed_precision=chosen.precision,
            continuity=chosen.continuity,
        )
        made = plan(Slices(resolution), options)  # type: ignore[arg-type]
        dtype = made.recipe.dtype
        if dtype not in peaks:
            peaks[dtype] = peak_flops(dtype, gpu, chosen.seconds / 3)
        rate = images_per_second(made.architecture, made.recipe, made.batch_size, chosen.seconds)
        work = flops_per_image(made.architecture, made.recipe)
        channels = made.architecture.channels
        goal = GOALS.get(resolution) if gpu else None
        peer = ""
        if chosen.peer:
            try:
                peer_rate = images_per_second_in_torch(
                    made.architecture, made.recipe, made.batch_size, chosen.seconds, chosen.cache
                )
                peer = f"{peer_rate:.1f}"
            except CannotInstall as error:
                peer = str(error)
        rows.append(
            [
                f"{resolution}²",
                f"{channels[resolution]}–{channels[4]}",
                made.batch_size,
                dtype,
                f"{rate:.1f}",
                f"{work / 1e9:.2f}",
                f"{rate * work / 1e12:.3f}",
                f"{peaks[dtype] / 1e12:.3f}",
                f"{rate * work / peaks[dtype]:.2f}",
                goal or "",
                peer,
            ]
        )
    report(
        f"Training of generators, {'GPU' if gpu else 'CPU'}, {backend()}",
        [
            "resolution", "channels", "batch", "precision", "images/s", "GFLOP/image",
            "TFLOP/s", "peak TFLOP/s", "share", "StyleGAN2-ADA, A100",
            "PyTorch, images/s",
        ],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
