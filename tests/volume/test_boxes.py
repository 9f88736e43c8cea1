"""Do the blocks of a grid tile the volume, and are all boxes where they are said to be?"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.volume.boxes import Block, Box, Grid, axis_name, normalize_halo
from tests import strategies


def count_written(grid: Grid) -> np.ndarray:
    """Count, voxel by voxel, how many blocks write it: the definition of tiling."""
    count = np.zeros(grid.shape, dtype=int)
    for block in grid:
        count[block.write.slices] += 1
    return count


# Small cases, written out


def test_blocks_of_one_axis():
    assert list(Grid((10,), (4,), halo=1)) == [
        Block(0, read=Box((0,), (5,)), write=Box((0,), (4,))),
        Block(1, read=Box((3,), (9,)), write=Box((4,), (8,))),
        Block(2, read=Box((7,), (10,)), write=Box((8,), (10,))),
    ]


def test_blocks_of_three_axes_in_zyx_order():
    # The halo is (before, behind) along z, the same on both sides along y, none along x.
    grid = Grid((3, 5, 4), (2, 3, 2), halo=((1, 0), (1, 1), (0, 0)))
    assert list(grid) == [
        Block(0, Box((0, 0, 0), (2, 4, 2)), Box((0, 0, 0), (2, 3, 2))),
        Block(1, Box((0, 0, 2), (2, 4, 4)), Box((0, 0, 2), (2, 3, 4))),
        Block(2, Box((0, 2, 0), (2, 5, 2)), Box((0, 3, 0), (2, 5, 2))),
        Block(3, Box((0, 2, 2), (2, 5, 4)), Box((0, 3, 2), (2, 5, 4))),
        Block(4, Box((1, 0, 0), (3, 4, 2)), Box((2, 0, 0), (3, 3, 2))),
        Block(5, Box((1, 0, 2), (3, 4, 4)), Box((2, 0, 2), (3, 3, 4))),
        Block(6, Box((1, 2, 0), (3, 5, 2)), Box((2, 3, 0), (3, 5, 2))),
        Block(7, Box((1, 2, 2), (3, 5, 4)), Box((2, 3, 2), (3, 5, 4))),
    ]


def test_aligned_read_boxes():
    # Halo 1 asks for 3:9; multiples of 4 around that are 0:12, and the volume ends at 10.
    grid = Grid((10,), (4,), halo=1, align=(4,))
    assert [block.read for block in grid] == [
        Box((0,), (8,)),
        Box((0,), (10,)),
        Box((4,), (10,)),
    ]


def test_largest_read_allows_for_alignment():
    # Block 1 writes 4:8, its halo asks for 3:9, multiples of 8 around that are 0:16.
    grid = Grid((96,), (4,), halo=1, align=(8,))
    assert max(block.read.size for block in grid) == 16
    assert grid.largest_read == 20  # 4 + 2 · 1 + 2 · 7, an upper bound
    assert Grid((96,), (4,)).largest_read == 4
    assert Grid((3,), (4,), halo=1).largest_read == 3


def test_region_keeps_the_cells_of_the_volume():
    grid = Grid((10, 10), (4, 4), roi=Box((5, 3), (7, 6)))
    assert [(block.index, block.write) for block in grid] == [
        (0, Box((4, 0), (8, 4))),
        (1, Box((4, 4), (8, 8))),
    ]
    assert grid.cells == Box((1, 0), (2, 2))


def test_inner_cuts_the_halo_off():
    voxels = np.arange(10)
    grid = Grid((10,), (4,), halo=2)
    kept = [voxels[block.read.slices][block.inner].tolist() for block in grid]
    assert kept == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_nothing_to_visit():
    assert list(Grid((0, 5), (2, 2))) == []
    assert list(Grid((4, 5), (2, 2), roi=Box((1, 3), (1, 5)))) == []
    assert list(Grid((0, 5), (2, 2)).touching(Box((0, 0), (1, 1)))) == []


def test_box_arithmetic():
    box = Box((2, 4), (5, 6))
    assert (box.shape, box.size, str(box)) == ((3, 2), 6, "2:5,4:6")
    assert box.slices == (slice(2, 5), slice(4, 6))
    assert box.shift((1, -4)) == Box((3, 0), (6, 2))
    assert box.grow((2, 0), (1, 3)) == Box((0, 4), (6, 9))
    assert box.align((4, 4)) == Box((0, 4), (8, 8))
    assert box.scale((2, 3)) == Box((4, 12), (10, 18))
    assert box.intersect(Box((3, 0), (9, 5))) == Box((3, 4), (5, 5))
    assert box.intersect(Box((5, 0), (9, 9))).size == 0
    assert box.within(Box((1, 4), (9, 9))) == (slice(1, 4), slice(0, 2))


def test_boxes_hold_python_integers():
    box = Box(tuple(np.array([0, 1])), tuple(np.array([2, 3])))
    assert [type(v) for v in (*box.start, *box.stop)] == [int] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:5,0:6,0:7", Box((0, 0, 0), (5, 6, 7))),
        (":,:,:", Box((0, 0, 0), (5, 6, 7))),
        ("2,1:,:3", Box((2, 1, 0), (3, 6, 3))),
        ("-1,-2:,:-3", Box((4, 4, 0), (5, 6, 4))),
        (" 1 : 2 , 0 , 6 ", Box((1, 0, 6), (2, 1, 7))),  # as pasted from a table
    ],
)
def test_parse(text: str, expected: Box):
    assert Box.parse(text, (5, 6, 7)) == expected


@pytest.mark.parametrize(
    ("halo", "expected"),
    [
        (2, ((2, 2), (2, 2), (2, 2))),
        ((0, 1, 2), ((0, 0), (1, 1), (2, 2))),
        (((0, 1), (2, 3), (4, 5)), ((0, 1), (2, 3), (4, 5))),
        ((1, (0, 2), 3), ((1, 1), (0, 2), (3, 3))),
    ],
)
def test_halo_is_one_pair_per_axis(halo, expected):
    assert normalize_halo(halo, 3) == expected


def test_axis_names():
    assert [axis_name(axis, 3) for axis in range(3)] == ["z", "y", "x"]
    assert [axis_name(axis, 5) for axis in range(5)] == ["axis 0", "axis 1", "z", "y", "x"]
    assert [axis_name(axis, 2) for axis in range(2)] == ["axis 0", "axis 1"]


# Invariants


@given(grid=strategies.grids())
def test_write_boxes_tile_the_volume_once(grid: Grid):
    np.testing.assert_array_equal(count_written(grid), 1)


@given(grid=strategies.grids())
def test_blocks_are_numbered_as_they_come(grid: Grid):
    blocks = list(grid)
    assert [block.index for block in blocks] == list(range(len(grid)))
    assert [grid[index] for index in range(len(grid))] == blocks
    corners = [block.write.start for block in blocks]
    assert corners == sorted(corners)  # tuples compare in z, y, x order


@given(grid=strategies.grids(with_roi=True))
def test_read_box_is_the_smallest_aligned_box_around_write_box_and_halo(grid: Grid):
    bounds = Box.whole(grid.shape)
    for block in grid:
        assert block.read.contains(block.write)
        assert bounds.contains(block.read)
        for axis, (lower, upper) in enumerate(grid.halo):
            extent, step = grid.shape[axis], grid.align[axis]
            first = max(0, block.write.start[axis] - lower)
            last = min(extent, block.write.stop[axis] + upper)
            start, stop = block.read.start[axis], block.read.stop[axis]
            assert first - step < start <= first
            assert start % step == 0
            assert last <= stop < last + step
            assert stop % step == 0 or stop == extent


@given(grid=strategies.grids())
def test_inner_is_the_write_box(grid: Grid):
    voxels = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    for block in grid:
        np.testing.assert_array_equal(
            voxels[block.read.slices][block.inner], voxels[block.write.slices]
        )


@given(grid=strategies.grids(with_roi=True))
def test_no_read_box_exceeds_the_largest(grid: Grid):
    assert all(block.read.size <= grid.largest_read for block in grid)


@given(grid=strategies.grids(with_roi=True))
def test_region_visits_the_blocks_it_touches_and_no_other(grid: Grid):
    everywhere = Grid(grid.shape, grid.block_shape, halo=grid.halo, align=grid.align)
    expected = [
        (block.read, block.write)
        for block in everywhere
        if block.write.intersect(grid.roi).size > 0
    ]
    assert [(block.read, block.write) for block in grid] == expected
    count = count_written(grid)
    assert count.max(initial=0) <= 1
    np.testing.assert_array_equal(count[grid.roi.slices], 1)


@given(data=st.data(), grid=strategies.grids(max_axes=3, with_roi=True))
def test_touching_finds_what_a_search_of_all_blocks_finds(data: st.DataObject, grid: Grid):
    # The box may leave the volume on either side.
    start = tuple(data.draw(st.integers(-3, n + 3)) for n in grid.shape)
    stop = tuple(data.draw(st.integers(a, a + 8)) for a in start)
    box = Box(start, stop)
    expected = [block for block in grid if block.write.intersect(box).size > 0]
    assert list(grid.touching(box)) == expected


@given(data=st.data(), shape=strategies.shapes())
def test_parse_reads_what_str_writes(data: st.DataObject, shape: tuple[int, ...]):
    box = data.draw(strategies.boxes(shape, min_extent=1))
    assert Box.parse(str(box), shape) == box


@given(data=st.data(), shape=strategies.shapes(max_axes=3))
def test_intersect_contains_and_within_agree_with_sets_of_voxels(
    data: st.DataObject, shape: tuple[int, ...]
):
    a, b = data.draw(strategies.boxes(shape)), data.draw(strategies.boxes(shape))
    of_a, of_b = (set(itertools.product(*map(range, box.start, box.stop))) for box in (a, b))
    both = a.intersect(b)
    assert set(itertools.product(*map(range, both.start, both.stop))) == of_a & of_b
    if a.contains(b):
        assert of_b <= of_a
        index = np.arange(np.prod(shape)).reshape(shape)
        np.testing.assert_array_equal(index[a.slices][b.within(a)], index[b.slices])
    elif of_b:
        assert not of_b <= of_a


@given(data=st.data(), n_axes=st.integers(1, 4))
def test_normal_halo_is_left_as_it_is(data: st.DataObject, n_axes: int):
    halo = normalize_halo(data.draw(strategies.halos(n_axes)), n_axes)
    assert normalize_halo(halo, n_axes) == halo
    assert len(halo) == n_axes


def test_a_grid_of_a_million_million_blocks_is_only_numbers():
    grid = Grid((10**7, 10**7, 10**7), (1000, 1000, 1000), halo=8)
    assert len(grid) == 10**12
    last = grid[10**12 - 1]
    assert last.write == Box((9_999_000,) * 3, (10_000_000,) * 3)
    assert last.read.start == (9_998_992,) * 3
    corner = Box((9_999_999,) * 3, (10_000_000,) * 3)
    assert list(grid.touching(corner)) == [last]


# Errors


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0:5,0:6", "3 comma-separated.*'0:5,0:6'"),
        ("0:5,0:6,0:7,0:8", "0:5,0:6,0:7.*'0:5,0:6,0:7,0:8'"),
        ("0:5,a:6,0:7", "along y: 'a:6'"),
        ("0:5,0:6,1:2:3", "along x: '1:2:3'"),
        (",0:6,0:7", "along z: ''"),
        ("0:9,0:6,0:7", "along z: '0:9' = 0:9.* 5 voxels"),
        ("0:5,3:3,0:7", "along y: '3:3' = 3:3.* 6 voxels"),
        ("0:5,0:6,7", "along x: '7' = 7:8.* 7 voxels"),
        ("-6,0:6,0:7", "along z: '-6' = -1:0.* 5 voxels"),
    ],
)
def test_parse_refuses(text: str, values: str):
    with pytest.raises(ValueError, match=values):
        Box.parse(text, (5, 6, 7))


def test_box_refuses():
    with pytest.raises(ValueError, match=r"along y: 5:3"):
        Box((0, 5, 0), (1, 3, 1))
    with pytest.raises(ValueError, match=r"\(0, 1\) and \(2,\)"):
        Box((0, 1), (2,))


def test_within_refuses_a_box_that_sticks_out():
    with pytest.raises(ValueError, match=r"0:4,2:9 .* 0:4,2:8"):
        Box((0, 2), (4, 9)).within(Box((0, 2), (4, 8)))


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"block_shape": (4, 4)}, r"\(4, 4\).*\(9, 9, 9\)"),
        ({"block_shape": (4, 0, 4)}, "block shape.*along y: 0"),
        ({"align": (1, 1)}, r"alignment \(1, 1\).*\(9, 9, 9\)"),
        ({"align": (1, 1, -2)}, "alignment.*along x: -2"),
        ({"halo": (1, 2)}, r"3 axes.*\(1, 2\)"),
        ({"halo": (1, -2, 1)}, "along y: -2"),
        ({"halo": ((0, 0), (0, 0), (0, -3))}, r"along x: \(0, -3\)"),
        ({"roi": Box((0, 0, 0), (9, 10, 9))}, r"0:9,0:10,0:9.*\(9, 9, 9\)"),
    ],
)
def test_grid_refuses(options: dict, values: str):
    with pytest.raises(ValueError, match=values):
        Grid((9, 9, 9), **{"block_shape": (4, 4, 4), **options})


@pytest.mark.parametrize("index", [-1, 3])
def test_grid_has_no_such_block(index: int):
    with pytest.raises(IndexError, match=f"3 blocks.*block {index}"):
        Grid((10,), (4,))[index]
