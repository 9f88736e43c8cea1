"""The commands for objects: what they write, tell, and end with."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cvdask
from cvdask.cli import objects
from tests.cli.command_lines import OBJECT_COMMANDS, Call, example_of
from tests.samples import write_sample
from tests.trees import tree_digest

NAMES = {1: "mitochondria", 2: "myofibrils", 3: "nucleus"}
# What the command line does not offer: blocks do not change the result.
PYTHON_ONLY = {"block_shape"}


def classes() -> np.ndarray:
    """24 short rods of mitochondria, one slab of myofibrils, no nucleus."""
    data = np.zeros((8, 12, 16), np.uint8)
    data[1::4, 1::4, 1::4] = data[2::4, 1::4, 1::4] = 1
    data[7] = 2
    data[0, 11, 15] = 1
    return data


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """A sample with ``labels/classes``."""
    url = tmp_path / "cell.zarr"
    size = {"voxel_size_nm": (20, 10, 10)}
    write_sample(url, np.arange(8 * 12 * 16, dtype=np.uint16).reshape(8, 12, 16), **size)
    write_sample(url, classes(), labels="classes", classes=NAMES, **size)
    return url


def test_label_writes_what_the_function_writes(call: Call, cell: Path):
    line = f"label {cell} --class mitochondria --min-voxels 2"
    code, text, error = call(line)
    assert (code, error) == (0, "")
    assert "24 objects, 1 smaller ones left out" in text
    found = cvdask.open(cell).label("mitochondria").read()
    cvdask.label(str(cell), class_="mitochondria", name="again", min_voxels=2)
    np.testing.assert_array_equal(found, cvdask.open(cell).label("again").read())
    assert found.max() == 24
    looked = shlex.split(next(row for row in text.splitlines() if row.startswith("look at it")))
    assert looked[-2:] == ["--overlay", "mitochondria"]
    code, text, _ = call(line)
    assert code == 0
    assert "nothing to do" in text
    code, _, error = call(line + " --connectivity 6")
    assert code == 2
    assert "connectivity: 26 → 6" in error
    assert call(line + " --connectivity 6 --overwrite")[0] == 0


def test_label_tells_a_program(call: Call, cell: Path):
    line = f"label {cell} --class 1 --name m --json"
    before = tree_digest(cell)
    code, plan, _ = call(line + " --dry-run")
    assert code == 0
    stages = [one["stage"] for one in json.loads(plan)["plans"]]
    assert stages == ["scan", "seam", "gather", "total", "label labels/m/0"]
    assert tree_digest(cell) == before
    code, text, _ = call(line)
    told = json.loads(text)
    assert (code, told["ok"], told["command"]) == (0, True, "label")
    assert told["volume"]["dtype"] == "uint32"
    code, text, error = call(f"label {cell} --class nucleus --json")
    assert code == 0
    assert "no object of nucleus" in error
    assert "no object of nucleus" in json.loads(text)["warnings"][0]


def test_measure_writes_a_table_a_picture_and_text(call: Call, cell: Path, tmp_path: Path):
    out = tmp_path / "t.parquet"
    line = f"measure {cell} --out {out} --csv --intensity --contacts --fibre z"
    code, text, error = call(line)
    assert (code, error) == (0, "")
    assert text.splitlines()[-1] == f"written: {out}, 26 rows"
    rows = [row.split() for row in text.splitlines()]
    assert ["mitochondria", "25"] in [row[:2] for row in rows]
    assert ["myofibrils", "1"] in [row[:2] for row in rows]
    frame = pd.read_parquet(out)
    expected = cvdask.measure(
        str(cell), out=str(tmp_path / "b.parquet"), intensity=True, contacts=True, fibre="z"
    )
    pd.testing.assert_frame_equal(frame, expected.to_pandas())
    assert frame[frame.n_voxels == 2].angle_to_fibre_deg.max() < 1e-5
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), frame, check_dtype=False)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    code, text, _ = call(line)
    assert code == 0
    assert "nothing to do" in text


def test_measure_tells_a_program(call: Call, cell: Path):
    line = f"measure {cell} --class mitochondria --min-voxels 2 --json"
    before = tree_digest(cell)
    code, plan, _ = call(line + " --dry-run")
    assert code == 0
    stages = [one["stage"] for one in json.loads(plan)["plans"]]
    assert stages == ["scan", "seam", "gather", "total", "table"]
    assert tree_digest(cell) == before
    code, text, _ = call(line)
    told = json.loads(text)
    assert (code, told["ok"], told["command"]) == (0, True, "measure")
    assert told["table"] == f"{cell}/tables/objects.parquet"
    found = told["classes"]["mitochondria"]
    assert found["n"] == 24
    assert found["total_volume_um3"] == pytest.approx(24 * 2 * 2e-6)
    # Rods of two voxels have an infinite elongation, and no flatness at all.
    assert (found["median"]["elongation"], found["median"]["flatness"]) == (None, None)
    code, text, _ = call(line.removesuffix(" --json"))
    assert code == 0
    assert "nothing to do" in text


def test_instances_and_no_objects(call: Call, cell: Path, tmp_path: Path):
    assert call(f"label {cell} --class mitochondria")[0] == 0
    out = tmp_path / "i.parquet"
    code, text, _ = call(f"measure {cell} --labels mitochondria --instances --out {out} -v")
    assert code == 0
    assert "25 rows" in text
    code, text, error = call(f"measure {cell} --class nucleus --out {tmp_path}/n.parquet")
    assert (code, "no object of nucleus" in error) == (0, True)
    assert "0 rows" in text
    code, text, _ = call(f"measure {cell} --class nucleus --json --out {tmp_path}/m.parquet")
    told = json.loads(text)
    assert (told["classes"], len(told["warnings"])) == ({}, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("label VOL --class fat", "'fat'"),
        ("label VOL --class mitochondria,myofibrils", "one class"),
        ("label VOL --class 1 --name classes", "'classes'"),
        ("label VOL", "--class"),
        ("label VOL --class 1 --connectivity 8", "8"),
        ("measure VOL --labels none", "'none'"),
        ("measure VOL --class fat", "'fat'"),
        ("measure VOL --min-voxels 0", "min_voxels=0"),
        ("measure VOL --instances --contacts", "instances"),
        ("measure VOL --fibre up", "'up'"),
        ("measure VOL --out table.csv", "table.csv"),
        ("measure VOL --box 0:9,:,:", "0:9"),
        ("measure VOL --workers 2 --client serial", "--workers 2"),
    ],
)
def test_bad_input_ends_with_2(call: Call, cell: Path, line: str, message: str):
    before = tree_digest(cell)
    code, _, error = call(line.replace("VOL", str(cell)))
    assert (code, message in error) == (2, True), error
    assert tree_digest(cell) == before


def test_values_that_are_no_class_end_with_1(call: Call, tmp_path: Path):
    url, data = tmp_path / "odd.zarr", classes()
    data[2, 3, 4] = 9
    write_sample(url, data)
    write_sample(url, data, labels="classes", classes=NAMES)
    for line in (f"label {url} --class 1", f"measure {url}"):
        code, _, error = call(line)
        assert (code, "the value 9, which is no class" in error) == (1, True)


@pytest.mark.parametrize("command", OBJECT_COMMANDS)
def test_every_keyword_is_an_option(command: str):
    function = inspect.signature(getattr(cvdask, command)).parameters
    options = inspect.signature(getattr(objects, command)).parameters
    assert set(options) - {"as_json", "verbose"} == set(function) - PYTHON_ONLY - {"chart"}
    for name in set(function) & set(options):
        if function[name].default is not inspect.Parameter.empty and name != "client":
            assert options[name].default == function[name].default, name


def test_every_option_reaches_the_function(call: Call, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def note(volume: str, **options: Any) -> None:
        asked.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(cvdask, "measure", note)
    monkeypatch.setattr(cvdask, "label", note)
    where = "--resume --overwrite --client local --workers 3 --dry-run"
    told = {"resume": True, "overwrite": True, "client": "local", "workers": 3, "dry_run": True}
    call(
        "measure c.zarr --labels l --class a,b --instances --connectivity 6 --min-voxels 5 "
        "--intensity --contacts --fibre 0,1,1 --out t.parquet --csv --box 0:1,:,: "
        f"--voxel-extent {where}"
    )
    assert asked == {
        "labels": "l", "class_": "a,b", "instances": True, "connectivity": 6, "min_voxels": 5,
        "intensity": True, "contacts": True, "fibre": "0,1,1", "out": "t.parquet", "csv": True,
        "box": "0:1,:,:", "voxel_extent": True, **told,
    }  # fmt: skip
    asked.clear()
    call(
        "label c.zarr --labels l --class a --name n --connectivity 18 --min-voxels 5 "
        f"--n-levels 2 --box 0:1,:,: {where}"
    )
    assert asked == {
        "labels": "l", "class_": "a", "name": "n", "connectivity": 18, "min_voxels": 5,
        "n_levels": 2, "box": "0:1,:,:", **told,
    }  # fmt: skip


def test_examples_of_the_help_work(call: Call, cell: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(cell.parent)
    monkeypatch.setenv("COLUMNS", "80")
    for command in OBJECT_COMMANDS:
        example = example_of(call(f"{command} --help")[1])
        assert example.startswith(f"{command} ")
        code, _, error = call(f"{example} --dry-run")
        assert code == 0, error
