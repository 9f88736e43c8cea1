"""Does another job come in the place of one that has gone?

A job ends at its walltime, with its node, or because somebody cancels it. The scheduler then hands
on what its workers had not finished, but nobody submits another job.

1. The scheduler tells :class:`JobReplacement` of each worker that comes or goes.
2. When the last worker of a job has gone, it waits: a worker that died by itself, out of memory
   perhaps, is started anew within its job.
3. If none has come by then, the job is cancelled in case it lives, and another is submitted.

A job of which no worker ever came is not replaced: what kept it from starting, a faulty prologue
or a queue that does not exist, would keep the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from distributed import SchedulerPlugin


class JobReplacement(SchedulerPlugin):
    """Keep the number of jobs of a cluster.

    Parameters
    ----------
    cluster : dask_jobqueue.JobQueueCluster
        Its scheduler runs in this process.
    seconds : float
        How long a job may be without a worker.
    """

    name = "job-replacement"

    def __init__(self, cluster: Any, seconds: float) -> None:
        self._cluster = cluster
        self._seconds = seconds
        self._jobs: dict[str, str] = {}  # by the address of each worker that is there
        self._n_replaced = 0

    def add_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Note which job a worker belongs to."""
        name = str(scheduler.workers[worker].name)
        for job, spec in self._cluster.worker_spec.items():
            if name in _workers_of(job, spec):
                self._jobs[worker] = job

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Look again after a while where it was the last of its job."""
        job = self._jobs.pop(worker, None)
        if job is not None and job not in self._jobs.values():
            asyncio.get_running_loop().call_later(self._seconds, self._replace, job)

    def _replace(self, job: str) -> None:
        """Submit a job in the place of one that is still asked for, and still without a worker."""
        described = self._cluster.worker_spec
        if job in self._jobs.values() or job not in described:
            return
        # Under another name: what still comes from the job that has gone is not taken for its own.
        self._n_replaced += 1
        described[f"{job.partition('.')[0]}.{self._n_replaced}"] = described.pop(job)
        self._cluster.scale(jobs=len(described))


def _workers_of(job: str, spec: dict[str, Any]) -> Iterator[str]:
    """Yield the names of the workers of a job: several where it has several processes."""
    for suffix in spec.get("group", [""]):
        yield f"{job}{suffix}"
