"""The command for meshes: what it writes, tells, and ends with."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

import cvdask
from cvdask import cli
from cvdask.cli import meshes
from tests.cli.command_lines import MESH_COMMANDS, Call, example_of
from tests.samples import write_sample
from tests.trees import tree_digest


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample with ``labels/mitochondria``, 24 of them, and ``labels/classes``."""
    folder = tmp_path_factory.mktemp("meshes")
    objects = np.zeros((8, 12, 16), np.uint16)
    objects[1::4, 1::4, 1::4] = objects[2::4, 1::4, 1::4] = np.arange(1, 25).reshape(2, 3, 4)
    url = folder / "cell.zarr"
    write_sample(url, np.zeros(objects.shape, np.uint8))
    write_sample(url, objects, labels="mitochondria")
    names = {1: "mitochondria", 2: "nucleus"}
    write_sample(url, (objects > 0).astype(np.uint8), labels="classes", classes=names)
    return url


def test_it_writes_what_the_function_writes(call: Call, cell: Path, tmp_path: Path):
    line = f"mesh {cell} --labels mitochondria --ids 3,1 --out {tmp_path}/a"
    code, text, error = call(line)
    assert (code, error) == (0, "")
    assert text.splitlines()[1].split()[:4] == ["1", "2", "10", "16"]
    assert text.splitlines()[-1] == f"written: {tmp_path}/a, 2 meshes"
    cvdask.mesh(str(cell), labels="mitochondria", ids=[1, 3], out=str(tmp_path / "b"))
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
    assert trimesh.load_mesh(tmp_path / "a/3.ply").is_watertight
    code, text, _ = call(line)
    assert code == 0
    assert "nothing to do" in text


def test_it_tells_a_program(call: Call, cell: Path, tmp_path: Path):
    line = (
        f"mesh {cell} --labels mitochondria --min-voxels 2 --out {tmp_path}/a --format stl --json"
    )
    code, plan, _ = call(line + " --dry-run")
    assert code == 0
    stages = [one["stage"] for one in json.loads(plan)["plans"]]
    assert stages == ["mesh objects", "mesh surfaces"]
    assert not (tmp_path / "a").exists()
    code, text, _ = call(line)
    told = json.loads(text)
    assert (code, told["ok"], told["command"]) == (0, True, "mesh")
    assert [one["label"] for one in told["meshes"]] == list(range(1, 25))
    assert all((tmp_path / "a" / one["file"]).exists() for one in told["meshes"])
    stages = [one["stage"] for one in told["summaries"]]
    assert stages == ["mesh objects", "mesh surfaces", "mesh files"]
    code, text, _ = call(line.removesuffix(" --json"))
    assert code == 0
    assert "… and 4 more" in text


def test_a_class_without_voxels_is_said(call: Call, cell: Path, tmp_path: Path):
    line = f"mesh {cell} --labels classes --class mitochondria,nucleus --out {tmp_path}/a"
    code, text, error = call(line)
    assert code == 0
    assert error.startswith("note: nucleus has no voxel")
    assert any(row.startswith("mitochondria ") for row in text.splitlines())
    code, text, _ = call(line + " -v")
    assert code == 0
    assert "note: nucleus has no voxel" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--labels mitochondria --ids 1,99", "labels from 1 to 24"),
        ("--labels mitochondria --ids one", "'one'"),
        ("--labels mitochondria", "--min-voxels N"),
        ("--labels classes --ids 1", "--class"),
        ("--labels none --ids 1", "'none'"),
        ("--labels mitochondria --ids 1 --format vrml", "'vrml'"),
        ("--labels mitochondria --ids 1 --workers 2 --client serial", "--workers 2"),
        ("--ids 1", "--labels"),
    ],
)
def test_bad_input_ends_with_2(call: Call, cell: Path, tmp_path: Path, options: str, message: str):
    code, _, error = call(f"mesh {cell} {options} --out {tmp_path}/a")
    assert (code, message in error) == (2, True), error
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("command", MESH_COMMANDS)
def test_every_keyword_is_an_option(command: str):
    function = inspect.signature(getattr(cvdask, command)).parameters
    options = inspect.signature(getattr(meshes, command)).parameters
    assert set(options) - {"as_json", "verbose"} == set(function)
    for name in set(function) & set(options):
        if function[name].default is not inspect.Parameter.empty and name != "client":
            assert options[name].default == function[name].default, name


def test_every_option_reaches_the_function(call: Call, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def note(volume: str, **options: Any) -> None:
        asked.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(cvdask, "mesh", note)
    call(
        "mesh c.zarr --labels l --out d --ids 1,2 --class a --min-voxels 3 --format obj "
        "--simplify 10 --level 2 --box 0:1,:,: --resume --overwrite --client local --workers 3 "
        "--dry-run"
    )
    assert asked == {
        "labels": "l", "out": "d", "ids": "1,2", "class_": "a", "min_voxels": 3, "format": "obj",
        "simplify": 10, "level": 2, "box": "0:1,:,:", "resume": True, "overwrite": True,
        "client": "local", "workers": 3, "dry_run": True,
    }  # fmt: skip


def test_examples_of_the_help_work(call: Call, cell: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(cell.parent)
    monkeypatch.setenv("COLUMNS", "80")
    for command in MESH_COMMANDS:
        example = example_of(call(f"{command} --help")[1])
        assert example.startswith(f"{command} ")
        code, _, error = call(f"{example} --dry-run")
        assert code == 0, error


def test_a_mesh_of_the_command_line_ends_with_1_where_blocks_fail(
    call: Call, cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from cvdask.morphometry import mesh as mesh_module

    def no_answer(*_: object) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(mesh_module, "_file_block", no_answer)
    code = cli.run(
        ["mesh", str(cell), "--labels", "mitochondria", "--ids", "2", "--out", str(tmp_path / "a")]
    )
    assert code == 1
