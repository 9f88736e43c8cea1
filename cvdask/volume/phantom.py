"""A synthetic cardiomyocyte on disk, with its truth.

1. ``volume.cell`` says what lies at every voxel, from a seed, for any box.
2. Each block renders its own box and writes it three times: the image, ``labels/truth`` (classes)
   and ``labels/truth_objects`` (every mitochondrion its own label).
3. The closed-form volume and surface of each mitochondrion go to ``tables/truth.parquet``.
4. The coarser levels follow, then the volume is shown to readers.

Nothing ever holds more than a few blocks, so a terabyte is a matter of disk and time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvdask import __version__
from cvdask.engine.cluster import connect
from cvdask.engine.output import begin, fill
from cvdask.engine.plan import Plan, check_plans
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.cell import CLASS_COLORS, CLASSES, Cell, render, true_objects
from cvdask.volume.objects import write_object
from cvdask.volume.pyramid import build_levels, plan_level, plan_levels
from cvdask.volume.store import (
    Volume,
    check_voxel_size,
    describe,
    open_volume,
    publish,
    write_box,
)

TRUTH_TABLE = "tables/truth.parquet"
# The three arrays are written by the same blocks, so they share one shard shape.
LARGEST_SHARD = 256


def phantom(
    out: str | os.PathLike[str],
    *,
    size_um: Sequence[float] = (4.0, 10.0, 10.0),
    voxel_nm: Sequence[float] | float = 20.0,
    seed: int = 0,
    kind: str = "healthy",
    n_levels: int | None = None,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Volume | list[Plan]:
    """Write a synthetic cardiomyocyte.

    Parameters
    ----------
    out : str or path
        Sample to write.
    size_um : sequence of float
        Extent z, y, x; the fibres run along x.
    voxel_nm : float or sequence of float
        Voxel size, one or three (z, y, x).
    seed : int
        The same seed gives the same cell, byte for byte, on any cluster.
    kind : {"healthy", "diabetic"}
        Diabetic cells have larger mitochondrial clusters.
    n_levels : int, optional
        Levels of each pyramid; by default until a level fits 64 voxels along each axis.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans and write nothing.

    Returns
    -------
    Volume
        The image; ``.label("truth")`` holds the classes. With ``dry_run`` the list of plans.

    Raises
    ------
    ValueError
        When an extent, voxel size or kind breaks its rule.
    FileExistsError
        When something else lies at ``out``.
    """
    spacing = check_voxel_size(voxel_nm)
    cell = Cell(_shape(size_um, spacing), spacing, seed, kind)
    shard = shared_shard(cell.shape)
    chunk = tuple(min(64, extent) for extent in shard)
    common: dict[str, Any] = {
        "shape": cell.shape,
        "voxel_size_nm": spacing,
        "chunk_shape": chunk,
        "shard_shape": shard,
    }
    base = [
        describe(out, dtype="uint8", **common),
        describe(
            out, dtype="uint8", labels="truth", classes=CLASSES, colors=CLASS_COLORS, **common
        ),
        describe(out, dtype="uint32", labels="truth_objects", **common),
    ]
    provenance = {
        "stage": "phantom",
        "version": __version__,
        "options": {
            "shape": list(cell.shape),
            "voxel_size_nm": list(spacing),
            "seed": seed,
            "kind": kind,
            "n_levels": n_levels,
        },
        "inputs": [],
    }
    plan = plan_phantom(cell, base)
    volumes = [_with_levels(volume, n_levels) for volume in base]
    plans = [plan, *_pyramid_plans(volumes)]
    ways = {"resume": resume, "overwrite": overwrite}
    state = begin(base, provenance, dry_run=True, **ways)
    if dry_run:
        return plans
    if state != "complete":
        with connect(client, workers=workers) as pool:
            if state == "new":
                check_plans(plans, pool.slots, pool.worker_bytes)
            begin(base, provenance, **ways)
            fill(base, plan, partial(_write_block, cell, base), client=pool)
            for volume in volumes:
                build_levels(volume, client=pool)
        _write_truth(cell, base[0].url)
        # The image last: readers who see it see its labels too.
        for volume in reversed(volumes):
            publish(volume)
    return open_volume(out)


def _shape(size_um: Sequence[float], spacing: Sequence[float]) -> tuple[int, int, int]:
    sizes = [float(v) for v in size_um]
    if len(sizes) != 3 or not all(np.isfinite(v) and v > 0 for v in sizes):
        raise ValueError(f"a cell needs three positive extents z y x in µm. Received: {size_um}")
    z, y, x = (max(1, round(1000 * v / s)) for v, s in zip(sizes, spacing, strict=True))
    return z, y, x


def shared_shard(shape: Sequence[int]) -> tuple[int, ...]:
    """Choose shards of at most 256³ voxels, whole 64³ chunks unless the cell is smaller.

    >>> shared_shard((200, 500, 40))
    (256, 256, 40)
    """
    return tuple(
        extent if extent <= 64 else min(LARGEST_SHARD, -(-extent // 64) * 64) for extent in shape
    )


def plan_phantom(cell: Cell, volumes: Sequence[Volume]) -> Plan:
    """Plan the finest level of all three volumes: blocks are their shards."""
    grid = Grid(cell.shape, volumes[0].levels[0].shard_shape)
    bytes_per_voxel = sum(volume.dtype.itemsize for volume in volumes)
    n_voxels = Box.whole(cell.shape).size
    return Plan(
        stage="phantom",
        grid=grid,
        output=volumes[0].url,
        write_bytes=bytes_per_voxel * n_voxels,
        task_bytes=3 * bytes_per_voxel * grid.largest_read,
        # Measured: the image's noise does not compress, labels take 2 to 4 % of their bytes.
        stored_bytes=int(1.2 * n_voxels),
        notes={"kind": cell.kind, "seed": cell.seed},
    )


def _with_levels(volume: Volume, n_levels: int | None) -> Volume:
    finest = volume.levels[0]
    return Volume(
        volume.url,
        volume.group,
        (finest, *plan_levels(finest, n_levels)),
        volume.classes,
        volume.colors,
    )


def _pyramid_plans(volumes: Sequence[Volume]) -> list[Plan]:
    return [
        plan_level(volume.url, fine, coarse)
        for volume in volumes
        for fine, coarse in zip(volume.levels, volume.levels[1:], strict=False)
    ]


def _write_block(cell: Cell, volumes: Sequence[Volume], block: Block) -> dict[str, Any]:
    rendered = render(cell, block.write)
    assert rendered.image is not None
    arrays: tuple[np.ndarray, ...] = (rendered.image, rendered.classes, rendered.instances)
    return {
        "shards": {
            volume.levels[0].path: write_box(volume.url, volume.levels[0], block.write, array)
            for volume, array in zip(volumes, arrays, strict=True)
        }
    }


def _write_truth(cell: Cell, url: str) -> None:
    """Write the table of true objects: a row group for every batch, one object in the store."""
    sink = pa.BufferOutputStream()
    writer = None
    for batch in true_objects(cell):
        table = pa.table(batch)
        writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()
        write_object(url, TRUTH_TABLE, sink.getvalue().to_pybytes())
