"""Small networks, states and samples that tests of training share."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cvdask
from cvdask.synthesis.architecture import Architecture, initialise
from cvdask.synthesis.gan_file import MEAN_STYLE, Gan
from cvdask.synthesis.steps import Recipe, draw

SMALL = {
    "resolution": 16,
    "n_channels": 3,
    "n_slices": 40,
    "width": 4,
    "max_width": 8,
    "latent": 8,
    "n_mapping": 2,
}
TINY = Architecture(**SMALL)
PAPER = Architecture(**{**SMALL, "preset": "paper", "n_slices": 9})
VOLUME = Architecture(**{**SMALL, "continuity": "volume"})

PACE = {"rate": np.float32(0.0025), "kept": np.float32(0.9), "n_images": np.float32(4)}


def samples_of(architecture: Architecture, recipe: Recipe, n: int = 4, step: int = 0) -> dict:
    """Draw everything a step takes; slices hold blocks of classes."""
    random = np.random.default_rng(step)
    r, s = architecture.resolution, architecture.slices_per_sample
    blocks = random.integers(0, architecture.n_channels, (n, s, r // 4, r // 4)).astype(np.uint8)
    return {
        "channels": blocks.repeat(4, 2).repeat(4, 3),
        "places": np.sort(random.random((n, s)).astype(np.float32), axis=1),
        "fade": np.float32(0.5 if architecture.preset == "paper" else 1),
        "grain": np.float32(1),
        "share_weight": np.float32(2),
        **draw(architecture, recipe, (0, step, 0), n),
    }


def small_gan(architecture: Architecture = TINY, **changes: Any) -> Gan:
    """Make a generator with random weights, and a mean style that is not 0."""
    random = np.random.default_rng(1)
    weights = initialise(architecture, "generator", 0)
    weights |= {
        name: random.normal(0, 0.5, one.shape).astype(np.float32)
        for name, one in weights.items()
        if name.endswith("noise")
    }
    weights[MEAN_STYLE] = random.normal(0, 1, architecture.latent).astype(np.float32)
    fields = {
        "classes": {1: "mitochondria", 4: "z_discs"},
        "colors": {1: "#e69f00"},
        "voxel_size_nm": (40.0, 10.0, 10.0),
        "weights": weights,
        **changes,
    }
    return Gan(architecture, **fields)


def run_program(
    program: str, folder: Path, backend: str = "tensorflow", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh Python; skip the test where the backend is not installed."""
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    root = Path(cvdask.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(root), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
