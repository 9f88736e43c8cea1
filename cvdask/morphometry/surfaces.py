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
    highest = np.zeros(width, np.int32)
    lowest = np.zeros(width, np.int32)
    codes = np.zeros(width, np.int32)
    flags = np.zeros(width, np.uint8)
    words = flags.view(np.uint64)
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
                _code_cells(a, b, c, d, highest, lowest, codes)
                for x in range(last - first):
                    code = codes[x]
                    if code == 0:
                        continue
                    if unambiguous:
                        above_it, below_it = code & 255, code >> 8 & 255
                        cells[highest[x] - 1, kind_of_cell[above_it]] += 1
                        if above_it != below_it:
                            cells[lowest[x] - 1, kind_of_cell[below_it]] += 1
                            todo = code >> 16 & ~(above_it | below_it)
                            if todo:
                                count_rest(a, b, c, d, x, todo, kind_of_cell, cells)
                        continue
                    corners = count_decided(a, b, c, d, x, kind, kind_of_cell, cells)
                    if corners:
                        if n_undecided == len(undecided):
                            larger = np.empty((2 * n_undecided, 8), np.int32)
                            larger[:n_undecided] = undecided
                            undecided = larger
                        corner_labels(a, b, c, d, x, undecided[n_undecided])
                        for k in range(8):
                            if not corners >> k & 1:
                                undecided[n_undecided, k] = 0
                        n_undecided += 1

        # Voxels of this plane by their exposed faces.
        if z < 0:
            continue
        at_low, at_high = z == 0 and not ends[0], z == extent_z - 1 and not ends[1]
        for y in range(1, extent_y + 1):
            if end[here, y] == 0:
                continue
            row = planes[here, y]
            _flag_exposed(
                row,
                row if at_low else planes[below, y],
                row if at_high else planes[above, y],
                row if y == 1 and not ends[2] else planes[here, y - 1],
                row if y == extent_y and not ends[3] else planes[here, y + 1],
                flags,
            )
            if not ends[4]:
                flags[1] &= ~np.uint8(X_LOW)
            if not ends[5]:
                flags[extent_x] &= ~np.uint8(X_HIGH)
            flags[extent_x + 1 :] = 0
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
            for word in range(len(words)):
                if words[word] == 0:
                    continue
                for x in range(8 * word, 8 * word + 8):
                    if flags[x]:
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
def _code_cells(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    d: np.ndarray,
    highest: np.ndarray,
    lowest: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Describe the cells of four rows by the highest and the lowest object number in each.

    A code holds the configuration of the highest, of the lowest above 0 (shifted by 8), and of all
    objects together (by 16); it is 0 where all eight voxels are equal. Whole rows at once: this is
    what the compiler turns into vector instructions, 16 cells at a time.
    """
    for x in range(len(a) - 1):
        high = max(
            max(max(a[x], a[x + 1]), max(b[x], b[x + 1])),
            max(max(c[x], c[x + 1]), max(d[x], d[x + 1])),
        )
        highest[x] = high
    for x in range(len(a) - 1):
        # Background becomes the largest number: as unsigned, 0 − 1 is.
        low = min(
            min(
                min(np.uint32(a[x] - 1), np.uint32(a[x + 1] - 1)),
                min(np.uint32(b[x] - 1), np.uint32(b[x + 1] - 1)),
            ),
            min(
                min(np.uint32(c[x] - 1), np.uint32(c[x + 1] - 1)),
                min(np.uint32(d[x] - 1), np.uint32(d[x + 1] - 1)),
            ),
        )
        lowest[x] = np.int32(low + np.uint32(1))
    for x in range(len(a) - 1):
        high, low = highest[x], lowest[x]
        above = _mask(a, b, c, d, x, high)
        below = _mask(a, b, c, d, x, low)
        filled = 255 ^ _mask(a, b, c, d, x, 0)
        code = above | below << 8 | filled << 16
        codes[x] = 0 if above == 255 else code


@compiled()
def _flag_exposed(
    row: np.ndarray,
    below: np.ndarray,
    above: np.ndarray,
    before: np.ndarray,
    behind: np.ndarray,
    flags: np.ndarray,
) -> None:
    """Write the exposed faces of each voxel of a row, a bit each; 0 for background."""
    flags[0] = 0
    for x in range(1, len(row) - 1):
        own = row[x]
        bits = (
            (own != below[x]) * Z_LOW
            | (own != above[x]) * Z_HIGH
            | (own != before[x]) * Y_LOW
            | (own != behind[x]) * Y_HIGH
            | (own != row[x - 1]) * X_LOW
            | (own != row[x + 1]) * X_HIGH
        )
        flags[x] = np.uint8(bits) if own != 0 else np.uint8(0)
    flags[len(row) - 1] = 0


@compiled()
def _mask(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, x: int, wanted: int) -> int:
    """Return the configuration of one object in the cell at ``x`` of four rows."""
    return (
        (a[x] == wanted)
        | (a[x + 1] == wanted) << 1
        | (b[x] == wanted) << 2
        | (b[x + 1] == wanted) << 3
        | (c[x] == wanted) << 4
        | (c[x + 1] == wanted) << 5
        | (d[x] == wanted) << 6
        | (d[x + 1] == wanted) << 7
    )


@compiled()
def _lowest(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, x: int, corners: int
) -> int:
    """Return what lies at the lowest of a set of corners."""
    if corners & 3:
        return a[x] if corners & 1 else a[x + 1]
    if corners & 12:
        return b[x] if corners & 4 else b[x + 1]
    if corners & 48:
        return c[x] if corners & 16 else c[x + 1]
    return d[x] if corners & 64 else d[x + 1]


@compiled()
def corner_labels(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, x: int, voxels: np.ndarray
) -> None:
    """Write the eight corners of the cell at ``x`` of four rows."""
    for side in range(2):
        voxels[side], voxels[2 + side] = a[x + side], b[x + side]
        voxels[4 + side], voxels[6 + side] = c[x + side], d[x + side]


@compiled()
def count_rest(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    d: np.ndarray,
    x: int,
    todo: int,
    kind_of_cell: np.ndarray,
    cells: np.ndarray,
) -> None:
    """Count the cell at ``x`` of four rows for the objects at some of its corners."""
    while todo:
        one = _lowest(a, b, c, d, x, todo)
        mask = _mask(a, b, c, d, x, one)
        cells[one - 1, kind_of_cell[mask]] += 1
        todo &= ~mask


@compiled()
def count_decided(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    d: np.ndarray,
    x: int,
    kind: np.ndarray,
    kind_of_cell: np.ndarray,
    cells: np.ndarray,
) -> int:
    """Count as :func:`count_cell` does, save classes of which several objects are in the cell.

    Returns
    -------
    int
        The corners of those classes, a bit each.
    """
    todo = 255 ^ _mask(a, b, c, d, x, 0)
    postponed = 0
    while todo:
        one = _lowest(a, b, c, d, x, todo)
        mask, rest = _mask(a, b, c, d, x, one), todo
        todo &= ~mask
        related = 0
        rest = todo
        while rest:
            other = _lowest(a, b, c, d, x, rest)
            corners = _mask(a, b, c, d, x, other)
            if kind[other - 1] == kind[one - 1]:
                related |= corners
            rest &= ~corners
        if related:
            postponed |= mask | related
            todo &= ~related
        elif mask != 255:  # a full cell has no surface, and no column
            cells[one - 1, kind_of_cell[mask]] += 1
    return postponed
