"""How much of one class is there for each voxel of another, around every place?

A cube, the *kernel*, moves through the volume by a *stride*; its density is the number of voxels
of the numerator's classes over that of the denominator's. No voxel is read twice:

1. The kernel and the stride become whole voxels. Their bounds cut each axis into *cells*, one for
   each stride, or two where the kernel is no multiple of it::

       stride 4, kernel 8      cells  [ 0 ][ 1 ][ 2 ][ 3 ]        window 1 = cells 1, 2
       stride 4, kernel 10     cells  [0|1][2|3][4|5][6|7]        window 1 = cells 2 … 6

2. Each block of the label image leaves the counts of its part of the cells it touches: integers,
   a small object in a scratch folder of the output.
3. Each block of the output adds up the cells that its windows need, and takes windows out of
   running sums. One division in the end: the result equals a direct sliding window, and does not
   depend on blocks, workers or interruptions.

The result is an image of its own, one voxel for each window, in the place of the window's centre.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cvdask import __version__
from cvdask.compiled import compiled
from cvdask.engine.blockwise import run
from cvdask.engine.cluster import connect
from cvdask.engine.ledger import Ledger
from cvdask.engine.output import begin, fill, is_sealed
from cvdask.engine.plan import Plan, check_plans
from cvdask.volume.boxes import AXES, Block, Box, Grid
from cvdask.volume.classes import (
    absent_values,
    block_shape,
    class_values,
    measured_box,
    named_values,
    open_classes,
    read_classes,
)
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.objects import delete_tree, normalize_url
from cvdask.volume.scratch import read_array, write_checked
from cvdask.volume.store import (
    SEGMENT,
    Level,
    Volume,
    describe,
    open_volume,
    publish,
    read_attributes,
    update_attributes,
    volume_digest,
    write_box,
)

# Windows of a chunk and of a block of the output, along each axis.
CHUNK, SHARD = 32, 64
# Below the output, outside of its array: removed in the end.
SCRATCH = ".cvdask/counts"
# Three counters share the 64 bits that a row of a cell is added up in.
COUNTER_BITS = 21
NUMERATOR, DENOMINATOR, ABSENT = (1 << (COUNTER_BITS * k) for k in range(3))

Classes = str | int | Sequence[str | int]


@dataclass(frozen=True)
class Windows:
    """The windows along one axis.

    Parameters
    ----------
    start : int
        First voxel of the first window.
    extent : int
        Voxels of the measured box; windows lie inside it.
    kernel, stride : int
        Voxels of a window, and from one to the next.

    Examples
    --------
    >>> windows = Windows(0, 20, kernel=10, stride=4)
    >>> len(windows), windows.edges.tolist()
    (3, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18])
    """

    start: int
    extent: int
    kernel: int
    stride: int

    def __len__(self) -> int:
        return (self.extent - self.kernel) // self.stride + 1

    @property
    def cells_per_stride(self) -> int:
        """Cells from one window to the next."""
        return 2 if self.kernel % self.stride else 1

    @property
    def cells_per_window(self) -> int:
        """Cells that a window consists of."""
        return self.kernel // self.stride * self.cells_per_stride + (self.cells_per_stride - 1)

    @property
    def edges(self) -> np.ndarray:
        """First voxel of each cell, and one past the last cell: (cells + 1,) int64."""
        n_edges = self.cells_of(0, len(self))[1] + 1
        stride, within = np.divmod(np.arange(n_edges), self.cells_per_stride)
        return self.start + stride * self.stride + within * (self.kernel % self.stride)

    @property
    def stop(self) -> int:
        """One past the last voxel of the last window."""
        return self.start + (len(self) - 1) * self.stride + self.kernel

    @property
    def largest_cell(self) -> int:
        """Voxels of the largest cell."""
        rest = self.kernel % self.stride
        return max(rest, self.stride - rest)

    def cells_of(self, first: int, last: int) -> tuple[int, int]:
        """Return the range of cells that the windows ``first`` to ``last - 1`` consist of."""
        step = self.cells_per_stride
        return first * step, (last - 1) * step + self.cells_per_window


@dataclass(frozen=True)
class _Job:
    """What a task needs besides its block; holds no data."""

    url: str
    level: Level
    windows: tuple[Windows, Windows, Windows]
    numerator: tuple[int, ...]
    denominator: tuple[int, ...]
    known: tuple[int, ...]
    blocks: Grid
    output: Volume

    @property
    def used(self) -> Box:
        """Voxels that any window holds, and those between windows."""
        starts = tuple(axis.start for axis in self.windows)
        return Box(starts, tuple(axis.stop for axis in self.windows))

    def cells_in(self, box: Box) -> tuple[Box, list[np.ndarray]]:
        """Return the cells that a box touches, and where in the box they part, per axis."""
        start, stop, parts = [], [], []
        for axis, low, high in zip(self.windows, box.start, box.stop, strict=True):
            edges = axis.edges
            first = int(np.searchsorted(edges, low, "right")) - 1
            last = int(np.searchsorted(edges, high, "left"))
            start.append(first)
            stop.append(last)
            parts.append(np.clip(edges[first : last + 1], low, high) - low)
        return Box(tuple(start), tuple(stop)), parts


def density(
    volume: Volume | str,
    *,
    labels: str = "classes",
    numerator: Classes,
    denominator: Classes,
    kernel_um: float = 4.0,
    stride_um: float = 0.4,
    name: str = "density",
    out: str | None = None,
    box: Box | str | None = None,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Volume | list[Plan]:
    """Count one class for each voxel of another in a moving cube.

    Parameters
    ----------
    volume : Volume or str
        The sample.
    labels : str
        Label image of classes.
    numerator, denominator : str, int or sequence
        Names or values of classes; several are added up. A denominator of ``"all"`` is every
        annotated voxel: the density is then the fraction of the volume.
    kernel_um, stride_um : float
        Side of the cube, and the step from one place to the next. Rounded to whole voxels along
        each axis; where that changes them, a warning and the attribute ``density`` say the sizes.
    name : str
        The result is written to ``tables/<name>.zarr`` below the sample, as an image of its own:
        label images cannot hold fractions, and the levels of an image are one grid.
    out : str, optional
        Where it is written instead.
    box : Box or str, optional
        Only windows inside these voxels, as ``z0:z1,y0:y1,x0:x1``.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans and write nothing.

    Returns
    -------
    Volume
        float32, a voxel per window inside the box, at the window's centre; NaN where a window has
        no voxel of the denominator. ``.to_xarray()`` has coordinates in µm. With ``dry_run`` the
        plans.

    Raises
    ------
    ValueError
        When a class or the label image is absent, the voxel size is not stated, the kernel or the
        stride is smaller than a voxel, or the kernel larger than the box.
    FileExistsError
        When something else lies at the destination.
    BlocksFailed
        When blocks could not be read, or hold values that are no class.

    Warns
    -----
    UserWarning
        When sizes were rounded, or one of the two has no voxel. Recorded with the result.
    """
    classes = open_classes(volume, labels)
    region = measured_box(classes, box)
    sizes = (kernel_um, stride_um)
    destination = _destination(classes, name, out)
    job = _describe_job(classes, numerator, denominator, sizes, region, destination)
    output = job.output
    provenance = {
        "stage": "density",
        "version": __version__,
        "options": {
            "numerator": list(job.numerator),
            "denominator": denominator if denominator == "all" else list(job.denominator),
            "kernel_um": kernel_um,
            "stride_um": stride_um,
            "box": str(region),
        },
        "inputs": [{"volume": f"labels/{labels}", "digest": volume_digest(classes)}],
    }
    ways = {"resume": resume, "overwrite": overwrite}
    plans = [plan_counts(job), plan_windows(job)]
    state = begin([output], provenance, dry_run=True, **ways)
    if dry_run:
        return plans
    if state == "complete":
        # What another client has left that came late to the same output.
        delete_tree(output.url, SCRATCH.partition("/")[0])
        Ledger(output.url, output.levels[0].path).clear()
        return open_volume(output.url)
    effective = _effective_sizes(job)
    notices = _rounding(effective, sizes)
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    with connect(client, workers=workers) as pool:
        check_plans(plans, pool.slots, pool.worker_bytes)
        begin([output], provenance, **ways)
        if not is_sealed(output):
            ledger = Ledger(output.url, SCRATCH)
            run(partial(_count_block, job), plans[0], ledger=ledger, client=pool)
            # Another client that came to the end first has recorded it, and cleared the markers.
            if "n_voxels" not in read_attributes(output.url):
                update_attributes(output, n_voxels=_total(ledger))
        fill([output], plans[1], partial(_window_block, job), client=pool)
    delete_tree(output.url, SCRATCH.partition("/")[0])
    late = _empty_notices(read_attributes(output.url)["n_voxels"], job, classes)
    for notice in late:
        warnings.warn(notice, stacklevel=2)
    publish(output, density=effective, warnings=[*notices, *late])
    return open_volume(output.url)


# ---------------------------------------------------------------------------------------------
# Before work


def whole_voxels(
    name: str, length_um: float, voxel_size_nm: Sequence[float], extents: Sequence[int] | None
) -> tuple[int, ...]:
    """Round a length to whole voxels along each axis, half up.

    Parameters
    ----------
    name : str
        What has this length, for messages.
    length_um : float
    voxel_size_nm : sequence of float
        Of the volume, z, y, x.
    extents : sequence of int, optional
        What it must fit into, in voxels.

    Raises
    ------
    ValueError
        When it is no positive number, is smaller than a voxel, or does not fit.

    Examples
    --------
    >>> whole_voxels("kernel", 0.4, (30.0, 10.0, 10.0), (50, 50, 50))
    (13, 40, 40)
    """
    if not (math.isfinite(length_um) and length_um > 0):
        raise ValueError(f"the {name} has a positive length in µm. Received: {length_um}")
    found = []
    for axis, spacing in enumerate(voxel_size_nm):
        # 0.3 µm are 3 voxels of 100 nm, also where floating point says 2.9999999999999996.
        voxels = round(length_um * 1000 / spacing, 9)
        if voxels < 1:
            raise ValueError(
                f"the {name} must not be smaller than a voxel. Received: {length_um:g} µm, voxels "
                f"measure {spacing / 1000:g} µm along {AXES[axis]}"
            )
        rounded = math.floor(voxels + 0.5)
        if extents is not None and rounded > extents[axis]:
            raise ValueError(
                f"the {name} must not be larger than the volume. Received: {length_um:g} µm, "
                f"{rounded} voxels along {AXES[axis]}, where there are {extents[axis]} "
                f"({extents[axis] * spacing / 1000:g} µm): give a smaller one"
            )
        found.append(rounded)
    return tuple(found)


def _describe_job(
    classes: Volume,
    numerator: Classes,
    denominator: Classes,
    sizes_um: tuple[float, float],
    region: Box,
    destination: str,
) -> _Job:
    level = classes.levels[0]
    spacing = level.voxel_size_nm
    assert spacing is not None
    names = named_values(classes)
    known = tuple(names or range(UNANNOTATED))
    everything = denominator == "all" and "all" not in names.values()
    above = class_values(classes, numerator)
    below = known if everything else class_values(classes, denominator)
    kernel = whole_voxels("kernel", sizes_um[0], spacing, region.shape)
    # A stride may leave the volume: there is one window then.
    stride = whole_voxels("stride", sizes_um[1], spacing, None)
    z, y, x = map(Windows, region.start, region.shape, kernel, stride)
    output = _describe_output(destination, level, (z, y, x))
    used = Box(region.start, (z.stop, y.stop, x.stop))
    return _Job(
        classes.url,
        level,
        (z, y, x),
        above,
        below,
        known,
        Grid(level.shape, block_shape(level), roi=used),
        output,
    )


def _destination(classes: Volume, name: str, out: str | None) -> str:
    if out is not None:
        return normalize_url(out)
    if not SEGMENT.match(name):
        raise ValueError(
            f"the name of a result is made of letters, digits, '_', '-', '.' and '+'. "
            f"Received: {name!r}"
        )
    return f"{classes.url}/tables/{name}.zarr"


def _describe_output(url: str, level: Level, windows: Sequence[Windows]) -> Volume:
    spacing = level.voxel_size_nm
    assert spacing is not None
    shape = tuple(len(axis) for axis in windows)
    chunk = tuple(min(CHUNK, n) for n in shape)
    output = describe(
        url,
        shape=shape,
        dtype="float32",
        voxel_size_nm=[axis.stride * s for axis, s in zip(windows, spacing, strict=True)],
        chunk_shape=chunk,
        shard_shape=Box.whole(tuple(min(SHARD, n) for n in shape)).align(chunk).stop,
    )
    # The centre of a window lies between those of its first and last voxels.
    z, y, x = (
        o + (axis.start + (axis.kernel - 1) / 2) * s
        for o, axis, s in zip(level.origin_nm, windows, spacing, strict=True)
    )
    return replace(output, levels=(replace(output.levels[0], origin_nm=(z, y, x)),))


def _effective_sizes(job: _Job) -> dict[str, list[float]]:
    """Return kernel and stride as they are, in voxels and µm."""
    spacing = job.level.voxel_size_nm
    assert spacing is not None
    sizes: dict[str, list[float]] = {}
    for what in ("kernel", "stride"):
        voxels = [getattr(axis, what) for axis in job.windows]
        sizes[f"{what}_voxels"] = voxels
        sizes[f"{what}_um"] = [n * s / 1000 for n, s in zip(voxels, spacing, strict=True)]
    return sizes


def _rounding(effective: Mapping[str, Sequence[float]], asked: Sequence[float]) -> list[str]:
    """Say the sizes where whole voxels are not what was asked for."""
    notices = []
    for what, length_um in zip(("kernel", "stride"), asked, strict=True):
        sizes = effective[f"{what}_um"]
        if not np.allclose(sizes, length_um, rtol=1e-6, atol=0):
            voxels = " × ".join(map(str, effective[f"{what}_voxels"]))
            rounded = " × ".join(f"{size:g}" for size in sizes)
            notices.append(
                f"the {what} of {length_um:g} µm is no whole number of voxels: {voxels} voxels "
                f"are taken, {rounded} µm (z × y × x)"
            )
    return notices


def plan_counts(job: _Job) -> Plan:
    """Plan the counting: each voxel that a window holds is read once."""
    itemsize = np.dtype(job.level.dtype).itemsize
    n_cells = math.prod(axis.cells_of(0, len(axis))[1] for axis in job.windows)
    scratch_bytes = n_cells * 2 * _count_type(job.windows).itemsize
    cells_of_block = math.prod(
        min(n * axis.cells_per_stride // axis.stride + 2, axis.cells_of(0, len(axis))[1])
        for n, axis in zip(job.blocks.block_shape, job.windows, strict=True)
    )
    return Plan(
        stage="density counts",
        grid=job.blocks,
        output=job.output.url,
        read_bytes=job.used.size * itemsize,
        write_bytes=scratch_bytes,
        # Stored and decoded voxels, as uint8 too; three counters, and two of them again.
        task_bytes=job.blocks.largest_read * (2 * itemsize + (itemsize > 1)) + 40 * cells_of_block,
        stored_bytes=scratch_bytes,
        notes={"region": str(job.used)},
    )


def plan_windows(job: _Job) -> Plan:
    """Plan the windows: blocks are the shards of the output."""
    level = job.output.levels[0]
    cells = math.prod(
        axis.cells_of(0, min(n, len(axis)))[1]
        for axis, n in zip(job.windows, level.shard_shape, strict=True)
    )
    return Plan(
        stage="density",
        grid=level.shards,
        output=job.output.url,
        read_bytes=plan_counts(job).write_bytes,
        write_bytes=level.nbytes,
        # Cells of both, the running sums of one, and what was read of them; then the windows.
        task_bytes=cells * 40 + math.prod(level.shard_shape) * 32,
        stored_bytes=level.nbytes,
        notes={"windows": list(level.shape)},
    )


# ---------------------------------------------------------------------------------------------
# Counting


def counter_table(
    numerator: Sequence[int], denominator: Sequence[int], known: Sequence[int]
) -> np.ndarray:
    """Return what a voxel of each value adds to the three counters: (256,) uint64.

    Values that are neither known nor 255 go to the third.
    """
    table = np.full(256, ABSENT, np.uint64)
    table[[*known, UNANNOTATED]] = 0
    table[list(numerator)] += np.uint64(NUMERATOR)
    table[list(denominator)] += np.uint64(DENOMINATOR)
    return table


def count_cells(
    data: np.ndarray, edges: Sequence[np.ndarray], table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Count the voxels of numerator and denominator in each cell of a box.

    Parameters
    ----------
    data : (Z, Y, X) uint8
    edges : three of (cells + 1,) int64
        Where cells begin and end, from 0 to the extent of the data.
    table : (256,) uint64
        See :func:`counter_table`.

    Returns
    -------
    numerator, denominator : (cells z, cells y, cells x) int64
    n_absent : int
        Voxels that are in no class.

    Examples
    --------
    >>> data = np.array([[[1, 1, 2, 2, 2, 0]]], "uint8")
    >>> edges = [np.array([0, 1]), np.array([0, 1]), np.array([0, 3, 6])]
    >>> above, below, n_absent = count_cells(data, edges, counter_table([1], [2], [0, 1, 2]))
    >>> above.ravel(), below.ravel(), n_absent
    (array([2, 0]), array([1, 2]), 0)
    """
    z, y, x = (np.asarray(part, np.int64) for part in edges)
    counts = np.zeros((3, len(z) - 1, len(y) - 1, len(x) - 1), np.int64)
    pieces = _short_pieces(x)
    cell_of_piece = np.searchsorted(x, pieces, "right") - 1
    _count_cells(data, z, y, pieces, cell_of_piece, table, counts)
    return counts[0], counts[1], int(counts[2].sum())


def _short_pieces(edges: np.ndarray) -> np.ndarray:
    """Cut cells along x into pieces short enough for the counters."""
    longest = (1 << COUNTER_BITS) - 1
    if np.diff(edges).max() <= longest:
        return edges
    pieces = [np.arange(a, b, longest) for a, b in itertools.pairwise(edges.tolist())]
    return np.concatenate([*pieces, edges[-1:]])


@compiled()
def _count_cells(
    data: np.ndarray,
    edges_z: np.ndarray,
    edges_y: np.ndarray,
    edges_x: np.ndarray,
    cell_x: np.ndarray,
    table: np.ndarray,
    counts: np.ndarray,
) -> None:
    mask = np.uint64((1 << COUNTER_BITS) - 1)
    one, two = np.uint64(COUNTER_BITS), np.uint64(2 * COUNTER_BITS)
    for k in range(len(edges_z) - 1):
        for z in range(edges_z[k], edges_z[k + 1]):
            for j in range(len(edges_y) - 1):
                for y in range(edges_y[j], edges_y[j + 1]):
                    for p in range(len(edges_x) - 1):
                        # Two sums: an addition then does not wait for the one before.
                        even, odd = np.uint64(0), np.uint64(0)
                        first, last = edges_x[p], edges_x[p + 1]
                        for x in range(first, last - 1, 2):
                            even += table[data[z, y, x]]
                            odd += table[data[z, y, x + 1]]
                        if (last - first) % 2:
                            odd += table[data[z, y, last - 1]]
                        total = even + odd
                        i = cell_x[p]
                        counts[0, k, j, i] += np.int64(total & mask)
                        counts[1, k, j, i] += np.int64((total >> one) & mask)
                        counts[2, k, j, i] += np.int64(total >> two)


def _count_type(windows: Sequence[Windows]) -> np.dtype[Any]:
    """Return the smallest type that holds the voxels of any cell."""
    return np.min_scalar_type(math.prod(axis.largest_cell for axis in windows))


def _scratch_key(block: Block) -> str:
    return f"{SCRATCH}/{block.index:012d}"


def _count_block(job: _Job, block: Block) -> dict[str, Any]:
    """Leave the counts of a block's part of each cell it touches."""
    box = block.write.intersect(job.used)
    data = read_classes(job.url, job.level, box)
    _, edges = job.cells_in(box)
    table = counter_table(job.numerator, job.denominator, job.known)
    above, below, n_absent = count_cells(data, edges, table)
    if n_absent:
        odd = absent_values(data, {*job.known, UNANNOTATED})
        raise ValueError(f"{job.level.path}, box {box}, holds {odd}")
    counts = np.stack([above, below]).astype(_count_type(job.windows))
    write_checked(job.output.url, _scratch_key(block), counts)
    return {"voxels": [int(above.sum()), int(below.sum())]}


def _read_counts(job: _Job, block: Block, shape: tuple[int, ...]) -> np.ndarray:
    """Read what :func:`_count_block` has left: (2, cells z, cells y, cells x)."""
    return read_array(job.output.url, _scratch_key(block), _count_type(job.windows), (2, *shape))


def _total(ledger: Ledger) -> list[int]:
    totals = [0, 0]
    for record in ledger.records():
        totals = [a + b for a, b in zip(totals, record["voxels"], strict=True)]
    return totals


def _empty_notices(totals: Sequence[int], job: _Job, classes: Volume) -> list[str]:
    """Say where the numerator or the denominator has no voxel at all."""
    names = named_values(classes)
    notices = []
    for what, values, total, result in (
        ("numerator", job.numerator, totals[0], "0 where it is a number"),
        ("denominator", job.denominator, totals[1], "no number anywhere"),
    ):
        if not total:
            who = ", ".join(names.get(value, str(value)) for value in values[:5])
            notices.append(
                f"the {what} ({who}) has no voxel in {classes.name!r} within {job.used}: the "
                f"density is {result}"
            )
    return notices


# ---------------------------------------------------------------------------------------------
# Windows


def window_sums(cells: np.ndarray, windows: Sequence[Windows]) -> np.ndarray:
    """Add up the cells of each window, by running sums along one axis after the other.

    Parameters
    ----------
    cells : (Z, Y, X) int64
        Those that a range of windows consists of.
    windows : three Windows
        How many cells make a window, and lie from one to the next.

    Returns
    -------
    (windows z, windows y, windows x) int64

    Examples
    --------
    >>> single, line = Windows(0, 1, 1, 1), Windows(0, 20, kernel=8, stride=4)
    >>> window_sums(np.array([[[1, 2, 3, 4, 5]]]), [single, single, line])
    array([[[3, 5, 7, 9]]])
    """
    for axis, along in enumerate(windows):
        line = np.moveaxis(cells, axis, 0)
        running = np.concatenate([np.zeros_like(line[:1]), np.cumsum(line, axis=0)])
        upper = running[along.cells_per_window :: along.cells_per_stride]
        lower = running[: -along.cells_per_window : along.cells_per_stride]
        cells = np.moveaxis(upper - lower, 0, axis)
    return cells


def _window_block(job: _Job, block: Block) -> dict[str, Any]:
    """Write the densities of a block of windows."""
    level = job.output.levels[0]
    above, below = (window_sums(cells, job.windows) for cells in _gather(job, block.write))
    ratio = np.full(above.shape, np.nan)
    np.divide(above, below, out=ratio, where=below > 0)
    data = ratio.astype(np.float32)
    return {"shards": {level.path: write_box(job.output.url, level, block.write, data)}}


def _gather(job: _Job, box: Box) -> np.ndarray:
    """Add up what the blocks have left of the cells of a box of windows: (2, Z, Y, X) int64."""
    bounds = zip(job.windows, box.start, box.stop, strict=True)
    ranges = [axis.cells_of(first, last) for axis, first, last in bounds]
    wanted = Box(tuple(first for first, _ in ranges), tuple(last for _, last in ranges))
    edges = [axis.edges for axis in job.windows]
    voxels = Box(
        tuple(int(e[c]) for e, c in zip(edges, wanted.start, strict=True)),
        tuple(int(e[c]) for e, c in zip(edges, wanted.stop, strict=True)),
    )
    total = np.zeros((2, *wanted.shape), np.int64)
    for block in job.blocks.touching(voxels):
        cells, _ = job.cells_in(block.write.intersect(job.used))
        shared = cells.intersect(wanted)
        counts = _read_counts(job, block, cells.shape)
        total[(slice(None), *shared.within(wanted))] += counts[(slice(None), *shared.within(cells))]
    return total
