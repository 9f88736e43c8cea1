"""In which 13 directions does a voxel have neighbours, and what does each stand for?

A voxel has 26 neighbours, two in each direction. Crofton's formula takes areas from crossings along
lines in all directions; the 13 stand for all, each for those that are nearest to it.

References
----------
Lehmann, Legland 2012, *Efficient N-dimensional surface estimation using Crofton formula and
run-length encoding*, Insight Journal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

# Steps z, y, x; of two opposite ones the one whose first step is forward.
DIRECTIONS = np.array(
    [step for step in itertools.product((0, 1, -1), repeat=3) if step > (0, 0, 0)], np.int64
)


def direction_weights(voxel_size: Sequence[float]) -> np.ndarray:
    """Return the share of all directions that lies nearest to each of the 13.

    Parameters
    ----------
    voxel_size : sequence of float
        Spacing z, y, x, in any unit.

    Returns
    -------
    (13,) float64
        In the order of :data:`DIRECTIONS`; together ½, for each stands for its opposite too.

    Examples
    --------
    >>> sorted(set(direction_weights((1.0, 1.0, 1.0)).round(6).tolist()))
    [0.035196, 0.036981, 0.045778]
    """
    # Late: a worker counts, and weighs nothing.
    from scipy.spatial import SphericalVoronoi

    units = DIRECTIONS * np.asarray(voxel_size, float)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    areas = SphericalVoronoi(np.concatenate([units, -units])).calculate_areas()
    return areas[: len(units)] / (4 * math.pi)
