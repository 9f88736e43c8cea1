"""Partials: rows add up to the same row, in any order and at any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.morphometry.partials import (
    BOUNDS,
    CELLS,
    EXPOSED,
    HIGHEST,
    KEY,
    KIND,
    LOWEST,
    MOMENTS,
    N_VOXELS,
    Layout,
    fit_int64,
    merge_rows,
    shift_moments,
)
from tests.morphometry.by_hand import moments_of


def row_of(points: np.ndarray, key: int, layout: Layout) -> np.ndarray:
    row = layout.empty(1)[0]
    row[KEY], row[KIND] = key, 1
    row[MOMENTS] = moments_of(points)
    row[BOUNDS] = [*points.min(0), *(points.max(0) + 1)]
    return row


def test_columns_follow_one_another():
    assert Layout().width == CELLS.stop == 2 + 10 + 6 + 7 + 44
    layout = Layout(intensity=True, n_contacts=3)
    assert (layout.grey.start, layout.contacts.start, layout.width) == (69, 74, 83)
    empty = layout.empty(2)
    assert empty[:, BOUNDS].tolist() == [[HIGHEST] * 3 + [LOWEST] * 3] * 2
    assert empty[0, layout.grey].tolist() == [0, 0, 0, HIGHEST, LOWEST]
    assert not layout.empty(2)[:, layout.contacts].any()


@given(st.data())
def test_moments_are_shifted(data):
    points = np.array(data.draw(st.lists(st.tuples(*[st.integers(0, 20)] * 3), min_size=1)))
    by = np.array(data.draw(st.tuples(*[st.integers(0, 10**6)] * 3)))
    anchored = np.vstack([[[0, 0, 0]], points])
    own = np.array([moments_of(anchored)], object)
    moved = np.vstack([[[0, 0, 0]], anchored + by])
    expected = np.array(moments_of(moved), object)
    expected[0] -= 1
    assert shift_moments(own, by[None].astype(object))[0].tolist() == expected.tolist()


@given(st.data())
def test_rows_add_up_in_any_order(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    layout = Layout(intensity=True, n_contacts=2)
    n_objects, expected, rows = data.draw(st.integers(1, 4)), [], []
    # Far apart enough that the moments of some objects need more than 64 bits.
    reach = data.draw(st.sampled_from([10, 10**4, 10**6]))
    for key in range(n_objects):
        pieces = [
            generator.integers(0, 9, (generator.integers(1, 6), 3))
            + generator.integers(0, reach, 3)
            for _ in range(generator.integers(1, 5))
        ]
        own = np.array([row_of(piece, key, layout) for piece in pieces])
        own[:, EXPOSED.start : layout.grey.start] = generator.integers(0, 9, (len(own), 51))
        own[:, layout.grey] = generator.integers(-9, 9, (len(own), 5))
        own[:, layout.contacts] = generator.integers(0, 9, (len(own), 6))
        surface = layout.empty(1)[0]
        surface[KEY], surface[EXPOSED.start] = key, 5
        points = np.concatenate(pieces)
        total = own.sum(0)
        total[EXPOSED.start] += 5
        total[KEY], total[KIND] = key, 1
        total[BOUNDS] = [*points.min(0), *(points.max(0) + 1)]
        total[layout.grey.stop - 2] = own[:, layout.grey.stop - 2].min()
        total[layout.grey.stop - 1] = own[:, layout.grey.stop - 1].max()
        expected.append((total, moments_of(points)))
        rows += [*own, surface]
    merged, moments = merge_rows(generator.permutation(np.array(rows)), layout)
    for row, sums, (total, their_sums) in zip(merged, moments, expected, strict=True):
        assert [int(m) for m in sums] == their_sums
        others = np.r_[KEY, KIND, N_VOXELS, BOUNDS.start : layout.width]
        assert row[others].tolist() == total[others].tolist()
        assert not row[N_VOXELS + 1 : MOMENTS.stop].any()


def test_no_rows():
    merged, moments = merge_rows(Layout().empty(0), Layout())
    assert (merged.shape, moments.shape) == ((0, Layout().width), (0, 10))


def test_an_object_of_a_million_voxels_a_side():
    """A frame of blocks as far apart as can be; 64 bits would overflow."""
    layout, n, far = Layout(), 2**24, 10**6 - 256
    along = np.arange(256)
    total, squares = int(along.sum()), int((along**2).sum())
    block = [n, *[total * 2**16] * 3, *[squares * 2**16] * 3, *[total * total * 256] * 3]
    corners = np.array([(z, y, x) for z in (0, far) for y in (0, far) for x in (0, far)])
    rows = layout.empty(8)
    rows[:, KEY], rows[:, MOMENTS] = 7, block
    rows[:, BOUNDS] = np.concatenate([corners, corners + 256], axis=1)
    merged, moments = merge_rows(rows, layout)
    assert merged[0, BOUNDS].tolist() == [0, 0, 0, 10**6, 10**6, 10**6]
    assert moments.dtype == object
    zz = 8 * block[4] + 4 * (2 * far * block[1] + far**2 * n)
    zy = 8 * block[7] + 4 * 2 * far * block[1] + 2 * far**2 * n
    assert moments[0].tolist() == [
        8 * n, *[8 * block[1] + 4 * far * n] * 3, *[zz] * 3, *[zy] * 3
    ]  # fmt: skip
    assert moments[0, 0] * moments[0, 4] > 2**63


@pytest.mark.parametrize(
    ("n", "extent", "fits"), [(2**20, 2**10, True), (2**31, 1, False), (1, 2**31, False)]
)
def test_what_fits_64_bits(n, extent, fits):
    assert fit_int64(np.array([n]), np.array([[1, extent, 1]])).tolist() == [fits]
    # n Σaa − Σa Σa of that many voxels at the far end, at most.
    assert (n * n * extent**2 < 2**62) == fits
