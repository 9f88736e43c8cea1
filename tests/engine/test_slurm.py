"""Does a real SLURM cluster carry the work, whatever happens to its jobs?

The cluster is that of ``deploy/slurm/loopback.py``: SLURM's own programs, on this machine's
loopback. Where they are not installed, nothing here is tried.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cvdask.engine import cluster_options, launch
from cvdask.engine.cluster import connect
from cvdask.engine.cluster_options import VARIABLE, ClusterOptions
from cvdask.engine.dask_pool import DaskPool
from cvdask.morphometry.components import label
from cvdask.morphometry.objects import measure
from tests.samples import write_sample
from tests.trees import tree_digest

LOOPBACK = Path(__file__).parents[2] / "deploy/slurm/loopback.py"
SHAPE = (12, 16, 16)
BLOCK = (6, 8, 8)
# Between two looks at the queue.
LOOK_SECONDS = 0.2

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """Start SLURM, and let this process find it."""
    pytest.importorskip("dask_jobqueue", reason="needs the extra 'cluster'")
    if not LOOPBACK.is_file():
        pytest.skip("deploy/ is in the checkout only")
    described = importlib.util.spec_from_file_location("loopback", LOOPBACK)
    assert described is not None
    assert described.loader is not None
    loopback = importlib.util.module_from_spec(described)
    described.loader.exec_module(loopback)
    if loopback.missing():
        pytest.skip(f"SLURM is not installed: {', '.join(loopback.missing())} are not there")
    with ExitStack() as opened, pytest.MonkeyPatch.context() as patch:
        try:
            environment = opened.enter_context(loopback.cluster())
        except RuntimeError as error:
            pytest.skip(f"SLURM does not start on this machine: {error}")
        for name in ("PATH", "SLURM_CONF"):
            patch.setenv(name, environment[name])
        patch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
        yield


@pytest.fixture
def options(slurm: None, tmp_path: Path) -> ClusterOptions:
    return ClusterOptions(
        n_workers=2,
        memory="1 GB",
        queue="normal",
        interface="lo",
        shared_folder=str(tmp_path / "shared"),
        local_folder=str(tmp_path / "local"),
        start_seconds=300,
    )


def asked(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def jobs(*states: str) -> set[str]:
    """Return the numbers of the jobs in these states; by default of all that are not over."""
    chosen = [f"--states={','.join(states)}"] if states else []
    return set(asked("squeue", "--noheader", "--format=%i", *chosen).split())


def state(job: str) -> str:
    (found,) = asked("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").split()
    return found


def wait_until(reached: Callable[[], object]) -> None:
    """Ask again and again; the test's own limit of time ends what never comes."""
    pause = threading.Event()
    while not reached():
        pause.wait(LOOK_SECONDS)


def write_grains(url: Path) -> Path:
    """Noise whose parts hang together through all blocks."""
    data = (np.random.default_rng(0).random(SHAPE) < 0.2).astype(np.uint8)
    write_sample(url, np.zeros(SHAPE, np.uint8))
    write_sample(url, data, labels="classes", classes={1: "grain"})
    return url


def work(url: Path, client: Any) -> None:
    label(str(url), class_="grain", block_shape=BLOCK, client=client)
    measure(str(url), block_shape=BLOCK, client=client, chart=False)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What both stages leave when nothing but this process works."""
    url = write_grains(tmp_path_factory.mktemp("serial") / "cell.zarr")
    work(url, None)
    return tree_digest(url)


@pytest.mark.usefixtures("slurm")
def test_nothing_listens_beyond_loopback() -> None:
    heard = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        if process.name() in ("slurmctld", "slurmd", "munged")
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert heard == ["127.0.0.1"] * 2


def test_jobs_give_the_bytes_of_one_process(
    tmp_path: Path, options: ClusterOptions, serial: dict[str, str]
) -> None:
    url = write_grains(tmp_path / "cell.zarr")
    with connect("slurm", options=options) as pool:
        assert isinstance(pool, DaskPool)
        pool.client.wait_for_workers(2)
        workers = pool.client.scheduler_info()["workers"]
        assert pool.client.scheduler.address.startswith("tls://127.0.0.1:")
        assert [w.startswith("tls://127.0.0.1:") for w in workers] == [True, True]
        running = jobs("RUNNING")
        assert len(running) == 2
        assert {pool.submit(os.getenv, "SLURM_JOB_ID").result()} <= running
        limits = asked("squeue", "--noheader", "--format=%l").split()
        assert limits == ["UNLIMITED"] * 2  # the queue's, not one of dask-jobqueue
        work(url, pool)
    assert tree_digest(url) == serial
    wait_until(lambda: not jobs())
    assert list((tmp_path / "shared").iterdir()) == [tmp_path / "shared/logs"]


def hold(release: Path) -> int:
    """Keep a worker busy until a file is there."""
    wait_until(release.exists)
    return os.getpid()


def n_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def kill_worker(pool: DaskPool, job: str) -> None:
    pids = pool.client.run(os.getpid)
    os.kill(next(iter(pids.values())), signal.SIGKILL)


def cancel_job(pool: DaskPool, job: str) -> None:
    asked("scancel", job)


@pytest.mark.slow
@pytest.mark.parametrize(("blow", "lost_seconds"), [(kill_worker, 300), (cancel_job, 1)])
def test_the_result_is_the_same_whatever_is_killed(
    tmp_path: Path,
    options: ClusterOptions,
    serial: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    blow: Callable[[DaskPool, str], None],
    lost_seconds: int,
) -> None:
    """One job of two processes: killed, one comes back within it; cancelled, another job comes."""
    monkeypatch.setattr(launch, "LOST_SECONDS", lost_seconds)
    chosen = {**vars(options), "n_workers": 1, "cores": 2, "memory": "2 GB"}
    url = write_grains(tmp_path / "cell.zarr")
    release = tmp_path / "release"
    with connect("slurm", options=ClusterOptions(**chosen)) as pool:
        assert isinstance(pool, DaskPool)
        pool.client.wait_for_workers(2)
        (first,) = jobs()
        before = set(pool.client.scheduler_info()["workers"])
        held = [pool.submit(hold, release) for _ in range(2)]
        stage = threading.Thread(target=work, args=(url, pool))
        stage.start()
        # Its tasks wait behind those that are held.
        wait_until(lambda: pool.client.run_on_scheduler(n_tasks) > len(held))
        blow(pool, first)
        wait_until(lambda: set(pool.client.scheduler_info()["workers"]) - before)
        release.touch()
        stage.join()
        assert all(future.result() for future in held)
        (last,) = jobs("RUNNING")
        assert (last == first) == (blow is kill_worker)
    assert tree_digest(url) == serial
    wait_until(lambda: not jobs())


@pytest.mark.slow
def test_workers_close_before_the_walltime(
    tmp_path: Path, options: ClusterOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_options, "LEAST_WALLTIME_SECONDS", 120)
    monkeypatch.setattr(launch, "LOST_SECONDS", 10)  # the job has ended by itself by then
    chosen = {**vars(options), "n_workers": 1, "walltime": "00:02:00"}
    with connect("slurm", options=ClusterOptions(**chosen)) as pool:
        (first,) = jobs()
        before = pool.submit(os.getpid).result()
        wait_until(lambda: state(first) not in ("RUNNING", "COMPLETING"))
        assert state(first) == "COMPLETED"  # not TIMEOUT
        assert pool.submit(os.getpid).result() != before
        assert jobs("RUNNING").isdisjoint({first})
    wait_until(lambda: not jobs())


def test_a_command_that_is_ended_takes_its_jobs_and_keys_with_it(
    tmp_path: Path, options: ClusterOptions
) -> None:
    url = write_grains(tmp_path / "cell.zarr")
    table = tmp_path / "cluster.toml"
    table.write_text(
        f'[cluster]\nqueue = "normal"\ninterface = "lo"\nshared_folder = "{tmp_path}/shared"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cvdask", "measure", str(url), "--client", "slurm"],
        env={**os.environ, VARIABLE: str(table)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        wait_until(jobs)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in said
    wait_until(lambda: not jobs())
    assert list((tmp_path / "shared").glob("tls-*")) == []


@pytest.mark.usefixtures("slurm")
def test_a_command_runs_beside_a_cluster_of_its_own() -> None:
    command = "sinfo --noheader --format=%T; exit 3"
    ended = subprocess.run(
        [sys.executable, str(LOOPBACK), "sh", "-c", command], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (3, "idle\n")
