"""Which voxels of a block belong together? Connected components over runs.

A *run* is a longest stretch of voxels of one class along x. A block of cells has ten to a hundred
times fewer runs than voxels, and everything about components can be said of runs: they touch where
their ranges meet, and their moments have closed forms::

    row 0   . . 1 1 1 1 . 2 2 .        runs [2, 6) of 1, [7, 9) of 2
    row 1   . 1 1 . . . . 2 . .        runs [1, 3) of 1, [7, 8) of 2

1. :func:`find_runs` cuts the rows of a block into runs, row after row in z, y order.
2. :func:`connect` joins the runs of neighbouring rows that touch, in a union-find whose root is
   always the earliest run: an object's root begins with its first voxel in z, y, x order.
3. :func:`number` gives each run the number of its object, objects in the order of their first
   voxel.
4. :func:`add_moments` sums voxels, first and second moments and bounds per object.

Everything is an integer, compiled, and free of the interpreter's lock.

References
----------
He, Chao, Suzuki 2008, *A run-based two-scan labeling algorithm*, IEEE Trans. Image Process. 17.
"""

from __future__ import annotations

import numpy as np

from cvdask.compiled import compiled

CONNECTIVITIES = (6, 18, 26)
# Columns of the moments: n, Σz, Σy, Σx, Σzz, Σyy, Σxx, Σzy, Σzx, Σyx.
N_MOMENTS = 10
# What a table gives for a value that is no class; see find_runs.
NO_CLASS = 255


@compiled()
def find_runs(
    data: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Cut the rows of a block into runs.

    Parameters
    ----------
    data : (Z, Y, X) uint8
        Values of classes.
    table : (256,) uint8
        Number of the class of each value from 1, 0 for background, 255 for what must not occur.

    Returns
    -------
    rows : (Z * Y + 1,) int64
        First run of each row; the row ends where the next begins.
    start, stop : (R,) int32
        Range of each run along x.
    kind : (R,) uint8
        Class of each run.
    n_absent : int
        Voxels whose value must not occur.
    """
    extent_z, extent_y, extent_x = data.shape
    rows = np.empty(extent_z * extent_y + 1, np.int64)
    capacity = max(extent_x, data.size // 32)
    start = np.empty(capacity, np.int32)
    stop = np.empty(capacity, np.int32)
    kind = np.empty(capacity, np.uint8)
    n, n_absent = 0, 0
    flags = np.zeros((extent_x + 7) // 8 * 8, np.uint8)
    changes = np.zeros(len(flags) + 9, np.int64)  # [0] stays 0, the first value begins there
    for z in range(extent_z):
        for y in range(extent_y):
            row = data[z, y]
            first_of_row = n
            rows[z * extent_y + y] = n
            if n + extent_x > capacity:
                capacity = 2 * capacity + extent_x
                start, stop, kind = (
                    _grown(start, n, capacity),
                    _grown(stop, n, capacity),
                    _grown(kind, n, capacity),
                )
            n_changes = find_changes(row, flags, changes)
            for change in range(n_changes):
                first, x = changes[change], changes[change + 1]
                of = table[row[first]]
                if of == 0:
                    continue
                if of == NO_CLASS:
                    n_absent += x - first
                    continue
                if n > first_of_row and stop[n - 1] == first and kind[n - 1] == of:
                    stop[n - 1] = x  # two values of one class
                    continue
                start[n], stop[n], kind[n] = first, x, of
                n += 1
    rows[-1] = n
    return rows, start[:n].copy(), stop[:n].copy(), kind[:n].copy(), n_absent


@compiled()
def find_changes(row: np.ndarray, flags: np.ndarray, changes: np.ndarray) -> int:
    """List where stretches of one value begin in a row, and its end; return how many there are.

    Parameters
    ----------
    row : (X,) integers
        X at least 1.
    flags : (N,) uint8
        Zeros, N the next multiple of 8; written to.
    changes : (N + 9,) int64
        Written to, save [0], which is 0.
    """
    before, own = row[: len(row) - 1], row[1:]
    changed = flags[1 : len(row)]
    for x in range(len(own)):
        changed[x] = own[x] != before[x]
    n = 1 + list_flags(flags, 0, len(row), changes[1:])
    changes[n] = len(row)
    return n


@compiled()
def list_flags(flags: np.ndarray, first: int, last: int, listed: np.ndarray) -> int:
    """List where flags are set, eight at a time and without a branch for each; return how many.

    Parameters
    ----------
    flags : (N,) uint8
        N is a multiple of 8.
    first, last : int
        No flag is set outside this range, up to the next multiple of 8 on either side.
    listed : (N + 8,) int64
        Written to.
    """
    words = flags.view(np.uint64)
    n = 0
    for word in range(first // 8, (last + 7) // 8):
        if words[word] == 0:
            continue
        for k in range(8):
            listed[n] = 8 * word + k
            n += flags[8 * word + k] != 0
    return n


@compiled()
def _grown(array: np.ndarray, n: int, capacity: int) -> np.ndarray:
    larger = np.empty(capacity, array.dtype)
    larger[:n] = array[:n]
    return larger


@compiled()
def find_root(parent: np.ndarray, item: int) -> int:
    """Follow parents to the root, halving the way for those who come after."""
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


@compiled()
def unite(parent: np.ndarray, one: int, other: int) -> None:
    """Join two sets; the smaller root stays."""
    one, other = find_root(parent, one), find_root(parent, other)
    if one < other:
        parent[other] = one
    else:
        parent[one] = other


@compiled()
def roots_of(parent: np.ndarray) -> np.ndarray:
    """Return the root of every item."""
    roots = np.empty_like(parent)
    for item in range(len(parent)):
        roots[item] = find_root(parent, item)
    return roots


@compiled()
def connect(
    rows: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    kind: np.ndarray,
    extent_y: int,
    connectivity: int,
) -> np.ndarray:
    """Join the runs of one class that touch.

    Parameters
    ----------
    rows, start, stop, kind
        Of :func:`find_runs`.
    extent_y : int
        Rows of a plane.
    connectivity : {6, 18, 26}
        Neighbours of a voxel: through faces; and edges; and corners.

    Returns
    -------
    (R,) int64
        Parent of each run, never a later one.
    """
    parent = np.arange(len(start))
    beside = 0 if connectivity == 6 else 1
    across = 1 if connectivity == 26 else 0
    for row in range(len(rows) - 1):
        if rows[row] == rows[row + 1]:
            continue
        y = row % extent_y
        if y > 0:
            _join(parent, rows, start, stop, kind, row, row - 1, beside)
        above = row - extent_y
        if above < 0:
            continue
        _join(parent, rows, start, stop, kind, row, above, beside)
        if connectivity != 6:
            if y > 0:
                _join(parent, rows, start, stop, kind, row, above - 1, across)
            if y < extent_y - 1:
                _join(parent, rows, start, stop, kind, row, above + 1, across)
    return parent


@compiled()
def _join(
    parent: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    kind: np.ndarray,
    row: int,
    earlier: int,
    reach: int,
) -> None:
    """Join the touching runs of two rows; ``reach`` is 1 where diagonal neighbours touch."""
    i, last_i = rows[row], rows[row + 1]
    j, last_j = rows[earlier], rows[earlier + 1]
    while i < last_i and j < last_j:
        if (
            kind[i] == kind[j]
            and start[i] < stop[j] + reach
            and start[j] < stop[i] + reach
            and parent[i] != parent[j]
        ):
            unite(parent, i, j)
        if stop[i] < stop[j]:
            i += 1
        elif stop[j] < stop[i]:
            j += 1
        else:
            # Both end here: what begins right behind one may touch the other diagonally.
            end = stop[i] + reach
            if i + 1 < last_i and kind[i + 1] == kind[j] and start[i + 1] < end:
                unite(parent, i + 1, j)
            if j + 1 < last_j and kind[j + 1] == kind[i] and start[j + 1] < end:
                unite(parent, i, j + 1)
            i += 1
            j += 1


@compiled()
def number(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the objects by their first run.

    Returns
    -------
    label : (R,) int32
        Number of each run's object, from 0.
    first : (N,) int64
        First run of each object.
    """
    label = np.empty(len(parent), np.int32)
    first = np.empty(len(parent), np.int64)
    n = 0
    for run in range(len(parent)):
        # A parent is never later, so its label is known.
        if parent[run] == run:
            label[run] = n
            first[n] = run
            n += 1
        else:
            label[run] = label[parent[run]]
    return label, first[:n].copy()


@compiled()
def add_moments(
    rows: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    label: np.ndarray,
    extent_y: int,
    moments: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """Sum voxels, moments and bounds of each object, in voxels of the block.

    Parameters
    ----------
    rows, start, stop, label
        Runs and their objects.
    extent_y : int
        Rows of a plane.
    moments : (N, 10) int64
        Added to: n, Σz, Σy, Σx, Σzz, Σyy, Σxx, Σzy, Σzx, Σyx.
    bounds : (N, 6) int64
        Lowered and raised: z, y, x of the first voxel, and one past the last.
    """
    for row in range(len(rows) - 1):
        z, y = row // extent_y, row % extent_y
        for run in range(rows[row], rows[row + 1]):
            a, b = np.int64(start[run]), np.int64(stop[run])
            n = b - a
            x = n * (a + b - 1) // 2
            # Σ of squares below m is (m − 1) m (2m − 1) / 6.
            xx = ((b - 1) * b * (2 * b - 1) - (a - 1) * a * (2 * a - 1)) // 6
            own = moments[label[run]]
            own[0] += n
            own[1] += z * n
            own[2] += y * n
            own[3] += x
            own[4] += z * z * n
            own[5] += y * y * n
            own[6] += xx
            own[7] += z * y * n
            own[8] += z * x
            own[9] += y * x
            box = bounds[label[run]]
            box[0] = min(box[0], z)
            box[1] = min(box[1], y)
            box[2] = min(box[2], a)
            box[3] = max(box[3], z + 1)
            box[4] = max(box[4], y + 1)
            box[5] = max(box[5], b)
