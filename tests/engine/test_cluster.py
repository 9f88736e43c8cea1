"""Does work get what the machine grants, run where it was asked to, and refuse what cannot be?"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from distributed import Client, LocalCluster, Worker, get_worker

from cvdask.engine import cluster
from cvdask.engine.cluster import (
    Limits,
    SerialPool,
    ThreadPool,
    connect,
    local_client,
    machine_limits,
)
from cvdask.engine.dask_pool import DaskPool

GIB = 2**30


@pytest.fixture
def big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to a node of 128 cores and 512 GiB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(128), raising=False)
    memory = psutil.virtual_memory()._replace(total=512 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def limits(root: Path, environment: dict[str, str] | None = None) -> Limits:
    return machine_limits(environment or {}, root / "cgroup", root / "membership")


# What the machine grants


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Limits(128, 512 * GIB)),
        # version 2, in a container: the limits of its own root
        ({"cgroup/cpu.max": "200000 100000"}, Limits(2, 512 * GIB)),
        ({"cgroup/cpu.max": "250000 100000"}, Limits(2, 512 * GIB)),
        ({"cgroup/cpu.max": "50000 100000"}, Limits(1, 512 * GIB)),
        ({"cgroup/cpu.max": "max 100000"}, Limits(128, 512 * GIB)),
        ({"cgroup/memory.max": f"{4 * GIB}"}, Limits(128, 4 * GIB)),
        ({"cgroup/memory.max": "max"}, Limits(128, 512 * GIB)),
        # version 2, as a job of a batch system: the least on the way to the root
        (
            {
                "membership": "0::/slurm/job_7/step_0",
                "cgroup/slurm/job_7/step_0/cpu.max": "max 100000",
                "cgroup/slurm/job_7/cpu.max": "400000 100000",
                "cgroup/slurm/job_7/step_0/memory.max": f"{9 * GIB}",
                "cgroup/slurm/job_7/memory.max": f"{8 * GIB}",
                "cgroup/slurm/job_8/memory.max": f"{GIB}",  # of somebody else
            },
            Limits(4, 8 * GIB),
        ),
        # version 1
        (
            {
                "cgroup/cpu/cpu.cfs_quota_us": "300000",
                "cgroup/cpu/cpu.cfs_period_us": "100000",
                "cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}",
            },
            Limits(3, 2 * GIB),
        ),
        (
            {
                "cgroup/cpu/cpu.cfs_quota_us": "-1",
                "cgroup/cpu/cpu.cfs_period_us": "100000",
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            Limits(128, 512 * GIB),
        ),
        (
            {
                "membership": "5:cpuacct,cpu:/job\n4:memory:/job/step\n0::/",
                "cgroup/cpu/job/cpu.cfs_quota_us": "600000",
                "cgroup/cpu/job/cpu.cfs_period_us": "100000",
                "cgroup/memory/job/step/memory.limit_in_bytes": f"{6 * GIB}",
            },
            Limits(6, 6 * GIB),
        ),
        # the paths of the host, which do not exist inside a container
        ({"membership": "0::/kubepods/pod1", "cgroup/memory.max": f"{GIB}"}, Limits(128, GIB)),
    ],
)
def test_cgroups(tmp_path: Path, files: dict[str, str], expected: Limits) -> None:
    write(tmp_path, files)
    assert limits(tmp_path) == expected


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "8"}, Limits(8, 512 * GIB)),
        ({"SLURM_MEM_PER_NODE": "2048"}, Limits(128, 2 * GIB)),
        ({"SLURM_MEM_PER_NODE": "0"}, Limits(128, 512 * GIB)),  # SLURM's "all of it"
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_CPU": "512"}, Limits(4, 2 * GIB)),
        ({"SLURM_CPUS_PER_TASK": "many", "SLURM_MEM_PER_NODE": ""}, Limits(128, 512 * GIB)),
    ],
)
def test_slurm(tmp_path: Path, environment: dict[str, str], expected: Limits) -> None:
    assert limits(tmp_path, environment) == expected


@pytest.mark.usefixtures("big_machine")
def test_the_least_of_all_holds(tmp_path: Path) -> None:
    write(tmp_path, {"cgroup/cpu.max": "300000 100000", "cgroup/memory.max": f"{3 * GIB}"})
    environment = {"SLURM_CPUS_PER_TASK": "8", "SLURM_MEM_PER_NODE": "1024"}
    assert limits(tmp_path, environment) == Limits(3, GIB)


def test_this_machine_grants_something() -> None:
    granted = machine_limits()
    assert 1 <= granted.cores <= (os.cpu_count() or 1)
    assert 2**20 < granted.memory_bytes <= psutil.virtual_memory().total


# Where work runs


def double(value: int) -> int:
    return 2 * value


def total(values: list[int], offset: int) -> int:
    return sum(values) + offset


def fail(_: int) -> None:
    raise ValueError("no 13")


@pytest.fixture
def pool(client: Any) -> Iterator[Any]:
    with connect(client, workers=2) as opened:
        yield opened


def test_a_pool_runs_calls_and_passes_results_on(pool: Any) -> None:
    doubled = [pool.submit(double, n) for n in range(5)]
    summed = pool.submit(total, doubled, pool.submit(double, 50))
    ended: set[Any] = set()
    while len(ended) < 5:
        ended |= pool.wait(set(doubled) - ended)
    assert [future.result() for future in doubled] == [0, 2, 4, 6, 8]
    assert summed.result() == 120


def test_the_same_call_twice_is_two_calls(pool: Any) -> None:
    assert pool.submit(double, 1) is not pool.submit(double, 1)


def test_a_fault_is_raised_by_its_result(pool: Any) -> None:
    future = pool.submit(fail, 13)
    assert pool.wait([future]) == {future}
    with pytest.raises(ValueError, match="13"):
        future.result()


def test_serial_is_this_thread() -> None:
    with connect(None) as pool:
        assert isinstance(pool, SerialPool)
        assert pool.submit(threading.get_ident).result() == threading.get_ident()
        assert pool.slots == 1


def test_threads_are_as_many_as_asked_for() -> None:
    with connect("threads", workers=3) as pool:
        assert isinstance(pool, ThreadPool)
        assert pool.slots == 3
        together = threading.Barrier(3)
        futures = [pool.submit(together.wait, 30) for _ in range(3)]
        assert sorted(future.result() for future in futures) == [0, 1, 2]
    with connect("threads") as pool:
        assert pool.slots == machine_limits().cores
        assert 0 < pool.worker_bytes * pool.slots < machine_limits().memory_bytes


def test_threads_end_with_the_pool() -> None:
    before = threading.active_count()
    with connect("threads", workers=3) as pool:
        pool.wait([pool.submit(double, 1)])
    assert threading.active_count() == before


def test_an_open_pool_is_used_and_left_open() -> None:
    with connect("threads", workers=2) as pool:
        with connect(pool, workers=7) as same:
            assert same is pool
        assert pool.submit(double, 4).result() == 8


def test_a_client_is_used_and_left_open(distributed_client: Client) -> None:
    with connect(distributed_client) as pool:
        assert isinstance(pool, DaskPool)
        assert pool.slots == 2
        assert pool.worker_bytes > 2**20
    assert distributed_client.status == "running"


def test_a_scheduler_is_found_by_its_address(distributed_client: Client) -> None:
    address = distributed_client.scheduler.address
    with connect(address) as pool:
        assert pool.slots == 2
        assert pool.submit(double, 4).result() == 8
    assert distributed_client.submit(double, 5).result() == 10


@pytest.mark.parametrize("client", ["dask", "", "localhost"])
def test_a_client_of_another_name(client: str) -> None:
    with pytest.raises(ValueError, match=f"'{client}'"), connect(client):
        pass


@pytest.mark.parametrize("workers", [0, -2])
def test_no_workers(workers: int) -> None:
    with pytest.raises(ValueError, match=str(workers)), connect("threads", workers=workers):
        pass


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    with socket.socket() as bound:  # bound, not listening: the port is nobody else's meanwhile
        bound.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=address), connect(address):
            pass


# Resources


@pytest.fixture(scope="module")
def mixed_client() -> Iterator[Client]:
    """Two workers in this process, one of which has a GPU."""
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as opened,
        Client(opened) as client,
    ):

        async def start() -> list[Worker]:
            address = opened.scheduler_address
            plain = await Worker(address, nthreads=1, name="plain", memory_limit=0)
            able = await Worker(
                address, nthreads=2, name="able", resources={"GPU": 1}, memory_limit=4 * GIB
            )
            return [plain, able]

        workers = client.sync(start)
        yield client

        async def stop() -> None:
            for worker in workers:
                await worker.close()

        client.sync(stop)


def worker_name() -> str:
    return str(get_worker().name)


def test_calls_go_to_workers_that_offer_what_they_need(mixed_client: Client) -> None:
    with connect(mixed_client, resources={"GPU": 1}) as pool:
        assert (pool.slots, pool.worker_bytes) == (2, 2 * GIB)
        names = {pool.submit(worker_name).result() for _ in range(8)}
    assert names == {"able"}
    with connect(mixed_client) as pool:
        assert pool.slots == 3


@pytest.mark.parametrize("resources", [{"GPU": 2}, {"TPU": 1}, {"GPU": 1, "TPU": 1}])
def test_resources_that_no_worker_offers(mixed_client: Client, resources: dict[str, float]) -> None:
    with (
        pytest.raises(ValueError, match=r"(GPU|TPU).*2 workers.*\['GPU'\]"),
        connect(mixed_client, resources=resources),
    ):
        pass


def test_a_cluster_without_workers() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as opened,
        Client(opened) as client,
        pytest.raises(ValueError, match="no workers"),
        connect(client),
    ):
        pass


# The cluster on this machine


def listening() -> set[tuple[str, int]]:
    """List where this process and those it started listen."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_local_cluster_listens_on_loopback_only() -> None:
    before = listening()
    with local_client(1, Limits(1, 8 * GIB)) as client:
        opened = listening() - before
        worker = next(iter(client.scheduler_info()["workers"].values()))
        assert (worker["nthreads"], worker["memory_limit"]) == (1, int(8 * GIB * 0.8))
        assert client.submit(os.getpid).result() != os.getpid()
        dashboard = urlsplit(client.dashboard_link)
    # Scheduler, dashboard, nanny and worker at least.
    assert len(opened) >= 4
    assert {ip for ip, _ in opened} == {"127.0.0.1"}
    assert (dashboard.hostname, dashboard.port) in opened


def test_calls_that_were_not_begun_are_dropped_when_a_pool_ends() -> None:
    begun = threading.Event()
    released = threading.Event()

    def work() -> None:
        begun.set()
        released.wait(30)

    with connect("threads", workers=1) as pool:
        futures = [pool.submit(work) for _ in range(5)]
        begun.wait(30)
        threading.Timer(0.05, released.set).start()
    assert [future.cancelled() for future in futures] == [False, True, True, True, True]
