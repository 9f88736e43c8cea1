"""Directions: all there once, and each weighed by what is nearest to it."""

from __future__ import annotations

import numpy as np
import pytest

from cvdask.morphometry.directions import DIRECTIONS, direction_weights


def test_the_directions_are_all_there_once():
    steps = {tuple(step) for step in DIRECTIONS.tolist()}
    assert len(steps | {tuple(-v for v in step) for step in steps}) == 26


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (3.0, 2.0, 7.0)])
def test_weights_are_shares_of_all_directions(size):
    weights = direction_weights(size)
    assert weights.sum() == pytest.approx(0.5)
    points = np.random.default_rng(0).normal(size=(200_000, 3))
    units = DIRECTIONS * np.array(size)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    nearest = np.abs(points @ units.T).argmax(1)
    shares = np.bincount(nearest, minlength=13) / len(points) / 2
    np.testing.assert_allclose(weights, shares, atol=2e-3)
