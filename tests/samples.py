"""Small samples, and the voxels to fill them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.engine.output import fill
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block
from cvdask.volume.store import Volume, create, describe, publish


def write_sample(
    url: str | Path,
    data: np.ndarray,
    *,
    voxel_size_nm: Sequence[float] = (40.0, 10.0, 10.0),
    chunk_shape: Sequence[int] = (4, 4, 4),
    shard_shape: Sequence[int] = (8, 8, 8),
    labels: str | None = None,
    classes: Mapping[int, str] | None = None,
    colors: Mapping[int, str] | None = None,
) -> Volume:
    """Write an array as a sample of one level, sealed and published as a stage does it."""
    volume = describe(
        url,
        shape=data.shape,
        dtype=data.dtype,
        voxel_size_nm=voxel_size_nm,
        chunk_shape=chunk_shape,
        shard_shape=shard_shape,
        labels=labels,
        classes=classes,
        colors=colors,
    )
    level = volume.levels[0]

    def write_block(block: Block) -> dict[str, Any]:
        return {"shards": {level.path: volume.write(block.write, data[block.write.slices])}}

    create(volume, {"stage": "sample"})
    fill([volume], Plan("sample", level.shards, volume.url), write_block)
    return publish(volume)


def random_voxels(
    shape: Sequence[int], dtype: Any, seed: int = 0, empty: float = 0.3
) -> np.ndarray:
    """Draw voxels over the whole range of a type; some 4³ cells, a share of ``empty``, are zero."""
    generator = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        data = generator.normal(size=shape).astype(kind)
    else:
        limits = np.iinfo(kind)
        data = generator.integers(limits.min, limits.max, shape, kind, endpoint=True)
    cells = generator.random([-(-n // 4) for n in shape]) < empty
    for axis in range(len(shape)):
        cells = cells.repeat(4, axis)
    data[cells[tuple(slice(n) for n in shape)]] = 0
    return data
