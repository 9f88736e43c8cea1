"""Surfaces of a block: cells and exposed faces, against counts over the whole array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.morphometry.configurations import KIND_OF_CELL
from cvdask.morphometry.runs import connect, find_runs, number
from cvdask.morphometry.surfaces import EXPOSURE, count_surfaces
from tests.morphometry.by_hand import (
    cells_of,
    class_volumes,
    components,
    exposed_faces_of,
    exposures_of,
    table_of,
)

ALL_ENDS = (True,) * 6


def counted(data: np.ndarray, connectivity: int, ends: tuple[bool, ...] = ALL_ENDS):
    table = table_of(1, 2, 3)
    rows, start, stop, kind, _ = find_runs(data, table)
    label, first = number(connect(rows, start, stop, kind, data.shape[1], connectivity))
    cells = np.zeros((len(first), 44), np.int64)
    exposed = np.zeros((len(first), 7), np.int64)
    planes, undecided = count_surfaces(
        rows, start, stop, label, kind[first], data.shape, np.array(ends), KIND_OF_CELL, EXPOSURE,
        connectivity == 26, cells, exposed,
    )  # fmt: skip
    return cells, exposed, planes, undecided


def test_columns_of_exposed_faces():
    assert EXPOSURE[0] == 255
    assert [EXPOSURE[1 << side] for side in range(6)] == [0] * 6
    assert EXPOSURE[0b000011] == EXPOSURE[0b000101] == 1
    assert EXPOSURE[0b010101] == 2  # three faces around a corner
    assert EXPOSURE[0b000111] == 3  # with an opposite pair
    assert (EXPOSURE[0b001111], EXPOSURE[0b011111], EXPOSURE[0b111111]) == (4, 5, 6)
    assert np.bincount(EXPOSURE[1:]).tolist() == [6, 15, 8, 12, 15, 6, 1]


def test_one_voxel():
    cells, exposed, planes, undecided = counted(np.ones((1, 1, 1), np.uint8), 26)
    assert np.array_equal(cells[0], cells_of(np.ones((1, 1, 1), bool)))
    assert cells.sum() == 8
    assert exposed.tolist() == [[0, 0, 0, 0, 0, 0, 1]]
    assert [plane.ravel().tolist() for plane in planes] == [[1, 1]] * 3 + [[63, 63]] * 3
    assert len(undecided) == 0


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@given(data=class_volumes(most=8, n_classes=3))
def test_each_object_of_a_whole_volume(connectivity, data):
    cells, exposed, planes, undecided = counted(data, connectivity)
    labels = components(data, connectivity)
    assert len(cells) == labels.max()
    for row in undecided:  # all of one class or several; of each one that is there
        for label in set(row.tolist()) - {0}:
            code = sum(int(row[bit] == label) << bit for bit in range(8))
            cells[label - 1, KIND_OF_CELL[code]] += 1
    assert connectivity != 26 or len(undecided) == 0
    for label in range(1, labels.max() + 1):
        mask = labels == label
        assert cells[label - 1].tolist() == cells_of(mask).tolist()
        assert exposed[label - 1].tolist() == exposures_of(mask).tolist()
    for axis in range(3):
        for side in (0, 1):
            own = np.take(labels, -side, axis)
            np.testing.assert_array_equal(planes[axis][side], own)


def test_undecided_cells_hold_several_objects_of_one_class():
    data = np.zeros((2, 2, 3), np.uint8)
    data[0, 0, 0], data[1, 1, 1] = 1, 1  # diagonal
    data[0, 0, 2] = 2
    _, _, _, undecided = counted(data, 18)
    # Of the cell that holds both; of the next one, class 2 and a voxel of class 1 are decided.
    assert undecided.tolist() == [[1, 0, 0, 0, 0, 0, 0, 3]]


@given(data=class_volumes(most=6), ends=st.tuples(*[st.booleans()] * 6))
def test_what_lies_on_inner_faces_is_left_to_the_seam(data, ends):
    """Cells with a voxel beyond, and voxels on an inner face, are not counted; others are."""
    cells, exposed, planes, _ = counted(data, 26, ends)
    labels = components(data, 26)
    # Beyond an inner face lies more of the same: what no cell or voxel here may depend on.
    pad = [(0 if ends[2 * axis] else 1, 0 if ends[2 * axis + 1] else 1) for axis in range(3)]
    within = tuple(slice(a, n + a) for (a, _), n in zip(pad, data.shape, strict=True))
    inner = np.ones(data.shape, bool)
    for axis in range(3):
        for side in (0, 1):
            if not ends[2 * axis + side]:
                index = [slice(None)] * 3
                index[axis] = -side
                inner[tuple(index)] = False
    for label in range(1, labels.max() + 1):
        mask = labels == label
        faces = exposed_faces_of(np.pad(mask, pad, mode="edge"))
        bits = sum(face[within].astype(np.int64) << s for s, face in enumerate(faces))
        chosen = bits[inner & mask & (bits > 0)]
        expected = np.bincount(EXPOSURE[chosen], minlength=7)
        assert exposed[label - 1].tolist() == expected.tolist()
        for axis in range(3):
            for side in (0, 1):
                own = np.take(bits, -side, axis) * (np.take(labels, -side, axis) == label)
                there = planes[3 + axis][side] * (planes[axis][side] == label)
                np.testing.assert_array_equal(there, own)
        # A cell is counted unless it reaches beyond: those of the object cut at inner faces.
        whole = np.pad(mask, 1)
        cut = tuple(
            slice(0 if ends[2 * axis] else 1, None if ends[2 * axis + 1] else -1)
            for axis in range(3)
        )
        part = whole[cut]
        codes = np.zeros(tuple(max(n - 1, 0) for n in part.shape), np.uint8)
        for bit, corner in enumerate(np.ndindex(2, 2, 2)):
            view = tuple(
                slice(c, max(n - 1, 0) + c) for c, n in zip(corner, part.shape, strict=True)
            )
            codes |= part[view].astype(np.uint8) << bit
        kinds = KIND_OF_CELL[codes]
        expected = np.bincount(kinds[kinds < 44], minlength=44)
        assert cells[label - 1].tolist() == expected.tolist()
