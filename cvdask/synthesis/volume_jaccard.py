"""How unlike are whole volumes, for all pairs of many?

The same distance as of slices (``jaccard``), over all voxels. A block of voxels is read from every
volume, packed to bits, and all volumes are compared with all others; what they have in common is
added up over the blocks. Each voxel is read once, however many volumes it is compared with, and
memory is bounded by the block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cvdask.engine.blockwise import reduce
from cvdask.engine.plan import Plan
from cvdask.synthesis.jaccard import (
    count_common,
    distances,
    n_planes,
    pack,
    packed_shape,
    values_present,
)
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.classes import absent_values, block_shape, named_values, read_classes
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.ensemble import Ensemble
from cvdask.volume.objects import redact
from cvdask.volume.store import Level, Volume, open_volume

# Bits of a block of all volumes.
BLOCK_BYTES = 2**26
# Without names any of so many values is a class.
MOST_CLASSES = 254


@dataclass(frozen=True)
class _Source:
    """One label image: what it holds, as numbers of classes that all volumes share."""

    url: str
    level: Level
    codes: bytes  # 256: number of each value
    known: frozenset[int]


def volume_jaccard_matrix(
    volumes: Ensemble | Sequence[Volume | str],
    labels: str = "classes",
    *,
    client: Any = None,
    workers: int | None = None,
) -> np.ndarray:
    """Compare all volumes with one another.

    Parameters
    ----------
    volumes : Ensemble, or sequence of Volume or str
        Samples whose label images have one shape.
    labels : str
        Label image of classes. Classes are the same where their names are; where no volume has
        names, where their values are. Voxels of 255 count as background.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.

    Returns
    -------
    (volumes, volumes) float64
        Jaccard distances: 0 equal, 1 nothing in common.

    Raises
    ------
    ValueError
        When shapes differ, or some label images have names of classes and others none.
    BlocksFailed
        When blocks could not be read, or hold values that are no class.
    """
    sources, n_classes = _open(volumes, labels)
    plan = plan_volumes(sources, n_classes)
    compare = partial(_compare_block, sources, n_classes)
    outcome = reduce(compare, _add, plan, client=client, workers=workers)
    common = outcome[0]
    assert common is not None
    n_voxels = np.diagonal(common)
    return distances(common, n_voxels, n_voxels)


def _open(
    volumes: Ensemble | Sequence[Volume | str], labels: str
) -> tuple[tuple[_Source, ...], int]:
    opened = [open_volume(v) if isinstance(v, str) else v for v in volumes]
    images = [volume.label(labels) for volume in opened]
    if not images:
        raise ValueError("at least one volume is needed. Received: none")
    for image in images:
        if image.shape != images[0].shape:
            raise ValueError(
                f"volumes are compared voxel by voxel, so they have one shape. Received: "
                f"{images[0].shape} at {redact(images[0].url)}, {image.shape} at "
                f"{redact(image.url)}"
            )
    names = [{v: name for v, name in named_values(one).items() if v} for one in images]
    if any(names) and not all(names):
        lacking = next(redact(i.url) for i, n in zip(images, names, strict=True) if not n)
        raise ValueError(
            f"either all label images have names of classes or none. {labels!r} of {lacking} has "
            f"none"
        )
    numbers = {name: k for k, name in enumerate(sorted({n for one in names for n in one.values()}))}
    sources = []
    for image, own in zip(images, names, strict=True):
        codes = np.zeros(256, np.uint8)
        if own:
            codes[list(own)] = [numbers[name] + 1 for name in own.values()]
        else:
            codes[:UNANNOTATED] = np.arange(UNANNOTATED)
        known = frozenset({0, UNANNOTATED, *own} if own else range(256))
        sources.append(_Source(image.url, image.levels[0], codes.tobytes(), known))
    return tuple(sources), len(numbers) or MOST_CLASSES


def plan_volumes(sources: Sequence[_Source], n_classes: int) -> Plan:
    """Plan the comparison: blocks as large as the bits of all volumes allow."""
    level = sources[0].level
    shape = list(block_shape(level))
    planes = n_planes(n_classes)

    def bits() -> int:
        return 8 * math.prod(packed_shape(len(sources), math.prod(shape), planes))

    while bits() > BLOCK_BYTES and any(
        s > c for s, c in zip(shape, level.chunk_shape, strict=True)
    ):
        chunks = [s // c for s, c in zip(shape, level.chunk_shape, strict=True)]
        axis = chunks.index(max(chunks))
        shape[axis] = -(-chunks[axis] // 2) * level.chunk_shape[axis]
    itemsize = np.dtype(level.dtype).itemsize
    return Plan(
        "compare volumes",
        Grid(level.shape, tuple(shape)),
        sources[0].url,
        read_bytes=len(sources) * level.nbytes,
        task_bytes=2 * bits() + math.prod(shape) * (itemsize + 3) + 16 * len(sources) ** 2,
        notes={"volumes": len(sources)},
    )


def _compare_block(sources: Sequence[_Source], n_classes: int, block: Block) -> np.ndarray:
    """Count what all volumes have in common within a block: (volumes, volumes) int64."""
    parts = (_read_numbers(source, block.write) for source in sources)
    stack = pack(parts, len(sources), n_classes)
    return count_common(stack, stack)


def _read_numbers(source: _Source, box: Box) -> np.ndarray:
    data = read_classes(source.url, source.level, box)
    present = np.flatnonzero(values_present(data)).tolist()
    if not source.known.issuperset(present):
        where = f"{redact(source.url)}/{source.level.path}, box {box}"
        raise ValueError(f"{where}, holds {absent_values(data, source.known)}")
    if all(source.codes[value] == value for value in present):
        return data
    # Twice as fast as an array indexed by an array.
    return np.frombuffer(data.tobytes().translate(source.codes), np.uint8)


def _add(parts: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.sum(parts, axis=0))
