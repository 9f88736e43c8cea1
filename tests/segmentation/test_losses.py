"""The loss: equal to NumPy's, blind where nobody has annotated, finite everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cvdask.segmentation.losses import LARGEST_WEIGHT, SegmentationLoss, balanced_weights
from cvdask.volume.colors import UNANNOTATED


def loss_of(loss: SegmentationLoss, target: np.ndarray, probabilities: np.ndarray) -> float:
    return float(loss(target[..., None], probabilities))


def by_numpy(target, probabilities, weights, dice, boundary) -> float:
    """The definition, voxel by voxel."""
    n_classes = probabilities.shape[-1]
    total = total_weight = 0.0
    for index in np.ndindex(target.shape):
        if target[index] == UNANNOTATED:
            continue
        b, y, x = index
        near = target[b, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        touches = len(set(near.ravel().tolist()) - {UNANNOTATED}) > 1
        weight = weights[target[index]] * (1 + boundary * touches)
        total -= weight * np.log(max(probabilities[index][target[index]], 1e-7))
        total_weight += weight
    known = target != UNANNOTATED
    overlaps = []
    for c in range(n_classes):
        truth = (target == c) & known
        if truth.any():
            p = probabilities[..., c][known]
            overlaps.append(2 * p[truth[known]].sum() / (truth.sum() + p.sum()))
    return (1 - dice) * total / total_weight + dice * (1 - np.mean(overlaps))


def test_a_case_by_hand():
    target = np.array([[[0, 1], [1, UNANNOTATED]]], np.uint8)
    background = np.array([[[0.5, 0.25], [0.5, 0.9]]])
    probabilities = np.stack([background, 1 - background], -1).astype(np.float32)
    # cross-entropy: (ln 2 + ln 4/3 + ln 2) / 3
    entropy = (2 * np.log(2) + np.log(4 / 3)) / 3
    # overlap: background 2·0.5 / (1 + 1.25), class 2·1.25 / (2 + 1.75)
    overlap = (1 / 2.25 + 2.5 / 3.75) / 2
    for dice in (0.0, 0.5, 1.0):
        expected = (1 - dice) * entropy + dice * (1 - overlap)
        assert loss_of(SegmentationLoss(2, dice=dice), target, probabilities) == pytest.approx(
            expected, rel=1e-5
        )


@given(
    st.integers(2, 4),
    st.floats(0, 1),
    st.sampled_from([0.0, 2.0]),
    st.integers(0, 1000),
)
def test_equal_to_numpy(n_classes, dice, boundary, seed):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, n_classes, (2, 5, 6)).astype(np.uint8)
    target = ndimage.zoom(target, (1, 2, 2), order=0)
    target[rng.random(target.shape) < 0.2] = UNANNOTATED
    target[0, 0, 0] = 0
    probabilities = rng.dirichlet(np.ones(n_classes), target.shape).astype(np.float32)
    weights = rng.uniform(0.5, 2, n_classes).tolist()
    loss = SegmentationLoss(n_classes, weights, dice=dice, boundary=boundary)
    expected = by_numpy(target, probabilities, weights, dice, boundary)
    assert loss_of(loss, target, probabilities) == pytest.approx(expected, rel=1e-4)


def test_what_is_not_annotated_does_not_matter():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, (2, 8, 8)).astype(np.uint8)
    target[:, 4:] = UNANNOTATED
    one, other = rng.dirichlet(np.ones(3), (2, *target.shape)).astype(np.float32)
    other[:, :4] = one[:, :4]
    loss = SegmentationLoss(3, boundary=1.0)
    assert loss_of(loss, target, one) == loss_of(loss, target, other)


@pytest.mark.parametrize("certain", [0.0, 1.0])
@pytest.mark.parametrize("value", [0, 1, UNANNOTATED])
def test_finite_and_bounded_at_the_extremes(value, certain):
    target = np.full((1, 4, 4), value, np.uint8)
    probabilities = np.empty((1, 4, 4, 2), np.float32)
    probabilities[..., 0], probabilities[..., 1] = certain, 1 - certain
    got = loss_of(SegmentationLoss(2), target, probabilities)
    right = value == UNANNOTATED or (value == 0) == bool(certain)
    assert got == pytest.approx(0.0 if right else 0.5 * -np.log(1e-7) + 0.5, abs=1e-4)


def test_a_class_that_the_batch_does_not_show_is_left_out_of_the_overlap():
    target = np.zeros((1, 4, 4), np.uint8)
    target[0, 0] = 1
    probabilities = np.zeros((1, 4, 4, 3), np.float32)
    probabilities[..., 0], probabilities[0, 0, :, 1], probabilities[0, 0, :, 0] = 1, 1, 0
    assert loss_of(SegmentationLoss(3, dice=1.0), target, probabilities) == pytest.approx(0)


def test_gradients_are_finite_also_without_annotation():
    tensorflow = pytest.importorskip("tensorflow")
    loss = SegmentationLoss(2, boundary=1.0)
    for value in (1, UNANNOTATED):
        logits = tensorflow.Variable(np.full((1, 4, 4, 2), 40.0, np.float32) * [1, -1])
        with tensorflow.GradientTape() as tape:
            probabilities = tensorflow.nn.softmax(logits)
            value_of = loss(np.full((1, 4, 4, 1), value, np.uint8), probabilities)
        assert np.isfinite(tape.gradient(value_of, logits).numpy()).all()


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"3 numbers.*\[1\.0, 2\.0\]"):
        SegmentationLoss(3, [1, 2])
    with pytest.raises(ValueError, match=r"-1\.0"):
        SegmentationLoss(2, [1, -1])
    with pytest.raises(ValueError, match=r"1\.5 and 0"):
        SegmentationLoss(2, dice=1.5)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=6).filter(any))
def test_weights_average_to_one_over_the_voxels_and_are_bounded(counts):
    weights = np.array(balanced_weights(counts))
    assert (weights * counts).sum() / sum(counts) == pytest.approx(1)
    assert weights.max() / weights.min() <= LARGEST_WEIGHT * (1 + 1e-9)
    order = np.argsort(counts)
    assert (np.diff(weights[order]) <= 1e-12).all()


def test_no_voxels_have_no_weights():
    with pytest.raises(ValueError, match=r"\[0, 0\]"):
        balanced_weights([0, 0])
