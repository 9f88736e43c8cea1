"""Evaluate: the scores of a volume, from any blocks, and what is said about odd input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

from cvdask.errors import BlocksFailed
from cvdask.segmentation import evaluate as evaluate_module
from cvdask.segmentation.evaluate import Evaluation, evaluate, match_classes
from cvdask.segmentation.metrics import Confusion, segmentation_scores
from cvdask.volume.boxes import Box
from cvdask.volume.colors import PALETTE
from cvdask.volume.store import Volume, describe, open_volume, update_attributes
from tests.samples import write_sample

SHAPE = (11, 20, 24)
NAMES = {1: "mitochondria", 2: "z_discs"}


def blobs(seed: int) -> np.ndarray:
    """Classes 0, 1 and 2 in patches of 3 by 4 voxels."""
    generator = np.random.default_rng(seed)
    coarse = generator.choice(3, (SHAPE[0], 7, 6), p=(0.5, 0.35, 0.15)).astype(np.uint8)
    return np.kron(coarse, np.ones((1, 3, 4), np.uint8))[:, : SHAPE[1], : SHAPE[2]]


def disturbed(truth: np.ndarray) -> np.ndarray:
    """A prediction: moved by a voxel, and wrong in a few places."""
    found = np.roll(truth, 1, axis=2)
    found[np.random.default_rng(3).random(truth.shape) < 0.05] = 1
    return found


def write_pair(folder: Path, truth: np.ndarray, found: np.ndarray, **options: Any) -> Volume:
    """Write a sample with both label images and open it."""
    url = folder / "o.zarr"
    write_sample(url, np.zeros(truth.shape, np.uint8))
    write_sample(url, truth, labels="annotations", classes=NAMES, **options)
    write_sample(url, found, labels="classes", classes=NAMES, **options)
    return open_volume(url)


def expected_scores(truth: np.ndarray, found: np.ndarray, value: int) -> dict[str, Any]:
    """Score one class of whole arrays at once."""
    known = truth != 255
    t, p = (truth == value), (found == value)
    counts = Confusion(
        tp=int((t & p & known).sum()),
        fp=int((~t & p & known).sum()),
        fn=int((t & ~p & known).sum()),
        tn=int((~t & ~p & known).sum()),
    )
    objects = segmentation_scores(t, p)
    return {
        **counts.scores(),
        "v_rand": objects.v_rand,
        "v_info": objects.v_info,
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "tn": counts.tn,
    }


def score(volume: Volume | str, **options: Any) -> Evaluation:
    result = evaluate(volume, **options)
    assert isinstance(result, Evaluation)
    return result


# ---------------------------------------------------------------------------------------------
# What comes out


def test_a_small_volume_by_hand(tmp_path):
    truth = np.array([[[1, 1, 0, 1], [0, 0, 0, 255]], [[255, 255, 255, 255]] * 2], np.uint8)
    found = np.array([[[1, 1, 0, 0], [0, 1, 0, 1]], [[1, 1, 1, 1]] * 2], np.uint8)
    write_sample(tmp_path, np.zeros(truth.shape, np.uint8))
    write_sample(tmp_path, truth, labels="annotations", classes={1: "mitochondria"})
    write_sample(tmp_path, found, labels="classes", classes={1: "mitochondria"})
    result = score(tmp_path.as_posix())
    # Seven voxels: tp 2, fp 1, fn 1, tn 3. Thinned, the two objects that were found part the slice
    # at x = 2; the voxel at x = 3 was missed but lies with the second, so T and S agree.
    scores = {
        "accuracy": 5 / 7,
        "sensitivity": 2 / 3,
        "specificity": 3 / 4,
        "ppv": 2 / 3,
        "npv": 3 / 4,
        "f1": 4 / 6,
        "jaccard": 2 / 4,
        "v_rand": 1.0,
        "v_info": 1.0,
    }
    assert result.as_dict() == {
        "classes": {"mitochondria": {**scores, "tp": 2, "fp": 1, "fn": 1, "tn": 3}},
        "mean": scores,
        "n_voxels": 7,
    }
    assert result.warnings == ("1 of 2 slices are not annotated and were left out",)
    assert result.table() == [
        ["class", "Accuracy", "Sensitivity", "Specificity", "PPV", "NPV", "F1", "Jaccard",
         "V_Rand", "V_Info", "voxels"],
        ["mitochondria", "0.7143", "0.6667", "0.7500", "0.6667", "0.7500", "0.6667", "0.5000",
         "1.0000", "1.0000", "3"],
        ["mean", "0.7143", "0.6667", "0.7500", "0.6667", "0.7500", "0.6667", "0.5000",
         "1.0000", "1.0000", "7"],
    ]  # fmt: skip


@pytest.mark.parametrize("depth", [1, 4, 64])
def test_blocks_equal_the_whole_to_the_last_bit(tmp_path, client, monkeypatch, depth):
    monkeypatch.setattr(evaluate_module, "SLAB_SLICES", depth)
    truth = blobs(1)
    found = disturbed(truth)
    truth[2:4] = 255
    truth[7, :, :9] = 255
    result = score(write_pair(tmp_path, truth, found), client=client)
    classes = {name: expected_scores(truth, found, value) for value, name in NAMES.items()}
    assert result.as_dict()["classes"] == classes
    assert result.n_voxels == int((truth != 255).sum())
    means = {
        key: (classes["mitochondria"][key] + classes["z_discs"][key]) / 2
        for key in ("f1", "v_rand")
    }
    assert {key: result.mean()[key] for key in means} == means
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False)) == result.as_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"z_range": (3, 6)},
        {"z_range": "3:6"},
        {"box": "3:6,2:19,5:"},
        {"box": Box((3, 0, 1), (6, 9, 9))},
    ],
)
def test_a_region_is_scored_as_if_cut_out(tmp_path, options):
    truth = blobs(2)
    found = disturbed(truth)
    result = score(write_pair(tmp_path, truth, found), **options)
    box = options.get("box", "3:6,:,:")
    cut = (box if isinstance(box, Box) else Box.parse(box, SHAPE)).slices
    for value, name in NAMES.items():
        expected = expected_scores(truth[cut], found[cut], value)
        assert result.as_dict()["classes"][name] == expected


def test_probabilities_are_used_at_their_best_threshold(tmp_path, client):
    truth = blobs(4)
    found = disturbed(truth)
    names = {1: "mitochondria (all)", 2: "z_discs"}
    volume = write_sample(tmp_path, np.zeros(SHAPE, np.uint8))
    write_sample(tmp_path, truth, labels="annotations", classes=names)
    write_sample(tmp_path, found, labels="classes", classes=names)
    noise = np.random.default_rng(6).integers(0, 120, SHAPE)
    soft = (np.where(np.roll(truth, 1, axis=1) == 1, 135, 0) + noise).astype(np.uint8)
    write_sample(volume.url, soft, labels="run7_p_mitochondria__all_")
    result = score(volume, probabilities="run7", client=client)
    expected = segmentation_scores(truth == 1, soft / 255)
    mitochondria, z_discs = result.classes
    assert mitochondria.objects == expected
    assert 0 < expected.v_rand_threshold < 1
    assert z_discs.objects == segmentation_scores(truth == 2, found == 2)
    assert result.warnings == (
        "z_discs has no probabilities: V_Rand and V_Info are of the classes",
    )
    assert mitochondria.confusion == score(volume).classes[0].confusion
    with pytest.raises(ValueError, match=r"other_p_<class>.*run7_p_mitochondria__all_"):
        score(volume, probabilities="other")


# ---------------------------------------------------------------------------------------------
# Which class is which


def labels(names: dict[int, str]) -> Volume:
    shape, size = (1, 2, 2), (1, 1, 1)
    return describe(
        "o.zarr", shape=shape, dtype="uint8", voxel_size_nm=size, labels="l", classes=names
    )


def test_classes_are_matched_by_name_then_value():
    partners = match_classes(labels({1: "a", 2: "b", 3: "c"}), labels({2: "a", 1: "b", 5: "d"}))
    assert [partners[value] for value in (1, 2, 3, 4, 5)] == [2, 1, None, 4, None]
    by_value = match_classes(labels({1: "a"}), labels({}))
    assert by_value == match_classes(labels({}), labels({2: "a"}))
    assert by_value == {value: value for value in range(1, 255)}
    with pytest.raises(ValueError, match=r"\['a'\].*\['b'\]"):
        match_classes(labels({1: "a"}), labels({1: "b"}))
    with pytest.raises(ValueError, match=r"1: 'a', 4: 'a'"):
        match_classes(labels({1: "a", 4: "a"}), labels({1: "a"}))


def test_values_may_differ_where_names_agree(tmp_path):
    truth = blobs(1)
    found = disturbed(truth)
    other = np.choose(found, [0, 7, 1]).astype(np.uint16)
    write_sample(tmp_path, np.zeros(SHAPE, np.uint8))
    write_sample(tmp_path, truth, labels="annotations", classes=NAMES)
    write_sample(
        tmp_path, other, labels="classes", classes={7: "mitochondria", 1: "z_discs"},
        colors={7: "#111111"},
    )  # fmt: skip
    result = score(tmp_path.as_posix())
    for value, name in NAMES.items():
        assert result.as_dict()["classes"][name] == expected_scores(truth, found, value)
    assert result.warnings == ()


def test_a_class_without_voxels_that_nobody_knows_is_not_told_as_missed(tmp_path):
    truth = np.ones(SHAPE, np.uint8)
    names = {1: "mitochondria", 4: "nucleus"}
    write_sample(tmp_path, np.zeros(SHAPE, np.uint8))
    write_sample(tmp_path, truth, labels="annotations", classes=names)
    write_sample(tmp_path, truth, labels="classes", classes={1: "mitochondria"})
    result = score(tmp_path.as_posix())
    assert result.warnings == ("nucleus has no voxel in 'annotations' within 0:11,0:20,0:24",)


def test_what_is_on_one_side_only_is_said(tmp_path):
    truth = blobs(1)
    truth[truth == 2] = 0
    found = disturbed(truth)
    found[found == 1] = 4
    found[0, 0, 0] = 4
    names = {1: "mitochondria", 2: "z_discs", 3: "nucleus"}
    write_sample(tmp_path, np.zeros(SHAPE, np.uint8))
    write_sample(tmp_path, truth, labels="annotations", classes=names)
    write_sample(tmp_path, found, labels="classes", classes={2: "z_discs", 3: "nucleus", 4: "fat"})
    result = score(tmp_path.as_posix())
    n_true, n_found = int((truth == 1).sum()), int((found == 4).sum())
    assert result.warnings == (
        f"'classes' does not know mitochondria: its {n_true} voxels are missed",
        "z_discs has no voxel in 'annotations' within 0:11,0:20,0:24",
        "z_discs has no voxel in 'classes' where there is truth",
        "nucleus has no voxel in 'annotations' within 0:11,0:20,0:24",
        "nucleus has no voxel in 'classes' where there is truth",
        f"'annotations' does not know fat: its {n_found} predicted voxels count as background",
    )
    scores = result.as_dict()["classes"]
    assert scores["mitochondria"]["f1"] == 0
    assert scores["z_discs"]["f1"] is None
    assert scores["z_discs"]["v_rand"] is None
    assert result.as_dict()["mean"]["f1"] == 0  # of the one class that has an F1
    assert result.table()[2][6] == "–"


# ---------------------------------------------------------------------------------------------
# What is not read


def test_slices_nobody_annotated_are_not_read(tmp_path, monkeypatch):
    truth = blobs(1)
    truth[:5] = truth[6:] = 255
    volume = write_pair(tmp_path, truth, disturbed(truth))
    monkeypatch.setattr(evaluate_module, "SLAB_SLICES", 1)
    asked = []

    def read_and_note(url, level, box):
        asked.append((level.path, box.start[0], box.stop[0]))
        return read_box(url, level, box)

    read_box = evaluate_module.read_box
    monkeypatch.setattr(evaluate_module, "read_box", read_and_note)
    first = score(volume)
    assert [part for part in asked if "classes" in part[0]] == [("labels/classes/0", 5, 6)]
    asked.clear()
    update_attributes(volume.label("annotations"), slices={"annotated": [5]})
    again = score(volume)
    assert asked == [("labels/annotations/0", 5, 6), ("labels/classes/0", 5, 6)]
    assert again.as_dict() == first.as_dict()
    assert again.warnings == first.warnings
    assert "10 of 11" in first.warnings[0]
    asked.clear()
    plan = evaluate(volume, dry_run=True)
    assert asked == []
    assert not isinstance(plan, Evaluation)
    assert (len(plan.grid), plan.read_bytes) == (11, 2 * truth.size)


# ---------------------------------------------------------------------------------------------
# The chart


def test_the_chart_is_drawn_and_the_same_every_time(tmp_path):
    truth = blobs(1)
    truth[truth == 2] = 0  # z_discs have no F1
    found = disturbed(truth)
    found[found == 2] = 0
    result = score(write_pair(tmp_path, truth, found))
    image = imagecodecs.png_decode(result.draw(tmp_path / "scores.png").read_bytes())
    color = bytes.fromhex(PALETTE[0].lstrip("#"))
    assert (image[..., :3] == np.frombuffer(color, np.uint8)).all(axis=-1).mean() > 0.05
    drawing = result.draw(tmp_path / "scores.svg").read_text()
    for text in ("mitochondria", "z_discs", "Jaccard", f"{result.mean()['f1']:.3f}", "n/a"):
        assert text in drawing
    assert result.draw(tmp_path / "again.svg").read_text() == drawing
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["again.svg", "o.zarr", "scores.png", "scores.svg"]
    with pytest.raises(ValueError, match=r"scores\.pdf"):
        result.draw(tmp_path / "scores.pdf")


# ---------------------------------------------------------------------------------------------
# Errors


def test_labels_that_do_not_fit_are_refused(tmp_path):
    truth = blobs(1)
    volume = write_pair(tmp_path, truth, truth)
    write_sample(volume.url, truth[:7], labels="short", classes=NAMES)
    write_sample(volume.url, truth, labels="coarse", classes=NAMES, voxel_size_nm=(40, 10, 12))
    with pytest.raises(ValueError, match=r"\(11, 20, 24\).*\(7, 20, 24\)"):
        evaluate(volume, prediction="short")
    with pytest.raises(ValueError, match=r"10\.0\) nm.*12\.0\) nm"):
        evaluate(volume, prediction="coarse")
    with pytest.raises(ValueError, match=r"short.*'absent'"):
        evaluate(volume, truth="absent")


def test_regions_that_do_not_fit_are_refused(tmp_path):
    volume = write_pair(tmp_path, blobs(1), blobs(1))
    with pytest.raises(ValueError, match=r"along z: '9:12'.*11"):
        evaluate(volume, z_range="9:12")
    with pytest.raises(ValueError, match=r"0:11,0:20,0:24.*0:1,0:1,0:25"):
        evaluate(volume, box=Box((0, 0, 0), (1, 1, 25)))
    with pytest.raises(ValueError, match=r"0:4.*0:1,:,:"):
        evaluate(volume, z_range="0:4", box="0:1,:,:")


def test_nothing_annotated_is_refused(tmp_path):
    truth = blobs(1)
    truth[:4] = 255
    volume = write_pair(tmp_path, truth, truth)
    with pytest.raises(ValueError, match=r"255.*0:4,0:20,0:24"):
        evaluate(volume, z_range=(0, 4))


def test_objects_are_no_classes(tmp_path):
    truth = blobs(1)
    volume = write_pair(tmp_path, truth, truth)
    objects = np.arange(truth.size, dtype=np.uint16).reshape(SHAPE)
    write_sample(volume.url, objects, labels="objects", classes=NAMES)
    with pytest.raises(BlocksFailed, match=r"labels/objects/0 holds 0 to 3839"):
        evaluate(volume, prediction="objects")


def test_a_slice_that_does_not_fit_a_worker_is_refused(tmp_path, monkeypatch):
    volume = write_pair(tmp_path, blobs(1), blobs(1))
    label = volume.label
    huge = replace(volume.label("classes").levels[0], shape=(11, 10**6, 10**6))

    def huge_label(self, name):
        return replace(label(name), levels=(huge,))

    monkeypatch.setattr(Volume, "label", huge_label)
    with pytest.raises(MemoryError, match=r"1, 1000000, 1000000"):
        evaluate(volume)
