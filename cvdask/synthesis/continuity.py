"""How alike are slices that lie ``k`` apart, and are they so in a real stack?

J(k) is the mean Jaccard distance of slices ``k`` apart. It is small and grows slowly where a volume
is continuous in z; a real stack says how slowly it should.

1. :func:`mean_distances` takes J(k) from the distances of all pairs, in any order of the slices.
2. :func:`open_real` opens a real stack, cut and reduced as the slices were that it stands beside.
3. :func:`stack_distances` reads it once and compares each slice with those before it.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from cvdask.synthesis.jaccard import count_common, distances, pack
from cvdask.synthesis.slices import SliceSet, open_slices
from cvdask.volume.classes import named_values, open_classes
from cvdask.volume.store import Volume

# Slices apart that J(k) is told for.
N_LAGS = 32
# Slices of the real stack that are compared at once.
REAL_SLICES = 64


def mean_distances(
    distances: np.ndarray, order: np.ndarray | None = None, n_lags: int = N_LAGS
) -> list[float]:
    """Return J(k): the mean distance of slices that lie ``k`` apart, for k = 1, 2 …

    Parameters
    ----------
    distances : (n, n) float
    order : (n,) int, optional
        Slices in the order they lie; by default as they are.
    n_lags : int
        Largest ``k``; fewer where there are not so many slices.

    Examples
    --------
    >>> mean_distances(np.array([[0.0, 0.5, 1.0], [0.5, 0.0, 0.25], [1.0, 0.25, 0.0]]))
    [0.375, 1.0]
    """
    n = len(distances)
    placed = np.arange(n) if order is None else np.asarray(order)
    lags = range(1, min(n_lags, n - 1) + 1)
    return [math.fsum(distances[placed[:-k], placed[k:]]) / (n - k) for k in lags]


def open_real(real: Volume | str, labels: str, classes: Volume) -> SliceSet:
    """Open a real stack, cut to the squares and reduced to the voxel size of what it is beside.

    Parameters
    ----------
    real : Volume or str
        Its sample.
    labels : str
        Its label image.
    classes : Volume
        The label image that it is compared with; classes of the same names are compared.

    Raises
    ------
    ValueError
        When the slices are no squares of a power of two, the real ones are too small, or classes
        are absent.
    """
    _, height, width = classes.shape
    if height != width or height < 4 or height & (height - 1):
        raise ValueError(
            f"a real stack is cut to the squares that a network sees, whose side is a power of two "
            f"from 4. Received: slices of {height} × {width}; leave the real stack out"
        )
    image = open_classes(real, labels)
    assert image.voxel_size_nm is not None
    assert classes.voxel_size_nm is not None
    with warnings.catch_warnings():
        # What it warns of concerns a training.
        warnings.simplefilter("ignore", UserWarning)
        return open_slices(
            real,
            labels,
            classes=[name for value, name in named_values(classes).items() if value] or None,
            resolution=height,
            reduction=max(1, round(classes.voxel_size_nm[1] / image.voxel_size_nm[1])),
            shuffle=False,
            keep_noisy=True,
        )


def stack_distances(slices: SliceSet, n_lags: int = N_LAGS) -> list[float]:
    """Return J(k) of slices as they lie in the store; NaN where no two are ``k`` apart.

    Slices that were left out have no part in it: those beside them stay two apart.
    """
    found: list[list[float]] = [[] for _ in range(n_lags)]
    held, numbers = np.empty((0, slices.resolution, slices.resolution), np.uint8), np.empty(0, int)
    for first in range(0, slices.n_slices, REAL_SLICES):
        new = np.arange(first, min(first + REAL_SLICES, slices.n_slices))
        held = np.concatenate([held, slices.read(new)])
        numbers = np.concatenate([numbers, new])
        stack = pack(held, len(held), slices.n_channels - 1)
        common = count_common(stack, stack)
        matrix = distances(common, np.diagonal(common), np.diagonal(common))
        z, volume = slices.z[numbers], slices.volume[numbers]
        lag = z[None, :] - z[:, None]
        valid = (volume[None, :] == volume[:, None]) & (numbers[None, :] >= first)
        for k in range(1, n_lags + 1):
            found[k - 1] += matrix[valid & (lag == k)].tolist()
        held, numbers = held[-n_lags:], numbers[-n_lags:]
    last = max((k for k, values in enumerate(found) if values), default=-1)
    return [math.fsum(v) / len(v) if v else math.nan for v in found[: last + 1]]
