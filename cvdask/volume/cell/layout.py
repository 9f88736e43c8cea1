"""Where do the fibrils and the rows of mitochondria of a cell run, and how large is everything?

1. **Measures** of heart muscle, and the **kinds** of cells, which differ in chances and spreads.
2. A **layout** is what the kernels know of one cell: numbers only, nothing derived twice.
3. **Super-cells**, 3 x 3 sites x 4 slots, are the unit in which shapes are made: which ones can
   reach into a box?
4. **Sites**: a jittered hexagonal lattice in the cross-section. Every site is the axis of a
   myofibril or of a row of mitochondria, whose disc keeps clear of all its neighbours'.

Lengths are nm.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cvdask.compiled import compiled
from cvdask.volume.boxes import Box
from cvdask.volume.cell import chance

PITCH = 1100.0  # between neighbouring sites
LAYER = PITCH * math.sqrt(3) / 2  # between rows of sites along z
JITTER = 0.12 * PITCH  # a site leaves its lattice point by at most this
WIDEST_ROW = 580.0  # radius of a mitochondrial row, at most
ROW_SHARE = 0.62  # of the way to a neighbouring fibril's axis that a row may take
SLOT = 2400.0  # along x, on average
Z_DISC = 100.0  # thickness
SHORTEST_SARCOMERE, LONGEST_SARCOMERE = 1800.0, 2000.0
NARROWEST_GAP = 60.0  # between mitochondrial objects
THINNEST_MITOCHONDRION = 80.0  # radius

NUCLEUS_SHARE = (0.22, 0.22, 0.25)  # radii as a share of the volume's extent
LARGEST_NUCLEUS = (2500.0, 2500.0, 6000.0)
SMALLEST_NUCLEUS = 800.0

SITES, SLOTS = 3, 4  # a super-cell is SITES x SITES sites x SLOTS slots
CAPSULES = SITES * SITES * SLOTS
MARGIN = 3  # sites around the super-cells that a table of sites holds


class Kind(NamedTuple):
    """What distinguishes one kind of cell: chances, and the spread of radii."""

    row_on_sublattice: float  # every third site, each with six others around it
    row_elsewhere: float
    clustering: float  # how far slow noise moves the two chances above
    filled: float  # slots that hold a capsule
    fused: float  # neighbours along a row that are joined
    lateral: float  # neighbours in adjacent rows that are joined
    thinnest: float  # radius, as a share of what the row has room for


KINDS = {
    "healthy": Kind(0.98, 0.25, 0.0, 0.98, 0.15, 0.04, 0.90),
    "diabetic": Kind(0.62, 0.62, 1.6, 0.98, 0.40, 0.30, 0.80),
}


class Layout(NamedTuple):
    """All that the kernels need to know of a cell: numbers only."""

    key: np.uint64
    kind: Kind
    voxel: tuple[float, ...]
    gap: float
    thinnest: float
    thinnest_bridge: float
    sarcomere: float
    z_disc: float
    register: float  # where the first Z-disc would be without a fibril's own phase
    center: tuple[float, ...]
    nucleus: tuple[float, ...]  # radii; zeros without a nucleus
    first_cell: tuple[int, ...]  # super-cells that can reach into the volume
    n_cells: tuple[int, ...]


def lay_out(shape: tuple[int, ...], voxel: tuple[float, ...], seed: int, kind: str) -> Layout:
    """Derive the numbers that the kernels share; cheap enough for every call."""
    diagonal = math.hypot(*voxel)
    extent = [n * v for n, v in zip(shape, voxel, strict=True)]
    key = np.uint64(chance.bits(np.uint64(seed), chance.CELL, 0, 0, 0))
    spread = LONGEST_SARCOMERE - SHORTEST_SARCOMERE
    radii = tuple(
        min(share * length, most)
        for share, length, most in zip(NUCLEUS_SHARE, extent, LARGEST_NUCLEUS, strict=True)
    )
    first, n_cells = cells_meeting(Box.whole(shape), voxel)
    # A hair above half a diagonal, so that rounding cannot open a capsule.
    thinnest_bridge = 0.5001 * diagonal
    return Layout(
        key=key,
        kind=KINDS[kind],
        voxel=voxel,
        gap=max(NARROWEST_GAP, 2 * diagonal),
        thinnest=max(THINNEST_MITOCHONDRION, thinnest_bridge),
        thinnest_bridge=thinnest_bridge,
        sarcomere=SHORTEST_SARCOMERE + spread * chance.uniform(key, chance.SARCOMERE, 0, 0, 0),
        z_disc=max(Z_DISC, voxel[2]),  # no thinner than a voxel, or some would vanish
        register=LONGEST_SARCOMERE * chance.uniform(key, chance.SARCOMERE, 1, 0, 0),
        center=tuple(length / 2 for length in extent),
        nucleus=radii if min(radii) >= SMALLEST_NUCLEUS else (0.0, 0.0, 0.0),
        first_cell=first,
        n_cells=n_cells,
    )


def cells_meeting(box: Box, voxel: tuple[float, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return first and number, per axis, of the super-cells whose shapes can reach into a box.

    Slot k of a row leaves [k, k + 1] slots by less than half a slot; super-cells start at any of
    SLOTS slots, see :func:`origin`.
    """
    low = [a * v for a, v in zip(box.start, voxel, strict=True)]
    high = [b * v for b, v in zip(box.stop, voxel, strict=True)]
    reach = JITTER + WIDEST_ROW
    sites = (
        (math.ceil((low[0] - reach) / LAYER), math.floor((high[0] + reach) / LAYER)),
        (math.ceil((low[1] - reach) / PITCH - 0.5), math.floor((high[1] + reach) / PITCH)),
        (math.floor(low[2] / SLOT - 1.5) - (SLOTS - 1), math.floor(high[2] / SLOT + 0.5)),
    )
    first = tuple(a // n for (a, _), n in zip(sites, (SITES, SITES, SLOTS), strict=True))
    last = tuple(b // n for (_, b), n in zip(sites, (SITES, SITES, SLOTS), strict=True))
    return first, tuple(b - a + 1 for a, b in zip(first, last, strict=True))


@compiled()
def origin(
    layout: Layout, first: tuple[int, ...], n_cells: tuple[int, ...], c: int
) -> tuple[int, int, int, int]:
    """Return the first site (i, j) and slot of super-cell ``c`` of a range, and its number.

    Columns of super-cells are shifted by a chance number of slots, so that their ends scatter. The
    number counts all super-cells that can reach into the volume, whatever the range.
    """
    cell_z = first[0] + c // (n_cells[1] * n_cells[2])
    cell_y = first[1] + c // n_cells[2] % n_cells[1]
    cell_x = first[2] + c % n_cells[2]
    shift = int(chance.bits(layout.key, chance.STAGGER, cell_z, cell_y, 0) % np.uint64(SLOTS))
    number = cell_z - layout.first_cell[0]
    number = number * layout.n_cells[1] + cell_y - layout.first_cell[1]
    number = number * layout.n_cells[2] + cell_x - layout.first_cell[2]
    return cell_z * SITES, cell_y * SITES, cell_x * SLOTS + shift, number


@compiled()
def place_site(layout: Layout, i: int, j: int) -> tuple[float, float]:
    """Return where site (i, j) is: odd layers are shifted by half a pitch, then all jittered."""
    dz, dy = chance.in_disc(layout.key, chance.SITE, i, j, 0)
    return i * LAYER + JITTER * dz, (j + 0.5 * (i & 1)) * PITCH + JITTER * dy


@compiled()
def _is_row(layout: Layout, i: int, j: int) -> bool:
    """Tell whether a site carries mitochondria."""
    # Three colours on a hexagonal lattice, no two neighbours alike; column in axial coordinates.
    on_sublattice = (j - (i - (i & 1)) // 2 - i) % 3 == 0
    kind = layout.kind
    odds = kind.row_on_sublattice if on_sublattice else kind.row_elsewhere
    if kind.clustering:
        y = (j + 0.5 * (i & 1)) / 3.0
        slow = chance.value_noise(layout.key, chance.CLUSTER, i / 3.0, y, 0.0)
        odds += kind.clustering * (slow - 0.5)
    return chance.uniform(layout.key, chance.ROW, i, j, 0) < odds


@compiled()
def site_table(
    layout: Layout, first: tuple[int, ...], n_cells: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Tabulate z, y and disc radius of the sites of super-cells and of those around them.

    Returns
    -------
    (n, m, 3) float64
        ``[0, 0]`` is the site MARGIN before the first one of the first super-cell, on both axes.
        The radius is that of a mitochondrial row's disc, 0 for a fibril's site.
    """
    n, m = n_cells[0] * SITES + 2 * MARGIN, n_cells[1] * SITES + 2 * MARGIN
    i0, j0 = first[0] * SITES - MARGIN, first[1] * SITES - MARGIN
    # One more site all around: only the nearest ones can be in a row's way, as all others are
    # further than twice the widest disc.
    wide = np.empty((n + 2, m + 2, 2))
    is_row = np.empty((n + 2, m + 2), np.bool_)
    for i in range(n + 2):
        for j in range(m + 2):
            wide[i, j, 0], wide[i, j, 1] = place_site(layout, i0 + i - 1, j0 + j - 1)
            is_row[i, j] = _is_row(layout, i0 + i - 1, j0 + j - 1)
    sites = np.zeros((n, m, 3))
    for i in range(n):
        for j in range(m):
            z, y = wide[i + 1, j + 1]
            sites[i, j, 0], sites[i, j, 1] = z, y
            if not is_row[i + 1, j + 1]:
                continue
            radius = WIDEST_ROW
            for oi in range(i, i + 3):
                for oj in range(j, j + 3):
                    if oi == i + 1 and oj == j + 1:
                        continue
                    distance = np.sqrt((wide[oi, oj, 0] - z) ** 2 + (wide[oi, oj, 1] - y) ** 2)
                    share = 0.5 if is_row[oi, oj] else ROW_SHARE
                    radius = min(radius, share * distance)
            sites[i, j, 2] = radius
    return sites
