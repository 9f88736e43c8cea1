"""Jaccard distances on bits: against counting sets of pixels one class after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvdask.synthesis import jaccard
from cvdask.synthesis.jaccard import (
    PANEL_WORDS,
    count_common,
    distances,
    jaccard_matrix,
    pack,
    packed_shape,
)


def by_definition(slices: np.ndarray) -> np.ndarray:
    """1 − Σ |A ∩ B| / Σ |A ∪ B| over classes, pair by pair."""
    n = len(slices)
    found = np.zeros((n, n))
    values = np.unique(slices[slices > 0])
    for i in range(n):
        for j in range(n):
            shared = [np.sum((slices[i] == v) & (slices[j] == v)) for v in values]
            either = [np.sum((slices[i] == v) | (slices[j] == v)) for v in values]
            found[i, j] = 1 - sum(shared) / sum(either) if sum(either) else 0.0
    return found


def drawn(n: int, shape: tuple[int, int], n_classes: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    slices = generator.integers(0, n_classes + 1, (n, *shape))
    slices[generator.random(n) < 0.2] = 0
    return slices


def test_bits_by_hand():
    packed = pack(np.array([[[1, 2], [3, 0]], [[0, 0], [0, 2]]], "uint8"), 2, 3)
    assert packed.words.shape == packed_shape(2, 4, 2) == (1, 2, 2, 8)
    assert packed.words[0, :, :, 0].tolist() == [[0b101, 0b110], [0, 0b1000]]
    assert not packed.words[0, :, :, 1:].any()


@given(
    n=st.integers(1, 7),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    n_classes=st.integers(1, 5),
    kind=st.sampled_from(["bool", "uint8", "int8", "int16", "uint64"]),
    seed=st.integers(0, 100),
)
@example(n=5, shape=(100, 99), n_classes=3, kind="uint8", seed=0)
def test_distances_equal_their_definition(n, shape, n_classes, kind, seed):
    slices = drawn(n, shape, n_classes, seed).astype(kind)
    found = jaccard_matrix(slices)
    np.testing.assert_array_equal(found, by_definition(slices))
    assert found.dtype == np.float64


def test_more_pixels_than_a_panel_holds():
    side = 8 * (PANEL_WORDS // 8 + 1)
    slices = drawn(3, (side, 64), 3).astype(np.uint8)
    assert packed_shape(3, side * 64, 2)[0] > 1
    np.testing.assert_array_equal(jaccard_matrix(slices), by_definition(slices))


@pytest.mark.parametrize("kind", ["uint16", "int64"])
def test_any_values_are_classes(kind):
    slices = drawn(4, (20, 31), 400).astype(kind)
    slices[slices == 7] = 30_000
    if kind == "int64":
        slices[slices == 9] = -1  # background, as 0
    np.testing.assert_array_equal(jaccard_matrix(slices), by_definition(slices))


def test_all_sizes_of_blocks_give_the_same(monkeypatch):
    slices = drawn(23, (9, 14), 3).astype(np.uint8)
    expected = by_definition(slices)
    for block in (2, 6, 24):
        monkeypatch.setattr(jaccard, "BLOCK", block)
        np.testing.assert_array_equal(jaccard_matrix(slices, workers=2), expected)


def test_planes_without_a_bit_are_passed_over():
    a, b = drawn(2, (5, 30, 9), 2)
    # Classes 16 and 32 of 254 that there might be: two of eight planes.
    wide = [
        count_common(pack(x, len(x), 254), pack(y, len(y), 254))
        for x, y in [(16 * a, 16 * b), (0 * a, b)]
    ]
    a, b = a.astype(np.uint8), b.astype(np.uint8)
    np.testing.assert_array_equal(wide[0], count_common(pack(a, len(a), 2), pack(b, len(b), 2)))
    assert not wide[1].any()


def test_two_stacks_of_different_sizes():
    a, b = drawn(5, (6, 70), 3).astype(np.uint8), drawn(2, (6, 70), 3, 1).astype(np.uint8)
    common = count_common(pack(a, len(a), 3), pack(b, len(b), 3))
    expected = [[np.sum((x == y) & (x > 0)) for y in b] for x in a]
    assert common.tolist() == expected
    packed = pack(a, len(a), 3).select(slice(2, 5))
    assert count_common(packed, pack(b, len(b), 3)).tolist() == expected[2:]


def test_empty_and_equal_slices():
    slices = np.zeros((4, 3, 3), np.uint8)
    slices[2:, 1] = 5
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert jaccard_matrix(slices).tolist() == expected
    assert jaccard_matrix(slices[:1]).tolist() == [[0]]
    assert jaccard_matrix(slices[:0]).shape == (0, 0)
    assert jaccard_matrix(np.zeros((2, 0, 3), int)).tolist() == [[0, 0], [0, 0]]


def test_counts_are_whole_until_they_are_divided():
    common, n = np.array([[2**40 - 1]]), np.array([2**40])
    assert distances(common, n, n)[0, 0] == 1 - (2**40 - 1) / (2**40 + 1)


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (np.zeros((3, 3), int), r"\(3, 3\)"),
        (np.zeros((2, 3, 3)), "float64"),
        (np.array([[["a"]]]), "<U1"),
    ],
)
def test_what_is_no_stack_of_labels_is_refused(slices: Any, message: str):
    with pytest.raises(ValueError, match=message):
        jaccard_matrix(slices)
