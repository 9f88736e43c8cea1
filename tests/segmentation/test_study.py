"""The imbalance study: both trainings see the same patches, and are judged on the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

import cvdask
from cvdask.segmentation import study as module
from cvdask.segmentation.patches import Selection
from cvdask.segmentation.study import FoldScores, Study, compare, study_imbalance
from cvdask.volume.colors import UNANNOTATED
from tests.samples import write_sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

TINY = {
    "base_width": 4,
    "depth": 1,
    "patch_size": 64,
    "crop": 32,
    "batch_size": 4,
    "n_patches": 12,
    "steps_per_epoch": 2,
    "epochs": 1,
    "learning_rate": 0.02,
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> str:
    """Common and rare blobs, the rare ones a few in a hundred voxels, and a class without any."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((12, 128, 192)), (0, 4, 4))
    blobs /= blobs.std()
    truth = np.where(blobs > 1.8, 2, np.where(blobs > 0.3, 1, 0)).astype(np.uint8)
    image = np.clip(60 + 60 * truth + rng.normal(0, 8, truth.shape), 0, 255).astype(np.uint8)
    marks = np.full_like(truth, UNANNOTATED)
    marks[[2, 8]] = truth[[2, 8]]
    shapes = {"chunk_shape": (4, 64, 64), "shard_shape": (12, 128, 192)}
    url = tmp_path_factory.mktemp("study") / "cell.zarr"
    write_sample(url, image, **shapes)
    names = {1: "mitochondria", 2: "z_discs", 3: "nucleus"}
    write_sample(url, marks, labels="annotations", classes=names, **shapes)
    return str(url)


def test_both_learn_from_the_same_patches(sample: str, tmp_path):
    epochs = []
    with pytest.warns(UserWarning, match="nucleus"):
        found = study_imbalance(
            sample,
            class_="z_discs",
            out=tmp_path,
            callback=lambda way, record: epochs.append((way, sorted(record["f1"]))),
            **TINY,
        )
    assert epochs == [("together", ["mitochondria", "z_discs"]), ("alone", ["z_discs"])]
    assert isinstance(found, Study)
    records = [
        json.loads((tmp_path / f"{way}.run.json").read_text()) for way in ("together", "alone")
    ]
    together, alone = (record["selection"] for record in records)
    assert together["patches"] == alone["patches"]
    assert together["folds"] == alone["folds"]
    assert alone["classes"] == {"2": "z_discs"}
    for way, record in zip(("together", "alone"), records, strict=True):
        assert getattr(found.folds[0], way) == record["scores"]["folds"][0]["test_f1"]["z_discs"]
    written = json.loads((tmp_path / "study.json").read_text())
    assert written["judged_on"] == "test"
    assert written["folds"] == [found.as_dict()["folds"][0]]
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    # What is complete is not trained again.
    epochs.clear()
    again = study_imbalance(
        sample, class_="z_discs", out=tmp_path, callback=lambda *_: epochs.append(1), **TINY
    )
    assert (again, epochs) == (found, [])


def test_a_plan_writes_nothing(sample: str, tmp_path):
    plan = study_imbalance(sample, class_="z_discs", out=tmp_path / "s", dry_run=True, **TINY)
    assert isinstance(plan, Selection)
    assert plan.classes == {1: "mitochondria", 2: "z_discs"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"class_": "z_disks"}, "'z_disks'"),
        ({"class_": 2}, "2"),
        ({"class_": "z_discs", "classes": ["z_discs"]}, "two classes"),
        ({"class_": "z_discs", "alone": "mitochondria"}, "'mitochondria'"),
        ({"class_": "z_discs", "folds": 40}, "40"),
    ],
)
def test_refused_before_any_training(sample: str, tmp_path, monkeypatch, options, told):
    calls = []
    trained = module.train
    monkeypatch.setattr(
        module, "train", lambda *a, **k: calls.append(k["dry_run"]) or trained(*a, **k)
    )
    with pytest.raises(ValueError, match=told):
        study_imbalance(sample, out=tmp_path, **{**TINY, **options})
    assert all(calls)
    assert list(tmp_path.iterdir()) == []


def test_scores_are_compared_fold_by_fold(sample: str, tmp_path):
    plan = study_imbalance(
        sample, class_="z_discs", out=tmp_path, dry_run=True, **{**TINY, "folds": 2}
    )

    def scores(*values):
        return {
            "folds": [
                {"fold": i, "validated": True, "f1": {"z_discs": value, "mitochondria": 0.9}}
                for i, value in enumerate(values, 1)
            ]
        }

    study = compare(plan, "z_discs", scores(0.75, None), scores(0.5, 0.5))
    assert study.judged_on == "validation"
    assert study.folds[0] == FoldScores(1, 0.75, 0.5)
    assert np.isnan(study.folds[1].together)
    assert study.mean() == FoldScores(0, 0.75, 0.5)
    assert study.table() == [
        ("F1", "all together", "alone", "difference"),
        ("fold 1", "0.7500", "0.5000", "+0.2500"),
        ("fold 2", "–", "0.5000", "–"),
        ("z_discs", "0.7500", "0.5000", "+0.2500"),
    ]
    assert json.loads(json.dumps(study.as_dict(), allow_nan=False))["folds"][1]["together"] is None
    annotated = cvdask.open(sample).label("annotations").read()[[2, 8]]
    assert 0 < study.share < 3 * (annotated == 2).mean()
