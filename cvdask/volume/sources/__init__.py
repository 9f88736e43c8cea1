"""What does a microscope file hold, and what are the voxels of one box of it?

1. :func:`examine` opens headers only, refuses what cannot be read and returns a :class:`Source`:
   shape, dtype, voxel size, and which slices are missing or damaged.
2. The source travels to the workers.
3. :func:`read` opens the file where it runs, reads one box and says which slices could not be read.

========  ==========================================================================  ==========
kind      what                                                                        package
========  ==========================================================================  ==========
tiff      multi-page TIFF and BigTIFF, also as ImageJ writes them
ome-tiff  one file with OME-XML
folder    numbered slices, TIFF, PNG or JPEG; or one PNG or JPEG
mrc       MRC, MRC2014 (.mrc, .rec, .st, .map)                                        mrcfile
hdf5      one dataset of an HDF5 file                                                 h5py
nifti     NIfTI-1 and -2; .nii.gz is unpacked once per process                        nibabel
zarr      one array, v2 or v3, or level 0 of an OME-Zarr image
n5        one dataset                                                                 tensorstore
========  ==========================================================================  ==========

Reading decodes in the calling thread, keeps no file open and may run in any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cvdask.volume.boxes import Box
from cvdask.volume.sources.arrays import (
    examine_hdf5,
    examine_n5,
    examine_zarr,
    read_hdf5,
    read_n5,
    read_zarr,
)
from cvdask.volume.sources.folder import examine_folder, is_png, read_folder
from cvdask.volume.sources.ifd import is_tiff
from cvdask.volume.sources.jpeg import is_jpeg
from cvdask.volume.sources.raw import examine_raw, read_raw
from cvdask.volume.sources.source import Source, SourceError, open_bytes
from cvdask.volume.sources.tiff import examine_tiff, read_tiff

__all__ = ["Source", "SourceError", "examine", "read"]

_READERS: dict[str, Callable[[Source, Box, npt.NDArray, dict[int, str]], None]] = {
    "tiff": read_tiff,
    "ome-tiff": read_tiff,
    "folder": read_folder,
    "mrc": read_raw,
    "nifti": read_raw,
    "hdf5": read_hdf5,
    "zarr": read_zarr,
    "n5": read_n5,
}

_EXTENSION_KINDS = {
    **dict.fromkeys((".tif", ".tiff", ".btf", ".tf8"), "tiff"),
    **dict.fromkeys((".png", ".jpg", ".jpeg"), "folder"),
    **dict.fromkeys((".mrc", ".mrcs", ".rec", ".st", ".map", ".ali", ".preali"), "mrc"),
    **dict.fromkeys((".h5", ".hdf5", ".hdf", ".he5", ".ilp"), "hdf5"),
    **dict.fromkeys((".nii", ".nii.gz"), "nifti"),
}

_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def examine(
    path: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    pattern: str | None = None,
    channel: int | None = None,
) -> Source:
    """Find out what a microscope file or folder holds, from its headers alone.

    Parameters
    ----------
    path : path
        A file, a folder of slices, or a zarr or N5 folder.
    dataset : str, optional
        Path of the array inside HDF5, zarr or N5; needed where there are several.
    pattern : str, optional
        Folders of slices: glob that file names must match, such as ``"*_ch0_*.tif"``.
    channel : int, optional
        The one channel to read of a file that has several, or colours.

    Returns
    -------
    Source
        A small value that can be sent to workers. Slices that are known to be unreadable are in
        ``missing`` and ``damaged``.

    Raises
    ------
    SourceError
        When the path is missing or of no known format; a folder holds no slice, two formats, a
        slice without a number or one number twice; shapes or dtypes differ between slices; slices
        are colour and no channel is chosen; voxels are 64-bit floats or complex; the header is
        corrupt, or promises more than the file can hold; no slice is readable; a package is not
        installed.
    """
    path = os.path.abspath(os.fspath(path))
    try:
        kind = _recognise(path)
        _refuse_idle(kind, path, dataset, pattern)
        if kind == "tiff":
            return examine_tiff(path, channel)
        if kind == "folder":
            return examine_folder(path, pattern, channel)
        if kind in ("mrc", "nifti"):
            return examine_raw(path, kind, channel)
        examine_array = {"hdf5": examine_hdf5, "zarr": examine_zarr, "n5": examine_n5}[kind]
        return examine_array(path, dataset, channel)
    except OSError as error:
        raise SourceError(f"{path}: a source must be readable. Received: {error}") from error


def read(source: Source, box: Box) -> tuple[npt.NDArray, dict[int, str]]:
    """Read one box.

    Any number of threads and processes may read one source at the same time. The array is the
    caller's.

    Parameters
    ----------
    source : Source
        From :func:`examine`, possibly on another machine that sees the same path.
    box : Box
        z, y, x, inside the source.

    Returns
    -------
    voxels : array of the box's shape and the source's dtype
        0 in slices that could not be read.
    reasons : dict of int to str
        z of the source and why that slice is 0: missing, damaged, not decodable, or with NaN or
        infinite values inside the box.

    Raises
    ------
    SourceError
        When the box leaves the source, or the files changed since they were examined.
    OSError
        When the machine fails (no connection, no permission): worth another try, and no fault of
        the slice.
    """
    if len(box.start) != 3 or not Box.whole(source.shape).contains(box):
        raise SourceError(
            f"a box must lie inside its source. Received: {box}, {source.path} has shape "
            f"{source.shape} (z, y, x)"
        )
    reasons = _known_reasons(source, box)
    voxels = np.zeros(box.shape, source.dtype)
    if box.size:
        _READERS[source.kind](source, box, voxels, reasons)
    if voxels.dtype.kind == "f":
        for z in range(box.start[0], box.stop[0]):
            if z not in reasons and not np.isfinite(voxels[z - box.start[0]]).all():
                reasons[z] = "slice holds NaN or infinite values"
    for z in reasons:
        voxels[z - box.start[0]] = 0
    return voxels, reasons


def _known_reasons(source: Source, box: Box) -> dict[int, str]:
    """Return why slices of a box cannot be read, as far as the headers told."""
    low, high = box.start[0], box.stop[0]
    reasons = {z: reason for z, reason in source.damaged if low <= z < high}
    first = source.first_number or 0
    for z in source.missing:
        if low <= z < high:
            reasons[z] = f"no slice has number {first + z}"
    return reasons


def _recognise(path: str) -> str:
    """Tell the kind of a file by its first bytes, of a folder by its metadata files.

    Raises
    ------
    SourceError
        When there is nothing, when no format is recognised, and when the first bytes are not
        those of the file's extension.
    """
    if not os.path.exists(path):
        raise SourceError(f"a source must exist. Received: {_without_secrets(path)}")
    name = os.path.basename(path).lower()
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, file)) for file in _ZARR_FILES):
            return "zarr"
        if name.endswith(".n5") or os.path.exists(os.path.join(path, "attributes.json")):
            return "n5"
        return "folder"
    stem, extension = os.path.splitext(name)
    if extension == ".gz":
        extension = os.path.splitext(stem)[1] + extension
    expected = _EXTENSION_KINDS.get(extension)
    with open_bytes(path) as file:
        head = file.up_to(0, 1024)
    found = _kind_of(head, expected)
    if found is None and expected is None:
        known = ", ".join([*_EXTENSION_KINDS, "folders of slices", "zarr", "N5"])
        raise SourceError(
            f"{path}: the format is not known. Received: extension {extension!r}, first bytes "
            f"{head[:8]!r}. Known are {known}"
        )
    if found is None:
        raise SourceError(
            f"{path}: a file must start with the mark of its format. Received: extension "
            f"{extension!r} ({expected}), first bytes {head[:8]!r}. The file is corrupt or has the "
            "wrong extension"
        )
    return found


def _kind_of(head: bytes, expected: str | None) -> str | None:
    """Tell the kind by the first 1024 bytes; the extension decides where marks are optional."""
    if is_tiff(head):
        return "tiff"
    if is_png(head) or is_jpeg(head):
        return "folder"
    if b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:520]):
        return "hdf5"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    if head[:2] == b"\x1f\x8b" and expected == "nifti":
        return "nifti"
    return "mrc" if head[208:211] == b"MAP" else None


def _refuse_idle(kind: str, path: str, dataset: str | None, pattern: str | None) -> None:
    """Refuse options that would do nothing: silence would let people believe they did."""
    if dataset is not None and kind not in ("hdf5", "zarr", "n5"):
        raise SourceError(
            f"{path}: dataset= is for HDF5, zarr and N5. Received: dataset={dataset!r} for {kind}"
        )
    if pattern is not None and (kind != "folder" or not os.path.isdir(path)):
        raise SourceError(
            f"{path}: pattern= is for folders of slices. Received: pattern={pattern!r} for {kind}"
        )


def _without_secrets(path: str) -> str:
    """Name a missing path; of an address only its start, for it may carry a password."""
    for scheme in ("s3", "gs", "http", "https"):
        marker = f"{scheme}:/"
        if marker in path:
            return f"an address {marker}/…. Copy or mount it first: sources are local paths"
    return path
