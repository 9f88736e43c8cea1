"""Where do objects end? Configurations of 2×2×2 voxels and exposed faces, counted per object.

A *cell* is eight voxels around a corner of the voxel grid; the voxels of one object in it make one
of 256 *configurations*. How often each occurs is all that surface areas and the Euler number need,
for any estimator and any voxel size, without the voxels (see ``configurations``). Mirror images
count the same in all of them, which leaves 44 kinds that have a surface.

1. :func:`count_surfaces` walks through a block plane by plane. Three planes of object numbers are
   painted from runs at a time, so memory is that of three planes, whatever the block.
2. Whole rows are compared at once for cells that are not uniform and voxels that have an exposed
   face; only those, the surface, are looked at one by one.
3. What lies on a face where another block begins is left to ``seams``: object numbers and the
   faces exposed within the block are handed over.

With connectivity 26 all voxels of one class in a cell belong to one object. With 6 or 18 they may
belong to several that meet elsewhere, in another block even: such cells are returned as they are,
and counted when it is known which objects are one.
"""

from __future__ import annotations

import numpy as np

from cvdask.compiled import compiled
from cvdask.morphometry.runs import list_flags

# Voxels by exposed faces: 1; 2; 3 without an opposite pair; 3 with one; 4; 5; 6.
N_EXPOSURES = 7
# An exposed face towards lower z, higher z, lower y, higher y, lower x, higher x.
Z_LOW, Z_HIGH, Y_LOW, Y_HIGH, X_LOW, X_HIGH = (1 << side for side in range(6))


def _exposure_table() -> np.ndarray:
    """Return the column of each set of exposed faces: (64,) uint8; none has no column: 255."""
    table = np.full(64, 255, np.uint8)
    for faces in range(1, 64):
        n = faces.bit_count()
        opposite = any(faces >> axis & 3 == 3 for axis in (0, 2, 4))
        table[faces] = n - 1 if n < 3 else (3 if opposite else 2) if n == 3 else n
    return table


EXPOSURE = _exposure_table()
# The first of a set of corners of a cell.
LOWEST_CORNER = np.array([max(0, (c & -c).bit_length() - 1) for c in range(256)], np.uint8)


@compiled()
def count_surfaces(
    rows: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    label: np.ndarray,
    kind: np.ndarray,
    shape: tuple[int, int, int],
    ends: np.ndarray,
    kind_of_cell: np.ndarray,
    exposure: np.ndarray,
    unambiguous: bool,
    cells: np.ndarray,
    exposed: np.ndarray,
) -> tuple[tuple, np.ndarray]:
    """Count cells and exposed faces of each object within a block.

    Parameters
    ----------
    rows, start, stop, label
        Runs and their objects, from 0.
    kind : (N,) uint8
        Class of each object.
    shape : tuple of int
        Voxels of the block.
    ends : (6,) bool
        Which faces of the block are faces of the volume: lower z, higher z, lower y … Beyond them
        lies background; beyond the others, another block.
    kind_of_cell : (256,) uint8
        See ``configurations``.
    exposure : (64,) uint8
        ``EXPOSURE``.
    unambiguous : bool
        Voxels of one class in a cell are always of one object.
    cells : (N, 44) int64
        Added to.
    exposed : (N, 7) int64
        Added to: voxels by exposed faces.

    Returns
    -------
    planes : tuple of six arrays
        Object numbers from 1, 0 for background, on the faces across z, y and x, [0] the lower and
        [1] the upper one: (2, Y, X), (2, Z, X), (2, Z, Y) int32. Then the faces of each of these
        voxels that are exposed within the block, a bit each, uint8.
    undecided : (C, 8) int32
        Cells that hold several objects of one class, without what else they hold.
    """
    extent_z, extent_y, extent_x = shape
    width = (extent_x + 2 + 7) // 8 * 8
    planes = np.zeros((3, extent_y + 2, width), np.int32)
    # Where the runs of each row begin and end, in voxels of the plane.
    begin = np.full((3, extent_y + 2), width, np.int64)
    end = np.zeros((3, extent_y + 2), np.int64)
    tops = np.zeros(width, np.int32)
    bottoms = np.zeros(width, np.int32)
    highest = np.zeros(width, np.int32)
    flags = np.zeros(width, np.uint8)
    listed = np.empty(width + 8, np.int64)
    voxels = np.empty(8, np.int32)
    undecided = np.empty((64, 8), np.int32)
    n_undecided = 0

    label_z = np.zeros((2, extent_y, extent_x), np.int32)
    label_y = np.zeros((2, extent_z, extent_x), np.int32)
    label_x = np.zeros((2, extent_z, extent_y), np.int32)
    exposed_z = np.zeros((2, extent_y, extent_x), np.uint8)
    exposed_y = np.zeros((2, extent_z, extent_x), np.uint8)
    exposed_x = np.zeros((2, extent_z, extent_y), np.uint8)

    # Cells by their lowest voxel; one before the block where the volume begins there.
    first_y, last_y = (0 if ends[2] else 1), (extent_y if ends[3] else extent_y - 1)
    first_x, last_x = (0 if ends[4] else 1), (extent_x if ends[5] else extent_x - 1)

    for z in range(-1, extent_z):
        below, here, above = (z + 3) % 3, (z + 1) % 3, (z + 2) % 3
        _paint(
            planes[above],
            begin[above],
            end[above],
            rows,
            start,
            stop,
            label,
            z + 1,
            extent_z,
            extent_y,
        )

        # Cells between this plane and the next; rows and voxels are shifted by the margin of one.
        if (z >= 0 or ends[0]) and (z < extent_z - 1 or ends[1]):
            for y in range(first_y, last_y + 1):
                first = min(
                    begin[here, y], begin[here, y + 1], begin[above, y], begin[above, y + 1]
                )
                last = max(end[here, y], end[here, y + 1], end[above, y], end[above, y + 1])
                first, last = max(first - 1, first_x), min(last, last_x + 1)
                if first >= last:
                    continue
                part = slice(first, last + 1)
                a, b = planes[here, y, part], planes[here, y + 1, part]
                c, d = planes[above, y, part], planes[above, y + 1, part]
                _compare_cells(a, b, c, d, tops, bottoms, highest, flags)
                flags[last - first : last - first + 8] = 0
                for place in range(list_flags(flags, 0, last - first, listed)):
                    corner_labels(a, b, c, d, listed[place], voxels)
                    high = highest[listed[place]]
                    mask = _corners_of(voxels, high)
                    rest = 255 ^ mask ^ _corners_of(voxels, 0)
                    if unambiguous or rest == 0:
                        cells[high - 1, kind_of_cell[mask]] += 1
                        while rest:
                            other = voxels[LOWEST_CORNER[rest]]
                            mask = _corners_of(voxels, other)
                            cells[other - 1, kind_of_cell[mask]] += 1
                            rest &= ~mask
                        continue
                    corners = count_decided(voxels, kind, kind_of_cell, cells)
                    if corners:
                        if n_undecided == len(undecided):
                            larger = np.empty((2 * n_undecided, 8), np.int32)
                            larger[:n_undecided] = undecided
                            undecided = larger
                        for k in range(8):
                            undecided[n_undecided, k] = voxels[k] if corners >> k & 1 else 0
                        n_undecided += 1

        # Voxels of this plane by their exposed faces.
        if z < 0:
            continue
        at_low, at_high = z == 0 and not ends[0], z == extent_z - 1 and not ends[1]
        for y in range(1, extent_y + 1):
            if end[here, y] == 0:
                continue
            row = planes[here, y]
            first, last = begin[here, y], end[here, y]
            part = slice(first, last)
            flags[:first] = 0
            flags[last:] = 0
            _flag_exposed(
                row[first - 1 : last + 1],
                row[part] if at_low else planes[below, y, part],
                row[part] if at_high else planes[above, y, part],
                row[part] if y == 1 and not ends[2] else planes[here, y - 1, part],
                row[part] if y == extent_y and not ends[3] else planes[here, y + 1, part],
                flags[part],
            )
            if not ends[4]:
                flags[1] &= ~np.uint8(X_LOW)
            if not ends[5]:
                flags[extent_x] &= ~np.uint8(X_HIGH)
            inner, own = slice(1, extent_x + 1), flags[1 : extent_x + 1]
            if z == 0:
                label_z[0, y - 1], exposed_z[0, y - 1] = row[inner], own
            if z == extent_z - 1:
                label_z[1, y - 1], exposed_z[1, y - 1] = row[inner], own
            if y == 1:
                label_y[0, z], exposed_y[0, z] = row[inner], own
            if y == extent_y:
                label_y[1, z], exposed_y[1, z] = row[inner], own
            label_x[0, z, y - 1], exposed_x[0, z, y - 1] = row[1], flags[1]
            label_x[1, z, y - 1], exposed_x[1, z, y - 1] = row[extent_x], flags[extent_x]
            if at_low or at_high or (y == 1 and not ends[2]) or (y == extent_y and not ends[3]):
                continue  # the seam counts these
            if not ends[4]:
                flags[1] = 0
            if not ends[5]:
                flags[extent_x] = 0
            for place in range(list_flags(flags, first, last, listed)):
                x = listed[place]
                exposed[row[x] - 1, exposure[flags[x]]] += 1
    planes_of_faces = (label_z, label_y, label_x, exposed_z, exposed_y, exposed_x)
    return planes_of_faces, undecided[:n_undecided].copy()


@compiled()
def _paint(
    plane: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    label: np.ndarray,
    z: int,
    extent_z: int,
    extent_y: int,
) -> None:
    """Paint object numbers from 1 into a plane with a margin of one voxel; empty beyond the end."""
    for y in range(extent_y):
        line = plane[y + 1]
        line[begin[y + 1] : end[y + 1]] = 0
        begin[y + 1], end[y + 1] = len(line), 0
        if z == extent_z:
            continue
        first, last = rows[z * extent_y + y], rows[z * extent_y + y + 1]
        for run in range(first, last):
            line[start[run] + 1 : stop[run] + 1] = label[run] + 1
        if first < last:
            begin[y + 1], end[y + 1] = start[first] + 1, stop[last - 1] + 1


@compiled()
def _compare_cells(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    d: np.ndarray,
    tops: np.ndarray,
    bottoms: np.ndarray,
    highest: np.ndarray,
    flags: np.ndarray,
) -> None:
    """Flag the cells of four rows that are not uniform, and write the highest number in each.

    Whole rows at once: this is what the compiler turns into vector instructions.

    Parameters
    ----------
    a, b, c, d : (N + 1,) int32
        Rows (z, y), (z, y + 1), (z + 1, y) and (z + 1, y + 1).
    tops, bottoms : (N + 1,) or longer, int32
        Written to: highest and lowest number across the rows.
    highest : (N,) or longer, int32
        Written to.
    flags : (N,) or longer, uint8
        Written to.
    """
    for x in range(len(a)):
        tops[x] = max(max(a[x], b[x]), max(c[x], d[x]))
        bottoms[x] = min(min(a[x], b[x]), min(c[x], d[x]))
    for x in range(len(a) - 1):
        high = max(tops[x], tops[x + 1])
        highest[x] = high
        flags[x] = high != min(bottoms[x], bottoms[x + 1])


@compiled()
def _flag_exposed(
    row: np.ndarray,
    below: np.ndarray,
    above: np.ndarray,
    before: np.ndarray,
    behind: np.ndarray,
    flags: np.ndarray,
) -> None:
    """Write the exposed faces of the voxels of a part of a row, a bit each; 0 for background.

    Parameters
    ----------
    row : (N + 2,) int32
        With the voxels before and behind the part.
    below, above, before, behind : (N,) int32
    flags : (N,) uint8
        Written to.
    """
    left, middle, right = row[: len(flags)], row[1:], row[2:]
    for x in range(len(flags)):
        own = middle[x]
        bits = (
            (own != below[x]) * Z_LOW
            | (own != above[x]) * Z_HIGH
            | (own != before[x]) * Y_LOW
            | (own != behind[x]) * Y_HIGH
            | (own != left[x]) * X_LOW
            | (own != right[x]) * X_HIGH
        )
        flags[x] = np.uint8(bits) if own != 0 else np.uint8(0)


@compiled()
def corner_labels(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, x: int, voxels: np.ndarray
) -> None:
    """Write the eight corners of the cell at ``x`` of four rows."""
    here, after = np.uint64(x), np.uint64(x + 1)  # no place counts from the end
    voxels[0], voxels[1], voxels[2], voxels[3] = a[here], a[after], b[here], b[after]
    voxels[4], voxels[5], voxels[6], voxels[7] = c[here], c[after], d[here], d[after]


@compiled()
def _corners_of(voxels: np.ndarray, wanted: int) -> int:
    """Return at which corners of a cell an object is, a bit each: its configuration."""
    corners = 0
    for k in range(8):
        corners |= (voxels[k] == wanted) << k
    return corners


@compiled()
def count_decided(
    voxels: np.ndarray, kind: np.ndarray, kind_of_cell: np.ndarray, cells: np.ndarray
) -> int:
    """Count a cell for each object in it, save classes of which several objects are in the cell.

    Parameters
    ----------
    voxels : (8,) integers
        Objects from 1 at its corners; 0 for background.
    kind : (N,) integers
        Class of each object.
    kind_of_cell : (256,) uint8
    cells : (N, 44) int64
        Added to.

    Returns
    -------
    int
        The corners of those classes, a bit each.
    """
    todo = 255 ^ _corners_of(voxels, 0)
    postponed = 0
    for k in range(8):
        if not todo >> k & 1:
            continue
        one = voxels[k]
        mask = _corners_of(voxels, one)
        todo &= ~mask
        related = 0
        for j in range(k + 1, 8):
            if todo >> j & 1 and kind[voxels[j] - 1] == kind[one - 1]:
                related |= 1 << j
        if related:
            postponed |= mask | related
            todo &= ~related
        elif mask != 255:  # a full cell has no surface, and no column
            cells[one - 1, kind_of_cell[mask]] += 1
    return postponed
