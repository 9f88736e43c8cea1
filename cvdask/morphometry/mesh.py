"""What do chosen objects look like? Their surfaces as triangles, for programs that show them.

An object may be larger than memory: blocks look at their own voxels and one beyond, and leave the
*cells* that the surface passes through; triangles are made when a file is written, part by part.

1. Blocks count the voxels of the objects and find their bounds, so that an object that is not there
   is refused before anything is meshed: see ``object_extents``.
2. Blocks that an object reaches leave the pieces of its surface in a scratch folder of the output:
   see ``marching_cubes`` and ``mesh_pieces``.
3. Each object's pieces are joined and written to a file of its own: see ``mesh_files``.
4. A table of all objects, ``meshes.parquet``, is written last: the folder is then complete.

Outside of the volume, or the box, is background, so every surface is closed. Files are the same,
byte for byte, whatever the blocks, the workers and the interruptions.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask import __version__
from cvdask.engine.blockwise import run
from cvdask.engine.cluster import connect
from cvdask.engine.ledger import Ledger, standing
from cvdask.engine.plan import Plan, check_plans
from cvdask.errors import DamagedData
from cvdask.morphometry.marching_cubes import Cells, surface_cells
from cvdask.morphometry.mesh_files import mesh_format
from cvdask.morphometry.mesh_pieces import (
    PART_BYTES,
    PART_CELLS,
    ROW_BYTES,
    SIMPLIFY_BYTES,
    Pieces,
    joined_surface,
    measure_surface,
    open_cells,
    simplified,
    write_pieces,
)
from cvdask.morphometry.object_extents import EXTENT, add_extents, object_extents
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.classes import block_shape, class_values, measured_box, open_classes
from cvdask.volume.objects import (
    delete_object,
    delete_tree,
    is_remote,
    list_objects,
    normalize_url,
    object_exists,
    read_json,
    read_object,
    redact,
    write_json,
    write_object,
    write_parts,
)
from cvdask.volume.parquet import read_table, table_metadata, write_table
from cvdask.volume.store import Level, Volume, read_box, volume_digest

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "meshes.parquet"
# Below the output: removed in the end.
HIDDEN = ".cvdask"
SCRATCH, BEGUN = f"{HIDDEN}/mesh", f"{HIDDEN}/begun.json"
# What we may have written into a folder, and nothing else that lies there.
OWN_FILES = re.compile(r"\d+\.(ply|stl|obj)|\d+:0(:0)?|info|meshes\.parquet")

# What is known of an object once its surface has been found: cells, in all and in the fullest row
# of blocks, then vertices and triangles of its mesh.
OBJECT = np.dtype(
    [*EXTENT.descr, ("n_cells", "<i8"), ("row_cells", "<i8"), ("n_vertices", "<i8"),
     ("n_triangles", "<i8")]
)  # fmt: skip
MEASURES = ("n_vertices", "n_triangles", "mesh_surface_um2", "mesh_volume_um3")


@dataclass(frozen=True)
class _Job:
    """What a task needs besides its block; holds no data.

    Parameters
    ----------
    image : Volume
        The label image, with the level that is meshed as its only one.
    region : Box
        Voxels that are looked at.
    wanted : tuple of int, or None
        Labels; None for all.
    out : str
        The folder.
    format : str
    simplify : float, or None
    grid : Grid
        Blocks of the step.
    objects : str
        Digest of the table of objects in the scratch folder, once there is one.
    """

    image: Volume
    region: Box
    wanted: tuple[int, ...] | None
    out: str
    format: str
    simplify: float | None
    grid: Grid
    objects: str = ""

    @property
    def level(self) -> Level:
        """The level that is meshed."""
        return self.image.levels[0]

    @property
    def pieces(self) -> Pieces:
        """Where blocks leave what they find."""
        assert self.level.voxel_size_nm is not None
        return Pieces(
            self.out,
            f"{SCRATCH}/pieces",
            self.grid,
            Cells(self.level.shape),
            self.level.voxel_size_nm,
            self.level.origin_nm,
        )

    def table(self) -> np.ndarray:
        """Return the objects: (n,) of EXTENT or OBJECT, ascending by label."""
        return _read_objects(self.out, self.objects)


def mesh(
    volume: Volume | str,
    *,
    labels: str,
    ids: int | str | Sequence[int] | None = None,
    class_: str | int | Sequence[str | int] | None = None,
    min_voxels: int | None = None,
    out: str,
    format: str = "ply",
    simplify: float | None = None,
    level: int = 0,
    box: Box | str | None = None,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> pa.Table | list[Plan]:
    """Write the surfaces of chosen objects as triangles, one file for each.

    Exactly one of ``ids``, ``class_`` and ``min_voxels`` says which.

    Surfaces are those of marching cubes on the voxels as they are: vertices lie midway between a
    voxel of the object and one outside. They are closed, each edge has two triangles, and the area
    equals that of ``skimage.measure.marching_cubes(object, 0.5, method="lorensen")``. Coordinates
    are **x, y, z**, as readers of meshes expect, in the volume's own coordinates: 0 is the centre
    of the first voxel of level 0.

    Parameters
    ----------
    volume : Volume or str
        The sample.
    labels : str
        Label image of objects (any unsigned integers), or of classes where ``class_`` is given.
    ids : int, str or sequence of int, optional
        These objects; text may hold several between commas.
    class_ : str, int or sequence, optional
        Whole classes by name or value, each as one mesh.
    min_voxels : int, optional
        All objects of at least so many voxels of the level; 1 for all.
    out : str
        Folder or URL. Each object gets a file of its own there, named by its label.
    format : {"ply", "stl", "obj", "precomputed"}
        Binary PLY, binary STL or OBJ in µm, or a folder that Neuroglancer reads as a source of
        meshes in nm (legacy single-resolution format; segments have the numbers of the objects).
    simplify : float, optional
        Keep about one triangle in so many. Needs the extra ``mesh``, and a whole object in memory.
    level : int
        Level that is meshed; 0 is the finest.
    box : Box or str, optional
        Only these voxels of the level, as ``z0:z1,y0:y1,x0:x1``; surfaces are closed at its sides.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans of the steps over voxels and write nothing.

    Returns
    -------
    pyarrow.Table
        A row for each object, as in ``meshes.parquet``: ``label, name`` (of a class, else null),
        ``n_voxels, n_vertices, n_triangles, mesh_surface_um2, mesh_volume_um3`` (of the mesh as it
        is written, not of the voxels) and ``file``. With ``dry_run`` the plans.

    Raises
    ------
    ValueError
        When it is not said which objects, one of them is not there, the label image is one of
        classes and no class was named, the voxel size is not stated, the format or the extra is
        unknown, or a surface has more triangles than the format can count.
    FileExistsError
        When something else lies at the destination.
    MemoryError, OSError
        When an object does not fit a worker or the disk, before any file is written.
    BlocksFailed
        When blocks could not be read or files not be written.

    Warns
    -----
    UserWarning
        When a class has no voxel, or no object is large enough. Recorded in the table's metadata.

    Notes
    -----
    A worker holds a block of voxels; then, of one object at a time, the cells in one row of blocks
    (all with the same z) and the triangles of about half a million of them, or of one slice where
    that has more. The client holds a row for each object. Only ``simplify`` holds whole objects.
    """
    image = open_classes(volume, labels)
    wanted = _wanted(image, ids, class_, min_voxels)
    destination = normalize_url(out)
    job = _describe_job(image, wanted, destination, format, simplify, level, box)
    provenance = {
        "stage": "mesh",
        "version": __version__,
        "options": {
            "ids": list(wanted) if wanted is not None and class_ is None else None,
            "class": list(wanted) if wanted is not None and class_ is not None else None,
            "min_voxels": min_voxels,
            "format": format,
            "simplify": simplify,
            "level": level,
            "box": str(job.region),
        },
        "inputs": [{"volume": f"labels/{labels}", "digest": volume_digest(image)}],
    }
    plans = [_plan_extents(job), _plan_pieces(job)]
    existing = _existing(destination, overwrite)
    state = standing(destination, existing, provenance, resume=resume, overwrite=overwrite)
    if dry_run:
        return plans
    if state == "complete":
        _sweep(destination)
        return read_table(destination, TABLE)
    with connect(client, workers=workers) as pool:
        check_plans(plans, pool.slots, pool.worker_bytes)
        if state == "new":
            _begin(destination, provenance)
        found, said = _find_extents(job, plans[0], pool)
        try:
            chosen, notices = _choose(job, found, said, class_ is not None, min_voxels)
        except ValueError:
            _withdraw(destination)
            raise
        for notice in notices:
            warnings.warn(notice, stacklevel=2)
        _clear(destination, provenance)
        job, objects = _write_pieces(job, chosen, pool)
        files = _write_files(job, objects, pool)
    for name, data in mesh_format(format).index.items():
        write_object(destination, name, data)
    table = _as_table(job, chosen, files, image.classes if class_ is not None else {})
    metadata = {"state": "complete", "provenance": provenance, "warnings": notices, **_about(job)}
    table = table.replace_schema_metadata({"cvdask": json.dumps(metadata, ensure_ascii=False)})
    write_table(destination, TABLE, table)
    _sweep(destination)
    return table


# ---------------------------------------------------------------------------------------------
# Before work


def _wanted(
    image: Volume,
    ids: int | str | Sequence[int] | None,
    class_: str | int | Sequence[str | int] | None,
    min_voxels: int | None,
) -> tuple[int, ...] | None:
    """Return the labels to be meshed, ascending; None for all."""
    given = {"ids": ids, "class": class_, "min-voxels": min_voxels}
    asked = [name for name, value in given.items() if value is not None]
    if class_ is None and image.classes:
        raise ValueError(
            f"{image.name!r} holds classes, not objects: {dict(image.classes)}. Give --class for a "
            f"whole class as one mesh, or the label image of its objects. Received: "
            f"{', '.join(asked) or 'neither'}"
        )
    if len(asked) != 1:
        raise ValueError(
            f"which objects? Give one of --ids 1,2, --class NAME and --min-voxels N (1 for all). "
            f"Received: {', '.join(asked) or 'none of them'}"
        )
    if class_ is not None:
        values = class_values(image, class_)
        if 0 in values:
            raise ValueError(f"the background is no object. Received: {class_!r}")
        return values
    if min_voxels is not None:
        if min_voxels < 1:
            raise ValueError(f"an object has at least one voxel. Received: {min_voxels}")
        return None
    assert ids is not None
    return _labels(ids)


def _labels(ids: int | str | Sequence[int]) -> tuple[int, ...]:
    """Read labels of objects, as numbers or text.

    >>> _labels("7, 2"), _labels(3)
    ((2, 7), (3,))
    """
    parts: Iterable[object] = [ids] if isinstance(ids, int | np.integer) else ids
    if isinstance(ids, str):
        parts = [part.strip() for part in ids.split(",") if part.strip()]
    texts = [str(part) for part in parts]
    if not texts or not all(text.isdecimal() and 0 < int(text) < 2**64 for text in texts):
        raise ValueError(
            f"ids are whole numbers from 1, at least one, such as 1,2. Received: {ids!r}"
        )
    return tuple(sorted(set(map(int, texts))))


def _describe_job(
    image: Volume,
    wanted: tuple[int, ...] | None,
    out: str,
    format: str,
    simplify: float | None,
    level: int,
    box: Box | str | None,
) -> _Job:
    mesh_format(format)
    if simplify is not None and not (math.isfinite(simplify) and simplify > 1):
        raise ValueError(f"simplify keeps one triangle in 2, 10, … Received: {simplify}")
    if simplify is not None and find_spec("fast_simplification") is None:
        raise ValueError("simplify needs an extra. Install it with: pip install 'cvdask[mesh]'")
    alone = replace(image, levels=(image.level(level),))
    region = measured_box(alone, box)
    shape = alone.levels[0].shape
    Cells(shape)  # refuses what it cannot number
    grid = Grid(shape, block_shape(alone.levels[0]), roi=region)
    return _Job(alone, region, wanted, out, format, simplify, grid)


def _plan_extents(job: _Job) -> Plan:
    itemsize = np.dtype(job.level.dtype).itemsize
    return Plan(
        stage="mesh objects",
        grid=job.grid,
        output=job.out,
        read_bytes=job.region.size * itemsize,
        # Stored and decoded voxels; where runs begin.
        task_bytes=job.grid.largest_read * (2 * itemsize + 2),
        notes={"region": str(job.region), "level": job.level.path},
    )


def _plan_pieces(job: _Job) -> Plan:
    """Plan the search for surfaces: blocks, one voxel beyond, and where the region begins before.

    Blocks that no object reaches are passed by; which, is known when the objects are.
    """
    itemsize = np.dtype(job.level.dtype).itemsize
    with_next = math.prod(n + 2 for n in job.grid.block_shape)
    return Plan(
        stage="mesh surfaces",
        grid=job.grid,
        output=job.out,
        read_bytes=job.region.size * itemsize,
        # Stored and decoded voxels, and those with what lies around; a sixth of them at surfaces,
        # as found and in order.
        task_bytes=with_next * (3 * itemsize + 8),
        notes={"region": str(job.region), "level": job.level.path},
    )


def _existing(out: str, overwrite: bool) -> Mapping[str, Any] | None:
    """Return what is known of the folder: see ``ledger.standing``.

    Raises
    ------
    FileExistsError
        When it is to be replaced and is not ours.
    """
    if not is_remote(out) and Path(out).exists() and not Path(out).is_dir():
        raise FileExistsError(f"meshes are written into a folder. Received a file: {out}")
    begun = read_json(out, BEGUN)
    try:
        table = read_table(out, TABLE) if object_exists(out, TABLE) else None
    except DamagedData:
        return begun or {}
    # Before it is cleared, the table is that of meshes which are to be replaced.
    if table is not None and (begun is None or begun.get("cleared")):
        return table_metadata(table.schema)
    if begun is not None:
        return begun
    if next(list_objects(out, ""), None) is None:
        return None
    if overwrite:
        raise FileExistsError(
            f"only a folder of meshes is overwritten. {redact(out)} holds something else: remove "
            f"it yourself, or give another destination"
        )
    return {}


def _begin(out: str, provenance: Mapping[str, Any]) -> None:
    """Note what is begun; meshes to be replaced stay until it is known that there are others."""
    delete_tree(out, SCRATCH)
    write_json(out, BEGUN, {"provenance": dict(provenance)})


def _clear(out: str, provenance: Mapping[str, Any]) -> None:
    """Delete the meshes that are replaced, their table first; once."""
    if (read_json(out, BEGUN) or {}).get("cleared"):
        return
    delete_object(out, TABLE)
    for key in list_objects(out, ""):
        if OWN_FILES.fullmatch(key):
            delete_object(out, key)
    write_json(out, BEGUN, {"provenance": dict(provenance), "cleared": True})


def _sweep(out: str) -> None:
    """Remove the scratch folder, and temporary files that a killed writer left on a local disk."""
    delete_tree(out, HIDDEN)
    if not is_remote(out):
        for leftover in Path(out).glob("*.partial"):
            leftover.unlink(missing_ok=True)


def _withdraw(out: str) -> None:
    """Take back what :func:`_begin` has left."""
    delete_tree(out, HIDDEN)
    if not is_remote(out) and not any(Path(out).iterdir()):
        Path(out).rmdir()


# ---------------------------------------------------------------------------------------------
# Which objects there are


def _extents_block(job: _Job, block: Block) -> dict[str, Any]:
    """Return size and bounds of the objects in a block."""
    box = block.write.intersect(job.region)
    data = read_box(job.image.url, job.level, box)
    low, high = int(data.min()), int(data.max())
    if low < 0:
        raise ValueError(f"labels are not negative. {job.level.path}, box {box}, holds {low}")
    if high == 0:
        return {"empty": True}
    wanted = None if job.wanted is None else np.array(job.wanted, np.uint64)
    found = object_extents(data, box.start, wanted)
    lowest = int(np.min(data, initial=high, where=data > 0))
    return {
        "labels": [lowest, high],
        "objects": {
            str(one["label"]): [int(one["n_voxels"]), *one["start"].tolist(), *one["stop"].tolist()]
            for one in found
        },
    }


def _find_extents(job: _Job, plan: Plan, pool: Any) -> tuple[np.ndarray, str]:
    """Find the objects, (n,) of EXTENT, and say in words which labels there are."""
    ledger = Ledger(job.out, f"{SCRATCH}/extents")
    run(partial(_extents_block, job), plan, ledger=ledger, client=pool)
    parts, lowest, highest = [], [], []
    for record in ledger.records():
        if "labels" not in record:
            continue
        lowest.append(record["labels"][0])
        highest.append(record["labels"][1])
        part = np.empty(len(record["objects"]), EXTENT)
        part["label"] = np.array([int(label) for label in record["objects"]], np.uint64)
        numbers = np.array(list(record["objects"].values()), np.int64).reshape(-1, 7)
        part["n_voxels"] = numbers[:, 0]
        part["start"], part["stop"] = numbers[:, 1:4], numbers[:, 4:]
        parts.append(part)
    said = f"labels from {min(lowest)} to {max(highest)}" if lowest else "no object at all"
    return add_extents(parts), said


def _choose(
    job: _Job, found: np.ndarray, said: str, is_class: bool, min_voxels: int | None
) -> tuple[np.ndarray, list[str]]:
    """Return the objects to be meshed, and say which are none.

    Raises
    ------
    ValueError
        When an object that was asked for is not there.
    """
    where = f"{job.level.path!r} within {job.region}"
    if job.wanted is None:
        assert min_voxels is not None
        chosen = found[found["n_voxels"] >= min_voxels]
        if len(chosen):
            return chosen, []
        largest = int(found["n_voxels"].max(initial=0))
        return chosen, [
            f"no object of {where} has {min_voxels} voxels, the largest has {largest}: there is "
            f"nothing to mesh"
        ]
    absent = sorted(set(job.wanted) - set(found["label"].tolist()))
    if is_class:
        names = job.image.classes
        return found, [f"{names.get(v, v)} has no voxel in {where}: it has no mesh" for v in absent]
    if absent:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        raise ValueError(
            f"{where} has {said}; not every number between has to be there. Received ids that are "
            f"not: {', '.join(map(str, absent[:10]))}{more}"
        )
    return found, []


def _store_objects(out: str, objects: np.ndarray) -> str:
    """Write the table of objects for the workers, and return its digest."""
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=False)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_object(out, f"{SCRATCH}/{digest}.npy", buffer.getvalue())
    return digest


@lru_cache(maxsize=4)
def _read_objects(out: str, digest: str) -> np.ndarray:
    """Read the table of objects, once per process."""
    data = read_object(out, f"{SCRATCH}/{digest}.npy")
    if data is None:
        raise DamagedData(f"{redact(out)}/{SCRATCH}/{digest}.npy is gone")
    objects: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return objects


# ---------------------------------------------------------------------------------------------
# Their surfaces


def _pieces_block(job: _Job, block: Block) -> dict[str, Any]:
    """Leave the surface cells of the objects that reach a block.

    A cell belongs to the block of its lowest voxel; where the region begins, also the cells that
    lie half before it.
    """
    own = block.write.intersect(job.region)
    low = tuple(a - (a == b) for a, b in zip(own.start, job.region.start, strict=True))
    objects = job.table()
    first, last = objects["start"] - 1, objects["stop"]  # of their cells
    near = objects[((first < own.stop) & (last > low)).all(axis=1)]
    if not len(near):
        return {"empty": True}
    hull = Box(tuple(near["start"].min(axis=0) - 1), tuple(near["stop"].max(axis=0)))
    cells = Box(low, own.stop).intersect(hull)
    around = Box(cells.start, tuple(b + 1 for b in cells.stop))
    inside = around.intersect(job.region)
    data = np.zeros(around.shape, job.level.dtype)
    data[inside.within(around)] = read_box(job.image.url, job.level, inside)
    number, places, configurations = surface_cells(data, near["label"].astype(data.dtype))
    numbers = job.pieces.cells.number(places + np.array(cells.start))
    found = write_pieces(
        job.pieces, block.index, near["label"].tolist(), number, numbers, configurations
    )
    return {"objects": found} if found else {"empty": True}


def _write_pieces(job: _Job, chosen: np.ndarray, pool: Any) -> tuple[_Job, np.ndarray]:
    """Find the surfaces of the chosen objects: (n,) of OBJECT, and the job that knows them."""
    objects = np.zeros(len(chosen), OBJECT)
    for name in EXTENT.names or ():
        objects[name] = chosen[name]
    if not len(chosen):
        return job, objects
    hull = Box(tuple(chosen["start"].min(axis=0) - 1), tuple(chosen["stop"].max(axis=0)))
    grid = replace(job.grid, roi=hull.intersect(job.region))
    job = replace(job, grid=grid, objects=_store_objects(job.out, chosen))
    ledger = Ledger(job.out, f"{SCRATCH}/surfaces")
    run(partial(_pieces_block, job), _plan_pieces(job), ledger=ledger, client=pool)
    row, row_start = np.zeros(len(objects), np.int64), None
    for record in ledger.records():
        start = grid[record["block"]].write.start[0]
        if start != row_start:
            row[:], row_start = 0, start
        labels = np.array([int(label) for label in record.get("objects", ())], np.uint64)
        places = np.searchsorted(objects["label"], labels)
        for place, counts in zip(places, record.get("objects", {}).values(), strict=True):
            n_cells, n_vertices, n_triangles = counts
            row[place] += n_cells
            one = objects[place]
            one["n_cells"] += n_cells
            one["row_cells"] = max(one["row_cells"], row[place])
            one["n_vertices"] += n_vertices
            one["n_triangles"] += n_triangles
    return job, objects


# ---------------------------------------------------------------------------------------------
# Their files


def _plan_files(job: _Job, objects: np.ndarray) -> Plan:
    """Plan the files: memory for the object that needs most, disk for all.

    Raises
    ------
    ValueError
        When a format cannot count the triangles of an object.
    """
    format = mesh_format(job.format)
    keep = 1.0 if job.simplify is None else 1 / job.simplify
    sizes = objects["n_triangles"] * keep
    for one in objects[np.maximum(sizes, objects["n_vertices"] * keep) > format.most]:
        raise ValueError(
            f"{format.name} counts to {format.most}. Object {one['label']} has "
            f"{one['n_vertices']} vertices and {one['n_triangles']} triangles: choose a coarser "
            f"level, another format, or simplify"
        )
    held = np.minimum(objects["n_cells"], PART_CELLS) * PART_BYTES
    held += objects["row_cells"] * ROW_BYTES
    if job.simplify is not None:
        held += objects["n_triangles"] * SIMPLIFY_BYTES
    stored = sum(
        format.size(int(one["n_vertices"] * keep), int(one["n_triangles"] * keep))
        for one in objects
    )
    return Plan(
        stage="mesh files",
        grid=Grid((len(objects),), (1,)),
        output=job.out,
        write_bytes=stored,
        task_bytes=int(held.max()),
        stored_bytes=stored,
        notes={"format": format.name},
    )


def _file_block(job: _Job, block: Block) -> dict[str, Any]:
    """Write the file of an object; blocks are objects here."""
    one = job.table()[block.index]
    label, format = int(one["label"]), mesh_format(job.format)
    parts = open_cells(job.pieces, label, int(one["n_cells"]))
    counts = (int(one["n_vertices"]), int(one["n_triangles"]))
    surface = joined_surface(job.pieces, parts, counts)
    area, volume = measure_surface(job.pieces, parts)
    if job.simplify is not None:
        surface, area, volume = simplified(surface, job.simplify)
    write_parts(job.out, format.file(label), format.encode(surface))
    for name, data in format.manifest(label).items():
        write_object(job.out, name, data)
    return {"mesh": [surface.n_vertices, surface.n_triangles, area, volume]}


def _write_files(job: _Job, objects: np.ndarray, pool: Any) -> list[list[float]]:
    """Write all files; return the MEASURES of each."""
    if not len(objects):
        return []
    plan = _plan_files(job, objects)
    job = replace(job, objects=_store_objects(job.out, objects))
    ledger = Ledger(job.out, f"{SCRATCH}/files")
    run(partial(_file_block, job), plan, ledger=ledger, client=pool)
    return [record["mesh"] for record in ledger.records()]


def _as_table(
    job: _Job, chosen: np.ndarray, files: Sequence[Sequence[float]], names: Mapping[int, str]
) -> pa.Table:
    # Late: a worker writes no table.
    import pyarrow as pa

    labels = chosen["label"].tolist()
    columns = {
        "label": pa.array(labels, pa.uint64()),
        "name": pa.array([names.get(label) for label in labels], pa.string()),
        "n_voxels": pa.array(chosen["n_voxels"].tolist(), pa.int64()),
    }
    for k, name in enumerate(MEASURES):
        kind = pa.int64() if name.startswith("n_") else pa.float64()
        columns[name] = pa.array([one[k] for one in files], kind)
    format = mesh_format(job.format)
    columns["file"] = pa.array([format.file(label) for label in labels], pa.string())
    return pa.table(columns)


def _about(job: _Job) -> dict[str, Any]:
    """Say what the meshes are, for the table's metadata."""
    return {
        "voxel_size_nm": list(job.level.voxel_size_nm or ()),
        "origin_nm": list(job.level.origin_nm),
        "coordinates": f"x, y, z in {'nm' if job.format == 'precomputed' else 'µm'}",
        "triangulation": "marching cubes (Lorensen and Cline 1987), vertices midway",
    }
