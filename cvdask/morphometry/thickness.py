"""How thick is a class, at each of its voxels?

The *local thickness* at a voxel is the diameter of the largest ball that lies within the class and
holds the voxel (Hildebrand and Rüegsegger 1997). Here balls are centred on voxels and diameters
come from a ladder:

1. :func:`squared_distance` gives each voxel its distance to the surface of the class, where voxels
   are boxes: a ball of radius r fits around voxels that are r or more away.
2. Those voxels, and what lies within r of them, are what balls of that size cover.
3. From the largest size down, :func:`count_thick` counts the voxels covered so far.

Nothing beyond a diameter plays a part, so that a block with that much around it gives the counts
that the whole volume gives. What nobody knows, beyond the volume or not annotated, limits no ball.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvdask.compiled import compiled

# Distances are float32 sums of three squares; equal ones differ by less than this.
TOLERANCE = 1e-5
# Columns that are worked on at once: their rows within reach stay in the processor's cache.
PIECE = 1024


def halo(diameter_um: float, spacing_um: Sequence[float]) -> tuple[int, ...]:
    """Return the voxels around a block that balls of a diameter can depend on.

    >>> halo(0.2, (0.05, 0.02, 0.02))
    (5, 11, 11)
    """
    reach = [_window(diameter_um / 2, s, 0.5) for s in spacing_um]
    return tuple(
        a + _window(diameter_um / 2, s, 0.0) + 1 for a, s in zip(reach, spacing_um, strict=True)
    )


def count_thick(
    mask: np.ndarray,
    other: np.ndarray,
    own: tuple[slice, ...],
    spacing_um: Sequence[float],
    diameters_um: Sequence[float],
) -> np.ndarray:
    """Count the voxels of a class that are at least so thick, slice by slice.

    Parameters
    ----------
    mask : (Z, Y, X) bool
        The class; with :func:`halo` voxels around the block, where the volume has them.
    other : (Z, Y, X) bool
        What is known not to be of the class: balls end there.
    own : three slices
        The block.
    spacing_um : sequence of float
        Voxel size z, y, x.
    diameters_um : sequence of float
        Ascending.

    Returns
    -------
    (slices of the block, diameters) int64

    Examples
    --------
    >>> mask = np.array([[[False, True, True, True, False]]])
    >>> whole = tuple(slice(0, n) for n in mask.shape)
    >>> count_thick(mask, ~mask, whole, (1, 1, 1), (1, 2, 3, 4))
    array([[3, 3, 3, 0]])
    """
    counts = np.zeros((own[0].stop - own[0].start, len(diameters_um)), np.int64)
    members = mask[own]
    if not members.any():
        return counts
    distance = squared_distance(other, spacing_um, diameters_um[-1] / 2, half=True)
    covered = np.zeros(members.shape, bool)
    for k in reversed(range(len(diameters_um))):
        radius = diameters_um[k] / 2
        near, inner = _surrounding(own, mask.shape, spacing_um, radius)
        centres = mask[near] & (distance[near] >= radius**2 * (1 - TOLERANCE))
        if centres.any():
            away = squared_distance(centres, spacing_um, radius, half=False)[inner]
            covered |= away <= radius**2 * (1 + TOLERANCE)
        counts[:, k] = np.count_nonzero(covered & members, axis=(1, 2))
    return counts


def _surrounding(
    own: tuple[slice, ...], shape: Sequence[int], spacing_um: Sequence[float], radius_um: float
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the box within a radius of a block, and the block in it."""
    near, inner = [], []
    for part, extent, spacing in zip(own, shape, spacing_um, strict=True):
        window = _window(radius_um, spacing, 0.0)
        start, stop = max(0, part.start - window), min(extent, part.stop + window)
        near.append(slice(start, stop))
        inner.append(slice(part.start - start, part.stop - start))
    return tuple(near), tuple(inner)


def _window(reach_um: float, spacing_um: float, margin: float) -> int:
    """Return how many voxels away something within reach can be."""
    return int(reach_um / spacing_um * (1 + TOLERANCE) + margin)


def squared_distance(
    sources: np.ndarray, spacing_um: Sequence[float], reach_um: float, *, half: bool
) -> np.ndarray:
    """Return the squared distance of each voxel to the nearest source, as far as it reaches.

    Axis by axis: the least of the sums with what neighbours along the axis have. A sum of three
    squares, added in the order x, y, z, whatever lies around: equal in any block.

    Parameters
    ----------
    sources : (Z, Y, X) bool
    spacing_um : sequence of float
    reach_um : float
    half : bool
        Whether a source is a box, half a voxel nearer along each axis, rather than its centre.

    Returns
    -------
    (Z, Y, X) float32
        µm²; any larger number, mostly infinity, for what is farther away.

    Examples
    --------
    >>> squared_distance(np.array([[[True, False, False]]]), (1, 1, 1), 2, half=True)
    array([[[0.  , 0.25, 2.25]]], dtype=float32)
    """
    margin = 0.5 if half else 0.0
    z, y, x = (
        (np.maximum(np.arange(_window(reach_um, s, margin) + 1) - margin, 0) * s) ** 2
        for s in spacing_um
    )
    distance = np.empty(sources.shape, np.float32)
    _nearest_in_row(sources, x.astype(np.float32), distance)
    lines = np.empty_like(distance)
    _least_sum(distance, y.astype(np.float32), lines)
    # Along z, a whole slice is a row.
    n_z = len(sources)
    _least_sum(lines.reshape(1, n_z, -1), z.astype(np.float32), distance.reshape(1, n_z, -1))
    return distance


@compiled()
def _nearest_in_row(sources: np.ndarray, costs: np.ndarray, out: np.ndarray) -> None:
    n_z, n_y, n_x = sources.shape
    for z in range(n_z):
        for y in range(n_y):
            away = len(costs)
            for x in range(n_x):
                away = 0 if sources[z, y, x] else away + 1
                out[z, y, x] = costs[away] if away < len(costs) else np.inf
            away = len(costs)
            for x in range(n_x - 1, -1, -1):
                away = 0 if sources[z, y, x] else away + 1
                if away < len(costs):
                    out[z, y, x] = min(out[z, y, x], costs[away])


@compiled()
def _least_sum(data: np.ndarray, costs: np.ndarray, out: np.ndarray) -> None:
    """Take, along the second axis, the least of a row's neighbours and what their distance adds."""
    n_planes, n_rows, n_columns = data.shape
    reached = np.empty(n_rows, np.bool_)
    for p in range(n_planes):
        for start in range(0, n_columns, PIECE):
            stop = min(start + PIECE, n_columns)
            for y in range(n_rows):
                row, best = data[p, y, start:stop], out[p, y, start:stop]
                nearest = np.float32(np.inf)
                for x in range(len(row)):
                    nearest = min(nearest, row[x])
                    best[x] = row[x]
                reached[y] = nearest < np.inf
            for y in range(n_rows):
                best = out[p, y, start:stop]
                for other in range(max(0, y - len(costs) + 1), min(n_rows, y + len(costs))):
                    if reached[other] and other != y:
                        row, cost = data[p, other, start:stop], costs[abs(other - y)]
                        for x in range(len(row)):
                            total = row[x] + cost
                            best[x] = total if total < best[x] else best[x]
