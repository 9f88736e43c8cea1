"""How are few slices made more, without showing the generator what no muscle looks like?

A discriminator that has seen every slice remembers them. Real and generated slices are altered
alike before it sees them, each with a probability that follows how sure it is (Karras et al. 2020,
adaptive discriminator augmentation). Of the published alterations we keep those that leave labels
labels and muscle its direction: mirror images, and shifts by whole voxels.

1. :func:`draw` draws, per sample, what would be done, on the host.
2. :func:`alter` does it with the present probability, by products with permutations of rows and of
   columns, which can be differentiated as often as one likes.
3. :func:`adapt` moves the probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

# Shifts reach this share of a slice; what leaves on one side is mirrored in on the other.
LONGEST_SHIFT = 0.125


def draw(random: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Draw what would be done to each of ``n`` samples.

    Returns
    -------
    dict of str to array
        ``chances`` (n, 3) for flips along y and x and for the shift, 0 to 1; ``flips`` (n, 2), 0 or
        1; ``shifts`` (n, 2), −1 to 1. All float32.
    """
    return {
        "chances": random.random((n, 3), np.float32),
        "flips": random.integers(0, 2, (n, 2)).astype(np.float32),
        "shifts": random.uniform(-1, 1, (n, 2)).astype(np.float32),
    }


def alter(slices: Any, drawn: Mapping[str, Any], probability: Any) -> Any:
    """Mirror and shift samples.

    Parameters
    ----------
    slices : (N, R, R, C)
        All slices of a sample are altered alike.
    drawn : mapping of str to array
        From :func:`draw`.
    probability : number
        Of each alteration.

    Returns
    -------
    (N, R, R, C)
    """
    done = ops.cast(drawn["chances"] < probability, "float32")  # (N, 3)
    extent = slices.shape[1]
    shifts = ops.round(drawn["shifts"] * (LONGEST_SHIFT * extent)) * done[:, 2:]
    flips = drawn["flips"] * done[:, :2]
    rows, columns = (_permutation(flips[:, i], shifts[:, i], extent) for i in (0, 1))  # (N, R, R)
    n, _, _, n_channels = slices.shape
    flat = ops.reshape(slices, (n, extent, extent * n_channels))
    turned = ops.reshape(ops.matmul(rows, flat), (n, extent, extent, n_channels))
    return ops.matmul(columns[:, None], turned)


def _permutation(flip: Any, shift: Any, extent: int) -> Any:
    """Say which row each row comes from: (N, extent, extent), one 1 in every row."""
    rows = np.arange(extent, dtype=np.float32)
    source = rows - shift[:, None]
    # Mirrored at the edges: −1 is 0, and extent is extent − 1.
    source = ops.where(source < 0, -1 - source, source)
    source = ops.where(source > extent - 1, 2 * extent - 1 - source, source)
    source = ops.where(flip[:, None] > 0.5, extent - 1 - source, source)
    return ops.one_hot(ops.cast(source, "int32"), extent, dtype="float32")


def adapt(probability: Any, sureness: Any, n_images: Any, *, target: float, pace: float) -> Any:
    """Move the probability towards where the discriminator is as sure as it should be.

    Parameters
    ----------
    probability : number
        Present, 0 to 1.
    sureness : number
        Mean sign of the scores of real slices, −1 to 1.
    n_images : number
        Slices since the last move.
    target : float
        Sureness to be reached.
    pace : float
        Images over which the probability moves from 0 to 1.
    """
    step = ops.sign(sureness - target) * (n_images / pace)
    return ops.clip(probability + step, 0.0, 1.0)
