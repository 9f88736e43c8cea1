"""How is an array inside an HDF5 file, a zarr hierarchy or an N5 container read?

1. The array is found: the one that is named, the only one there is, or level 0 of an OME-Zarr
   image. Several candidates are listed and none is guessed.
2. Its axes are matched to z, y, x by a :class:`View`: axes of one voxel are dropped, of several
   channels one is chosen.
3. A box becomes one index of the array. Where that fails, each slice is tried alone, so that a
   corrupt chunk costs its own slices only.

Files are not trusted: links that lead out of an HDF5 file are not followed, external and virtual
storage and pickled chunks are refused, and so are chunks too large to decode.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cvdask.volume.array_metadata import check_array_metadata
from cvdask.volume.boxes import Box
from cvdask.volume.sources.ifd import chosen_channel
from cvdask.volume.sources.source import (
    FORMATS_HINT,
    MAX_SEGMENT_BYTES,
    Source,
    SourceError,
    checked_voxel_size,
    damage_reason,
    demand_sizes,
    demand_unchanged,
    file_fingerprint,
    fingerprint,
    native_dtype,
    open_bytes,
    unit_nm,
)

_N_CANDIDATES_SHOWN = 20


@dataclass(frozen=True)
class View:
    """Which axes of an array are z, y, x, and what is taken of the others.

    Parameters
    ----------
    places : tuple of (int or None)
        Axis of the array that is z, y, x; None for the z of a single slice.
    fixed : tuple of (int, int)
        Axis and index of every other axis.
    n_axes : int
        Of the array.
    """

    places: tuple[int | None, int, int]
    fixed: tuple[tuple[int, int], ...]
    n_axes: int

    def extents(self, values: Sequence[int]) -> tuple[int, int, int]:
        """Pick what belongs to z, y, x from one value per axis, 1 for a z that is not there."""
        z, y, x = (1 if place is None else int(values[place]) for place in self.places)
        return z, y, x

    def key(self, box: Box) -> tuple[int | slice, ...]:
        """Return the index of a box in the array."""
        key: list[int | slice] = [0] * self.n_axes
        for axis, index in self.fixed:
            key[axis] = index
        for place, part in zip(self.places, box.slices, strict=True):
            if place is not None:
                key[place] = part
        return tuple(key)

    def arrange(self, values: npt.NDArray) -> npt.NDArray:
        """Bring what :meth:`key` selects into the order z, y, x."""
        present = [place for place in self.places if place is not None]
        ranks = [sorted(present).index(place) for place in present]
        arranged = values.transpose(ranks)
        return arranged if len(present) == 3 else arranged[np.newaxis]


def view_axes(
    shape: Sequence[int], names: Sequence[str] | None, channel: int | None, where: str
) -> View:
    """Match the axes of an array to z, y, x.

    Parameters
    ----------
    shape : sequence of int
        Of the array.
    names : sequence of str or None
        Names of its axes; None when the file does not say. Then the last three are z, y, x, and a
        fourth before them is the channel if one is chosen.
    channel : int or None
        Which channel is read.
    where : str
        For errors.

    Raises
    ------
    SourceError
        When y or x is missing, a time axis has several points, or channels are not chosen.

    Examples
    --------
    >>> view_axes((1, 2, 5, 6, 7), ("t", "c", "z", "y", "x"), 1, "a.zarr").fixed
    ((0, 0), (1, 1))
    """
    shape = tuple(int(v) for v in shape)
    if names is None:
        names = ["" for _ in shape[:-3]] + list("zyx"[-min(3, len(shape)) :])
        several = [axis for axis, extent in enumerate(shape[:-3]) if extent > 1]
        if len(several) == 1 and channel is not None:
            names[several[0]] = "c"
    names = [name.lower() for name in names]
    if len(names) != len(shape) or names.count("y") != 1 or names.count("x") != 1:
        raise SourceError(
            f"{where}: a volume needs axes z, y, x. Received: shape {shape}, axes {tuple(names)}. "
            "Choose another array with dataset="
        )
    fixed, n_channels = [], 1
    for axis, (name, extent) in enumerate(zip(names, shape, strict=True)):
        if name in ("z", "y", "x"):
            continue
        if name == "c":
            n_channels = extent
            fixed.append((axis, chosen_channel(extent, channel, where)))
        elif extent == 1:
            fixed.append((axis, 0))
        else:
            advice = (
                "If it is the channel, choose one, for example channel=0"
                if not name
                else ("Export one point of it")
            )
            raise SourceError(
                f"{where}: a source has the axes z, y, x. Received: shape {shape} with axis {axis} "
                f"({name or 'unnamed'}) of {extent}. {advice}"
            )
    chosen_channel(n_channels, channel, where)
    z = names.index("z") if "z" in names else None
    return View((z, names.index("y"), names.index("x")), tuple(fixed), len(shape))


def _read_view(
    fetch: Callable[[tuple[int | slice, ...]], npt.NDArray],
    view: View,
    box: Box,
    out: npt.NDArray,
    reasons: dict[int, str],
) -> None:
    """Read a box at one go, or slice by slice where that fails."""
    wanted = [z for z in range(box.start[0], box.stop[0]) if z not in reasons]
    if not wanted:
        return
    try:
        out[...] = view.arrange(fetch(view.key(box)))
        return
    except Exception as error:
        reason = damage_reason(error)
    if box.shape[0] == 1:
        reasons[box.start[0]] = reason
        return
    for z in wanted:
        one = Box((z, *box.start[1:]), (z + 1, *box.stop[1:]))
        _read_view(fetch, view, one, out[z - box.start[0] : z - box.start[0] + 1], reasons)


def _describe(
    kind: str,
    path: str,
    dataset: str,
    view: View,
    shape: Sequence[int],
    chunks: Sequence[int] | None,
    dtype: np.dtype,
    channel: int | None,
    voxel_size_nm: tuple[float, float, float] | None,
    files: tuple[str, int],
) -> Source:
    """Check what the three formats share and make a source of it."""
    where = f"{path}, array {dataset!r}"
    name = native_dtype(dtype, where)
    demand_sizes(shape, dtype.itemsize, where)
    if chunks is not None and math.prod(chunks) * dtype.itemsize > MAX_SEGMENT_BYTES:
        raise SourceError(
            f"{where}: a chunk must not exceed {MAX_SEGMENT_BYTES} bytes, it is decoded at once. "
            f"Received: chunks of {tuple(chunks)} {dtype} voxels. Rewrite it with smaller chunks"
        )
    extents = view.extents(shape)
    cut = extents if chunks is None else view.extents(chunks)
    chunk_shape = (1, 1, extents[2]) if chunks is None else cut
    chunk_shape = (
        min(chunk_shape[0], extents[0]),
        min(chunk_shape[1], extents[1]),
        min(chunk_shape[2], extents[2]),
    )
    return Source(
        kind=kind,
        path=path,
        shape=extents,
        dtype=name,
        dataset=dataset,
        channel=channel,
        voxel_size_nm=voxel_size_nm,
        first_number=None,
        missing=(),
        damaged=(),
        fingerprint=files[0],
        row_access=4 * chunk_shape[1] <= extents[1],
        stored_bytes=files[1],
        chunk_shape=chunk_shape,
    )


def _the_one(found: Sequence[tuple[str, Sequence[int]]], where: str) -> str:
    """Return the path of the only candidate.

    Raises
    ------
    SourceError
        When there is none, or several; they are listed with their shapes.
    """
    volumes = [(name, shape) for name, shape in found if len(shape) >= 3] or [
        (name, shape) for name, shape in found if len(shape) == 2
    ]
    if len(volumes) == 1:
        return volumes[0][0]
    if not volumes:
        raise SourceError(f"{where}: a source needs an array of numbers with 2 or more axes: none")
    listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in volumes[:_N_CANDIDATES_SHOWN])
    more = len(volumes) - _N_CANDIDATES_SHOWN
    raise SourceError(
        f"{where}: one array must be chosen with dataset=. Received: none, and {len(volumes)} "
        f"candidates: {listed}{f' and {more} more' if more > 0 else ''}"
    )


def _clean(dataset: str, where: str) -> str:
    """Return a path inside a container without its outer slashes."""
    parts = [part for part in dataset.split("/") if part]
    if ".." in parts or "." in parts:
        raise SourceError(
            f"{where}: dataset must be a path inside the container. Received: {dataset!r}"
        )
    return "/".join(parts)


@contextmanager
def _refusing(path: str, kind: str) -> Iterator[None]:
    """Refuse what a parser of metadata stumbles over: it raises whatever a corrupt value leads to.

    Failures of the machine are left as they are.
    """
    try:
        yield
    except (SourceError, OSError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(
            f"{path}: the {kind} metadata cannot be read: {type(error).__name__}: {error}. Copy it "
            "again, or choose another array with dataset="
        ) from error


def _tree_files(path: str) -> tuple[str, int]:
    """Return fingerprint and bytes of all files below a folder."""
    total = 0

    def walk() -> Iterator[tuple[str, int, int]]:
        nonlocal total
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                status = os.stat(os.path.join(folder, name))
                total += status.st_size
                relative = os.path.relpath(os.path.join(folder, name), path)
                yield relative, status.st_size, status.st_mtime_ns

    return fingerprint(walk()), total


# HDF5


def examine_hdf5(path: str, dataset: str | None, channel: int | None) -> Source:
    """Describe a dataset of an HDF5 file.

    Raises
    ------
    SourceError
        As :func:`cvdask.volume.sources.examine`.
    """
    try:
        return _describe_hdf5(path, dataset, channel)
    except SourceError:
        raise
    except (RuntimeError, KeyError, ValueError, TypeError, OSError) as error:
        # h5py meets corrupt structures wherever it first needs them.
        raise SourceError(
            f"{path}: the HDF5 file cannot be read: {type(error).__name__}: {error}. The file is "
            "corrupt; copy it again"
        ) from error


def _describe_hdf5(path: str, dataset: str | None, channel: int | None) -> Source:
    with open_bytes(path) as file, _open_hdf5(path) as opened:
        name = _clean(dataset, path) if dataset else _the_one(_hdf5_volumes(opened), path)
        found = _hdf5_dataset(opened, name, path)
        where = f"{path}, array {name!r}"
        _refuse_foreign_storage(found, where)
        shape = found.shape
        if len(shape) < 2:
            raise SourceError(f"{where}: a volume needs 2 or more axes. Received: shape {shape}")
        view = view_axes(shape, None, channel, where)
        return _describe(
            "hdf5",
            path,
            name,
            view,
            shape,
            found.chunks,
            found.dtype,
            channel,
            _hdf5_voxel_size(found),
            (file_fingerprint(path, file), file.size),
        )


def read_hdf5(source: Source, box: Box, out: npt.NDArray, reasons: dict[int, str]) -> None:
    """Fill ``out`` with a box of the stack; as :func:`cvdask.volume.sources.tiff.read_tiff`.

    The HDF5 library reads one thing at a time per process: threads are right, not faster.
    """
    with open_bytes(source.path) as file, _open_hdf5(source.path) as opened:
        demand_unchanged(source, file_fingerprint(source.path, file))
        found = _hdf5_dataset(opened, source.dataset or "", source.path)
        view = view_axes(found.shape, None, source.channel, source.path)
        _read_view(lambda key: found[key], view, box, out, reasons)


@contextmanager
def _open_hdf5(path: str) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise SourceError(f"{path}: HDF5 needs the package h5py: {FORMATS_HINT}") from error
    try:
        opened = h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path}: the HDF5 file cannot be opened: {error}") from error
    with opened:
        yield opened


def _hdf5_volumes(opened: Any) -> list[tuple[str, tuple[int, ...]]]:
    """List the arrays of numbers; soft and external links are not followed."""
    import h5py

    found: list[tuple[str, tuple[int, ...]]] = []

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "buifc" and node.ndim >= 2:
            found.append((name, node.shape))

    opened.visititems(visit)
    return found


def _hdf5_dataset(opened: Any, name: str, where: str) -> Any:
    """Return a dataset by its path, of which no part may be a soft or external link."""
    import h5py

    node = opened
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            listed = ", ".join(found for found, _ in _hdf5_volumes(opened)[:_N_CANDIDATES_SHOWN])
            raise SourceError(
                f"{where}: dataset must be in the file. Received: {name!r}; there are: {listed}"
            )
        if not isinstance(link, h5py.HardLink):
            target = f"{getattr(link, 'filename', '')}:{link.path}".lstrip(":")
            raise SourceError(
                f"{where}: links out of a file are not followed. Received: {name!r}, which leads "
                f"to {target!r}. Give the path, or the file, that it leads to"
            )
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise SourceError(f"{where}: dataset must be an array. Received: the group {name!r}")
    return node


def _refuse_foreign_storage(found: Any, where: str) -> None:
    if found.external or found.is_virtual:
        kind = "external" if found.external else "virtual"
        raise SourceError(
            f"{where}: voxels must lie in the file itself. Received: {kind} storage, which names "
            "other files. Copy the dataset into one file, for example with h5repack"
        )


def _hdf5_voxel_size(found: Any) -> tuple[float, float, float] | None:
    """Read ``element_size_um`` (z, y, x), which Fiji's and ilastik's writers set."""
    try:
        sizes = np.asarray(found.attrs["element_size_um"], np.float64).ravel().tolist()
    except (KeyError, ValueError, TypeError, OSError):
        return None
    return checked_voxel_size(sizes, 1000.0)


# zarr


def examine_zarr(path: str, dataset: str | None, channel: int | None) -> Source:
    """Describe an array of a zarr hierarchy, v2 or v3; level 0 of an OME-Zarr image.

    Raises
    ------
    SourceError
        As :func:`cvdask.volume.sources.examine`.
    """
    with _refusing(path, "zarr"):
        name = _zarr_array_name(path, _clean(dataset or "", path))
        array, view, voxel_size = _open_zarr(path, name, channel)
        return _describe(
            "zarr",
            path,
            name,
            view,
            array.shape,
            array.chunks,
            np.dtype(array.dtype),
            channel,
            voxel_size,
            _tree_files(os.path.join(path, name)),
        )


def read_zarr(source: Source, box: Box, out: npt.NDArray, reasons: dict[int, str]) -> None:
    """Fill ``out`` with a box of the stack; as :func:`cvdask.volume.sources.tiff.read_tiff`.

    That the files are still those examined is not checked: there may be millions, and zarr finds
    each by name and checks its size.
    """
    array, view, _ = _known_zarr(
        source.path, source.dataset or "", source.channel, source.fingerprint
    )
    _read_view(lambda key: np.asarray(array[key]), view, box, out, reasons)


@lru_cache(maxsize=8)
def _known_zarr(
    path: str, name: str, channel: int | None, _fingerprint: str
) -> tuple[Any, View, tuple[float, float, float] | None]:
    return _open_zarr(path, name, channel)


def _zarr_node(path: str, name: str) -> Any:
    import zarr

    try:
        return zarr.open(os.path.join(path, name), mode="r")
    except Exception as error:
        raise SourceError(
            f"{path}: the zarr array or group {name or '/'!r} cannot be opened: "
            f"{type(error).__name__}: {error}"
        ) from error


def _zarr_array_name(path: str, name: str) -> str:
    """Return the path of the array that ``name`` stands for."""
    import zarr

    node = _zarr_node(path, name)
    if isinstance(node, zarr.Array):
        return name
    image = _multiscales(node.attrs.asdict())
    if image is not None:
        first = image["datasets"][0]
        return _clean(f"{name}/{first['path']}", path)
    found = [
        (_clean(f"{name}/{key}", path), member.shape)
        for key, member in sorted(node.members(max_depth=4))
        if isinstance(member, zarr.Array)
    ]
    return _the_one(found, path)


def _open_zarr(
    path: str, name: str, channel: int | None
) -> tuple[Any, View, tuple[float, float, float] | None]:
    """Open an array and find out which of its axes are z, y, x."""
    array = _zarr_node(path, name)
    where = f"{path}, array {name!r}"
    _refuse_pickle(array.metadata.to_dict(), where)
    native_dtype(np.dtype(array.dtype), where)
    if array.shards is not None:  # their tables are read whole
        from cvdask.volume.objects import read_json  # late: it loads zarr

        check_array_metadata(where, read_json(os.path.join(path, name), "zarr.json") or {})
    group, _, last = name.rpartition("/")
    image = None
    if name:
        image = _multiscales(_zarr_node(path, group).attrs.asdict())
    level = next((d for d in image["datasets"] if d["path"] == last), None) if image else None
    if image is None or level is None:
        names = getattr(array.metadata, "dimension_names", None)
        known = names if names and all(names) and {"y", "x"} <= set(names) else None
        return array, view_axes(array.shape, known, channel, where), None
    axes = image.get("axes") or [None] * array.ndim  # OME-Zarr 0.1 and 0.2 have none: t, c, z, y, x
    names = [
        (axis.get("name") if isinstance(axis, dict) else axis) or default
        for axis, default in zip(axes, "tczyx"[-array.ndim :], strict=False)
    ]
    view = view_axes(array.shape, names, channel, where)
    return array, view, _ome_voxel_size(image, level, view, array.ndim)


def _multiscales(attributes: Any) -> dict[str, Any] | None:
    """Return the first image of OME-Zarr attributes (0.5 under ``ome``, before at the top)."""
    try:
        images = attributes.get("ome", attributes).get("multiscales")
        if images and all(isinstance(d["path"], str) for d in images[0]["datasets"]):
            return images[0] if images[0]["datasets"] else None
    except (AttributeError, KeyError, IndexError, TypeError):
        pass
    return None


def _ome_voxel_size(
    image: dict[str, Any], level: dict[str, Any], view: View, n_axes: int
) -> tuple[float, float, float] | None:
    """Multiply the scales of image and level and apply the units of the axes."""
    try:
        scale = np.ones(n_axes)
        for part in (image, level):
            for transform in part.get("coordinateTransformations") or ():
                if transform.get("type") == "scale":
                    scale = scale * np.asarray(transform["scale"], np.float64)
        sizes = []
        for place in view.places:
            unit = None if place is None else unit_nm(image["axes"][place].get("unit", ""))
            sizes.append(None if unit is None else float(scale[place]) * unit)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return checked_voxel_size(sizes)


def _refuse_pickle(metadata: Any, where: str) -> None:
    """Refuse chunks that would be unpickled, which runs whatever code they hold."""
    if isinstance(metadata, dict):
        if any("pickle" in str(metadata.get(key)) for key in ("id", "name")):
            raise SourceError(
                f"{where}: chunks must not be pickled, reading them would run their code. Rewrite "
                "the array with zarr's own codecs"
            )
        metadata = list(metadata.values())
    if isinstance(metadata, (list, tuple)):
        for part in metadata:
            _refuse_pickle(part, where)


# N5


def examine_n5(path: str, dataset: str | None, channel: int | None) -> Source:
    """Describe a dataset of an N5 container.

    Raises
    ------
    SourceError
        As :func:`cvdask.volume.sources.examine`.
    """
    with _refusing(path, "N5"):
        name = _clean(dataset or "", path)
        if not name and not _n5_attributes(path).get("dimensions"):
            name = _the_one(list(_n5_volumes(path)), path)
        attributes = _n5_attributes(os.path.join(path, name))
        array, view = _open_n5(path, name, channel)
        chunks = array.chunk_layout.read_chunk.shape[::-1]
        return _describe(
            "n5",
            path,
            name,
            view,
            array.shape[::-1],
            chunks,
            np.dtype(array.dtype.numpy_dtype),
            channel,
            _n5_voxel_size(attributes),
            _tree_files(os.path.join(path, name)),
        )


def read_n5(source: Source, box: Box, out: npt.NDArray, reasons: dict[int, str]) -> None:
    """Fill ``out`` with a box of the stack; as :func:`read_zarr`."""
    array, view = _known_n5(source.path, source.dataset or "", source.channel, source.fingerprint)

    def fetch(key: tuple[int | slice, ...]) -> npt.NDArray:
        # N5 stores x first: key and result are turned round.
        return np.asarray(array[key[::-1]].read().result()).T

    _read_view(fetch, view, box, out, reasons)


@lru_cache(maxsize=8)
def _known_n5(path: str, name: str, channel: int | None, _fingerprint: str) -> tuple[Any, View]:
    return _open_n5(path, name, channel)


def _open_n5(path: str, name: str, channel: int | None) -> tuple[Any, View]:
    try:
        import tensorstore
    except ImportError as error:
        raise SourceError(f"{path}: N5 needs the package tensorstore: {FORMATS_HINT}") from error
    folder = os.path.normpath(os.path.join(path, name))
    where = f"{path}, array {name!r}"
    if not _n5_attributes(folder).get("dimensions"):
        listed = ", ".join(found for found, _ in _n5_volumes(path))
        raise SourceError(
            f"{where}: dataset must be an array of the container. There are: {listed or 'none'}"
        )
    # One decoding thread: the caller runs one task per core already.
    context = {"data_copy_concurrency": {"limit": 1}, "cache_pool": {"total_bytes_limit": 0}}
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": folder + "/"}}
    try:
        array = tensorstore.open(
            spec, context=tensorstore.Context(context), read=True, open=True
        ).result()
    except (ValueError, OSError) as error:
        raise SourceError(f"{where}: the N5 dataset cannot be opened: {error}") from error
    return array, view_axes(array.shape[::-1], None, channel, where)


def _n5_attributes(folder: str) -> dict[str, Any]:
    """Return the attributes of an N5 group or dataset, empty where there are none."""
    try:
        with open_bytes(os.path.join(folder, "attributes.json")) as file:
            attributes = json.loads(file.up_to(0, 16 << 20))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{folder}: attributes.json must be JSON. Received: {error}") from error
    return attributes if isinstance(attributes, dict) else {}


def _n5_volumes(path: str) -> Iterable[tuple[str, Sequence[int]]]:
    """Yield path and shape (z, y, x) of every dataset of a container."""
    for folder, folders, _ in os.walk(path):
        dimensions = _n5_attributes(folder).get("dimensions")
        if isinstance(dimensions, list):
            folders.clear()  # below are chunks
            relative = os.path.relpath(folder, path)
            yield ("" if relative == "." else relative), tuple(dimensions[::-1])
        folders.sort()


def _n5_voxel_size(attributes: dict[str, Any]) -> tuple[float, float, float] | None:
    """Read ``pixelResolution`` (x, y, z and a unit), which the Java N5 tools write."""
    try:
        stated = attributes["pixelResolution"]
        sizes, unit = [float(v) for v in stated["dimensions"]], stated["unit"]
    except (KeyError, TypeError, ValueError):
        return None
    return checked_voxel_size(sizes[::-1], unit_nm(unit))
