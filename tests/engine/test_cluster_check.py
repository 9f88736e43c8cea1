"""Does checking a cluster find what is there, and what is wrong?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from distributed import Client

from cvdask.engine.cluster import connect
from cvdask.engine.cluster_check import WorkerReport, findings, installed, survey_workers


def fail(reason: str) -> None:
    raise OSError(reason)


WELL = {"sum": partial(sum, [1, 2])}


def test_every_worker_is_asked_and_the_first_tried(distributed_client: Client) -> None:
    with connect(distributed_client) as pool:
        reports = survey_workers(pool, WELL, {"gpu": partial(fail, "none")}, partial(sum, []))
    assert {r.name for r in reports} == set(distributed_client.scheduler_info()["workers"])
    assert [list(r.work) for r in reports] == [["sum"], []]
    assert {(r.group, r.threads, r.store) for r in reports} == {("cpu", 1, "reached")}
    assert all(abs(r.clock_seconds) < 60 for r in reports)
    assert findings([replace(r, clock_seconds=0.0) for r in reports], installed()) == []


def test_this_process_is_asked() -> None:
    with connect("serial") as pool:
        (report,) = survey_workers(pool, WELL, {}, None)
    assert (report.name, report.threads, report.store) == ("this process", 1, "not asked")
    assert report.clock_seconds == 0
    assert findings([report], installed()) == []


def test_what_fails_is_told(distributed_client: Client) -> None:
    with connect(distributed_client) as pool:
        reports = survey_workers(pool, {"sum": partial(fail, "no 13")}, {}, partial(fail, "no key"))
    told = findings([replace(r, clock_seconds=0.0) for r in reports], installed())
    assert len(told) == 3
    assert sum("sum failed: OSError: no 13" in line for line in told) == 1
    assert sum("volume: OSError: no key" in line for line in told) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"versions": {"numpy": "1.0"}}, "numpy 1.0, here 2.0"),
        ({"clock_seconds": -3.0}, "differs by -3.0 s"),
        ({"group": "gpu"}, "sees none"),
        ({"store": "OSError: x"}, "does not reach"),
        ({"work": {"label": "OSError: x"}}, "label failed"),
    ],
)
def test_findings(changed: dict[str, Any], said: str) -> None:
    well = WorkerReport(
        "w", "cpu", "h", 1, 1, 2**30, (), {"numpy": "2.0"}, 0.1, "not asked", {"label": 0.1}
    )
    here = {"numpy": "2.0"}
    assert findings([well], here) == []
    (line,) = findings([replace(well, **changed)], here)
    assert said in line
