"""Extents of objects: equal to a count of the voxels, from boxes of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.morphometry.object_extents import add_extents, object_extents
from cvdask.volume.boxes import Grid
from tests.strategies import block_shapes


def expected(data: np.ndarray, labels: np.ndarray) -> list[tuple]:
    rows = []
    for label in labels.tolist():
        places = np.argwhere(data == label)
        if len(places):
            start, stop = places.min(axis=0), places.max(axis=0) + 1
            rows.append((label, len(places), start.tolist(), stop.tolist()))
    return rows


def as_rows(found: np.ndarray) -> list[tuple]:
    return list(zip(*(found[name].tolist() for name in found.dtype.names), strict=True))


@given(st.data())
def test_boxes_add_up_to_the_whole(data):
    shape = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "uint64", "int32"]))
    largest = np.iinfo(dtype).max
    values = np.array([0, 1, 2, 9, largest], dtype)
    seed = data.draw(st.integers(0, 1000))
    voxels = np.random.default_rng(seed).choice(values, shape, p=(0.5, 0.2, 0.1, 0.1, 0.1))
    grid = Grid(shape, data.draw(block_shapes(shape)))
    chosen = data.draw(st.none() | st.just(np.array([2, 5, largest], np.uint64)))
    parts = [object_extents(voxels[b.write.slices], b.write.start, chosen) for b in grid]
    labels = np.unique(voxels[voxels > 0]) if chosen is None else chosen
    assert as_rows(add_extents(parts)) == expected(voxels, labels)


def test_labels_that_the_type_cannot_hold():
    labels = np.array([3, 300], np.uint64)
    found = object_extents(np.full((2, 2, 2), 3, np.uint8), (0, 0, 0), labels)
    assert found["label"].tolist() == [3]


@pytest.mark.parametrize("parts", [[], [object_extents(np.zeros((1, 1, 1), np.uint8), (0, 0, 0))]])
def test_no_object(parts):
    assert len(add_extents(parts)) == 0
