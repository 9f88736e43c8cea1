"""One run at a time, and what a killed one leaves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cvdask.pipeline.record import LOCK, Log, Record, locked, remove_leftovers
from cvdask.volume.objects import read_json

HOLDER = """
import sys
from pathlib import Path
from cvdask.pipeline.record import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of a folder until it ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_run_is_refused_and_told_who_runs(tmp_path: Path):
    with hold(tmp_path) as process:
        with (
            pytest.raises(FileExistsError, match=rf"process {process.pid} on .* since \d{{4}}"),
            locked(tmp_path),
        ):
            raise AssertionError("both hold the lock")
        process.communicate()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert (tmp_path / LOCK).read_text() == ""


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path):
    with hold(tmp_path) as process:
        process.kill()
        process.wait()
        assert str(process.pid) in (tmp_path / LOCK).read_text()
        with locked(tmp_path):
            assert str(process.pid) not in (tmp_path / LOCK).read_text()


def test_record_tells_every_step(tmp_path: Path):
    record = Record(tmp_path, {"config": "x.toml"})
    record.add({"stage": "label", "seconds": 1.0})
    assert (read_json(str(tmp_path), "run.json") or {})["state"] == "running"
    record.end("complete", figures={})
    found = read_json(str(tmp_path), "run.json") or {}
    assert (found["state"], found["config"], found["figures"]) == ("complete", "x.toml", {})
    assert found["steps"] == [{"stage": "label", "seconds": 1.0}]
    assert {"cvdask", "numpy", "python"} <= set(found["versions"])


def test_log_has_a_time_before_every_line(tmp_path: Path):
    log = Log(tmp_path / "run.log")
    log.write("one\ntwo")
    log.write("")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        "one", "two", "",
    ]  # fmt: skip


def test_leftovers_are_removed_where_the_run_writes(tmp_path: Path):
    sample = tmp_path / "samples/a.zarr"
    gone = [
        tmp_path / "run.json.x.partial",
        tmp_path / "comparison/figures/a.png.partial",
        sample / "tables/objects.parquet/part.partial",
        sample / "labels/zarr.json.partial",
    ]
    kept = [tmp_path / "other/x.partial", sample / "tables/objects.parquet/part.parquet"]
    for path in (*gone, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    remove_leftovers(tmp_path, [str(sample), "s3://bucket/b.zarr"])
    assert [path.exists() for path in (*gone, *kept)] == [False] * 4 + [True] * 2
