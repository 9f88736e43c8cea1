"""Are steps estimated by what is known of them?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cvdask
from cvdask.pipeline.config import read_config
from cvdask.pipeline.estimate import PAPER_TIMES, TYPICAL_NS, Estimates
from tests.pipeline.configs import CELLS, write_config

NETWORK = """
[train-unet]
samples = ["control"]
labels = "truth"
max_minutes = 3
folds = 5
refit = true
upright = true
preset = "paper"

[segment]
tta = true

[measure]
"""


def estimates(folder: Path, text: str, n_slots: int = 1) -> Estimates:
    return Estimates(read_config(write_config(folder, text)), n_slots)


@pytest.fixture(scope="module")
def one_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with one sample of 20 × 50 × 50 voxels, and another that is planned."""
    folder = tmp_path_factory.mktemp("one")
    made = folder / "out" / "samples" / "control.zarr"
    cvdask.phantom(str(made), size_um=(0.4, 1, 1), voxel_nm=20, n_levels=1, client="serial")
    return folder


def test_a_sample_that_is_there(one_sample: Path) -> None:
    found = estimates(one_sample, CELLS + "[measure]\n", n_slots=2)
    assert found.seconds("measure", "control", ()) == 50_000 * TYPICAL_NS["measure"] * 1e-9 / 2
    assert found.seconds("measure", "diabetic", ()) is None
    assert found.seconds("compare", "", ()) is None


def test_a_sample_that_is_planned(one_sample: Path, tmp_path: Path) -> None:
    plans = cvdask.phantom(
        str(tmp_path / "a.zarr"), size_um=(0.4, 1, 2), voxel_nm=20, n_levels=2, dry_run=True
    )
    found = estimates(one_sample, CELLS + "[measure]\n")
    found.seconds("ingest", "diabetic", plans)
    assert found.seconds("measure", "diabetic", ()) == 100_000 * TYPICAL_NS["measure"] * 1e-9


def test_trainings_take_what_they_are_given(one_sample: Path) -> None:
    found = estimates(one_sample, CELLS + NETWORK)
    assert found.seconds("train-unet", "", ()) == 3 * 60 * 6
    once = 50_000 * TYPICAL_NS["segment"] * 1e-9
    assert found.seconds("segment", "control", ()) == pytest.approx(once * PAPER_TIMES * 4)


def test_the_last_run_knows_better(one_sample: Path) -> None:
    steps: list[dict[str, Any]] = [
        {"stage": "measure", "subject": "control", "state": "done", "seconds": 7.0},
        {"stage": "label", "subject": "control", "state": "complete before", "seconds": 0.0},
        {"stage": "compare", "subject": "", "state": "done", "seconds": 9.0},
    ]
    record = one_sample / "out" / "run.json"
    record.write_text(json.dumps({"steps": steps}))
    found = estimates(one_sample, CELLS + "[measure]\n")
    record.unlink()
    assert found.seconds("measure", "control", ()) == pytest.approx(7.0)
    assert found.seconds("label", "control", ()) == 50_000 * TYPICAL_NS["label"] * 1e-9
