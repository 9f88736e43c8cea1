"""The command as a whole: errors, help, start-up, and the number it ends with.

Most tests call ``cli.run`` in this process, as ``main`` does; exit codes, start-up and worker
processes are tried in processes of their own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cvdask
from tests.cli.command_lines import COMMANDS, Call, in_own_process


def test_verbose_shows_where_an_error_arose(call: Call, tmp_path: Path):
    code, _, error = call(f"info {tmp_path}/none.zarr -v")
    assert code == 2
    assert "Traceback" in error
    assert "store.py" in error


def test_secrets_never_show(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no answer from https://me:hunter2@host/cell.zarr?token=abc123 in 3 s")

    monkeypatch.setattr(cvdask, "info", fail)
    code, out, error = call("info cell.zarr --json -v")
    assert code == 2
    assert "no answer from https://host/cell.zarr in 3 s" in json.loads(out)["error"]["message"]
    for secret in ("hunter2", "abc123"):
        assert secret not in out + error


def test_what_was_not_foreseen_is_told_too(call: Call, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("7 / 0")

    monkeypatch.setattr(cvdask, "info", fail)
    code, out, error = call("info cell.zarr --json")
    assert (code, "Traceback" in error, "7 / 0" in error) == (1, True, True)
    assert json.loads(out)["error"]["type"] == "ZeroDivisionError"


def test_a_training_that_diverges_ends_with_1(call: Call, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise FloatingPointError("the loss was not finite at step 7 of epoch 1; none kept")

    monkeypatch.setattr(cvdask, "train_unet", fail)
    code, out, error = call("train-unet cell.zarr --out unet.keras --json")
    assert (code, "Traceback" in error, "step 7" in error) == (1, False, True)
    assert json.loads(out)["error"]["type"] == "FloatingPointError"


def test_help_lists_every_command(call: Call):
    code, text, _ = call("")
    assert code == 0
    assert [command for command in COMMANDS if command not in text] == []
    listed = re.findall(r"^│ ([a-z-]+)  +[A-Z]", text, re.MULTILINE)
    assert listed == list(COMMANDS)


def test_help_loads_no_array_library():
    code = """
        import sys
        from cvdask.cli import run
        for command in ((), *((name,) for name in sys.argv[1:])):
            assert run([*command, "--help"]) == 0
        heavy = "numpy zarr dask distributed xarray numba keras tensorflow pandas".split()
        print("loaded:", *(name for name in heavy if name in sys.modules))
    """
    program = "\n".join(line.strip() for line in code.strip().splitlines())
    program = program.replace("assert run", "    assert run")
    done = subprocess.run(
        [sys.executable, "-c", program, *COMMANDS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_exit_codes_reach_the_shell(sample: Path, tmp_path: Path):
    done = in_own_process("--version")
    assert (done.returncode, done.stdout) == (0, f"cvdask {cvdask.__version__}\n")
    missing = in_own_process("info", str(tmp_path / "none.zarr"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "none.zarr" in missing.stderr
