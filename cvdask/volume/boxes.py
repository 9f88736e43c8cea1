"""Where is it, in whole voxels? Boxes, blocks and the grids that tile a volume.

Everything here is integer arithmetic on frozen values: nothing is opened, nothing allocated.

1. A :class:`Box` is a half-open range of voxels, ``start <= voxel < stop`` on every axis.
2. A :class:`Block` is one unit of work: the box it *reads* and the box it *writes*.
3. A :class:`Grid` numbers the blocks of a region; their write boxes tile it, each voxel once.

One axis of a grid over 10 voxels with blocks of 4 and a halo of 1::

    voxel   0 1 2 3 4 5 6 7 8 9
    write   [--0--] [--1--] [2]
    read    [---0---]
                  [----1----]
                          [-2-]

Axes are ``z, y, x``; every function takes any number of axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

AXES = "zyx"


def axis_name(axis: int, n_axes: int) -> str:
    """Name an axis for people: the last three are ``z``, ``y``, ``x``.

    >>> axis_name(0, 3), axis_name(0, 4)
    ('z', 'axis 0')
    """
    spatial = axis - (n_axes - len(AXES))
    return AXES[spatial] if spatial >= 0 and n_axes >= len(AXES) else f"axis {axis}"


@dataclass(frozen=True, order=True)
class Box:
    """A half-open range of voxels.

    Parameters
    ----------
    start, stop : tuple of int
        First voxel, and one past the last, per axis; ``start <= stop``.

    Raises
    ------
    ValueError
        When the lengths differ or a stop lies before its start.

    Examples
    --------
    >>> box = Box((0, 4, 4), (2, 8, 10))
    >>> box.shape, box.size
    ((2, 4, 6), 48)
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(int(v) for v in self.start))
        object.__setattr__(self, "stop", tuple(int(v) for v in self.stop))
        if len(self.start) != len(self.stop):
            raise ValueError(
                f"a box needs as many starts as stops. Received: {self.start} and {self.stop}"
            )
        for axis, (low, high) in enumerate(zip(self.start, self.stop, strict=True)):
            if high < low:
                name = axis_name(axis, len(self.start))
                raise ValueError(
                    f"a box must not stop before it starts. Received along {name}: {low}:{high}"
                )

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """Return the box of a whole array of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def parse(cls, text: str, shape: Sequence[int]) -> Box:
        """Read a box as people write it: ``z0:z1,y0:y1,x0:x1``, ends may be left out.

        Parameters
        ----------
        text : str
            One part per axis: ``3:9``, ``:9``, ``3:``, ``:`` or a single index ``3``. Negative
            numbers count from the end, as in Python.
        shape : sequence of int
            Shape of the volume, which bounds the box.

        Raises
        ------
        ValueError
            When the number of parts differs from the number of axes, a part is no range, the box
            is empty or leaves the volume.

        Examples
        --------
        >>> Box.parse("2,:,-4:", (5, 6, 7))
        Box(start=(2, 0, 3), stop=(3, 6, 7))
        """
        shape = tuple(shape)
        parts = text.split(",")
        if len(parts) != len(shape):
            raise ValueError(
                f"a box of this volume needs {len(shape)} comma-separated ranges, such as "
                f"{','.join(f'0:{n}' for n in shape)}. Received: {text!r}"
            )
        start, stop = [], []
        for axis, (part, extent) in enumerate(zip(parts, shape, strict=True)):
            name = axis_name(axis, len(shape))
            try:
                low, high = _parse_range(part, extent)
            except ValueError:
                raise ValueError(
                    f"a range is written first:last+1 or as one index. Received along {name}: "
                    f"{part!r} in {text!r}"
                ) from None
            if not 0 <= low < high <= extent:
                raise ValueError(
                    f"the box must hold at least one voxel and lie inside the volume. Received "
                    f"along {name}: {part!r} = {low}:{high}, the volume has {extent} voxels there"
                )
            start.append(low)
            stop.append(high)
        return cls(tuple(start), tuple(stop))

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of this box in the array it lives in."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Index of this box in an array that holds just the voxels of ``outer``.

        Raises
        ------
        ValueError
            When this box is not contained in ``outer``.
        """
        if not outer.contains(self):
            raise ValueError(f"box {self} must lie inside box {outer}")
        return self.shift(tuple(-v for v in outer.start)).slices

    def contains(self, other: Box) -> bool:
        """Tell whether every voxel of ``other`` is in this box."""
        return all(
            a <= c and d <= b
            for a, b, c, d in zip(self.start, self.stop, other.start, other.stop, strict=True)
        )

    def shift(self, offset: Sequence[int]) -> Box:
        """Move the box by whole voxels."""
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def intersect(self, other: Box) -> Box:
        """Return what both boxes share; of size 0 where they share nothing."""
        start = tuple(max(a, c) for a, c in zip(self.start, other.start, strict=True))
        stop = tuple(min(b, d) for b, d in zip(self.stop, other.stop, strict=True))
        return Box(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def grow(self, lower: Sequence[int], upper: Sequence[int]) -> Box:
        """Add ``lower`` voxels before and ``upper`` voxels behind, per axis."""
        return Box(
            tuple(a - v for a, v in zip(self.start, lower, strict=True)),
            tuple(b + v for b, v in zip(self.stop, upper, strict=True)),
        )

    def align(self, steps: Sequence[int]) -> Box:
        """Return the smallest box around this one whose bounds are multiples of ``steps``.

        >>> Box((3, 4), (9, 8)).align((4, 4))
        Box(start=(0, 4), stop=(12, 8))
        """
        return Box(
            tuple(a // s * s for a, s in zip(self.start, steps, strict=True)),
            tuple(-(-b // s) * s for b, s in zip(self.stop, steps, strict=True)),
        )

    def scale(self, factors: Sequence[int]) -> Box:
        """Multiply all bounds: the same region on a grid ``factors`` times finer."""
        return Box(
            tuple(a * f for a, f in zip(self.start, factors, strict=True)),
            tuple(b * f for b, f in zip(self.stop, factors, strict=True)),
        )


def _parse_range(part: str, extent: int) -> tuple[int, int]:
    if ":" not in part:
        index = int(part)
        index += extent if index < 0 else 0
        return index, index + 1
    low_text, high_text = part.split(":")
    low = int(low_text) if low_text.strip() else 0
    high = int(high_text) if high_text.strip() else extent
    return low + (extent if low < 0 else 0), high + (extent if high < 0 else 0)


@dataclass(frozen=True)
class Block:
    """One unit of work.

    Parameters
    ----------
    index : int
        Number of the block in its grid, in ``z, y, x`` order.
    read : Box
        What the block reads: its write box and the halo, cut at the volume's bounds.
    write : Box
        What the block writes. No two blocks of a grid share a voxel of it.
    """

    index: int
    read: Box
    write: Box

    @property
    def inner(self) -> tuple[slice, ...]:
        """Index of the write box in an array that holds the read box: it cuts the halo off."""
        return self.write.within(self.read)


Halo = int | Sequence[int] | Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Grid:
    """The blocks of a volume, or of the part of it that a region touches.

    A grid holds six small tuples, whatever the number of blocks; blocks are computed when asked
    for, ``grid[i]``. Cells are anchored at voxel 0 of the *volume*, also under a region, so that a
    block shape made of whole shards gives blocks made of whole shards.

    Parameters
    ----------
    shape : tuple of int
        Shape of the volume; read boxes are cut at it.
    block_shape : tuple of int
        Voxels per block. Blocks at the upper bounds are smaller.
    halo : int, or one int per axis, or one (lower, upper) pair per axis
        Voxels read around a block and not written.
    align : tuple of int, optional
        Read boxes start and stop at multiples of this (or at the volume's bounds).
    roi : Box, optional
        Region of interest: only blocks that share a voxel with it. They keep their full write box.

    Raises
    ------
    ValueError
        When lengths differ, a block has no voxels, a halo is negative, an alignment is below 1,
        or the region leaves the volume.

    Examples
    --------
    >>> grid = Grid((10,), (4,), halo=1)
    >>> len(grid), grid[1]
    (3, Block(index=1, read=Box(start=(3,), stop=(9,)), write=Box(start=(4,), stop=(8,))))
    """

    shape: tuple[int, ...]
    block_shape: tuple[int, ...]
    halo: Halo = 0
    align: tuple[int, ...] | None = None
    roi: Box | None = None

    def __post_init__(self) -> None:
        n_axes = len(self.shape)
        fix = object.__setattr__
        fix(self, "shape", tuple(int(v) for v in self.shape))
        fix(self, "block_shape", tuple(int(v) for v in self.block_shape))
        fix(self, "halo", normalize_halo(self.halo, n_axes))
        fix(self, "align", tuple(self.align) if self.align is not None else (1,) * n_axes)
        for what, values in (("block shape", self.block_shape), ("alignment", self.align)):
            if len(values) != n_axes:  # type: ignore[arg-type]
                raise ValueError(
                    f"{what} and volume need the same number of axes. Received: {what} {values}, "
                    f"volume {self.shape}"
                )
            for axis, value in enumerate(values):  # type: ignore[arg-type]
                if value < 1:
                    name = axis_name(axis, n_axes)
                    raise ValueError(f"{what} must be at least 1. Received along {name}: {value}")
        roi = self.roi if self.roi is not None else Box.whole(self.shape)
        if not Box.whole(self.shape).contains(roi):
            raise ValueError(f"the region {roi} must lie inside the volume {self.shape}")
        fix(self, "roi", roi)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The halo as one (lower, upper) pair per axis."""
        return normalize_halo(self.halo, len(self.shape))

    @property
    def cells(self) -> Box:
        """Cells of the grid that are visited, in units of blocks."""
        assert self.roi is not None
        if self.roi.size == 0:
            return Box.whole((0,) * len(self.shape))
        aligned = self.roi.align(self.block_shape)
        return Box(
            tuple(a // b for a, b in zip(aligned.start, self.block_shape, strict=True)),
            tuple(a // b for a, b in zip(aligned.stop, self.block_shape, strict=True)),
        )

    def __len__(self) -> int:
        return self.cells.size

    def __getitem__(self, index: int) -> Block:
        cells = self.cells
        if not 0 <= index < cells.size:
            raise IndexError(f"the grid has {cells.size} blocks. Received: block {index}")
        position = []
        rest = index
        for extent in reversed(cells.shape):
            rest, within = divmod(rest, extent)
            position.append(within)
        cell = tuple(a + p for a, p in zip(cells.start, reversed(position), strict=True))
        return self._block(index, cell)

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))

    def _block(self, index: int, cell: Sequence[int]) -> Block:
        bounds = Box.whole(self.shape)
        unit = Box(tuple(cell), tuple(c + 1 for c in cell))
        write = unit.scale(self.block_shape).intersect(bounds)
        assert self.align is not None
        lower, upper = [pair[0] for pair in self.pairs], [pair[1] for pair in self.pairs]
        read = write.grow(lower, upper).align(self.align).intersect(bounds)
        return Block(index, read, write)

    def touching(self, box: Box) -> Iterator[Block]:
        """Yield the visited blocks whose write box shares a voxel with ``box``, in order.

        >>> [block.index for block in Grid((10, 10), (4, 4)).touching(Box((3, 0), (5, 1)))]
        [0, 3]
        """
        cells = self.cells
        inside = box.intersect(Box.whole(self.shape))
        if inside.size == 0 or cells.size == 0:
            return
        aligned = inside.align(self.block_shape)
        wanted = Box(
            tuple(a // b for a, b in zip(aligned.start, self.block_shape, strict=True)),
            tuple(a // b for a, b in zip(aligned.stop, self.block_shape, strict=True)),
        ).intersect(cells)
        for offset in _positions(wanted):
            index = 0
            for cell, start, extent in zip(offset, cells.start, cells.shape, strict=True):
                index = index * extent + (cell - start)
            yield self._block(index, offset)

    def beside(self, index: int, offset: Sequence[int]) -> int | None:
        """Return the number of the visited block so many cells away; None where there is none.

        >>> Grid((10, 10), (4, 4)).beside(4, (1, -1)), Grid((10, 10), (4, 4)).beside(2, (0, 1))
        (6, None)
        """
        cells = self.cells
        position = []
        rest = index
        for extent in reversed(cells.shape):
            rest, within = divmod(rest, extent)
            position.append(within)
        number = 0
        for within, step, extent in zip(reversed(position), offset, cells.shape, strict=True):
            if not 0 <= within + step < extent:
                return None
            number = number * extent + within + step
        return number

    @property
    def largest_read(self) -> int:
        """Upper bound on the voxels of any read box."""
        assert self.align is not None
        extents = [
            block + lower + upper + 2 * (step - 1)
            for block, (lower, upper), step in zip(
                self.block_shape, self.pairs, self.align, strict=True
            )
        ]
        return math.prod(min(a, b) for a, b in zip(self.shape, extents, strict=True))


def _positions(box: Box) -> Iterator[tuple[int, ...]]:
    """Yield every integer position of a box, last axis fastest."""
    return itertools.product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True)))


def normalize_halo(halo: Halo, n_axes: int) -> tuple[tuple[int, int], ...]:
    """Write a halo as one (lower, upper) pair per axis.

    >>> normalize_halo((0, 2), 2)
    ((0, 0), (2, 2))
    >>> normalize_halo(((0, 1), (0, 1)), 2)
    ((0, 1), (0, 1))
    """
    per_axis: list[int | tuple[int, int]] = [halo] * n_axes if isinstance(halo, int) else list(halo)
    if len(per_axis) != n_axes:
        raise ValueError(f"a halo needs one entry for each of {n_axes} axes. Received: {halo}")
    pairs = []
    for axis, entry in enumerate(per_axis):
        lower, upper = (entry, entry) if isinstance(entry, int) else entry
        if lower < 0 or upper < 0:
            name = axis_name(axis, n_axes)
            raise ValueError(f"a halo must not be negative. Received along {name}: {entry}")
        pairs.append((int(lower), int(upper)))
    return tuple(pairs)
