"""Which slices of which volumes are meant, and how are they cut and taken out of the store?

Everything that :func:`cvdask.synthesis.slices.open_slices` decides before a voxel is read:

1. The volumes agree in classes and voxel size; each class gets a channel.
2. A square of whole cells is cut out of every slice.
3. Holes, and slices that are not what they seem, are left out.
4. The stacks are divided into slabs, layers of whole shards; a slab is read in tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from cvdask.volume.boxes import Box
from cvdask.volume.classes import BACKGROUND, class_values, named_values, open_classes
from cvdask.volume.ensemble import Ensemble
from cvdask.volume.objects import redact
from cvdask.volume.store import Level, Volume, open_volume

# Slices of a slab, at least: shards of one slice each would be a task each.
LEAST_SLAB_DEPTH = 16

Crop = Literal["centre", "random"]


@dataclass(frozen=True)
class Source:
    """The slices of one label image.

    Parameters
    ----------
    labels : Volume
    z : (n,) int64
        The usable ones, ascending.
    span : range
        z that were looked at; the first has place 0.
    plane : Box
        Voxels y, x that are kept in memory.
    left_out : mapping of reason to z
    """

    labels: Volume
    z: np.ndarray
    span: range
    plane: Box
    left_out: Mapping[str, tuple[int, ...]]

    @property
    def level(self) -> Level:
        """Where the voxels lie."""
        return self.labels.levels[0]


@dataclass(frozen=True)
class Slab:
    """A layer of shards: slices that are decoded together.

    Parameters
    ----------
    source : int
        Number of its source.
    first, n_slices : int
        Its slices are numbered ``first`` to ``first + n_slices - 1`` in the set.
    """

    source: int
    first: int
    n_slices: int


def check_options(
    resolution: int | None,
    reduction: int | None,
    crop: str,
    slices_per_sample: int,
    max_span: int,
    cache_bytes: int,
) -> None:
    """Refuse options that break a rule, whatever the volumes."""
    if resolution is not None and (resolution < 4 or resolution & (resolution - 1)):
        raise ValueError(f"a resolution is a power of two from 4. Received: {resolution}")
    if reduction is not None and reduction < 1:
        raise ValueError(f"a cell has a side of at least 1 voxel. Received: {reduction}")
    if crop not in ("centre", "random"):
        raise ValueError(f"slices are cropped at the centre or at random. Received: {crop!r}")
    if slices_per_sample < 1:
        raise ValueError(f"a sample has at least 1 slice. Received: {slices_per_sample}")
    if max_span < slices_per_sample - 1:
        raise ValueError(
            f"{slices_per_sample} slices lie at least {slices_per_sample - 1} apart. Received: "
            f"max_span {max_span}"
        )
    if cache_bytes < 1:
        raise ValueError(f"the cache holds at least one slab. Received: {cache_bytes} bytes")


def label_images(
    volumes: Volume | str | Ensemble | Sequence[Volume | str], labels: str
) -> list[Volume]:
    """Open the label images of volumes, and refuse those that do not agree."""
    several = [volumes] if isinstance(volumes, Volume | str) else list(volumes)
    images = [open_classes(volume, labels) for volume in several]
    if not images:
        raise ValueError("at least one volume is needed")
    first = images[0]
    assert first.voxel_size_nm is not None
    for image in images[1:]:
        assert image.voxel_size_nm is not None
        if not np.allclose(image.voxel_size_nm, first.voxel_size_nm, rtol=1e-3):
            raise ValueError(
                f"volumes must agree in voxel size. Received: {first.voxel_size_nm} nm in "
                f"{redact(first.url)} and {image.voxel_size_nm} nm in {redact(image.url)}"
            )
        if named_values(image) != named_values(first):
            raise ValueError(
                f"volumes must agree in classes. Received: {named_values(first)} in "
                f"{redact(first.url)} and {named_values(image)} in {redact(image.url)}"
            )
    return images


def choose_channels(
    images: Sequence[Volume], classes: str | int | Sequence[str | int] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return value and name of each channel, background first."""
    names = named_values(images[0])
    if classes is None:
        if not names:
            raise ValueError(
                f"{images[0].name!r} of {redact(images[0].url)} has no names of classes: give the "
                f"values that get a channel with classes"
            )
        chosen = tuple(names)
    else:
        chosen = class_values(images[0], classes)
    foreground = [value for value in chosen if value != BACKGROUND]
    if not foreground:
        raise ValueError(f"at least one class besides background is needed. Received: {classes}")
    values = (BACKGROUND, *foreground)
    return values, tuple(
        names.get(value, f"class {value}" if value else "background") for value in values
    )


def choose_geometry(
    images: Sequence[Volume], resolution: int | None, reduction: int | None, crop: str
) -> tuple[int, int]:
    """Return pixels of a square's side, and voxels of a pixel's."""
    smallest = min(images, key=lambda image: min(image.shape[1:]))
    room = min(smallest.shape[1:])
    if resolution is None:
        fitting = room // (reduction or 1)
        resolution = min(1024, 1 << max(fitting.bit_length() - 1, 2))
    factor = reduction or (1 if crop == "random" else max(1, room // resolution))
    if resolution * factor > room:
        raise ValueError(
            f"a square of {resolution} pixels of {factor} voxels takes {resolution * factor} "
            f"voxels. The slices of {redact(smallest.url)} measure {smallest.shape[1]} × "
            f"{smallest.shape[2]}: choose a smaller resolution"
        )
    return resolution, factor


def centred(level: Level, side: int) -> Box:
    """Return the voxels (y, x) of the centred square."""
    start = tuple((extent - side) // 2 for extent in level.shape[1:])
    return Box(start, tuple(a + side for a in start))


def describe_source(
    image: Volume,
    number: int,
    side: int,
    crop: str,
    z_range: tuple[int, int] | None,
    exclude: Sequence[int] | Mapping[int, Sequence[int]],
    keep_noisy: bool,
) -> Source:
    """Choose the slices of one label image, and the square that is cut out of them."""
    level = image.levels[0]
    low, high = z_range if z_range is not None else (0, level.shape[0])
    if not 0 <= low < high <= level.shape[0]:
        raise ValueError(
            f"z_range holds at least one slice of 0 to {level.shape[0] - 1}. Received: "
            f"{low}:{high} for {redact(image.url)}"
        )
    mine = exclude.get(number, ()) if isinstance(exclude, Mapping) else exclude
    outside = [z for z in mine if not 0 <= z < level.shape[0]]
    if outside and isinstance(exclude, Mapping):
        raise ValueError(
            f"excluded slices lie between 0 and {level.shape[0] - 1}. Received: {outside}"
        )
    told = open_volume(image.url).attributes.get("slices", {})
    annotated = image.attributes.get("slices", {}).get("annotated")
    reasons = {
        "missing": told.get("missing", []),
        "damaged": told.get("damaged", []),
        "blank": [] if keep_noisy else told.get("blank", []),
        "unlike their neighbours": [] if keep_noisy else told.get("outliers", []),
        "not annotated": [] if annotated is None else set(range(low, high)) - set(annotated),
        "excluded": mine,
    }
    left_out: dict[str, tuple[int, ...]] = {}
    gone: set[int] = set()
    for why, slices in reasons.items():
        here = {int(z) for z in slices if low <= int(z) < high} - gone
        if here:
            left_out[why] = tuple(sorted(here))
        gone |= here
    z = np.array([z for z in range(low, high) if z not in gone], np.int64)
    plane = Box.whole(level.shape[1:]) if crop == "random" else centred(level, side)
    return Source(image, z, range(low, high), plane, left_out)


def left_out_notes(source: Source) -> Iterator[str]:
    """Say which slices are left out, and why."""
    for why, slices in source.left_out.items():
        shown = ", ".join(map(str, slices[:12])) + (" …" if len(slices) > 12 else "")
        yield f"{redact(source.labels.url)}: {len(slices)} slices are left out, {why}: z = {shown}"


def divide_stacks(
    sources: Sequence[Source],
    plane_bytes: Sequence[int],
    slices_per_sample: int,
    max_span: int,
    cache_bytes: int,
) -> list[Slab]:
    """Divide the stacks into slabs of whole layers of shards.

    Deep enough for the samples; shallower, down to one layer of chunks, where the cache would not
    hold two.
    """
    slabs: list[Slab] = []
    numbered = 0
    for number, (source, bytes_of_slice) in enumerate(zip(sources, plane_bytes, strict=True)):
        shard, chunk = source.level.shard_shape[0], source.level.chunk_shape[0]
        least = LEAST_SLAB_DEPTH if slices_per_sample == 1 else max(LEAST_SLAB_DEPTH, 2 * max_span)
        depth = shard * max(1, -(-least // shard))
        extent = source.level.shape[0]
        if min(depth, extent) * bytes_of_slice > cache_bytes // 2:
            affordable = cache_bytes // 2 // bytes_of_slice // chunk * chunk
            depth = min(depth, affordable)
            if depth == 0:
                raise ValueError(
                    f"the cache must hold two layers of chunks, here {2 * chunk * bytes_of_slice} "
                    f"bytes. Received: cache_bytes {cache_bytes}"
                )
        for z0 in range(
            int(source.z[0]) // depth * depth if len(source.z) else extent, extent, depth
        ):
            n_slices = int(np.count_nonzero((source.z >= z0) & (source.z < z0 + depth)))
            if n_slices:
                slabs.append(Slab(number, numbered, n_slices))
                numbered += n_slices
    return slabs


def cut_tiles(level: Level, z: np.ndarray, square: Box, factor: int) -> Iterator[Box]:
    """Cut the slices ``z`` into boxes that are read at once: about a shard, and whole cells.

    Where a shard ends within a cell the box goes on to the end of the cell.
    """
    shard, chunk = level.shard_shape, level.chunk_shape[0]
    cuts = []
    for axis in (0, 1):
        start, stop, step = square.start[axis], square.stop[axis], shard[axis + 1]
        ends = range(-(-(start + 1) // step) * step, stop, step)
        whole = {start - (start - end) // factor * factor for end in ends}
        cuts.append(sorted({start, stop, *whole}))
    for layer in np.unique(z // shard[0]):
        inside = z[z // shard[0] == layer]
        z0 = int(inside[0]) // chunk * chunk
        z1 = min(-(-(int(inside[-1]) + 1) // chunk) * chunk, level.shape[0])
        for y0, y1 in pairwise(cuts[0]):
            for x0, x1 in pairwise(cuts[1]):
                yield Box((z0, y0, x0), (z1, y1, x1))
