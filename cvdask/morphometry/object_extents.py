"""Which objects does a box of labels hold, how many voxels has each, and between which bounds?

1. :func:`object_extents` looks at a box: runs of equal voxels along x, not voxels one by one.
2. :func:`add_extents` adds what several boxes hold to one table, ascending by label.

0 is background and no object.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cvdask.compiled import compiled

# One row for each object; ``start`` and ``stop`` are its bounding box, z, y, x, half-open.
EXTENT = np.dtype(
    [("label", "<u8"), ("n_voxels", "<i8"), ("start", "<i8", (3,)), ("stop", "<i8", (3,))]
)


def object_extents(
    data: np.ndarray, origin: tuple[int, ...], labels: np.ndarray | None = None
) -> np.ndarray:
    """Return size and bounds of the objects in a box.

    Parameters
    ----------
    data : (Z, Y, X) integer
        Labels, none negative.
    origin : tuple of int
        Where the box begins in its volume.
    labels : (n,) uint64, optional
        Only these, ascending; by default all.

    Returns
    -------
    (m,) of EXTENT
        Objects that have a voxel, ascending.

    Examples
    --------
    >>> found = object_extents(np.array([[[0, 5, 5, 0]]], np.uint8), (0, 2, 4))
    >>> found["label"].tolist(), found["n_voxels"].tolist(), found["stop"].tolist()
    ([5], [2], [[1, 3, 7]])
    """
    if labels is None:
        labels = _values(data)
    labels = labels[(labels > 0) & (labels <= np.uint64(np.iinfo(data.dtype).max))]
    counts = np.zeros(len(labels), np.int64)
    bounds = np.empty((len(labels), 6), np.int64)
    bounds[:, :3], bounds[:, 3:] = max(data.shape), -1
    if len(labels):
        _measure(data, labels.astype(data.dtype), counts, bounds)
    there = counts > 0
    found = np.empty(int(there.sum()), EXTENT)
    found["label"], found["n_voxels"] = labels[there], counts[there]
    found["start"] = bounds[there, :3] + np.array(origin)
    found["stop"] = bounds[there, 3:] + np.array(origin) + 1
    return found


def _values(data: np.ndarray) -> np.ndarray:
    """Return the labels of a box, ascending: those that runs begin with."""
    flat = data.reshape(-1)
    begins = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.unique(np.concatenate([flat[:1], flat[begins]])).astype(np.uint64)


@compiled()
def _measure(data: np.ndarray, labels: np.ndarray, counts: np.ndarray, bounds: np.ndarray) -> None:
    known, place = labels[0], 0
    for z in range(data.shape[0]):
        for y in range(data.shape[1]):
            x = 0
            while x < data.shape[2]:
                first, label = x, data[z, y, x]
                while x < data.shape[2] and data[z, y, x] == label:
                    x += 1
                if label == 0:
                    continue
                if label != known:
                    known, place = label, np.searchsorted(labels, label)
                if place == len(labels) or labels[place] != label:
                    continue
                counts[place] += x - first
                row = bounds[place]
                row[0], row[3] = min(row[0], z), max(row[3], z)
                row[1], row[4] = min(row[1], y), max(row[4], y)
                row[2], row[5] = min(row[2], first), max(row[5], x - 1)


def add_extents(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Add up what boxes hold that share no voxel.

    Parameters
    ----------
    parts : iterable of (n,) EXTENT

    Returns
    -------
    (m,) of EXTENT
        Ascending by label.
    """
    everything = np.concatenate([np.empty(0, EXTENT), *parts])
    labels, row = np.unique(everything["label"], return_inverse=True)
    total = np.zeros(len(labels), EXTENT)
    total["label"] = labels
    total["start"] = np.iinfo(np.int64).max
    np.add.at(total["n_voxels"], row, everything["n_voxels"])
    np.minimum.at(total["start"], row, everything["start"])
    np.maximum.at(total["stop"], row, everything["stop"])
    return total
