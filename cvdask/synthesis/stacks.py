"""How do slices go over into one another, in generated stacks and in real ones?

1. :func:`neighbour_distance`: the Jaccard distance of neighbouring slices, J(1). Independent
   slices are far apart, and a stack that stands still has 0.
2. :func:`extents`: how far connected components reach along z, class by class. A component counts
   by its voxels, so that specks do not decide.

Real stacks are cut to the depth of the generated ones before components are looked for: a cut ends
components, and both must be cut alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cc3d
import numpy as np

from cvdask.synthesis.slices import SliceSet

# Slices that are held at once.
HELD = 64


def neighbour_distance(slices: SliceSet) -> float:
    """Return the mean Jaccard distance of slices that lie one behind the other.

    J = 1 − Σ_c |A_c ∩ B_c| / Σ_c |A_c ∪ B_c| over the classes besides background; 0 where both
    are empty.

    Parameters
    ----------
    slices : SliceSet

    Returns
    -------
    float
        NaN where no slice has a neighbour.
    """
    total, n = 0.0, 0
    for first, stop in _runs(slices):
        for start in range(first, stop - 1, HELD - 1):
            held = slices.read(range(start, min(start + HELD, stop)))
            for a, b in pairwise(held):
                total += jaccard_distance(a, b)
                n += 1
    return total / n if n else float("nan")


def jaccard_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jaccard distance of two slices of channel numbers.

    >>> jaccard_distance(np.array([[0, 1, 1]]), np.array([[1, 1, 2]]))
    0.75
    """
    shared = int(np.count_nonzero((a == b) & (a > 0)))
    either = int(np.count_nonzero(a)) + int(np.count_nonzero(b)) - shared
    return 1 - shared / either if either else 0.0


def longest_run(slices: SliceSet) -> int:
    """Return the depth of the deepest stack without a gap."""
    return max(stop - first for first, stop in _runs(slices))


def extents(slices: SliceSet, depth: int, most: int) -> dict[str, float]:
    """Return how far components reach along z.

    Parameters
    ----------
    slices : SliceSet
    depth : int
        Slices of the stacks that components are looked for in.
    most : int
        Stacks, at most, spread over all there are.

    Returns
    -------
    dict of str to float
        For each class, the mean over its voxels of the slices that their component spans; NaN
        where it has none.
    """
    starts = [
        start for first, stop in _runs(slices) for start in range(first, stop - depth + 1, depth)
    ]
    picked = np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int))
    totals = {name: [0, 0] for name in slices.names[1:]}
    for start in (starts[k] for k in picked):
        stack = slices.read(range(start, start + depth))
        for channel, name in enumerate(slices.names[1:], start=1):
            n_voxels, spans = component_spans(stack == channel)
            totals[name][0] += int((n_voxels * spans).sum())
            totals[name][1] += int(n_voxels.sum())
    return {name: span / n if n else float("nan") for name, (span, n) in totals.items()}


def component_spans(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels and slices of each connected component of a mask: (k,) int64 both.

    Faces, edges and corners join voxels.
    """
    labels = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26)
    found = cc3d.statistics(labels)
    boxes = found["bounding_boxes"][1:]
    spans = [box[0].stop - box[0].start for box in boxes]
    return found["voxel_counts"][1:].astype(np.int64), np.array(spans, np.int64)


def _runs(slices: SliceSet) -> Iterator[tuple[int, int]]:
    """Yield first number, and one past the last, of stacks without a gap."""
    gaps = (np.diff(slices.z) != 1) | (np.diff(slices.volume) != 0)
    ends = [0, *(np.flatnonzero(gaps) + 1).tolist(), slices.n_slices]
    yield from pairwise(ends)
