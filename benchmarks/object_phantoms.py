"""Label volumes for the benchmarks of objects: little tissue, much of it, and dust.

Spheroids of random place, size and direction, drawn one after another until they fill what is
wanted; a later one never covers an earlier one, so they touch.

``sparse``
    One class, 8 % of the voxels, objects of some 50,000 voxels.
``dense``
    Four classes, 60 % of the voxels, most objects touching others.
``fragmented``
    One class, a speck of 1 to 100 voxels for every 1024 voxels: 10⁶ in 1024³.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit

from cvdask.engine.output import fill
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block
from cvdask.volume.store import Volume, create, describe, publish

VOXEL_NM = 8.0


@dataclass(frozen=True)
class Kind:
    """How a phantom is filled.

    Parameters
    ----------
    n_classes : int
    share : float
        Of the voxels; no more objects are drawn then.
    voxels_per_object : int
        At most one object for so many voxels of the volume.
    radii : tuple of float
        Least and largest short radius, in voxels; the long one is up to twice as long.
    """

    n_classes: int
    share: float
    voxels_per_object: int
    radii: tuple[float, float]


KINDS = {
    "sparse": Kind(1, 0.08, 1, (10.0, 25.0)),
    "dense": Kind(4, 0.60, 1, (8.0, 20.0)),
    "fragmented": Kind(1, 1.0, 1024, (0.6, 2.2)),
}


@njit(cache=True)
def draw(
    data: np.ndarray,
    n_classes: int,
    share: float,
    most: int,
    least: float,
    largest: float,
    generator: np.random.Generator,
) -> int:
    """Draw spheroids into zeros; return how many."""
    extent_z, extent_y, extent_x = data.shape
    filled, n = 0, 0
    while n < most and filled < share * data.size:
        z, y, x = (
            generator.random() * extent_z,
            generator.random() * extent_y,
            generator.random() * extent_x,
        )
        short = least + (largest - least) * generator.random()
        long = short * (1 + generator.random())
        uz, uy, ux = generator.normal(), generator.normal(), generator.normal()
        length = math.sqrt(uz * uz + uy * uy + ux * ux)
        uz, uy, ux = uz / length, uy / length, ux / length
        kind = 1 + n % n_classes
        n += 1
        for k in range(max(0, int(z - long)), min(extent_z, int(z + long) + 2)):
            for j in range(max(0, int(y - long)), min(extent_y, int(y + long) + 2)):
                for i in range(max(0, int(x - long)), min(extent_x, int(x + long) + 2)):
                    dz, dy, dx = k - z, j - y, i - x
                    along = dz * uz + dy * uy + dx * ux
                    across = dz * dz + dy * dy + dx * dx - along * along
                    inside = along * along / (long * long) + across / (short * short) <= 1
                    if inside and data[k, j, i] == 0:
                        data[k, j, i] = kind
                        filled += 1
    return n


def phantom(name: str, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Draw one of the phantoms: uint8."""
    kind = KINDS[name]
    data = np.zeros(shape, np.uint8)
    most = data.size // kind.voxels_per_object
    draw(data, kind.n_classes, kind.share, most, *kind.radii, np.random.default_rng(seed))
    return data


def store(
    url: str,
    data: np.ndarray,
    *,
    voxel_size_nm: tuple[float, float, float] = (VOXEL_NM,) * 3,
    repeats: int = 1,
) -> None:
    """Write voxels as the classes of a sample, ``repeats`` times one behind the other along z."""
    depth = data.shape[0]
    shape = (depth * repeats, *data.shape[1:])
    for labels in (None, "classes"):
        volume = describe(
            url,
            shape=shape,
            dtype=str(data.dtype) if labels else "uint8",
            voxel_size_nm=voxel_size_nm,
            labels=labels,
            classes={value: f"class {value}" for value in range(1, int(data.max()) + 1)}
            if labels
            else None,
        )
        create(volume, {"stage": "benchmark"})
        source = data if labels else np.zeros((1, 1, 1), np.uint8)
        plan = Plan("phantom", volume.levels[0].shards, url)
        fill([volume], plan, partial(_write, volume, source))
        publish(volume)


def _write(volume: Volume, data: np.ndarray, block: Block) -> dict[str, Any]:
    """Write a block of an array that repeats itself along z."""
    level, box = volume.levels[0], block.write
    part = np.zeros(box.shape, level.dtype)
    if data.size > 1:
        for z in range(*box.slices[0].indices(box.stop[0])):
            part[z - box.start[0]] = data[(z % len(data), *box.slices[1:])]
    return {"shards": {level.path: volume.write(box, part)}}
