"""What does a 2×2×2 cell of voxels add to an object's surface and Euler number?

Bit ``4 dz + 2 dy + dx`` of a *configuration* says whether the voxel at (dz, dy, dx) of the cell
belongs to the object. Everything below is the same for mirror images along z, y and x, but not for
cells that are turned: voxels need not be cubes. Mirror images are therefore one *kind*; 46 there
are, 44 without the empty and the full cell, which have no surface.

1. :data:`KIND_OF_CELL` gives the kind of a configuration, :data:`EXAMPLES` one configuration of
   each kind.
2. :func:`crofton_areas`, :func:`marching_cubes_areas`, :func:`exposed_faces` and
   :func:`euler_numbers` give what one cell of each kind adds, for a voxel size.
3. An object's area is the sum over the kinds of count times area: done once, at the end.

References
----------
Lehmann, Legland 2012, *Efficient N-dimensional surface estimation using Crofton formula and
run-length encoding*, Insight Journal. Lorensen, Cline 1987, *Marching cubes*, SIGGRAPH 21.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from cvdask.morphometry.directions import DIRECTIONS, direction_weights

N_KINDS_OF_CELL = 44
# Of the empty and the full cell.
NO_KIND = 255
CORNERS = tuple(itertools.product((0, 1), repeat=3))


def _kinds() -> tuple[np.ndarray, tuple[int, ...]]:
    table = np.full(256, NO_KIND, np.uint8)
    examples: list[int] = []
    for configuration in range(1, 255):
        mirrored = {
            sum((configuration >> corner & 1) << (corner ^ flip) for corner in range(8))
            for flip in range(8)
        }
        if configuration == min(mirrored):
            table[list(mirrored)] = len(examples)
            examples.append(configuration)
    return table, tuple(examples)


KIND_OF_CELL, EXAMPLES = _kinds()
# Of each kind, which corners belong to the object: (44, 2, 2, 2) bool.
PATTERNS = np.array([[e >> k & 1 for k in range(8)] for e in EXAMPLES], bool).reshape(-1, 2, 2, 2)


def exposed_faces() -> np.ndarray:
    """Return four times the faces across z, y and x that a cell of each kind adds.

    Each face lies in four cells, so an object's faces are the sum over its cells, divided by four.

    Returns
    -------
    (44, 3) int64
    """
    return np.stack(
        [
            np.diff(PATTERNS.astype(np.int8), axis=axis).astype(bool).sum((1, 2, 3))
            for axis in (1, 2, 3)
        ],
        axis=1,
    ).astype(np.int64)


def crofton_areas(voxel_size: tuple[float, float, float]) -> np.ndarray:
    """Return the area that a cell of each kind adds, by Crofton's formula in 13 directions.

    Over the pairs of voxels one step k apart of which one is the object's: 4 c_k (v / d_k) / m_k.
    c_k is the share of all directions that is nearest to k, v the voxel's volume, d_k the step's
    length, and m_k the cells that hold each pair, 4, 2 or 1 (Lehmann and Legland 2012).

    Parameters
    ----------
    voxel_size : tuple of float
        Spacing z, y, x.

    Returns
    -------
    (44,) float64
        In the square of the unit of the voxel size.
    """
    volume = math.prod(voxel_size)
    areas = np.zeros(N_KINDS_OF_CELL)
    for step, weight in zip(DIRECTIONS.tolist(), direction_weights(voxel_size), strict=True):
        length = math.dist((0, 0, 0), [s * v for s, v in zip(step, voxel_size, strict=True)])
        cells_per_pair = 2 ** sum(s == 0 for s in step)
        share = 4 * weight * volume / length / cells_per_pair
        areas += share * _crossings(step)
    return areas


def _crossings(step: Sequence[int]) -> np.ndarray:
    """Count the pairs of corners one step apart of which one belongs to the object: (44,) int64."""
    n = np.zeros(N_KINDS_OF_CELL, np.int64)
    for z, y, x in CORNERS:
        other = (z + step[0], y + step[1], x + step[2])
        if other in CORNERS:
            n += PATTERNS[:, z, y, x] != PATTERNS[:, other[0], other[1], other[2]]
    return n


def marching_cubes_areas(voxel_size: tuple[float, float, float]) -> np.ndarray:
    """Return the area of scikit-image's triangles in a cell of each kind.

    Parameters
    ----------
    voxel_size : tuple of float
        Spacing z, y, x.

    Returns
    -------
    (44,) float64
        In the square of the unit of the voxel size.
    """
    from skimage.measure import marching_cubes, mesh_surface_area

    areas = []
    for pattern in PATTERNS:
        vertices, triangles, _, _ = marching_cubes(pattern.astype(np.float32), 0.5)
        # In double precision, and for voxels that are no cubes, from the vertices in voxels.
        scaled = vertices.astype(float) * voxel_size
        areas.append(float(mesh_surface_area(scaled, triangles)))
    return np.array(areas)


def euler_numbers(connectivity: int) -> np.ndarray:
    """Return eight times what a cell of each kind adds to the Euler number.

    The alternating sum of corners, edges, faces and voxels: with 26 neighbours of the closed
    voxels, where a corner, an edge and a face belong to the object when any voxel around them does;
    with 6 neighbours only when all do. The cell sees each of its edges, faces and voxels in part.

    Parameters
    ----------
    connectivity : {6, 26}

    Returns
    -------
    (44,) int64
    """
    takes = np.any if connectivity == 26 else np.all
    result = np.zeros(N_KINDS_OF_CELL, np.int64)
    for kind, pattern in enumerate(PATTERNS):
        # The cell's centre is a corner of the grid. Around it: 6 half edges between the voxels,
        # 12 quarters of faces, 8 eighths of voxels.
        corner = int(takes(pattern))
        edges = sum(
            int(takes(np.take(pattern, side, axis))) for axis in range(3) for side in (0, 1)
        )
        faces = sum(
            int(takes(np.take(np.take(pattern, b, second), a, first)))
            for first, second in ((0, 1), (0, 2), (1, 2))
            for a, b in itertools.product((0, 1), repeat=2)
        )
        voxels = int(pattern.sum())
        if connectivity == 26:
            result[kind] = 8 * corner - 4 * edges + 2 * faces - voxels
        else:
            # Dual: voxels are points, pairs of them edges, squares faces, cells volumes.
            result[kind] = voxels - 2 * faces + 4 * edges - 8 * corner
    return result
