"""Pairs of voxels: against counting them one by one, and against areas that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.morphometry.directions import DIRECTIONS, direction_weights
from cvdask.morphometry.pair_counts import (
    ENDS,
    count_lags,
    count_neighbours,
    count_values,
    neighbours,
    pack_planes,
)
from tests.strategies import shapes


def volume(data: st.DataObject, n_values: int) -> np.ndarray:
    shape = data.draw(shapes(3, 3))
    generator = np.random.default_rng(data.draw(st.integers(0, 100)))
    return generator.integers(0, n_values, shape).astype(np.uint8)


def count_slowly(mask: np.ndarray, axis: int, n_own: int, n_lags: int) -> tuple[list[int], ...]:
    """Count pairs and unbroken stretches one voxel after the other."""
    pairs, stretches = [0] * n_lags, [0] * n_lags
    rows = np.moveaxis(mask, axis, -1).reshape(-1, mask.shape[axis])
    for row in rows.tolist():
        for start in range(min(n_own, len(row))):
            for lag in range(min(n_lags, len(row) - start)):
                pairs[lag] += row[start] and row[start + lag]
                stretches[lag] += all(row[start : start + lag + 1])
    return pairs, stretches


def test_bits_of_a_row_by_hand():
    mask = np.zeros((1, 2, 70), bool)
    mask[0, 1, [0, 3, 69]] = True
    assert pack_planes(mask, 0).tolist() == [[[0, 0]], [[2**0 + 2**3, 2**5]]]
    assert pack_planes(mask, 1).tolist() == [[[0, 0], [9, 32]]]
    rows = pack_planes(mask, 2)
    assert rows.shape == (1, 70, 1)
    assert np.flatnonzero(rows).tolist() == [0, 3, 69]


@given(st.data())
def test_lags_equal_counting_one_by_one(data):
    mask = volume(data, 3) > 0
    axis = data.draw(st.integers(0, 2))
    n_own, n_lags = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 15))
    pairs, stretches = count_lags(pack_planes(mask, axis), n_own, n_lags)
    assert (pairs.tolist(), stretches.tolist()) == count_slowly(mask, axis, n_own, n_lags)


@given(st.data())
def test_values_are_counted(data):
    numbers = volume(data, 5)
    expected = np.bincount(numbers.ravel(), minlength=6)
    assert count_values(numbers, 6).tolist() == expected.tolist()
    assert count_values(numbers[:, ::2, 1:], 6).sum() == numbers[:, ::2, 1:].size


def test_both_ends_of_a_step_lie_in_a_cell():
    assert (ENDS.min(), ENDS.max()) == (0, 1)
    np.testing.assert_array_equal(ENDS[:, 1] - ENDS[:, 0], DIRECTIONS)


@given(st.data())
def test_neighbours_equal_counting_one_by_one(data):
    numbers = volume(data, 4)
    counts = count_neighbours(numbers, numbers.shape, 4)
    expected = np.zeros_like(counts)
    for place in np.ndindex(numbers.shape):
        for k, step in enumerate(DIRECTIONS.tolist()):
            there = tuple(p + s for p, s in zip(place, step, strict=True))
            if all(0 <= p < n for p, n in zip(there, numbers.shape, strict=True)):
                a, b = sorted((numbers[place], numbers[there]))
                expected[k, a, b] += a != b
    np.testing.assert_array_equal(counts, expected)


@given(st.data())
def test_counts_of_two_parts_add_up(data):
    numbers = volume(data, 3)
    axis = data.draw(st.integers(0, 2))
    cut = data.draw(st.integers(1, numbers.shape[axis]))
    own = list(numbers.shape)
    own[axis] = cut
    rest = np.moveaxis(np.moveaxis(numbers, axis, 0)[cut:], 0, axis)
    parts = count_neighbours(numbers, own, 3)
    if rest.size:
        parts = parts + count_neighbours(rest, rest.shape, 3)
    np.testing.assert_array_equal(parts, count_neighbours(numbers, numbers.shape, 3))


def test_both_voxels_of_each_pair():
    numbers = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    k = DIRECTIONS.tolist().index([1, 0, -1])
    first, second = neighbours(numbers, (2, 2, 2), k)
    assert (first.ravel().tolist(), second.ravel().tolist()) == ([1, 3], [4, 6])


@pytest.mark.parametrize("spacing", [(10.0, 10.0, 10.0), (40.0, 10.0, 10.0)])
def test_the_area_of_a_ball(spacing):
    radius_um = 0.32
    reach = [math.ceil(1000 * radius_um / s) + 2 for s in spacing]
    grid = np.stack(np.meshgrid(*[np.arange(-n, n + 1) + 0.31 for n in reach], indexing="ij"), -1)
    distance = np.linalg.norm(grid * np.array(spacing) / 1000, axis=-1)
    ball = (distance <= radius_um).astype(np.uint8)
    weights = direction_weights(spacing)
    steps_um = np.linalg.norm(DIRECTIONS * spacing, axis=1) / 1000
    crossings = count_neighbours(ball, ball.shape, 2)[:, 0, 1]
    voxel = math.prod(spacing) / 1e9
    area = float((4 * weights / steps_um * crossings).sum()) * voxel
    assert area == pytest.approx(4 * math.pi * radius_um**2, rel=0.02)
