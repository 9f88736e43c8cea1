"""A few of the moments of ``kill_points``, for every stage that no other test kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import stages
from tests.faults.kill_points import strike_all

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(autouse=True)
def blocks_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what small blocks take the place of."""
    stages.small_blocks(monkeypatch.setattr)


def test_the_client_is_killed(tmp_path: Path) -> None:
    for outcome in strike_all(tmp_path, ("ingest", "pyramid", "density"), ("client",), 6, seed=7):
        assert outcome.same, outcome


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_client_and_worker_are_killed(tmp_path: Path) -> None:
    stages = ("ingest", "pyramid", "label", "measure", "density")
    for outcome in strike_all(tmp_path, stages, ("client", "worker"), 20, seed=8):
        assert outcome.same, outcome
