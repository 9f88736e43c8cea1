"""The commands run and init: what they hand on, and what they tell."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import cvdask
from cvdask.cli import pipeline
from cvdask.pipeline.run import PlannedStep, Run
from tests.cli.command_lines import Call
from tests.pipeline.configs import CELLS, write_config

COUNTED = CELLS + '[evaluate]\nprediction = "truth"\ntruth = "truth"\n'


@pytest.mark.parametrize("command", ["run", "init"])
def test_options_are_the_keywords(command: str):
    function = inspect.signature(getattr(cvdask, command)).parameters
    options = inspect.signature(getattr(pipeline, command)).parameters
    told = {"as_json", "verbose", "config"}
    assert set(options) - told == set(function) - {"callback", "config", "path"}
    for name in set(options) - told:
        assert options[name].default == function[name].default, name


def test_run_hands_its_options_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found: dict[str, Any] = {}

    def stage(config: str, **options: Any) -> Run:
        found.update(options, config=config)
        options["callback"]("told")
        return Run("out", (), {}, None)

    monkeypatch.setattr(cvdask, "run", stage)
    config = write_config(tmp_path, CELLS)
    line = f"run {config} --from measure --until compare --client local --workers 3 --overwrite"
    code, _, err = call(line)
    assert (code, err) == (0, "told\n")
    del found["callback"]
    assert found == {
        "config": str(config), "from_": "measure", "until": "compare", "client": "local",
        "workers": 3, "overwrite": True, "dry_run": False,
    }  # fmt: skip


def test_run_tells_steps_and_figures(call: Call, tmp_path: Path):
    config = write_config(tmp_path, COUNTED)
    code, out, err = call(f"run {config}")
    assert code == 0
    assert "[4/4] evaluate diabetic" in err
    lines = out.splitlines()
    assert lines[1].split()[:3] == ["ingest", "control", "done"]
    assert lines[-1].startswith("main figures: F1 of control: mitochondria 1.00")

    code, out, _ = call(f"run {config} --json")
    told = json.loads(out)
    assert (code, told["ok"], told["report"]) == (0, True, None)
    assert {step["state"] for step in told["steps"]} == {"complete before"}
    assert told["figures"]["f1"]["diabetic"]["myofibrils"] == 1.0


def test_dry_run_tells_the_plan(call: Call, tmp_path: Path):
    config = write_config(tmp_path, COUNTED)
    code, out, _ = call(f"run {config} --dry-run")
    assert code == 0
    assert "ingest control: to do" in out
    assert "waits for ingest diabetic" in out
    assert out.splitlines()[-1] == "dry run: nothing was written"
    assert "ingest control: to do, about 1 s" in out
    assert out.splitlines()[-2].startswith("4 steps of about 1 s together")
    code, out, _ = call(f"run {config} --dry-run --json")
    told = json.loads(out)
    assert [step["state"] for step in told["steps"]] == ["to do", "to do", "waits", "waits"]
    assert told["steps"][0]["plans"][0]["n_blocks"] == 1
    code, out, _ = call(f"run {config} --dry-run -v")
    assert "block_shape" in out
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_plans_name_no_password():
    missing = ("the volume https://host/a.zarr",)
    step = PlannedStep("measure", "a", "waits", missing=missing)
    assert "https://host/a.zarr" in str(step)
    assert step.as_dict()["missing"] == list(missing)


def test_faults_of_a_config_are_bad_input(call: Call, tmp_path: Path):
    config = write_config(tmp_path, COUNTED + "[densty]\n")
    code, _, err = call(f"run {config}")
    assert code == 2
    assert [words for words in ("line 22", "densty", "density") if words not in err] == []
    code, _, err = call(f"run {tmp_path}/absent.toml")
    assert code == 2
    assert "cvdask init" in err


def test_init(call: Call, tmp_path: Path):
    code, out, _ = call(f"init {tmp_path}/a.toml")
    assert code == 0
    assert f"cvdask run {tmp_path}/a.toml --dry-run" in out
    code, _, err = call(f"init {tmp_path}/a.toml")
    assert code == 2
    assert "a.toml" in err
    code, out, _ = call(f"init {tmp_path}/b.toml --paper --json")
    assert json.loads(out)["config"] == f"{tmp_path}/b.toml"
    assert "512" in (tmp_path / "b.toml").read_text()
