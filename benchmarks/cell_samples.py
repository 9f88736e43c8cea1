"""Samples for the benchmarks of scale: metadata alone, or one synthetic cell over and over.

1. :func:`bare_sample` writes an image and its classes without a voxel: what a plan needs to know.
2. :func:`repeated_cell` renders one cell, the *period*, and stores its shards again until the
   volume is full. Every period costs the same, so time and memory can be compared across sizes.
3. :func:`repeated_image` does so with grey values, in shards of whole slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from cvdask.engine.blockwise import run
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.cell import CLASSES, Cell, render
from cvdask.volume.objects import read_object, write_object
from cvdask.volume.store import Volume, create, describe, publish, shard_key, write_box

VOXEL_NM = 20.0


def bare_sample(
    url: str,
    shape: Sequence[int],
    *,
    chunk_shape: Sequence[int] | None = None,
    shard_shape: Sequence[int] | None = None,
) -> tuple[Volume, Volume]:
    """Publish an image and its classes; what nobody has written is 0."""
    common: dict[str, Any] = {
        "shape": shape,
        "dtype": "uint8",
        "voxel_size_nm": (VOXEL_NM,) * 3,
        "chunk_shape": chunk_shape,
        "shard_shape": shard_shape,
    }
    image = describe(url, **common)
    classes = describe(url, labels="classes", classes=CLASSES, **common)
    for volume in (image, classes):
        create(volume, {"stage": "benchmark"})
    return publish(image), publish(classes)


def repeated_cell(
    url: str, period: Sequence[int], repeats: Sequence[int], shard: int, client: Any = None
) -> Volume:
    """Write the classes of a cell, ``repeats`` times along z, y, x; shards are cubes."""
    shape = [n * times for n, times in zip(period, repeats, strict=True)]
    _, classes = bare_sample(
        url, shape, chunk_shape=(min(64, shard),) * 3, shard_shape=(shard,) * 3
    )
    _repeat(classes, Box.whole(tuple(period)), client, image=False)
    return classes


def repeated_image(
    url: str,
    side: int,
    period: int,
    depth: int,
    chunk: Sequence[int],
    client: Any = None,
) -> Volume:
    """Write the image of a cell of ``period`` slices until it is ``depth`` slices deep.

    A shard holds all of ``period`` slices.
    """
    image, _ = bare_sample(
        url, (depth, side, side), chunk_shape=chunk, shard_shape=(period, side, side)
    )
    _repeat(image, Box.whole((period, side, side)), client, image=True)
    return image


def _repeat(volume: Volume, period: Box, client: Any, *, image: bool) -> None:
    """Render the shards of the period, then store them again at every other place."""
    level = volume.levels[0]
    cell = Cell(period.shape, (VOXEL_NM,) * 3)
    first = Plan("render", Grid(level.shape, level.shard_shape, roi=period), volume.url)
    run(partial(_render, volume, cell, image), first, client=client)
    run(partial(_copy, volume, period), Plan("copy", level.shards, volume.url), client=client)


def _render(volume: Volume, cell: Cell, image: bool, block: Block) -> None:
    rendered = render(cell, block.write, image=image)
    data = rendered.image if image else rendered.classes
    assert data is not None
    write_box(volume.url, volume.levels[0], block.write, data)


def _copy(volume: Volume, period: Box, block: Block) -> None:
    pairs = zip(block.write.start, period.shape, strict=True)
    source = block.write.shift([start % n - start for start, n in pairs])
    if source == block.write:
        return
    level = volume.levels[0]
    data = read_object(volume.url, f"{level.path}/{shard_key(level, source)}")
    if data is not None:  # shards that hold nothing are not stored
        write_object(volume.url, f"{level.path}/{shard_key(level, block.write)}", data)
