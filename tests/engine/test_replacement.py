"""Is a job replaced when the last of its workers has gone for good, and only then?"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from cvdask.engine.replacement import JobReplacement

PAIR = {"cls": "a job of two processes", "group": ["-0", "-1"]}
SINGLE = {"cls": "a job of one"}


class Cluster:
    """What the plugin knows of a cluster: the jobs that are asked for."""

    def __init__(self) -> None:
        self.worker_spec: dict[str, Any] = {"job-0": PAIR, "gpu-0": SINGLE}
        self.scaled: list[int] = []

    def scale(self, jobs: int) -> None:
        self.scaled.append(jobs)


def after(*events: str) -> Cluster:
    """Let workers come (``+job-0-1``) and go (``-job-0-1``), time pass (``…``), or jobs go."""
    cluster = Cluster()

    async def happen() -> None:
        plugin = JobReplacement(cluster, 0)
        scheduler = SimpleNamespace(workers={})
        for event in events:
            name = event[1:]
            if event == "…":
                await asyncio.sleep(0)  # what is due now is called
                await asyncio.sleep(0)
            elif event.startswith("+"):
                scheduler.workers[f"tls://{name}"] = SimpleNamespace(name=name)
                plugin.add_worker(scheduler, f"tls://{name}")
            elif event.startswith("-"):
                del scheduler.workers[f"tls://{name}"]
                plugin.remove_worker(scheduler, f"tls://{name}", stimulus_id="")
            else:
                del cluster.worker_spec[event]

    asyncio.run(happen())
    return cluster


BOTH = ("+job-0-0", "+job-0-1", "+gpu-0")


def test_one_of_two_workers_goes() -> None:
    assert after(*BOTH, "-job-0-1", "…").scaled == []


def test_both_go() -> None:
    cluster = after(*BOTH, "-job-0-1", "-job-0-0", "…")
    assert cluster.worker_spec == {"gpu-0": SINGLE, "job-0.1": PAIR}
    assert cluster.scaled == [2]


def test_one_comes_back_in_time() -> None:
    cluster = after(*BOTH, "-job-0-1", "-job-0-0", "+job-0-1", "…")
    assert (list(cluster.worker_spec), cluster.scaled) == (["job-0", "gpu-0"], [])


def test_a_replacement_is_replaced() -> None:
    cluster = after("+gpu-0", "-gpu-0", "…", "+gpu-0.1", "-gpu-0.1", "…")
    assert cluster.worker_spec == {"job-0": PAIR, "gpu-0.2": SINGLE}
    assert cluster.scaled == [2, 2]


def test_a_job_that_is_asked_for_no_longer_goes() -> None:
    assert after("+gpu-0", "-gpu-0", "gpu-0", "…").scaled == []


def test_a_worker_of_no_job_is_of_no_concern() -> None:
    assert after("+somebody", "-somebody", "…").scaled == []
