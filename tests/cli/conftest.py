"""A way to run command lines, and a sample for them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cvdask import cli
from tests.cli.command_lines import SMALL, Call


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line; return its exit code, standard output and standard error."""

    def call(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cell.zarr``, ``raw.tif`` and ``truth.tif``; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("sample")
    for line in (
        f"phantom {folder}/cell.zarr {SMALL} --n-levels 2",
        f"export {folder}/cell.zarr {folder}/raw.tif",
        f"export {folder}/cell.zarr {folder}/truth.tif --labels truth",
    ):
        assert cli.run(line.split()) == 0
    return folder
