"""The command order, from the shell's words to what is told."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cvdask
from cvdask.cli import ordering
from cvdask.volume.ensemble import create_ensemble, publish_ensemble
from tests.cli.command_lines import ORDERING_COMMANDS, Call, example_of
from tests.samples import write_sample
from tests.synthesis.test_tour import blobs

CLASSES = {1: "mitochondria", 2: "myofibrils"}


def write_cell(url: Path | str, data: np.ndarray) -> None:
    write_sample(url, data)
    write_sample(url, data, labels="classes", classes=CLASSES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ``cell.zarr``, and two shuffled copies of it in ``ENSEMBLE.zarr``."""
    stack = blobs(20)[:, ::3, ::3]
    write_cell(tmp_path / "cell.zarr", stack)
    made = create_ensemble(tmp_path / "ENSEMBLE.zarr", 2, {"stage": "generate"})
    for number in range(2):
        places = np.random.default_rng(number).permutation(20)
        write_cell(made.member_url(number), stack[places])
    publish_ensemble(made)
    return tmp_path


def test_order_tells_lengths_bounds_and_means(call: Call, folder: Path):
    line = f"order {folder}/ENSEMBLE.zarr --real {folder}/cell.zarr"
    code, text, error = call(line)
    assert (code, error) == (0, "")
    lines = text.splitlines()
    assert [row.split()[:2] for row in lines[1:3]] == [["0000", "20"], ["0001", "20"]]
    assert "0.000%" in lines[1]
    assert "J(1) ordered over J(1) real: 1.00" in lines
    code, text, _ = call(line + " --json")
    told = json.loads(text)
    assert (code, told["command"], told["summaries"], told["warnings"]) == (0, "order", [], [])
    assert told["volumes"]["0001"]["gap"] == 0
    assert told["volumes"]["0001"]["length"] == told["volumes"]["0001"]["bound"]
    assert told["mean"]["j"] == told["real"]
    assert "nothing to do: it was complete before" in call(line)[1]


def test_one_volume_and_many(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch):
    code, text, _ = call(f"order {folder}/ENSEMBLE.zarr/0001 --name sorted -v")
    assert (code, "label image 'sorted' of 1 volumes" in text) == (0, True)
    assert [row.split(":")[0] for row in text.splitlines() if "Mvoxel" in row] == [
        "pack",
        "compare",
        "path",
        "write",
    ]
    monkeypatch.setattr(ordering, "MOST_SHOWN", 1)
    assert "… 1 more" in call(f"order {folder}/ENSEMBLE.zarr")[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("order ENSEMBLE.zarr --labels none", "'none'"),
        ("order ENSEMBLE.zarr --name classes", "'classes'"),
        ("order nowhere.zarr", "nowhere.zarr"),
        ("order ENSEMBLE.zarr --real nowhere.zarr", "nowhere.zarr"),
        ("order ENSEMBLE.zarr --workers 2 --client serial", "--workers 2"),
    ],
)
def test_bad_input_ends_with_2(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
):
    monkeypatch.chdir(folder)
    code, _, error = call(line)
    assert (code, message in error) == (2, True), error
    assert not [*folder.rglob("order*"), *folder.rglob(".cvdask/ordered")]


@pytest.mark.parametrize("command", ORDERING_COMMANDS)
def test_every_keyword_is_an_option(command: str):
    function = inspect.signature(getattr(cvdask, command)).parameters
    options = inspect.signature(getattr(ordering, command)).parameters
    assert set(options) - {"as_json", "verbose"} == set(function)
    for name in set(function) & set(options):
        if function[name].default is not inspect.Parameter.empty and name != "client":
            assert options[name].default == function[name].default, name


def test_every_option_reaches_the_function(call: Call, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def note(volumes: str, **options: Any) -> None:
        asked.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(cvdask, "order", note)
    call(
        "order e.zarr --labels l --name n --real r.zarr --real-labels t --n-kicks 7 --seed 3 "
        "--resume --overwrite --client local --workers 3 --dry-run"
    )
    assert asked == {
        "labels": "l", "name": "n", "real": "r.zarr", "real_labels": "t", "n_kicks": 7, "seed": 3,
        "resume": True, "overwrite": True, "client": "local", "workers": 3, "dry_run": True,
    }  # fmt: skip


def test_examples_of_the_help_work(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    for command in ORDERING_COMMANDS:
        example = example_of(call(f"{command} --help")[1])
        assert example.startswith(f"{command} ")
        code, _, error = call(f"{example} --dry-run")
        assert code == 0, error
