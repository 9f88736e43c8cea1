"""Commands that take one volume, given an ensemble: each member, as if it were given alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cvdask.engine import cluster
from tests.cli.command_lines import Call
from tests.synthesis.test_distance import ensemble_of, tissue
from tests.trees import tree_digest

COMMANDS = {
    "label": "label {} --class mitochondria",
    "measure": "measure {} --class mitochondria",
    "density": "density {} --numerator mitochondria --denominator all --kernel-um 0.4 "
    "--stride-um 0.2",
    "descriptors": "descriptors {} --only fractions --z-blocks 2",
}


@pytest.fixture
def virtual(tmp_path: Path) -> Path:
    ensemble_of(tmp_path / "virtual.zarr", tissue(0, 24), tissue(1, 24))
    return tmp_path / "virtual.zarr"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_member_is_as_if_it_were_given_alone(
    call: Call, virtual: Path, command: str, monkeypatch: pytest.MonkeyPatch
):
    alone = virtual.parent / "alone.zarr"
    shutil.copytree(virtual, alone)
    told = []
    for name in ("0000", "0001"):
        code, text, _ = call(f"{COMMANDS[command].format(alone / name)} --json")
        assert code == 0
        told.append(json.loads(text))
    opened = []
    keep = cluster.ThreadPool.__init__
    monkeypatch.setattr(cluster.ThreadPool, "__init__", lambda *a: (opened.append(1), keep(*a))[1])
    code, text, _ = call(f"{COMMANDS[command].format(virtual)} --json")
    assert code == 0
    assert tree_digest(virtual) == tree_digest(alone)
    assert len(opened) == 1
    found = json.loads(text)
    assert (found["command"], found["ok"]) == (command, True)
    assert found["ensemble"] == str(virtual)
    assert [sorted(one) for one in found["members"]] == [sorted(one) for one in told]


def test_people_are_told_of_each_by_its_name(call: Call, virtual: Path):
    code, text, _ = call(COMMANDS["measure"].format(virtual))
    assert code == 0
    lines = text.splitlines()
    assert lines.index("0000:") < lines.index("0001:")
    for name in ("0000", "0001"):
        assert f"written: {virtual}/{name}/tables/objects.parquet" in text
    code, text, _ = call(COMMANDS["measure"].format(virtual))
    assert (code, text.count("nothing to do")) == (0, 2)


def test_a_dry_run_starts_and_writes_nothing(
    call: Call, virtual: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster, "ThreadPool", None)
    before = tree_digest(virtual)
    code, text, _ = call(f"{COMMANDS['measure'].format(virtual)} --dry-run --json")
    assert (code, [one["dry_run"] for one in json.loads(text)["members"]]) == (0, [True, True])
    assert tree_digest(virtual) == before


def test_one_table_for_all_members_is_refused(call: Call, virtual: Path):
    before = tree_digest(virtual)
    code, _, error = call(f"{COMMANDS['measure'].format(virtual)} --out {virtual}/all.parquet")
    assert code == 2
    assert "--out is for a volume" in error
    assert "2 volumes" in error
    assert tree_digest(virtual) == before


def test_where_it_runs_is_checked_first(call: Call, virtual: Path):
    code, _, error = call(f"{COMMANDS['measure'].format(virtual)} --client serial --workers 2")
    assert (code, "--workers" in error) == (2, True)
