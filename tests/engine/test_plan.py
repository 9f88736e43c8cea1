"""Are plans and summaries said in full, and impossible plans refused with their numbers?"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from cvdask.engine import plan as plan_module
from cvdask.engine.plan import (
    Failure,
    Plan,
    Summary,
    check_plan,
    existing_parent,
    note_summary,
    size_text,
    watch_summaries,
)
from cvdask.errors import BlocksFailed
from cvdask.volume.boxes import Box, Grid

GRID = Grid((10, 10, 10), (5, 10, 10), halo=1)


def plan(**changes: Any) -> Plan:
    return Plan(**{"stage": "label", "grid": GRID, "output": "/data/cell.zarr", **changes})


# Small cases, written out


def test_a_plan_as_values() -> None:
    described = plan(read_bytes=1200, task_bytes=600, notes={"kind": "healthy"}).as_dict()
    assert described == {
        "stage": "label",
        "output": "/data/cell.zarr",
        "n_blocks": 2,
        "block_shape": [5, 10, 10],
        "halo": [[1, 1], [1, 1], [1, 1]],
        "shape": [10, 10, 10],
        "read_bytes": 1200,
        "write_bytes": 0,
        "task_bytes": 600,
        "stored_bytes_estimate": 0,
        "kind": "healthy",
    }
    assert json.loads(json.dumps(described)) == described


def test_a_plan_for_people() -> None:
    text = str(plan(read_bytes=134_217_728))
    assert text.startswith("plan:\n")
    assert "read_bytes             134.2 MB" in text
    assert "block_shape            5 × 10 × 10" in text


def test_a_summary_as_values_and_in_one_line() -> None:
    summary = Summary("label", 5, 3, 2, 1, 8_000_000, 4.0, 1500, 2_500_000, 10**9)
    assert summary.as_dict()["voxels_per_second"] == 2e6
    assert str(summary) == (
        "label: 3 of 5 blocks, 1 empty, 2 done before, 8.0 Mvoxel in 4.0 s (2.0 Mvoxel/s), "
        "read 1.5 kB, wrote 2.5 MB, peak worker memory 1.0 GB"
    )
    assert Summary("label").as_dict()["voxels_per_second"] == 0.0
    assert "\n" not in str(Summary("label"))


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e12, "2.5 TB"), (3e18, "3000.0 PB")],
)
def test_sizes_for_people(n_bytes: float, text: str) -> None:
    assert size_text(n_bytes) == text


def test_failures_are_listed_with_block_box_and_cause() -> None:
    failures = [Failure(n, Box((n,), (n + 1,)), "OSError: gone", 3) for n in range(25)]
    error = BlocksFailed("label", failures, 100, 70)
    text = str(error)
    assert "label: 25 of 100 blocks failed, 70 are done, 5 were not tried" in text
    assert "block 7 (box 7:8), tried 3 ×: OSError: gone" in text
    assert "block 20 " not in text
    assert "5 more" in text
    assert "not tried" not in str(BlocksFailed("label", failures, 100, 75))
    again = pickle.loads(pickle.dumps(error))
    assert (again.stage, again.failures, again.n_blocks, again.n_done) == (
        "label",
        tuple(failures),
        100,
        70,
    )
    assert str(again) == text


def test_summaries_are_gathered_by_whoever_watches() -> None:
    note_summary(Summary("before"))
    with watch_summaries() as outer:
        note_summary(Summary("one"))
        with watch_summaries() as inner:
            note_summary(Summary("two"))
    note_summary(Summary("after"))
    assert [summary.stage for summary in outer] == ["one"]
    assert [summary.stage for summary in inner] == ["two"]


# What cannot work


def test_a_block_that_needs_more_memory_than_a_worker_has() -> None:
    check_plan(plan(task_bytes=1000), 4, 1000)
    with pytest.raises(MemoryError, match=r"label.*\(5, 10, 10\).*1\.0 kB.*4 workers.*999 B"):
        check_plan(plan(task_bytes=1001), 4, 999)


def test_an_output_that_does_not_fit_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    class Usage:
        free = 5000

    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda path: asked.append(path) or Usage)
    output = str(tmp_path / "not/yet/cell.zarr")
    check_plan(plan(output=output, stored_bytes=5000), 1, 10**9)
    with pytest.raises(OSError, match=r"5\.1 kB.*cell\.zarr.*5\.0 kB free"):
        check_plan(plan(output=output, stored_bytes=5100), 1, 10**9)
    # Half of it lies there already, on the same disk.
    check_plan(plan(output=output, stored_bytes=9000), 1, 10**9, n_done=1)
    with pytest.raises(OSError, match=r"left.*6\.0 kB"):
        check_plan(plan(output=output, stored_bytes=12000), 1, 10**9, n_done=1)
    assert set(asked) == {tmp_path}
    check_plan(plan(output="s3://bucket/cell.zarr", stored_bytes=10**18), 1, 10**9)


def test_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert existing_parent(str(tmp_path / "a/b/c")) == tmp_path
    assert existing_parent(str(tmp_path)) == tmp_path
