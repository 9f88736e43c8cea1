"""What does a block know of an object, and how do two blocks add up what they know?

A *partial* is a row of integers. Rows of one object add up, in any order and from any blocks, to
the same row; floating point comes after the last addition (see ``shapes``)::

    key │ kind │ n Σz … Σyx │ bounds │ voxels by exposed faces │ cells by kind │ grey │ contacts
      1 │    1 │         10 │      6 │                       7 │            44 │    5 │ 3 a class

- The *key* of an object is the linear index, in the whole volume, of its first voxel in z, y, x
  order; of an object from an image of instances, its value.
- Moments are in voxels from the lower corner of the row's own bounds, so they stay small;
  :func:`merge_rows` shifts them to the corner of all bounds together, exactly.
- Rows that say something of an object's surface only have no voxels and empty bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cvdask.morphometry.configurations import N_KINDS_OF_CELL
from cvdask.morphometry.runs import N_MOMENTS
from cvdask.morphometry.surfaces import N_EXPOSURES

KEY, KIND = 0, 1
MOMENTS = slice(2, 2 + N_MOMENTS)
N_VOXELS = MOMENTS.start
BOUNDS = slice(MOMENTS.stop, MOMENTS.stop + 6)
EXPOSED = slice(BOUNDS.stop, BOUNDS.stop + N_EXPOSURES)
CELLS = slice(EXPOSED.stop, EXPOSED.stop + N_KINDS_OF_CELL)
# Bounds of nothing: the first pair that is met replaces them. Grey values may be negative.
LOWEST, HIGHEST = -(2**62), 2**62
# The columns of the intensity: sum, sum of squares in two digits of 32 bits, lowest, highest value.
N_GREY = 5
GREY_DIGIT = 2**32
# Squares of the moments, in the order of the moments: (zz, yy, xx, zy, zx, yx).
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Layout:
    """Which columns the rows have.

    Parameters
    ----------
    intensity : bool
        Sum, sum of squares, lowest and highest grey value. The sum of squares of a large object
        does not fit 64 bits: of each block's, the upper and the lower 32 bits are added up apart.
    n_contacts : int
        Classes whose faces shared with the object are counted, z, y, x.
    """

    intensity: bool = False
    n_contacts: int = 0

    @property
    def grey(self) -> slice:
        """Columns of the intensity."""
        return slice(CELLS.stop, CELLS.stop + N_GREY * self.intensity)

    @property
    def contacts(self) -> slice:
        """Columns of the contacts."""
        return slice(self.grey.stop, self.grey.stop + 3 * self.n_contacts)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.contacts.stop

    def empty(self, n: int) -> np.ndarray:
        """Return rows of objects of which nothing is known yet: (n, width) int64."""
        rows = np.zeros((n, self.width), np.int64)
        rows[:, BOUNDS] = (HIGHEST,) * 3 + (LOWEST,) * 3
        if self.intensity:
            rows[:, self.grey.stop - 2] = HIGHEST
            rows[:, self.grey.stop - 1] = LOWEST
        return rows


def shift_moments(moments: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return moments about an origin that lies ``by`` voxels lower.

    Parameters
    ----------
    moments : (N, 10) int64 or object
    by : (N, 3) of the same type

    Returns
    -------
    (N, 10) of the same type

    Examples
    --------
    >>> line = np.array([[2, 0, 0, 1, 0, 0, 1, 0, 0, 0]])  # voxels 0 and 1 along x
    >>> shift_moments(line, np.array([[0, 0, 3]]))[0, [0, 3, 6]]
    array([ 2,  7, 25])
    """
    shifted = moments.copy()
    n, first = moments[:, 0], moments[:, 1:4]
    for axis in range(3):
        shifted[:, 1 + axis] += n * by[:, axis]
    for column, (a, b) in enumerate(PAIRS, start=4):
        shifted[:, column] += (
            by[:, a] * first[:, b] + by[:, b] * first[:, a] + n * by[:, a] * by[:, b]
        )
    return shifted


def fit_int64(n: Any, extents: np.ndarray) -> np.ndarray:
    """Tell for which objects n² · extent² stays below 2⁶²: all that is computed from moments.

    Parameters
    ----------
    n : (N,) int64
    extents : (N, 3) int64
        Of their bounds.

    Returns
    -------
    (N,) bool
    """
    return n.astype(float) * extents.max(1, initial=0).astype(float) < 2.0**31


def merge_rows(rows: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Add up the rows of each object.

    Parameters
    ----------
    rows : (R, width) int64
    layout : Layout

    Returns
    -------
    merged : (N, width) int64
        One row per object by ascending key. Its moments hold no value where they are large.
    moments : (N, 10) object or int64
        Moments about the lower corner of the bounds; Python's integers where one object is so
        large that 64 bits would overflow.
    """
    rows = rows[np.argsort(rows[:, KEY], kind="stable")]
    if len(rows) == 0:
        return rows, rows[:, MOMENTS]
    first = np.flatnonzero(np.diff(rows[:, KEY], prepend=rows[0, KEY] - 1))
    sizes = np.diff(np.append(first, len(rows)))
    # Most objects lie within one block and have nothing to be added to.
    merged, moments = rows[first], rows[first, MOMENTS]
    several = sizes > 1
    if several.any():
        added, their_moments = _add_rows(rows[np.repeat(several, sizes)], sizes[several], layout)
        merged[several] = added
        if their_moments.dtype == object:
            moments = moments.astype(object)
        moments[several] = their_moments
    merged[:, N_VOXELS + 1 : MOMENTS.stop] = 0
    return merged, moments


def _add_rows(rows: np.ndarray, sizes: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Add up runs of rows, ``sizes`` of them each; see :func:`merge_rows`."""
    first = np.cumsum(sizes) - sizes
    merged = rows[first]
    merged[:, KIND] = np.maximum.reduceat(rows[:, KIND], first)
    lower, upper = slice(BOUNDS.start, BOUNDS.start + 3), slice(BOUNDS.start + 3, BOUNDS.stop)
    merged[:, lower] = np.minimum.reduceat(rows[:, lower], first, axis=0)
    merged[:, upper] = np.maximum.reduceat(rows[:, upper], first, axis=0)
    merged[:, EXPOSED.start :] = np.add.reduceat(rows[:, EXPOSED.start :], first, axis=0)
    if layout.intensity:
        low, high = layout.grey.stop - 2, layout.grey.stop - 1
        merged[:, low] = np.minimum.reduceat(rows[:, low], first)
        merged[:, high] = np.maximum.reduceat(rows[:, high], first)

    # Moments, about one origin per object.
    by = rows[:, lower] - np.repeat(merged[:, lower], sizes, axis=0)
    by[rows[:, N_VOXELS] == 0] = 0
    n = np.add.reduceat(rows[:, N_VOXELS], first)
    moments = rows[:, MOMENTS]
    if not fit_int64(n, merged[:, upper] - merged[:, lower]).all():
        moments, by = moments.astype(object), by.astype(object)
    moments = np.add.reduceat(shift_moments(moments, by), first, axis=0)
    merged[:, N_VOXELS] = n
    return merged, moments
