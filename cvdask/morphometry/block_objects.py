"""What does one block know of its objects, without looking beyond itself?

1. :func:`examine` finds the objects of a block and sums what can be summed: a row of integers per
   object (see ``partials``), and what lies on the faces behind which another block begins.
2. :func:`paint` puts numbers into the voxels of the objects, for a volume of labels.

Voxels of the block are read once, and no others. What crosses a face is left to ``seams``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvdask.compiled import compiled
from cvdask.morphometry.configurations import KIND_OF_CELL
from cvdask.morphometry.partials import (
    BOUNDS,
    CELLS,
    EXPOSED,
    GREY_DIGIT,
    KEY,
    KIND,
    MOMENTS,
    Layout,
    shift_moments,
)
from cvdask.morphometry.runs import add_moments, connect, find_changes, find_runs, number
from cvdask.morphometry.surfaces import EXPOSURE, count_surfaces
from cvdask.volume.boxes import Box

NO_CELLS = np.zeros((0, 8), np.int64)


@dataclass(frozen=True)
class Runs:
    """The runs of a block and the objects they belong to.

    Parameters
    ----------
    rows : (Z * Y + 1,) int64
    start, stop : (R,) int32
    label : (R,) int32
        Number of each run's object in the block, from 0.
    first : (N,) int64
        First run of each object.
    """

    rows: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    label: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Examined:
    """What a block leaves.

    Parameters
    ----------
    rows : (N, width) int64
        Partials, by ascending key where the objects were found here.
    faces : dict of str to array
        ``label_z`` (2, Y, X), ``label_y`` (2, Z, X), ``label_x`` (2, Z, Y): numbers from 1 into
        ``keys`` and ``kinds``, the objects on faces; ``exposed_…``: the exposed faces of these
        voxels within the block; ``value_…``: the column of their class in the contacts, from 1.
    undecided : (C, 8) int64
        Keys in cells that hold several objects of one class; -1 elsewhere.
    """

    rows: np.ndarray
    faces: dict[str, np.ndarray]
    undecided: np.ndarray


def find_class_objects(
    data: np.ndarray, table: np.ndarray, connectivity: int
) -> tuple[Runs, np.ndarray, int]:
    """Find the connected components of the classes in a block.

    Parameters
    ----------
    data : (Z, Y, X) uint8
    table : (256,) uint8
        See :func:`cvdask.morphometry.runs.find_runs`.
    connectivity : {6, 18, 26}

    Returns
    -------
    runs : Runs
    kinds : (N,) int64
        Class of each object.
    n_absent : int
        Voxels whose value must not occur.
    """
    rows, start, stop, kind, n_absent = find_runs(data, table)
    parent = connect(rows, start, stop, kind, data.shape[1], connectivity)
    label, first = number(parent)
    return Runs(rows, start, stop, label, first), kind[first].astype(np.int64), n_absent


def find_instances(data: np.ndarray) -> tuple[Runs, np.ndarray]:
    """Find the objects of a block of an image of instances: all voxels of one value, but 0.

    Returns
    -------
    runs : Runs
    values : (N,) int64
        Value of each object.

    Raises
    ------
    ValueError
        When a value is negative or above 2⁶³ − 1.
    """
    if data.dtype.kind == "i" and data.size and data.min() < 0:
        raise ValueError(f"labels of objects are positive. Received: {data.min()}")
    if data.dtype == np.uint64 and data.size and int(data.max()) >= 2**63:
        raise ValueError(f"labels of objects lie below 2⁶³. Received: {data.max()}")
    rows, start, stop, value = _find_value_runs(data)
    label, first = _number_values(value)
    return Runs(rows, start, stop, label, first), value[first]


@compiled()
def _find_value_runs(
    data: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    extent_z, extent_y, extent_x = data.shape
    rows = np.empty(extent_z * extent_y + 1, np.int64)
    n = 0
    flags = np.zeros((extent_x + 7) // 8 * 8, np.uint8)
    changes = np.zeros(len(flags) + 9, np.int64)
    # Counted first: the values are wide, and there may be as many runs as voxels.
    for z in range(extent_z):
        for y in range(extent_y):
            rows[z * extent_y + y] = n
            for change in range(find_changes(data[z, y], flags, changes)):
                n += data[z, y, changes[change]] != 0
    rows[-1] = n
    start = np.empty(n, np.int32)
    stop = np.empty(n, np.int32)
    value = np.empty(n, np.int64)
    run = 0
    for z in range(extent_z):
        for y in range(extent_y):
            for change in range(find_changes(data[z, y], flags, changes)):
                begin = changes[change]
                own = data[z, y, begin]
                if own != 0:
                    start[run], stop[run], value[run] = begin, changes[change + 1], own
                    run += 1
    return rows, start, stop, value


@compiled()
def _number_values(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number values by their first occurrence, through a hash table of open addressing."""
    size = 1024
    slots = np.full(size, -1, np.int64)  # number of the object in each slot
    label = np.empty(len(value), np.int32)
    first = np.empty(1024, np.int64)
    n = 0
    for run in range(len(value)):
        slot = _slot(value[run], size)
        while slots[slot] >= 0 and value[first[slots[slot]]] != value[run]:
            slot = (slot + 1) % size
        if slots[slot] < 0:
            if n == len(first):
                larger = np.empty(2 * n, np.int64)
                larger[:n] = first
                first = larger
            slots[slot], first[n] = n, run
            n += 1
            if 2 * n > size:
                size *= 4
                slots = np.full(size, -1, np.int64)
                for item in range(n):
                    again = _slot(value[first[item]], size)
                    while slots[again] >= 0:
                        again = (again + 1) % size
                    slots[again] = item
            label[run] = n - 1
        else:
            label[run] = slots[slot]
    return label, first[:n].copy()


@compiled()
def _slot(value: int, size: int) -> np.int64:
    # Fibonacci hashing: 2⁶⁴ divided by the golden ratio; size is a power of two.
    mixed = np.uint64(value) * np.uint64(11400714819323198485)
    return np.int64((mixed >> np.uint64(32)) % np.uint64(size))


def keys_of(runs: Runs, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Return the linear index, in a volume of this shape, of each object's first voxel: (N,)."""
    row = np.searchsorted(runs.rows, runs.first, side="right") - 1
    z, y = np.divmod(row, box.shape[1])
    x = runs.start[runs.first].astype(np.int64)
    z, y, x = (p + int(o) for p, o in zip((z, y, x), box.start, strict=True))
    return np.asarray((z * shape[1] + y) * shape[2] + x)


def examine(
    runs: Runs,
    keys: np.ndarray,
    kinds: np.ndarray,
    box: Box,
    ends: np.ndarray,
    layout: Layout,
    *,
    unambiguous: bool,
    image: np.ndarray | None = None,
    values: np.ndarray | None = None,
    contact_of: np.ndarray | None = None,
) -> Examined:
    """Sum what a block knows of its objects.

    Parameters
    ----------
    runs : Runs
    keys, kinds : (N,) int64
        Key and class of each object.
    box : Box
        Where the block lies in the volume.
    ends : (6,) bool
        Which faces of the block are faces of what is measured.
    layout : Layout
    unambiguous : bool
        All voxels of one kind in a cell are of one object.
    image : (Z, Y, X) integers, optional
        Grey values; needed where the layout has an intensity.
    values : (Z, Y, X) uint8, optional
        Classes; needed where the layout has contacts.
    contact_of : (256,) int64, optional
        Column of the contacts with each class, -1 for none.
    """
    n = len(runs)
    rows = layout.empty(n)
    rows[:, KEY], rows[:, KIND] = keys, kinds
    bounds = rows[:, BOUNDS].copy()
    moments = np.zeros((n, 10), np.int64)
    add_moments(runs.rows, runs.start, runs.stop, runs.label, box.shape[1], moments, bounds)
    # About the corner of the object's bounds rather than the block's.
    rows[:, MOMENTS] = shift_moments(moments, -bounds[:, :3])
    rows[:, BOUNDS] = bounds + np.array([*box.start, *box.start])
    cells, exposed = np.zeros((n, CELLS.stop - CELLS.start), np.int64), np.zeros((n, 7), np.int64)
    z, y, x = box.shape
    planes, undecided = count_surfaces(
        runs.rows,
        runs.start,
        runs.stop,
        runs.label,
        kinds.astype(np.uint8),
        (z, y, x),
        ends,
        KIND_OF_CELL,
        EXPOSURE,
        unambiguous,
        cells,
        exposed,
    )
    rows[:, CELLS], rows[:, EXPOSED] = cells, exposed
    if image is not None:
        grey = rows[:, layout.grey].copy()
        _add_grey(runs.rows, runs.start, runs.stop, runs.label, image, grey)
        grey[:, 1], grey[:, 2] = np.divmod(grey[:, 2], GREY_DIGIT)
        rows[:, layout.grey] = grey
    if values is not None and contact_of is not None:
        contacts = np.zeros((n, layout.n_contacts * 3), np.int64)
        _add_contacts(runs.rows, runs.start, runs.stop, runs.label, values, contact_of, contacts)
        rows[:, layout.contacts] = contacts
    known = np.append(-1, keys)
    faces = _faces(planes, keys, kinds)
    if values is not None and contact_of is not None:
        for axis, name in enumerate("zyx"):
            ends_of = [np.take(values, side, axis) for side in (0, values.shape[axis] - 1)]
            faces[f"value_{name}"] = contact_of[np.stack(ends_of)] + 1
    return Examined(rows, faces, known[undecided])


def outline(runs: Runs, keys: np.ndarray, kinds: np.ndarray, box: Box) -> Examined:
    """Count the voxels of the objects of a block, and say which of them lie on its faces.

    As :func:`examine` does, without all that is said of surfaces and moments.
    """
    rows = Layout().empty(len(runs))
    rows[:, KEY], rows[:, KIND] = keys, kinds
    lengths = (runs.stop - runs.start).astype(np.int64)
    rows[:, MOMENTS.start] = np.bincount(runs.label, lengths, minlength=len(runs)).astype(np.int64)
    labels = np.zeros(box.shape, np.int32)
    numbers = np.arange(1, len(runs) + 1, dtype=np.int32)
    paint(runs.rows, runs.start, runs.stop, runs.label, numbers, labels)
    planes = [
        np.stack([np.take(labels, side, axis) for side in (0, box.shape[axis] - 1)])
        for axis in range(3)
    ]
    return Examined(rows, _faces((*planes, *map(np.zeros_like, planes)), keys, kinds), NO_CELLS)


def _faces(
    planes: tuple[np.ndarray, ...], keys: np.ndarray, kinds: np.ndarray
) -> dict[str, np.ndarray]:
    """Number the objects on faces anew, so that the others need not be known elsewhere."""
    on_faces = np.zeros(len(keys) + 1, bool)
    for plane in planes[:3]:
        on_faces[plane.ravel()] = True
    on_faces[0] = False
    anew = np.cumsum(on_faces) * on_faces
    faces = {"keys": keys[on_faces[1:]], "kinds": kinds[on_faces[1:]]}
    for axis, label, exposed in zip("zyx", planes[:3], planes[3:], strict=True):
        faces[f"label_{axis}"] = anew[label]
        faces[f"exposed_{axis}"] = exposed
    return faces


@compiled()
def _add_grey(
    rows: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    label: np.ndarray,
    image: np.ndarray,
    grey: np.ndarray,
) -> None:
    extent_y = image.shape[1]
    for row in range(len(rows) - 1):
        line = image[row // extent_y, row % extent_y]
        for run in range(rows[row], rows[row + 1]):
            own = grey[label[run]]
            for x in range(start[run], stop[run]):
                value = np.int64(line[x])
                own[0] += value
                own[2] += value * value
                own[3] = min(own[3], value)
                own[4] = max(own[4], value)


@compiled()
def _add_contacts(
    rows: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    label: np.ndarray,
    values: np.ndarray,
    contact_of: np.ndarray,
    contacts: np.ndarray,
) -> None:
    """Count the faces that objects share with voxels of other classes within the block."""
    extent_z, extent_y, extent_x = values.shape
    for row in range(len(rows) - 1):
        z, y = row // extent_y, row % extent_y
        for run in range(rows[row], rows[row + 1]):
            own = contacts[label[run]]
            first, last = np.int64(start[run]), np.int64(stop[run])
            kind = values[z, y, first]
            for side in (-1, 1):
                if 0 <= z + side < extent_z:
                    _add_line(values[z + side, y], first, last, kind, contact_of, 0, own)
                if 0 <= y + side < extent_y:
                    _add_line(values[z, y + side], first, last, kind, contact_of, 1, own)
            for beside in (first - 1, last):
                if 0 <= beside < extent_x:
                    _add_line(values[z, y], beside, beside + 1, kind, contact_of, 2, own)


@compiled()
def _add_line(
    line: np.ndarray,
    first: np.int64,
    last: np.int64,
    kind: int,
    contact_of: np.ndarray,
    axis: int,
    own: np.ndarray,
) -> None:
    for x in range(first, last):
        column = contact_of[line[x]]
        if column >= 0 and line[x] != kind:
            own[3 * column + axis] += 1


@compiled()
def paint(
    rows: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    label: np.ndarray,
    numbers: np.ndarray,
    out: np.ndarray,
) -> None:
    """Put the number of each object into its voxels.

    Parameters
    ----------
    rows, start, stop, label
        Runs.
    numbers : (N,) of the type of ``out``
        Number of each object; 0 leaves it out.
    out : (Z, Y, X)
        Zeros; written to.
    """
    extent_y = out.shape[1]
    for row in range(len(rows) - 1):
        line = out[row // extent_y, row % extent_y]
        for run in range(rows[row], rows[row + 1]):
            line[start[run] : stop[run]] = numbers[label[run]]
