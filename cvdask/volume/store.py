"""The one door to volumes on disk and in object stores.

A sample is one OME-Zarr image: levels ``0, 1, 2 …`` and, below ``labels/``, label images with
levels of their own. What we write is OME-Zarr 0.5 in sharded Zarr 3; OME-Zarr 0.4 in Zarr 2 is
read as well.

1. :func:`describe` makes a :class:`Volume`, a value that opens nothing.
2. :func:`create` writes its metadata, without the part that makes it visible to readers.
3. :meth:`Volume.write` writes boxes of whole shards. Blocks never share a shard, hence no locks;
   anything else is refused.
4. :func:`publish` writes the OME metadata last: a volume is complete or it is not there.
5. :func:`open_volume` and :meth:`Volume.read` read any box of any level, :meth:`Volume.to_xarray`
   gives a lazy, named view with coordinates in µm.

Shards are encoded by ``volume.shards``; zarr-python does the rest: metadata, foreign arrays, and
reads of less than half a shard.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from cvdask.errors import DamagedData
from cvdask.volume.array_metadata import check_array_metadata
from cvdask.volume.boxes import AXES, Box, Grid, axis_name
from cvdask.volume.objects import (
    delete_object,
    normalize_url,
    object_exists,
    open_store,
    read_json,
    read_object,
    redact,
    view_object,
    view_ranges,
    view_tail,
    write_json,
    write_object,
)
from cvdask.volume.ome import image_label, multiscales, read_image_label, read_placement
from cvdask.volume.shards import ShardLayout

if TYPE_CHECKING:
    import xarray

# Of a shard that we choose the shape of: a block holds at least one, with what is made of it.
LARGEST_SHARD_BYTES = 2**28
# Digests of the shards of one z layer. Below the array but outside its chunks, so that readers of
# Zarr pass it by.
MANIFEST = ".cvdask/manifest/{layer}.xxh3"

SEGMENT = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")


# ---------------------------------------------------------------------------------------------
# Volumes: what is where


@dataclass(frozen=True)
class Level:
    """One resolution of a volume.

    Parameters
    ----------
    path : str
        Where its array lies below the sample, such as ``0`` or ``labels/classes/1``.
    shape : tuple of int
        Voxels z, y, x.
    dtype : str
        Name of the NumPy type.
    chunk_shape, shard_shape : tuple of int
        Voxels that are compressed together, and voxels that are stored as one object. Equal where
        the array is not sharded.
    voxel_size_nm : tuple of float, or None
        Spacing of the voxels; None where the file states none.
    origin_nm : tuple of float
        Position of the centre of voxel (0, 0, 0).
    leading : tuple of int
        Index along the axes before ``z`` (time, channel) of an array that has them.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...]
    voxel_size_nm: tuple[float, float, float] | None
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    leading: tuple[int, ...] = ()

    @property
    def box(self) -> Box:
        """The whole level."""
        return Box.whole(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels, uncompressed."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def shards(self) -> Grid:
        """The grid whose blocks are the shards."""
        return Grid(self.shape, self.shard_shape)


@dataclass(frozen=True)
class Volume:
    """An image or a label image of a sample: a description, cheap to hand to any worker.

    Parameters
    ----------
    url : str
        Normalised location of the sample.
    group : str
        ``""`` for the image, ``labels/<name>`` for a label image.
    levels : tuple of Level
        Finest first.
    classes : mapping of int to str
        Name of each label value, where the label image has names.
    colors : mapping of int to str
        ``#rrggbb`` of each label value.
    version : str
        OME-Zarr version of the metadata.
    attributes : mapping
        Our own metadata: ``provenance``, ``holes``, ``levels`` …
    """

    url: str
    group: str
    levels: tuple[Level, ...]
    classes: Mapping[int, str] = field(default_factory=dict)
    colors: Mapping[int, str] = field(default_factory=dict)
    version: str = "0.5"
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the label image, or of the sample's folder."""
        return (self.group or redact(self.url)).rpartition("/")[2]

    @property
    def is_labels(self) -> bool:
        """Whether this is a label image: mode instead of mean, names instead of grey values."""
        return self.group.startswith("labels/")

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels z, y, x of the finest level."""
        return self.levels[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        return np.dtype(self.levels[0].dtype)

    @property
    def voxel_size_nm(self) -> tuple[float, float, float] | None:
        """Spacing z, y, x of the finest level in nm; None where the file states none."""
        return self.levels[0].voxel_size_nm

    def label_names(self) -> list[str]:
        """List the sample's published label images."""
        return _listed_labels(self.url, _group_attributes(self.url, "labels") or {})

    def label(self, name: str) -> Volume:
        """Open a label image of this sample.

        Raises
        ------
        ValueError
            When there is none of that name.
        """
        if name not in (names := self.label_names()):
            raise ValueError(
                f"{redact(self.url)} has the label images {names or 'none'}. Received: {name!r}"
                f"{'; choose one of those' if names else ''}"
            )
        return open_volume(self.url, labels=name)

    def level(self, number: int) -> Level:
        """Return a level by number.

        Raises
        ------
        ValueError
            When the volume has no such level.
        """
        if not 0 <= number < len(self.levels):
            raise ValueError(
                f"{self.name} has levels 0 to {len(self.levels) - 1}. Received: {number}"
            )
        return self.levels[number]

    def read(self, box: Box | None = None, level: int = 0) -> np.ndarray:
        """Read a box of voxels.

        Parameters
        ----------
        box : Box, optional
            Voxels of that level; by default all of them.
        level : int
            0 is the finest.

        Returns
        -------
        array of ``box.shape``
            A buffer of the caller's own.

        Raises
        ------
        ValueError
            When the box leaves the level.
        DamagedData
            When stored bytes do not match their checksum or cannot be decoded.
        """
        description = self.level(level)
        return read_box(self.url, description, box or description.box)

    def write(self, box: Box, data: np.ndarray, level: int = 0) -> dict[str, str]:
        """Write a box made of whole shards; see :func:`write_box`."""
        return write_box(self.url, self.level(level), box, data)

    def to_xarray(self, level: int = 0) -> xarray.DataArray:
        """Return a lazy view: named axes, coordinates of voxel centres in µm, dask chunks.

        Computing it on a cluster opens the store on the workers; no handle and no credential
        travels with the graph.
        """
        import dask.array
        import xarray

        description = self.level(level)
        lazy = _LazyLevel(self.url, description)
        spacing = description.voxel_size_nm or (1.0, 1.0, 1.0)
        data = dask.array.from_array(
            lazy, chunks=description.shard_shape, asarray=False, fancy=False
        )
        coordinates = {
            axis: (
                axis,
                (description.origin_nm[i] + spacing[i] * np.arange(description.shape[i])) / 1000,
                {"units": "µm" if description.voxel_size_nm else "voxel / 1000"},
            )
            for i, axis in enumerate(AXES)
        }
        attributes: dict[str, Any] = {"voxel_size_nm": description.voxel_size_nm}
        if self.classes:
            attributes["classes"] = dict(self.classes)
        return xarray.DataArray(
            data, dims=tuple(AXES), coords=coordinates, name=self.name, attrs=attributes
        )


@dataclass(frozen=True)
class _LazyLevel:
    """What dask needs to know of a level, picklable and free of handles."""

    url: str
    level: Level

    @property
    def shape(self) -> tuple[int, ...]:
        return self.level.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.level.dtype)

    @property
    def ndim(self) -> int:
        return len(self.level.shape)

    def __getitem__(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """Read by integers and slices with positive steps: all that dask asks for."""
        start, stop, inside = [], [], []
        for part, extent in zip(key, self.shape, strict=True):
            if isinstance(part, slice):
                first, last, step = part.indices(extent)
                start.append(first)
                stop.append(max(first, last))
                inside.append(slice(None, None, step))
            else:
                start.append(int(part))
                stop.append(int(part) + 1)
                inside.append(0)  # type: ignore[arg-type]
        box = Box(tuple(start), tuple(stop))
        return read_box(self.url, self.level, box)[tuple(inside)]


def storage_shapes(
    shape: Sequence[int], itemsize: int, *, slab_bytes: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose chunk and shard shapes for a volume.

    Chunks are 64³, or as deep as a thin stack and 256 wide. Shards hold about 128 MiB, at most
    twice that, are near cubic where the volume allows and divide each axis evenly.

    Parameters
    ----------
    shape : sequence of int
        Voxels z, y, x.
    itemsize : int
        Bytes per voxel.
    slab_bytes : int, optional
        About the bytes of a slab one shard deep and a whole slice wide, for data that is read by
        whole slices. Shards become shallower to meet it; chunks too where a slab one chunk deep
        would pass four times this.

    Returns
    -------
    chunk_shape, shard_shape : tuple of int

    Examples
    --------
    >>> storage_shapes((2000, 2000, 2000), 1)
    ((64, 64, 64), (512, 512, 512))
    >>> storage_shapes((20, 768, 1024), 1)
    ((20, 256, 256), (20, 768, 1024))
    """
    shape = tuple(shape)
    wide = {64: 64, 32: 96, 16: 128, 8: 192}  # chunks stay near 64³ voxels
    depth = 64
    slice_bytes = shape[1] * shape[2] * itemsize
    if shape[0] < 64:
        chunk = (min(shape[0], 32), min(256, shape[1]), min(256, shape[2]))
    else:
        while slab_bytes is not None and depth > 8 and depth * slice_bytes > 4 * slab_bytes:
            depth //= 2
        chunk = (depth, min(wide[depth], shape[1]), min(wide[depth], shape[2]))
    budget = 2**27 // itemsize
    deepest = 512
    if slab_bytes is not None:
        deepest = max(chunk[0], min(deepest, slab_bytes // slice_bytes))
    side = round(budget ** (1 / 3))
    shard_z = _even_part(shape[0], min(deepest, side), chunk[0])
    in_plane = max(1, budget // shard_z)
    shard_x = _even_part(shape[2], max(side, math.isqrt(in_plane)), chunk[2])
    shard_y = _even_part(shape[1], max(1, in_plane // shard_x), chunk[1])
    shard = [shard_z, shard_y, shard_x]
    # Each was rounded up to chunks: of a small volume with large voxels, to twice and more.
    while math.prod(shard) * itemsize > LARGEST_SHARD_BYTES:
        axis = max(range(3), key=lambda axis: shard[axis] // chunk[axis])
        n_parts = -(-shape[axis] // (shard[axis] - chunk[axis]))
        shard[axis] = _part(shape[axis], n_parts, chunk[axis])
    return chunk, tuple(shard)


def _even_part(extent: int, largest: int, step: int) -> int:
    """Divide an axis into equal parts of at most about ``largest`` voxels, multiples of ``step``.

    >>> _even_part(4096, 1448, 64)
    1408
    """
    return _part(extent, max(1, -(-extent // max(step, largest + step - 1))), step)


def _part(extent: int, n_parts: int, step: int) -> int:
    """Divide an axis into so many equal parts, multiples of ``step``; return their length."""
    return -(-extent // (n_parts * step)) * step


def describe(
    url: str | os.PathLike[str],
    *,
    shape: Sequence[int],
    dtype: Any,
    voxel_size_nm: Sequence[float],
    labels: str | None = None,
    classes: Mapping[int, str] | None = None,
    colors: Mapping[int, str] | None = None,
    chunk_shape: Sequence[int] | None = None,
    shard_shape: Sequence[int] | None = None,
) -> Volume:
    """Describe a volume that does not exist yet. Opens and creates nothing.

    Parameters
    ----------
    url : str or path
        Where the sample lies or will lie.
    shape : sequence of int
        Voxels z, y, x.
    dtype : dtype-like
        Any integer or floating type.
    voxel_size_nm : sequence of float
        Spacing z, y, x.
    labels : str, optional
        Name of a label image; by default the sample's image itself.
    classes, colors : mapping of int, optional
        Names and ``#rrggbb`` colours of label values.
    chunk_shape, shard_shape : sequence of int, optional
        By default those of :func:`storage_shapes`.

    Raises
    ------
    ValueError
        When a shape, voxel size, type or name breaks its rule.
    """
    shape = tuple(int(v) for v in shape)
    kind = np.dtype(dtype)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"a volume needs three axes z, y, x of at least 1 voxel. Received: {shape}"
        )
    if kind.kind not in "uif" or kind.itemsize > 8:
        raise ValueError(f"voxels are integers or floating-point numbers. Received: {kind}")
    if labels is not None and kind.kind == "f":
        raise ValueError(f"label images hold integers. Received for {labels!r}: {kind}")
    if labels is not None and not SEGMENT.match(labels):
        raise ValueError(
            f"the name of a label image is made of letters, digits, '_', '-', '.' and '+'. "
            f"Received: {labels!r}"
        )
    spacing = check_voxel_size(voxel_size_nm)
    chunk, shard = storage_shapes(shape, kind.itemsize)
    chunk = tuple(chunk_shape) if chunk_shape is not None else chunk
    if shard_shape is not None:
        shard = tuple(shard_shape)
    elif chunk_shape is not None:
        shard = Box.whole(shard).align(chunk).stop
    for axis, (small, large) in enumerate(zip(chunk, shard, strict=True)):
        if small < 1 or large % small:
            raise ValueError(
                f"a shard must hold whole chunks. Received along {axis_name(axis, 3)}: "
                f"shards of {large} and chunks of {small} voxels"
            )
    group = f"labels/{labels}" if labels is not None else ""
    path = f"{group}/0".lstrip("/")
    level = Level(path, shape, kind.name, chunk, shard, spacing)
    return Volume(normalize_url(url), group, (level,), dict(classes or {}), dict(colors or {}))


def check_voxel_size(voxel_size_nm: Sequence[float] | float) -> tuple[float, float, float]:
    """Return a voxel size as three positive numbers z, y, x in nm.

    Raises
    ------
    ValueError
        When it is not one or three finite positive numbers.
    """
    sizes = [voxel_size_nm] * 3 if isinstance(voxel_size_nm, int | float) else list(voxel_size_nm)
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    if len(sizes) != 3 or not all(math.isfinite(v) and v > 0 for v in sizes):
        raise ValueError(
            f"a voxel size is one or three finite positive lengths z y x in nm. "
            f"Received: {voxel_size_nm}"
        )
    return float(sizes[0]), float(sizes[1]), float(sizes[2])


def create(volume: Volume, provenance: Mapping[str, Any]) -> None:
    """Write the metadata of a described volume, so that its shards can be written.

    The volume stays invisible to readers of OME-Zarr until :func:`publish`. What exists at the
    same place is overwritten key by key: callers look first (see ``cvdask.engine.run``).
    """
    if volume.group:
        labels = _group_attributes(volume.url, "labels")
        if labels is None:
            _write_group(volume.url, "labels", {"ome": {"version": "0.5", "labels": []}})
    own = {"state": "begun", "provenance": dict(provenance)}
    _write_group(volume.url, volume.group, {"cvdask": own})
    create_level(volume.url, volume.levels[0])


def create_level(url: str, level: Level) -> None:
    """Write the array metadata of one level; no voxels, and no mention in the OME metadata."""
    itemsize = np.dtype(level.dtype).itemsize
    labels = level.path.startswith("labels/")
    # Measured on FIB-SEM data: on uint8, bit shuffling loses (1.07 : 1 at 309 MB/s against 1.18 : 1
    # at 646 MB/s for zstd alone); wider samples gain from it. On labels zstd alone is fastest.
    compressor: Any
    if labels or itemsize == 1:
        compressor = ZstdCodec(level=3)
    else:
        compressor = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=itemsize)
    zarr.create_array(
        open_store(url),
        name=level.path,
        shape=level.shape,
        dtype=level.dtype,
        chunks=level.chunk_shape,
        shards=level.shard_shape,
        compressors=[compressor, Crc32cCodec()],
        fill_value=0,
        dimension_names=list(AXES),
        overwrite=False,
    )


def level_exists(url: str, level: Level) -> bool:
    """Tell whether a level's array was created."""
    return object_exists(url, f"{level.path}/zarr.json")


def update_attributes(
    volume: Volume, *, digests: Mapping[str, str] | None = None, **attributes: Any
) -> None:
    """Merge values into our own metadata of a volume; only the client does, one at a time.

    Parameters
    ----------
    volume : Volume
    digests : mapping of level path to sha256, optional
        Manifests of levels that are completely written, added to those recorded before.
    **attributes
        Replace entries of the same name.
    """
    everything = _group_attributes(volume.url, volume.group) or {}
    own = {**everything.get("cvdask", {}), **attributes}
    if digests:
        own["digests"] = {**own.get("digests", {}), **digests}
    _write_group(volume.url, volume.group, {**everything, "cvdask": own})


def publish(volume: Volume, **attributes: Any) -> Volume:
    """Write the OME metadata: from now on any reader sees the volume with these levels.

    Parameters
    ----------
    volume : Volume
        With all the levels to be shown.
    **attributes
        Our own metadata to store beside, such as ``holes`` or ``provenance``.

    Returns
    -------
    Volume
        With the merged attributes.
    """
    existing = _group_attributes(volume.url, volume.group) or {}
    own = {**existing.get("cvdask", {}), **attributes, "state": "complete"}
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [_describe_levels(volume)]}
    if volume.is_labels:
        ome["image-label"] = image_label(volume.classes, volume.colors)
    _write_group(volume.url, volume.group, {"ome": ome, "cvdask": own})
    if volume.is_labels:
        _register_labels(volume)
    return replace(volume, attributes=own)


def hide(volume: Volume) -> None:
    """Take a volume from its readers: the opposite of :func:`publish`, before it is deleted."""
    if _group_attributes(volume.url, volume.group) is not None or not volume.group:
        own = {"state": "begun", "provenance": {"stage": "overwrite"}}
        _write_group(volume.url, volume.group, {"cvdask": own})


def _describe_levels(volume: Volume) -> dict[str, Any]:
    prefix = f"{volume.group}/" if volume.group else ""
    datasets = []
    for level in volume.levels:
        assert level.voxel_size_nm is not None
        datasets.append((level.path.removeprefix(prefix), level.voxel_size_nm, level.origin_nm))
    return multiscales(volume.name, datasets, "mode" if volume.is_labels else "mean")


def _register_labels(volume: Volume) -> None:
    attributes = _group_attributes(volume.url, "labels") or {}
    names = _listed_labels(volume.url, attributes)
    if volume.name not in names:
        ome = {"version": "0.5", "labels": sorted([*names, volume.name])}
        _write_group(volume.url, "labels", {**attributes, "ome": ome})


def _listed_labels(url: str, attributes: Mapping[str, Any]) -> list[str]:
    """Return the names that the group of label images lists."""
    names = _ome(attributes).get("labels", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{redact(url)}/labels/zarr.json must list the names of label images. Received: "
            f"{names!r}. Restore that file"
        )
    return names


def _write_group(url: str, group: str, attributes: Mapping[str, Any]) -> None:
    key = f"{group}/zarr.json".lstrip("/")
    write_json(url, key, {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def _group_attributes(url: str, group: str) -> dict[str, Any] | None:
    """Read the attributes of a Zarr 3 or Zarr 2 group; None where there is no group."""
    prefix = f"{group}/" if group else ""
    metadata = read_json(url, f"{prefix}zarr.json")
    if metadata is not None:
        attributes = metadata.get("attributes", {})
        if not isinstance(attributes, dict):
            raise DamagedData(
                f"the attributes of {redact(url)}/{prefix}zarr.json must be a JSON object, not "
                f"{type(attributes).__name__}"
            )
        return attributes
    if read_object(url, f"{prefix}.zgroup") is not None:
        return read_json(url, f"{prefix}.zattrs") or {}
    return None


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the OME part: below ``ome`` since version 0.5, at the top before."""
    value = attributes.get("ome", attributes)
    return value if isinstance(value, Mapping) else {}


# ---------------------------------------------------------------------------------------------
# Opening


def read_attributes(url: str | os.PathLike[str], *, labels: str | None = None) -> dict[str, Any]:
    """Read our own metadata of a volume, complete or only begun; empty where there is none."""
    group = f"labels/{labels}" if labels else ""
    url = normalize_url(url)
    return _own_attributes(f"{redact(url)}/{group}", _group_attributes(url, group) or {})


def _own_attributes(where: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    own = attributes.get("cvdask", {})
    if not isinstance(own, Mapping):
        return {}
    for key in ("digests", "provenance"):
        if not isinstance(own.get(key, {}), Mapping):
            raise ValueError(
                f"the metadata of {where} is malformed: {key} must be a JSON object. "
                f"Received: {own[key]!r}"
            )
    return dict(own)


def open_volume(
    url: str | os.PathLike[str], *, labels: str | None = None, channel: int | None = None
) -> Volume:
    """Open a sample's image, or one of its label images. Reads metadata only.

    Parameters
    ----------
    url : str or path
        Local path, ``s3://``, ``gs://``, ``az://`` or ``https://`` location of an OME-Zarr image,
        version 0.4 or 0.5.
    labels : str, optional
        Name of a label image.
    channel : int, optional
        Channel of an image that has several; time and channel axes of length 1 are dropped.

    Raises
    ------
    FileNotFoundError
        When nothing lies there.
    ValueError
        When it is no OME-Zarr image, is not complete, has axes, types or codecs we do not read, or
        declares sizes that cannot be true.
    """
    url = normalize_url(url)
    group = f"labels/{labels}" if labels is not None else ""
    where = f"{redact(url)}/{group}".rstrip("/")
    attributes = _group_attributes(url, group)
    if attributes is None:
        if labels is not None:
            raise ValueError(f"{redact(url)} has no label image {labels!r}")
        if read_object(url, "zarr.json") is None and read_object(url, ".zarray") is None:
            raise FileNotFoundError(f"there is no OME-Zarr image at {where}")
    ome = _ome(attributes or {})
    images = ome.get("multiscales")
    own = _own_attributes(where, attributes or {})
    if not images:
        members = own.get("members")
        if own.get("kind") == "ensemble" and isinstance(members, list):
            raise ValueError(
                f"{where} is an ensemble of {len(members)} volumes. Give one of them, such as "
                f"{where}/{members[0] if members else '0000'}"
            )
        if own.get("state") == "begun":
            stage = own.get("provenance", {}).get("stage", "its stage")
            raise ValueError(
                f"{where} is not complete: {stage} has begun and not ended. Run the same command "
                f"again; it goes on where it was"
            )
        raise ValueError(
            f"{where} is a Zarr store but no OME-Zarr image (it has no 'multiscales'). "
            f"Convert it with: cvdask ingest {where} OUT.zarr --voxel-nm Z Y X"
        )
    try:
        multiscale = images[0]
        version = str(ome.get("version") or multiscale.get("version") or "0.4")
        if version not in ("0.4", "0.5"):
            raise ValueError(
                f"OME-Zarr 0.4 and 0.5 are read. Received: version {version} at {where}"
            )
        levels = tuple(
            _parse_level(url, group, multiscale, dataset, channel)
            for dataset in multiscale["datasets"]
        )
        label_description = ome.get("image-label") or {}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"the OME metadata of {where} is malformed: {error!r}") from error
    if not levels:
        raise ValueError(f"the OME metadata of {where} is malformed: it names no level")
    try:
        classes, colors = read_image_label(label_description)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the label names of {where} are malformed: {error!r}") from error
    return Volume(url, group, levels, classes, colors, version, own)


def _parse_level(
    url: str,
    group: str,
    multiscale: Mapping[str, Any],
    dataset: Mapping[str, Any],
    channel: int | None,
) -> Level:
    path = f"{group}/{dataset['path']}".lstrip("/")
    axes = [axis["name"] for axis in multiscale["axes"]]
    if axes[-3:] != list(AXES) or not set(axes[:-3]) <= {"t", "c"}:
        raise ValueError(
            f"axes must be z, y, x, with t and c before them at most. Received: {', '.join(axes)} "
            f"at {redact(url)}/{path}"
        )
    array = _open_array(url, path)
    if array.ndim != len(axes):
        raise ValueError(
            f"{redact(url)}/{path} has {array.ndim} axes, its metadata names {len(axes)}"
        )
    leading = []
    for name, extent in zip(axes[:-3], array.shape[:-3], strict=True):
        index = channel if name == "c" and channel is not None else 0
        if extent != 1 and not (name == "c" and channel is not None):
            remedy = "choose one with channel=…" if name == "c" else "only single time points work"
            raise ValueError(f"axis {name} of {redact(url)}/{path} has length {extent}: {remedy}")
        if not 0 <= index < extent:
            raise ValueError(
                f"axis {name} of {redact(url)}/{path} has {extent} entries. Received: {index}"
            )
        leading.append(index)
    try:
        spacing, origin = read_placement(multiscale, dataset)
    except ValueError as error:
        raise ValueError(
            f"the coordinate transformations of {redact(url)}/{path} are malformed: {error}"
        ) from error
    return Level(
        path,
        tuple(int(v) for v in array.shape[-3:]),
        array.dtype.name,
        tuple(int(v) for v in array.chunks[-3:]),
        tuple(int(v) for v in (array.shards or array.chunks)[-3:]),
        spacing,
        origin,
        tuple(leading),
    )


def _open_array(url: str, path: str) -> Any:
    """Open an array for reading, after its metadata has been checked."""
    metadata = read_json(url, f"{path}/zarr.json") or read_json(url, f"{path}/.zarray")
    if metadata is None:
        raise FileNotFoundError(f"{redact(url)}/{path} is missing: the image names it as a level")
    check_array_metadata(f"{redact(url)}/{path}", metadata)
    try:
        return zarr.open_array(open_store(url), path=path, mode="r")
    except OSError:
        raise
    except Exception as error:  # whatever zarr's parsers of metadata raise
        raise ValueError(f"{redact(url)}/{path} cannot be opened: {error}") from error


# ---------------------------------------------------------------------------------------------
# Reading and writing boxes


@lru_cache(maxsize=256)
def _array(url: str, level: Level) -> Any:
    """Open a level's array once per process.

    Keyed by the whole level: where an output was replaced by one of another shape, a worker that
    knew the old one must not write by its layout.
    """
    array = _open_array(url, level.path)
    if tuple(array.shape[-3:]) != level.shape or array.dtype.name != level.dtype:
        raise ValueError(
            f"{redact(url)}/{level.path} has changed since it was opened: {array.dtype} of shape "
            f"{array.shape}, expected {level.dtype} of shape {level.shape}. Open it again"
        )
    return array


@lru_cache(maxsize=256)
def _shard_layout(url: str, level: Level) -> ShardLayout | None:
    return ShardLayout.of(_array(url, level))


def read_box(url: str, level: Level, box: Box) -> np.ndarray:
    """Read a box of a level; see :meth:`Volume.read`."""
    if not level.box.contains(box):
        raise ValueError(f"a box must lie inside the level, {level.box}. Received: {box}")
    layout = _shard_layout(url, level)
    if layout is None or level.leading:
        return _read_by_zarr(url, level, box)
    out = np.zeros(box.shape, layout.dtype.newbyteorder("="))
    for shard in level.shards.touching(box):
        part = shard.write.intersect(box)
        origin = tuple(-v for v in shard.write.start)
        target = out[part.within(box)]
        key = f"{level.path}/{shard_key(level, shard.write)}"
        try:
            if part == shard.write:
                data = view_object(url, key)
                if data is not None:
                    layout.decode(data, part.shift(origin), target)
                continue
            index = view_tail(url, key, layout.index_bytes)
            if index is not None:
                read = partial(view_ranges, url, key)
                layout.decode_parts(index, read, part.shift(origin), target)
        except DamagedData as error:
            raise DamagedData(f"{redact(url)}/{key}: {error}") from error
    return out


def _read_by_zarr(url: str, level: Level, box: Box) -> np.ndarray:
    array = _array(url, level)
    try:
        # Arrays of others may be stored big-endian; what is read is in the order of this machine.
        return np.asarray(array[(*level.leading, *box.slices)], level.dtype)
    except (ValueError, RuntimeError, SystemError) as error:
        # As zarr and its codecs report damage.
        raise DamagedData(f"{redact(url)}/{level.path}, box {box}: {error}") from error


def shard_key(level: Level, box: Box) -> str:
    """Name the object that stores the shard at the lower corner of ``box``."""
    position = (a // s for a, s in zip(box.start, level.shard_shape, strict=True))
    return "/".join(("c", *map(str, position)))


def write_box(url: str, level: Level, box: Box, data: np.ndarray) -> dict[str, str]:
    """Write a box that is made of whole shards.

    Any number of threads, processes and machines may write different boxes at the same time, in
    any order, without locks: two boxes made of whole shards never share a stored object.

    Parameters
    ----------
    url : str
        Normalised location of the sample.
    level : Level
        A level that :func:`create` or :func:`create_level` made.
    box : Box
        Starts at multiples of the shard shape; stops at multiples or at the end of the level.
    data : array of ``box.shape``
        Of the level's type.

    Returns
    -------
    dict of str to str
        Digest of the voxels of each shard, by its key: see :func:`digest_shard`.

    Raises
    ------
    ValueError
        When the box is not made of whole shards, or the data has another shape or type.
    """
    check_aligned(level, box)
    if data.shape != box.shape or data.dtype != np.dtype(level.dtype):
        raise ValueError(
            f"box {box} of {level.path} takes {level.dtype} of shape {box.shape}. "
            f"Received: {data.dtype} of shape {data.shape}"
        )
    layout = _shard_layout(url, level)
    if layout is None:
        raise ValueError(
            f"{redact(url)}/{level.path} was not created by cvdask; copy it with cvdask ingest"
        )
    digests = {}
    for shard in level.shards.touching(box):
        digest = xxhash.xxh3_64()
        encoded = layout.encode(data[shard.write.within(box)], digest)
        key = shard_key(level, shard.write)
        if encoded is None:
            delete_object(url, f"{level.path}/{key}")
        else:
            write_object(url, f"{level.path}/{key}", encoded)
        digests[key] = digest.hexdigest()
    return digests


def check_aligned(level: Level, box: Box) -> None:
    """Refuse a box that is not made of whole shards of a level.

    Raises
    ------
    ValueError
        With axis, bounds and shard extent.
    """
    if not level.box.contains(box):
        raise ValueError(f"a box must lie inside the level, {level.box}. Received: {box}")
    bounds = zip(box.start, box.stop, level.shard_shape, level.shape, strict=True)
    for axis, (start, stop, shard, extent) in enumerate(bounds):
        if start % shard or (stop % shard and stop != extent):
            raise ValueError(
                f"a write must cover whole shards, or two writers could each lose part of the "
                f"other's voxels. Received along {axis_name(axis, 3)}: {start}:{stop}, shards of "
                f"{level.path} hold {shard} voxels there (the level ends at {extent}). Choose "
                f"blocks that are multiples of {level.shard_shape}"
            )


def digest_shard(level: Level, data: np.ndarray) -> str:
    """Digest the voxels of one shard: xxh3-64 over its chunks in z, y, x order.

    Voxels, not stored bytes: the digest is the same whatever the codec and its version.
    """
    digest = xxhash.xxh3_64()
    for chunk in Grid(data.shape, level.chunk_shape):
        digest.update(np.ascontiguousarray(data[chunk.write.slices]).data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# Manifests: what was written, so that it can be checked


def write_manifest(url: str, level: Level, layer: int, digests: Mapping[str, str]) -> bytes:
    """Store the digests of the shards of one z layer, a line each; return the bytes written.

    The lines are sorted, so a manifest does not depend on who wrote which block when.
    """
    data = "".join(f"{digest}  {key}\n" for key, digest in sorted(digests.items())).encode()
    write_object(url, f"{level.path}/{MANIFEST.format(layer=layer)}", data)
    return data


def read_manifest(url: str, level: Level, layer: int) -> dict[str, str]:
    """Read the digests of the shards of one z layer by key; empty where none were recorded."""
    data = read_object(url, f"{level.path}/{MANIFEST.format(layer=layer)}") or b""
    rows = (line.split("  ", 1) for line in data.decode().splitlines())
    return {key: digest for digest, key in rows}


def volume_digest(volume: Volume) -> str:
    """Identify the content of a volume for provenance.

    The sha256 of the finest level's manifests where it has them (recorded when it was published);
    else of its metadata, which notices another shape or codec but not other voxels.
    """
    path = volume.levels[0].path
    digest = volume.attributes.get("digests", {}).get(path)
    if digest is None:
        metadata = [read_object(volume.url, f"{path}/{name}") for name in ("zarr.json", ".zarray")]
        digest = hashlib.sha256(b"".join(data or b"" for data in metadata)).hexdigest()
    return f"sha256:{digest}"
