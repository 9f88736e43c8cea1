"""Which class does a cell of voxels become?

Slices are reduced by whole factors: a cell of f × f voxels is one pixel, of the class that most of
its voxels have. A mean of classes would be none.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Channel of values that have none.
ODD = 255


@njit(nogil=True, cache=True)
def vote(
    data: np.ndarray,
    rows: np.ndarray,
    table: np.ndarray,
    factor: int,
    out: np.ndarray,
    places: np.ndarray,
) -> int:
    """Make one pixel of each cell: the channel that most of its voxels have.

    Parameters
    ----------
    data : (Z, Y, X) uint8
        Label values; Y and X are multiples of ``factor``.
    rows : (n,) int
        Slices that are wanted.
    table : (256,) uint8
        Channel of each value; 255 for values that have none.
    factor : int
        Voxels of a cell's side.
    out : (m, Y / factor, X / factor) uint8
        Written at ``places``. The smallest of channels that are equally frequent.
    places : (n,) int
        Where in ``out`` each slice goes.

    Returns
    -------
    int
        The first row that holds a value without channel; -1 if none does.
    """
    counts = np.zeros(256, np.int64)
    for k in range(len(rows)):
        row = rows[k]
        for j in range(out.shape[1]):
            for i in range(out.shape[2]):
                # Most cells of a label image hold one value.
                first = data[row, j * factor, i * factor]
                same = True
                for y in range(j * factor, (j + 1) * factor):
                    for x in range(i * factor, (i + 1) * factor):
                        same = same and data[row, y, x] == first
                if same:
                    best = table[first]
                    if best == 255:
                        return row
                    out[places[k], j, i] = best
                    continue
                low, high = 255, 0
                for y in range(j * factor, (j + 1) * factor):
                    for x in range(i * factor, (i + 1) * factor):
                        channel = table[data[row, y, x]]
                        counts[channel] += 1
                        low, high = min(low, channel), max(high, channel)
                if high == 255:
                    return row
                best = low
                for channel in range(low, high + 1):
                    if counts[channel] > counts[best]:
                        best = channel
                counts[low : high + 1] = 0
                out[places[k], j, i] = best
    return -1
