"""A clock steps, memory runs out, a second client comes: is what is left in the end the same?"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest

from cvdask.engine.ledger import Ledger
from cvdask.errors import BlocksFailed
from cvdask.volume.objects import _CountingStore
from tests.faults import stages
from tests.faults.test_kill import identity
from tests.trees import tree_digest

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::UserWarning")]

# What ingest leaves says where its source lay and when it was written.
STAGES = ("pyramid", "label", "measure", "density")
# Marker at which something happens: in the midst of the first pass.
MOMENT = 2
FUTURE = 4_000_000_000


class Interrupted(BaseException):
    """What a kill looks like from inside: nothing below catches it."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    stages.small_blocks(monkeypatch.setattr)


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def undisturbed(stage: str, tmp_path: Path) -> dict[str, str]:
    url = tmp_path / "whole/cell.zarr"
    stages.prepare(stage, url)
    stages.run(stage, url)
    return tree_digest(url)


@pytest.fixture
def url(stage: str, tmp_path: Path) -> Path:
    """A cell for which the stage was not run yet."""
    url = tmp_path / "other/cell.zarr"
    stages.prepare(stage, url)
    return url


def at_marker(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    """Let something happen once, when the marker of that number has been written."""
    mark, count = Ledger.mark, itertools.count(1)

    def counted(self: Ledger, records: Any) -> None:
        mark(self, records)
        if next(count) == MOMENT:
            happens()

    monkeypatch.setattr(Ledger, "mark", counted)


def interrupt() -> None:
    raise Interrupted


def test_another_client_does_all_of_it_in_between(
    stage: str, url: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done_by_the_other = []

    def other() -> None:
        stages.run(stage, url)
        done_by_the_other.append(tree_digest(url))

    at_marker(monkeypatch, other)
    # What it was working with may be gone: it says so, and is run again.
    with contextlib.suppress(ValueError, OSError, BlocksFailed):
        stages.run(stage, url)
    stages.run(stage, url)
    assert len(done_by_the_other) == 1
    assert tree_digest(url) == undisturbed


def test_the_clock_steps_back(
    stage: str, url: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as first:
        at_marker(first, interrupt)
        with pytest.raises(Interrupted):
            stages.run(stage, url)
    # What is there was written in a future that has not come.
    written = [path for path in url.rglob("*") if path.is_file()]
    for path in written:
        os.utime(path, (FUTURE, FUTURE))
    kept = {path: identity(path) for path in written if path.suffix != ".json"}
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1_500_000_000 - 3600.0 * next(hours))
    stages.run(stage, url)
    assert tree_digest(url) == undisturbed
    assert all(identity(path) in (None, before) for path, before in kept.items())


def test_memory_runs_out(
    stage: str, url: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as first:

        async def no_memory(*_: object) -> None:
            raise MemoryError

        def exhaust() -> None:
            first.setattr(_CountingStore, "get", no_memory)

        at_marker(first, exhaust)
        with pytest.raises((MemoryError, BlocksFailed)):
            stages.run(stage, url)
    stages.run(stage, url)
    assert tree_digest(url) == undisturbed
