"""Memorisation: copies are found out, honest slices are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.synthesis import memorisation as module
from cvdask.synthesis.memorisation import memorisation
from tests.synthesis.test_frechet import textures


def stack(n: int, seed: int = 0) -> np.ndarray:
    """A stack whose slices change slowly."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(n, 24, 24, 3))
    return gaussian_filter(noise, (4, 2, 2, 0)).argmax(-1).astype(np.uint8)


@given(st.integers(0, 100))
def test_nearest_by_pairs(seed):
    chance = np.random.default_rng(seed)
    slices = chance.integers(0, 3, (4, 6, 6), np.uint8)
    known = chance.integers(0, 3, (5, 6, 6), np.uint8)
    expected = [min((a != b).mean() for b in known) for a in slices]
    np.testing.assert_allclose(module._nearest(slices, known, 3), expected)


def test_copies_are_found_out():
    training = stack(200)
    honest = memorisation(stack(100, seed=1), training, 3)
    assert honest.passed
    assert honest.stand_in
    assert honest.generated == pytest.approx(honest.unseen, rel=0.1)
    copies = training[::4].copy()
    copies[:, 0, 0] = 0  # not to the last pixel
    found = memorisation(copies, training, 3)
    assert not found.passed
    assert found.suspects == 1
    assert found.generated < 0.01 < found.unseen
    assert found.as_dict()["passed"] is False


def test_unseen_slices_set_the_scale():
    training = textures(100)
    unseen = textures(50, seed=1)
    found = memorisation(textures(50, seed=2), training, 4, unseen=unseen)
    assert (found.n_unseen, found.stand_in, found.passed) == (50, False, True)
    assert found.unseen == pytest.approx(np.median(module._nearest(unseen, training, 4)))


def test_neighbours_in_the_stack_do_not_stand_in():
    training = stack(120)
    z = np.arange(120)
    found = module._nearest_apart(training, 3, z, np.zeros(120, int))
    expected = [
        min((training[a] != training[b]).mean() for b in range(120) if abs(a - b) >= 29)
        for a in range(0, 120, 17)
    ]
    np.testing.assert_allclose(found[::17], expected)
    # A neighbour would be much nearer.
    assert found.min() > 2 * (training[0] != training[1]).mean()
    two = module._nearest_apart(training, 3, z % 60, z // 60)
    assert two[0] <= min((training[0] != training[b]).mean() for b in range(60, 120))


def test_large_slices_are_compared_at_64_pixels():
    slices = textures(2, 8.0, side=192)
    assert module._reduced(slices).shape == (2, 64, 64)
    assert memorisation(slices, textures(20, 8.0, seed=1, side=192), 4).n_generated == 2


def test_empty_sets_are_refused():
    with pytest.raises(ValueError, match="0 and 3"):
        memorisation(textures(0), textures(3), 4)
