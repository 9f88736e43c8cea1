"""The commands for ensembles: what they write, tell, and end with."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

import cvdask
from cvdask.cli import ensembles
from cvdask.synthesis import gan_file
from tests.cli.command_lines import ENSEMBLE_COMMANDS, Call, example_of
from tests.synthesis.test_distance import tissue, write
from tests.synthesis.test_generate import tiny_gan
from tests.trees import tree_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``gan.keras`` and ``real.zarr``."""
    folder = tmp_path_factory.mktemp("ensembles")
    gan_file.save(tiny_gan("order"), folder / "gan.keras")
    write(folder / "real.zarr", tissue(0))
    return folder


def test_from_a_generator_to_numbers(call: Call, folder: Path, tmp_path: Path):
    line = f"generate --model {folder}/gan.keras --volumes 2 --slices 40 {tmp_path}/out.zarr"
    code, text, error = call(f"{line} --dry-run --json")
    plan = json.loads(text)["plans"][0]
    assert (code, plan["n_blocks"], plan["shape"]) == (0, 4, [2, 40, 16, 16])
    code, text, error = call(line)
    assert (code, error.count("note: ")) == (0, 1)
    assert "generate: 4 of 4 blocks" in text
    assert f"look at one: cvdask info {tmp_path}/out.zarr/0000" in text
    code, text, _ = call(f"{line} --json")
    told = json.loads(text)
    assert (told["members"], told["summaries"]) == (["0000", "0001"], [])
    with pytest.warns(UserWarning, match="cvdask order"):
        cvdask.generate(folder / "gan.keras", tmp_path / "b.zarr", volumes=2, slices=40)
    assert tree_digest(tmp_path / "b.zarr") == tree_digest(tmp_path / "out.zarr")

    line = f"distance {tmp_path}/out.zarr --real {folder}/real.zarr --z-range 0:60"
    code, text, error = call(line)
    assert (code, error) == (0, "")
    for part in ("Fréchet distance", "share of z_discs", "J(1) of classes", "memorisation test"):
        assert part in text
    code, text, _ = call(f"{line} --json --model {folder}/gan.keras")
    told = json.loads(text)
    assert (code, told["ok"], told["distance"]["n_slices"]) == (0, True, 80)
    assert told["path_length"] > 0
    assert told["memorisation"]["stand_in"]
    code, text, _ = call(f"{line} --json --unseen {folder}/real.zarr")
    told = json.loads(text)["memorisation"]
    assert (code, told["stand_in"], told["n_unseen"]) == (0, False, 64)


def test_a_copy_is_told_of_with_what_stood_in(call: Call, folder: Path):
    real = f"{folder}/real.zarr"
    code, text, _ = call(f"distance {real} --real {real}")
    assert (code, "memorisation test FAILED" in text, "give --unseen" in text) == (0, True, True)
    code, text, _ = call(f"distance {real} --real {real} --z-range 0:30 --unseen-z-range 30:64")
    assert (code, "memorisation test FAILED" in text, "give --unseen" in text) == (0, True, False)


def test_bad_input_ends_with_2(call: Call, folder: Path, tmp_path: Path):
    made = f"generate --model {folder}/gan.keras {tmp_path}/out.zarr"
    assert call(f"{made} --z-range 5:90")[0] == 2
    assert call(f"{made} --truncation 2")[0] == 2
    assert call(f"generate --model {folder}/none.keras {tmp_path}/out.zarr")[0] == 2
    code, _, error = call(f"distance {tmp_path}/none.zarr --real {folder}/real.zarr")
    assert (code, "none.zarr" in error) == (2, True)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("command", ENSEMBLE_COMMANDS)
def test_options_are_the_keywords(command: str):
    function = inspect.signature(getattr(cvdask, command)).parameters
    options = set(inspect.signature(getattr(ensembles, command)).parameters)
    assert set(function) - options <= {"most"}
    assert options - set(function) <= {"as_json", "verbose"}


@pytest.mark.parametrize("command", ENSEMBLE_COMMANDS)
def test_help_ends_in_a_command_that_is_understood(call: Call, command: str):
    code, text, _ = call(f"{command} --help")
    assert code == 0
    assert example_of(text).startswith(command)
