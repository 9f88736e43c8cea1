"""Commands of synthesis: what they hand on, what they tell."""

from __future__ import annotations

import json
from typing import Any

import pytest

import cvdask
from cvdask.synthesis.train import GanOptions
from tests.cli.command_lines import Call

TINY = (
    "--width 2 --max-width 4 --latent 4 --n-mapping 1 --batch-size 4 --kimg 0.016 "
    "--report-kimg 0.016 --n-judged 4 --path-every 0"
)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command hands on; the training itself is not run."""
    found: dict[str, Any] = {}

    def stage(volumes: Any, **keywords: Any) -> None:
        found.update(volumes=volumes, **keywords)
        raise FloatingPointError("enough")

    monkeypatch.setattr(cvdask, "train_gan", stage)
    return found


def options_of(received: dict[str, Any]) -> GanOptions:
    shared = ("volumes", "out", "labels", "callback", "resume", "overwrite", "dry_run")
    return GanOptions(**{name: one for name, one in received.items() if name not in shared})


def test_defaults_are_those_of_the_function(call: Call, received: dict[str, Any]):
    call("train-gan cell.zarr --out gan.keras")
    assert options_of(received) == GanOptions()
    assert (received["volumes"], received["labels"]) == (["cell.zarr"], "classes")


def test_every_option_reaches_the_function(call: Call, received: dict[str, Any]):
    given = {
        "preset": "paper", "continuity": "order", "resolution": 32, "classes": ["a", "b"],
        "z_range": (2, 9), "exclude": (3, 5), "crop": "random", "reduction": 2, "kimg": 1.5,
        "max_minutes": 2.5, "batch_size": 6, "width": 3, "max_width": 7, "latent": 5,
        "n_mapping": 3, "head": "softmax", "loss": "rpgan_r1_r2", "share_weight": 2.0,
        "learning_rate": 0.01, "gamma": 4.0, "penalty_every": 2, "path_every": 8, "mixing": 0.5,
        "noise": True,
        "augment": False, "ema_kimg": 0.5, "mixed_precision": "float32", "n_devices": 1,
        "report_kimg": 0.25, "n_judged": 12, "seed": 7,
    }  # fmt: skip
    assert set(given) == set(GanOptions().as_dict())
    words = {"classes": "a,b", "z_range": "2:9", "exclude": "3,5"}
    line = " ".join(
        f"--{name.replace('_', '-')} {words.get(name, value)}"
        for name, value in given.items()
        if name not in ("augment", "noise")
    )
    call(f"train-gan one.zarr two.zarr --labels truth --out gan.keras --noise --no-augment {line}")
    assert options_of(received) == GanOptions(**given)
    assert (received["volumes"], received["labels"]) == (["one.zarr", "two.zarr"], "truth")


def test_slice_numbers_that_are_none_are_refused(call: Call, received: dict[str, Any]):
    code, _, error = call("train-gan cell.zarr --out gan.keras --exclude 3,x")
    assert (code, "3,x" in error) == (2, True)


def test_a_training_tells_distance_and_fractions(call: Call, tmp_path, sample):
    cell, out = sample / "cell.zarr", tmp_path / "gan.keras"
    line = f"train-gan {cell} --labels truth --resolution 16 --out {out} {TINY}"
    code, text, _ = call(f"{line} --dry-run")
    assert code == 0
    assert "16 × 16" in text
    assert not out.exists()
    code, text, error = call(f"{line} --json -v")
    assert code == 0, error
    told = json.loads(text)
    assert told["best"]["distance"] > 0
    assert told["first"]["step"] == 0
    assert told["n_images"] == 16
    assert "kimg: distance" in error  # with -v
    code, text, _ = call(line)
    assert code == 0
    assert "× floor" in text
    assert "mitochondria" in text
