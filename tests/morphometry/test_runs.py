"""Runs: rows cut up, and what touches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.morphometry.runs import (
    CONNECTIVITIES,
    NO_CLASS,
    add_moments,
    connect,
    find_root,
    find_runs,
    number,
    roots_of,
    unite,
)
from tests.morphometry.by_hand import class_volumes, components, moments_of, table_of


def painted(data: np.ndarray, connectivity: int, table: np.ndarray) -> np.ndarray:
    """Label a volume by its runs."""
    rows, start, stop, kind, _ = find_runs(data, table)
    parent = connect(rows, start, stop, kind, data.shape[1], connectivity)
    label, first = number(parent)
    assert np.array_equal(label[first], np.arange(len(first)))
    labels = np.zeros(data.shape, np.int64)
    for row in range(len(rows) - 1):
        for run in range(rows[row], rows[row + 1]):
            z, y = divmod(row, data.shape[1])
            labels[z, y, start[run] : stop[run]] = label[run] + 1
    return labels


def test_two_rows_on_the_page():
    data = np.array([[[0, 0, 1, 1, 1, 1, 0, 2, 2, 0], [0, 1, 1, 0, 0, 0, 0, 2, 0, 0]]], np.uint8)
    rows, start, stop, kind, n_absent = find_runs(data, table_of(1, 2))
    assert rows.tolist() == [0, 2, 4]
    assert start.tolist() == [2, 7, 1, 7]
    assert stop.tolist() == [6, 9, 3, 8]
    assert kind.tolist() == [1, 2, 1, 2]
    assert n_absent == 0
    parent = connect(rows, start, stop, kind, 2, 6)
    assert parent.tolist() == [0, 1, 0, 1]
    label, first = number(parent)
    assert (label.tolist(), first.tolist()) == ([0, 1, 0, 1], [0, 1])


def test_two_values_of_one_class_make_one_run():
    table = np.zeros(256, np.uint8)
    table[[4, 6]], table[5] = 1, 2
    _, start, stop, kind, _ = find_runs(np.array([[[4, 6, 6, 5, 4]]], np.uint8), table)
    assert (start.tolist(), stop.tolist(), kind.tolist()) == ([0, 3, 4], [3, 4, 5], [1, 2, 1])


def test_what_must_not_occur_is_counted_and_divides():
    table = table_of(1)
    table[9] = NO_CLASS
    _, start, _, _, n_absent = find_runs(np.array([[[1, 9, 9, 1], [9, 0, 0, 0]]], np.uint8), table)
    assert (start.tolist(), n_absent) == ([0, 3], 3)


def test_more_runs_than_were_expected():
    data = np.tile(np.array([1, 0], np.uint8), (3, 5, 200))
    rows, start, stop, _, _ = find_runs(data, table_of(1))
    assert rows.tolist() == list(range(0, 3001, 200))
    assert np.array_equal(start, np.tile(np.arange(0, 400, 2), 15))
    assert np.array_equal(stop, start + 1)


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@given(data=class_volumes(most=9, n_classes=3))
def test_components_equal_those_of_scipy(connectivity, data):
    expected = components(data, connectivity)
    np.testing.assert_array_equal(painted(data, connectivity, table_of(1, 2, 3)), expected)


@pytest.mark.parametrize(
    ("other", "joined"),
    [
        ((0, 0, 1), {6, 18, 26}), ((0, 1, 0), {6, 18, 26}), ((1, 0, 0), {6, 18, 26}),
        ((0, 1, 1), {18, 26}), ((0, 1, -1), {18, 26}), ((1, 0, 1), {18, 26}),
        ((1, 0, -1), {18, 26}),
        ((1, 1, 0), {18, 26}), ((1, -1, 0), {18, 26}),
        ((1, 1, 1), {26}), ((1, 1, -1), {26}), ((1, -1, 1), {26}), ((1, -1, -1), {26}),
        ((0, 0, 2), set()), ((1, 0, 2), set()), ((0, 2, 1), set()),
    ],
)  # fmt: skip
def test_neighbours_of_a_voxel(other, joined):
    data = np.zeros((5, 5, 5), np.uint8)
    data[2, 2, 2] = 1
    data[tuple(2 + step for step in other)] = 1
    for connectivity in CONNECTIVITIES:
        n = painted(data, connectivity, table_of(1)).max()
        assert n == (1 if connectivity in joined else 2)


@given(data=class_volumes(most=9))
def test_moments_equal_sums_over_voxels(data):
    rows, start, stop, kind, _ = find_runs(data, table_of(1, 2))
    label, first = number(connect(rows, start, stop, kind, data.shape[1], 26))
    moments = np.zeros((len(first), 10), np.int64)
    bounds = np.tile(np.array([99, 99, 99, -1, -1, -1]), (len(first), 1))
    add_moments(rows, start, stop, label, data.shape[1], moments, bounds)
    labels = components(data, 26)
    for own, box, n in zip(moments, bounds, range(1, labels.max() + 1), strict=True):
        points = np.argwhere(labels == n)
        # With a voxel at the origin, the lower corner is where moments are about.
        expected = np.array(moments_of(np.vstack([[[0, 0, 0]], points]))) - np.eye(10, dtype=int)[0]
        assert own.tolist() == expected.tolist()
        assert box.tolist() == [*points.min(0), *(points.max(0) + 1)]


def test_moments_of_long_rows():
    data = np.zeros((2, 1, 10**6), np.uint8)
    data[1] = 1
    rows, start, stop, _, _ = find_runs(data, table_of(1))
    moments, bounds = np.zeros((1, 10), np.int64), np.zeros((1, 6), np.int64)
    add_moments(rows, start, stop, np.zeros(1, np.int32), 1, moments, bounds)
    n = 10**6
    total, squares = n * (n - 1) // 2, (n - 1) * n * (2 * n - 1) // 6
    assert moments[0].tolist() == [n, n, 0, total, n, 0, squares, 0, total, 0]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19))))
def test_the_root_is_the_first_of_its_set(pairs):
    parent = np.arange(20)
    sets = {n: {n} for n in range(20)}
    for one, other in pairs:
        unite(parent, one, other)
        together = sets[one] | sets[other]
        sets |= dict.fromkeys(together, together)
    assert roots_of(parent).tolist() == [min(sets[n]) for n in range(20)]
    assert [find_root(parent, n) for n in range(20)] == [min(sets[n]) for n in range(20)]
