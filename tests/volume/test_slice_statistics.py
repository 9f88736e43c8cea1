"""Blank slices and outliers: found from sums that do not depend on how the stack was cut."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cvdask.volume.slice_statistics import STEP, SliceSums, find_suspects, sum_slices


def gather(stack: np.ndarray, cuts: list[int], skip: set[int] | None = None) -> SliceSums:
    """Sum a stack in slabs, each with the first slice of the next."""
    sums = SliceSums(len(stack))
    bounds = [0, *cuts, len(stack)]
    for first, stop in itertools.pairwise(bounds):
        slab = stack[first : min(stop + 1, len(stack))]
        sums.add(sum_slices(slab, first, stop - first, skip or set()).as_lists())
    return sums


def smooth_stack(n: int, seed: int = 0) -> np.ndarray:
    """Slices that change slowly: a pattern drifting along y, plus a little noise."""
    rng = np.random.default_rng(seed)
    pattern = rng.integers(40, 200, (60 + n, 50)).astype(np.uint8)
    slow = np.repeat(np.repeat(pattern, 2, axis=0), 2, axis=1)
    return np.stack([slow[z : z + 120] // 2 + rng.integers(0, 9, (120, 100)) for z in range(n)])


def test_correlations_equal_numpy_on_the_sampled_pixels():
    stack = smooth_stack(5)
    sampled = stack[:, ::STEP, ::STEP].reshape(5, -1).astype(float)
    expected = [np.corrcoef(sampled[z], sampled[z + 1])[0, 1] for z in range(4)]
    np.testing.assert_allclose(gather(stack, [2]).correlations(), expected, rtol=1e-9)


@given(st.sets(st.integers(1, 11)), st.sets(st.integers(0, 11), max_size=3))
def test_sums_do_not_depend_on_the_cuts(cuts, skip):
    stack = smooth_stack(12)
    whole, cut = gather(stack, [], skip), gather(stack, sorted(cuts), skip)
    for name in ("n", "total", "squares", "products", "low", "high"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cut, name))


def test_bands_of_rows_add_up():
    # Bands start at multiples of the sampling step here, so the same pixels are sampled.
    stack = smooth_stack(6)
    whole, banded = gather(stack, []), SliceSums(6)
    for band in (stack[:, : 8 * STEP], stack[:, 8 * STEP :]):
        banded.add(sum_slices(band, 0, 6).as_lists())
    np.testing.assert_array_equal(whole.products, banded.products)
    np.testing.assert_array_equal(whole.high, banded.high)


def test_blank_and_foreign_slices_are_found():
    stack = smooth_stack(14)
    stack[4] = 77
    stack[9] = np.random.default_rng(5).integers(0, 255, stack[9].shape)
    assert find_suspects(gather(stack, [3, 9])) == ([4], [9])


def test_a_sound_stack_has_no_suspects():
    assert find_suspects(gather(smooth_stack(14), [5])) == ([], [])


def test_skipped_slices_are_neither_blank_nor_outliers():
    stack = smooth_stack(14)
    stack[6] = 0
    sums = gather(stack, [6], {6})
    assert find_suspects(sums) == ([], [])
    assert np.isnan(sums.correlations()[[5, 6]]).all()
