"""Scores: by hand, by brute force, and at the edges of their definitions."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import gaussian_filter
from skimage.segmentation import watershed

from cvdask.segmentation.metrics import (
    THRESHOLDS,
    Confusion,
    add_pairs,
    best_scores,
    confusion,
    count_pairs,
    score_slice,
    segmentation_scores,
    thin,
    v_info_thinned,
    v_rand_thinned,
)

# ---------------------------------------------------------------------------------------------
# Counts


def test_pairs_and_confusion_by_hand():
    truth = np.array([[0, 0, 1, 1], [2, 2, 1, 255]], np.uint8)
    found = np.array([[0, 1, 1, 1], [0, 9, 0, 1]], np.uint8)
    pairs = count_pairs(truth, found)
    assert pairs == {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 2, (2, 0): 1, (2, 9): 1}
    assert confusion(pairs, 1, 1) == Confusion(tp=2, fp=1, fn=1, tn=3)
    assert confusion(pairs, 2, 9) == Confusion(tp=1, fp=0, fn=1, tn=5)
    assert confusion(pairs, 2, None) == Confusion(tp=0, fp=0, fn=2, tn=5)
    assert confusion(pairs, 7, 7) == Confusion(tp=0, fp=0, fn=0, tn=7)


def test_scores_by_hand():
    assert Confusion(tp=6, fp=2, fn=4, tn=8).scores() == {
        "accuracy": 14 / 20,
        "sensitivity": 6 / 10,
        "specificity": 8 / 10,
        "ppv": 6 / 8,
        "npv": 8 / 12,
        "f1": 12 / 18,
        "jaccard": 6 / 12,
    }


@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        ((0, 0, 0, 0), {*Confusion(0, 0, 0, 0).scores()}),  # nothing annotated
        ((0, 0, 0, 5), {"sensitivity", "ppv", "f1", "jaccard"}),  # neither there nor predicted
        ((0, 0, 2, 5), {"ppv"}),  # not predicted
        ((0, 2, 0, 5), {"sensitivity"}),  # not there
        ((7, 0, 0, 0), {"specificity", "npv"}),  # everywhere in both
    ],
)
def test_a_score_without_voxels_is_not_a_number(counts, undefined):
    scores = Confusion(*counts).scores()
    assert {name for name, value in scores.items() if math.isnan(value)} == undefined


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 2, 254, 255])] * 2), min_size=1, max_size=40))
def test_counts_add_and_match_a_count_one_by_one(voxels):
    truth, found = (np.array(part, np.uint8) for part in zip(*voxels, strict=True))
    half = len(voxels) // 2
    parts = [count_pairs(truth[:half], found[:half]), count_pairs(truth[half:], found[half:])]
    expected = Counter(pair for pair in voxels if pair[0] != 255)
    assert add_pairs(parts) == count_pairs(truth, found) == expected
    for value in (1, 2, 254):
        counts = confusion(expected, value, value)
        assert counts.n_voxels == sum(expected.values())
        assert counts.tp + counts.fn == sum(t == value for t, _ in voxels)
        assert counts.tp + counts.fp == sum(t != 255 and p == value for t, p in voxels)


# ---------------------------------------------------------------------------------------------
# Objects, by hand


def row(*values: float) -> np.ndarray:
    return np.array([values])


EMPTY = -1  # τ = 1: no probability exceeds it


def test_thinning_leaves_one_voxel_between_objects():
    proposal = np.zeros((5, 7), bool)
    proposal[1, 1] = proposal[1:3, 5] = True
    np.testing.assert_array_equal(
        thin(proposal),
        [
            [1, 1, 1, 0, 2, 2, 2],
            [1, 1, 1, 0, 2, 2, 2],
            [1, 1, 1, 0, 2, 2, 2],
            [1, 1, 1, 0, 2, 2, 2],
            [1, 1, 1, 0, 2, 2, 2],
        ],
    )


def test_a_wide_border_costs_nothing():
    scores = score_slice(row(1, 1, 0, 1, 1), row(1, 0, 0, 0, 1))
    np.testing.assert_array_equal(scores[:, :EMPTY], 1)


def test_two_objects_that_became_one():
    # T: 2 and 2 voxels; S: one of 4. Pairs 2² + 2² = 8 of 4² = 16 and of 8; nothing known of T.
    scores = score_slice(row(1, 1, 0, 1, 1), row(1, 1, 1, 1, 1))
    np.testing.assert_array_equal(scores[0, :EMPTY], 16 / 24)
    np.testing.assert_array_equal(scores[1, :EMPTY], 0)
    # S: four alone. Pairs 4 of 4 and of 8; I = H(T) = ln 2, H(S) = ln 4.
    np.testing.assert_allclose(scores[:, EMPTY], [8 / 12, 2 / 3], rtol=1e-15)


def test_an_object_that_was_split_has_a_dam_for_a_part():
    # T: 5; S: 2, 2 and the dam. Pairs 4 + 4 + 1 = 9 of 9 and of 25; T tells nothing of S.
    scores = score_slice(row(1, 1, 1, 1, 1), row(1, 1, 0, 1, 1))
    np.testing.assert_array_equal(scores[0, :EMPTY], 18 / 34)
    np.testing.assert_array_equal(scores[:, EMPTY], [10 / 30, 0])
    np.testing.assert_array_equal(scores[1], 0)


def test_information_by_hand():
    # T: 4 and 2; S: 3, 1 and 2 (the dam lies on background): H(T) = ln 6 - (4 ln 4 + 2 ln 2) / 6.
    truth = row(1, 1, 1, 1, 0, 1, 1)
    scores = score_slice(truth, row(1, 1, 0, 1, 0, 1, 1))
    h_t = math.log(6) - (4 * math.log(4) + 2 * math.log(2)) / 6
    h_s = math.log(6) - (2 * math.log(2) + 2 * math.log(2)) / 6  # 2, dam, 1, 2: H(S, T) too
    assert scores[1, 0] == pytest.approx(2 * h_t / (h_t + h_s), rel=1e-14)
    assert scores[0, 0] == 2 * (4 + 1 + 1 + 4) / (4 + 1 + 1 + 4 + 16 + 4)


def test_a_threshold_is_exceeded_strictly_and_the_best_mean_wins():
    truth = np.array([[[1, 1, 0, 1, 1]], [[1, 0, 1, 0, 1]], [[0, 0, 0, 0, 0]]])
    bridge = np.array([[[0.9, 0.9, 0.3, 0.9, 0.9]], [[0.9, 0.6, 0.9, 0.6, 0.9]], [[1.0] * 5]])
    scores = segmentation_scores(truth, bridge)
    # Both bridges are gone from 0.6 on, where 0.6 > 0.6 is false; the third slice has no truth.
    assert (scores.v_rand, scores.v_rand_threshold, scores.n_slices) == (1.0, 0.6, 2)
    assert (scores.v_info, scores.v_info_threshold) == (1.0, 0.6)
    merged = segmentation_scores(truth[:1], np.where(bridge[:1] == 0.3, 0.9, bridge[:1]))
    assert merged.v_rand == 2 / 3


def test_quantised_probabilities_meet_the_thresholds_they_equal():
    # 51, 102, 153 and 204 of 255 are 0.2, 0.4, 0.6, 0.8 and do not exceed them.
    for quantum, threshold in ((51, 2), (102, 4), (153, 6), (204, 8)):
        probability = np.array([[1.0, quantum / 255, 1.0]])
        scores = score_slice(row(1, 0, 1), probability)
        assert scores[0, threshold - 1] == 2 * 2 / (4 + 2)  # still one object
        assert scores[0, threshold] == 1


# ---------------------------------------------------------------------------------------------
# Objects, at the edges


def test_no_truth_is_left_out_and_none_at_all_is_not_a_number():
    empty = np.zeros((2, 3, 3))
    assert score_slice(empty[0], empty[0]) is None
    scores = segmentation_scores(empty, empty)
    assert math.isnan(scores.v_rand)
    assert math.isnan(scores.v_info)
    assert scores.n_slices == best_scores([]).n_slices == 0
    both = np.concatenate([empty, np.ones((1, 3, 3))])
    assert v_rand_thinned(both, both) == 1.0


def test_no_prediction_leaves_every_voxel_alone():
    truth = np.zeros((1, 10, 10))
    truth[0, :4, :5] = truth[0, 6:, :5] = 1  # two objects of 20
    scores = segmentation_scores(truth, np.zeros_like(truth))
    assert scores.v_rand == 2 * 40 / (40 + 800)
    assert scores.v_info == pytest.approx(2 * math.log(2) / (math.log(40) + math.log(2)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 5)])
def test_one_object_everywhere(shape):
    everywhere = np.ones((1, *shape))
    assert v_rand_thinned(everywhere, everywhere) == 1.0
    assert v_info_thinned(everywhere, everywhere) == 1.0


def test_types_do_not_matter():
    truth = np.array([[[1, 1, 0, 1]], [[0, 1, 0, 1]]])
    found = np.array([[[1, 0, 0, 1]], [[1, 1, 1, 1]]])
    expected = segmentation_scores(truth, found)
    for kind in (bool, np.uint8, np.int64, np.float32, np.float64):
        assert segmentation_scores(truth.astype(kind), found.astype(kind)) == expected
    turned = np.asfortranarray(truth), np.asfortranarray(found)
    assert segmentation_scores(*turned) == expected


# ---------------------------------------------------------------------------------------------
# Objects, by brute force

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


@given(masks)
def test_thinning_is_the_watershed_of_scikit_image(proposal):
    thinned = thin(proposal)
    if not proposal.any():
        assert not thinned.any()
        return
    markers = np.where(proposal, thinned, 0)
    expected = watershed(~proposal, markers, connectivity=1, watershed_line=True)
    np.testing.assert_array_equal(thinned, expected)


@pytest.mark.parametrize("sigma", [0.5, 1, 2])
def test_thinning_is_the_watershed_of_scikit_image_on_smooth_objects(sigma):
    generator = np.random.default_rng(5)
    for share in np.linspace(0.6, 0.95, 100):
        noise = gaussian_filter(generator.random((40, 31)), sigma)
        proposal = noise > np.quantile(noise, share)
        thinned = thin(proposal)
        markers = np.where(proposal, thinned, 0)
        expected = watershed(~proposal, markers, connectivity=1, watershed_line=True)
        np.testing.assert_array_equal(thinned, expected)


def components_by_search(mask: np.ndarray) -> np.ndarray:
    """Label 4-connected components one voxel after the other."""
    labels = np.zeros(mask.shape, int)
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        label = labels.max() + 1
        waiting = [start]
        while waiting:
            y, x = waiting.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if not inside or not mask[y, x] or labels[y, x]:
                continue
            labels[y, x] = label
            waiting += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return labels


def score_by_pairs(truth: np.ndarray, proposal: np.ndarray) -> tuple[float, float]:
    """Compare two partitions by looking at every pair of voxels."""
    objects = components_by_search(truth)
    markers = components_by_search(proposal)
    flooded = watershed(~proposal, markers, connectivity=1, watershed_line=True)
    voxels = list(zip(*np.nonzero(truth), strict=True))
    t = [int(objects[v]) for v in voxels]
    s = [int(flooded[v]) or ("alone", v) for v in voxels] if proposal.any() else voxels
    pairs = list(product(range(len(voxels)), repeat=2))
    same_t = sum(t[a] == t[b] for a, b in pairs)
    same_s = sum(s[a] == s[b] for a, b in pairs)
    same = sum(t[a] == t[b] and s[a] == s[b] for a, b in pairs)

    def entropy(parts: list) -> float:
        shares = [count / len(parts) for count in Counter(parts).values()]
        return -math.fsum(share * math.log(share) for share in shares)

    h_t, h_s, h_st = entropy(t), entropy(s), entropy(list(zip(s, t, strict=True)))
    information = 2 * (h_s + h_t - h_st) / (h_s + h_t) if h_s + h_t > 1e-12 else 1.0
    return 2 * same / (same_s + same_t), information


@st.composite
def slices_and_probabilities(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=6))
    # Twentieths hit every threshold and the middle between two.
    twentieths = draw(arrays(np.int64, shape, elements=st.integers(0, 20)))
    return draw(arrays(bool, shape)), twentieths / 20


@given(slices_and_probabilities())
def test_scores_match_counting_every_pair(drawn):
    truth, probability = drawn
    by_slice = [
        [score_by_pairs(t, p > threshold) for threshold in THRESHOLDS]
        for t, p in zip(truth, probability, strict=True)
        if t.any()
    ]
    scores = segmentation_scores(truth, probability)
    assert scores.n_slices == len(by_slice)
    if by_slice:
        expected = np.mean(by_slice, axis=0).max(axis=0)  # mean over slices, then the best τ
        np.testing.assert_allclose([scores.v_rand, scores.v_info], expected, rtol=0, atol=1e-9)
        assert scores.v_rand == v_rand_thinned(truth, probability)
        assert scores.v_info == v_info_thinned(truth, probability)
        assert 0 <= scores.v_info <= 1 + 1e-12


# ---------------------------------------------------------------------------------------------
# Errors


def test_wrong_values_are_refused():
    good = np.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        segmentation_scores(good[0], good[0])
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 3, 3\)"):
        segmentation_scores(good, good[..., :3])
    with pytest.raises(ValueError, match=r"255.*uint8 from 0 to 204"):
        segmentation_scores(
            good, np.array([0, 204], np.uint8)[good.astype(int) * [[[0], [1], [1]]]]
        )
    with pytest.raises(ValueError, match=r"float64 from -0\.5 to -0\.5"):
        segmentation_scores(good, -0.5 * good)
    with pytest.raises(ValueError, match="nan"):
        segmentation_scores(good, np.nan * good)
    with pytest.raises(ValueError, match=r"from 3\.0 to 3\.0"):
        segmentation_scores(3 * good, good)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        count_pairs(np.zeros(3, np.uint8), np.zeros(2, np.uint8))
