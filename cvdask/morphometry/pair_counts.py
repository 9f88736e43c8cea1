"""How often do two voxels at a distance lie in the same class, or two neighbours in different ones?

1. :func:`pack_planes` writes a mask as bits, 64 voxels to a word, so that moving the mask along an
   axis is moving by whole rows of words.
2. :func:`count_lags` counts, for each distance along an axis, the pairs of voxels that are both in
   the mask, and those with all voxels between them in it too: the two-point correlation and the
   lineal path before they are divided.
3. :func:`count_values` counts voxels, :func:`count_neighbours` the pairs of unequal neighbours in
   each of the 13 directions.

All counts are integers and belong to the first voxel of the pair, or to the lowest corner of the
2 × 2 × 2 cell that both lie in: counts of blocks that overlap by what they look at add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvdask.compiled import compiled
from cvdask.morphometry.directions import DIRECTIONS

# Both ends of a step within a 2 × 2 × 2 cell: (13, 2, 3).
ENDS = np.stack([np.maximum(-DIRECTIONS, 0), np.maximum(DIRECTIONS, 0)], axis=1)
# Voxels that are compared at once: most such pieces of a label image hold no border.
PIECE = 64


def pack_planes(mask: np.ndarray, axis: int) -> np.ndarray:
    """Write a mask as bits, so that a step along an axis is a step by one row.

    Parameters
    ----------
    mask : (Z, Y, X) bool
    axis : int
        0, 1 or 2.

    Returns
    -------
    (planes, rows, words) uint64
        Rows run along ``axis``; bits beyond the last voxel of a row are 0.

    Examples
    --------
    >>> pack_planes(np.array([[[True, False], [True, True]]]), axis=1)
    array([[[1],
            [3]]], dtype=uint64)
    """
    # The last axis holds the bits, the one before the rows.
    order = {0: (1, 0, 2), 1: (0, 1, 2), 2: (0, 2, 1)}[axis]
    packed = np.packbits(mask.transpose(order), axis=2, bitorder="little")
    n_planes, n_rows, n_bytes = packed.shape
    padded = np.zeros((n_planes, n_rows, -(-n_bytes // 8) * 8), np.uint8)
    padded[..., :n_bytes] = packed
    return padded.view("<u8").astype(np.uint64, copy=False)


def count_lags(planes: np.ndarray, n_own: int, n_lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Count pairs of set voxels at each distance, and unbroken stretches.

    Parameters
    ----------
    planes : (planes, rows, words) uint64
        Of :func:`pack_planes`.
    n_own : int
        Pairs start in the first so many rows; they may end in any.
    n_lags : int
        Distances 0 to ``n_lags - 1``, in voxels.

    Returns
    -------
    pairs, stretches : (n_lags,) int64
        Pairs of which both voxels are set, and those of them with every voxel between them set.

    Examples
    --------
    >>> row = np.array([[[True, True, False, True]]])
    >>> count_lags(pack_planes(row, axis=2), n_own=4, n_lags=4)
    (array([3, 1, 1, 1]), array([3, 1, 0, 0]))
    """
    pairs, stretches = np.zeros((2, n_lags), np.int64)
    n_planes, n_rows, n_words = planes.shape
    flat = np.ascontiguousarray(planes).reshape(n_planes, n_rows * n_words)
    _count_lags(flat, n_words, min(n_own, n_rows), pairs, stretches)
    return pairs, stretches


@compiled()
def _bits(word: np.uint64) -> np.uint64:
    """Count the set bits of a word; the compiler knows this form and uses one instruction."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@compiled()
def _count_lags(
    planes: np.ndarray, n_words: int, n_own: int, pairs: np.ndarray, stretches: np.ndarray
) -> None:
    unbroken = np.empty(n_own * n_words, np.uint64)
    for p in range(planes.shape[0]):
        plane = planes[p]
        unbroken[:] = plane[: len(unbroken)]
        left = np.uint64(0)
        for i in range(len(unbroken)):
            left |= unbroken[i]
        if left == 0:
            continue
        for lag in range(len(pairs)):
            shift = lag * n_words
            n = min(len(unbroken), len(plane) - shift)
            if n <= 0:
                break
            both = np.uint64(0)
            for i in range(n):
                both += _bits(plane[i] & plane[i + shift])
            pairs[lag] += np.int64(both)
            if left:
                left = np.uint64(0)
                for i in range(n):
                    unbroken[i] &= plane[i + shift]
                    left += _bits(unbroken[i])
                stretches[lag] += np.int64(left)


# ---------------------------------------------------------------------------------------------
# Values and neighbours


def count_values(data: np.ndarray, n_values: int) -> np.ndarray:
    """Count the voxels of each value.

    Parameters
    ----------
    data : (Z, Y, X) uint8
        Values below ``n_values``.

    Returns
    -------
    (n_values,) int64

    Examples
    --------
    >>> count_values(np.array([[[0, 2, 2]]], "uint8"), 4)
    array([1, 0, 2, 0])
    """
    counts = np.zeros((4, n_values), np.int64)
    _count_values(data, counts)
    return counts.sum(axis=0)


@compiled()
def _count_values(data: np.ndarray, counts: np.ndarray) -> None:
    for z in range(data.shape[0]):
        for y in range(data.shape[1]):
            # Four counters each: a run of one value would wait for its own counter.
            for x in range(data.shape[2]):
                counts[x & 3, data[z, y, x]] += 1


def count_neighbours(data: np.ndarray, own: Sequence[int], n_values: int) -> np.ndarray:
    """Count the pairs of unequal neighbours in each of the 13 directions.

    Parameters
    ----------
    data : (Z, Y, X) uint8
        Values below ``n_values``; one voxel more than ``own`` where there is one.
    own : sequence of int
        Cells whose lowest corner lies in the first so many voxels are counted.
    n_values : int

    Returns
    -------
    (13, n_values, n_values) int64
        Of unordered pairs: the smaller value first; 0 elsewhere.

    Examples
    --------
    >>> counts = count_neighbours(np.array([[[0, 1], [1, 1]]], "uint8"), (1, 2, 2), 2)
    >>> [(DIRECTIONS[k].tolist(), int(counts[k, 0, 1])) for k in np.flatnonzero(counts[:, 0, 1])]
    [([0, 0, 1], 1), ([0, 1, 0], 1), ([0, 1, 1], 1)]
    """
    counts = np.zeros((len(DIRECTIONS), n_values, n_values), np.int64)
    whole = np.ascontiguousarray(data)
    for k in range(len(DIRECTIONS)):
        shape = pair_shape(data.shape, own, k)
        _count_unequal(whole, ENDS[k, 0], ENDS[k, 1], np.array(shape), counts[k])
    return np.triu(counts) + np.tril(counts, -1).transpose(0, 2, 1)


def pair_shape(shape: Sequence[int], own: Sequence[int], k: int) -> tuple[int, ...]:
    """Return how many pairs of a direction there are along each axis."""
    span = np.abs(DIRECTIONS[k]).tolist()
    return tuple(max(0, min(n, m - s)) for n, m, s in zip(own, shape, span, strict=True))


def neighbours(data: np.ndarray, own: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both voxels of every pair of a direction, as views of equal shape."""
    shape = pair_shape(data.shape, own, k)
    first, second = (
        data[tuple(slice(o, o + n) for o, n in zip(end, shape, strict=True))] for end in ENDS[k]
    )
    return first, second


@compiled()
def _count_unequal(
    data: np.ndarray, first: np.ndarray, second: np.ndarray, shape: np.ndarray, counts: np.ndarray
) -> None:
    for z in range(shape[0]):
        for y in range(shape[1]):
            one = data[z + first[0], y + first[1], first[2] : first[2] + shape[2]]
            other = data[z + second[0], y + second[1], second[2] : second[2] + shape[2]]
            for start in range(0, shape[2], PIECE):
                # Slices, whose indices are seen to be in range: many voxels are compared at once.
                a, b = one[start : start + PIECE], other[start : start + PIECE]
                different = np.uint8(0)
                for x in range(len(a)):
                    different |= a[x] ^ b[x]
                if different:
                    for x in range(len(a)):
                        if a[x] != b[x]:
                            counts[a[x], b[x]] += 1
