"""Seams: what crosses from block to block adds up to what the whole array says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.morphometry.block_objects import (
    Examined,
    examine,
    find_class_objects,
    find_instances,
    keys_of,
)
from cvdask.morphometry.configurations import KIND_OF_CELL, N_KINDS_OF_CELL
from cvdask.morphometry.partials import CELLS, EXPOSED, KEY, Layout, merge_rows
from cvdask.morphometry.seams import ABOVE, BELOW, Seam, count_seam
from cvdask.morphometry.survey import contract
from cvdask.volume.boxes import Box, Grid
from tests.morphometry.by_hand import class_volumes, components, rows_of, table_of
from tests.strategies import block_shapes

TABLE = table_of(1, 2)
CONTACT_OF = np.full(256, -1)
CONTACT_OF[1:4] = [0, 1, 2]


def ends_of(box: Box, region: Box) -> np.ndarray:
    pairs = zip(box.start, region.start, box.stop, region.stop, strict=True)
    return np.array([end for a, b, c, d in pairs for end in (a == b, c == d)])


def by_blocks(
    data: np.ndarray, block_shape: Sequence[int], connectivity: int, layout: Layout
) -> tuple[Grid, list[Examined], list[Seam]]:
    """Examine every block, then every border."""
    grid = Grid(data.shape, tuple(block_shape))
    region = Box.whole(data.shape)
    boxes = [block.write for block in grid]
    blocks = []
    for box in boxes:
        part = np.ascontiguousarray(data[box.slices])
        runs, kinds, _ = find_class_objects(part, TABLE, connectivity)
        keys = keys_of(runs, box, data.shape)
        blocks.append(
            examine(
                runs, keys, kinds, box, ends_of(box, region), layout,
                unambiguous=connectivity == 26, values=part, contact_of=CONTACT_OF,
            )
        )  # fmt: skip
    seams = []
    for index, box in enumerate(boxes):
        near = {offset: grid.beside(index, offset) for offset in (*ABOVE, *BELOW)}
        faces = {offset: blocks[n].faces for offset, n in near.items() if n is not None}
        seams.append(count_seam(faces, ends_of(box, region), connectivity, layout))
    return grid, blocks, seams


def put_together(
    blocks: Sequence[Examined], seams: Sequence[Seam], layout: Layout
) -> tuple[np.ndarray, np.ndarray]:
    """Add the rows of all up, objects that are one together."""
    first = dict(contract([seam.edges for seam in seams]).tolist())
    rows = np.concatenate([found.rows for found in (*blocks, *seams)])
    extra = []
    for cell in np.concatenate([found.undecided for found in (*blocks, *seams)]):
        whole = np.array([first.get(key, key) for key in cell.tolist()])
        for key in set(whole.tolist()) - {-1}:
            row = layout.empty(1)[0]
            kind = KIND_OF_CELL[((whole == key) << np.arange(8)).sum()]
            row[KEY] = key
            if kind < N_KINDS_OF_CELL:
                row[CELLS.start + kind] = 1
            extra.append(row)
    rows = np.concatenate([rows, np.array(extra).reshape(-1, layout.width)])
    rows[:, KEY] = [first.get(key, key) for key in rows[:, KEY].tolist()]
    return merge_rows(rows, layout)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@given(data=st.data(), voxels=class_volumes(most=7, n_classes=2))
def test_blocks_add_up_to_the_whole(connectivity, data, voxels):
    block_shape = data.draw(block_shapes(voxels.shape))
    layout = Layout(n_contacts=3)
    _, blocks, seams = by_blocks(voxels, block_shape, connectivity, layout)
    merged, moments = put_together(blocks, seams, layout)
    expected, their_moments = rows_of(voxels, components(voxels, connectivity), TABLE)
    np.testing.assert_array_equal(merged[:, : CELLS.stop], expected)
    assert [[int(m) for m in row] for row in moments] == their_moments
    _, whole, _ = by_blocks(voxels, voxels.shape, connectivity, layout)
    contacts = whole[0].rows[np.argsort(whole[0].rows[:, KEY])][:, layout.contacts]
    np.testing.assert_array_equal(merged[:, layout.contacts], contacts)


@pytest.mark.parametrize("step", [(1, 1, 1), (1, 1, -1), (1, -1, 1), (1, -1, -1)])
def test_a_diagonal_across_a_corner(step):
    """Two voxels in blocks that share a corner only."""
    data = np.zeros((4, 4, 4), np.uint8)
    here = tuple(1 if s > 0 else 2 for s in step)
    there = tuple(h + s for h, s in zip(here, step, strict=True))
    data[here] = data[there] = 1
    for connectivity, n in ((6, 2), (18, 2), (26, 1)):
        layout = Layout()
        _, blocks, seams = by_blocks(data, (2, 2, 2), connectivity, layout)
        merged, _ = put_together(blocks, seams, layout)
        assert len(merged) == n
        assert sum(len(seam.edges) for seam in seams) == 2 - n
        assert merged[:, EXPOSED].sum(0).tolist() == [0, 0, 0, 0, 0, 0, 2]


def test_an_edge_names_the_earlier_object_second():
    data = np.ones((1, 1, 6), np.uint8)
    _, _, seams = by_blocks(data, (1, 1, 2), 26, Layout())
    assert [seam.edges.tolist() for seam in seams] == [[[2, 0]], [[4, 2]], []]


def test_instances_are_one_by_their_key():
    values = np.array([[[7, 7, 7, 9]]])
    layout = Layout()
    faces = []
    for start in (0, 2):
        box = Box((0, 0, start), (1, 1, start + 2))
        runs, keys = find_instances(values[box.slices])
        ends = np.array([True, True, True, True, start == 0, start == 2])
        kinds = np.zeros(len(keys), np.int64)
        faces.append(examine(runs, keys, kinds, box, ends, layout, unambiguous=True))
    ends = np.array([True] * 5 + [False])
    seam = count_seam({(0, 0, 0): faces[0].faces, (0, 0, 1): faces[1].faces}, ends, None, layout)
    assert (seam.edges.shape, seam.undecided.shape) == ((0, 2), (0, 8))
    # The right voxel of the left block has both neighbours of its own along x: 4 faces remain.
    assert seam.rows[:, [KEY, EXPOSED.start + 4]].sum(0).tolist()[1] == 1
    assert set(seam.rows[:, KEY]) == {7}
