"""How is a Dask cluster started, and how is it reached?

1. :func:`check_startable` refuses, before anything is written, what cannot be started here.
2. :func:`launched` starts a cluster and closes it in the end: processes on this machine, one
   process per GPU of it, jobs of a batch system, pods of Kubernetes (``engine.kubernetes``).
3. :func:`attached` connects to a scheduler that runs already.

Nothing is heard beyond loopback without TLS: both ends prove that they hold a key, and what passes
between them is encrypted. Unless certificates are given, they are made for one cluster, stay in
memory (for jobs: in files that you alone can read), and are gone with it.

Jobs that have a walltime close their workers before it ends; the scheduler hands on what they had
not finished, and another job is submitted in the place of each that went (``engine.replacement``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvdask.engine import cluster as pools
from cvdask.engine.cluster_options import (
    BATCH,
    STARTED,
    ClusterOptions,
    GpuGroup,
    lifetime,
)

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

# Of the GPU's memory a network takes what it needs, not all at once: several programs share it.
GPU_ENVIRONMENT = {
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
# Nobody looks at the hundred stacks a second that a worker's profiler takes from what computes, at
# the fifty times a second that each process of Dask asks whether its loop is late, or at the load
# of the machine every half second: they took a twentieth of the time of a core.
WORKER_CONFIG = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
}
# Blocks allocate the same arrays again and again. By its own setting a worker of Dask gives each
# back to the system, and has its pages cleared and mapped anew: that took a third of the time.
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    **{
        "DASK_" + key.replace(".", "__").replace("-", "_").upper(): str(value)
        for key, value in WORKER_CONFIG.items()
    },
}
# The library that starts a kind, and the command or file without which there is none.
LIBRARY = {
    **dict.fromkeys(BATCH, "dask_jobqueue"),
    "kubernetes": "dask_kubernetes",
}
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub"}
# Of jobs, below the shared folder.
LOGS = "logs"
# A worker that died is started anew within its job; on a slow file system that takes this long.
LOST_SECONDS = 60


def check_startable(kind: str, options: ClusterOptions, workers: int | None = None) -> None:
    """Refuse what cannot be started here.

    Raises
    ------
    ValueError
        When the library or the batch system is not there, there is no GPU, or an option is missing.
    """
    library = LIBRARY.get(kind)
    if library and importlib.util.find_spec(library) is None:
        raise ValueError(
            f"--client {kind} needs {library.replace('_', '-')}, which is not installed. Install "
            "cvdask with its extra 'cluster': pip install 'cvdask[cluster]'"
        )
    if kind in SUBMIT and shutil.which(SUBMIT[kind]) is None:
        raise ValueError(
            f"--client {kind} submits jobs with {SUBMIT[kind]}, which is not found on this "
            "machine. Run the command on a login node of the cluster"
        )
    if workers is not None and options.minimum is not None and kind in SUBMIT:
        raise ValueError(
            "the number of jobs follows the work, between minimum and maximum of [cluster]: leave "
            f"--workers out. Received: --workers {workers}"
        )
    if kind == "cuda":
        gpus = visible_gpus()
        if not gpus:
            raise ValueError(
                "--client cuda starts one worker for each GPU of this machine. Received: a machine "
                "on which nvidia-smi shows none that this process may use. Use --client local"
            )
        if workers is not None and workers > len(gpus):
            raise ValueError(
                f"--client cuda starts at most one worker per GPU: {len(gpus)} are there. "
                f"Received: --workers {workers}"
            )
    if kind == "kubernetes":
        from cvdask.engine.kubernetes import check_options

        check_options(options)


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """List the GPUs that this process may use, by identifier, in the order of the driver.

    ``CUDA_VISIBLE_DEVICES`` restricts them, by number or by identifier, as it does for CUDA.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        shown = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    there = [line.strip() for line in shown.splitlines() if line.strip().startswith("GPU-")]
    granted = environment.get("CUDA_VISIBLE_DEVICES")
    if granted is None:
        return there
    chosen = []
    for name in (part.strip() for part in granted.split(",")):
        if name.isdecimal() and int(name) < len(there):
            chosen.append(there[int(name)])
        elif name.startswith(("GPU-", "MIG-")):
            chosen.append(name)
        else:
            break  # CUDA stops at the first that is none
    return chosen


@contextlib.contextmanager
def launched(
    kind: str,
    options: ClusterOptions,
    workers: int | None = None,
    limits: pools.Limits | None = None,
) -> Iterator[tuple[Client, int | None]]:
    """Start a cluster, yield a client of it and the slots to count on, and close both.

    Parameters
    ----------
    kind : str
        One of ``STARTED``.
    options : ClusterOptions
    workers : int, optional
        Processes, jobs or pods, in the place of what the options say.
    limits : Limits, optional
        What a cluster on this machine may use; by default what the kernel grants.

    Raises
    ------
    ValueError
        As :func:`check_startable`.
    ConnectionError
        When no worker comes within ``start_seconds``.
    """
    assert kind in STARTED, kind
    check_startable(kind, options, workers)
    limits = limits or pools.machine_limits()
    if kind == "kubernetes":
        from cvdask.engine.kubernetes import kubernetes_client

        options = replace(options, n_workers=workers or options.n_workers)
        with kubernetes_client(options, security_of(options)) as client:
            _wait_for_groups(client, kind, options)
            yield client, _expected_slots(options)
    elif kind in BATCH:
        options = replace(options, n_workers=workers or options.n_workers)
        with _batch_client(kind, options) as client:
            _wait_for_groups(client, kind, options)
            yield client, _expected_slots(options)
    elif kind == "cuda":
        with _cuda_client(options, visible_gpus()[:workers], limits) as client:
            yield client, None
    else:
        with _local_client(options, workers or limits.cores, limits) as client:
            yield client, None


@contextlib.contextmanager
def attached(address: str, options: ClusterOptions) -> Iterator[tuple[Client, None]]:
    """Connect to a scheduler that runs already, with the certificates of the options if any."""
    security = security_of(options) if options.tls_cert else None
    try:
        opened = open_client(address, security, pools.CONNECT_SECONDS)
    except OSError as error:
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error}") from error
    with opened:
        yield opened, None


def open_client(address: str, security: Security | None, seconds: float) -> Client:
    """Connect to a scheduler, and leave nothing open where that fails.

    A client whose connection failed holds a running event loop until it is collected, and then
    closes it under a lock of the whole process. If it is collected while another client starts its
    own loop under that lock, both wait for ever. So it is closed at once.

    Parameters
    ----------
    address
        Where the scheduler listens, such as ``tls://10.0.0.1:8786``.
    security
        Certificates and key; ``None`` connects in the clear.
    seconds
        How long to try.

    Raises
    ------
    OSError
        If no scheduler answers in time, or it does not take the certificate.
    """
    from distributed import Client

    class Opened(Client):
        def start(self, **kwargs: Any) -> None:
            try:
                super().start(**kwargs)
            except BaseException:
                self.close()
                self._loop_runner.stop()  # close leaves it alone if the failure has closed the rest
                raise

    return Opened(address, security=security, timeout=seconds, set_as_default=False)


def security_of(options: ClusterOptions) -> Security:
    """Return the certificates that were given, or make some for one cluster."""
    from distributed.security import Security

    if not options.tls_cert:
        return Security.temporary()
    for path in (options.tls_ca_file, options.tls_cert, options.tls_key):
        if not Path(str(path)).expanduser().is_file():
            raise FileNotFoundError(f"a certificate or key of [cluster] is not there: {path}")
    return _security(
        {
            part: str(Path(str(getattr(options, f"tls_{part}"))).expanduser())
            for part in ("ca_file", "cert", "key")
        }
    )


def _security(files: Mapping[str, str]) -> Security:
    """Let client, scheduler and workers use the same certificate and key."""
    from distributed.security import Security

    roles = {
        f"tls_{role}_{part}": files[part]
        for role in ("client", "scheduler", "worker")
        for part in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=files["ca_file"], **roles)


# ---------------------------------------------------------------------------------------------
# This machine


@contextlib.contextmanager
def _local_client(
    options: ClusterOptions, n_workers: int, limits: pools.Limits
) -> Iterator[Client]:
    """Start single-threaded worker processes.

    Workers are spawned, not forked: an object-store client hangs in a forked child.
    """
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set(_spawned()),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=int(limits.memory_bytes * pools.USABLE_MEMORY / n_workers),
            **_listening(options),
            dashboard_address="127.0.0.1:0",
            # Pages ask nobody who is looking, so they are for this machine alone.
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as started,
        Client(started, set_as_default=False) as client,
    ):
        yield client


def _spawned() -> dict[str, Any]:
    """Say how worker processes of this machine are made."""
    prefix = "distributed.nanny.pre-spawn-environ"
    return {
        "distributed.worker.multiprocessing-method": "spawn",
        # Beside the environment: this process has read its own before, and hands its config on.
        **WORKER_CONFIG,
        **{f"{prefix}.{name}": value for name, value in WORKER_ENVIRONMENT.items()},
    }


def _listening(options: ClusterOptions) -> dict[str, Any]:
    if not options.encrypted:
        return {"host": options.host}
    return {"host": options.host, "protocol": "tls://", "security": security_of(options)}


@contextlib.contextmanager
def _cuda_client(
    options: ClusterOptions, gpus: list[str], limits: pools.Limits
) -> Iterator[Client]:
    """Start one process for each GPU; its threads read and write while one of them computes."""
    import dask
    from distributed import Client, Scheduler, SpecCluster

    listening = _listening(options)
    scheduler = {
        "cls": Scheduler,
        "options": {**listening, "dashboard_address": "127.0.0.1:0"},
    }
    workers = cuda_workers(listening, gpus, limits)
    security = listening.get("security")
    with (
        dask.config.set(_spawned()),
        SpecCluster(
            scheduler=scheduler, workers=workers, security=security, silence_logs=50
        ) as started,
        Client(started, set_as_default=False) as client,
    ):
        client.wait_for_workers(len(workers), timeout=options.start_seconds)
        yield client


def cuda_workers(
    listening: Mapping[str, Any], gpus: list[str], limits: pools.Limits
) -> dict[str, dict[str, Any]]:
    """Describe one worker process for each GPU, which sees no other.

    Cores and memory of the machine are shared out evenly.
    """
    from distributed import Nanny

    return {
        f"gpu-{number}": {
            "cls": Nanny,
            "options": {
                **listening,
                "dashboard_address": "127.0.0.1:0",
                "nthreads": max(1, limits.cores // len(gpus)),
                "memory_limit": int(limits.memory_bytes * pools.USABLE_MEMORY / len(gpus)),
                "resources": {"GPU": 1},
                "env": {"CUDA_VISIBLE_DEVICES": gpu, **GPU_ENVIRONMENT},
                "silence_logs": 50,
            },
        }
        for number, gpu in enumerate(gpus)
    }


# ---------------------------------------------------------------------------------------------
# Batch systems


@contextlib.contextmanager
def _batch_client(kind: str, options: ClusterOptions) -> Iterator[Client]:
    """Submit jobs, each with single-threaded workers, and cancel them in the end."""
    from distributed import Client

    from cvdask.engine.replacement import JobReplacement

    with batch_cluster(kind, options) as started, Client(started, set_as_default=False) as client:
        started.scheduler.add_plugin(JobReplacement(started, LOST_SECONDS))
        if options.minimum is not None:
            started.adapt(minimum_jobs=options.minimum, maximum_jobs=options.maximum)
        else:
            started.scale(jobs=options.n_workers)
            if options.gpu is not None:
                add_gpu_jobs(started, kind, options, options.gpu)
        yield client


@contextlib.contextmanager
def batch_cluster(kind: str, options: ClusterOptions) -> Iterator[Any]:
    """Open the cluster of a batch system, without a job yet."""
    import dask
    from dask_jobqueue.lsf import LSFCluster
    from dask_jobqueue.pbs import PBSCluster
    from dask_jobqueue.slurm import SLURMCluster

    makers = {"slurm": SLURMCluster, "pbs": PBSCluster, "lsf": LSFCluster}
    shared = Path(options.shared_folder).expanduser()
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {
        # Without a walltime the batch system's own holds, not the half hour of dask-jobqueue.
        f"jobqueue.{kind}.walltime": None,
        # Dask would give a job up before its worker is back, and submit no other.
        "distributed.deploy.lost-worker-timeout": f"{LOST_SECONDS} s",
    }
    with (
        dask.config.set(settings),
        _files_of(security_of(options), shared) as security,
        makers[kind](
            **job_options(kind, options, shared),
            security=security,
            protocol="tls://",
            interface=options.interface,
            # The dashboard asks nobody who they are, so it is for this machine alone.
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
        ) as started,
    ):
        yield started


@contextlib.contextmanager
def _files_of(security: Security, shared: Path) -> Iterator[Security]:
    """Write certificates that are in memory only to a folder of their own, and remove it.

    Jobs read them there; folder and files are readable by this user alone.
    """
    # The folder is made with mode 0700, whatever is around it.
    with tempfile.TemporaryDirectory(prefix="tls-", dir=shared) as folder:
        roles = security.get_tls_config_for_role("client")
        files = {}
        for part in ("ca_file", "cert", "key"):
            text = roles[part]
            files[part] = text
            if "\n" in text:
                files[part] = str(Path(folder) / f"{part}.pem")
                with open(os.open(files[part], os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                    file.write(text)
        yield _security(files)


def job_options(kind: str, options: ClusterOptions, shared: Path) -> dict[str, Any]:
    """Say what dask-jobqueue is to ask of the batch system for a job without a GPU."""
    worker = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0", *options.worker_extra]
    if options.walltime is not None:
        closes, varies = lifetime(options.walltime)
        worker = [*worker, "--lifetime", f"{closes}s", "--lifetime-stagger", f"{varies}s"]
    described = {
        "cores": options.cores,
        "processes": options.cores,
        "memory": options.memory,
        "queue": options.queue,
        "walltime": _written_for(kind, options.walltime),
        "local_directory": options.local_folder,
        "log_directory": str(shared / LOGS),
        "job_script_prologue": [*options.prologue, *_exported(WORKER_ENVIRONMENT)],
        "job_extra_directives": list(options.job_extra),
        "worker_extra_args": worker,
        "death_timeout": options.start_seconds,
    }
    described["project" if kind == "lsf" else "account"] = options.account
    return described


def _written_for(kind: str, walltime: str | None) -> str | None:
    """Write a walltime as the batch system reads it: LSF takes hours and minutes, PBS no days."""
    if walltime is None or kind == "slurm":
        return walltime
    days, _, rest = walltime.rpartition("-")
    hours, minutes, *seconds = rest.split(":")
    hours = f"{int(hours) + 24 * int(days or 0):02d}"
    return ":".join([hours, minutes] if kind == "lsf" else [hours, minutes, *(seconds or ["00"])])


def add_gpu_jobs(started: Any, kind: str, options: ClusterOptions, group: GpuGroup) -> None:
    """Submit the jobs with a GPU: one process and one GPU in each."""
    common = started.new_spec["options"]
    request: dict[str, Any] = {
        "cores": group.cores,
        "processes": 1,
        "memory": group.memory,
        "queue": group.queue or options.queue,
        "worker_extra_args": [*common["worker_extra_args"], "--resources", "GPU=1"],
        "job_extra_directives": [*options.job_extra, *(group.job_extra or _one_gpu(kind))],
        "job_script_prologue": [
            *options.prologue,
            *_exported(WORKER_ENVIRONMENT | GPU_ENVIRONMENT),
        ],
    }
    if kind == "pbs":
        from dask_jobqueue.pbs import pbs_format_bytes_ceil

        memory = pbs_format_bytes_ceil(_bytes(group.memory))
        request["resource_spec"] = f"select=1:ncpus={group.cores}:mem={memory}:ngpus=1"
    for number in range(group.n_workers):
        started.worker_spec[f"gpu-{number}"] = {
            "cls": started.new_spec["cls"],
            "options": {**common, **request},
        }
    # As many as are described by now: it starts those that do not run yet.
    started.scale(jobs=len(started.worker_spec))


def _exported(environment: Mapping[str, str]) -> list[str]:
    return [f"export {name}={value}" for name, value in environment.items()]


def _one_gpu(kind: str) -> list[str]:
    return {"slurm": ["--gres=gpu:1"], "lsf": ['-gpu "num=1"'], "pbs": []}[kind]


def _bytes(text: str) -> int:
    from dask.utils import parse_bytes

    return int(parse_bytes(text))


# ---------------------------------------------------------------------------------------------
# Waiting


def _expected_slots(options: ClusterOptions) -> int:
    """Count the threads of all workers that were asked for, those that still wait included."""
    slots = (options.maximum or options.n_workers) * options.cores
    return slots + (options.gpu.n_workers * options.gpu.cores if options.gpu else 0)


def _wait_for_groups(client: Client, kind: str, options: ClusterOptions) -> None:
    """Wait until one worker of each group is there: what runs first looks at what they offer."""
    from distributed.metrics import time

    end = time() + options.start_seconds
    n_wanted = 1
    while True:
        try:
            client.wait_for_workers(n_wanted, timeout=max(1, end - time()))
        except TimeoutError as error:
            raise ConnectionError(
                f"no worker of every group came within {options.start_seconds} s on {kind}. Look "
                f"at its queue{_logs(kind, options)}, or let start_seconds of [cluster] be longer"
            ) from error
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        with_gpu = [bool(worker.get("resources", {}).get("GPU")) for worker in workers]
        if options.gpu is None or (any(with_gpu) and not all(with_gpu)):
            return
        n_wanted = len(with_gpu) + 1


def _logs(kind: str, options: ClusterOptions) -> str:
    folder = Path(options.shared_folder).expanduser() / LOGS
    return f" and at what its jobs wrote into {folder}" if kind in BATCH else ""
