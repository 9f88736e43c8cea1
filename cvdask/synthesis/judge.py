"""How do generated slices compare with real ones while a generator is trained?

1. Latents, places and noise are drawn once, so that reports differ by the generator alone. Places
   are those of real slices.
2. :meth:`Judge.judge` makes the slices and returns their distance to real ones and the share of
   each class.
3. :meth:`Judge.draw` puts real and generated slices side by side into a picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from cvdask.synthesis.generator import Generator
from cvdask.synthesis.slices import SliceSet
from cvdask.volume.colors import PALETTE

# (N, R, R) uint8 channel numbers of generated slices to how far they are from real ones
Distance = Callable[[np.ndarray], float]

# Stream of chance beside those of the training's steps.
STREAM = 9
# Rows and columns of a picture, left real, right generated; and voxels between slices.
GRID = (4, 4)
GAP = 2
# By how much the share of a class may differ from the real one, which is taken for this at least.
TOLERATED, LEAST_SHARE = 0.1, 0.01


def score(
    distance: float | None, noise: float, fractions: Sequence[float], real: Sequence[float]
) -> float | None:
    """Return how far a generator is from the one to be kept; small is good.

    Noise of single voxels is meant to go, and doubles a distance; shapes that are clean and wrong
    are worse. A share that is off by twice what is tolerated doubles it as well.

    Parameters
    ----------
    distance : float, or None
    noise : float
        Share of the finest noise that is left.
    fractions, real : (C,) of float
        Shares of the channels in generated and in real slices.

    Examples
    --------
    >>> score(2.0, 0.0, [0.5, 0.5], [0.5, 0.5]), score(2.0, 1.0, [0.6, 0.4], [0.5, 0.5])
    (2.0, 8.0)
    """
    if distance is None:
        return None
    pairs = zip(fractions, real, strict=True)
    worst = max(abs(one - other) / max(other, LEAST_SHARE) for one, other in pairs)
    return distance * (1 + noise) * max(1.0, round(worst / TOLERATED, 9))


class Judge:
    """What a generator is compared with.

    Parameters
    ----------
    slices : SliceSet
    n_latent : int
        Numbers of a latent.
    n : int
        Slices to make.
    seed : int
    distance : callable, optional
    """

    def __init__(
        self, slices: SliceSet, n_latent: int, n: int, seed: int, distance: Distance | None
    ) -> None:
        random = np.random.default_rng((seed, STREAM))
        self.real, _ = slices.examples(n)  # (n', R, R) uint8
        self.n_channels = slices.n_channels
        self.distance = distance
        self._latents = random.standard_normal((n, n_latent), np.float32)
        self._seeds = random.integers(0, 2**32, n, np.uint32)
        self._places = slices.places(random.integers(0, slices.n_slices, n))
        self._colors = _colors(slices.values, slices.colors)

    @property
    def real_shares(self) -> list[float]:
        """Share of each channel in the real slices."""
        return shares(self.real, self.n_channels)

    def make(self, generator: Generator, n: int | None = None) -> np.ndarray:
        """Make slices: (n, R, R) uint8 channel numbers."""
        n = n or len(self._latents)
        made = []
        for first in range(0, n, generator.batch_size):
            rows = slice(first, min(first + generator.batch_size, n))
            made.append(
                generator.sample(self._latents[rows], self._places[rows], self._seeds[rows])
                .argmax(-1)
                .astype(np.uint8)
            )
        found = np.concatenate(made)
        factor = self.real.shape[1] // found.shape[1]
        return found.repeat(factor, 1).repeat(factor, 2)

    def judge(self, made: np.ndarray) -> tuple[float | None, list[float]]:
        """Return distance, if there is one, and the share of each channel."""
        distance = None if self.distance is None else float(self.distance(made))
        return distance, shares(made, self.n_channels)

    def draw(self, made: np.ndarray, path: Path) -> None:
        """Write a picture as PNG, at once: real slices on the left, generated on the right."""
        n = GRID[0] * GRID[1]
        picked = np.linspace(0, len(self.real) - 1, n).round().astype(int)
        real, new = (_tile(self._colors[one]) for one in (self.real[picked], made[:n]))
        between = np.full((len(real), 8 * GAP, 3), 255, np.uint8)
        picture = np.concatenate([real, between, new], axis=1)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(imagecodecs.png_encode(picture))
        os.replace(partial, path)


def shares(slices: np.ndarray, n_channels: int) -> list[float]:
    """Return the share of each channel.

    >>> shares(np.array([[[0, 1], [1, 1]]], np.uint8), 3)
    [0.25, 0.75, 0.0]
    """
    counts = np.bincount(slices.ravel(), minlength=n_channels)
    return [float(one) for one in counts / slices.size]


def _tile(slices: np.ndarray) -> np.ndarray:
    """Put (rows · columns, R, R, 3) colours into one picture, black between them."""
    rows, columns = GRID
    slices = np.resize(slices, (rows * columns, *slices.shape[1:]))
    framed = np.pad(slices, ((0, 0), (0, GAP), (0, GAP), (0, 0)))
    _, height, width, _ = framed.shape
    tiled = framed.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiled.reshape(rows * height, columns * width, 3)[:-GAP, :-GAP])


def _colors(values: Sequence[int], colors: Any) -> np.ndarray:
    """Return (channels, 3) uint8: background black, others their own or the palette's."""
    found = [(0, 0, 0)]
    for i, value in enumerate(values[1:]):
        text = colors.get(value, PALETTE[i % len(PALETTE)])
        red, green, blue = (int(text[k : k + 2], 16) for k in (1, 3, 5))
        found.append((red, green, blue))
    return np.array(found, np.uint8)
