"""What hypothesis draws from: small shapes, boxes, halos and grids on one to four axes.

Extents are chosen to hurt: primes and ones are as likely as numbers that divide evenly.
"""

from __future__ import annotations

from hypothesis import strategies as st

from cvdask.volume.boxes import Box, Grid

EXTENTS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13)


def shapes(min_axes: int = 1, max_axes: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw shapes; four axes stay small enough to count voxels one by one."""
    return st.integers(min_axes, max_axes).flatmap(
        lambda n_axes: st.tuples(
            *[st.sampled_from([n for n in EXTENTS if n_axes < 4 or n <= 7])] * n_axes
        )
    )


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...], min_extent: int = 0) -> Box:
    """Draw a box inside an array of this shape, at least ``min_extent`` voxels along each axis."""
    start = [draw(st.integers(0, n - min_extent)) for n in shape]
    stop = [draw(st.integers(a + min_extent, n)) for a, n in zip(start, shape, strict=True)]
    return Box(tuple(start), tuple(stop))


def block_shapes(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw block shapes, up to one voxel more than the volume along each axis."""
    return st.tuples(*[st.integers(1, n + 1) for n in shape])


def halos(n_axes: int) -> st.SearchStrategy[int | tuple[int, ...] | tuple[tuple[int, int], ...]]:
    """Draw halos in each of the three ways they are written."""
    voxels = st.integers(0, 3)
    return st.one_of(
        voxels, st.tuples(*[voxels] * n_axes), st.tuples(*[st.tuples(voxels, voxels)] * n_axes)
    )


@st.composite
def grids(draw: st.DrawFn, min_axes: int = 1, max_axes: int = 4, with_roi: bool = False) -> Grid:
    """Draw a grid with a halo and an alignment; over a region of interest when asked."""
    shape = draw(shapes(min_axes, max_axes))
    n_axes = len(shape)
    return Grid(
        shape,
        draw(block_shapes(shape)),
        halo=draw(halos(n_axes)),
        align=draw(st.none() | st.tuples(*[st.integers(1, 5)] * n_axes)),
        roi=draw(boxes(shape)) if with_roi else None,
    )
