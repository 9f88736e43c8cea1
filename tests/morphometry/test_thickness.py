"""Local thickness: against balls laid one by one, in any block, and for shapes that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.morphometry.thickness import TOLERANCE, count_thick, halo, squared_distance


def whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)


def far(shape, place, spacing, *, half: bool) -> np.ndarray:
    """Squared distance of every voxel to one voxel, as a box or as a point."""
    steps = np.abs(np.indices(shape) - np.reshape(place, (3, 1, 1, 1))) - (0.5 if half else 0)
    steps = np.maximum(steps, 0) * np.reshape(spacing, (3, 1, 1, 1))
    return (steps**2).sum(axis=0)


def lay_balls(mask, other, spacing, diameters) -> np.ndarray:
    """Find the largest diameter of the ladder at each voxel, ball by ball; 0 for none."""
    surface = np.full(mask.shape, np.inf)
    for place in np.argwhere(other):
        surface = np.minimum(surface, far(mask.shape, place, spacing, half=True))
    thickness = np.zeros(mask.shape)
    for diameter in diameters:
        for place in np.argwhere(mask & (surface >= (diameter / 2) ** 2 * (1 - TOLERANCE))):
            reached = far(mask.shape, place, spacing, half=False)
            thickness[mask & (reached <= (diameter / 2) ** 2 * (1 + TOLERANCE))] = diameter
    return thickness


@given(
    seed=st.integers(0, 50),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (2.5, 1.0, 0.7)]),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
)
def test_balls_are_laid_as_one_by_one(seed, spacing, shape):
    generator = np.random.default_rng(seed)
    kinds = generator.choice(3, shape, p=(0.75, 0.15, 0.1))  # class, other, not known
    mask, other = kinds == 0, kinds == 1
    diameters = (0.5, 1.5, 2.0, 3.1, 4.0)
    thickness = lay_balls(mask, other, spacing, diameters)
    expected = [[int((part >= d).sum()) for d in diameters] for part in thickness]
    assert count_thick(mask, other, whole(shape), spacing, diameters).tolist() == expected


@given(seed=st.integers(0, 50), cuts=st.tuples(*[st.integers(1, 11)] * 3))
def test_a_block_with_its_halo_counts_like_the_whole(seed, cuts):
    shape, spacing, diameters = (12, 13, 12), (0.05, 0.02, 0.02), (0.04, 0.08, 0.13)
    mask = np.random.default_rng(seed).random(shape) < 0.97
    around = halo(diameters[-1], spacing)
    sums = np.zeros((shape[0], len(diameters)), np.int64)
    sides = [((0, cut), (cut, n)) for cut, n in zip(cuts, shape, strict=True)]
    for corner in itertools.product(*sides):
        read = [
            (max(0, a - h), min(n, b + h))
            for (a, b), h, n in zip(corner, around, shape, strict=True)
        ]
        part = mask[tuple(slice(a, b) for a, b in read)]
        own = tuple(slice(a - r, b - r) for (a, b), (r, _) in zip(corner, read, strict=True))
        z = slice(*corner[0])
        sums[z] += count_thick(part, ~part, own, spacing, diameters)
    np.testing.assert_array_equal(sums, count_thick(mask, ~mask, whole(shape), spacing, diameters))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_sheet_is_as_thick_as_it_is(axis):
    spacing = (0.04, 0.01, 0.01)
    mask = np.zeros((21, 21, 21), bool)
    inside = [slice(None)] * 3
    inside[axis] = slice(8, 13)  # 5 voxels
    mask[tuple(inside)] = True
    thickness = 5 * spacing[axis]
    ladder = tuple(np.array((0.25, 0.5, 1.0, 1.01)) * thickness)
    counts = count_thick(mask, ~mask, whole(mask.shape), spacing, ladder).sum(axis=0)
    assert counts[:3].tolist() == [mask.sum()] * 3
    assert counts[3] == 0


def test_distances_to_boxes_and_centres_by_hand():
    sources = np.zeros((3, 1, 3), bool)
    sources[0, 0, 0] = True
    found = squared_distance(sources, (2.0, 1.0, 1.0), 3.0, half=False)[:, 0]
    assert found.tolist() == [[0, 1, 4], [4, 5, 8], [np.inf, np.inf, np.inf]]
    found = squared_distance(sources, (2.0, 1.0, 1.0), 3.0, half=True)[:, 0]
    assert found.tolist() == [[0, 0.25, 2.25], [1, 1.25, 3.25], [9, 9.25, 11.25]]


def test_what_nobody_knows_limits_no_ball():
    mask = np.ones((5, 5, 5), bool)
    nothing = np.zeros_like(mask)
    assert count_thick(mask, nothing, whole(mask.shape), (1, 1, 1), (1, 50)).tolist() == (
        [[25, 25]] * 5
    )
    assert not count_thick(nothing, mask, whole(mask.shape), (1, 1, 1), (1, 50)).any()
