"""Which blocks does a network segment a volume by? Integers alone, before a pixel is read.

1. :func:`output_shapes` cuts the label image into shards, from shapes alone: the same shards
   whatever the machine.
2. :func:`plan_segment` makes blocks of whole shards: whole slices where a worker's memory holds the
   network's features for them, else the tiles that read the least halo.
3. :func:`read_window` says what a network must see of a slice to classify a part of it as in the
   whole.

Along x, a slice of 10 pixels in blocks of 4, for a network with a halo of 3 and a stride of 2::

    pixel    0 1 2 3 4 5 6 7 8 9
    write    [--0--] [--1--] [2]
    read     [-----0-----]            3 behind 3 is 6; up to the stride: 7
             [--------1--------]      3 before 4 is 1; down to the stride: 0
                     [----2----]      3 before 8 is 5; down to the stride: 4

Planes across y or x too are read in this way, where those are wanted: then the halo is one of z as
well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import gcd, prod

import numpy as np

from cvdask.engine.plan import Plan
from cvdask.segmentation.unet import Architecture, halo, stride
from cvdask.volume.boxes import Box, Grid
from cvdask.volume.store import Level, Volume

# Shards are at most this wide: tiles are made of them, and a finer choice of tiles wastes less.
WIDEST_SHARD = 1024
# Layers of shards that a volume is given where that costs little: they are what workers share.
FEW_LAYERS = 8
# Pixels per call. More gain nothing on a CPU; a GPU is busy only with several million.
CPU_BATCH_PIXELS = 2**20
GPU_BATCH_PIXELS = 2**23
# The planes that a network sees: across z alone, or across all three axes.
ALONG_Z = (0,)
# Features that are held at once, in channels at full resolution per base width. Measured with
# TensorFlow on a CPU, resident memory of slices of 512² to 2048²: 4.1 to 5.5, and 9.5.
LIVE_FEATURES = {"fast": 6, "paper": 11}


def output_shapes(
    shape: Sequence[int],
    image_chunk: Sequence[int],
    block_yx: tuple[int, int] | None = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose chunks and shards of the label image, from shapes alone.

    A layer of shards is as deep as the image's chunks, so that a task decodes each of them once;
    a shallow volume gets up to four times as many layers, so that several workers have work.

    Parameters
    ----------
    shape : sequence of int
        Voxels z, y, x.
    image_chunk : sequence of int
        Chunk shape of the image.
    block_yx : tuple of int, optional
        Extent of the shards in y and x: up to 256, or a multiple of 64.

    Examples
    --------
    >>> output_shapes((2000, 3000, 500), (64, 64, 64))
    ((64, 64, 64), (64, 1024, 512))
    >>> output_shapes((20, 768, 1024), (20, 256, 256))
    ((5, 256, 256), (5, 768, 1024))
    """
    depth = min(image_chunk[0], 64, shape[0])
    shallowest = max(1, depth // 4)
    while depth > shallowest and -(-shape[0] // depth) < FEW_LAYERS:
        depth = -(-depth // 2)
    chunk, shard = [depth], [depth]
    wanted = block_yx or (WIDEST_SHARD, WIDEST_SHARD)
    for axis, extent, most, theirs in zip("yx", shape[1:], wanted, image_chunk[1:], strict=True):
        if block_yx is not None and most < extent:
            small = most if most <= 256 else gcd(most, 256)
            if small < 64 and most > 256:
                raise ValueError(
                    f"a block is cut into chunks: its extent is at most 256 or a multiple of 64. "
                    f"Received along {axis}: {most}, such as {-(-most // 64) * 64}"
                )
            large = most
        else:
            small = min(extent, theirs if 32 <= theirs <= 256 else 64)
            n_parts = 1 if block_yx is not None else -(-extent // WIDEST_SHARD)
            large = -(-extent // (n_parts * small)) * small
        chunk.append(small)
        shard.append(large)
    return tuple(chunk), tuple(shard)


def plan_segment(
    image: Level,
    architecture: Architecture,
    outputs: Sequence[Volume],
    *,
    region: Box | None = None,
    worker_bytes: int = 2**62,
    batch_size: int | None = None,
    batch_pixels: int = CPU_BATCH_PIXELS,
    block_yx: tuple[int, int] | None = None,
    depth: int | None = None,
    tta: bool = False,
    axes: Sequence[int] = ALONG_Z,
) -> Plan:
    """Plan the blocks: those that read the least halo, of the ones a worker's memory holds. Pure.

    Parameters
    ----------
    image : Level
        What is read.
    architecture : Architecture
        Says halo, stride and memory.
    outputs : sequence of Volume
        What is written: the classes, then probabilities.
    region : Box, optional
        Voxels that are wanted; by default all.
    worker_bytes : int
        Memory of a task.
    batch_size : int, optional
        Slices per call; by default as many as make ``batch_pixels``.
    batch_pixels : int
        Pixels per call.
    block_yx : tuple of int, optional
        Height and width of the blocks, multiples of the shards'.
    depth : int, optional
        Slices of a block; by default a shard's, and with several axes what reads the least halo.
    tta : bool
        Whether several views are averaged, which holds a second set of probabilities.
    axes : sequence of int
        Axes that the planes lie across: 0 are slices.

    Returns
    -------
    Plan
        Its notes tell batch, network memory, pixels computed and the share of them that is halo.
    """
    level = outputs[0].levels[0]
    region = region if region is not None else Box.whole(level.shape)
    reach = halo(architecture)
    step = stride(architecture)
    itemsize = np.dtype(image.dtype).itemsize

    solid = tuple(axes) != ALONG_Z
    halos = (reach if solid else 0, reach, reach)
    steps = (step if solid else 1, step, step)

    def axis_extents(axis: int, block: int) -> tuple[int, int]:
        wanted = (region.start[axis], region.stop[axis])
        extents = list(_window_extents(level.shape[axis], block, halos[axis], steps[axis], wanted))
        return max(extents), sum(extents)

    shard = level.shard_shape
    depths = [depth] if depth else _multiples(shard[0], level.shape[0]) if solid else [shard[0]]
    heights, widths = (
        [block_yx[axis - 1]] if block_yx else _multiples(shard[axis], level.shape[axis])
        for axis in (1, 2)
    )
    windows = [
        {extent: axis_extents(axis, extent) for extent in extents}
        for axis, extents in enumerate((depths, heights, widths))
    ]

    def window(block: Sequence[int]) -> list[int]:
        return [extents[n][0] for extents, n in zip(windows, block, strict=True)]

    def plane(block: Sequence[int]) -> int:
        """Count the pixels of the largest plane."""
        return max(prod(window(block)) // window(block)[axis] for axis in axes)

    def sums(block: Sequence[int]) -> list[int]:
        """Add up what the windows of all blocks hold along each axis."""
        return [extents[n][1] for extents, n in zip(windows, block, strict=True)]

    def computed(block: Sequence[int]) -> int:
        return sum(region.shape[axis] * prod(sums(block)) // sums(block)[axis] for axis in axes)

    def batch_of(block: Sequence[int]) -> int:
        n_planes = max(block[axis] for axis in axes)
        return batch_size or max(1, min(n_planes, batch_pixels // plane(block)))

    def feature_bytes(block: Sequence[int]) -> int:
        return _feature_bytes(architecture, tta) * plane(block) * batch_of(block)

    def task_bytes(block: Sequence[int]) -> int:
        written = prod(map(min, block, level.shape))
        # What is read, once; what is written, and once more while a shard is encoded; and, where
        # planes of several axes add up, a probability of each class.
        voxels = prod(window(block)) * itemsize + 2 * len(outputs) * written
        means = 4 * architecture.n_classes * written if solid else 0
        return feature_bytes(block) + voxels + means

    candidates = list(product(depths, heights, widths))
    fitting = [block for block in candidates if task_bytes(block) <= worker_bytes]
    # Where nothing fits, the engine refuses the smallest, with the numbers.
    block = min(fitting, key=lambda one: (computed(one), prod(one)), default=min(candidates))
    grid = Grid(level.shape, block, halo=halos, align=steps, roi=region)
    pixels = computed(block)
    return Plan(
        stage="segment",
        grid=grid,
        output=outputs[0].url,
        read_bytes=prod(sums(block)) * itemsize,
        write_bytes=len(outputs) * region.size,
        task_bytes=task_bytes(block),
        # Measured: labels take 2 to 5 % of their bytes; probabilities are smooth, and less small.
        stored_bytes=int(region.size * (0.05 + 0.4 * (len(outputs) - 1))),
        notes={
            "batch_size": batch_of(block),
            "network_bytes": feature_bytes(block),
            "computed_pixels": pixels,
            "halo_share": round(1 - len(axes) * region.size / pixels, 4),
        },
    )


def _multiples(shard: int, extent: int) -> list[int]:
    """Return the block extents made of whole shards, up to the one that holds the axis.

    >>> _multiples(1024, 3000)
    [1024, 2048, 3072]
    """
    return [n * shard for n in range(1, -(-extent // shard) + 1)]


def _window_extents(
    extent: int, block: int, reach: int, step: int, wanted: tuple[int, int]
) -> Iterator[int]:
    """Yield along one axis what the network computes for each block, filled up to the stride.

    >>> list(_window_extents(10, 4, 3, 2, (0, 10)))
    [8, 10, 6]
    """
    end = -(-extent // step) * step
    for start in range(wanted[0] // block * block, wanted[1], block):
        first, last = max(start, wanted[0]), min(start + block, extent, wanted[1])
        low = max(0, (first - reach) // step * step)
        yield min(end, -(-(last + reach) // step) * step) - low


def _feature_bytes(architecture: Architecture, tta: bool) -> int:
    """Estimate the memory of a network per pixel of a batch."""
    assert architecture.base_width is not None
    features = LIVE_FEATURES[architecture.preset] * architecture.base_width
    return 4 * (features + architecture.n_classes * (3 if tta else 1))


def read_window(
    shape: Sequence[int],
    kept: Box,
    architecture: Architecture,
    axes: Sequence[int] = ALONG_Z,
) -> Box:
    """Return the voxels that a network must see to classify a box as in the whole volume.

    Parameters
    ----------
    shape : sequence of int
        Of the volume.
    kept : Box
        What is to be classified.
    architecture : Architecture
    axes : sequence of int
        Axes that the planes lie across.

    Examples
    --------
    >>> read_window((9, 64, 99), Box((0, 30, 90), (3, 32, 99)), Architecture(2, depth=1))
    Box(start=(0, 22, 82), stop=(3, 40, 99))
    """
    reach, step = halo(architecture), stride(architecture)
    solid = tuple(axes) != ALONG_Z
    around = (reach if solid else 0, reach, reach)
    grown = kept.grow(around, around).align((step if solid else 1, step, step))
    return grown.intersect(Box.whole(shape))
