"""Kill anything at any time, run the same command again: is it as if nothing had happened?

The command is a phantom of 48 blocks. It is killed when the folder holds so many files, drawn at
random. Afterwards the same command has to leave the same bytes as an undisturbed run, and the
shards of blocks that were done have to be the same files: not written again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from cvdask.engine.ledger import Ledger
from cvdask.volume.boxes import Grid
from cvdask.volume.store import open_volume, read_attributes
from tests.trees import tree_digest

pytestmark = pytest.mark.faults

COMMAND = """
import sys
from cvdask.volume import phantom

phantom.LARGEST_SHARD = 64
phantom.phantom(sys.argv[1], size_um=(9.6, 12.8, 12.8), voxel_nm=50, client=sys.argv[2])
"""
BLOCKS = Grid((192, 256, 256), (64, 64, 64))
# Each waits for the other processes by polling: this is how long between two looks.
LOOK_SECONDS = 0.005


def start(url: Path, client: str = "serial", inside: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*inside, sys.executable, "-c", COMMAND, str(url), client],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a command and return what it said."""
    _, said = process.communicate(timeout=120)
    return said


def completed(url: Path, client: str = "serial") -> None:
    process = start(url, client)
    said = finish(process)
    assert process.returncode == 0, said


def n_files(url: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(url))


def wait_for_files(process: subprocess.Popen[str], url: Path, n_wanted: int) -> None:
    """Return when the output holds so many files; fail where the command ends before."""
    while n_files(url) < n_wanted:
        try:
            process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        assert process.stderr is not None
        raise AssertionError(f"ended before it could be killed: {process.stderr.read()}")


def identity(path: Path) -> tuple[int, int] | None:
    """Tell one written file from another of the same bytes."""
    try:
        status = path.stat()
    except FileNotFoundError:  # a shard of zeros is not stored
        return None
    return status.st_ino, status.st_mtime_ns


def finished_shards(url: Path) -> dict[Path, tuple[int, int] | None]:
    """Return the image's shards that need not be written again."""
    if "0" in read_attributes(url).get("digests", {}):
        done = np.ones(len(BLOCKS), bool)
    else:
        done = Ledger(str(url), "0").done(len(BLOCKS))
    position = [
        "/".join(str(a // 64) for a in BLOCKS[int(n)].write.start) for n in np.flatnonzero(done)
    ]
    return {path: identity(path) for path in (url / "0/c" / key for key in position)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    url = tmp_path_factory.mktemp("undisturbed") / "cell.zarr"
    completed(url)
    return tree_digest(url)


class Cluster:
    """A scheduler and two workers, each a process of its own, on loopback or at other addresses.

    Parameters
    ----------
    folder : Path
        Where workers keep what they must.
    stack : ExitStack
        Ends the processes.
    host : str
        Address of the scheduler and of the second worker.
    first : str, sequence of str
        Address of the first worker, and the command that starts it there.
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        host: str = "127.0.0.1",
        first: tuple[str, Sequence[str]] = ("127.0.0.1", ()),
    ) -> None:
        self._stack = stack
        file = folder / "scheduler.json"
        where = ("--port", "0", "--scheduler-file", str(file))
        self.scheduler = self._start("dask_scheduler", host, (), *where)
        while not file.exists() or not file.read_text().rstrip().endswith("}"):
            self._look(self.scheduler)
        self.address = str(json.loads(file.read_text())["address"])
        options = ["--no-nanny", "--nthreads", "1", "--local-directory", str(folder)]
        self.workers = [
            self._start("dask_worker", *place, self.address, *options)
            for place in (first, (host, ()))
        ]
        self._wait_for_workers()

    def _start(
        self, module: str, host: str, inside: Sequence[str], *options: str
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [
                *(*inside, sys.executable, "-m", f"distributed.cli.{module}"),
                *("--host", host, "--no-dashboard", *options),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    @staticmethod
    def _look(process: subprocess.Popen[bytes]) -> None:
        try:
            raise AssertionError(f"ended with {process.wait(LOOK_SECONDS)} instead of starting")
        except subprocess.TimeoutExpired:
            return

    def _wait_for_workers(self) -> None:
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)

    def wait_until_idle(self) -> None:
        """Wait for the tasks that a killed client has left running."""
        with Client(self.address, set_as_default=False) as client:
            while any(client.run(lambda dask_worker: dask_worker.state.executing_count).values()):
                continue


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def moment(seed: int, undisturbed: dict[str, str]) -> int:
    """Draw how many files there are when the blow falls: from hardly any to three quarters."""
    return random.Random(seed).randint(2, 3 * len(undisturbed) // 4)


def kill_client(url: Path, client: str, n_wanted: int) -> None:
    process = start(url, client)
    wait_for_files(process, url, n_wanted)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="phantom has begun"):
        open_volume(url)


MOMENTS = [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20)]]


@pytest.mark.parametrize("seed", MOMENTS)
def test_the_command_is_killed(tmp_path: Path, undisturbed: dict[str, str], seed: int) -> None:
    url = tmp_path / "cell.zarr"
    kill_client(url, "serial", moment(seed, undisturbed))
    before = finished_shards(url)
    completed(url)
    assert tree_digest(url) == undisturbed
    assert {path: identity(path) for path in before} == before


@pytest.mark.parametrize("seed", MOMENTS)
def test_client_worker_and_scheduler_are_killed_one_after_the_other(
    tmp_path: Path, stack: ExitStack, undisturbed: dict[str, str], seed: int
) -> None:
    cluster = Cluster(tmp_path, stack)
    url = tmp_path / "cell.zarr"
    draw = random.Random(100 + seed)
    part = len(undisturbed) // 8
    kill_client(url, cluster.address, draw.randint(2, 2 * part))
    cluster.wait_until_idle()
    before = finished_shards(url)

    process = start(url, cluster.address)
    wait_for_files(process, url, n_files(url) + draw.randint(1, part))
    cluster.workers[0].kill()
    wait_for_files(process, url, n_files(url) + draw.randint(1, part))  # the other one goes on
    cluster.scheduler.kill()
    said = finish(process)
    assert process.returncode == 1
    assert "ConnectionError: the connection to the Dask scheduler was lost" in said
    with pytest.raises(ValueError, match="phantom has begun"):
        open_volume(url)
    assert {path: identity(path) for path in before} == before

    cluster.workers[1].kill()
    cluster.workers[1].wait()
    before = finished_shards(url)
    completed(url)
    assert tree_digest(url) == undisturbed
    assert {path: identity(path) for path in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_worker_is_killed_and_the_command_completes(
    tmp_path: Path, stack: ExitStack, undisturbed: dict[str, str], seed: int
) -> None:
    cluster = Cluster(tmp_path, stack)
    url = tmp_path / "cell.zarr"
    process = start(url, cluster.address)
    wait_for_files(process, url, moment(200 + seed, undisturbed))
    cluster.workers[0].kill()
    said = finish(process)
    assert process.returncode == 0, said
    assert tree_digest(url) == undisturbed
