"""What crosses from one block to the next? Contacts of objects, cells and faces along the borders.

Every block has left what lies on its faces (``block_objects``). A block owns the cells whose lowest
voxel it holds, so those along its upper faces take voxels from up to seven blocks above it::

      y ┌────────┬──        o  lowest voxel of a cell that this block owns
        │        │          cells on z, y and x faces, edges and the corner: three slabs of two
        │     o  o          planes, with a margin that the neighbours fill
        └─────o──┼──

1. :func:`gather_planes` puts the faces of a block and its neighbours together, objects numbered
   anew over all of them.
2. :func:`count_seam` joins objects that touch across the border, and counts the cells there.
3. :func:`count_exposed` counts the voxels on a block's faces by their exposed faces, now that their
   neighbours are known; and :func:`count_contacts` what they touch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvdask.compiled import compiled
from cvdask.morphometry.configurations import KIND_OF_CELL, N_KINDS_OF_CELL
from cvdask.morphometry.partials import CELLS, EXPOSED, KEY, KIND, Layout
from cvdask.morphometry.runs import find_root, roots_of, unite
from cvdask.morphometry.surfaces import EXPOSURE, N_EXPOSURES, corner_labels, count_decided

Offset = tuple[int, int, int]
Faces = Mapping[str, np.ndarray]
HERE: Offset = (0, 0, 0)
ABOVE: tuple[Offset, ...] = tuple((z, y, x) for z, y, x in itertools.product((0, 1), repeat=3))
BELOW: tuple[Offset, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
# Corners of a cell that are neighbours, by connectivity: they differ along 1, 2 or 3 axes.
MOST_STEPS = {6: 1, 18: 2, 26: 3}


@dataclass(frozen=True)
class Seam:
    """What the border of a block adds.

    Parameters
    ----------
    rows : (N, width) int64
        Partials without voxels, of objects on both sides.
    edges : (E, 2) int64
        Keys of objects that are one.
    undecided : (C, 8) int64
        As in ``block_objects``.
    """

    rows: np.ndarray
    edges: np.ndarray
    undecided: np.ndarray


@dataclass(frozen=True)
class _Planes:
    """Faces of a block and its neighbours, over one numbering of objects from 1."""

    keys: np.ndarray  # (N,) int64
    kinds: np.ndarray
    faces: Mapping[Offset, Faces]
    before: Mapping[Offset, int]  # objects of the blocks that come first

    def own(self, axis: str, side: int) -> np.ndarray:
        """Return a face of the block itself, whose objects are numbered first."""
        return np.asarray(self.faces[HERE][f"label_{axis}"][side])

    def plane(self, offset: Offset, axis: str, side: int, part: Any = ...) -> np.ndarray | None:
        """Return the lower (0) or upper (1) face of a block, or a part of it; None without a block.

        Numbered when asked for: of most neighbours a line or a corner is all that is needed.
        """
        if offset not in self.faces:
            return None
        label = self.faces[offset][f"label_{axis}"][side][part]
        return np.where(label > 0, label + self.before[offset], 0)


def gather_planes(faces: Mapping[Offset, Faces], *, by_key: bool = False) -> _Planes:
    """Number the objects on the faces of a block and its neighbours together.

    Parameters
    ----------
    faces : mapping of offset to faces
        Of the block itself, (0, 0, 0), and of those of its neighbours that exist.
    by_key : bool
        Objects of one key are one, rather than those of one class that touch.
    """
    # The block itself comes first: its faces hold its numbers as they are.
    ordered = sorted(faces, key=lambda offset: offset != HERE)
    keys = [faces[offset]["keys"] for offset in ordered]
    kinds = keys if by_key else [faces[offset]["kinds"] for offset in ordered]
    counts = itertools.accumulate((len(own) for own in keys[:-1]), initial=0)
    before = dict(zip(ordered, counts, strict=True))
    return _Planes(np.concatenate(keys), np.concatenate(kinds), faces, before)


def count_seam(
    faces: Mapping[Offset, Faces], ends: np.ndarray, connectivity: int | None, layout: Layout
) -> Seam:
    """Join and count what crosses the upper faces of a block, and count its faces' voxels.

    Parameters
    ----------
    faces : mapping of offset to faces
        Of the block itself and of its neighbours at ``ABOVE`` and ``BELOW`` that exist.
    ends : (6,) bool
        Which faces of the block are faces of what is measured.
    connectivity : {6, 18, 26} or None
        None where objects are known by their kind: nothing is joined but what has one key.
    layout : Layout
    """
    planes = gather_planes(faces, by_key=connectivity is None)
    n = len(planes.keys)
    parent = np.arange(n + 1)
    cells = np.zeros((n, N_KINDS_OF_CELL), np.int64)
    steps = MOST_STEPS.get(connectivity or 26, 3)
    undecided = [np.zeros((0, 8), np.int64)]
    for slab, first, last in _slabs(planes, ends):
        undecided.append(
            _count_slab(
                slab,
                np.array(first),
                np.array(last),
                planes.kinds,
                steps,
                KIND_OF_CELL,
                parent,
                cells,
            )
        )
    known = np.append(-1, planes.keys)
    roots = roots_of(parent)
    joined = np.flatnonzero(roots != np.arange(n + 1))
    edges = np.stack([known[joined], known[roots[joined]]], axis=1)
    if connectivity is None:
        edges = edges[:0]

    rows = layout.empty(n)
    rows[:, KEY] = planes.keys
    rows[:, KIND] = planes.kinds if connectivity is not None else 0
    rows[:, CELLS] = cells
    own = faces[HERE]
    rows[:, EXPOSED] = count_exposed(planes, own, ends)
    if layout.n_contacts:
        rows[:, layout.contacts] = count_contacts(planes, faces, layout.n_contacts)
    counted = rows[:, EXPOSED.start :].copy()
    if layout.intensity:
        counted[:, layout.grey.start - EXPOSED.start : layout.grey.stop - EXPOSED.start] = 0
    return Seam(rows[counted.any(1)], edges, known[np.concatenate(undecided)])


def _slabs(planes: _Planes, ends: np.ndarray) -> list[tuple[np.ndarray, list[int], list[int]]]:
    """Build the slabs of two planes along the upper faces of a block.

    Returns
    -------
    list of (slab, first, last)
        Object numbers, with a margin of one voxel before and behind along the axes of the face,
        and the lowest voxels of the cells to count: ``first <= voxel <= last`` per axis.
    """
    slabs = []
    for axis, name in enumerate("zyx"):
        if ends[2 * axis + 1]:
            continue
        sides = []
        for side in (1, 0):  # this block's upper face, and the next block's lower one
            forward = [0, 0, 0]
            forward[axis] = 1 - side
            sides.append(_with_margin(planes, (forward[0], forward[1], forward[2]), name, side))
        slab = np.stack(sides, axis=axis)
        first = [0 if ends[2 * other] else 1 for other in range(3)]
        # Voxel n of the block is at n + 1 in the slab; a cell behind the last voxel of another
        # axis is counted here, unless an earlier axis has counted it.
        last = []
        for other in range(3):
            behind = slab.shape[other] - 2
            last.append(behind - 1 if other < axis and not ends[2 * other + 1] else behind)
        first[axis] = last[axis] = 0
        slabs.append((slab, first, last))
    return slabs


def _with_margin(planes: _Planes, offset: Offset, axis: str, side: int) -> np.ndarray:
    """Return a face with a margin of one voxel; what lies behind it comes from the neighbours."""
    plane = planes.plane(offset, axis, side)
    assert plane is not None
    out = np.zeros(tuple(v + 2 for v in plane.shape), np.int64)
    out[1:-1, 1:-1] = plane
    first, second = (other for other in range(3) if "zyx"[other] != axis)

    for along, target, source in (
        ((first,), (-1, slice(1, -1)), (0, slice(None))),
        ((second,), (slice(1, -1), -1), (slice(None), 0)),
        ((first, second), (-1, -1), (0, 0)),
    ):
        shifted = list(offset)
        for other in along:
            shifted[other] += 1
        beside = (shifted[0], shifted[1], shifted[2])
        found = planes.plane(beside, axis, side, source)
        if found is not None:
            out[target] = found
    return out


@compiled()
def _count_slab(
    slab: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    kinds: np.ndarray,
    most_steps: int,
    kind_of_cell: np.ndarray,
    parent: np.ndarray,
    cells: np.ndarray,
) -> np.ndarray:
    """Join and count the cells of a slab; return those with several objects of one class."""
    undecided = np.empty((64, 8), np.int64)
    n_undecided = 0
    voxels = np.empty(8, np.int64)
    for z in range(first[0], last[0] + 1):
        for y in range(first[1], last[1] + 1):
            a, b = slab[z, y], slab[z, y + 1]
            c, d = slab[z + 1, y], slab[z + 1, y + 1]
            for x in range(first[2], last[2] + 1):
                corner_labels(a, b, c, d, x, voxels)
                differs = False
                for k in range(1, 8):
                    differs |= voxels[k] != voxels[0]
                if not differs:
                    continue
                _join_corners(voxels, kinds, most_steps, parent)
                if most_steps == 3:
                    # All of one class are one object now: count them under its present root.
                    for k in range(8):
                        voxels[k] = find_root(parent, voxels[k])
                    count_decided(voxels, kinds, kind_of_cell, cells)
                    continue
                corners = count_decided(voxels, kinds, kind_of_cell, cells)
                if corners:
                    if n_undecided == len(undecided):
                        larger = np.empty((2 * n_undecided, 8), np.int64)
                        larger[:n_undecided] = undecided
                        undecided = larger
                    for k in range(8):
                        undecided[n_undecided, k] = voxels[k] if corners >> k & 1 else 0
                    n_undecided += 1
    return undecided[:n_undecided].copy()


@compiled()
def _join_corners(
    voxels: np.ndarray, kinds: np.ndarray, most_steps: int, parent: np.ndarray
) -> None:
    """Join the objects of one class at corners of a cell that are neighbours."""
    for k in range(8):
        if voxels[k] == 0:
            continue
        for j in range(k + 1, 8):
            if voxels[j] == 0 or voxels[j] == voxels[k]:
                continue
            steps = ((k ^ j) & 1) + ((k ^ j) >> 1 & 1) + ((k ^ j) >> 2 & 1)
            if steps <= most_steps and kinds[voxels[k] - 1] == kinds[voxels[j] - 1]:
                unite(parent, voxels[k], voxels[j])


# ---------------------------------------------------------------------------------------------
# Voxels on the faces of a block


def count_exposed(planes: _Planes, own: Faces, ends: np.ndarray) -> np.ndarray:
    """Count the voxels on the inner faces of a block by their exposed faces.

    Parameters
    ----------
    planes : _Planes
    own : faces
        Of the block.
    ends : (6,) bool
        Faces of the volume, whose voxels the block has counted, unless another face takes them.

    Returns
    -------
    (N, 7) int64
    """
    shape = (own["label_y"].shape[1], own["label_z"].shape[1], own["label_z"].shape[2])
    outward = {
        (axis, side): _outward(planes, axis, side)
        for axis in range(3)
        for side in (0, 1)
        if not ends[2 * axis + side]
    }
    counts = np.zeros(len(planes.keys) * N_EXPOSURES, np.int64)
    done: list[tuple[int, int]] = []  # (axis, voxel) of faces that earlier axes have counted
    for axis in range(3):
        sides = sorted({_voxel(side, shape[axis]) for a, side in outward if a == axis})
        others = [other for other in range(3) if other != axis]
        for voxel in sides:
            side = 0 if voxel == 0 else 1
            label = planes.own("zyx"[axis], side)
            bits = own[f"exposed_{'zyx'[axis]}"][side].astype(np.uint8)
            for (a, s), exposed in outward.items():
                at = _voxel(s, shape[a])
                if a == axis and at == voxel:
                    bits |= exposed
                elif a != axis:
                    # A line of that face lies on this one.
                    line, position = _line(exposed, a, axis, voxel), others.index(a)
                    index = (at, slice(None)) if position == 0 else (slice(None), at)
                    bits[index] |= line
            wanted = label > 0
            for a, at in done:
                index = (at, slice(None)) if others.index(a) == 0 else (slice(None), at)
                wanted[index] = False
            kind = EXPOSURE[bits[wanted]]
            of = label[wanted][kind < N_EXPOSURES] - 1
            counts += np.bincount(
                of * N_EXPOSURES + kind[kind < N_EXPOSURES], minlength=len(counts)
            )
        done += [(axis, voxel) for voxel in sides]
    return counts.reshape(-1, N_EXPOSURES)


def _voxel(side: int, extent: int) -> int:
    return 0 if side == 0 else extent - 1


def _line(plane: np.ndarray, face: int, axis: int, voxel: int) -> np.ndarray:
    """Cut the voxels at one position of an axis out of a face of another axis."""
    others = [other for other in range(3) if other != face]
    return np.take(plane, voxel, others.index(axis))


def _outward(planes: _Planes, axis: int, side: int) -> np.ndarray:
    """Return the bit of an inner face's direction where its voxels are exposed to the neighbour."""
    name = "zyx"[axis]
    beyond = [0, 0, 0]
    beyond[axis] = 1 if side else -1
    own = planes.own(name, side)
    other = planes.plane((beyond[0], beyond[1], beyond[2]), name, 1 - side)
    assert other is not None
    kinds = np.append(-1, planes.kinds)
    exposed = (own > 0) & (kinds[own] != kinds[other])
    return np.where(exposed, np.uint8(1 << (2 * axis + side)), np.uint8(0))


def count_contacts(planes: _Planes, faces: Mapping[Offset, Faces], n_contacts: int) -> np.ndarray:
    """Count what the voxels on the inner faces of a block share with classes behind them.

    Parameters
    ----------
    planes : _Planes
    faces : mapping of offset to faces
        With ``value_…``: contact columns from 1, 0 for no class that is counted.
    n_contacts : int

    Returns
    -------
    (N, 3 * n_contacts) int64
    """
    width = 3 * n_contacts
    counts = np.zeros(len(planes.keys) * width, np.int64)
    for axis, name in enumerate("zyx"):
        for side in (0, 1):
            beyond = [0, 0, 0]
            beyond[axis] = 1 if side else -1
            other = faces.get((beyond[0], beyond[1], beyond[2]))
            if other is None:
                continue
            label = planes.own(name, side)
            value = other[f"value_{name}"][1 - side]
            touching = (label > 0) & (value > 0) & (value != faces[HERE][f"value_{name}"][side])
            place = (label[touching] - 1) * width + 3 * (value[touching] - 1) + axis
            counts += np.bincount(place, minlength=len(counts))
    return counts.reshape(-1, width)
