"""Masks are mirrored and shifted as a whole, by as much as is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from cvdask.synthesis.mask_augment import adapt, alter, draw

RANDOM = np.random.default_rng(0)


def slices(n=5, extent=16, channels=3):
    return RANDOM.integers(0, 2, (n, extent, extent, channels)).astype(np.float32)


def altered(x, drawn, probability):
    return ops.convert_to_numpy(alter(ops.convert_to_tensor(x), drawn, probability))


def test_nothing_is_done_at_probability_0():
    x = slices()
    np.testing.assert_array_equal(altered(x, draw(RANDOM, 5), 0.0), x)


def test_everything_drawn_is_done_at_probability_1():
    x = slices(n=4)
    drawn = {
        "chances": np.zeros((4, 3), np.float32),
        "flips": np.float32([[0, 0], [1, 0], [0, 1], [1, 1]]),
        "shifts": np.float32([[1, -1], [0, 0], [0.5, 0], [-1, 1]]),
    }
    found = altered(x, drawn, 1.0)
    for one, new, flips, shifts in zip(x, found, drawn["flips"], drawn["shifts"], strict=True):
        expected = one
        for axis in (0, 1):
            expected = np.flip(expected, axis) if flips[axis] else expected
            # Two voxels are the longest shift of 16; what comes in is a mirror image.
            wide = np.pad(
                expected, [(2, 2) if a == axis else (0, 0) for a in range(3)], "symmetric"
            )
            first = 2 - round(2 * shifts[axis])
            expected = wide.take(range(first, first + 16), axis)
        np.testing.assert_array_equal(new, expected)


def test_voxels_stay_of_one_class_and_slices_of_a_sample_stay_together():
    numbers = RANDOM.integers(0, 3, (6, 16, 16))
    one_hot = np.eye(3, dtype=np.float32)[numbers]
    found = altered(np.concatenate([one_hot, one_hot], -1), draw(RANDOM, 6), 1.0)
    np.testing.assert_array_equal(found[..., :3], found[..., 3:])
    assert set(np.unique(found)) == {0.0, 1.0}
    np.testing.assert_array_equal(found[..., :3].sum(-1), 1)


def test_each_alteration_is_as_frequent_as_the_probability():
    drawn = draw(np.random.default_rng(1), 4000)
    share = (drawn["chances"] < 0.3).mean(0)
    np.testing.assert_allclose(share, 0.3, atol=0.03)


@pytest.mark.parametrize(("sureness", "expected"), [(0.9, 0.52), (0.2, 0.48), (0.6, 0.5)])
def test_the_probability_follows_the_sureness(sureness, expected):
    found = adapt(0.5, np.float32(sureness), 10_000, target=0.6, pace=500_000)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_the_probability_stays_one():
    assert float(adapt(0.0, np.float32(0), 1e6, target=0.6, pace=500_000)) == 0
    assert float(adapt(1.0, np.float32(1), 1e6, target=0.6, pace=500_000)) == 1
