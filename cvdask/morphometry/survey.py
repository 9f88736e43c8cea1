"""Which objects are in a volume, and what is known of each? Five passes, none proportional to it.

1. *scan*: each block finds its objects and leaves a row of integers for each, and its faces.
2. *seam*: along the borders between blocks, objects that touch are joined, cells are counted. The
   pairs of joined objects are reduced, as a tree on the workers, to the first of each chain.
3. *gather*: each block hands its rows to the *part* of the volume that their object begins in.
   Parts are ranges of voxels in z, y, x order and depend on the shape of the volume alone.
4. *total*: for each part, whoever asked adds up the rows of its objects, :func:`total_rows`, leaves
   out the small ones and says how many there are: ``objects`` for a table, ``components`` for a
   volume of labels. It then writes what it wants, for now :func:`numbering` tells how many objects
   lie before each part.

An object is called by the linear index of its first voxel until it gets its number: the place of
that voxel in the order of its class. So numbers do not depend on blocks, workers or order.

Every pass marks its blocks: kill it anywhere, run it again, and it goes on. Client and scheduler
hold a few numbers for each block, and of the objects only those that cross borders.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from cvdask.compiled import compiled
from cvdask.engine.blockwise import reduce, run
from cvdask.engine.cluster import Pool
from cvdask.engine.ledger import Ledger
from cvdask.engine.plan import Plan
from cvdask.errors import DamagedData
from cvdask.morphometry.block_objects import (
    Examined,
    Runs,
    examine,
    find_class_objects,
    find_instances,
    keys_of,
    outline,
)
from cvdask.morphometry.configurations import KIND_OF_CELL, N_KINDS_OF_CELL
from cvdask.morphometry.partials import CELLS, KEY, Layout, merge_rows
from cvdask.morphometry.runs import NO_CLASS, roots_of, unite
from cvdask.morphometry.seams import ABOVE, BELOW, count_seam
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.classes import (
    absent_values,
    class_values,
    named_values,
    read_classes,
)
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.objects import list_objects, read_json, redact, write_json
from cvdask.volume.scratch import read_arrays, write_arrays
from cvdask.volume.store import Level, Volume, read_box, volume_digest

# Blocks hold about so many voxels: more would pass the memory of small workers where every voxel is
# an object, fewer would spend more time on their borders.
MOST_BLOCK_VOXELS = 2**25
# A part holds so many voxels of the volume, or more where that would make too many parts.
PART_VOXELS = 2**26
MOST_PARTS = 4096


@dataclass(frozen=True)
class Survey:
    """What every task of a survey needs; holds no data.

    Parameters
    ----------
    url : str
        The sample.
    level : Level
        Its label image, of classes or instances.
    region : Box
        Voxels that are surveyed; beyond them lies background.
    block_shape : tuple of int
    known : tuple of int
        Values that may occur, save 255; empty for instances.
    kinds : tuple of int
        Values whose objects are wanted; class k of the rows is ``kinds[k - 1]``. Empty for
        instances.
    connectivity : {6, 18, 26} or None
        None where the values are instances.
    contacts : tuple of int
        Values whose contact with the objects is counted.
    image : Level, optional
        Grey values.
    digest : str
        Of the label image: another content is another survey.
    full : bool
        Whether shapes are wanted, or only numbers of voxels.
    largest : int
        Largest label of an image of instances, known after the scan.
    merge : str
        Names the run that has joined the objects, known after that: what a process keeps in memory
        of one run is not taken for another's.
    gathered : tuple of int
        From how many blocks each part has got rows, known after they were gathered.
    scratch_url, scratch : str
        Where tasks leave their results.
    """

    url: str
    level: Level
    region: Box
    block_shape: tuple[int, ...]
    known: tuple[int, ...]
    kinds: tuple[int, ...]
    connectivity: int | None
    contacts: tuple[int, ...]
    image: Level | None
    digest: str
    full: bool
    scratch_url: str
    scratch: str
    largest: int = 0
    merge: str = ""
    gathered: tuple[int, ...] = ()

    @property
    def grid(self) -> Grid:
        """The blocks."""
        return Grid(self.level.shape, self.block_shape, roi=self.region)

    @property
    def layout(self) -> Layout:
        """The columns of the rows."""
        return Layout(self.image is not None, len(self.contacts))

    @property
    def n_parts(self) -> int:
        """In how many parts objects are numbered."""
        return parts_of(math.prod(self.level.shape))

    @property
    def part_grid(self) -> Grid:
        """The parts, as blocks of one voxel: what the engine runs over."""
        return Grid((self.n_parts, 1, 1), (1, 1, 1))

    def box(self, block: Block) -> Box:
        """Return the voxels of a block that are surveyed."""
        return block.write.intersect(self.region)

    def ends(self, box: Box) -> np.ndarray:
        """Tell which faces of a block are faces of the region: (6,) bool."""
        bounds = zip(box.start, box.stop, self.region.start, self.region.stop, strict=True)
        return np.array([end for a, b, c, d in bounds for end in (a == c, b == d)])

    def part(self, keys: np.ndarray) -> np.ndarray:
        """Return the part of each key: (N,) int64."""
        if self.connectivity is None:
            width = -(-self.largest // self.n_parts)
        else:
            width = -(-math.prod(self.level.shape) // self.n_parts)
        # Labels go up to the last of the range, which would otherwise begin a part of its own.
        return np.minimum(keys // max(width, 1), self.n_parts - 1)

    def key(self, stage: str, *numbers: int) -> str:
        """Return where a task leaves its result."""
        return "/".join((self.scratch, stage, *(f"{n:09d}" for n in numbers)))

    def ledger(self, stage: str) -> Ledger:
        """Return the markers of a pass."""
        return Ledger(self.scratch_url, f"{self.scratch}/{stage}")


def parts_of(n_voxels: int) -> int:
    """Return in how many parts the objects of a volume are numbered.

    >>> parts_of(10**6), parts_of(10**9), parts_of(10**15)
    (1, 15, 4096)
    """
    return max(1, min(MOST_PARTS, -(-n_voxels // PART_VOXELS)))


def survey_block_shape(level: Level) -> tuple[int, ...]:
    """Choose blocks made of whole chunks: a shard, halved along z, then y, while it is large.

    >>> level = Level("0", (2048, 2048, 2048), "uint8", (64, 64, 64), (512, 512, 512), None)
    >>> survey_block_shape(level)
    (128, 512, 512)
    """
    shape = list(level.shard_shape)
    while math.prod(shape) > MOST_BLOCK_VOXELS:
        even = [axis for axis in range(3) if shape[axis] % (2 * level.chunk_shape[axis]) == 0]
        if not even:
            break
        # Rows stay long, and blocks no flatter than a quarter: their faces are what costs.
        deep = [axis for axis in even if 4 * shape[axis] > min(shape)]
        shape[min(deep, key=lambda axis: (2 * shape[axis] < shape[1] // 2, axis))] //= 2
    while math.prod(shape) < MOST_BLOCK_VOXELS // 4:
        growing = [axis for axis in range(3) if shape[axis] < level.shape[axis]]
        if not growing:
            break
        shape[min(growing, key=lambda axis: shape[axis])] *= 2
    return tuple(shape)


def describe_survey(
    labels: Volume,
    region: Box,
    *,
    class_: str | int | Sequence[str | int] | None,
    connectivity: int | None,
    scratch: tuple[str, str],
    image: Level | None = None,
    contacts: bool = False,
    block_shape: Sequence[int] | None = None,
    full: bool = True,
) -> Survey:
    """Describe a survey of a label image; ``connectivity`` is None for instances.

    Raises
    ------
    ValueError
        When a class is absent or has no name, or blocks are no three positive extents.
    """
    names = named_values(labels) if connectivity is not None else {}
    kinds: tuple[int, ...] = ()
    if connectivity is not None:
        if class_ is None and not names:
            raise ValueError(
                f"{labels.name!r} has no class names: give the values to be measured as class_, "
                f"or say that they are instances"
            )
        kinds = class_values(labels, class_ if class_ is not None else [v for v in names if v])
    chosen = block_shape if block_shape is not None else survey_block_shape(labels.levels[0])
    shape = tuple(int(extent) for extent in chosen)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a block has three extents of at least 1 voxel. Received: {shape}")
    extents = [min(pair) for pair in zip(shape, labels.shape, strict=True)]
    if math.prod(extents) * max(extents) ** 2 >= 2**62:
        raise ValueError(
            f"voxels times the square of the longest extent of a block stay below 2⁶², or its "
            f"moments would overflow. Received: a block of {tuple(extents)}"
        )
    return Survey(
        url=labels.url,
        level=labels.levels[0],
        region=region,
        block_shape=shape,
        known=tuple(names or range(UNANNOTATED)),
        kinds=kinds,
        connectivity=connectivity,
        contacts=tuple(value for value in names or kinds if value) if contacts else (),
        image=image,
        digest=volume_digest(labels),
        full=full,
        scratch_url=scratch[0],
        scratch=scratch[1],
    )


# ---------------------------------------------------------------------------------------------
# Plans


def plan_survey(survey: Survey) -> list[Plan]:
    """Plan the passes; the scan is the one that reads voxels."""
    grid, voxels = survey.grid, survey.region.size
    itemsize = np.dtype(survey.level.dtype).itemsize
    grey = np.dtype(survey.image.dtype).itemsize if survey.image else 0
    largest = grid.largest_read
    # Runs and their objects are 15 bytes each, of which there is one for two voxels at most where
    # objects are apart; without shapes, labels are painted.
    task_bytes = largest * (itemsize + grey + 8) + (0 if survey.full else 4 * largest)
    row_bytes = 8 * survey.layout.width
    output = f"{survey.scratch_url}/{survey.scratch}"
    return [
        Plan(
            stage="scan",
            grid=grid,
            output=output,
            read_bytes=voxels * (itemsize + grey),
            task_bytes=task_bytes,
            notes={"region": str(survey.region), "bytes_per_object": row_bytes},
        ),
        Plan(stage="seam", grid=grid, output=output, task_bytes=_face_bytes(survey)),
        Plan(stage="gather", grid=grid, output=output),
        Plan(stage="total", grid=survey.part_grid, output=output),
    ]


def _face_bytes(survey: Survey) -> int:
    """Return the bytes of the faces of a block and its neighbours, as they are read."""
    z, y, x = survey.block_shape
    return 10 * 2 * (z * y + z * x + y * x) * 2 * 8


# ---------------------------------------------------------------------------------------------
# Passes


Total = Callable[[Survey, Block], dict[str, Any]]


def carry_out(survey: Survey, pool: Pool, total: Total) -> Survey:
    """Run all passes.

    Parameters
    ----------
    survey : Survey
    pool : Pool
        Where it runs.
    total : callable
        Takes the survey and a part, and returns its record: ``{"objects": [of each class], "small":
        …}``.

    Returns
    -------
    Survey
        With what became known. Its ``total`` ledger has the number of objects of each part.

    Raises
    ------
    BlocksFailed
        When blocks could not be read, or hold values that are no class.
    """
    scan, seam, gather, parts = plan_survey(survey)
    run(partial(scan_block, survey), scan, ledger=survey.ledger("scan"), client=pool)
    if survey.connectivity is None:
        records = survey.ledger("scan").records()
        survey = replace(survey, largest=max((r["largest"] for r in records), default=0))
    run(partial(seam_block, survey), seam, ledger=survey.ledger("seam"), client=pool)
    done = read_json(survey.scratch_url, f"{survey.scratch}/merged.json")
    if done is None:
        merged = reduce(partial(_edges_of, survey), contract, seam, client=pool)[0]
        assert merged is not None  # there is at least one block
        _write_merged(survey, merged)
        done = {"merge": uuid.uuid4().hex}
        write_json(survey.scratch_url, f"{survey.scratch}/merged.json", done)
    survey = replace(survey, merge=done["merge"])
    run(partial(gather_block, survey), gather, ledger=survey.ledger("gather"), client=pool)
    handed = np.zeros(survey.n_parts, np.int64)
    for record in survey.ledger("gather").records():
        handed[record["parts"]] += 1
    survey = replace(survey, gathered=tuple(handed.tolist()))
    run(partial(total, survey), parts, ledger=survey.ledger("total"), client=pool)
    return survey


def read_objects(survey: Survey, box: Box) -> tuple[Runs, np.ndarray, np.ndarray, np.ndarray]:
    """Read a block and find its objects.

    Returns
    -------
    runs : Runs
    keys, kinds : (N,) int64
    data : (Z, Y, X)
        What was read.

    Raises
    ------
    ValueError
        When it holds a value that is no class.
    """
    if survey.connectivity is None:
        data = read_box(survey.url, survey.level, box)
        runs, keys = find_instances(data)
        return runs, keys, np.zeros(len(keys), np.int64), data
    table = np.full(256, NO_CLASS, np.uint8)
    table[[*survey.known, UNANNOTATED]] = 0
    table[list(survey.kinds)] = np.arange(1, len(survey.kinds) + 1)
    data = read_classes(survey.url, survey.level, box)
    runs, kinds, n_absent = find_class_objects(data, table, survey.connectivity)
    if n_absent:
        odd = absent_values(data, {*survey.known, UNANNOTATED})
        raise ValueError(f"{survey.level.path}, box {box}, holds {odd}")
    return runs, keys_of(runs, box, survey.level.shape), kinds, data


def scan_block(survey: Survey, block: Block) -> dict[str, Any]:
    """Leave what a block knows of its objects."""
    box = survey.box(block)
    runs, keys, kinds, data = read_objects(survey, box)
    if survey.full:
        contact_of = np.full(256, -1, np.int64)
        contact_of[list(survey.contacts)] = np.arange(len(survey.contacts))
        found = examine(
            runs,
            keys,
            kinds,
            box,
            survey.ends(box),
            survey.layout,
            unambiguous=survey.connectivity in (None, 26),
            image=read_box(survey.url, survey.image, box) if survey.image else None,
            values=data if survey.contacts else None,
            contact_of=contact_of if survey.contacts else None,
        )
    else:
        found = outline(runs, keys, kinds, box)
    _write_examined(survey, block, found)
    largest = {"largest": int(keys.max(initial=0))} if survey.connectivity is None else {}
    return {"objects": len(keys), **({"empty": True} if not len(keys) else {}), **largest}


def _write_examined(survey: Survey, block: Block, found: Examined) -> None:
    undecided, times = np.unique(found.undecided, axis=0, return_counts=True)
    rows = {"rows": found.rows, "undecided": undecided.reshape(-1, 8), "times": times}
    left: dict[str, Mapping[str, np.ndarray]] = {survey.key("rows", block.index): rows}
    if len(survey.grid) > 1:
        flat = {name: plane.ravel() for name, plane in found.faces.items()}
        left[survey.key("faces", block.index)] = flat
    write_arrays(survey.scratch_url, left)


def read_faces(survey: Survey, blocks: Sequence[Block]) -> list[dict[str, np.ndarray]]:
    """Read what lies on the faces of blocks."""
    keys = (survey.key("faces", block.index) for block in blocks)
    several = []
    for block, found in zip(blocks, read_arrays(survey.scratch_url, *keys), strict=True):
        z, y, x = survey.box(block).shape
        shapes = {"z": (2, y, x), "y": (2, z, x), "x": (2, z, y)}
        several.append(
            {
                name: array.reshape(shapes[name[-1]]) if "_" in name else array
                for name, array in found.items()
            }
        )
    return several


def seam_block(survey: Survey, block: Block) -> dict[str, Any]:
    """Join and count what crosses the borders of a block."""
    grid = survey.grid
    if len(grid) == 1:
        return {"edges": 0}
    beside = {offset: grid.beside(block.index, offset) for offset in (*ABOVE, *BELOW)}
    blocks = {offset: grid[number] for offset, number in beside.items() if number is not None}
    faces = dict(zip(blocks, read_faces(survey, list(blocks.values())), strict=True))
    seam = count_seam(faces, survey.ends(survey.box(block)), survey.connectivity, survey.layout)
    undecided, times = np.unique(seam.undecided, axis=0, return_counts=True)
    arrays = {"edges": seam.edges, "undecided": undecided.reshape(-1, 8), "times": times}
    if survey.full:
        arrays["rows"] = seam.rows
    write_arrays(survey.scratch_url, {survey.key("seams", block.index): arrays})
    return {"edges": len(seam.edges)}


def _edges_of(survey: Survey, block: Block) -> np.ndarray:
    if len(survey.grid) == 1:
        return np.zeros((0, 2), np.int64)
    return read_arrays(survey.scratch_url, survey.key("seams", block.index))[0]["edges"]


def contract(several: list[np.ndarray]) -> np.ndarray:
    """Reduce pairs of joined keys to pairs of each key and the first of its chain.

    Parameters
    ----------
    several : list of (E, 2) int64

    Returns
    -------
    (F, 2) int64
        By ascending key; keys that are the first of their chain are left out.

    Examples
    --------
    >>> contract([np.array([[5, 3], [9, 8]]), np.array([[3, 1], [9, 9]])])
    array([[3, 1],
           [5, 1],
           [9, 8]])
    """
    edges = np.concatenate(several)
    keys, places = np.unique(edges, return_inverse=True)
    roots = keys[_join_places(len(keys), places.reshape(-1, 2))]
    joined = roots != keys
    return np.stack([keys[joined], roots[joined]], axis=1)


@compiled()
def _join_places(n: int, edges: np.ndarray) -> np.ndarray:
    parent = np.arange(n)
    for edge in range(len(edges)):
        unite(parent, edges[edge, 0], edges[edge, 1])
    return roots_of(parent)


def _write_merged(survey: Survey, merged: np.ndarray) -> None:
    """Leave the first of each chain for those who look up the keys of one layer of blocks."""
    for layer, first, last in _layers(survey):
        begin, end = np.searchsorted(merged[:, 0], [first, last])
        key = survey.key("merged", layer)
        write_arrays(survey.scratch_url, {key: {"pairs": merged[begin:end]}})


def _layers(survey: Survey) -> Iterator[tuple[int, int, int]]:
    """Yield each layer of blocks along z, and the range of the keys of its voxels."""
    cells = survey.grid.cells
    plane = survey.level.shape[1] * survey.level.shape[2]
    depth = survey.block_shape[0]
    for layer in range(cells.start[0], cells.stop[0]):
        yield layer, layer * depth * plane, (layer + 1) * depth * plane


@lru_cache(maxsize=4)
def _merged_layer(survey: Survey, layer: int) -> np.ndarray:
    cells = survey.grid.cells
    if survey.connectivity is None or not cells.start[0] <= layer < cells.stop[0]:
        return np.zeros((0, 2), np.int64)
    return read_arrays(survey.scratch_url, survey.key("merged", layer))[0]["pairs"]


def first_of_chain(survey: Survey, block: Block, keys: np.ndarray) -> np.ndarray:
    """Return the key of the whole object of each key that a block or its seam knows: (N,)."""
    layer = block.write.start[0] // survey.block_shape[0]
    pairs = np.concatenate([_merged_layer(survey, one) for one in (layer - 1, layer, layer + 1)])
    if not len(pairs) or not len(keys):
        return keys
    places = np.minimum(np.searchsorted(pairs[:, 0], keys), len(pairs) - 1)
    return np.where(pairs[places, 0] == keys, pairs[places, 1], keys)


def gather_block(survey: Survey, block: Block) -> dict[str, Any]:
    """Hand the rows of a block to the parts that their objects begin in."""
    sources = [survey.key("rows", block.index)]
    if len(survey.grid) > 1:
        sources.append(survey.key("seams", block.index))
    rows = []
    for found in read_arrays(survey.scratch_url, *sources):
        for own in (found.get("rows"), _decide(survey, block, found)):
            if own is not None and len(own):
                own[:, KEY] = first_of_chain(survey, block, own[:, KEY])
                rows.append(own)
    if not rows:
        return {"parts": []}
    everything = np.concatenate(rows)
    parts = survey.part(everything[:, KEY])
    met = np.unique(parts).tolist()
    handed = {
        survey.key("gathered", part, block.index): {"rows": everything[parts == part]}
        for part in met
    }
    write_arrays(survey.scratch_url, handed)
    return {"parts": met}


def _decide(survey: Survey, block: Block, found: dict[str, np.ndarray]) -> np.ndarray | None:
    """Count the cells that held several objects of one class: which are one is known now."""
    undecided, times = found["undecided"], found["times"]
    if not len(undecided):
        return None
    voxels = first_of_chain(survey, block, undecided.ravel()).reshape(undecided.shape)
    voxels[undecided < 0] = -1
    keys = np.unique(voxels[voxels >= 0])
    cells = np.zeros((len(keys), N_KINDS_OF_CELL), np.int64)
    for corner in range(8):
        own = voxels[:, corner]
        same = voxels == own[:, None]
        # Once for each object: at the first of its corners.
        wanted = (own >= 0) & (same.argmax(1) == corner)
        kinds = KIND_OF_CELL[(same[wanted] << np.arange(8)).sum(1)]
        counted = kinds < N_KINDS_OF_CELL
        places = np.searchsorted(keys, own[wanted][counted])
        np.add.at(cells, (places, kinds[counted]), times[wanted][counted])
    rows = survey.layout.empty(len(keys))
    rows[:, KEY], rows[:, CELLS] = keys, cells
    return rows


def total_rows(survey: Survey, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Add up the rows of the objects of a part; see ``partials.merge_rows``.

    Raises
    ------
    DamagedData
        When rows that a block has handed over are gone, or are not what was written.
    """
    prefix = survey.key("gathered", part) + "/"
    keys = sorted(list_objects(survey.scratch_url, prefix))
    if len(keys) != survey.gathered[part]:
        raise DamagedData(
            f"{redact(survey.scratch_url)}/{prefix} holds what {len(keys)} blocks have left, of "
            f"{survey.gathered[part]}: the rest is gone. Run the same command with --overwrite"
        )
    found = [one["rows"] for one in read_arrays(survey.scratch_url, *keys)]
    rows = np.concatenate(found) if found else survey.layout.empty(0)
    return merge_rows(rows, survey.layout)


@dataclass(frozen=True)
class Numbering:
    """How many objects of each class lie before each part.

    Parameters
    ----------
    before : tuple of tuple of int
        By part, then class; one more part than there are: all objects.
    n_small : int
        Objects that were too small.
    """

    before: tuple[tuple[int, ...], ...]
    n_small: int

    @property
    def totals(self) -> tuple[int, ...]:
        """Objects of each class; class 0 is that of instances."""
        return self.before[-1]


def numbering(survey: Survey) -> Numbering:
    """Read how many objects there are, part by part."""
    records = list(survey.ledger("total").records())
    counts = np.array([record["objects"] for record in records], np.int64)
    before = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])
    return Numbering(tuple(map(tuple, before.tolist())), sum(r["small"] for r in records))
