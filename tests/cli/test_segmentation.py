"""The commands around the network: from annotated slices to scores, and what is said on the way."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

import cvdask
from cvdask import cli
from cvdask.cli import training
from cvdask.segmentation.train import TrainingOptions
from tests.cli.command_lines import SEGMENTATION_COMMANDS, Call, example_of
from tests.trees import tree_digest

# Keras turns TensorFlow's variables into arrays in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

CLASSES = ("mitochondria", "myofibrils", "z_discs")
TINY = (
    f"--labels truth --classes {','.join(CLASSES)} --split-by slice --z-range 0:20 --base-width 4 "
    "--depth 1 --epochs 1 --steps-per-epoch 2 --batch-size 4"
)

RECORD = {
    "fold": 2,
    "epoch": 7,
    "loss": 0.5,
    "val_loss": 0.75,
    "f1": {"mitochondria": 0.5, "z_discs": None},
    "mean_f1": 0.5,
    "learning_rate": 1e-3,
    "samples_per_second": 80.0,
    "seconds": 61.0,
}
FOLD = {
    "fold": 1,
    "best_epoch": 3,
    "n_epochs": 5,
    "minutes": 1.5,
    "stopped": "",
    "validated": True,
    "f1": {"mitochondria": 0.75, "z_discs": 0.25},
    "mean_f1": 0.5,
}


@dataclass(frozen=True)
class Run:
    """A folder with what was made, and what each command told of it."""

    folder: Path
    told: Mapping[str, dict[str, Any]]
    errors: Mapping[str, str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``cell.zarr`` with its truth, ``unet.keras`` trained on it, ``labels/classes`` and scores."""
    folder = tmp_path_factory.mktemp("segmentation")
    told, errors = {}, {}
    for line in (
        f"phantom {folder}/cell.zarr --size-um 0.6 1.3 1.3 --voxel-nm 20 --n-levels 1",
        f"train-unet {folder}/cell.zarr --out {folder}/unet.keras {TINY} -v",
        f"segment {folder}/cell.zarr --model {folder}/unet.keras --probabilities",
        f"evaluate {folder}/cell.zarr --truth truth --z-range 20:30 --chart {folder}/chart.svg",
    ):
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = cli.run([*line.split(), "--json"])
        assert code == 0, error.getvalue()
        command = line.split()[0]
        told[command], errors[command] = json.loads(out.getvalue()), error.getvalue()
    return Run(folder, told, errors)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command hands on, by the keyword; the stage itself is not run."""
    found: dict[str, Any] = {}

    class Handed(Exception):
        pass

    for name in ("train_unet", "segment", "evaluate"):
        signature = inspect.signature(getattr(cvdask, name))

        def stage(*given: Any, _signature: Any = signature, **keywords: Any) -> None:
            found.update(_signature.bind(*given, **keywords).arguments)
            raise Handed

        monkeypatch.setattr(cvdask, name, stage)
    return found


# ---------------------------------------------------------------------------------------------
# From annotated slices to scores


def test_a_training_tells_its_scores(run: Run):
    told = run.told["train-unet"]
    assert (told["ok"], told["model"]) == (True, f"{run.folder}/unet.keras")
    assert told["classes"] == {"1": "mitochondria", "2": "myofibrils", "3": "z_discs"}
    (fold,) = told["scores"]["folds"]
    assert (fold["best_epoch"], fold["n_epochs"]) == (1, 1)
    assert sorted(fold["f1"]) == sorted(fold["test_f1"]) == list(CLASSES)
    assert any("64" in note and "512" in note for note in told["warnings"])
    error = run.errors["train-unet"]
    assert [f"note: {note}" for note in told["warnings"] if f"note: {note}\n" not in error] == []
    assert "fold 1, epoch 1: loss " in error  # with -v


def test_a_segmentation_tells_its_labels(run: Run):
    told = run.told["segment"]
    assert told["volume"]["classes"] == {"1": "mitochondria", "2": "myofibrils", "3": "z_discs"}
    assert told["volume"]["shape"] == [30, 65, 65]
    assert told["summaries"][0]["stage"] == "segment"
    assert told["summaries"][0]["n_voxels"] == 30 * 65 * 65
    names = ["classes", *(f"classes_p_{name}" for name in CLASSES), "truth", "truth_objects"]
    assert cvdask.open(run.folder / "cell.zarr").label_names() == names


def test_an_evaluation_tells_what_the_function_returns(run: Run):
    told = run.told["evaluate"]
    found = cvdask.evaluate(f"{run.folder}/cell.zarr", truth="truth", z_range=(20, 30))
    assert {key: told[key] for key in ("classes", "mean", "n_voxels")} == found.as_dict()
    for name in CLASSES:
        assert {"f1", "jaccard", "v_rand", "v_info"} <= told["classes"][name].keys()
    assert told["n_voxels"] == 10 * 65 * 65
    assert told["warnings"] == list(found.warnings)
    assert told["chart"] == f"{run.folder}/chart.svg"
    assert Path(told["chart"]).read_text().startswith("<?xml")


def test_scores_are_told_to_people(call: Call, run: Run):
    code, text, error = call(
        f"evaluate {run.folder}/cell.zarr --truth truth --probabilities classes --z-range 20:30 -v"
    )
    assert (code, error) == (0, "")
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["class", *CLASSES, "nucleus", "mean"]
    f1 = next(row for row in rows if row[0] == "F1")
    assert f1[1] == f"{run.told['evaluate']['classes']['mitochondria']['f1']:.4f}"
    assert "nucleus" in text.partition("note: ")[2]
    assert "evaluate: " in text


def test_what_is_complete_is_not_done_again(call: Call, run: Run):
    url, model = run.folder / "cell.zarr", run.folder / "unet.keras"
    before = tree_digest(run.folder)
    code, text, error = call(f"train-unet {url} --out {model} {TINY}")
    assert (code, error) == (0, "")
    assert text.splitlines()[:2] == [
        "no epoch was left to do: an earlier run has finished",
        f"fold 1: epoch 1 of 1, {run.told['train-unet']['scores']['folds'][0]['minutes']:.1f} min, "
        f"this network is kept",
    ]
    assert text.splitlines()[-2:] == [
        f"written: {model}",
        f"use it: cvdask segment {url} --model {model}",
    ]
    code, text, error = call(f"segment {url} --model {model} --probabilities")
    assert (code, error) == (0, "")
    assert text.splitlines() == [
        "nothing to do: it was complete before",
        f"look at it: cvdask export {url} classes.png --overlay classes",
    ]
    assert tree_digest(run.folder) == before


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            f"train-unet {{url}} --out {{new}}.keras {TINY} --epochs 3",
            ["20 patches of 64 × 64", "14 to train"],
        ),
        ("segment {url} --model {model} --name other", ["segment", "30 × 65 × 65"]),
        ("evaluate {url} --truth truth --box 0:4,:,: --chart {new}.png", ["evaluate", "0:4"]),
    ],
)
def test_dry_runs_print_plans_and_write_nothing(
    call: Call, run: Run, tmp_path: Path, line: str, values: Sequence[str]
):
    line = line.format(
        url=run.folder / "cell.zarr", model=run.folder / "unet.keras", new=tmp_path / "new"
    )
    before = tree_digest(run.folder)
    code, text, error = call(f"{line} --dry-run")
    assert (code, error) == (0, "")
    assert text.startswith("plan:\n")
    assert [value for value in values if value not in text] == []
    assert text.endswith("dry run: nothing was written\n")
    code, text, _ = call(f"{line} --dry-run --json")
    told = json.loads(text)
    assert (code, told["dry_run"], told["plans"][0]["stage"]) == (0, True, line.split()[0])
    assert tree_digest(run.folder) == before
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# Options


def test_defaults_are_those_of_the_functions(call: Call, received: dict[str, Any]):
    call("train-unet cell.zarr --out unet.keras")
    assert received.pop("callback") is not None
    assert TrainingOptions(**received.pop("options")) == TrainingOptions()
    assert received == {
        "volumes": ["cell.zarr"],
        "out": "unet.keras",
        "labels": "annotations",
        "resume": False,
        "overwrite": False,
        "dry_run": False,
    }


@pytest.mark.parametrize("line", ["segment cell.zarr --model unet.keras", "evaluate cell.zarr"])
def test_defaults_are_those_of_the_signatures(
    call: Call, line: str, monkeypatch: pytest.MonkeyPatch, received: dict[str, Any]
):
    monkeypatch.undo()
    defaults = {
        name: one.default
        for name, one in inspect.signature(getattr(cvdask, line.split()[0])).parameters.items()
        if one.default is not inspect.Parameter.empty
    }
    seen: dict[str, Any] = {}

    def stage(*_: Any, **keywords: Any) -> list[Any]:
        seen.update(keywords)
        return []

    monkeypatch.setattr(cvdask, line.split()[0], stage)
    call(line)
    assert seen.pop("client") == "threads"  # the functions are serial by default
    assert seen == {name: value for name, value in defaults.items() if name != "client"}


def test_every_option_of_a_training_reaches_the_function(call: Call, received: dict[str, Any]):
    chosen = {
        "preset": "paper",
        "base_width": 8,
        "depth": 3,
        "n_dense": 2,
        "folds": 6,
        "split_by": "slice",
        "refit": True,
        "n_patches": None,
        "patch_size": 128,
        "crop": 64,
        "batch_size": 2,
        "epochs": 7,
        "max_minutes": 1.5,
        "steps_per_epoch": 3,
        "patience": None,
        "learning_rate": 0.01,
        "weight_decay": 0.001,
        "ema": 0.5,
        "dice": 0.25,
        "boundary": 1.0,
        "mixed_precision": "float32",
        "z_range": (0, 10),
        "classes": {1: "mitochondria", 3: "z_discs"},
        "alone": "z_discs",
        "augment": False,
        "upright": True,
        "balanced": False,
        "seed": 5,
    }
    written = {
        "refit": "--refit",
        "augment": "--no-augment",
        "upright": "--upright",
        "balanced": "--no-balanced",
        "n_patches": "--n-patches all",
        "patience": "--patience never",
        "z_range": "--z-range 0:10",
        "classes": "--classes 1=mitochondria,3=z_discs",
    }
    flags = [written.get(k, f"--{k.replace('_', '-')} {v}") for k, v in chosen.items()]
    call(f"train-unet a.zarr b.zarr --out u.keras --labels marks --resume {' '.join(flags)}")
    assert chosen.keys() == asdict(TrainingOptions()).keys()
    assert received["options"] == chosen
    assert (received["volumes"], received["labels"]) == (["a.zarr", "b.zarr"], "marks")
    assert received["resume"] is True


def test_every_option_of_a_segmentation_reaches_the_function(call: Call, received: dict[str, Any]):
    call(
        "segment a.zarr --model u.keras --name cells --probabilities --tta --axes zyx "
        "--precision bfloat16 --runtime openvino "
        "--max-changed 0.01 --max-loss 0.02 --roi :,:9,: --mask inside --z-range 3:9 "
        "--batch-size 2 --block-yx 64 128 --no-gpu --client serial --overwrite"
    )
    assert received == {
        "volume": "a.zarr",
        "model": "u.keras",
        "name": "cells",
        "probabilities": True,
        "tta": True,
        "axes": "zyx",
        "precision": "bfloat16",
        "runtime": "openvino",
        "max_changed": 0.01,
        "max_loss": 0.02,
        "roi": ":,:9,:",
        "mask": "inside",
        "z_range": (3, 9),
        "batch_size": 2,
        "block_yx": (64, 128),
        "gpu": False,
        "client": "serial",
        "workers": None,
        "resume": False,
        "overwrite": True,
        "dry_run": False,
    }


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("train-unet {url}", ["--out", "cvdask train-unet --help"]),
        ("train-unet {url} --out {new}.h5", [".keras", "new.h5"]),
        ("train-unet {url} --out {new}.keras --labels none", ["none", "truth"]),
        ("train-unet {url} --out {new}.keras --z-range 5", ["--z-range", "'5'", "0:10"]),
        ("train-unet {url} --out {new}.keras --n-patches most", ["--n-patches", "all", "most"]),
        ("train-unet {url} --out {new}.keras --epochs 0", ["epochs", "0"]),
        ("train-unet {url} --out {new}.keras --preset slow", ["slow", "fast", "paper"]),
        ("train-unet {url} --out {new}.keras --labels truth --classes cats", ["cats", "z_discs"]),
        (f"train-unet {{url}} --out {{folder}}/unet.keras {TINY} --seed 9", ["--overwrite"]),
        ("segment {url}", ["--model", "cvdask segment --help"]),
        ("segment {url} --model {new}.keras", ["new.keras"]),
        ("segment {url} --model {folder}/chart.svg", ["chart.svg"]),
        ("segment {url} --model {folder}/unet.keras --z-range 20:40", ["20:40", "30"]),
        ("segment {url} --model {folder}/unet.keras --roi :,:,60:70", ["x", "60:70", "65"]),
        ("segment {url} --model {folder}/unet.keras --mask none", ["none", "truth"]),
        ("segment {url} --model {folder}/unet.keras --block-yx 64", ["--block-yx", "'64'"]),
        ("segment {url} --model {folder}/unet.keras --tta", ["classes", "--overwrite"]),
        ("segment {url} --model {folder}/unet.keras --workers 2 --client serial", ["--workers 2"]),
        ("evaluate {url}", ["annotations", "truth"]),
        ("evaluate {url} --truth truth --prediction none", ["none", "classes"]),
        ("evaluate {url} --truth truth --z-range 20:40", ["20:40", "30"]),
        ("evaluate {url} --truth truth --z-range 0:1 --box 0,0,0", ["box", "0,0,0"]),
        ("evaluate {url} --truth truth --chart {new}.jpg", ["--chart", ".svg", "new.jpg"]),
        ("evaluate {url} --truth truth --chart {new}/a.png", ["--chart", "new/a.png"]),
        ("evaluate {url} --truth truth --probabilities none", ["none_p_", "classes_p_z_discs"]),
    ],
)
def test_bad_input_ends_with_2_and_the_values(
    call: Call, run: Run, tmp_path: Path, line: str, values: Sequence[str]
):
    before = tree_digest(run.folder)
    code, out, error = call(
        line.format(url=run.folder / "cell.zarr", folder=run.folder, new=tmp_path / "new")
    )
    assert (code, out) == (2, "")
    assert error.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error
    assert [value for value in values if value not in error] == []
    assert tree_digest(run.folder) == before
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# What is told on the way, and at the end


@pytest.mark.parametrize(("flag", "terminal"), [("", True), ("-v", False), ("", False)])
def test_an_epoch_is_a_line_on_a_terminal_or_with_v(
    call: Call, monkeypatch: pytest.MonkeyPatch, flag: str, terminal: bool
):
    def stage(*_: Any, callback: Any, **__: Any) -> None:
        callback(RECORD)
        raise ValueError("enough")

    monkeypatch.setattr(cvdask, "train_unet", stage)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    error = call(f"train-unet cell.zarr --out unet.keras {flag}")[2]
    line = (
        "fold 2, epoch 7: loss 0.5000, validation 0.7500, F1 0.5000 (mitochondria 0.5000, "
        "z_discs –), 80.0 crops/s, 61 s"
    )
    assert (line in error.splitlines()) == (terminal or flag == "-v")


def test_folds_stand_side_by_side_with_their_mean():
    second = {**FOLD, "fold": 2, "f1": {"mitochondria": 0.25, "z_discs": None}, "mean_f1": 0.25}
    scores = {
        "best_fold": 1,
        "chosen_fold": 3,
        "f1_mean": {"mitochondria": 0.5, "z_discs": 0.25, "mean": 0.375},
        "f1_sd": {"mitochondria": 0.3536, "z_discs": None, "mean": 0.1768},
        "folds": [FOLD, second, {**FOLD, "fold": 3, "validated": False, "best_epoch": 5}],
    }
    assert training._training_rows(scores) == [
        ["F1", "fold 1", "fold 2", "mean ± sd"],
        ["mitochondria", "0.7500", "0.2500", "0.5000 ± 0.3536"],
        ["z_discs", "0.2500", "–", "0.2500 ± –"],
        ["mean", "0.5000", "0.2500", "0.3750 ± 0.1768"],
    ]
    assert list(training._fold_lines(scores)) == [
        "fold 1: epoch 3 of 5, 1.5 min",
        "fold 2: epoch 3 of 5, 1.5 min",
        "all patches: epoch 5 of 5, 1.5 min, this network is kept",
    ]


# ---------------------------------------------------------------------------------------------
# Help


def test_examples_of_the_help_work(
    call: Call, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a cell as wide as a training by regions needs; the training is only planned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for line in (
        "phantom cell.zarr --size-um 0.08 5.2 5.2 --voxel-nm 20 --n-levels 1",
        "export cell.zarr truth.tif --labels truth",
        f"ingest truth.tif cell.zarr --as-labels annotations --classes {','.join(CLASSES)}",
    ):
        assert call(line)[0] == 0
    (tmp_path / "net.keras").write_bytes((run.folder / "unet.keras").read_bytes())
    for command in SEGMENTATION_COMMANDS:
        example = example_of(call(f"{command} --help")[1])
        assert example.startswith(f"{command} ")
        trains = command in ("train-unet", "study-imbalance")
        again = " --overwrite --dry-run" if trains else ""
        code, _, error = call(example + again)
        assert code == 0, (shlex.split(example), error)
    assert (tmp_path / "scores.png").exists()
