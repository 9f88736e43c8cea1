"""How does a volume look from further away? Coarser levels, block by block, exact.

1. :func:`plan_levels` decides, from shape and voxel size alone, which axes each level halves.
2. A block of a level reads its own voxels of the level before, never a neighbour's: every coarse
   voxel is the mean (images) or the mode (labels) of the 2 × 2 × 2 finer voxels it covers, or of
   those of them that exist at the upper bounds.
3. A level is shown to readers once it is whole.

Axes are halved until the voxels are about isotropic, then together::

    voxel (nm)   50 × 10 × 10  →  50 × 20 × 20  →  50 × 40 × 40  →  100 × 80 × 80
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numba import njit

from cvdask.engine.cluster import Pool, connect
from cvdask.engine.output import fill
from cvdask.engine.plan import Plan, Summary
from cvdask.volume.boxes import Block, Box
from cvdask.volume.store import (
    Level,
    Volume,
    create_level,
    level_exists,
    open_volume,
    publish,
    read_box,
    storage_shapes,
    write_box,
)

# A level that fits one chunk needs no coarser one.
SMALLEST_EXTENT = 64
MOST_LEVELS = 16


def pyramid(
    volume: Volume | str,
    *,
    labels: str | None = None,
    n_levels: int | None = None,
    client: Any = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> Volume | list[Plan]:
    """Add the coarser levels of a volume.

    Levels that are there stay; a run that was killed goes on where it was.

    Parameters
    ----------
    volume : Volume or str
        The sample, written by cvdask.
    labels : str, optional
        Label image to treat; by default the image.
    n_levels : int, optional
        Number of levels with the finest; by default until a level fits 64 voxels along each axis.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    dry_run : bool
        Return the plans and do nothing.

    Returns
    -------
    Volume
        With all levels; or the list of plans.

    Raises
    ------
    ValueError
        When the volume was not written by cvdask, or states no voxel size, or ``n_levels`` is
        below 1.
    """
    if isinstance(volume, str):
        volume = open_volume(volume, labels=labels)
    elif labels is not None:
        volume = volume.label(labels)
    if not volume.attributes:
        raise ValueError(
            f"{volume.name} was not written by cvdask; its levels are left as they are. Make a "
            f"copy with cvdask ingest"
        )
    levels = (*volume.levels, *plan_levels(volume.levels[-1], n_levels, len(volume.levels)))
    if dry_run:
        pairs = itertools.pairwise(levels[len(volume.levels) - 1 :])
        return [plan_level(volume.url, fine, coarse) for fine, coarse in pairs]
    full = replace(volume, levels=levels)
    with connect(client, workers=workers) as pool:
        build_levels(full, first=len(volume.levels), client=pool)
    return publish(full)


def plan_levels(finest: Level, n_levels: int | None = None, number: int = 1) -> list[Level]:
    """Decide the levels that follow a level. Pure.

    Parameters
    ----------
    finest : Level
        The last level there is.
    n_levels : int, optional
        Number of levels in the end, ``number`` of which are there.
    number : int
        Number of the first level to plan.

    Examples
    --------
    >>> level = Level("0", (300, 200, 200), "uint8", (64,) * 3, (64,) * 3, (40.0, 10.0, 10.0))
    >>> [(one.shape, one.voxel_size_nm) for one in plan_levels(level)]
    [((300, 100, 100), (40.0, 20.0, 20.0)), ((300, 50, 50), (40.0, 40.0, 40.0)),
     ((150, 50, 50), (80.0, 40.0, 40.0)), ((75, 50, 50), (160.0, 40.0, 40.0)),
     ((38, 50, 50), (320.0, 40.0, 40.0))]
    """
    if n_levels is not None and not 1 <= n_levels <= MOST_LEVELS:
        raise ValueError(f"a volume has 1 to {MOST_LEVELS} levels. Received: {n_levels}")
    if finest.voxel_size_nm is None:
        raise ValueError("levels need a voxel size, and the volume states none")
    levels: list[Level] = []
    prefix = finest.path.rpartition("/")[0]
    level = finest
    while (n_levels is None and max(level.shape) > SMALLEST_EXTENT) or (
        n_levels is not None and number < n_levels
    ):
        factors = _factors(level)
        if factors == (1, 1, 1) or number >= MOST_LEVELS:
            break
        level = _coarser(level, factors, f"{prefix}/{number}".lstrip("/"))
        levels.append(level)
        number += 1
    return levels


def _factors(level: Level) -> tuple[int, ...]:
    """Halve the axes whose voxels are finer than √2 × the finest, as far as they are long."""
    assert level.voxel_size_nm is not None
    long = [extent > SMALLEST_EXTENT for extent in level.shape]
    if not any(long):
        long = [extent > 1 for extent in level.shape]
    sizes = [s for s, yes in zip(level.voxel_size_nm, long, strict=True) if yes]
    finest = min(sizes, default=1.0)
    return tuple(
        2 if yes and size < 2**0.5 * finest else 1
        for size, yes in zip(level.voxel_size_nm, long, strict=True)
    )


def _coarser(level: Level, factors: Sequence[int], path: str) -> Level:
    assert level.voxel_size_nm is not None
    shape = tuple(-(-n // f) for n, f in zip(level.shape, factors, strict=True))
    chunk, shard = storage_shapes(shape, np.dtype(level.dtype).itemsize)
    z, y, x = (s * f for s, f in zip(level.voxel_size_nm, factors, strict=True))
    # The centre of a coarse voxel lies between those of the voxels it covers.
    origin = tuple(
        o + (f - 1) * s / 2
        for o, s, f in zip(level.origin_nm, level.voxel_size_nm, factors, strict=True)
    )
    return Level(path, shape, level.dtype, chunk, shard, (z, y, x), origin)  # type: ignore[arg-type]


def plan_level(url: str, fine: Level, coarse: Level) -> Plan:
    """Plan one level: blocks are its shards."""
    grid = coarse.shards
    factors = level_factors(fine, coarse)
    itemsize = np.dtype(fine.dtype).itemsize
    block = Box.whole(coarse.shard_shape)
    stored = 0.1 if coarse.path.startswith("labels/") else 0.95
    return Plan(
        stage=f"pyramid level {coarse.path}",
        grid=grid,
        output=url,
        read_bytes=fine.nbytes,
        write_bytes=coarse.nbytes,
        task_bytes=(block.scale(factors).size + 2 * block.size) * itemsize,
        stored_bytes=int(coarse.nbytes * stored),
        notes={"factors": list(factors)},
    )


def level_factors(fine: Level, coarse: Level) -> tuple[int, ...]:
    """Return how many voxels of one level one voxel of the next covers, per axis."""
    return tuple(-(-a // b) for a, b in zip(fine.shape, coarse.shape, strict=True))


def build_levels(volume: Volume, *, first: int = 1, client: Pool | None = None) -> list[Summary]:
    """Write the levels of a volume from ``first`` on, each from the one before; publish nothing.

    For stages that show a volume only when its pyramid is there.
    """
    summaries = []
    for number in range(first, len(volume.levels)):
        fine, coarse = volume.levels[number - 1], volume.levels[number]
        if not level_exists(volume.url, coarse):
            create_level(volume.url, coarse)
        function = partial(_write_block, volume.url, fine, coarse, volume.is_labels)
        plan = plan_level(volume.url, fine, coarse)
        summaries.append(fill([volume], plan, function, level=number, client=client))
    return summaries


def _write_block(
    url: str, fine: Level, coarse: Level, labels: bool, block: Block
) -> dict[str, Any]:
    factors = level_factors(fine, coarse)
    source = block.write.scale(factors).intersect(fine.box)
    data = downsample(read_box(url, fine, source), factors, mode=labels)
    return {"shards": {coarse.path: write_box(url, coarse, block.write, data)}}


def downsample(data: np.ndarray, factors: Sequence[int], *, mode: bool) -> np.ndarray:
    """Make one voxel of each cell of 1 or 2 voxels per axis.

    Parameters
    ----------
    data : (Z, Y, X) integer or float
        Starts at a cell's lower corner.
    factors : sequence of int
        1 or 2 per axis.
    mode : bool
        The most frequent value, the smallest of those that are equally frequent; else the mean,
        integers rounded half up.

    Returns
    -------
    (ceil(Z / f), …) of the same type
        Cells at the upper bounds take the voxels that there are.

    Examples
    --------
    >>> downsample(np.array([[[0, 1, 4], [1, 1, 4]]], "uint8"), (1, 2, 2), mode=False)
    array([[[1, 4]]], dtype=uint8)
    """
    shape = tuple(-(-n // f) for n, f in zip(data.shape, factors, strict=True))
    out = np.empty(shape, data.dtype)
    z, y, x = factors
    if mode:
        _mode_cells(data, out, z, y, x)
    elif data.dtype.kind == "f":
        _mean_cells_float(data, out, z, y, x)
    elif data.dtype == np.int64:
        _mean_cells_wide(data, out, z, y, x)
    elif data.dtype == np.uint64:
        # As int64, less 2**63: the mean moves with its values.
        offset = np.uint64(2**63)
        _mean_cells_wide((data ^ offset).view(np.int64), out.view(np.int64), z, y, x)
        out ^= offset
    else:
        # Eight voxels of 16 bits fit 32, eight of 32 bits fit 64.
        line = np.empty(data.shape[2], np.int32 if data.dtype.itemsize <= 2 else np.int64)
        _mean_cells(data, out, line, z, y, x)
    return out


@njit(nogil=True, cache=True)
def _mean_cells(
    data: np.ndarray, out: np.ndarray, line: np.ndarray, fz: int, fy: int, fx: int
) -> None:
    """Average integers: the rows of a cell are added up in ``line``, then its pairs along x.

    A cell holds 1, 2, 4 or 8 voxels, so that dividing is shifting; shifting rounds down, negative
    sums too, and half a cell added before makes it round half up.
    """
    n_z, n_y, n_x = data.shape
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            z0, z1 = k * fz, min(n_z, (k + 1) * fz)
            y0, y1 = j * fy, min(n_y, (j + 1) * fy)
            line[:] = 0
            for z in range(z0, z1):
                for y in range(y0, y1):
                    for x in range(n_x):
                        line[x] += data[z, y, x]
            bits = (z1 - z0) // 2 + (y1 - y0) // 2  # log2 of the rows: 1 or 2 along each axis
            if fx == 1:
                for x in range(n_x):
                    out[k, j, x] = (line[x] + (1 << bits >> 1)) >> bits
                continue
            for i in range(n_x // 2):
                out[k, j, i] = (line[2 * i] + line[2 * i + 1] + (1 << bits)) >> (bits + 1)
            if n_x % 2:
                out[k, j, n_x // 2] = (line[n_x - 1] + (1 << bits >> 1)) >> bits


@njit(nogil=True, cache=True)
def _mean_cells_wide(data: np.ndarray, out: np.ndarray, fz: int, fy: int, fx: int) -> None:
    """Average 64-bit integers, whose sum may need more than 64 bits.

    Each voxel gives its share of whole numbers, rounded down, and of what remains.
    """
    n_z, n_y, n_x = data.shape
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            z1, y1 = min(n_z, (k + 1) * fz), min(n_y, (j + 1) * fy)
            for i in range(out.shape[2]):
                x1 = min(n_x, (i + 1) * fx)
                count = (z1 - k * fz) * (y1 - j * fy) * (x1 - i * fx)
                whole, rest = np.int64(0), np.int64(0)
                for z in range(k * fz, z1):
                    for y in range(j * fy, y1):
                        for x in range(i * fx, x1):
                            whole += data[z, y, x] // count
                            rest += data[z, y, x] % count
                out[k, j, i] = whole + (2 * rest + count) // (2 * count)


@njit(nogil=True, cache=True)
def _mean_cells_float(data: np.ndarray, out: np.ndarray, fz: int, fy: int, fx: int) -> None:
    n_z, n_y, n_x = data.shape
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            z1, y1 = min(n_z, (k + 1) * fz), min(n_y, (j + 1) * fy)
            for i in range(out.shape[2]):
                x1 = min(n_x, (i + 1) * fx)
                total, count = 0.0, 0
                for z in range(k * fz, z1):
                    for y in range(j * fy, y1):
                        for x in range(i * fx, x1):
                            total += np.float64(data[z, y, x])
                            count += 1
                out[k, j, i] = total / count


@njit(nogil=True, cache=True)
def _mode_cells(data: np.ndarray, out: np.ndarray, fz: int, fy: int, fx: int) -> None:
    n_z, n_y, n_x = data.shape
    values = np.empty(8, data.dtype)
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            z1, y1 = min(n_z, (k + 1) * fz), min(n_y, (j + 1) * fy)
            for i in range(out.shape[2]):
                x1 = min(n_x, (i + 1) * fx)
                first = data[k * fz, j * fy, i * fx]
                n, same = 0, True
                for z in range(k * fz, z1):
                    for y in range(j * fy, y1):
                        for x in range(i * fx, x1):
                            values[n] = data[z, y, x]
                            same = same and values[n] == first
                            n += 1
                best, best_count = first, n
                if not same:  # most cells of a label image hold one value
                    best_count = 0
                    for a in range(n):
                        count = 0
                        for b in range(n):
                            count += values[a] == values[b]
                        if count > best_count or (count == best_count and values[a] < best):
                            best, best_count = values[a], count
                out[k, j, i] = best
