"""What does a user ask of a cluster that is to be started?

1. :class:`ClusterOptions` holds it, for every kind of cluster; the part that may differ for
   workers with a GPU is a :class:`GpuGroup`.
2. :func:`read_options` reads them from a TOML file, whose path stands in ``CVDASK_CLUSTER``::

       [cluster]
       n_workers = 8  # jobs, or pods
       cores = 4
       memory = "16 GB"
       walltime = "04:00:00"
       queue = "normal"

       [cluster.gpu]  # one GPU for each of these
       n_workers = 2
       cores = 8
       memory = "32 GB"
       queue = "gpu"

3. What is wrong is refused before anything is started: a key of another name, a value of another
   type, numbers that do not go together.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from dask.utils import parse_bytes

# Names the file with the [cluster] table.
VARIABLE = "CVDASK_CLUSTER"
BATCH = ("slurm", "pbs", "lsf")
# What can be started by its name, besides the pools of this process.
STARTED = ("local", "cuda", *BATCH, "kubernetes")
# A worker needs this long to start, hand its results on and close.
LEAST_WALLTIME_SECONDS = 300
# A worker's life begins when it has started, its job's a little before; closing takes time as well.
START_AND_CLOSE_SECONDS = 60


@dataclass(frozen=True)
class GpuGroup:
    """A second group of workers, each with one GPU, beside the workers without.

    Parameters
    ----------
    n_workers : int
        Workers of this group, each in a job or pod of its own.
    cores : int
        Threads of each: while one computes on the GPU, others read and write.
    memory : str
        Of each worker, such as ``"32 GB"``.
    queue : str or None
        None: the queue of the other workers.
    job_extra : tuple of str
        Lines for the batch system; they replace the usual request of one GPU where that differs.
    """

    n_workers: int = 1
    cores: int = 4
    memory: str = "16 GB"
    queue: str | None = None
    job_extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_positive("cluster.gpu", self, "n_workers", "cores")
        _check_memory("cluster.gpu", self.memory)


@dataclass(frozen=True)
class ClusterOptions:
    """How a cluster is started.

    Parameters
    ----------
    n_workers : int
        Jobs of a batch system, or pods; each holds ``cores`` single-threaded workers.
    minimum, maximum : int or None
        Both given: the number of jobs follows the work that waits, between the two.
    cores : int
        Of each job or pod.
    memory : str
        Of each job or pod.
    walltime : str or None
        ``HH:MM:SS`` or ``D-HH:MM:SS``; None: what the batch system gives. Workers close before.
    queue, account : str or None
        Queue (partition) and account (project) of the batch system.
    interface : str or None
        Network interface that all nodes share, such as ``"ib0"``.
    host : str
        Where a local cluster listens. Any but loopback brings TLS with it.
    tls : bool
        Encrypt on loopback too.
    tls_ca_file, tls_cert, tls_key : str or None
        Certificates of yours, all three; None: made for this cluster alone, and forgotten with it.
    tls_secret : str or None
        Kubernetes: the secret with ``ca.crt``, ``tls.crt`` and ``tls.key``.
    store_secret : str or None
        Kubernetes: the secret whose entries become environment variables: keys of object stores.
    shared_folder : str
        Seen by all nodes, readable by you alone: certificates and logs of jobs go there.
    local_folder : str or None
        Fast scratch space on each node.
    image, namespace : str or None
        Kubernetes: image with cvdask, and namespace.
    start_seconds : int
        How long to wait for the first worker of each group.
    prologue : tuple of str
        Shell lines before the worker starts, such as ``"module load cuda"``.
    job_extra, worker_extra : tuple of str
        More lines for the batch system, more arguments of ``dask worker``.
    gpu : GpuGroup or None
        Workers with a GPU, beside the others.
    """

    n_workers: int = 1
    minimum: int | None = None
    maximum: int | None = None
    cores: int = 1
    memory: str = "4 GB"
    walltime: str | None = None
    queue: str | None = None
    account: str | None = None
    interface: str | None = None
    host: str = "127.0.0.1"
    tls: bool = False
    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_secret: str | None = None
    store_secret: str | None = None
    shared_folder: str = "~/.cache/cvdask/cluster"
    local_folder: str | None = None
    image: str | None = None
    namespace: str | None = None
    start_seconds: int = 600
    prologue: tuple[str, ...] = ()
    job_extra: tuple[str, ...] = ()
    worker_extra: tuple[str, ...] = ()
    gpu: GpuGroup | None = field(default=None)

    def __post_init__(self) -> None:
        _check_positive("cluster", self, "n_workers", "cores", "start_seconds")
        _check_memory("cluster", self.memory)
        if self.walltime is not None:
            lifetime(self.walltime)
        self._check_scaling()
        given = [self.tls_ca_file, self.tls_cert, self.tls_key]
        if any(given) and not all(given):
            raise ValueError(
                "certificates are given all three, tls_ca_file, tls_cert and tls_key, or none. "
                f"Received: {given}"
            )

    def _check_scaling(self) -> None:
        limits = (self.minimum, self.maximum)
        if limits == (None, None):
            return
        if None in limits or not 1 <= limits[0] <= limits[1]:  # type: ignore[operator]
            raise ValueError(
                "minimum and maximum are given both, with 1 <= minimum <= maximum. "
                f"Received: minimum {self.minimum}, maximum {self.maximum}"
            )
        if self.gpu is not None:
            raise ValueError(
                "a cluster with a [cluster.gpu] group has fixed numbers of workers: leave minimum "
                f"and maximum out. Received: minimum {self.minimum}, maximum {self.maximum}"
            )

    @property
    def encrypted(self) -> bool:
        """Whether a cluster on this machine encrypts: asked for, or heard beyond loopback."""
        return self.tls or bool(self.tls_cert) or not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is heard on this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def lifetime(walltime: str) -> tuple[int, int]:
    """Return when a worker closes, and how far this varies between workers, both in seconds.

    Workers close after nine tenths of the walltime, give or take a twentieth: the last of them has
    a twentieth left to hand its results on, but at least a minute, and they do not all close at
    once.

    >>> lifetime("01:00:00"), lifetime("00:05:00")
    ((3240, 180), (225, 15))
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", walltime)
    if found is None:
        raise ValueError(f"walltime is HH:MM:SS or D-HH:MM:SS. Received: {walltime!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    granted = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if granted < LEAST_WALLTIME_SECONDS:
        raise ValueError(
            f"walltime leaves workers at least {LEAST_WALLTIME_SECONDS // 60} minutes. "
            f"Received: {walltime!r}"
        )
    varies = granted // 20
    return min(granted * 9 // 10, granted - varies - START_AND_CLOSE_SECONDS), varies


def read_options(environment: Mapping[str, str] = os.environ) -> ClusterOptions:
    """Read the options from the file that ``CVDASK_CLUSTER`` names; without it the defaults hold.

    Raises
    ------
    ValueError
        When the file is no TOML, or holds what no option is.
    FileNotFoundError
        When there is no such file.
    """
    path = environment.get(VARIABLE)
    if not path:
        return ClusterOptions()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{VARIABLE} names a TOML file. Received: {path}, which is none")
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    table = content.get("cluster")
    if not isinstance(table, dict):
        raise ValueError(f"{path} needs a table [cluster]. Received: {sorted(content)}")
    try:
        return parse_options(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_options(table: Mapping[str, Any]) -> ClusterOptions:
    """Make options of a table.

    >>> parse_options({"cores": 4, "gpu": {"n_workers": 2}}).gpu.n_workers
    2
    """
    values = dict(table)
    gpu = values.pop("gpu", None)
    if gpu is not None and not isinstance(gpu, dict):
        raise ValueError(f"cluster.gpu is a table [cluster.gpu]. Received: {gpu!r}")
    checked = _checked(ClusterOptions, values, "cluster")
    group = None if gpu is None else GpuGroup(**_checked(GpuGroup, gpu, "cluster.gpu"))
    return ClusterOptions(**checked, gpu=group)


def _checked(kind: type, values: Mapping[str, Any], table: str) -> dict[str, Any]:
    """Return the values by the names of the fields, lists as tuples; refuse all that do not fit."""
    types = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    checked = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise ValueError(f"[{table}] has no key {name!r}: {hint}")
        checked[name] = _typed(value, types[name], f"{table}.{name}")
    return checked


def _typed(value: Any, hint: Any, name: str) -> Any:
    wanted = {
        tuple: "a list of texts",
        bool: "true or false",
        int: "a whole number",
        str: "a text in quotes",
    }
    kind = next(k for k in wanted if k.__name__ in str(hint) or hint is k)
    if kind is tuple:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        value = tuple(value) if fits else value
    else:
        fits = type(value) is kind  # true is no number
    if not fits:
        raise ValueError(f"{name} is {wanted[kind]}. Received: {value!r}")
    return value


def _check_positive(table: str, options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{table}.{name} is at least 1. Received: {getattr(options, name)}")


def _check_memory(table: str, text: str) -> None:
    try:
        enough = parse_bytes(text) >= 2**28
    except ValueError:
        enough = False
    if not enough:
        raise ValueError(
            f"{table}.memory is a size of at least 256 MB, such as '16 GB'. Received: {text!r}"
        )
