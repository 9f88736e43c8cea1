"""Every example runs, at a small size, and says what it promises; so does the README."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest

import cvdask
from cvdask import cli

EXAMPLES = Path(__file__).parents[1] / "examples"

matplotlib.use("agg")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == ["demo", "ingest_stack"]


def test_demo_ends_with_the_path_of_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    demo = load("demo")
    arguments = ["--out", str(tmp_path / "demo"), "--size-um", "0.4", "1", "1.6"]
    for _ in range(2):  # the second finds the folder of the first
        demo.main(arguments)
        out = capsys.readouterr().out
        picture = Path(out.splitlines()[-1].rpartition(": ")[2])
        assert picture.read_bytes().startswith(b"\x89PNG")
        commands = [line.split()[2] for line in out.splitlines() if line.startswith("$ cvdask ")]
        assert commands == ["phantom", "export", "export", "ingest", "info", "verify"]
        assert "0 faults" in out
    volume = cvdask.open(tmp_path / "demo/cell.zarr")
    assert (volume.shape, volume.label_names()) == ((20, 50, 80), ["truth"])


def test_demo_stops_where_a_command_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        load("demo").main(["--out", str(tmp_path), "--size-um", "0", "1", "1"])
    assert stop.value.code == 2
    assert "0.0, 1.0, 1.0" in capsys.readouterr().err


def test_ingest_stack(capsys: pytest.CaptureFixture[str]):
    load("ingest_stack").main()
    out = capsys.readouterr().out
    assert "z = 20" in out  # the slice that was lost
    assert "annotated: [0, 30]" in out


README = (EXAMPLES.parent / "README.md").read_text()


def blocks_of(language: str) -> list[str]:
    """The fenced blocks of the README in one language; ``""`` for those that name none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks_of("python")
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "mitochondria" in out
    assert out.rstrip().endswith("True")


def test_the_commands_of_the_readme_are_there(capsys: pytest.CaptureFixture[str]):
    lines = [
        shlex.split(line, comments=True)
        for block in blocks_of("")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("cvdask ")
    ]
    assert len(lines) >= 5
    for _, command, *arguments in lines:
        assert cli.run([command, "--help"]) == 0
        known = capsys.readouterr().out
        options = [word for word in arguments if word.startswith("-")]
        assert [option for option in options if option not in known] == []
