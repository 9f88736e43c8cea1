"""Every example runs, at a small size, and says what it promises; so does the README."""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable
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
    scripts = ["demo", "ingest_stack", "real_data"]
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == scripts
    configs = ["cells", "demo", "hippocampus", "paper", "urocell"]
    assert sorted(path.stem for path in EXAMPLES.glob("*.toml")) == configs


def without_networks(config: str) -> str:
    """The demo's config for a cell of 20 slices, down to what needs no network."""
    parts = re.split(r"(?=^\[)", config, flags=re.MULTILINE)
    wanted = ("#", "[run]", "[[sample]]", "[evaluate]", "[label]", "[measure]", "[density]")
    text = "".join(part for part in parts if part.startswith(wanted))
    text = text.replace("[50, 100]", "[10, 20]").replace("kernel_um = 1.0", "kernel_um = 0.2")
    for stage in ("label", "measure", "density"):
        text = text.replace(f"[{stage}]", f'[{stage}]\nlabels = "truth"')
    return text.replace('truth = "truth"', 'truth = "truth"\nprediction = "truth"')


SHORTER = {
    "[50, 100]": "[10, 20]",
    "kernel_um = 1.0": "kernel_um = 0.4",
    "_um = 1.0": "_um = 0.3",
    "patch_size = 96": "patch_size = 32\ncrop = 32\nbatch_size = 2\nbase_width = 4\ndepth = 2",
    "max_minutes = 2.5": "epochs = 1\nsteps_per_epoch = 2",
    "max_minutes = 4.5": "kimg = 0.064\nwidth = 4\nmax_width = 8\nlatent = 8\nbatch_size = 8",
    "resolution = 64": "resolution = 16",
    "report_kimg = 5": "report_kimg = 0.032",
    "n_judged = 300": "n_judged = 16",
    "volumes = 3": "volumes = 2",
}


def shorter(config: str) -> str:
    """The demo's config with networks that learn for a moment, on a cell of 32 slices."""
    for text, other in SHORTER.items():
        assert text in config
        config = config.replace(text, other)
    return config


def test_demo_ends_with_its_main_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    demo = load("demo")
    config = tmp_path / "small.toml"
    config.write_text(without_networks(demo.CONFIG.read_text()))
    arguments = ["--out", str(tmp_path / "demo"), "--config", str(config)]
    arguments += ["--size-um", "0.4", "1", "1.6"]
    for again in (False, True):  # the second finds the folder of the first
        demo.main(arguments)
        out = capsys.readouterr().out
        lines = out.splitlines()
        assert lines[-1].startswith("main figures: F1 of cell: mitochondria 1.00")
        picture = Path(lines[-2].rpartition(": ")[2])
        assert picture.read_bytes().startswith(b"\x89PNG")
        commands = [line.split()[2] for line in lines if line.startswith("$ cvdask ")]
        exports = [] if again else ["export", "export"]
        assert commands == ["phantom", *exports, "run", "info", "verify"]
        assert "0 faults" in out
        assert ("complete before" in out) == again
    volume = cvdask.open(tmp_path / "demo/samples/cell.zarr")
    assert (volume.shape, volume.label_names()) == ((20, 50, 80), ["mitochondria", "truth"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_demo_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    demo = load("demo")
    config = tmp_path / "short.toml"
    config.write_text(shorter(demo.CONFIG.read_text()))
    arguments = ["--out", str(tmp_path / "demo"), "--config", str(config)]
    demo.main([*arguments, "--size-um", "0.64", "1.6", "1.6"])
    lines = capsys.readouterr().out.splitlines()
    wanted = ("F1 of cell", "objects in cell", "× the floor", "J(1)")
    assert [words for words in wanted if words not in lines[-1]] == []
    page = Path(lines[-2].rpartition(": ")[2])
    assert "three made from it" in page.read_text()


def test_demo_stops_where_a_command_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        load("demo").main(["--out", str(tmp_path), "--size-um", "0", "1", "1"])
    assert stop.value.code == 2
    assert "0.0, 1.0, 1.0" in capsys.readouterr().err


def test_configs_hold_and_can_be_planned(tmp_path: Path):
    """Their files are not there: that is all that keeps them from being run."""
    for name in ("demo", "hippocampus", "paper", "urocell"):
        config = tmp_path / f"{name}.toml"
        config.write_text((EXAMPLES / f"{name}.toml").read_text())
        steps = cvdask.run(config, dry_run=True)
        assert isinstance(steps, list)
        assert [step.stage for step in steps if step.missing] == [
            "ingest" for step in steps if step.stage == "ingest"
        ]
        assert {step.state for step in steps} == {"waits"}
        assert steps[-1].stage == "report"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cells_are_compared_by_groups(tmp_path: Path) -> None:
    whole = (EXAMPLES / "cells.toml").read_text()
    parts = re.split(r"(?=^\[)", whole, flags=re.MULTILINE)
    few = [part for part in parts if not re.search(r'name = "\w+_[3-8]"', part)]
    text = "".join(few).replace("[4.8, 6.4, 6.4]", "[0.5, 1, 1]").replace("25\n", "50\n")
    config = tmp_path / "cells.toml"
    config.write_text(text.replace("kernel_um = 1.0", "kernel_um = 0.3"))
    assert cvdask.run(config, client="serial").report
    with (tmp_path / "cells" / "comparison" / "statistics.csv").open() as file:
        pairs = {(row["group_a"], row["group_b"]) for row in csv.DictReader(file)}
    assert text.count("phantom") == 6
    assert {("healthy", "diabetic"), ("healthy", "healthy_again")} <= pairs


def test_config_of_the_paper_is_that_of_init(tmp_path: Path):
    written = cvdask.init(tmp_path / "paper.toml", paper=True)
    assert written.read_text() == (EXAMPLES / "paper.toml").read_text()
    stages = tomllib.loads(written.read_text())
    unet, gan = stages["train-unet"], stages["train-gan"]
    assert (unet["preset"], unet["n_patches"], unet["patch_size"]) == ("paper", 30, 512)
    assert (unet["folds"], gan["preset"]) == (6, "paper")
    assert stages["generate"] == {"volumes": 25, "slices": 96}
    assert (stages["density"]["kernel_um"], stages["density"]["stride_um"]) == (4.0, 0.4)


@pytest.mark.parametrize("name", ["hippocampus", "urocell"])
def test_real_data_is_taken_in(
    name: str,
    tmp_path: Path,
    real_data: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
):
    folder = "epfl6-hippocampus" if name == "hippocampus" else "urocell-labels-fib1-3-3-0"
    data = real_data(folder).parent
    arguments = [name, "--data", str(data), "--out", str(tmp_path), "--until", "ingest"]
    load("real_data").main(arguments)
    assert "main figures" in capsys.readouterr().out
    assert list((tmp_path / "samples").glob("*.zarr"))


def test_real_data_that_is_absent_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("CVDASK_DATA", raising=False)
    load("real_data").main(["urocell", "--out", str(tmp_path)])
    assert "no data" in capsys.readouterr().out
    load("real_data").main(["urocell", "--data", str(tmp_path), "--out", str(tmp_path)])
    assert "urocell-labels-fib1-3-3-0" in capsys.readouterr().out


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
