"""How smoothly do slices change when the styles they are made from change?

A generator that has understood its slices moves, merges and thins shapes step by step; one that
has learned them by heart jumps from one to the next.

1. Pairs of styles are drawn, and a point on the straight line between them.
2. Slices are made at the point and a small step ε on, with the same noise. Probabilities are
   compared, not classes: a class changes at once or not at all.
3. Their squared difference over ε² is the length of a step of one style to the other; it is taken
   at every scale of 2 × 2 means, so that a shifted edge counts by the area that it sweeps, and
   averaged without the smallest and the largest 1 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cvdask.synthesis.generator import Generator

# Small beside 1, and still far above the rounding of float32.
EPSILON = 1e-3
# Of one seed, beside those of what is generated.
STREAM = 3
# Share that is left out at both ends, as in the paper.
TAIL = 0.01


def path_length(
    generator: Generator,
    *,
    places: tuple[float, float] = (0.0, 1.0),
    n_pairs: int = 200,
    seed: int = 0,
) -> float:
    """Return the perceptual path length of a generator, in the space of styles.

    Parameters
    ----------
    generator : Generator
    places : (float, float)
        Range that slices lie in.
    n_pairs : int
    seed : int

    Returns
    -------
    float
        Mean over pairs; 0 where a change of style changes nothing.

    References
    ----------
    Karras et al. 2019, "A style-based generator architecture for generative adversarial networks",
    section 4.1. Ours compares probabilities at several scales where theirs compares features of a
    network for photographs, and interpolates linearly, as theirs does between styles.
    """
    if n_pairs < 1:
        raise ValueError(f"at least one pair is compared. Received: {n_pairs}")
    chance = np.random.default_rng([seed, STREAM])
    n_latent = generator.architecture.n_latent
    lengths = []
    for first in range(0, n_pairs, generator.batch_size):
        n = min(generator.batch_size, n_pairs - first)
        latents = chance.standard_normal((2, n, n_latent), np.float32)
        where = chance.uniform(*places, n).astype(np.float32)
        share = chance.random((n, 1), np.float32)
        noise = chance.integers(0, 2**32, n, np.uint32)
        start, end = (generator.styles(one, where) for one in latents)
        here, there = (
            generator.synthesise(start + (end - start) * (share + step), noise)
            for step in (0.0, np.float32(EPSILON))
        )
        lengths.append(squared_difference(here, there) / EPSILON**2)
    low, high = np.quantile(found := np.concatenate(lengths), [TAIL, 1 - TAIL])
    return float(found[(found >= low) & (found <= high)].mean())


def squared_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compare probabilities (n, R, R, C) at all scales of 2 × 2 means: (n,) float64.

    The mean over pixels of the squared difference, summed over channels, averaged over scales.

    >>> corner = np.zeros((1, 2, 2, 1))
    >>> corner[0, 0, 0] = 1.0
    >>> squared_difference(corner, np.zeros((1, 2, 2, 1)))
    array([0.15625])
    """
    difference = first.astype(np.float64) - second
    scales = []
    while True:
        scales.append((difference**2).sum(axis=-1).mean(axis=(1, 2)))
        n, side, _, channels = difference.shape
        if side < 2:
            return np.mean(scales, axis=0)
        cells = difference.reshape(n, side // 2, 2, side // 2, 2, channels)
        difference = cells.mean(axis=(2, 4))
