"""What is a volume like, in numbers that two volumes can be compared by?

==================== ==========================================================================
class_fraction       share of the annotated voxels
interface_density    area between two classes per volume: neighbours in 13 directions, Crofton
two_point            both ends of a step along an axis lie in the class, by its length
lineal_path          … and so does all that lies between them
local_thickness      share of the class that is at least so thick, by diameter
mean_local_thickness the mean of that
==================== ==========================================================================

1. Blocks look at what lies one largest distance beyond them, count, and leave whole numbers for
   each *z-block*, a range of slices: see ``pair_counts``. Local thickness does the same on a
   coarser level: see ``thickness``.
2. Counts are added; what earlier runs have left is kept, so that a run can be interrupted.
3. Every descriptor is a ratio of counts. Its interval is a bootstrap: z-blocks are drawn with
   replacement, a thousand times.

The result is a long table, one row for each number, and the same whatever the blocks and workers.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask import __version__
from cvdask.engine.blockwise import run
from cvdask.engine.cluster import connect
from cvdask.engine.ledger import Ledger, standing
from cvdask.engine.plan import Plan, check_plans
from cvdask.morphometry.directions import DIRECTIONS, direction_weights
from cvdask.morphometry.pair_counts import (
    count_lags,
    count_neighbours,
    count_values,
    neighbours,
    pack_planes,
    pair_shape,
)
from cvdask.morphometry.tables import (
    destination,
    existing_table,
)
from cvdask.morphometry.thickness import count_thick, halo
from cvdask.volume.boxes import AXES, Block, Box, Grid
from cvdask.volume.classes import (
    BACKGROUND,
    absent_values,
    block_shape,
    class_values,
    measured_box,
    named_values,
    open_classes,
    read_classes,
)
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.objects import (
    delete_object,
    delete_tree,
    write_json,
)
from cvdask.volume.parquet import read_table, write_table
from cvdask.volume.store import Level, Volume, volume_digest

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("fractions", "interfaces", "two_point", "lineal_path", "thickness")
COLUMNS = ("descriptor", "class", "other", "axis", "distance_um", "value", "low", "high", "unit")
CONFIDENCE = 0.95
N_RESAMPLES = 1000
# Voxels along each side of a block of the thickness, with what lies around it.
THICKNESS_EXTENT = 320
# Each class takes one of 256 numbers; three mean another class, not annotated, no class at all.
MOST_CLASSES = 200
NO_CLASS = 255

Counts = dict[str, np.ndarray]
Estimates = tuple[np.ndarray, np.ndarray, np.ndarray]  # value, low, high


@dataclass(frozen=True)
class _Job:
    """What a task needs besides its block; holds no data.

    Parameters
    ----------
    url : str
    fine, coarse : Level
        Of the counts, and of the thickness.
    region, coarse_region : Box
        Voxels to be described, in each.
    classes : tuple of int
        All values that are counted; their place here is the number of the class.
    chosen : tuple of int
        Those whose correlation, lineal path and thickness are described.
    known : tuple of int
        All values that may be there, save 255.
    kinds : tuple of str
    n_lags : tuple of int
        Distances along z, y, x, with 0.
    diameters_um : tuple of float
    z_blocks : int
    """

    url: str
    fine: Level
    coarse: Level
    region: Box
    coarse_region: Box
    classes: tuple[int, ...]
    chosen: tuple[int, ...]
    known: tuple[int, ...]
    kinds: tuple[str, ...]
    n_lags: tuple[int, int, int]
    diameters_um: tuple[float, ...]
    z_blocks: int

    @property
    def with_lags(self) -> bool:
        """Whether distances play a part."""
        return not {"two_point", "lineal_path"}.isdisjoint(self.kinds)

    @property
    def other(self) -> int:
        """The number of a class that is not counted; the next one is: not annotated."""
        return len(self.classes)

    def z_bounds(self, region: Box) -> np.ndarray:
        """Return where the z-blocks of a region begin and end: (z_blocks + 1,) int64."""
        start, extent = region.start[0], region.shape[0]
        return start + extent * np.arange(self.z_blocks + 1) // self.z_blocks


def descriptors(
    volume: Volume | str,
    *,
    labels: str = "classes",
    classes: str | int | Sequence[str | int] | None = None,
    only: str | Sequence[str] | None = None,
    max_distance_um: float = 2.0,
    max_thickness_um: float = 2.0,
    thickness_step_um: float = 0.1,
    z_blocks: int = 10,
    out: str | None = None,
    box: Box | str | None = None,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> pa.Table | list[Plan]:
    """Describe the classes of a volume: fractions, interfaces, correlations, thickness.

    Voxels of 255, which nobody has annotated, are left out of every count.

    Parameters
    ----------
    volume : Volume or str
        The sample.
    labels : str
        Label image of classes.
    classes : str, int or sequence, optional
        Names or values of those whose correlation, lineal path and thickness are described; by
        default all but the background. Needed where the label image has no names. Fractions and
        interfaces are of all classes that have a name, or are given here, and the background.
    only : str or sequence of str, optional
        Some of ``fractions``, ``interfaces``, ``two_point``, ``lineal_path``, ``thickness``; by
        default all.
    max_distance_um : float
        Largest distance of the two-point correlation and the lineal path. Every whole number of
        voxels up to it is described, along each axis.
    max_thickness_um, thickness_step_um : float
        Largest diameter of a ball, and the step from one diameter to the next. Thickness is
        measured on the coarsest level whose voxels are at most half a step large.
    z_blocks : int
        In how many ranges of slices, of equal size but for one, the volume is cut for the
        intervals. They should be deeper than objects are long, and not too few: 10 to 30.
    out : str, optional
        The table; by default ``tables/descriptors.parquet`` below the sample.
    box : Box or str, optional
        Only these voxels, as ``z0:z1,y0:y1,x0:x1``.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans and write nothing.

    Returns
    -------
    pyarrow.Table
        Columns ``descriptor, class, other, axis, distance_um, value, low, high, unit``; empty
        cells are null. ``low`` and ``high`` bound 95 % of the bootstrap; null where fewer than two
        z-blocks are annotated. Local thickness beyond the largest diameter counts as half a step
        more in the mean, which a warning says. With ``dry_run`` the plans.

    Raises
    ------
    ValueError
        When a class, kind or label image is absent, the voxel size is not stated, a length is no
        positive number or less than a voxel, or nothing is annotated.
    FileExistsError
        When something else lies at the destination.
    BlocksFailed
        When blocks could not be read, or hold values that are no class.

    Warns
    -----
    UserWarning
        When a class has no voxel, or much of it is thicker than the largest diameter or thinner
        than the smallest. Recorded in the table's metadata.
    """
    image = open_classes(volume, labels)
    lengths = (max_distance_um, max_thickness_um, thickness_step_um)
    job = _describe_job(image, classes, _kinds(only), lengths, z_blocks, measured_box(image, box))
    parent, name = destination(image.url, "descriptors", out)
    plans = _plans(job, f"{parent}/{name}")
    provenance = {
        "stage": "descriptors",
        "version": __version__,
        "options": {
            "classes": list(job.chosen),
            "only": list(job.kinds),
            "max_distance_um": max_distance_um,
            "max_thickness_um": max_thickness_um,
            "thickness_step_um": thickness_step_um,
            "z_blocks": job.z_blocks,
            "box": str(job.region),
        },
        "inputs": [{"volume": f"labels/{labels}", "digest": volume_digest(image)}],
    }
    scratch = f".cvdask/{name}"
    existing = existing_table(parent, name, scratch)
    state = standing(f"{parent}/{name}", existing, provenance, resume=resume, overwrite=overwrite)
    if dry_run:
        return plans
    if state == "complete":
        delete_tree(parent, scratch)
        return read_table(parent, name)
    with connect(client, workers=workers) as pool:
        check_plans(plans, pool.slots, pool.worker_bytes)
        if state == "new":
            delete_tree(parent, scratch)
            delete_object(parent, name)
            write_json(parent, f"{scratch}/begun.json", {"provenance": provenance})
        functions = {"descriptors": _count_block, "thickness": _thickness_block}
        counts: list[Counts] = [{} for _ in range(job.z_blocks)]
        for plan in plans:
            ledger = Ledger(parent, f"{scratch}/{plan.stage}")
            run(partial(functions[plan.stage], job), plan, ledger=ledger, client=pool)
            _add_records(counts, ledger)
    names = named_values(image) or {value: str(value) for value in job.classes}
    rows, notices = _finish(job, counts, names, image.name)
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    table = _as_table(rows, {"provenance": provenance, "warnings": notices, **_sizes(job)})
    write_table(parent, name, table)
    delete_tree(parent, scratch)
    return table


# ---------------------------------------------------------------------------------------------
# Before work


def _kinds(only: str | Sequence[str] | None) -> tuple[str, ...]:
    if only is None:
        return KINDS
    wanted = only.split(",") if isinstance(only, str) else list(only)
    wanted = [kind.strip().replace("-", "_") for kind in wanted]
    if not wanted or not set(wanted) <= set(KINDS):
        raise ValueError(f"descriptors are some of {', '.join(KINDS)}. Received: {only!r}")
    return tuple(kind for kind in KINDS if kind in wanted)


def _describe_job(
    image: Volume,
    classes: str | int | Sequence[str | int] | None,
    kinds: tuple[str, ...],
    lengths_um: tuple[float, float, float],
    z_blocks: int,
    region: Box,
) -> _Job:
    fine = image.levels[0]
    names = named_values(image)
    if classes is None and not names:
        raise ValueError(
            f"{image.name!r} has no class names: give the values to be described as classes"
        )
    chosen = class_values(image, classes if classes is not None else [v for v in names if v])
    counted = tuple(names or sorted({BACKGROUND, *chosen}))
    if len(counted) > MOST_CLASSES:
        raise ValueError(f"at most {MOST_CLASSES} classes are described. Received: {len(counted)}")
    if z_blocks < 1:
        raise ValueError(f"there is at least one z-block. Received: {z_blocks}")
    distance, thickness, step = lengths_um
    diameters = _diameters(thickness, step) if "thickness" in kinds else ()
    coarse = _thickness_level(image, step) if diameters else fine
    without_lags = {"two_point", "lineal_path"}.isdisjoint(kinds)
    return _Job(
        image.url,
        fine,
        coarse,
        region,
        _coarser_box(region, fine, coarse),
        counted,
        chosen,
        tuple(names or range(UNANNOTATED)),
        kinds,
        (0, 0, 0) if without_lags else _lags(distance, fine, region),
        diameters,
        min(z_blocks, region.shape[0]),
    )


def _lags(distance_um: float, level: Level, region: Box) -> tuple[int, int, int]:
    """Return how many distances there are along each axis, with 0."""
    assert level.voxel_size_nm is not None
    if not (math.isfinite(distance_um) and distance_um > 0):
        raise ValueError(
            f"the largest distance is a positive length in µm. Received: {distance_um}"
        )
    numbers = []
    for axis, spacing, extent in zip(AXES, level.voxel_size_nm, region.shape, strict=True):
        # 0.3 µm are 3 voxels of 100 nm, also where floating point says 2.9999999999999996.
        steps = math.floor(round(distance_um * 1000 / spacing, 9))
        if steps < 1:
            raise ValueError(
                f"the largest distance must not be smaller than a voxel. Received: {distance_um:g} "
                f"µm, voxels measure {spacing / 1000:g} µm along {axis}"
            )
        numbers.append(min(steps, extent - 1) + 1)
    return numbers[0], numbers[1], numbers[2]


def _diameters(largest_um: float, step_um: float) -> tuple[float, ...]:
    """Return the ladder of diameters.

    >>> _diameters(0.35, 0.1)
    (0.1, 0.2, 0.3)
    """
    if not (math.isfinite(largest_um) and 0 < step_um <= largest_um):
        raise ValueError(
            f"thickness goes in positive steps up to a largest one. Received: steps of {step_um} "
            f"µm up to {largest_um} µm"
        )
    n_steps = math.floor(round(largest_um / step_um, 9))
    return tuple(round(step_um * k, 9) for k in range(1, n_steps + 1))


def _thickness_level(image: Volume, step_um: float) -> Level:
    """Choose the coarsest level whose voxels are at most half a step large, else the finest."""
    fitting = [
        level
        for level in image.levels
        if level.voxel_size_nm and max(level.voxel_size_nm) <= step_um * 500 * (1 + 1e-9)
    ]
    return fitting[-1] if fitting else image.levels[0]


def _factors(fine: Level, coarse: Level) -> tuple[int, ...]:
    assert fine.voxel_size_nm is not None
    assert coarse.voxel_size_nm is not None
    pairs = zip(fine.voxel_size_nm, coarse.voxel_size_nm, strict=True)
    return tuple(max(1, round(b / a)) for a, b in pairs)


def _coarser_box(region: Box, fine: Level, coarse: Level) -> Box:
    """Return the voxels of a coarser level that hold a box."""
    factors = _factors(fine, coarse)
    start = tuple(a // f for a, f in zip(region.start, factors, strict=True))
    stop = tuple(-(-b // f) for b, f in zip(region.stop, factors, strict=True))
    return Box(start, stop).intersect(coarse.box)


def _plans(job: _Job, output: str) -> list[Plan]:
    plans = [plan_counts(job, output)] if set(job.kinds) - {"thickness"} else []
    return plans + ([plan_thickness(job, output)] if job.diameters_um else [])


def plan_counts(job: _Job, output: str) -> Plan:
    """Plan the counts: blocks, and behind them what pairs that start in them end in."""
    behind = 1 if "interfaces" in job.kinds else 0
    margins = tuple((0, max(behind, n - 1)) for n in job.n_lags)
    grid = Grid(job.fine.shape, block_shape(job.fine), halo=margins, roi=job.region)
    itemsize = np.dtype(job.fine.dtype).itemsize
    return Plan(
        stage="descriptors",
        grid=grid,
        output=output,
        read_bytes=_read_voxels(grid, job.region) * itemsize,
        # Stored and decoded voxels; their classes, one of them, and that as bits, twice.
        task_bytes=grid.largest_read * (2 * itemsize + 3),
        notes={
            "region": str(job.region),
            "largest_lag": [n - 1 for n in job.n_lags] if job.with_lags else [],
        },
    )


def plan_thickness(job: _Job, output: str) -> Plan:
    """Plan the thickness: blocks with the largest ball around them."""
    around = halo(job.diameters_um[-1], _spacing_um(job.coarse))
    extents = tuple(max(THICKNESS_EXTENT - 2 * h, h) for h in around)
    grid = Grid(job.coarse.shape, extents, halo=around, roi=job.coarse_region)
    itemsize = np.dtype(job.coarse.dtype).itemsize
    return Plan(
        stage="thickness",
        grid=grid,
        output=output,
        read_bytes=_read_voxels(grid, job.coarse_region) * itemsize,
        # Classes, one of them, the others; distances to the surface, to centres, and on the way.
        task_bytes=grid.largest_read * (2 * itemsize + 3 + 12),
        notes={
            "region": str(job.coarse_region),
            "level": job.coarse.path,
            "voxel_nm": list(job.coarse.voxel_size_nm or ()),
        },
    )


def _read_voxels(grid: Grid, region: Box) -> int:
    """Return the voxels that all blocks together read: a product of what each axis has.

    >>> _read_voxels(Grid((10, 1), (4, 1), halo=((0, 2), (0, 0))), Box((0, 0), (10, 1)))
    14
    """
    voxels = 1
    for axis, pair in enumerate(grid.pairs):
        within = Box(region.start[axis : axis + 1], region.stop[axis : axis + 1])
        line = Grid(
            grid.shape[axis : axis + 1], grid.block_shape[axis : axis + 1], halo=(pair,), roi=within
        )
        voxels *= sum(block.read.intersect(within).size for block in line)
    return voxels


def _spacing_um(level: Level) -> tuple[float, ...]:
    assert level.voxel_size_nm is not None
    return tuple(size / 1000 for size in level.voxel_size_nm)


# ---------------------------------------------------------------------------------------------
# Blocks


def _read_numbers(job: _Job, level: Level, box: Box) -> np.ndarray:
    """Read a box as numbers of classes; see :class:`_Job`."""
    table = np.full(256, NO_CLASS, np.uint8)
    table[list(job.known)] = job.other
    table[list(job.classes)] = np.arange(len(job.classes))
    table[UNANNOTATED] = job.other + 1
    data = read_classes(job.url, level, box)
    numbers = table[data]
    if (numbers == NO_CLASS).any():
        odd = absent_values(data, {*job.known, UNANNOTATED})
        raise ValueError(f"{level.path}, box {box}, holds {odd}")
    return numbers


def _slabs(job: _Job, region: Box, own: Box) -> Iterator[tuple[int, int, int]]:
    """Yield the z-blocks that a block has a part in, and that part's slices within the block."""
    bounds = job.z_bounds(region)
    for k in range(job.z_blocks):
        first, last = max(own.start[0], bounds[k]), min(own.stop[0], bounds[k + 1])
        if first < last:
            yield k, int(first) - own.start[0], int(last) - own.start[0]


def _count_block(job: _Job, block: Block) -> dict[str, Any]:
    """Count in a block; the record is the counts of each z-block, as lists."""
    own = block.write.intersect(job.region)
    numbers = _read_numbers(job, job.fine, block.read.intersect(job.region))
    found = {}
    for k, first, last in _slabs(job, job.region, own):
        part = numbers[first:]
        extents = (last - first, *own.shape[1:])
        counts = count_voxels(part[tuple(slice(0, n) for n in extents)], len(job.classes))
        if "interfaces" in job.kinds:
            counts |= count_interfaces(part, extents, len(job.classes))
        if job.with_lags:
            chosen = [job.classes.index(value) for value in job.chosen]
            for axis, name in enumerate(AXES):
                counts |= {
                    f"{what}_{name}": values
                    for what, values in count_distances(
                        part, extents, axis, job.n_lags[axis], chosen, job.other + 1
                    ).items()
                }
        found[str(k)] = {name: values.tolist() for name, values in counts.items()}
    return {"z_blocks": found}


def count_voxels(numbers: np.ndarray, n_classes: int) -> Counts:
    """Count the voxels of each class, and all that are annotated."""
    counts = count_values(numbers, n_classes + 2)
    return {"voxels": counts[:n_classes], "annotated": counts[: n_classes + 1].sum(keepdims=True)}


def count_interfaces(numbers: np.ndarray, own: Sequence[int], n_classes: int) -> Counts:
    """Count, in each of 13 directions, neighbours of different classes and all neighbours.

    Parameters
    ----------
    numbers : (Z, Y, X) uint8
        Classes from 0; then: another class, not annotated.
    own : sequence of int
        As in :func:`cvdask.morphometry.pair_counts.count_neighbours`.
    n_classes : int

    Returns
    -------
    dict
        ``faces`` (13, pairs of classes) in the order 0-1, 0-2 … 1-2 …, and ``neighbours`` (13,) of
        which both are annotated.
    """
    unknown = n_classes + 1
    numbers = np.ascontiguousarray(numbers[tuple(slice(0, n + 1) for n in own)])
    unequal = count_neighbours(numbers, own, n_classes + 2)
    known = np.empty(len(DIRECTIONS), np.int64)
    any_unknown = bool((numbers == unknown).any())
    for k in range(len(DIRECTIONS)):
        known[k] = math.prod(pair_shape(numbers.shape, own, k))
        if any_unknown:
            first, second = neighbours(numbers, own, k)
            known[k] -= np.count_nonzero((first == unknown) | (second == unknown))
    a, b = np.triu_indices(n_classes, 1)
    return {"faces": unequal[:, a, b], "neighbours": known}


def count_distances(
    numbers: np.ndarray,
    own: Sequence[int],
    axis: int,
    n_lags: int,
    chosen: Sequence[int],
    unknown: int,
) -> Counts:
    """Count pairs and unbroken stretches along an axis, of classes and of what is annotated.

    Parameters
    ----------
    numbers : (Z, Y, X) uint8
    own : sequence of int
        Pairs start in the first so many voxels; beyond, voxels along ``axis`` are ends of pairs.
    axis, n_lags : int
    chosen : sequence of int
        Classes.
    unknown : int
        The number of voxels that are not annotated.

    Returns
    -------
    dict
        ``hits`` and ``paths`` (chosen, n_lags); ``pairs`` and ``segments`` (n_lags,), what they
        are to be divided by.
    """
    reach = [n + (n_lags - 1 if a == axis else 0) for a, n in enumerate(own)]
    part = numbers[tuple(slice(0, n) for n in reach)]
    hits, paths = np.zeros((2, len(chosen), n_lags), np.int64)
    for k, number in enumerate(chosen):
        mask = part == number
        if mask.any():
            hits[k], paths[k] = count_lags(pack_planes(mask, axis), own[axis], n_lags)
    mask = part != unknown
    if mask.all():
        across = math.prod(n for a, n in enumerate(own) if a != axis)
        starts = np.clip(part.shape[axis] - np.arange(n_lags), 0, own[axis])
        pairs, segments = across * starts, across * starts
    else:
        pairs, segments = count_lags(pack_planes(mask, axis), own[axis], n_lags)
    return {"hits": hits, "paths": paths, "pairs": pairs, "segments": segments}


def _thickness_block(job: _Job, block: Block) -> dict[str, Any]:
    """Count how thick classes are in a block of the coarser level."""
    own = block.write.intersect(job.coarse_region)
    read = block.read.intersect(job.coarse_region)
    numbers = _read_numbers(job, job.coarse, read)
    inner = own.within(read)
    known = numbers != job.other + 1
    by_slice = []
    for value in job.chosen:
        mask = numbers == job.classes.index(value)
        other = known & ~mask
        thick = count_thick(mask, other, inner, _spacing_um(job.coarse), job.diameters_um)
        members = np.count_nonzero(mask[inner], axis=(1, 2))
        by_slice.append(np.concatenate([members[:, None], thick], axis=1))
    slices = np.stack(by_slice, axis=1)  # (slices, classes, 1 + diameters)
    return {
        "z_blocks": {
            str(k): {"thick": slices[first:last].sum(axis=0).tolist()}
            for k, first, last in _slabs(job, job.coarse_region, own)
        }
    }


def _add_records(counts: list[Counts], ledger: Ledger) -> None:
    for record in ledger.records():
        for k, found in record["z_blocks"].items():
            into = counts[int(k)]
            for name, values in found.items():
                added = np.array(values, np.int64)
                into[name] = into[name] + added if name in into else added


# ---------------------------------------------------------------------------------------------
# Ratios and their intervals


class Ratios:
    """Ratios of counts over z-blocks, and the same for z-blocks drawn with replacement.

    Parameters
    ----------
    n_blocks : int
        z-blocks that hold anything annotated.

    Notes
    -----
    Drawn numbers of blocks are few and counts are whole numbers below 2**53, so sums are exact:
    intervals do not depend on the machine.
    """

    def __init__(self, n_blocks: int) -> None:
        generator = np.random.default_rng(0)
        shares = np.full(n_blocks, 1 / n_blocks)
        drawn = generator.multinomial(n_blocks, shares, N_RESAMPLES)
        self._weights = np.concatenate([np.ones((1, n_blocks)), drawn])

    def of(self, above: np.ndarray, below: np.ndarray) -> np.ndarray:
        """Divide sums over all blocks (row 0) and over each drawing; NaN where below is 0.

        Parameters
        ----------
        above, below : (z-blocks, n) int64

        Returns
        -------
        (1 + drawings, n) float64
        """
        over, under = self._weights @ above, self._weights @ below
        ratios = np.full(over.shape, np.nan)
        return np.divide(over, under, out=ratios, where=under > 0)

    def interval(self, ratios: np.ndarray) -> Estimates:
        """Return value, low and high of each column; NaN where they are unknown."""
        value = ratios[0]
        low, high = np.full((2, len(value)), np.nan)
        good = ~np.isnan(ratios[1:]).all(axis=0)
        if self._weights.shape[1] > 1 and good.any():
            tail = (1 - CONFIDENCE) / 2
            low[good], high[good] = np.nanquantile(
                ratios[1:, good], [tail, 1 - tail], axis=0, method="linear"
            )
        return value, low, high


@dataclass(frozen=True)
class _Rows:
    """Rows of the table that belong together."""

    descriptor: str
    unit: str
    name: str
    other: str | None
    axis: str | None
    distances_um: np.ndarray | None
    estimates: Estimates


def _column(estimates: Estimates, k: int) -> Estimates:
    value, low, high = (part[k : k + 1] for part in estimates)
    return value, low, high


def _finish(
    job: _Job, counts: Sequence[Counts], names: Mapping[int, str], image: str
) -> tuple[list[_Rows], list[str]]:
    """Turn counts into rows, and say what is odd."""
    rows: list[_Rows] = []
    notices: list[str] = []
    if set(job.kinds) - {"thickness"}:
        held = [one for one in counts if one["annotated"][0]]
        if not held:
            raise ValueError(f"no voxel of {image!r} is annotated within {job.region}")
        ratios = Ratios(len(held))
        sums = {name: np.stack([one[name] for one in held]) for name in held[0]}
        total = sums["voxels"].sum(axis=0)
        notices += [
            f"{names[value]} has no voxel in {image!r} within {job.region}"
            for value, n in zip(job.classes, total, strict=True)
            if not n and value != BACKGROUND
        ]
        if "fractions" in job.kinds:
            rows += _fraction_rows(job, sums, ratios, names)
        if "interfaces" in job.kinds:
            rows += _interface_rows(job, sums, ratios, names)
        for kind, above, below in (
            ("two_point", "hits", "pairs"),
            ("lineal_path", "paths", "segments"),
        ):
            if kind in job.kinds:
                rows += _distance_rows(job, sums, ratios, names, kind, above, below)
    if job.diameters_um:
        found, said = _thickness_rows(job, counts, names)
        rows += found
        notices += said
    return rows, notices


def _fraction_rows(
    job: _Job, sums: Mapping[str, np.ndarray], ratios: Ratios, names: Mapping[int, str]
) -> Iterator[_Rows]:
    estimates = ratios.interval(ratios.of(sums["voxels"], sums["annotated"]))
    for k, value in enumerate(job.classes):
        one = _column(estimates, k)
        yield _Rows("class_fraction", "1", names[value], None, None, None, one)


def _interface_rows(
    job: _Job, sums: Mapping[str, np.ndarray], ratios: Ratios, names: Mapping[int, str]
) -> Iterator[_Rows]:
    """Area per volume: twice the crossings per length of line, over all directions.

    Directions without neighbours, across a volume one voxel thin, are left out.
    """
    assert job.fine.voxel_size_nm is not None
    weights = direction_weights(job.fine.voxel_size_nm)
    steps_um = np.linalg.norm(DIRECTIONS * _spacing_um(job.fine), axis=1)
    there = sums["neighbours"].sum(axis=0) > 0
    weights = np.where(there, weights, 0) / max(weights[there].sum(), 1e-300)
    density = np.zeros((N_RESAMPLES + 1, sums["faces"].shape[2]))
    for k in np.flatnonzero(there):
        crossings = ratios.of(sums["faces"][:, k], sums["neighbours"][:, k : k + 1])
        density += 2 * weights[k] / steps_um[k] * crossings
    estimates = ratios.interval(density)
    first, second = np.triu_indices(len(job.classes), 1)
    for j, (a, b) in enumerate(zip(first, second, strict=True)):
        pair = names[job.classes[a]], names[job.classes[b]]
        one = _column(estimates, j)
        yield _Rows("interface_density", "1/µm", *pair, None, None, one)


def _distance_rows(
    job: _Job,
    sums: Mapping[str, np.ndarray],
    ratios: Ratios,
    names: Mapping[int, str],
    kind: str,
    above: str,
    below: str,
) -> Iterator[_Rows]:
    for k, value in enumerate(job.chosen):
        for axis, spacing in zip(AXES, _spacing_um(job.fine), strict=True):
            hits, pairs = sums[f"{above}_{axis}"][:, k], sums[f"{below}_{axis}"]
            estimates = ratios.interval(ratios.of(hits, pairs))
            distances = np.arange(hits.shape[1]) * spacing
            yield _Rows(kind, "1", names[value], None, axis, distances, estimates)


def _thickness_rows(
    job: _Job, counts: Sequence[Counts], names: Mapping[int, str]
) -> tuple[list[_Rows], list[str]]:
    rows, notices = [], []
    diameters = np.array(job.diameters_um)
    step = diameters[0]
    for k, value in enumerate(job.chosen):
        thick = np.stack([one["thick"][k] for one in counts if "thick" in one])
        ratios = Ratios(len(thick))
        shares = ratios.of(thick[:, 1:], thick[:, :1])
        # Who is between two diameters of the ladder counts as the middle.
        means = step * (0.5 + shares.sum(axis=1, keepdims=True))
        estimates, mean = ratios.interval(shares), ratios.interval(means)
        if shares[0, -1] > 0:
            notices.append(
                f"{shares[0, -1]:.1%} of {names[value]} is at least as thick as the largest "
                f"diameter, {diameters[-1]:g} µm: its mean thickness is too small. Give a larger "
                f"--max-thickness-um"
            )
        if shares[0, 0] < 0.5:
            notices.append(
                f"{1 - shares[0, 0]:.1%} of {names[value]} is thinner than the smallest diameter, "
                f"{step:g} µm, or than a voxel of {job.coarse.path}: its mean thickness says "
                f"little. Give a smaller --thickness-step-um"
            )
        rows.append(_Rows("local_thickness", "1", names[value], None, None, diameters, estimates))
        rows.append(_Rows("mean_local_thickness", "µm", names[value], None, None, None, mean))
    return rows, notices


# ---------------------------------------------------------------------------------------------
# The table


def _sizes(job: _Job) -> dict[str, Any]:
    """Say what the numbers rest on, for the table's metadata."""
    return {
        "state": "complete",
        "voxel_size_nm": list(job.fine.voxel_size_nm or ()),
        "thickness_voxel_size_nm": list(job.coarse.voxel_size_nm or ()),
        "interval": f"{CONFIDENCE:.0%} bootstrap of {job.z_blocks} z-blocks, {N_RESAMPLES} draws",
        "interface_density": "Crofton, 13 directions (Lehmann and Legland 2012)",
        "local_thickness": "balls at voxel centres (Hildebrand and Rüegsegger 1997)",
    }


def _as_table(rows: Sequence[_Rows], metadata: Mapping[str, Any]) -> pa.Table:
    # Late: a worker writes no table.
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for one in rows:
        value, low, high = one.estimates
        n = len(value)
        distances = [None] * n if one.distances_um is None else one.distances_um.round(9).tolist()
        columns["descriptor"] += [one.descriptor] * n
        columns["class"] += [one.name] * n
        columns["other"] += [one.other] * n
        columns["axis"] += [one.axis] * n
        columns["distance_um"] += distances
        columns["unit"] += [one.unit] * n
        for name, numbers in (("value", value), ("low", low), ("high", high)):
            columns[name] += [None if math.isnan(v) else v for v in numbers.tolist()]
    measured = {"distance_um", "value", "low", "high"}
    schema = pa.schema(
        [(name, pa.float64() if name in measured else pa.string()) for name in COLUMNS],
        {"cvdask": json.dumps(metadata, ensure_ascii=False)},
    )
    return pa.Table.from_pydict(columns, schema)
