"""Does a call on a cluster end, in a result or in an error, also where a worker cannot load it?"""

from __future__ import annotations

import importlib
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Event, LocalCluster, wait
from distributed.client import FutureState

from cvdask.engine import dask_pool
from cvdask.engine.blockwise import run
from cvdask.engine.dask_pool import DaskPool
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Grid


def double(value: int) -> int:
    return 2 * value


def held_up(event: str) -> None:
    Event(event).wait()


def test_each_call_is_watched_once_however_often_one_waits(
    distributed_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[Any] = []

    async def watch(state: Any, timeout: float | None = None) -> None:
        watched.append(state)
        await keep(state, timeout)

    keep = FutureState.wait
    monkeypatch.setattr(FutureState, "wait", watch)
    pool = DaskPool(distributed_client)
    pending = {pool.submit(double, n) for n in range(20)}
    states = {id(future._state) for future in pending}
    while pending:
        pending -= pool.wait(pending)
    assert {id(state) for state in watched} == states
    assert len(watched) == 20


def test_who_waits_for_a_call_that_was_cancelled_is_told(distributed_client: Client) -> None:
    pool = DaskPool(distributed_client)
    held = Event(client=distributed_client)
    future = pool.submit(held_up, held.name)
    distributed_client.cancel([future])
    with pytest.raises(CancelledError):
        pool.wait([future])
    held.set()


def test_a_call_ends_while_the_cluster_is_asked(
    distributed_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks must not keep the loop from telling: it is the loop that brings the answer."""
    monkeypatch.setattr(dask_pool, "LISTEN_SECONDS", 0.01)
    pool = DaskPool(distributed_client)
    held = Event(client=distributed_client)
    future = pool.submit(held_up, held.name)

    def ask() -> None:
        held.set()
        wait([future], timeout=60)
        distributed_client.scheduler_info()

    monkeypatch.setattr(pool, "_ask_newcomers", ask)
    assert pool.wait([future]) == {future}


# What a worker cannot load


@pytest.fixture
def only_here(
    distributed_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A module that came where this process looks for them after the workers had started."""
    (tmp_path / "only_here.py").write_text(
        "class Value:\n    pass\n\ndef nothing(block):\n    return {}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("only_here")
    del sys.modules["only_here"]


def test_a_function_that_no_worker_can_import(distributed_client: Client, only_here: Any) -> None:
    plan = Plan("nothing", Grid((3, 1, 1), (1, 1, 1)), "memory://")
    with pytest.raises(ValueError, match="No module named 'only_here'"):
        run(only_here.nothing, plan, client=distributed_client)
    assert run(nothing, plan, client=distributed_client).n_done == 3


def nothing(_: Any) -> dict[str, Any]:
    return {}


def test_an_argument_that_no_worker_can_import(distributed_client: Client, only_here: Any) -> None:
    pool = DaskPool(distributed_client)
    future = pool.submit(double, only_here.Value())
    assert pool.wait([future]) == {future}
    with pytest.raises(ValueError, match="No module named 'only_here'"):
        future.result()


def test_calls_carry_the_name_of_their_function(distributed_client: Client) -> None:
    assert DaskPool(distributed_client).submit(double, 1).key.startswith("double-")


# Workers without cvdask


@pytest.fixture
def bare(tmp_path: Path) -> list[str]:
    """A Python with all packages that are here but cvdask: the beginning of its command line."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(path).iterdir():
            if "cvdask" not in entry.name:
                (packages / entry.name).symlink_to(entry)
    program = (
        f"import sys; sys.path.insert(0, {str(packages)!r}); "
        "from distributed.cli.dask_worker import main; main()"
    )
    return [sys.executable, "-I", "-S", "-c", program]


@pytest.fixture
def cluster() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=0,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as opened,
        Client(opened) as client,
    ):
        yield client


@pytest.fixture
def bare_worker(bare: list[str], cluster: Client, tmp_path: Path) -> Iterator[Any]:
    """A function that starts such a worker and waits until it is there."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        before = set(cluster.scheduler_info(n_workers=-1)["workers"])
        address = cluster.scheduler.address
        options = ["--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path)]
        with open(tmp_path / "worker.log", "wb") as log:
            started.append(
                subprocess.Popen([*bare, address, *options], stdout=log, stderr=log, cwd="/")
            )
        cluster.wait_for_workers(len(before) + 1, timeout=60)
        (new,) = set(cluster.scheduler_info(n_workers=-1)["workers"]) - before
        return str(new)

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_worker_without_cvdask_is_named(cluster: Client, bare_worker: Any) -> None:
    address = bare_worker()
    with pytest.raises(ValueError, match=f"cvdask.*{address} has none.*Install"):
        DaskPool(cluster)


def test_a_worker_without_cvdask_that_comes_later(
    cluster: Client, bare_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_pool, "LISTEN_SECONDS", 0.05)
    cluster.cluster.scale(1)
    cluster.wait_for_workers(1, timeout=60)
    pool = DaskPool(cluster)
    held = Event(client=cluster)
    future = pool.submit(held_up, held.name)
    address = bare_worker()
    with pytest.raises(ValueError, match=f"{address} has none"):
        pool.wait([future])
    held.set()
    future.result()


def test_many_workers_of_another_version_are_counted(
    distributed_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_pool, "version", lambda _: "99.1")
    monkeypatch.setattr(dask_pool, "NAMED", 1)
    with pytest.raises(
        ValueError, match=r"99\.1\. Received: the scheduler has .* and 2 more differ"
    ):
        DaskPool(distributed_client)
