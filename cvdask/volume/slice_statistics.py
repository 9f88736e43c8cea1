"""Which slices are blank, or do not look like their neighbours?

1. :func:`sum_slices` takes, from a regular sample of pixels, the sums that a correlation needs: of
   each slice, and of each slice with the next.
2. :class:`SliceSums` adds them up: slabs cut in rows add to the same numbers.
3. :func:`find_suspects` compares correlations: a slice that agrees with neither neighbour, where
   those of its stack usually do, is an outlier.

Integers stay integers, so the result does not depend on how the stack was cut.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Every 7th pixel both ways: enough for a correlation, cheap beside decoding, and no multiple of the
# periods that scanners and compressors leave.
STEP = 7
# An outlier's correlations lie this far below the stack's median, at least.
LEAST_DROP = 0.2


@dataclass(frozen=True)
class SlabSums:
    """Sums over the sampled pixels of consecutive slices.

    Parameters
    ----------
    first : int
        z of the first.
    n, total, squares : (Z,)
        Pixels sampled, and the sums of their values and squares. n is 0 for skipped slices.
    low, high : (Z,)
        Extremes.
    products : (Z,)
        Sum of the products with the next slice; 0 where either is skipped or there is none.
    """

    first: int
    n: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    products: np.ndarray

    def as_lists(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        arrays = {key: value.tolist() for key, value in vars(self).items() if key != "first"}
        return {"first": self.first, **arrays}


def sum_slices(data: np.ndarray, first: int, n_slices: int, skip: Collection[int] = ()) -> SlabSums:
    """Sum sampled pixels of a slab.

    Parameters
    ----------
    data : (Z, Y, X)
        Consecutive slices: those of the slab and, for the products, the one behind it if any.
    first : int
        z of the first.
    n_slices : int
        Slices of the slab itself, Z or Z - 1.
    skip : collection of int
        z of slices that hold nothing real.
    """
    sample = data[:, ::STEP, ::STEP].reshape(len(data), -1)
    exact = sample.astype(np.int64 if data.dtype.kind in "ui" else np.float64)
    good = np.array([first + k not in skip for k in range(len(data))])
    n = np.where(good, sample.shape[1], 0)
    pairs = good[:-1] & good[1:]
    products = np.zeros(len(data), exact.dtype)
    products[:-1][pairs] = np.einsum("ij,ij->i", exact[:-1][pairs], exact[1:][pairs])
    return SlabSums(
        first,
        *(
            sums[:n_slices]
            for sums in (
                n,
                np.where(good, exact.sum(axis=1), 0),
                np.where(good, np.einsum("ij,ij->i", exact, exact), 0),
                exact.min(axis=1),
                exact.max(axis=1),
                products,
            )
        ),
    )


class SliceSums:
    """Sums for all slices of a stack, added up from slabs.

    Parameters
    ----------
    n_slices : int
        Depth of the stack.
    """

    def __init__(self, n_slices: int) -> None:
        self.n = np.zeros(n_slices, np.int64)
        self.total = np.zeros(n_slices)
        self.squares = np.zeros(n_slices)
        self.products = np.zeros(n_slices)
        self.low = np.full(n_slices, np.inf)
        self.high = np.full(n_slices, -np.inf)

    def add(self, slab: Mapping[str, Any]) -> None:
        """Add what :meth:`SlabSums.as_lists` gives."""
        here = slice(slab["first"], slab["first"] + len(slab["n"]))
        self.n[here] += np.array(slab["n"], np.int64)
        for name in ("total", "squares", "products"):
            getattr(self, name)[here] += slab[name]
        self.low[here] = np.minimum(self.low[here], slab["low"])
        self.high[here] = np.maximum(self.high[here], slab["high"])

    def correlations(self) -> np.ndarray:
        """Correlate each slice with the next; NaN where one of them is skipped or constant.

        Returns
        -------
        (n_slices - 1,) float
        """
        n = np.where(self.n > 0, self.n, 1)
        mean = self.total / n
        variance = np.maximum(self.squares / n - mean**2, 0)
        both = (self.n[:-1] > 0) & (self.n[1:] > 0)
        spread = np.sqrt(variance[:-1] * variance[1:])
        both &= spread > 0
        covariance = self.products[:-1] / n[:-1] - mean[:-1] * mean[1:]
        return np.where(both, covariance / np.where(both, spread, 1), np.nan)


def find_suspects(sums: SliceSums) -> tuple[list[int], list[int]]:
    """Find blank slices, and slices unlike both neighbours.

    Returns
    -------
    blank, outliers : list of int
        z of constant slices; z of slices whose correlation with both neighbours lies far below what
        the stack's slices have (median minus the larger of 0.2 and six times the spread).
    """
    blank = np.flatnonzero((sums.n > 0) & (sums.low == sums.high))
    r = sums.correlations()
    known = r[np.isfinite(r)]
    if known.size < 4:  # too few to say what is usual
        return blank.tolist(), []
    median = np.median(known)
    spread = 1.4826 * np.median(np.abs(known - median))
    low = r < median - max(LEAST_DROP, 6 * spread)
    return blank.tolist(), (np.flatnonzero(low[:-1] & low[1:]) + 1).tolist()
