"""Kill a whole run at any moment, run the same command again: is it as if nothing had happened?

The run is that of two synthetic cells without networks, as a process of its own. It is killed when
its folder holds so many files, drawn at random, again and again; then it is left to end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.configs import ABOUT_THE_RUN, WHOLE, write_config
from tests.trees import tree_digest

pytestmark = pytest.mark.faults

# Between two looks at the folder of the other process.
LOOK_SECONDS = 0.002


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cvdask", "run", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(config: Path) -> None:
    process = start(config)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said


def n_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def killed(config: Path, n_wanted: int) -> bool:
    """Run until so many files are there, and kill; False where the run ended before."""
    process = start(config)
    with process:
        while n_files(config.parent) < n_wanted:
            try:
                process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return False
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode == -signal.SIGKILL


def written(folder: Path) -> dict[str, str]:
    digests = tree_digest(folder)
    return {
        name: digest for name, digest in digests.items() if Path(name).name not in ABOUT_THE_RUN
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    complete(write_config(folder))
    return folder


def kill_again_and_again(folder: Path, undisturbed: Path, seed: int, n_kills: int) -> None:
    chance = random.Random(seed)
    config = write_config(folder)
    # Each kill comes later than the one before: a run that goes on has few files left to write.
    moments = sorted(chance.sample(range(2, n_files(undisturbed)), n_kills))
    n_killed = sum(killed(config, moment) for moment in moments)
    assert n_killed > 0
    complete(config)
    assert written(folder) == written(undisturbed)
    record = json.loads((folder / "out/run.json").read_text())
    assert record["state"] == "complete"


def test_killed_at_random_and_run_again(tmp_path: Path, undisturbed: Path):
    kill_again_and_again(tmp_path, undisturbed, seed=0, n_kills=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(1, 9))
def test_killed_at_many_random_moments(tmp_path: Path, undisturbed: Path, seed: int):
    kill_again_and_again(tmp_path, undisturbed, seed, n_kills=5)


@pytest.mark.slow
def test_killed_while_it_is_made_anew(tmp_path: Path):
    other = WHOLE.replace("min_voxels = 5", "min_voxels = 7").replace("seed = 1", "seed = 2")
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    complete(write_config(wanted, other))
    folder = tmp_path / "again"
    folder.mkdir()
    complete(write_config(folder))
    config = write_config(folder, other)
    process = subprocess.Popen(
        [sys.executable, "-m", "cvdask", "run", str(config), "--overwrite"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    summary = folder / "out/comparison/summary.json"
    with process:
        # Its state is "begun" while the comparison is made.
        while process.poll() is None and "begun" not in summary.read_text():
            pass
        process.kill()
    complete(config)
    assert written(folder) == written(wanted)
