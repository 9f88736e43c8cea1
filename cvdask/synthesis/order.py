"""In which order do independent slices make a volume, and is there a better one?

Slices that were made one by one have no neighbours yet. The best order is the shortest path through
all of them, each step as long as the Jaccard distance of the two slices.

1. *pack*: blocks of slices become bits, in a scratch folder below the output (``jaccard``).
2. *compare*: each pair of such blocks is compared, all slices of one with all of the other; whole
   numbers, of which only one half of the matrix is needed::

       blocks of slices   0  1  2
                      0   ×  ×  ×
                      1      ×  ×        a task each
                      2         ×

3. *path*: one task for each volume divides and finds the path (``tour``): its order, and a bound
   that no order can be below.
4. *write*: columns of voxels through all slices are read, put in order, and written as a label
   image. No voxel is read twice.

An ensemble is ordered as a whole, every member by itself; the steps then run over the members too.
All of it can be interrupted; the result is the same on any number of workers, byte for byte.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask import __version__
from cvdask.engine.blockwise import run
from cvdask.engine.cluster import Pool, connect
from cvdask.engine.ledger import Ledger
from cvdask.engine.output import Standing, begin, sweep
from cvdask.engine.plan import Plan, check_plans
from cvdask.errors import DamagedData
from cvdask.synthesis.continuity import mean_distances, open_real, stack_distances
from cvdask.synthesis.jaccard import (
    Packed,
    count_common,
    distances,
    jaccard_matrix,
    n_planes,
    pack,
    packed_shape,
    values_present,
)
from cvdask.synthesis.order_table import write_tables
from cvdask.synthesis.slices import SliceSet
from cvdask.synthesis.tour import Path, shortest_path
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.classes import absent_values, named_values, open_classes, read_classes
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.ensemble import Ensemble, is_ensemble, open_ensemble
from cvdask.volume.objects import (
    delete_tree,
    normalize_url,
    read_json,
    redact,
    write_json,
)
from cvdask.volume.parquet import table_metadata
from cvdask.volume.scratch import read_array, write_checked
from cvdask.volume.store import (
    Level,
    Volume,
    describe,
    open_volume,
    publish,
    read_box,
    volume_digest,
    write_box,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Path", "jaccard_matrix", "mean_distances", "order", "shortest_path"]

# Slices of a block that is packed: their bits, and the most of them.
PACK_BYTES = 2**25
MOST_PACKED = 512
FEWEST_PACKED = 32
# Columns through all slices that are put in order at once.
COLUMN_BYTES = 2**28
STAGES = ("pack", "compare", "path", "write")


@dataclass(frozen=True)
class _Job:
    """What a task needs besides its block; holds no data.

    Parameters
    ----------
    url : str
        The ensemble, or the sample.
    members : tuple of str
        Names of the samples in an ensemble; one empty name for a sample alone.
    level : Level
        Of the classes, the same in all members.
    output : Volume
        The ordered label image of the first.
    values : tuple of int
        Of the classes; their places, from 1, are their numbers.
    named : bool
        Whether other values than these, 0 and 255 are no class.
    group : int
        Slices that are packed together.
    n_kicks : int, optional
    seed : int
    """

    url: str
    members: tuple[str, ...]
    level: Level
    output: Volume
    values: tuple[int, ...]
    named: bool
    group: int
    n_kicks: int | None
    seed: int

    @property
    def n_slices(self) -> int:
        return self.level.shape[0]

    @property
    def n_pixels(self) -> int:
        return math.prod(self.level.shape[1:])

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Blocks of slices that are compared, in order."""
        n_groups = -(-self.n_slices // self.group)
        return [(i, j) for i in range(n_groups) for j in range(i, n_groups)]

    @property
    def scratch(self) -> str:
        """Folder below the ensemble or the sample: removed in the end."""
        return f".cvdask/{self.output.name}"

    def member_url(self, number: int) -> str:
        name = self.members[number]
        return f"{self.url}/{name}" if name else self.url

    def member_output(self, number: int) -> Volume:
        return replace(self.output, url=self.member_url(number))

    def member_level(self, number: int) -> Level:
        """Return the level that is written, by its path below the ensemble."""
        level = self.output.levels[0]
        return replace(level, path=f"{self.members[number]}/{level.path}".lstrip("/"))

    def ledger(self, stage: str) -> Ledger:
        return Ledger(self.url, f"{self.scratch}/{stage}")

    def slices_of(self, group: int) -> tuple[int, int]:
        return group * self.group, min((group + 1) * self.group, self.n_slices)


def order(
    volumes: Volume | Ensemble | str | os.PathLike[str],
    *,
    labels: str = "classes",
    name: str = "ordered",
    real: Volume | str | None = None,
    real_labels: str | None = None,
    n_kicks: int | None = None,
    seed: int = 0,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> pa.Table | list[Plan]:
    """Put the slices of a volume, or of every volume of an ensemble, into the shortest order.

    Parameters
    ----------
    volumes : Ensemble, Volume, str or path
        An ensemble, or a sample alone.
    labels : str
        Label image of classes. Voxels of 255, which nobody has annotated, count as background.
    name : str
        Label image that is written in every sample: the same slices in their new order.
    real : Volume or str, optional
        A sample with the real stack, whose J(k) is told beside: cut and reduced to the slices'
        extent and voxel size, as for training.
    real_labels : str, optional
        Its label image of classes; by default ``labels``.
    n_kicks : int, optional
        How long the search goes on where the path is not proven to be shortest: see
        :func:`cvdask.synthesis.tour.shortest_path`.
    seed : int
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans and write nothing.

    Returns
    -------
    pyarrow.Table
        Columns ``volume, position, slice, step``: which slice lies at each position, and how far
        it is to the next one. Its metadata is what ``tables/order.json`` holds: for every volume
        length, bound, gap, worst step, and J(k), the mean distance of slices ``k`` apart, before
        and after. Both lie below the ensemble or the sample. With ``dry_run`` the plans.

    Raises
    ------
    ValueError
        When a label image is absent, volumes of an ensemble differ in extent or classes, or the
        real stack cannot be compared.
    FileExistsError
        When something else lies at the destination.
    BlocksFailed
        When blocks could not be read, or hold values that are no class.

    Warns
    -----
    UserWarning
        When slices hold no class, or several are equal. Recorded with the result.
    """
    job, classes = _describe_job(volumes, labels, name, n_kicks, seed)
    provenance = {
        "stage": "order",
        "version": __version__,
        "options": {"labels": labels, "n_kicks": n_kicks, "seed": seed},
        "inputs": [
            {"volume": f"{member}/labels/{labels}".lstrip("/"), "digest": volume_digest(image)}
            for member, image in zip(job.members, classes, strict=True)
        ],
    }
    beside = None
    if real is not None:
        beside = open_real(real, real_labels or labels, classes[0])
    ways = {"resume": resume, "overwrite": overwrite}
    outputs = [job.member_output(number) for number in range(len(job.members))]
    each = [_own_provenance(provenance, number) for number in range(len(outputs))]
    states: set[Standing] = {
        begin([output], own, dry_run=True, **ways)
        for output, own in zip(outputs, each, strict=True)
    }
    plans = plan_order(job)
    if dry_run:
        return plans
    if states != {"complete"}:
        with connect(client, workers=workers) as pool:
            check_plans(plans, pool.slots, pool.worker_bytes)
            if states == {"new"}:
                delete_tree(job.url, job.scratch)
            for output, own in zip(outputs, each, strict=True):
                begin([output], own, **ways)
            _run_stages(job, plans, pool)
        _publish(job, outputs)
    delete_tree(job.url, job.scratch)
    table = _write_tables(job, outputs, provenance, beside)
    for notice in table_metadata(table.schema)["warnings"]:
        warnings.warn(notice, stacklevel=2)
    return table


# ---------------------------------------------------------------------------------------------
# Before work


def _describe_job(
    volumes: Volume | Ensemble | str | os.PathLike[str],
    labels: str,
    name: str,
    n_kicks: int | None,
    seed: int,
) -> tuple[_Job, list[Volume]]:
    if name == labels:
        raise ValueError(f"the slices are not overwritten: give another name. Received: {name!r}")
    if seed < 0 or (n_kicks is not None and n_kicks < 0):
        raise ValueError(
            f"seed and number of kicks are not negative. Received: seed {seed}, n_kicks {n_kicks}"
        )
    if not isinstance(volumes, Volume | Ensemble):
        url = normalize_url(volumes)
        volumes = open_ensemble(url) if is_ensemble(url) else open_volume(url)
    if isinstance(volumes, Ensemble):
        members = volumes.members
        classes = [open_classes(member, labels) for member in volumes]
    else:
        members = ("",)
        classes = [open_classes(volumes, labels)]
    first = classes[0]
    level = first.levels[0]
    for member, other in zip(members, classes, strict=True):
        same = replace(other.levels[0], path=level.path)
        if same.shape != level.shape or same.dtype != level.dtype:
            raise ValueError(
                f"volumes of an ensemble have one shape and type. Received: {level.shape} "
                f"{level.dtype} in {members[0]}, {same.shape} {same.dtype} in {member}"
            )
        if named_values(other) != named_values(first) or same != level:
            raise ValueError(
                f"volumes of an ensemble have the same classes, voxel size and shards. {member} "
                f"differs from {members[0]}"
            )
    names = named_values(first)
    values = tuple(value for value in names if value) or tuple(range(1, UNANNOTATED))
    job = _Job(
        volumes.url,
        members,
        level,
        _describe_output(first, name),
        values,
        bool(names),
        _group(level, len(values)),
        n_kicks,
        seed,
    )
    return job, classes


def _describe_output(classes: Volume, name: str) -> Volume:
    """Describe the ordered label image: shards narrow enough to be put in order as columns."""
    level = classes.levels[0]
    assert level.voxel_size_nm is not None
    plain = describe(
        classes.url,
        shape=level.shape,
        dtype=level.dtype,
        voxel_size_nm=level.voxel_size_nm,
        labels=name,
        classes=classes.classes,
        colors=classes.colors,
    )
    (depth, *chunk), shard = plain.levels[0].chunk_shape, list(plain.levels[0].shard_shape)
    itemsize = np.dtype(level.dtype).itemsize
    while level.shape[0] * shard[1] * shard[2] * itemsize > COLUMN_BYTES:
        axis = 1 if shard[1] // chunk[0] >= shard[2] // chunk[1] else 2
        n_chunks = shard[axis] // chunk[axis - 1]
        if n_chunks == 1:
            break
        shard[axis] = -(-n_chunks // 2) * chunk[axis - 1]
    whole = Box.whole((shard[0], shard[1], shard[2])).align((depth, *chunk)).stop
    written = replace(plain.levels[0], shard_shape=whole, origin_nm=level.origin_nm)
    return replace(plain, levels=(written,))


def _group(level: Level, n_classes: int) -> int:
    """Choose how many slices are packed together: several blocks, each of bounded size."""
    slice_bytes = packed_bytes(1, math.prod(level.shape[1:]), n_classes)
    most = max(1, min(MOST_PACKED, PACK_BYTES // slice_bytes))
    wanted = min(most, max(FEWEST_PACKED, -(-level.shape[0] // 8)))
    # Whole layers of shards, where that is not far from it: each is then decoded once.
    depth = level.shard_shape[0]
    return wanted if wanted < depth else wanted // depth * depth


def packed_bytes(n_slices: int, n_pixels: int, n_classes: int) -> int:
    """Return the bytes of packed slices."""
    return 8 * math.prod(packed_shape(n_slices, n_pixels, n_planes(n_classes)))


def plan_order(job: _Job) -> list[Plan]:
    """Plan the four stages, each over all members."""
    n_members, n, level = len(job.members), job.n_slices, job.level
    itemsize = np.dtype(level.dtype).itemsize
    bits = packed_bytes(job.group, job.n_pixels, len(job.values))
    all_bits = packed_bytes(n, job.n_pixels, len(job.values))
    counts = 8 * (job.group + 1) ** 2
    written = job.output.levels[0]
    depth = -(-n // written.shard_shape[0]) * written.shard_shape[0]
    column = (1, depth, *written.shard_shape[1:])
    whole = (n_members, *level.shape)
    notes = {"volumes": n_members, "slices": n, "classes": len(job.values)}
    return [
        Plan(
            "pack",
            Grid(whole, (1, job.group, *level.shape[1:])),
            job.url,
            read_bytes=n_members * level.nbytes,
            task_bytes=job.group * job.n_pixels * 2 * itemsize + 2 * bits,
            stored_bytes=n_members * all_bits // 4,
            notes=notes,
        ),
        Plan(
            "compare",
            Grid((n_members, len(job.pairs)), (1, 1)),
            job.url,
            read_bytes=n_members * 2 * len(job.pairs) * bits,
            task_bytes=4 * bits + 2 * counts,
            stored_bytes=n_members * 2 * n**2,
        ),
        Plan(
            "path",
            Grid((n_members,), (1,)),
            job.url,
            read_bytes=n_members * 4 * n**2,
            # The matrix, and what the search knows of each city.
            task_bytes=9 * n**2 + 2000 * n + 3 * counts,
        ),
        Plan(
            "write",
            Grid(whole, column),
            job.url,
            read_bytes=n_members * level.nbytes,
            write_bytes=n_members * level.nbytes,
            task_bytes=3 * min(math.prod(column), math.prod(level.shape)) * itemsize,
            stored_bytes=n_members * level.nbytes // 10,
        ),
    ]


def _own_provenance(provenance: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what the label image of one member rests on."""
    return {**provenance, "inputs": [provenance["inputs"][number]]}


# ---------------------------------------------------------------------------------------------
# The four stages


def _run_stages(job: _Job, plans: Sequence[Plan], pool: Pool) -> None:
    functions = (_pack_block, _compare_block, _path_block, _write_block)
    for stage, plan, function in zip(STAGES, plans, functions, strict=True):
        run(partial(function, job), plan, ledger=job.ledger(stage), client=pool)


def _pack_block(job: _Job, block: Block) -> None:
    """Leave the bits of a block of slices."""
    number, first = block.write.start[:2]
    box = Box(block.write.start[1:], block.write.stop[1:])
    data = read_classes(job.member_url(number), job.level, box)
    known = {0, UNANNOTATED, *job.values}
    if job.named and not known.issuperset(np.flatnonzero(values_present(data)).tolist()):
        raise ValueError(f"{job.level.path}, box {box}, holds {absent_values(data, known)}")
    codes = np.zeros(256, np.uint8)
    codes[list(job.values)] = np.arange(1, len(job.values) + 1)
    packed = pack((codes[image] for image in data), len(data), len(job.values))
    key = _pack_key(job, number, first // job.group)
    write_checked(job.url, key, packed.words)


def _pack_key(job: _Job, number: int, group: int) -> str:
    return f"{job.scratch}/bits/{number:06d}-{group:06d}"


def _compare_block(job: _Job, block: Block) -> None:
    """Leave what the slices of two blocks have in common."""
    number, pair = block.write.start
    i, j = job.pairs[pair]
    rows = _read_packed(job, number, i)
    columns = rows if i == j else _read_packed(job, number, j)
    common = count_common(rows, columns).astype(_count_type(job))
    write_checked(job.url, _counts_key(job, number, pair), common)


def _counts_key(job: _Job, number: int, pair: int) -> str:
    return f"{job.scratch}/counts/{number:06d}-{pair:06d}"


def _count_type(job: _Job) -> np.dtype[Any]:
    return np.min_scalar_type(job.n_pixels)


def _read_packed(job: _Job, number: int, group: int) -> Packed:
    first, stop = job.slices_of(group)
    shape = packed_shape(stop - first, job.n_pixels, n_planes(len(job.values)))
    words = read_array(job.url, _pack_key(job, number, group), np.dtype(np.uint64), shape)
    return Packed(words, stop - first)


def _path_block(job: _Job, block: Block) -> None:
    """Leave the order of a volume's slices, and what is to be known of it."""
    number = block.write.start[0]
    matrix, n_pixels = _assemble(job, number)
    path = shortest_path(matrix, n_kicks=job.n_kicks, seed=job.seed)
    found = {
        "order": path.order.tolist(),
        "steps": path.steps.tolist(),
        "length": path.length,
        "bound": path.bound,
        "gap": path.gap,
        "worst_step": path.worst_step,
        "j": mean_distances(matrix, path.order),
        "j_before": mean_distances(matrix),
        "n_empty": int(np.count_nonzero(n_pixels == 0)),
    }
    write_json(job.url, _path_key(job, number), found)


def _path_key(job: _Job, number: int) -> str:
    return f"{job.scratch}/paths/{number:06d}.json"


def _assemble(job: _Job, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn what blocks have in common into distances: (n, n), and pixels of each slice: (n,)."""
    n, n_pixels = job.n_slices, np.empty(job.n_slices, np.int64)
    matrix = np.empty((n, n))

    def common(pair: int) -> tuple[slice, slice, np.ndarray]:
        rows, columns = (slice(*job.slices_of(group)) for group in job.pairs[pair])
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        found = read_array(job.url, _counts_key(job, number, pair), _count_type(job), shape)
        return rows, columns, found.astype(np.int64)

    for pair, (i, j) in enumerate(job.pairs):
        if i == j:
            rows, _, found = common(pair)
            n_pixels[rows] = np.diagonal(found)
    for pair in range(len(job.pairs)):
        rows, columns, found = common(pair)
        part = distances(found, n_pixels[rows], n_pixels[columns])
        matrix[rows, columns] = part
        matrix[columns, rows] = part.T
    return matrix, n_pixels


def _write_block(job: _Job, block: Block) -> dict[str, Any]:
    """Put columns through all slices in order."""
    number = block.write.start[0]
    found = _read_path(job, number)
    output = job.output.levels[0]
    box = Box(block.write.start[1:], block.write.stop[1:])
    url = job.member_url(number)
    data = np.take(read_box(url, job.level, box), found["order"], axis=0)
    digests = write_box(url, output, box, data)
    return {"shards": {job.member_level(number).path: digests}}


def _read_path(job: _Job, number: int) -> dict[str, Any]:
    found = read_json(job.url, _path_key(job, number))
    if found is None:
        where = f"{redact(job.url)}/{_path_key(job, number)}"
        raise DamagedData(f"{where} is gone: run the same command with --overwrite")
    return found


def _publish(job: _Job, outputs: Sequence[Volume]) -> None:
    """Record what was written, and show the label images to readers."""
    for output in outputs:
        sweep([output], output.levels[:1])
    levels = [job.member_level(number) for number in range(len(outputs))]
    digests = job.ledger("write").seal(levels)
    for number, output in enumerate(outputs):
        digest = digests[levels[number].path]
        publish(output, digests={output.levels[0].path: digest}, **_read_path(job, number))


def _write_tables(
    job: _Job,
    outputs: Sequence[Volume],
    provenance: Mapping[str, Any],
    beside: SliceSet | None,
) -> pa.Table:
    name = job.output.name
    stem = "tables/order" if name == "ordered" else f"tables/order-{name}"
    alone = redact(job.url).rpartition("/")[2]
    by_name = {m or alone: one for m, one in zip(job.members, outputs, strict=True)}
    rests_on = {**provenance, "real": beside.describe() if beside is not None else None}
    real = partial(stack_distances, beside) if beside is not None else None
    return write_tables(job.url, stem, by_name, rests_on, real)
