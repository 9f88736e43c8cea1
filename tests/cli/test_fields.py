"""The commands for density and descriptors: what they write, tell, and end with."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import cvdask
from cvdask import cli
from cvdask.cli import fields
from tests.cli.command_lines import FIELD_COMMANDS, Call, example_of

CLASSES = "mitochondria,myofibrils,z_discs,nucleus"
RATIO = "--numerator mitochondria --denominator myofibrils"


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic cell with ``labels/classes``."""
    folder = tmp_path_factory.mktemp("fields")
    for line in (
        f"phantom {folder}/cell.zarr --size-um 1.2 2 2.4 --voxel-nm 40 --n-levels 1",
        f"export {folder}/cell.zarr {folder}/truth.tif --labels truth",
        f"ingest {folder}/truth.tif {folder}/cell.zarr --as-labels classes --classes {CLASSES}",
    ):
        assert cli.run(line.split()) == 0
    return folder / "cell.zarr"


def test_density_writes_what_the_function_writes(call: Call, cell: Path, tmp_path: Path):
    sizes = {"kernel_um": 0.8, "stride_um": 0.2, "box": "0:30,5:50,0:60"}
    code, text, error = call(
        f"density {cell} {RATIO} --kernel-um 0.8 --stride-um 0.2 --box 0:30,5:50,0:60 "
        f"--out {tmp_path}/a.zarr"
    )
    assert (code, error) == (0, "")
    assert "density counts: 1 of 1 blocks" in text
    written = cvdask.density(
        str(cell), numerator="mitochondria", denominator="myofibrils",
        out=str(tmp_path / "b.zarr"), **sizes,
    )  # fmt: skip
    found = cvdask.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(found.read(), written.read())
    assert np.nanmax(found.read()) > 0
    looked = shlex.split(next(line for line in text.splitlines() if line.startswith("look at it")))
    code, shown, _ = call(shlex.join(looked[4:]))
    assert code == 0
    assert "made by cvdask" in shown
    assert "from labels/classes" in shown


def test_density_tells_a_program(call: Call, cell: Path, tmp_path: Path):
    line = f"density {cell} {RATIO} --kernel-um 0.5 --stride-um 0.4 --out {tmp_path}/d.zarr --json"
    code, plan, _ = call(line + " --dry-run")
    assert code == 0
    assert [one["stage"] for one in json.loads(plan)["plans"]] == ["density counts", "density"]
    assert not (tmp_path / "d.zarr").exists()
    code, text, error = call(line)
    told = json.loads(text)
    assert (code, told["ok"], told["command"]) == (0, True, "density")
    assert told["volume"]["dtype"] == "float32"
    assert len(told["warnings"]) == 1
    assert "13 × 13 × 13 voxels" in told["warnings"][0]
    assert "13 × 13 × 13 voxels" in error
    code, text, _ = call(line.removesuffix(" --json"))
    assert code == 0
    assert "nothing to do" in text
    assert "note: the kernel" in text


def test_descriptors_write_a_table_and_tell_its_main_numbers(
    call: Call, cell: Path, tmp_path: Path
):
    out = tmp_path / "table.parquet"
    line = f"descriptors {cell} --out {out} --max-distance-um 0.4 --max-thickness-um 1 -v"
    code, text, error = call(line)
    assert code == 0
    assert error.splitlines()[0].startswith("note: nucleus has no voxel in 'classes'")
    table = pq.read_table(out)
    fractions = {
        row["class"]: row["value"]
        for row in table.to_pylist()
        if row["descriptor"] == "class_fraction"
    }
    labels = cvdask.open(cell).label("classes").read()
    assert fractions["mitochondria"] == (labels == 1).mean()
    shown = f"{fractions['mitochondria']:.4g}"
    assert any(
        row.split()[:4] == ["mitochondria", "class", "fraction", shown] for row in text.splitlines()
    )
    assert f"{len(table)} rows" in text
    assert "thickness: 1 of 1 blocks" in text
    code, text, _ = call(line + " --json")
    told = json.loads(text)
    assert (code, told["n_rows"], told["summaries"]) == (0, len(table), [])
    fraction = told["classes"]["mitochondria"]["class_fraction"]
    assert fraction["value"] == fractions["mitochondria"]
    assert fraction["low"] < fraction["value"] < fraction["high"]
    assert told["classes"]["mitochondria"]["interface with myofibrils"]["unit"] == "1/µm"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"density VOL {RATIO} --kernel-um 0.01", "0.01 µm"),
        (f"density VOL {RATIO} --kernel-um 9", "225 voxels along z, where there are 30"),
        ("density VOL --numerator fat --denominator all --kernel-um 1", "'fat'"),
        ("density VOL --numerator 1 --kernel-um 1", "--denominator"),
        (f"density VOL {RATIO} --labels none", "'none'"),
        ("descriptors VOL --only shape", "'shape'"),
        ("descriptors VOL --out table.csv", "table.csv"),
        ("descriptors VOL --workers 2 --client serial", "--workers 2"),
    ],
)
def test_bad_input_ends_with_2(call: Call, cell: Path, line: str, message: str):
    code, _, error = call(line.replace("VOL", str(cell)))
    assert (code, message in error) == (2, True), error
    assert not [*cell.glob("tables/density*"), *cell.glob("tables/descriptors*")]


@pytest.mark.parametrize("command", FIELD_COMMANDS)
def test_every_keyword_is_an_option(command: str):
    function = inspect.signature(getattr(cvdask, command)).parameters
    options = inspect.signature(getattr(fields, command)).parameters
    assert set(options) - {"as_json", "verbose"} == set(function)
    for name in set(function) & set(options):
        if function[name].default is not inspect.Parameter.empty and name != "client":
            assert options[name].default == function[name].default, name


def test_every_option_reaches_the_function(call: Call, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def note(volume: str, **options: Any) -> None:
        asked.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(cvdask, "descriptors", note)
    call(
        "descriptors c.zarr --labels l --out t.parquet --classes a,b --only two_point "
        "--box 0:1,:,: --max-distance-um 3 --max-thickness-um 4 --thickness-step-um 0.5 "
        "--z-blocks 7 --resume --overwrite --client local --workers 3 --dry-run"
    )
    assert asked == {
        "labels": "l", "out": "t.parquet", "classes": "a,b", "only": "two_point",
        "box": "0:1,:,:", "max_distance_um": 3, "max_thickness_um": 4, "thickness_step_um": 0.5,
        "z_blocks": 7, "resume": True, "overwrite": True, "client": "local", "workers": 3,
        "dry_run": True,
    }  # fmt: skip


def test_examples_of_the_help_work(call: Call, cell: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(cell.parent)
    monkeypatch.setenv("COLUMNS", "80")
    for command in FIELD_COMMANDS:
        example = example_of(call(f"{command} --help")[1])
        assert example.startswith(f"{command} ")
        # The cell is smaller than the kernel of a real one.
        kernel = " --kernel-um 1" if command == "density" else ""
        code, _, error = call(f"{example}{kernel} --dry-run")
        assert code == 0, error
