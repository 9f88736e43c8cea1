"""Is progress shown to people at a terminal and to nobody else?"""

from __future__ import annotations

import io

import pytest
import rich.console

from cvdask.engine import progress
from cvdask.engine.progress import ProgressBar


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()

    def console(**_: object) -> rich.console.Console:
        return rich.console.Console(file=written, force_terminal=True, width=160)

    monkeypatch.setattr(progress, "Console", console)
    return written


def test_silent_where_standard_error_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("label", 10, "dashboard: http://127.0.0.1:8787") as bar:
        bar.advance(10, 1000)
    assert capsys.readouterr() == ("", "")


def test_blocks_title_and_note_at_a_terminal(terminal: io.StringIO) -> None:
    with ProgressBar("label", 10, "dashboard: http://127.0.0.1:8787") as bar:
        bar.advance(3, 3_000_000)
        bar.advance(4, 4_000_000)
    text = terminal.getvalue()
    assert text.startswith("dashboard: ")
    assert "7/10 blocks" in text
    assert "label" in text


def test_rate_is_voxels_by_elapsed_time(terminal: io.StringIO) -> None:
    bar = ProgressBar("label", 10)
    clock = Clock()
    bar._bar.get_time = clock
    bar._bar.tasks[0]._get_time = clock
    bar._bar.tasks[0].start_time = 0.0
    clock.now = 2.0
    bar.advance(1, 3_000_000)
    clock.now = 4.0
    bar.advance(1, 5_000_000)
    assert bar._bar.tasks[0].fields["rate"] == "2.0 Mvoxel/s"
    assert bar._bar.tasks[0].completed == 2


def test_the_bar_ends_with_its_stage_also_when_that_fails(terminal: io.StringIO) -> None:
    bar = ProgressBar("label", 10)
    with pytest.raises(ZeroDivisionError), bar:
        1 / 0  # noqa: B018
    assert bar._bar.live.is_started is False
