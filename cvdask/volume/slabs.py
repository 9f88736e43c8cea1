"""What happens to one slab of a source on a worker?

It is decoded, its bad slices are filled or refused, its values are converted, whole shards are
written; what is known of its slices goes into the block's record. A label image is checked for ids
without a name, and filled with 255 where nobody has annotated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cvdask.engine.ledger import Record
from cvdask.errors import DamagedData
from cvdask.volume.boxes import Block, Box
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.objects import count_read, redact
from cvdask.volume.slice_statistics import sum_slices
from cvdask.volume.sources import Source, read
from cvdask.volume.store import Volume, write_box

Damaged = Literal["refuse", "hole", "interpolate"]

# Different ids of a class image that are listed when they have no name.
MANY_IDS = 1000


@dataclass(frozen=True)
class Conversion:
    """How values become voxels: a linear map onto the whole range of an integer type."""

    dtype: str
    low: float | None = None
    high: float | None = None

    def apply(self, data: np.ndarray) -> np.ndarray:
        """Convert values; without a range they keep theirs and change type only."""
        if self.low is None or self.high is None:
            return data if data.dtype == self.dtype else data.astype(self.dtype)
        top = np.iinfo(self.dtype).max
        scaled = (data.astype(np.float64) - self.low) * (top / (self.high - self.low))
        return np.clip(np.floor(scaled + 0.5), 0, top).astype(self.dtype)


@dataclass(frozen=True)
class SlabJob:
    """What a task needs besides its block."""

    source: Source
    volume: Volume
    conversion: Conversion
    damaged: Damaged
    bad_slices: tuple[int, ...] = ()
    label_slices: tuple[int, ...] | None = None


def write_image_slab(job: SlabJob, block: Block) -> Record:
    """Read a slab and the slice behind it, mend what is to be mended, write whole shards."""
    source = job.source
    bounds = Box.whole(source.shape)
    wanted = block.write.grow((0, 0, 0), (1, 0, 0)).intersect(bounds)
    data, unreadable = _read_source(source, wanted)
    bad = {z: reason for z, reason in unreadable.items() if z < block.write.stop[0]}
    bad |= dict.fromkeys(source.missing, "missing, a gap in the numbering")
    bad |= dict.fromkeys(job.bad_slices, "named by bad_slices")
    # Of what the source holds, so that what is found does not depend on the mending.
    n_slices = block.write.shape[0]
    sums = sum_slices(data, wanted.start[0], n_slices, skip={*unreadable, *bad})
    inside = {z: r for z, r in bad.items() if block.write.start[0] <= z < block.write.stop[0]}
    data = data[:n_slices]
    found = {z: reason for z, reason in inside.items() if z not in source.missing}
    if inside and job.damaged == "refuse":
        z, reason = next(iter(sorted(inside.items())))
        raise DamagedData(
            f"{len(inside)} slices of {redact(source.path)} cannot be read, the first at z = {z}: "
            f"{reason}. Mend the source, or start over with --damaged hole or interpolate"
        )
    holes = [z - block.write.start[0] for z in inside] if job.damaged == "hole" else []
    for z in inside if job.damaged == "interpolate" else ():
        data[z - block.write.start[0]] = _between(job, block.write, z)
    voxels = job.conversion.apply(data)
    voxels[holes] = 0  # as stored: a value range may call 0 of the source something else
    shards = write_box(job.volume.url, job.volume.levels[0], block.write, voxels)
    return {
        "shards": {job.volume.levels[0].path: shards},
        "sums": sums.as_lists(),
        "damaged": {str(z): reason for z, reason in found.items()},
    }


def _read_source(source: Source, box: Box) -> tuple[np.ndarray, dict[int, str]]:
    """Read a box of the source, and count its share of the file's bytes."""
    count_read(source.stored_bytes * box.size // Box.whole(source.shape).size)
    return read(source, box)


def _between(job: SlabJob, box: Box, z: int) -> np.ndarray:
    """Interpolate a slice from the nearest good slices below and above, wherever they are.

    The same whatever the slab: they are read from the source again where they lie outside it.
    """
    below, above = _nearest_good(job, box, z, -1), _nearest_good(job, box, z, 1)
    if below is None or above is None:
        known = below or above
        if known is None:
            raise DamagedData(f"slice z = {z} cannot be interpolated: no slice can be read")
        return known[1]
    (z0, low), (z1, high) = below, above
    weight = (z - z0) / (z1 - z0)
    mixed = (1 - weight) * low.astype(np.float64) + weight * high.astype(np.float64)
    return np.floor(mixed + 0.5) if low.dtype.kind in "ui" else mixed


def _nearest_good(job: SlabJob, box: Box, z: int, step: int) -> tuple[int, np.ndarray] | None:
    known_bad = {*job.source.missing, *job.bad_slices}
    z += step
    while 0 <= z < job.source.shape[0]:
        if z not in known_bad:
            one = Box((z, *box.start[1:]), (z + 1, *box.stop[1:]))
            data, unreadable = _read_source(job.source, one)
            if not unreadable:
                return z, data[0]
        z += step
    return None


def write_label_slab(job: SlabJob, block: Block) -> Record:
    """Write a slab of a label image; slices without annotation are filled with 255."""
    unreadable: dict[int, str] = {}
    if job.label_slices is None:
        data, unreadable = _read_source(job.source, block.write)
    else:
        data = np.full(block.write.shape, UNANNOTATED, job.source.dtype)
        for number, z in enumerate(job.label_slices):
            if block.write.start[0] <= z < block.write.stop[0]:
                one = Box((number, *block.write.start[1:]), (number + 1, *block.write.stop[1:]))
                part, faults = _read_source(job.source, one)
                data[z - block.write.start[0]] = part[0]
                if number in faults:
                    unreadable[z] = faults[number]
    if unreadable:
        z, reason = next(iter(sorted(unreadable.items())))
        raise DamagedData(
            f"{redact(job.source.path)}: {len(unreadable)} label slices cannot be read, the first "
            f"at z = {z}: {reason}"
        )
    if data.dtype.kind == "i" and data.size and data.min() < 0:
        raise ValueError(f"labels are not negative. Received: {data.min()} in box {block.write}")
    _check_ids(job, data, block)
    voxels = job.conversion.apply(data)
    shards = write_box(job.volume.url, job.volume.levels[0], block.write, voxels)
    return {"shards": {job.volume.levels[0].path: shards}}


def _check_ids(job: SlabJob, data: np.ndarray, block: Block) -> None:
    """Refuse values without a class name, where classes were named."""
    if not job.volume.classes:
        return
    known = np.array([0, *job.volume.classes, UNANNOTATED], dtype=np.uint64)
    present = np.unique(data)
    unknown = present[~np.isin(present.astype(np.uint64), known)]
    if unknown.size:
        raise ValueError(
            f"every label value is 0, {UNANNOTATED} (not annotated) or one of the classes "
            f"{dict(job.volume.classes)}. Received: {unknown[:MANY_IDS].tolist()} in box "
            f"{block.write}. Name all classes, or none"
        )
