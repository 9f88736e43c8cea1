"""What is each measure of each class like, in one volume?

A table of objects may have a hundred million rows, and a comparison hundreds of tables. Each is
read once, a batch of rows at a time, in columns that are needed:

1. Sums over all finite values, whole and by *z-block*, a range of slices; NaN and infinite values
   are counted and left out (the flatness of an object one voxel thick is infinite).
2. Values for distributions: all where they are few, else every second, fourth … of them.
3. Measures of the class as a whole: objects per volume, share of the volume, and the mean volume
   weighted by volume, which is the size of the object that a voxel of the class lies in.
4. The density image and the scalars of the table of descriptors, where they are there.

Volumes are independent of each other: they are blocks of the engine, one each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask.comparison.samples import DENSITY, DESCRIPTORS, OBJECTS, Sample, Table, open_table
from cvdask.comparison.statistics import Measured
from cvdask.volume.boxes import Block, Box
from cvdask.volume.objects import redact
from cvdask.volume.store import open_volume, read_attributes

if TYPE_CHECKING:
    import pyarrow as pa

# What the paper compares, in its order.
MEASURES = (
    "volume_um3",
    "surface_um2",
    "sa_v_per_um",
    "compactness",
    "sphericity",
    "elongation",
    "flatness",
    "sparseness",
)
UNITS = {
    "_um3": "µm³",
    "_um2": "µm²",
    "_per_um3": "1/µm³",
    "_per_um": "1/µm",
    "_um": "µm",
    "_px": "voxels",
}
# Values of all volumes together that are kept for distributions, of one measure of one class.
KEPT_VALUES = 4_000_000
SLAB_VOXELS = 2**24
# Said of a class, but not compared: it tells how far its objects can be trusted.
BORDER_SHARE = "border_share"

Key = tuple[str, str]  # class, measure


def unit_of(measure: str) -> str:
    """Return the unit that the name of a measure ends in.

    >>> unit_of("sa_v_per_um"), unit_of("volume_um3"), unit_of("sphericity")
    ('1/µm', 'µm³', '1')
    """
    endings = sorted(UNITS, key=len, reverse=True)
    return next((UNITS[end] for end in endings if measure.endswith(end)), "1")


@dataclass(frozen=True)
class Reading:
    """What is read of every volume; holds no data.

    Parameters
    ----------
    samples : tuple of Sample
    measures : tuple of str
        Columns of the table of objects.
    classes : tuple of str, or None
        Only these; by default all.
    z_blocks : int
        In how many ranges of slices a volume is cut.
    whole_objects : bool
        Leave out objects that touch the border of their volume.
    kept : int
        Most values of a measure that are kept of one volume.
    """

    samples: tuple[Sample, ...]
    measures: tuple[str, ...]
    classes: tuple[str, ...] | None = None
    z_blocks: int = 10
    whole_objects: bool = False
    kept: int = 1_000_000


@dataclass
class _Running:
    """Sums and values of one measure of one class, as batches come in."""

    kept: int
    n_blocks: int
    n: int = 0
    n_missing: int = 0
    n_infinite: int = 0
    mean: float = 0.0
    squares: float = 0.0
    step: int = 1
    values: list[np.ndarray] = field(default_factory=list)
    blocks: list[np.ndarray] = field(default_factory=list)
    n_kept: int = 0

    def __post_init__(self) -> None:
        self.block_counts = np.zeros(self.n_blocks, np.int64)
        self.block_sums = np.zeros(self.n_blocks)

    def add(self, values: np.ndarray, blocks: np.ndarray) -> None:
        """Add a batch of values, with the z-block of each."""
        finite = np.isfinite(values)
        missing = np.isnan(values)
        self.n_missing += int(missing.sum())
        self.n_infinite += int((~finite & ~missing).sum())
        values, blocks = values[finite], blocks[finite]
        if not len(values):
            return
        # Means and squares are merged by Chan, Golub and LeVeque (1983): no large sums cancel.
        mean, squares = float(values.mean()), float(((values - values.mean()) ** 2).sum())
        total, shift = self.n + len(values), mean - self.mean
        self.squares += squares + shift**2 * self.n * len(values) / total
        self.mean += shift * len(values) / total
        self._keep(values, blocks)
        self.n = total
        self.block_counts += np.bincount(blocks, minlength=self.n_blocks)
        self.block_sums += np.bincount(blocks, weights=values, minlength=self.n_blocks)

    def _keep(self, values: np.ndarray, blocks: np.ndarray) -> None:
        """Keep every ``step``-th of all values; by their number, so that batches play no part."""
        first = -self.n % self.step
        self.values.append(values[first :: self.step])
        self.blocks.append(blocks[first :: self.step])
        self.n_kept += len(self.values[-1])
        while self.n_kept > self.kept:
            self.values = [np.concatenate(self.values)[::2]]
            self.blocks = [np.concatenate(self.blocks)[::2]]
            self.n_kept = len(self.values[0])
            self.step *= 2

    def finish(self, volume: str) -> Measured:
        """Return what was summed up."""
        with np.errstate(invalid="ignore"):
            means = self.block_sums / self.block_counts
        return Measured(
            volume,
            self.mean if self.n else math.nan,
            self.n,
            self.n_missing,
            self.n_infinite,
            math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else math.nan,
            np.concatenate(self.values) if self.values else np.empty(0),
            np.concatenate(self.blocks) if self.blocks else np.empty(0, np.int64),
            means,
        )


@dataclass
class _ClassTotal:
    """What a class is as a whole: its objects, their volume, and that squared, by z-block."""

    counts: np.ndarray
    volumes: np.ndarray
    squares: float = 0.0
    n_border: int = 0


def summarise_block(reading: Reading, block: Block) -> dict[int, dict[Key, Measured]]:
    """Summarise the volumes of a block, by their numbers."""
    numbers = range(block.write.start[0], block.write.stop[0])
    return {number: summarise(reading, reading.samples[number]) for number in numbers}


def merge_summaries(parts: Sequence[Any]) -> Any:
    """Put the summaries of several blocks together."""
    return {number: found for part in parts for number, found in part.items()}


def summarise(reading: Reading, sample: Sample) -> dict[Key, Measured]:
    """Summarise every measure of every class of one volume, by (class, measure).

    Raises
    ------
    ValueError
        When a measure is no column of the table, or no number.
    DamagedData
        When a table cannot be read.
    """
    found = _summarise_objects(reading, sample)
    found.update(_summarise_density(reading, sample))
    found.update(_summarise_descriptors(reading, sample))
    return found


# ---------------------------------------------------------------------------------------------
# Objects


def _summarise_objects(reading: Reading, sample: Sample) -> dict[Key, Measured]:
    table = open_table(sample.url, OBJECTS)
    if table is None:
        raise ValueError(f"{redact(sample.url)} has no table of objects any more")
    columns = _columns(reading, sample, table)
    running: dict[Key, _Running] = {}
    totals: dict[str, _ClassTotal] = {}
    for batch in table.batches(columns):
        for name, rows in _by_class(batch, reading.classes):
            if name not in totals:
                zeros = np.zeros(reading.z_blocks)
                totals[name] = _ClassTotal(zeros, zeros.copy())
            blocks = _z_blocks(reading, sample, _numbers(rows, "centroid_z_um"))
            _add_class(totals[name], rows, blocks)
            inside = _whole(rows) if reading.whole_objects else np.ones(len(blocks), bool)
            for measure in reading.measures:
                one = running.setdefault((name, measure), _Running(reading.kept, reading.z_blocks))
                one.add(_numbers(rows, measure)[inside], blocks[inside])
    found = {key: one.finish(sample.name) for key, one in running.items()}
    for name, total in totals.items():
        found.update(_whole_class(sample, name, total))
    return found


def _columns(reading: Reading, sample: Sample, table: Table) -> list[str]:
    schema = table.schema()
    lacking = [measure for measure in reading.measures if measure not in schema.names]
    if lacking:
        raise ValueError(
            f"measures are columns of the table of objects. {redact(sample.url)}/{OBJECTS} has no "
            f"{', '.join(lacking)}; it has {', '.join(schema.names)}"
        )
    optional = [name for name in ("volume_um3", "touches_border") if name in schema.names]
    wanted = ["class", "centroid_z_um", *optional, *reading.measures]
    if reading.whole_objects and "touches_border" not in optional:
        raise ValueError(
            f"whole objects are told by the column touches_border, and {redact(sample.url)}/"
            f"{OBJECTS} has none: measure it again"
        )
    return list(dict.fromkeys(wanted))


def _by_class(
    batch: pa.RecordBatch, classes: Sequence[str] | None
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the rows of each class of a batch, in the order of their names."""
    import pyarrow
    import pyarrow.compute

    names = batch.column("class").cast(pyarrow.string())
    for name in sorted(v for v in names.unique().to_pylist() if v is not None):
        if classes is None or name in classes:
            yield name, batch.filter(pyarrow.compute.equal(names, name))


def _numbers(rows: pa.RecordBatch, column: str) -> np.ndarray:
    """Return a column as float64; null is NaN."""
    import pyarrow

    values = rows.column(column)
    try:
        return np.asarray(values.cast(pyarrow.float64()).to_numpy(zero_copy_only=False), float)
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"a measure is a number. {column} holds {values.type}: choose other measures"
        ) from error


def _z_blocks(reading: Reading, sample: Sample, centroids_um: np.ndarray) -> np.ndarray:
    """Return the z-block that each centroid lies in."""
    share = (np.nan_to_num(centroids_um) - sample.start_um) / sample.extent_um[0]
    return np.clip((share * reading.z_blocks).astype(np.int64), 0, reading.z_blocks - 1)


def _whole(rows: pa.RecordBatch) -> np.ndarray:
    touches = rows.column("touches_border").to_numpy(zero_copy_only=False)
    return ~np.asarray(touches, bool)


def _add_class(total: _ClassTotal, rows: pa.RecordBatch, blocks: np.ndarray) -> None:
    n_blocks = len(total.counts)
    total.counts += np.bincount(blocks, minlength=n_blocks)
    if "touches_border" in rows.schema.names:
        total.n_border += int((~_whole(rows)).sum())
    if "volume_um3" in rows.schema.names:
        volumes = np.nan_to_num(_numbers(rows, "volume_um3"), posinf=0.0, neginf=0.0)
        total.volumes += np.bincount(blocks, weights=volumes, minlength=n_blocks)
        total.squares += float((volumes**2).sum())


def _whole_class(sample: Sample, name: str, total: _ClassTotal) -> dict[Key, Measured]:
    """Return the measures of a class as a whole. Border objects count: they are part of it."""
    size = math.prod(sample.extent_um)
    part = size / len(total.counts)
    found = {
        "objects_per_um3": Measured(
            sample.name, float(total.counts.sum() / size), block_means=total.counts / part
        ),
        BORDER_SHARE: Measured(sample.name, total.n_border / float(total.counts.sum())),
    }
    volume = float(total.volumes.sum())
    if volume > 0:
        found["volume_fraction"] = Measured(
            sample.name, volume / size, block_means=total.volumes / part
        )
        found["weighted_volume_um3"] = Measured(sample.name, total.squares / volume)
    return {(name, measure): one for measure, one in found.items()}


# ---------------------------------------------------------------------------------------------
# Density and descriptors


def _summarise_density(reading: Reading, sample: Sample) -> dict[Key, Measured]:
    """Summarise the density image, slab by slab; windows without a ratio are missing."""
    url = f"{sample.url}/{DENSITY}"
    if not read_attributes(url):
        return {}
    density = open_volume(url)
    options = density.attributes.get("provenance", {}).get("options", {})
    name = density_name(options, sample)
    if reading.classes is not None and name.split(" / ")[0] not in reading.classes:
        return {}
    depth, height, width = density.shape
    n_blocks = min(reading.z_blocks, depth)
    running = _Running(reading.kept, n_blocks)
    slab = max(1, SLAB_VOXELS // (height * width))
    for z in range(0, depth, slab):
        box = Box((z, 0, 0), (min(depth, z + slab), height, width))
        data = density.read(box).astype(np.float64)
        slices = np.arange(box.start[0], box.stop[0]) * n_blocks // depth
        running.add(data.ravel(), np.repeat(slices, height * width))
    return {(name, "density"): running.finish(sample.name)}


def density_name(options: Mapping[str, Any], sample: Sample) -> str:
    """Name a density by its classes: ``mitochondria / myofibrils``."""
    names = sample.labels.classes

    def text(values: Any) -> str:
        if isinstance(values, str):
            return values
        return " + ".join(str(names.get(int(v), v)) for v in values or [])

    return f"{text(options.get('numerator'))} / {text(options.get('denominator'))}"


def _summarise_descriptors(reading: Reading, sample: Sample) -> dict[Key, Measured]:
    """Return the descriptors that are one number."""
    table = open_table(sample.url, DESCRIPTORS)
    if table is None:
        return {}
    found: dict[Key, Measured] = {}
    columns = ("descriptor", "class", "other", "distance_um", "value", "unit")
    for batch in table.batches(columns):
        for row in batch.to_pylist():
            if row["distance_um"] is not None or row["value"] is None:
                continue
            # The share of a class is known from its objects.
            if row["descriptor"] == "class_fraction":
                continue
            if reading.classes is not None and row["class"] not in reading.classes:
                continue
            measure = str(row["descriptor"])
            if row["other"] is not None:
                measure = f"{measure} with {row['other']}"
            if row["unit"] == "1/µm":
                measure += "_per_um"
            elif row["unit"] == "µm":
                measure += "_um"
            found[str(row["class"]), measure] = Measured(sample.name, float(row["value"]))
    return found
