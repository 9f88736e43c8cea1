"""Crops: rare classes are shown often, and a training that goes on sees the same ones."""

from __future__ import annotations

import numpy as np
import pytest

from cvdask.segmentation.crops import CropPlan, batches, choose_crop, positions
from cvdask.volume.colors import UNANNOTATED


def plan(**changes) -> CropPlan:
    usual = {"n_classes": 3, "size": 16, "batch_size": 2, "n_steps": 3, "epochs": 4, "key": (7, 1)}
    return CropPlan(**{**usual, **changes})


def patches(n: int = 3, size: int = 48) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        target = np.zeros((size, size), np.uint8)
        target[:, ::3] = 1
        target[0, :5] = UNANNOTATED
        if i == 1:
            target[30:33, 40:43] = 2  # 9 of 6912 voxels
        made.append((rng.standard_normal((size, size), dtype=np.float32), target))
    return made


def test_positions_are_those_of_the_class():
    data = patches()
    ((i, found),) = positions(data, 2)
    assert i == 1
    assert {tuple(p) for p in found.tolist()} == {
        (y, x) for y in range(30, 33) for x in range(40, 43)
    }
    assert [i for i, _ in positions(data, 0)] == [0, 1, 2]


def test_many_positions_are_thinned_out():
    target = np.zeros((100, 100), np.uint8)
    ((_, found),) = positions([(np.zeros((100, 100), np.float32), target)], 0)
    assert 2000 < len(found) <= 4096
    assert found.max(0).min() > 90


@pytest.mark.parametrize(("balanced", "low", "high"), [(True, 0.12, 0.3), (False, 0.0, 0.08)])
def test_a_class_of_one_voxel_in_a_thousand_is_in_a_sixth_of_the_crops(balanced, low, high):
    data = patches()
    options = plan(balanced=balanced, augmented=False, n_steps=300, epochs=1)
    shown = np.concatenate([(t == 2).any((1, 2, 3)) for _, t in batches(data, options)])
    assert low <= shown.mean() <= high


def test_crops_that_show_a_class_do_not_always_show_it_in_the_middle():
    data = patches()
    places = [positions(data, 2)]
    rng = np.random.default_rng(0)
    centers = np.array(
        [c for i, c in (choose_crop(data, places, plan(), rng) for _ in range(400)) if i == 1]
    )
    assert np.ptp(centers[:, 0]) > 6


@pytest.mark.parametrize("augmented", [True, False])
def test_batches_have_their_shapes_and_go_on_where_they_were(augmented):
    data, options = patches(), plan(augmented=augmented)
    everything = list(batches(data, options))
    assert len(everything) == 12
    for images, targets in everything:
        assert (images.shape, images.dtype) == ((2, 16, 16, 1), np.float32)
        assert (targets.shape, targets.dtype) == ((2, 16, 16, 1), np.uint8)
    later = list(batches(data, options, first_epoch=2))
    assert len(later) == 6
    for ours, theirs in zip(later, everything[6:], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
    assert not np.array_equal(everything[0][0], everything[3][0])  # another epoch, other crops
