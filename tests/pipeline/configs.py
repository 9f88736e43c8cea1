"""Configs for tests: two synthetic cells, without networks, small enough to run in seconds."""

from __future__ import annotations

from pathlib import Path

CELLS = """
[run]
out = "out"
client = "serial"

[[sample]]
name = "control"
phantom = "healthy"
size_um = [0.4, 1, 1]
voxel_nm = 20
n_levels = 2

[[sample]]
name = "diabetic"
phantom = "diabetic"
size_um = [0.4, 1, 1]
voxel_nm = 20
n_levels = 2
"""
MEASURING = """
[evaluate]
prediction = "truth"
truth = "truth"

[label]
labels = "truth"
class_ = ["mitochondria", "myofibrils"]

[measure]
labels = "truth"
min_voxels = 5

[density]
labels = "truth"
numerator = "mitochondria"
denominator = "all"
kernel_um = 0.2
stride_um = 0.1

[compare]
z_blocks = 4
figures = false

[report]
"""
WHOLE = CELLS + MEASURING
# What differs from run to run, and should.
ABOUT_THE_RUN = {"run.json", "run.log", "run.lock"}


def write_config(folder: Path, text: str = WHOLE) -> Path:
    """Write a config into a folder and return where."""
    path = folder / "config.toml"
    path.write_text(text)
    return path
