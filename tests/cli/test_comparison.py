"""The commands that compare and report: what they write, tell, and end with."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import cvdask
from cvdask.cli import comparison
from tests.cli.command_lines import COMPARISON_COMMANDS, Call, example_of
from tests.comparison.cells import write_cell, write_cells


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples of each of two groups that differ, and one without a table."""
    folder = tmp_path_factory.mktemp("cells")
    write_cells(folder, "control", 3, seed=1)
    write_cells(folder, "diabetic", 3, seed=12, shift=3.0)
    write_cell(folder / "bare.zarr")
    return folder


def group(folder: Path, name: str) -> str:
    return f"--group {name}=" + ",".join(f"{folder}/{name}{k}.zarr" for k in range(3))


def test_compare_tells_people_and_report_makes_a_page(call: Call, cells: Path, tmp_path: Path):
    code, text, error = call(
        f"compare {group(cells, 'control')} {group(cells, 'diabetic')} --out {tmp_path}/out "
        f"--measures volume_um3,sphericity --no-figures"
    )
    assert code == 0
    assert "mitochondria, sphericity: control – diabetic" in text
    assert "3 + 3 volumes" in text
    assert "main tests below 5 %" in text
    assert "note: nothing to test" in error  # as many objects in each
    assert "note: nothing to test" not in text
    looked = shlex.split(next(line for line in text.splitlines() if line.startswith("look at it")))
    code, text, _ = call(shlex.join(looked[4:]))
    assert (code, text) == (0, f"written: {tmp_path}/out/report.html\n")
    assert "diabetic" in (tmp_path / "out" / "report.html").read_text()
    code, text, _ = call(f"report {tmp_path}/out --out {tmp_path}/page.html --json")
    assert json.loads(text) == {"command": "report", "ok": True, "report": f"{tmp_path}/page.html"}


def test_compare_tells_a_program(call: Call, cells: Path, tmp_path: Path):
    line = (
        f"compare {group(cells, 'control')} {group(cells, 'diabetic')} --out {tmp_path}/out "
        f"--measures sphericity --margin 0.2 --margin sphericity=0.01 --no-figures --json"
    )
    code, text, _ = call(line)
    told = json.loads(text)
    assert (code, told["ok"], told["groups"]["control"]) == (
        0, True, ["control0", "control1", "control2"],
    )  # fmt: skip
    row = next(r for r in told["main"] if r["class"] == "mitochondria")
    assert (row["measure"], row["test"], row["n_a"]) == ("sphericity", "welch", 3)
    assert row["p_holm"] < 0.05
    assert [one["stage"] for one in told["summaries"]] == ["compare"]
    again = json.loads(call(line)[1])
    assert (again["main"], again["summaries"]) == (told["main"], [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("compare control0.zarr", "--out"),
        ("compare control0.zarr --out OUT", "at least two volumes"),
        ("compare control0.zarr bare.zarr --out OUT", "cvdask measure"),
        ("compare control0.zarr none.zarr --out OUT", "none.zarr"),
        ("compare --group control --out OUT", "'control'"),
        ("compare control0.zarr control1.zarr --margin wide --out OUT", "'wide'"),
        ("compare control0.zarr control1.zarr --margin 0 --out OUT", "0.0"),
        ("compare control0.zarr control1.zarr --measures round --out OUT", "'round'"),
        ("compare control0.zarr control1.zarr --workers 2 --client serial --out OUT", "--workers"),
        ("report control0.zarr", "is no comparison"),
    ],
)
def test_bad_input_ends_with_2(
    call: Call,
    cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    message: str,
):
    monkeypatch.chdir(cells)
    code, _, error = call(line.replace("OUT", str(tmp_path / "out")))
    assert (code, message in error) == (2, True), error
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_plan(call: Call, cells: Path, tmp_path: Path):
    code, text, _ = call(f"compare {group(cells, 'control')} --out {tmp_path}/out --dry-run")
    assert code == 0
    assert "sphericity" in text
    assert "nothing was written" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMPARISON_COMMANDS)
def test_every_keyword_is_an_option(command: str):
    function = inspect.signature(getattr(cvdask, command)).parameters
    options = inspect.signature(getattr(comparison, command)).parameters
    # A margin of the command holds both of the function's.
    assert set(options) - {"as_json", "verbose"} == set(function) - {"margins"}


def test_every_option_reaches_the_function(call: Call, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def note(*inputs: str, **options: Any) -> None:
        asked.update(options, inputs=inputs)
        raise ValueError("enough")

    monkeypatch.setattr(cvdask, "compare", note)
    call(
        "compare a.zarr b.zarr --group x=a.zarr --group y=b.zarr --out o --labels l --classes c,d "
        "--measures m --margin 0.3 --margin m=2 --scores s.json --whole-objects --no-figures "
        "--z-blocks 7 --seed 5 --resume --overwrite --client local --workers 3 --dry-run"
    )
    assert asked == {
        "inputs": ("a.zarr", "b.zarr"), "groups": {"x": ["a.zarr"], "y": ["b.zarr"]}, "out": "o",
        "labels": "l", "classes": "c,d", "measures": "m", "margin": 0.3, "margins": {"m": 2.0},
        "scores": ["s.json"], "whole_objects": True, "figures": False, "z_blocks": 7, "seed": 5,
        "resume": True, "overwrite": True, "client": "local", "workers": 3, "dry_run": True,
    }  # fmt: skip


def test_examples_of_the_help_are_whole(call: Call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "110")
    for command in COMPARISON_COMMANDS:
        text = " ".join(call(f"{command} --help")[1].split())
        assert f"Example: cvdask {command} " in text
    assert example_of(call("report --help")[1]) == "report comparison"


def test_view_prints_where_it_is(call: Call, cells: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cvdask.viewer.view._neuroglancer", recent_viewer)

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt  # as Ctrl-C does

    monkeypatch.setattr("cvdask.viewer.view.View.wait", interrupt)
    code, text, _ = call(f"view {cells}/control0.zarr --no-browser --labels classes")
    assert code == 0
    assert "layers: image, classes" in text
    assert "open: http://127.0.0.1:" in text
    code, text, _ = call(f"view {cells}/control0.zarr --no-browser --json")
    told = json.loads(text)
    assert (code, told["layers"]) == (0, ["image", "classes"])
    code, _, error = call(f"view {cells}/control0.zarr --no-browser --labels axons")
    assert (code, "axons" in error) == (2, True)


def recent_viewer() -> Any:
    """Return the viewer whatever its version: nothing is looked at."""
    return pytest.importorskip("neuroglancer")
