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
# Features that are held at once, in channels at full resolution per base width. Measured with
# TensorFlow on a CPU, resident memory of slices of 512² to 2048²: 4.1 and 9.5.
LIVE_FEATURES = {"fast": 5, "paper": 10}


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
    tta: bool = False,
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
    tta : bool
        Whether several views are averaged, which holds a second set of probabilities.

    Returns
    -------
    Plan
        Its notes tell batch, network memory, pixels computed and the share of them that is halo.
    """
    level = outputs[0].levels[0]
    depth = level.shard_shape[0]
    region = region if region is not None else Box.whole(level.shape)
    reach = halo(architecture)
    step = stride(architecture)
    itemsize = np.dtype(image.dtype).itemsize

    def axis_extents(axis: int, block: int) -> tuple[int, int]:
        wanted = (region.start[axis], region.stop[axis])
        extents = list(_window_extents(level.shape[axis], block, reach, step, wanted))
        return max(extents), sum(extents)

    heights, widths = (
        [block_yx[axis - 1]] if block_yx else _multiples(level.shard_shape[axis], level.shape[axis])
        for axis in (1, 2)
    )
    rows = {height: axis_extents(1, height) for height in heights}
    columns = {width: axis_extents(2, width) for width in widths}

    def window(block: tuple[int, int]) -> int:
        return rows[block[0]][0] * columns[block[1]][0]

    def computed(block: tuple[int, int]) -> int:
        return region.shape[0] * rows[block[0]][1] * columns[block[1]][1]

    def batch_of(block: tuple[int, int]) -> int:
        return batch_size or max(1, min(depth, batch_pixels // window(block)))

    def feature_bytes(block: tuple[int, int]) -> int:
        return _feature_bytes(architecture, tta) * window(block) * batch_of(block)

    def task_bytes(block: tuple[int, int]) -> int:
        written = depth * min(block[0], level.shape[1]) * min(block[1], level.shape[2])
        # What is read, once; what is written, and once more while a shard is encoded.
        voxels = depth * window(block) * itemsize + 2 * len(outputs) * written
        return feature_bytes(block) + voxels

    candidates = list(product(heights, widths))
    fitting = [block for block in candidates if task_bytes(block) <= worker_bytes]
    # Where nothing fits, the engine refuses the smallest, with the numbers.
    block = min(fitting, key=lambda one: (computed(one), prod(one)), default=min(candidates))
    grid = Grid(
        level.shape,
        (depth, *block),
        halo=(0, reach, reach),
        align=(1, step, step),
        roi=region,
    )
    pixels = computed(block)
    return Plan(
        stage="segment",
        grid=grid,
        output=outputs[0].url,
        read_bytes=pixels * itemsize,
        write_bytes=len(outputs) * region.size,
        task_bytes=task_bytes(block),
        # Measured: labels take 2 to 5 % of their bytes; probabilities are smooth, and less small.
        stored_bytes=int(region.size * (0.05 + 0.4 * (len(outputs) - 1))),
        notes={
            "batch_size": batch_of(block),
            "network_bytes": feature_bytes(block),
            "computed_pixels": pixels,
            "halo_share": round(1 - region.size / pixels, 4),
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


def read_window(shape: Sequence[int], kept: Box, architecture: Architecture) -> Box:
    """Return the voxels that a network must see to classify a box as in the whole slice.

    >>> read_window((9, 64, 99), Box((0, 30, 90), (3, 32, 99)), Architecture(2, depth=1))
    Box(start=(0, 22, 82), stop=(3, 40, 99))
    """
    reach, step = halo(architecture), stride(architecture)
    grown = kept.grow((0, reach, reach), (0, reach, reach)).align((1, step, step))
    return grown.intersect(Box.whole(shape))
