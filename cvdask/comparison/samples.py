"""Which volumes are compared, in which groups, and can they be?

1. :func:`open_groups` opens every input: a sample stands for itself, an ensemble for its members.
   Groups are named on the way (``control=A,B``); an input that is in none is a group of its own.
2. It looks at what all of them have in common: classes by name, voxel sizes, tables. What cannot be
   compared is refused with the reason; what can, but may surprise, becomes a notice.
3. :func:`open_table` finds a parquet table below a sample, one file or a folder of parts, on a disk
   or in an object store, and reads it by batches of a few columns.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvdask.errors import DamagedData
from cvdask.volume.boxes import Box
from cvdask.volume.ensemble import is_ensemble, open_ensemble
from cvdask.volume.objects import (
    is_remote,
    list_objects,
    normalize_url,
    object_exists,
    read_json,
    read_object,
    redact,
)
from cvdask.volume.parquet import read_table, table_metadata
from cvdask.volume.store import Volume, open_volume, volume_digest

if TYPE_CHECKING:
    import pyarrow as pa

OBJECTS = "tables/objects.parquet"
DESCRIPTORS = "tables/descriptors.parquet"
DENSITY = "tables/density.zarr"
# Label image of classes, where nothing else is said.
CLASSES = "classes"

# What a stage writes last into a folder of parts.
COMPLETE = "_cvdask.json"
# What an object must have to be compared: which class it is of, and where it lies.
NEEDED = ("class", "centroid_z_um")
# Voxels this many times larger along an axis show other shapes, whatever the unit.
LARGEST_RATIO = 2.0
# End of a parquet file whose digest stands for the file: counts, extremes and sizes of its parts.
FOOTER_BYTES = 2**16


@dataclass(frozen=True)
class Sample:
    """One volume of a comparison.

    Parameters
    ----------
    name : str
        As it is shown: the folder's name, ``ensemble/0003`` for a member.
    group : str
    labels : Volume
        Its label image of classes.
    region : Box, optional
        Voxels whose objects were measured; by default all.
    """

    name: str
    group: str
    labels: Volume
    region: Box | None = None

    @property
    def url(self) -> str:
        """Location of the sample."""
        return self.labels.url

    @property
    def spacing_um(self) -> tuple[float, float, float]:
        """Size of a voxel z, y, x."""
        assert self.labels.voxel_size_nm is not None  # open_groups has looked
        z, y, x = (s / 1000 for s in self.labels.voxel_size_nm)
        return z, y, x

    @property
    def extent_um(self) -> tuple[float, float, float]:
        """Size z, y, x of what was measured."""
        box = self.region or self.labels.levels[0].box
        z, y, x = (n * s for n, s in zip(box.shape, self.spacing_um, strict=True))
        return z, y, x

    @property
    def start_um(self) -> float:
        """Where its first measured slice begins along z, from the centre of the first voxel."""
        first = self.region.start[0] if self.region is not None else 0
        return (first - 0.5) * self.spacing_um[0]


@dataclass(frozen=True)
class Table:
    """A parquet table below a sample: one file, or a folder of parts.

    Parameters
    ----------
    url : str
        Location of the sample.
    keys : tuple of str
        The files, in order.
    """

    url: str
    keys: tuple[str, ...]

    def schema(self) -> pa.Schema:
        """Return columns, types and metadata, those of the first file."""
        return self._dataset(self.keys[0]).schema

    def metadata(self) -> dict[str, Any]:
        """Return what cvdask has written of the table; empty where it has not."""
        return table_metadata(self.schema())

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield rows of some columns, in order, a batch at a time.

        Raises
        ------
        DamagedData
            When a file is no parquet or ends early.
        """
        import pyarrow

        for key in self.keys:
            try:
                # One after the other: the order of sums must not depend on threads.
                yield from self._dataset(key).to_batches(
                    columns=list(columns), use_threads=False, batch_readahead=1
                )
            except (pyarrow.ArrowException, OSError) as error:
                raise DamagedData(f"{redact(self.url)}/{key} is no table: {error}") from error

    def digest(self) -> str:
        """Identify the content: sha256 over names, sizes and footers of the files."""
        digest = hashlib.sha256()
        for key in self.keys:
            size, footer = self._footer(key)
            digest.update(f"{key}\n{size}\n".encode())
            digest.update(footer)
        return f"sha256:{digest.hexdigest()}"

    def _footer(self, key: str) -> tuple[int, bytes]:
        if is_remote(self.url):
            data = read_object(self.url, key) or b""
            return len(data), data[-FOOTER_BYTES:]
        with (Path(self.url) / key).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - FOOTER_BYTES))
            return size, file.read()

    def _dataset(self, key: str) -> Any:
        import pyarrow
        import pyarrow.dataset as dataset

        try:
            if is_remote(self.url):
                return dataset.dataset(read_table(self.url, key))
            checked = dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
            kind = dataset.ParquetFileFormat(default_fragment_scan_options=checked)
            # A folder may be parted by class, whose name then stands in the path.
            return dataset.dataset(Path(self.url) / key, format=kind, partitioning="hive")
        except (pyarrow.ArrowException, OSError) as error:
            raise DamagedData(f"{redact(self.url)}/{key} is no table: {error}") from error


def open_table(url: str, name: str) -> Table | None:
    """Find a table below a sample; None where there is none.

    Parameters
    ----------
    url : str
        Normalised location of the sample.
    name : str
        Such as ``tables/objects.parquet``: a file, or a folder of ``.parquet`` files.

    Raises
    ------
    ValueError
        When its stage has begun and not ended.
    DamagedData
        When parts of it are gone.
    """
    if object_exists(url, name):
        return Table(url, (name,))
    if not is_remote(url) and not (Path(url) / name).is_dir():
        return None
    keys = sorted(list_objects(url, f"{name}/"))
    table = Table(url, tuple(key for key in keys if key.endswith(".parquet")))
    if not table.keys:
        return None
    # What cvdask writes part by part is complete when it says so; others' folders are as they are.
    if table.metadata() and f"{name}/{COMPLETE}" not in keys:
        raise ValueError(
            f"{redact(url)}/{name} is not complete: its stage has begun and not ended. Run the "
            f"same command again; it goes on where it was"
        )
    if f"{name}/{COMPLETE}" in keys:
        n_parts = (read_json(url, f"{name}/{COMPLETE}") or {}).get("n_parts", len(table.keys))
        if n_parts != len(table.keys):
            raise DamagedData(
                f"{redact(url)}/{name} had {n_parts} parts, and has {len(table.keys)}. Make it "
                f"again with --overwrite"
            )
    return table


# ---------------------------------------------------------------------------------------------
# Groups


def open_groups(
    inputs: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None,
    labels: str | Mapping[str, str],
) -> tuple[list[Sample], list[str]]:
    """Open all inputs, put them into groups and see whether they can be compared.

    Parameters
    ----------
    inputs : sequence of str
        Samples and ensembles, each once. Those that are in no group are groups of their own.
    groups : mapping of str to sequence of str, optional
        Samples and ensembles by the name of their group: locations, or names of inputs.
    labels : str, or mapping of str to str
        Label image of classes; by group where they differ.

    Returns
    -------
    samples : list of Sample
        Groups one after the other, in the order in which they are named.
    notices : list of str
        What differs between them.

    Raises
    ------
    ValueError
        When there are fewer than two volumes, one is named twice, has no objects table or no voxel
        size, or they share no class.
    """
    placed = _place(inputs, groups or {})
    shown = _short_names(list(placed))
    in_group = {url: group or shown[url] for url, group in placed.items()}
    by_group = {
        group: labels if isinstance(labels, str) else labels.get(group, CLASSES)
        for group in in_group.values()
    }
    if not isinstance(labels, str) and not set(labels) <= set(by_group):
        raise ValueError(
            f"label images are given by group. There are {', '.join(by_group)}. Received: "
            f"{', '.join(labels)}"
        )
    samples = [
        sample
        for url, group in in_group.items()
        for sample in _open_input(url, shown[url], group, by_group[group])
    ]
    if len(samples) < 2:
        raise ValueError(
            f"at least two volumes are compared. Received: {len(samples)}"
            + (f", {samples[0].name}" if samples else "")
        )
    # A group that comes in parts is put together where it came first.
    order = list(dict.fromkeys(sample.group for sample in samples))
    samples.sort(key=lambda sample: order.index(sample.group))
    return samples, [
        *_check_voxels(samples),
        *_check_classes(samples),
        *_check_digests(samples),
    ]


def _place(inputs: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """Return the group of each location, in order; None for a group of its own."""
    urls = [normalize_url(text) for text in inputs]
    by_name = {redact(url).rpartition("/")[2].removesuffix(".zarr"): url for url in urls}
    placed: dict[str, str | None] = {}
    for group, members in groups.items():
        if not group or not members:
            raise ValueError(
                f"a group has a name and members: control=A,B. Received: {group}={members}"
            )
        for text in members:
            url = normalize_url(text)
            url = url if url in urls else by_name.get(text.removesuffix(".zarr"), url)
            if url in placed:
                raise ValueError(
                    f"a volume is in one group, once. {redact(url)} is named for "
                    f"{placed[url]!r} and {group!r}"
                )
            placed[url] = group
    for url in urls:
        if urls.count(url) > 1:
            raise ValueError(f"a volume is compared with others. {redact(url)} is given twice")
        placed.setdefault(url, None)
    return placed


def _short_names(urls: Sequence[str]) -> dict[str, str]:
    """Name each location by its last part, and by more of it where two would be the same.

    >>> _short_names(["/a/cell.zarr", "/b/cell.zarr", "/c/heart.zarr"])
    {'/a/cell.zarr': 'a/cell', '/b/cell.zarr': 'b/cell', '/c/heart.zarr': 'heart'}
    """
    parts = {url: redact(url).removesuffix(".zarr").strip("/").split("/") for url in urls}
    names = {}
    for url in urls:
        depth = 1
        while depth < len(parts[url]) and any(
            parts[other][-depth:] == parts[url][-depth:] for other in urls if other != url
        ):
            depth += 1
        names[url] = "/".join(parts[url][-depth:])
    return names


def _open_input(url: str, name: str, group: str, labels: str) -> Iterator[Sample]:
    if is_ensemble(url):
        ensemble = open_ensemble(url)
        for number, member in enumerate(ensemble.members):
            yield _open_sample(ensemble.member_url(number), f"{name}/{member}", group, labels)
    else:
        yield _open_sample(url, name, group, labels)


def _open_sample(url: str, name: str, group: str, labels: str) -> Sample:
    classes = open_volume(url).label(labels)
    if classes.voxel_size_nm is None:
        raise ValueError(
            f"volumes are compared in µm, and {labels!r} of {redact(url)} states no voxel size. "
            f"Ingest it again with --voxel-nm Z Y X"
        )
    table = open_table(classes.url, OBJECTS)
    if table is None:
        raise ValueError(
            f"{redact(url)} has no table of objects. Make it with: cvdask measure {redact(url)} "
            f"--labels {labels}"
        )
    columns = set(table.schema().names)
    lacking = [column for column in NEEDED if column not in columns]
    if lacking:
        raise ValueError(
            f"a table of objects has the columns {', '.join(NEEDED)}, with lengths in µm. "
            f"{redact(url)}/{OBJECTS} lacks {', '.join(lacking)}: measure it again"
        )
    return Sample(name, group, classes, _measured_box(table, classes, labels))


def _measured_box(table: Table, classes: Volume, labels: str) -> Box | None:
    """Return the voxels whose objects were measured, where the table says so."""
    options = table.metadata().get("provenance", {}).get("options", {})
    measured = options.get("labels", labels)
    if measured != labels:
        raise ValueError(
            f"objects were measured in the label image {measured!r} of {redact(table.url)}. "
            f"Received: labels {labels!r}. Give --labels {measured}, or measure again"
        )
    box = options.get("box")
    return Box.parse(box, classes.shape) if isinstance(box, str) else None


def _check_digests(samples: Sequence[Sample]) -> list[str]:
    """Say whose classes have changed since their objects were measured."""
    stale = []
    for sample in samples:
        table = open_table(sample.url, OBJECTS)
        inputs = table.metadata().get("provenance", {}).get("inputs", []) if table else []
        digests = [one.get("digest") for one in inputs if one.get("volume") == sample.labels.group]
        if digests and volume_digest(sample.labels) not in digests:
            stale.append(sample.name)
    if not stale:
        return []
    return [
        f"classes have changed since their objects were measured: {', '.join(stale)}. Measure "
        f"again, with --overwrite"
    ]


def _check_voxels(samples: Sequence[Sample]) -> list[str]:
    """Say where voxels differ in size."""
    sizes: dict[tuple[float, ...], str] = {}
    for sample in samples:
        size = tuple(round(s, 3) for s in sample.labels.voxel_size_nm or ())
        sizes.setdefault(size, sample.name)
    if len(sizes) == 1:
        return []
    listed = ", ".join(
        f"{' × '.join(f'{s:g}' for s in size)} nm ({name})"
        for size, name in list(sizes.items())[:4]
    )
    ratio = max(max(axis) / min(axis) for axis in zip(*sizes, strict=True))
    notice = f"voxels differ: {listed}. All is compared in µm"
    if ratio >= LARGEST_RATIO:
        notice += (
            f", but voxels {ratio:.2g} times as large show fewer small objects and smoother "
            f"surfaces, so that differences may come from the voxels"
        )
    return [notice]


def _check_classes(samples: Sequence[Sample]) -> list[str]:
    """Say which classes some have and others lack; refuse where they share none."""
    named = {s.name: {n for v, n in s.labels.classes.items() if v} for s in samples}
    named = {name: classes for name, classes in named.items() if classes}
    if not named:
        return []
    shared = set.intersection(*named.values())
    if not shared:
        first, second = list(named.items())[:2]
        raise ValueError(
            f"classes are compared by name, and these have none in common. Received: "
            f"{first[0]} with {sorted(first[1])}, {second[0]} with {sorted(second[1])}"
        )
    return [
        f"the class {name} is in {', '.join(s for s, c in named.items() if name in c)} only, and "
        f"is not compared"
        for name in sorted(set.union(*named.values()) - shared)
    ]
