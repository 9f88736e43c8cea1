"""Is a cluster fit for work: what do its workers have, and does each kind of work run on them?

1. :func:`survey_workers` asks every worker for its versions, memory, cores, devices, clock, and
   whether it reaches a volume; on the first worker of each group, one with and one without a GPU,
   it runs one small block of each kind of work.
2. :func:`findings` says what is wrong: versions that differ from those here, a clock that is off,
   a volume that is not reached, work that failed.

Nothing is written.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cvdask.engine.cluster import Pool, machine_limits
from cvdask.engine.dask_pool import DaskPool
from cvdask.engine.launch import visible_gpus

if TYPE_CHECKING:
    from distributed import Client

# Whoever computes, reads or writes with another of these may get other bytes.
PACKAGES = ("cvdask", "dask", "distributed", "numpy", "zarr", "numcodecs", "numba", "tensorflow")
# Markers and logs are dated; more than this confuses whoever reads them.
CLOCK_SECONDS = 2.0


@dataclass(frozen=True)
class WorkerReport:
    """What one worker has.

    Parameters
    ----------
    name : str
        Address, or ``"this process"``.
    group : str
        ``"cpu"`` or ``"gpu"``.
    host : str
    threads : int
    cores : int
        That the kernel grants the worker's process.
    memory_bytes : int
        That Dask grants the worker.
    devices : tuple of str
        Identifiers of the GPUs it sees.
    versions : dict
        Of Python and the packages whose version may change a result.
    clock_seconds : float
        Its clock minus the clock here, at best known to half the time a message takes.
    store : str
        ``"reached"``, a reason, or ``"not asked"``.
    work : dict
        Kind of work: seconds it took, or the reason why it failed; empty where it was not tried.
    """

    name: str
    group: str
    host: str
    threads: int
    cores: int
    memory_bytes: int
    devices: tuple[str, ...]
    versions: Mapping[str, str]
    clock_seconds: float
    store: str
    work: Mapping[str, float | str]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def survey_workers(
    pool: Pool,
    trials: Mapping[str, Callable[[], object]],
    gpu_trials: Mapping[str, Callable[[], object]],
    reach: Callable[[], object] | None,
) -> list[WorkerReport]:
    """Ask every worker of a pool.

    Parameters
    ----------
    pool : Pool
    trials : mapping of str to callable
        One small block of each kind of work.
    gpu_trials : mapping of str to callable
        The same, of work that needs a GPU.
    reach : callable, optional
        Opens the volume and reads from it; raises where it cannot.
    """
    if not isinstance(pool, DaskPool):
        seen = _describe(reach, trials)
        threads, memory = pool.slots, pool.worker_bytes
        return [_report("this process", "cpu", threads, memory, seen, seen["clock"])]
    workers = pool.client.scheduler_info(n_workers=-1)["workers"]
    groups = {
        address: "gpu" if worker.get("resources", {}).get("GPU") else "cpu"
        for address, worker in workers.items()
    }
    first = {group: address for address, group in reversed(groups.items())}
    reports = []
    for address, worker in workers.items():
        needed = {**trials, **gpu_trials} if groups[address] == "gpu" else trials
        tried = needed if first[groups[address]] == address else {}
        seen, clock = _ask(pool.client, address, reach, tried)
        reports.append(
            _report(
                address, groups[address], worker["nthreads"], worker["memory_limit"], seen, clock
            )
        )
    return reports


def _ask(
    client: Client,
    address: str,
    reach: Callable[[], object] | None,
    trials: Mapping[str, Callable[[], object]],
) -> tuple[dict[str, Any], float]:
    """Let a worker describe itself, and say what the clock here showed when its own was read."""
    pinned = {"workers": [address], "allow_other_workers": False, "pure": False}
    seen = client.submit(_describe, reach, trials, resources=_gpu(client, address), **pinned)
    result = seen.result()
    before = time.time()
    result["clock"] = client.submit(time.time, **pinned).result()
    return result, (before + time.time()) / 2


def _gpu(client: Client, address: str) -> dict[str, float] | None:
    worker = client.scheduler_info(n_workers=-1)["workers"][address]
    return {"GPU": 1} if worker.get("resources", {}).get("GPU") else None


def _report(
    name: str, group: str, threads: int, memory: int, seen: Mapping[str, Any], clock: float
) -> WorkerReport:
    return WorkerReport(
        name=name,
        group=group,
        host=seen["host"],
        threads=threads,
        cores=seen["cores"],
        memory_bytes=memory,
        devices=tuple(seen["devices"]),
        versions=seen["versions"],
        clock_seconds=round(seen["clock"] - clock, 3),
        store=seen["store"],
        work=seen["work"],
    )


def installed() -> dict[str, str]:
    """Return the versions in this process of Python and of what may change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _describe(
    reach: Callable[[], object] | None, trials: Mapping[str, Callable[[], object]]
) -> dict[str, Any]:
    """Describe the process that this runs in."""
    return {
        "host": platform.node(),
        "cores": machine_limits().cores,
        "devices": visible_gpus(os.environ),
        "versions": installed(),
        "store": "not asked" if reach is None else _attempt(reach, lambda _: "reached"),
        "work": {kind: _attempt(trial, lambda seconds: seconds) for kind, trial in trials.items()},
        "clock": time.time(),
    }


def _attempt(call: Callable[[], object], told: Callable[[float], Any]) -> Any:
    """Call, and tell of the seconds it took, or why it failed: that is the answer here."""
    begun = time.perf_counter()
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return told(round(time.perf_counter() - begun, 3))


def findings(reports: Sequence[WorkerReport], here: Mapping[str, str]) -> list[str]:
    """Say what is wrong with a cluster; nothing where all is well.

    Parameters
    ----------
    reports : sequence of WorkerReport
    here : mapping of str to str
        Versions in the process that plans.
    """
    found = []
    for report in reports:
        for package, there in report.versions.items():
            if there != here.get(package):
                found.append(f"{report.name}: {package} {there}, here {here.get(package)}")
        if abs(report.clock_seconds) > CLOCK_SECONDS:
            found.append(f"{report.name}: its clock differs by {report.clock_seconds:.1f} s")
        if report.store not in ("reached", "not asked"):
            found.append(f"{report.name}: does not reach the volume: {report.store}")
        if report.group == "gpu" and not report.devices:
            found.append(f"{report.name}: offers a GPU but sees none")
        found += [
            f"{report.name}: {kind} failed: {outcome}"
            for kind, outcome in report.work.items()
            if isinstance(outcome, str)
        ]
    return found
