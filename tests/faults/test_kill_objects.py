"""Kill label or measure in the middle of a pass, run it again: is it as if nothing had happened?

Each pass leaves a file for every block, so the blow falls when a pass has left so many.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from cvdask.morphometry.components import label
from cvdask.morphometry.objects import measure
from cvdask.volume.store import open_volume
from tests.faults.test_kill import Cluster, finish, stack, wait_for_files
from tests.samples import write_sample
from tests.trees import tree_digest

__all__ = ["stack"]  # a fixture

pytestmark = pytest.mark.faults

COMMAND = """
import sys
import cvdask

url, what, client = sys.argv[1:]
if what == "label":
    cvdask.label(url, class_="grain", block_shape=(6, 8, 8), client=client)
else:
    cvdask.measure(url, block_shape=(6, 8, 8), client=client, chart=False)
"""
SHAPE = (18, 32, 32)
SCRATCH = {"measure": "tables/.cvdask/objects.parquet", "label": "labels/grain/.cvdask/survey"}


def write_grains(url: Path) -> None:
    """Noise that hangs together through all blocks, and specks."""
    data = (np.random.default_rng(0).random(SHAPE) < 0.15).astype(np.uint8)
    write_sample(url, np.zeros(SHAPE, np.uint8))
    write_sample(url, data, labels="classes", classes={1: "grain"})


def start(url: Path, what: str, client: str = "serial") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(url), what, client],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(url: Path, what: str) -> None:
    if what == "label":
        label(str(url), class_="grain", block_shape=(6, 8, 8))
    else:
        measure(str(url), block_shape=(6, 8, 8), chart=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What both commands leave."""
    digests = {}
    for what in SCRATCH:
        url = tmp_path_factory.mktemp("undisturbed") / "cell.zarr"
        write_grains(url)
        complete(url, what)
        digests[what] = tree_digest(url)
    return digests


@pytest.mark.parametrize(
    ("what", "stage"),
    [
        ("measure", "rows"), ("measure", "seams"), ("measure", "gathered/000000000"),
        ("label", "seams"),
    ],
)  # fmt: skip
def test_the_command_is_killed(
    tmp_path: Path, undisturbed: dict[str, dict[str, str]], what: str, stage: str
) -> None:
    url = tmp_path / "cell.zarr"
    write_grains(url)
    process = start(url, what)
    wait_for_files(process, url / SCRATCH[what] / stage, 20)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert process.returncode == -signal.SIGKILL
    assert not (url / "tables/objects.parquet").exists()
    # A writer that was killed leaves a temporary file; put one there, as if it had been then.
    leftover = url / SCRATCH[what] / stage / "000000000.0123456789abcdef.partial"
    leftover.write_bytes(b"half")
    complete(url, what)
    assert tree_digest(url) == undisturbed[what]


@pytest.mark.parametrize("what", SCRATCH)
def test_workers_are_killed_in_the_middle(
    tmp_path: Path, stack: ExitStack, undisturbed: dict[str, dict[str, str]], what: str
) -> None:
    """One of them: the other goes on. Both, and the scheduler: the same command goes on."""
    cluster = Cluster(tmp_path, stack)
    url = tmp_path / "cell.zarr"
    write_grains(url)
    process = start(url, what, cluster.address)
    scratch = url / SCRATCH[what]
    wait_for_files(process, scratch / "rows", 10)
    cluster.workers[0].kill()
    wait_for_files(process, scratch / "seams", 10)
    cluster.scheduler.kill()
    said = finish(process)
    assert process.returncode == 1
    assert "ConnectionError: the connection to the Dask scheduler was lost" in said
    cluster.workers[1].kill()
    cluster.workers[1].wait()
    if what == "label":
        with pytest.raises(ValueError, match="label has begun"):
            open_volume(url, labels="grain")
    complete(url, what)
    assert tree_digest(url) == undisturbed[what]
