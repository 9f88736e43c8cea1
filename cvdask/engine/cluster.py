"""Where work runs: in this thread, in threads, or on Dask workers.

Clusters are started in ``engine.launch``, as ``engine.cluster_options`` describes them.

:func:`connect` turns what a user asked for into a :class:`Pool`: something to submit batches of
blocks to and to wait on. Everything else in the engine is the same for all of them.

The machine's size is what the kernel grants this process (affinity, cgroup, SLURM), not what the
processor has: a container of 2 cores on a node of 128 gets 2 workers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import difflib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from cvdask.engine.cluster_options import STARTED, ClusterOptions, read_options
from cvdask.engine.dask_pool import DaskPool

if TYPE_CHECKING:
    from distributed import Client

# A part of the machine's memory stays with the client, the scheduler and the page cache.
USABLE_MEMORY = 0.8
# A scheduler that was started a moment ago may need this long to answer.
CONNECT_SECONDS = 20
# What can be asked for by name.
KNOWN = ("serial", "threads", *STARTED)


@dataclass(frozen=True)
class Limits:
    """What this process may use.

    Parameters
    ----------
    cores : int
    memory_bytes : int
    """

    cores: int
    memory_bytes: int


def machine_limits(
    environment: Mapping[str, str] = os.environ,
    cgroup: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> Limits:
    """Read the cores and the memory that this process may use.

    The least of: processor affinity and installed memory; the CPU quota and the memory limit of
    the cgroup it is in and of those around it (version 2 or 1); SLURM's grant to the job.
    """
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    cores = [len(affinity(0))]
    memory = [int(psutil.virtual_memory().total)]
    for folder in _cgroup_folders(cgroup, membership, "cpu"):
        quota, period = _cpu_quota(folder)
        if quota and period:
            cores.append(max(1, math.floor(quota / period)))
    for folder in _cgroup_folders(cgroup, membership, "memory"):
        limits = (_number(folder / name) for name in ("memory.max", "memory.limit_in_bytes"))
        memory += [limit for limit in limits if limit is not None]
    if environment.get("SLURM_CPUS_PER_TASK", "").isdigit():
        cores.append(int(environment["SLURM_CPUS_PER_TASK"]))
    megabyte = 2**20  # SLURM counts memory in units of 2**20 bytes
    if environment.get("SLURM_MEM_PER_NODE", "").isdigit():
        memory.append(int(environment["SLURM_MEM_PER_NODE"]) * megabyte)
    elif environment.get("SLURM_MEM_PER_CPU", "").isdigit():
        memory.append(int(environment["SLURM_MEM_PER_CPU"]) * megabyte * min(cores))
    granted = [value for value in memory if value > 0]
    return Limits(max(1, min(cores)), min(granted))


def _cgroup_folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the cgroups this process is in, the innermost first.

    A line of ``membership`` is ``0::/a/b`` in version 2, ``4:memory:/a/b`` in version 1. Inside a
    container the paths may be those of the host: folders that are not there are passed by.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    inside = {root: "", root / controller: ""}
    for line in lines:
        _, names, path = line.split(":", 2)
        if not names:
            inside[root] = path
        elif controller in names.split(","):
            inside[root / controller] = path
    for mount, path in inside.items():
        folder = mount / path.strip("/")
        while folder != mount:
            yield folder
            folder = folder.parent
        yield mount


def _cpu_quota(folder: Path) -> tuple[int | None, int | None]:
    """Return CPU quota and period in µs; None where there is no limit."""
    quota, period = _number(folder / "cpu.max"), _number(folder / "cpu.max", 1)
    if quota is None:
        quota = _number(folder / "cpu.cfs_quota_us")
        period = _number(folder / "cpu.cfs_period_us")
    return quota, period


def _number(path: Path, word: int = 0) -> int | None:
    """Read a number from a cgroup file; None where it is absent or says that there is no limit."""
    try:
        text = path.read_text().split()[word]
    except (OSError, IndexError):
        return None
    # Version 2 writes "max"; version 1 writes -1, or a number near 2**63.
    return int(text) if text.isdigit() and int(text) < 2**60 else None


class Pool(Protocol):
    """Something that runs functions: what the engine needs to know of it.

    Attributes
    ----------
    slots : int
        Calls that run at the same time.
    worker_bytes : int
        Memory that each of them may use.
    dashboard : str or None
        Address to watch the work at.
    """

    slots: int
    worker_bytes: int
    dashboard: str | None

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Start a call and return its future; arguments may be futures of the same pool."""

    def wait(self, futures: Iterable[Any]) -> set[Any]:
        """Wait until at least one future has ended, and return those that have."""


class SerialPool:
    """Run each call at once, in the calling thread: the reference for all other pools."""

    def __init__(self) -> None:
        self.slots = 1
        self.worker_bytes = int(machine_limits().memory_bytes * USABLE_MEMORY)
        self.dashboard: str | None = None

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run the call and return a future that has ended."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(function(*_resolve(args)))
        except Exception as error:
            future.set_exception(error)
        return future

    def wait(self, futures: Iterable[Any]) -> set[Any]:
        """Return all: they have ended."""
        return set(futures)


class ThreadPool:
    """Run calls in threads of this process. Readers, codecs and kernels release the GIL."""

    def __init__(self, executor: concurrent.futures.Executor, slots: int) -> None:
        self.slots = slots
        self.worker_bytes = int(machine_limits().memory_bytes * USABLE_MEMORY / slots)
        self.dashboard: str | None = None
        self._executor = executor

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Start a call in a free thread."""
        return self._executor.submit(lambda: function(*_resolve(args)))

    def wait(self, futures: Iterable[Any]) -> set[Any]:
        """Wait for the first."""
        return concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED).done


def _resolve(args: tuple[Any, ...]) -> list[Any]:
    """Replace futures among the arguments, also inside lists, by their results."""

    def value(arg: Any) -> Any:
        if isinstance(arg, concurrent.futures.Future):
            return arg.result()
        return [value(item) for item in arg] if isinstance(arg, list) else arg

    return [value(arg) for arg in args]


@contextlib.contextmanager
def connect(
    client: Client | SerialPool | ThreadPool | DaskPool | str | None = None,
    *,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    options: ClusterOptions | None = None,
) -> Iterator[Pool]:
    """Open the place where work runs, and close what was opened.

    Parameters
    ----------
    client : None, str or distributed.Client
        None or ``"serial"``: this thread. ``"threads"``: threads of this process. ``"local"``: a
        Dask cluster of processes on this machine; ``"cuda"``: one process for each of its GPUs.
        ``"slurm"``, ``"pbs"``, ``"lsf"``, ``"kubernetes"``: a cluster started there.
        ``"tcp://…"`` or ``"tls://…"``: a running scheduler. A client, or a pool that is open
        already, is used as it is and left open.
    workers : int, optional
        Number of threads or processes; by default one per core that this process may use. Jobs of
        a batch system or pods; by default as the options say.
    resources : mapping, optional
        What each call needs of a Dask worker.
    options : ClusterOptions, optional
        How a cluster is started; by default as the file says that ``CVDASK_CLUSTER`` names.

    Raises
    ------
    ValueError
        When the client is none of these, or ``workers`` is below 1.
    ConnectionError
        When no scheduler answers at the address, or the connection is lost while work runs.
    """
    if isinstance(client, SerialPool | ThreadPool):
        yield client
        return
    if isinstance(client, DaskPool):
        with _naming_loss():
            yield client
        return
    check_client(client, workers)
    limits = machine_limits()
    slots = workers or limits.cores
    if client is None or client == "serial":
        yield SerialPool()
    elif client == "threads":
        executor = concurrent.futures.ThreadPoolExecutor(slots)
        try:
            yield ThreadPool(executor, slots)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
    elif isinstance(client, str):
        # Late: what is started is described in terms of this module.
        from cvdask.engine.launch import attached, launched

        chosen = options or read_options()
        how = launched(client, chosen, workers) if client in STARTED else attached(client, chosen)
        with how as (opened, n_slots), _naming_loss():
            yield DaskPool(opened, resources, n_slots)
    else:
        with _naming_loss():
            yield DaskPool(client, resources)


@contextlib.contextmanager
def _naming_loss() -> Iterator[None]:
    """Say in one way that the scheduler has gone, whichever call was under way."""
    from distributed.comm.core import CommClosedError

    try:
        yield
    except (concurrent.futures.CancelledError, CommClosedError) as error:
        raise ConnectionError(
            "the connection to the Dask scheduler was lost. Finished blocks are kept: run the "
            "same command again when a scheduler is there"
        ) from error


def check_client(client: Client | Pool | str | None, workers: int | None) -> None:
    """Refuse what :func:`connect` cannot open, as far as the words alone tell.

    For whoever wants to know before anything is written.

    Raises
    ------
    ValueError
        As :func:`connect`.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"at least one worker is needed. Received: {workers}")
    if not isinstance(client, str) or "://" in client:
        return
    if client not in KNOWN:
        near = difflib.get_close_matches(client, KNOWN, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"a client is one of {', '.join(KNOWN)}, or the address of a scheduler such as "
            f"tcp://host:8786. Received: {client!r}.{hint}"
        )
    if client in STARTED:
        from cvdask.engine.launch import check_startable

        check_startable(client, read_options(), workers)


@contextlib.contextmanager
def local_client(n_workers: int, limits: Limits | None = None) -> Iterator[Client]:
    """Start single-threaded worker processes on this machine, on loopback only."""
    from cvdask.engine.launch import launched

    with launched("local", ClusterOptions(), n_workers, limits) as (client, _):
        yield client
