"""Which capsules and bridges is every mitochondrion made of?

1. **Capsules**, one per slot of a row, inside the row's disc and the slot; cut back or left out
   where the nucleus is near.
2. **Bridges**, thinner capsules that join some neighbours: along the row, or sideways to an
   adjacent row; left out where the nucleus is near.
3. **Objects.** Links stay inside a super-cell, so that a tiny union-find there gives every object
   its id.

Why objects are what they claim to be. The surfaces of two objects are at least ``gap`` apart, and
``gap`` is two voxel diagonals or more, so that voxels of two objects are never 26-neighbours:

* a capsule stays inside the disc of its row, less half a gap, and inside its slot, less half a
  gap; the discs of two rows do not overlap;
* a bridge along a row lies between the two capsules that it joins, in the same disc;
* a bridge sideways lies in one x-plane inside both slots, is no thicker than its capsules, and is
  dropped where it comes within a gap of the disc of a third row. Two such bridges without a common
  row cannot cross, because lattice edges are planar under this jitter, and so are nearest at an
  end, which lies in the disc of a third row.

A capsule of radius at least half a voxel diagonal holds every voxel that its segment passes, and
from each of its voxels one walks there by steps that come nearer; bridges start on the segments
they join. Hence an object is one 26-connected component, except where the volume's border cuts it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cvdask.compiled import compiled
from cvdask.volume.cell import chance
from cvdask.volume.cell.layout import CAPSULES, MARGIN, SITES, SLOT, SLOTS, Layout, origin

# Capsules, bridges along the rows, and sideways on the 6 + 10 lattice edges at most.
MOST_SHAPES = CAPSULES + SITES * SITES * (SLOTS - 1) + 16 * SLOTS


def find_shapes(
    layout: Layout,
    sites: npt.NDArray[np.float64],
    first: tuple[int, ...],
    n_cells: tuple[int, ...],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint32]]:
    """Make all shapes of a range of super-cells; the first shape of an object is a capsule.

    Parameters
    ----------
    layout : Layout
    sites : (n, m, 3) float64
        Their table, from :func:`~cvdask.volume.cell.layout.site_table`.
    first, n_cells : tuple of int
        First super-cell and number of super-cells, per axis.

    Returns
    -------
    shapes : (n, 7) float64
        Both ends of the segment, z, y, x each, and the radius, nm.
    labels : (n,) uint32
        Id of the object: 1 + number of the super-cell x CAPSULES + its first capsule.
    """
    capsules = _place_capsules(layout, sites, first, n_cells)
    return _link(layout, sites, first, n_cells, capsules)


@compiled()
def _clear_of_nucleus(layout: Layout, shape: npt.NDArray[np.float64]) -> bool:
    """Tell whether a capsule certainly keeps a gap from the nucleus.

    The segment's distance from the centre, q, is measured in radii of the ellipsoid; its distance
    from the surface is then (q - 1) times the smallest radius at least.
    """
    radii = layout.nucleus
    smallest = min(radii[0], radii[1], radii[2])
    if smallest == 0.0:
        return True
    along = squared = start = 0.0
    for axis in range(3):
        a = (shape[axis] - layout.center[axis]) / radii[axis]
        d = (shape[3 + axis] - shape[axis]) / radii[axis]
        along -= a * d
        squared += d * d
        start += a * a
    t = min(1.0, max(0.0, along / squared)) if squared > 0.0 else 0.0
    nearest = np.sqrt(max(0.0, start - 2.0 * t * along + t * t * squared))
    return (nearest - 1.0) * smallest > shape[6] + layout.gap


@compiled()
def _shorten(layout: Layout, capsule: npt.NDArray[np.float64]) -> bool:
    """Cut a capsule back at one end until the nucleus is clear of it; False where none is left.

    Without this the volume around the nucleus would lack as many mitochondria as a slot is long.
    """
    whole = capsule.copy()
    for quarters in range(3, -1, -1):
        for end in range(2):
            for axis in range(3):
                kept = whole[3 * end + axis]
                lost = whole[3 * (1 - end) + axis]
                capsule[3 * end + axis] = kept
                capsule[3 * (1 - end) + axis] = kept + quarters / 4 * (lost - kept)
            if _clear_of_nucleus(layout, capsule):
                return True
    return False


@compiled()
def _slot_start(layout: Layout, i: int, j: int, k: int) -> float:
    """Return the x where slot k of a row begins: within 0.45 slots of k slots."""
    phase = 0.6 * (chance.uniform(layout.key, chance.SLOT, i, j, 2**40) - 0.5)
    return (k + phase + 0.3 * (chance.uniform(layout.key, chance.SLOT, i, j, k) - 0.5)) * SLOT


@compiled()
def _place_capsule(
    layout: Layout,
    site: npt.NDArray[np.float64],
    i: int,
    j: int,
    k: int,
    capsule: npt.NDArray[np.float64],
) -> bool:
    """Write the capsule of slot k of row (i, j) into ``capsule``; False where there is none."""
    key = layout.key
    room = site[2] - layout.gap / 2
    if chance.uniform(key, chance.FILLED, i, j, k) >= layout.kind.filled:
        return False
    thinnest = layout.kind.thinnest
    radius = room * (thinnest + (1.0 - thinnest) * chance.uniform(key, chance.RADIUS, i, j, k))
    if radius < layout.thinnest:
        return False
    x0 = _slot_start(layout, i, j, k) + layout.gap / 2 + radius
    x1 = _slot_start(layout, i, j, k + 1) - layout.gap / 2 - radius
    if x1 < x0:
        return False
    for end in range(2):
        dz, dy = chance.in_disc(key, chance.ENDS, i, j, 2 * k + end)
        capsule[3 * end] = site[0] + dz * (room - radius)
        capsule[3 * end + 1] = site[1] + dy * (room - radius)
        capsule[3 * end + 2] = x1 if end else x0
    capsule[6] = radius
    return _clear_of_nucleus(layout, capsule) or _shorten(layout, capsule)


@compiled()
def _place_capsules(
    layout: Layout,
    sites: npt.NDArray[np.float64],
    first: tuple[int, ...],
    n_cells: tuple[int, ...],
) -> npt.NDArray[np.float64]:
    """Return the capsules of a range of super-cells, (n, CAPSULES, 7); radius 0 where none is."""
    capsules = np.zeros((n_cells[0] * n_cells[1] * n_cells[2], CAPSULES, 7))
    i_first, j_first = first[0] * SITES - MARGIN, first[1] * SITES - MARGIN
    for cell in range(len(capsules)):
        i0, j0, k0, _ = origin(layout, first, n_cells, cell)
        for c in range(CAPSULES):
            i, j, k = i0 + c // SLOTS // SITES, j0 + c // SLOTS % SITES, k0 + c % SLOTS
            site = sites[i - i_first, j - j_first]
            capsule = capsules[cell, c]
            if site[2] == 0.0 or not _place_capsule(layout, site, i, j, k, capsule):
                capsule[6] = 0.0
    return capsules


@compiled()
def _bridge_radius(layout: Layout, one: float, other: float) -> float:
    """Return the radius of a bridge: never more than that of either capsule."""
    return max(layout.thinnest_bridge, 0.4 * min(one, other))


@compiled()
def _bridge_along(
    layout: Layout,
    before: npt.NDArray[np.float64],
    behind: npt.NDArray[np.float64],
    bridge: npt.NDArray[np.float64],
) -> bool:
    """Join the end of one capsule with the start of the next; False where the nucleus is near."""
    for axis in range(3):  # slices would cost two seconds of compilation
        bridge[axis] = before[3 + axis]
        bridge[3 + axis] = behind[axis]
    bridge[6] = _bridge_radius(layout, before[6], behind[6])
    return _clear_of_nucleus(layout, bridge)


@compiled()
def _bridge_sideways(
    layout: Layout,
    one: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
    where: float,
    bridge: npt.NDArray[np.float64],
) -> bool:
    """Join two capsules in one x-plane, ``where`` in [0, 1) of the x range that they share."""
    low, high = max(one[2], other[2]), min(one[5], other[5])
    if low >= high:
        return False
    x = low + where * (high - low)
    for end in range(2):
        capsule = other if end else one
        t = (x - capsule[2]) / (capsule[5] - capsule[2])
        for axis in range(2):
            bridge[3 * end + axis] = capsule[axis] + t * (capsule[3 + axis] - capsule[axis])
        bridge[3 * end + 2] = x
    bridge[6] = _bridge_radius(layout, one[6], other[6])
    return _clear_of_nucleus(layout, bridge)


@compiled()
def _clear_of_rows(
    layout: Layout,
    sites: npt.NDArray[np.float64],
    one: tuple[int, int],
    other: tuple[int, int],
    bridge: npt.NDArray[np.float64],
) -> bool:
    """Tell whether a bridge between two rows keeps a gap from whatever a third row may hold."""
    dz, dy = bridge[3] - bridge[0], bridge[4] - bridge[1]
    for i in range(one[0] - 2, one[0] + 3):
        for j in range(one[1] - 2, one[1] + 3):
            radius = sites[i, j, 2]
            if radius == 0.0 or (i, j) == one or (i, j) == other:
                continue
            az, ay = sites[i, j, 0] - bridge[0], sites[i, j, 1] - bridge[1]
            t = min(1.0, max(0.0, (az * dz + ay * dy) / (dz * dz + dy * dy)))
            distance = np.sqrt((az - t * dz) ** 2 + (ay - t * dy) ** 2)
            # The row's own shapes end half a gap inside its disc.
            if distance < radius + layout.gap / 2 + bridge[6]:
                return False
    return True


@compiled()
def _find(parent: npt.NDArray[np.int64], member: int) -> int:
    """Return the first capsule of a member's object."""
    while parent[member] != member:
        member = parent[member]
    return member


@compiled()
def _join(parent: npt.NDArray[np.int64], one: int, other: int) -> None:
    """Unite two objects under their first capsule."""
    a, b = _find(parent, one), _find(parent, other)
    parent[max(a, b)] = min(a, b)


@compiled()
def _link(
    layout: Layout,
    sites: npt.NDArray[np.float64],
    first: tuple[int, ...],
    n_cells: tuple[int, ...],
    placed: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint32]]:
    """Join capsules by bridges, and list both with the ids of their objects."""
    key, kind = layout.key, layout.kind
    i_first, j_first = first[0] * SITES - MARGIN, first[1] * SITES - MARGIN
    shapes = np.empty((len(placed) * MOST_SHAPES, 7))
    labels = np.empty(len(shapes), np.uint32)
    member = np.empty(len(shapes), np.int64)  # a capsule of the object, for every shape
    n = 0
    for cell in range(len(placed)):
        i0, j0, k0, number = origin(layout, first, n_cells, cell)
        capsules = placed[cell]
        parent = np.arange(CAPSULES)
        begin = n

        for c in range(CAPSULES):
            if capsules[c, 6] > 0.0:
                for value in range(7):
                    shapes[n, value] = capsules[c, value]
                member[n] = c
                n += 1

        # Bridges along the rows.
        for c in range(CAPSULES - 1):
            if c % SLOTS == SLOTS - 1 or capsules[c, 6] == 0.0 or capsules[c + 1, 6] == 0.0:
                continue
            i, j, k = i0 + c // SLOTS // SITES, j0 + c // SLOTS % SITES, k0 + c % SLOTS
            if chance.uniform(key, chance.FUSED, i, j, k) < kind.fused and _bridge_along(
                layout, capsules[c], capsules[c + 1], shapes[n]
            ):
                _join(parent, c, c + 1)
                member[n] = c
                n += 1

        # Bridges sideways: to the next site of the layer, and to the two of the layer below.
        for c in range(CAPSULES):
            di, dj, slot = c // SLOTS // SITES, c // SLOTS % SITES, c % SLOTS
            i, j, k = i0 + di, j0 + dj, k0 + slot
            for direction in range(3):
                ei = di + (0 if direction == 0 else 1)
                ej = dj + (1 if direction == 0 else direction - 2 + (i & 1))
                if ei >= SITES or not 0 <= ej < SITES:
                    continue
                e = (ei * SITES + ej) * SLOTS + slot
                if capsules[c, 6] == 0.0 or capsules[e, 6] == 0.0:
                    continue
                if chance.uniform(key, chance.LATERAL, i, j, 6 * k + direction) >= kind.lateral:
                    continue
                where = chance.uniform(key, chance.LATERAL, i, j, 6 * k + 3 + direction)
                one = (i - i_first, j - j_first)
                other = (i0 + ei - i_first, j0 + ej - j_first)
                if _bridge_sideways(
                    layout, capsules[c], capsules[e], where, shapes[n]
                ) and _clear_of_rows(layout, sites, one, other, shapes[n]):
                    _join(parent, c, e)
                    member[n] = c
                    n += 1

        # Only now are all links of the super-cell known.
        for s in range(begin, n):
            labels[s] = 1 + number * CAPSULES + _find(parent, member[s])
    return shapes[:n].copy(), labels[:n].copy()
