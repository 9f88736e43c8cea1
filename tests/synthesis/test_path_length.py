"""Path length: a generator in closed form has the length that it must have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cvdask.synthesis.path_length import path_length, squared_difference


class Line:
    """A generator whose probabilities are its style: a step of a style is a step of a slice."""

    batch_size = 16
    architecture = SimpleNamespace(n_latent=2)

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def styles(self, latents: np.ndarray, places: np.ndarray) -> np.ndarray:
        return latents

    def synthesise(self, style: np.ndarray, noise: np.ndarray) -> np.ndarray:
        flat = self.gain * style.astype(np.float64)[:, None, None, :]
        return np.broadcast_to(flat, (len(style), 4, 4, 2))


def test_a_line_has_the_length_of_its_ends():
    line: Any = Line(1.0)
    found = path_length(line, n_pairs=4000)
    # E‖a − b‖² of two normal points in the plane is 4; the largest 1 % are left out.
    assert 3.5 < found < 4.1
    assert path_length(Line(3.0), n_pairs=4000) == pytest.approx(9 * found, rel=1e-3)  # type: ignore[arg-type]
    assert path_length(Line(0.0), n_pairs=10) == 0  # type: ignore[arg-type]
    assert path_length(line, n_pairs=50, seed=1) != path_length(line, n_pairs=50)
    with pytest.raises(ValueError, match="Received: 0"):
        path_length(line, n_pairs=0)


def test_a_shift_counts_at_every_scale():
    edge = np.zeros((1, 8, 8, 1))
    edge[:, :, :4] = 1
    one, two = np.roll(edge, 1, 2), np.roll(edge, 2, 2)
    assert 0 < squared_difference(edge, one)[0] < squared_difference(edge, two)[0]
    # A checkerboard vanishes at coarser scales; an offset stays.
    board = np.indices((8, 8)).sum(0)[None, ..., None] % 2 - 0.5
    assert squared_difference(board, 0 * board)[0] == pytest.approx(0.25 / 4)
    assert squared_difference(0 * board + 0.5, 0 * board)[0] == pytest.approx(0.25)
