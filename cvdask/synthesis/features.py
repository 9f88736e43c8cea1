"""What does a slice look like, in a few hundred numbers that are the same on every machine?

A network of random convolutions, never trained: its responses tell textures, widths and
neighbourhoods of classes apart, at one scale after another::

    slice   channel numbers R × R
      │     fractions of the channels
      ├──── 3 × 3 convolution, ReLU ───▶ mean and sd of each filter        scale 0
      ▼ 2 × 2 sums
      ├──── 3 × 3 convolution, ReLU ───▶ mean and sd of each filter        scale 1
      ▼ 2 × 2 sums …                                                until 3 × 3 no longer fits

Weights are -1, 0 or 1 and activations whole numbers below 2**15, so that every sum of products
stays below 2**24 and is exact in float32, in any order: the library that multiplies matrices
fastest gives the numbers that any other gives.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
from numba import njit
from threadpoolctl import threadpool_limits

from cvdask.engine.cluster import machine_limits

# Filters of the first scale, which has the most pixels, and of the others.
FIRST_FILTERS, FILTERS = 16, 32
# Every user's numbers, and those in print, are of this network.
KEY = 20469
LARGEST = 2**15 - 1
# Values of pixels are raised to this many, so that later divisions leave something.
GAIN = 8.0


def feature_blocks(resolution: int, n_channels: int) -> list[slice]:
    """Return which features are of one kind: shares of channels; means, and deviations, of a scale.

    >>> feature_blocks(8, 4)
    [slice(0, 4, None), slice(4, 20, None), slice(20, 36, None), slice(36, 68, None),
     slice(68, 100, None)]
    """
    blocks = [slice(0, n_channels)]
    for scale in range(len(_scale_sizes(resolution))):
        for _ in ("mean", "deviation"):
            start = blocks[-1].stop
            blocks.append(slice(start, start + (FILTERS if scale else FIRST_FILTERS)))
    return blocks


def slice_features(slices: np.ndarray, n_channels: int) -> np.ndarray:
    """Describe slices.

    Parameters
    ----------
    slices : (n, R, R) uint8
        Channel numbers.
    n_channels : int

    Returns
    -------
    (n, d) float64
        Fractions of the channels; then mean and standard deviation of each filter, scale by scale.

    Raises
    ------
    ValueError
        When slices are smaller than a filter, or hold numbers of no channel.

    References
    ----------
    Random features for judging generated images: Naeem et al. 2020, "Reliable fidelity and
    diversity metrics for generative models", section 4.
    """
    if slices.ndim != 3 or min(slices.shape[1:]) < 3:
        raise ValueError(
            f"slices are (n, R, R) with R of at least 3 pixels. Received: {slices.shape}"
        )
    if slices.size and int(slices.max()) >= n_channels:
        raise ValueError(
            f"channels are numbered 0 to {n_channels - 1}. Received: {int(slices.max())}"
        )
    found = np.empty((len(slices), feature_blocks(min(slices.shape[1:]), n_channels)[-1].stop))
    # A thread for each slice: they release the interpreter. Products this small are slowed down
    # tenfold by threads of their own that wait for one another on a machine with other work.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(machine_limits().cores) as threads:
        for number, row in enumerate(
            threads.map(partial(_describe, n_channels=n_channels), slices)
        ):
            found[number] = row
    return found


def _describe(picture: np.ndarray, n_channels: int) -> np.ndarray:
    counts = np.bincount(picture.ravel(), minlength=n_channels)
    described = [counts / picture.size]
    values = np.empty(0, np.float32)
    for scale in range(len(_scale_sizes(min(picture.shape)))):
        weights = _weights(scale, n_channels)
        if scale == 0:
            table = weights.reshape(9, n_channels, FIRST_FILTERS)
            response = _look_up(picture, table)  # ((Y - 2) (X - 2), F)
        else:
            response = _windows(values) @ weights
        sides = tuple(extent - 2 for extent in (picture.shape if scale == 0 else values.shape[:2]))
        pooled, total, squares = _finish(response, *sides, *_rescaling(scale, weights))
        mean = total / math.prod(sides)
        described += [mean, np.sqrt(np.maximum(squares / math.prod(sides) - mean**2, 0))]
        values = pooled
    return np.concatenate(described)


def _scale_sizes(resolution: int) -> list[int]:
    """List the sides of the images that are convolved.

    >>> _scale_sizes(32)
    [32, 15, 6]
    """
    sizes = []
    while resolution >= 3:
        sizes.append(resolution)
        resolution = (resolution - 2) // 2
    return sizes


@lru_cache(maxsize=64)
def _weights(scale: int, n_channels: int) -> np.ndarray:
    """Draw the filters of a scale: (9 C, F) float32 of -1, 0 and 1.

    From the bits of a counter-based generator, whose output is fixed by its publication.
    """
    n_in = n_channels if scale == 0 else FIRST_FILTERS if scale == 1 else FILTERS
    n_out = FILTERS if scale else FIRST_FILTERS
    bits = np.random.Philox(key=KEY + scale).random_raw(9 * n_in * n_out)
    return (bits % 3).astype(np.float32).reshape(9 * n_in, n_out) - 1


def _rescaling(scale: int, weights: np.ndarray) -> tuple[float, bool]:
    """Return what the pooled sums of a scale are multiplied by, and whether they are cut.

    A sum of 9 C random signs grows with the root of their number; dividing by a power of two and
    rounding down is exact.
    """
    if scale == 0:
        return GAIN, False
    return 0.5 ** round(math.log2(2 * math.sqrt(len(weights) * 2 / 3))), True


@njit(nogil=True, cache=True)
def _look_up(picture: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Convolve channels with filters: each of the 9 pixels of a window adds a row of a table."""
    height, width = picture.shape[0] - 2, picture.shape[1] - 2
    n_filters = table.shape[2]
    out = np.zeros((height * width, n_filters), np.float32)
    for y in range(height):
        for x in range(width):
            pixel = out[y * width + x]
            for k in range(9):
                row = table[k, picture[y + k // 3, x + k % 3]]
                for f in range(n_filters):
                    pixel[f] += row[f]
    return out


@njit(nogil=True, cache=True)
def _windows(values: np.ndarray) -> np.ndarray:
    """Lay the 3 × 3 windows of (Y, X, C) out as rows: ((Y - 2) (X - 2), 9 C)."""
    height, width, n = values.shape[0] - 2, values.shape[1] - 2, values.shape[2]
    rows = np.empty((height * width, 9 * n), np.float32)
    for y in range(height):
        for x in range(width):
            row = rows[y * width + x]
            for k in range(3):
                for i in range(3):
                    pixel = values[y + k, x + i]
                    at = (3 * k + i) * n
                    for c in range(n):
                        row[at + c] = pixel[c]
    return rows


@njit(nogil=True, cache=True)
def _finish(
    response: np.ndarray, height: int, width: int, factor: float, cut: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rectify, add up values and squares of each filter, and add up 2 × 2 pixels.

    Returns
    -------
    pooled : (Y // 2, X // 2, F) float32
        Times ``factor``; where ``cut``, rounded down and at most 2**15 - 1.
    total, squares : (F,) float64
    """
    n = response.shape[1]
    total, squares = np.zeros(n), np.zeros(n)
    pooled = np.zeros((height // 2, width // 2, n), np.float32)
    for y in range(height):
        for x in range(width):
            pixel = response[y * width + x]
            inside = y // 2 < pooled.shape[0] and x // 2 < pooled.shape[1]
            for f in range(n):
                value = max(pixel[f], np.float32(0))
                total[f] += value
                squares[f] += np.float64(value) * np.float64(value)
                if inside:
                    pooled[y // 2, x // 2, f] += value
    scale = np.float32(factor)
    largest = np.float32(LARGEST)
    for y in range(pooled.shape[0]):
        for x in range(pooled.shape[1]):
            for f in range(n):
                value = pooled[y, x, f] * scale
                pooled[y, x, f] = min(np.floor(value), largest) if cut else value
    return pooled, total, squares
