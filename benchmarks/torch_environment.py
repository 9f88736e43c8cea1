"""An environment of its own for peers that need PyTorch, made on first use."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"

# Beside what constraints.txt pins.
REQUIREMENTS = (
    "torch==2.13.0",
    "torchvision==0.28.0",
    "timm==1.0.31",
    "segmentation-models-pytorch==0.6.0",
    "monai==1.6.1",
)


class CannotInstall(Exception):
    """A peer is not to be had here; says why."""


def torch_python(cache: Path) -> Path:
    """Return the interpreter of an environment with the PyTorch peers, made where there is none."""
    key = hashlib.sha256("\n".join((*REQUIREMENTS, sys.version)).encode()).hexdigest()[:12]
    folder = cache / f"torch-peers-{key}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = (str(python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS))
    steps = ((sys.executable, "-m", "venv", str(folder)), (*pip, *REQUIREMENTS))
    for command in steps:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise CannotInstall(f"not installed: {(errors or [last_line(done.stderr)])[0]}")
    complete.touch()
    return python


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"
