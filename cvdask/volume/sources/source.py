"""What is known about a microscope file before a voxel of it is read?

A :class:`Source` is the answer: shape, dtype, voxel size, what is missing. It holds no handle and
no credential, so it travels to workers, which open the file again by it.

1. :class:`Source` and :class:`SourceError`: the value, and the one error of bad input.
2. :class:`DamagedSlice`: one slice cannot be read; the readers catch it and go on.
3. :class:`FileBytes`: bounds-checked reads at a position of an open file.
4. Checks that every format shares: dtype, voxel size, fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FORMATS_HINT = "pip install 'cvdask[formats]'"

# What one decoder call may be asked to allocate: strips, tiles and chunks above this are either
# lies or need rewriting before many workers can share a machine.
MAX_SEGMENT_BYTES = 4 << 30

# A header may promise slices that the file does not hold (a transfer that broke off). Above this
# many, listing them one by one helps nobody.
MAX_DAMAGED = 100_000

_NATIVE = frozenset(
    ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")
)

_UNIT_NM = {
    "pm": 1e-3, "picometer": 1e-3,
    "å": 0.1, "angstrom": 0.1,
    "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3,
    "micrometer": 1e3, "micrometre": 1e3, "\\u00b5m": 1e3,
    "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6,
    "cm": 1e7, "centimeter": 1e7, "centimetre": 1e7,
    "m": 1e9, "meter": 1e9, "metre": 1e9,
}  # fmt: skip


class SourceError(ValueError):
    """Bad input, known before work: the rule, what was received, what to do."""


class DamagedSlice(Exception):
    """One slice cannot be read; its text is the reason that is reported."""


@dataclass(frozen=True)
class Source:
    """A stack of grey slices on disk, described and not opened.

    Parameters
    ----------
    kind : str
        ``tiff``, ``ome-tiff``, ``folder``, ``mrc``, ``hdf5``, ``nifti``, ``zarr`` or ``n5``.
    path : str
        Absolute path of the file or folder.
    shape : tuple of int
        Voxels along z, y, x. A gap in the numbering of a folder counts as a slice.
    dtype : str
        dtype that :func:`read` returns, native byte order. bool and packed bits read as uint8,
        float16 as float32, scaled NIfTI as float32; other integers keep their type.
    dataset : str or None
        Path of the array inside HDF5, zarr or N5.
    channel : int or None
        The one channel that is read; None for a grey source.
    voxel_size_nm : tuple of float or None
        z, y, x as the file states it; None where it says nothing, or nonsense.
    first_number : int or None
        Folders: the number in the first slice's name.
    missing : tuple of int
        z of the gaps in a folder's numbering.
    damaged : tuple of (int, str)
        z and reason, as far as headers tell: slices beyond the end of the file, unreadable headers.
    fingerprint : str
        sha256 over file names, sizes and modification times; never over voxels.
    row_access : bool
        True when a range of rows costs about its share of the slice's bytes.
    stored_bytes : int
        Bytes on disk.
    chunk_shape : tuple of int
        z, y, x: the smallest box that has to be decoded whole. Read boxes that are multiples of it
        decode nothing twice.
    pattern : str or None
        Folders: the glob that file names had to match.
    """

    kind: str
    path: str
    shape: tuple[int, int, int]
    dtype: str
    dataset: str | None
    channel: int | None
    voxel_size_nm: tuple[float, float, float] | None
    first_number: int | None
    missing: tuple[int, ...]
    damaged: tuple[tuple[int, str], ...]
    fingerprint: str
    row_access: bool
    stored_bytes: int
    chunk_shape: tuple[int, int, int]
    pattern: str | None = None


class FileBytes:
    """Bytes of one open file, read by position: any number of threads may share it.

    Parameters
    ----------
    descriptor : int
        Descriptor of a regular file. The caller closes it.
    """

    def __init__(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self.descriptor = descriptor
        self.size = status.st_size
        self.modified_ns = status.st_mtime_ns

    def at(self, position: int, count: int) -> bytes:
        """Return ``count`` bytes at ``position``.

        Raises
        ------
        DamagedSlice
            When they reach beyond the end of the file. Nothing is allocated then.
        """
        self._demand(position, count)
        data = os.pread(self.descriptor, count, position)
        if len(data) < count:  # a signal, a limit of the system, or the file shrank
            buffer = bytearray(count)
            self.into(position, buffer)
            return bytes(buffer)
        return data

    def up_to(self, position: int, count: int) -> bytes:
        """Return at most ``count`` bytes at ``position``, fewer at the end of the file."""
        return os.pread(self.descriptor, count, position)

    def into(self, position: int, buffer: npt.NDArray | bytearray) -> None:
        """Fill a C-contiguous buffer with the bytes at ``position``; no copy is made.

        Raises
        ------
        DamagedSlice
            When the file ends before the buffer is full.
        """
        view = as_bytes(buffer)
        self._demand(position, len(view))
        done = 0
        while done < len(view):
            count = os.preadv(self.descriptor, [view[done:]], position + done)
            if count == 0:
                raise DamagedSlice(f"the file ended at byte {position + done} while it was read")
            done += count

    def _demand(self, position: int, count: int) -> None:
        if position < 0 or count < 0 or position + count > self.size:
            raise DamagedSlice(
                f"bytes {position}:{position + count} lie beyond the end of the file, which has "
                f"{self.size} bytes"
            )


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[FileBytes]:
    """Open a file for reading by position; closed when the block ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield FileBytes(descriptor)
    finally:
        os.close(descriptor)


def as_bytes(buffer: npt.NDArray | bytearray) -> memoryview:
    """View a C-contiguous buffer as bytes; nothing is copied.

    numpy offers the buffer protocol, which type checkers can know only from Python 3.12 on.
    """
    return memoryview(buffer).cast("B")  # type: ignore[arg-type]


def read_rows(
    file: FileBytes,
    position: int,
    row_length: int,
    dtype: np.dtype,
    columns: slice,
    out: npt.NDArray,
) -> None:
    """Read whole rows of uncompressed voxels and keep some of their columns.

    Full rows of the right dtype are read straight into ``out``. Others pass through a scratch
    buffer of about a MiB, which stays in the cache: reading a row and dropping most of it is still
    cheaper than one system call per row.

    Parameters
    ----------
    file : FileBytes
        The open file.
    position : int
        Byte at which the first row starts.
    row_length : int
        Values per row on disk.
    dtype : numpy.dtype
        dtype on disk, with its byte order.
    columns : slice
        Values of a row that are kept, as many as ``out`` has columns.
    out : (n_rows, n_columns) array
        Filled in place, cast to its dtype.
    """
    row_bytes = row_length * dtype.itemsize
    whole = columns == slice(0, row_length, 1) and out.flags.c_contiguous
    if whole and dtype.newbyteorder("=") == out.dtype:
        file.into(position, out)
        if not dtype.isnative:
            out.byteswap(inplace=True)
        return
    step = max(1, (1 << 20) // row_bytes)
    for start in range(0, out.shape[0], step):
        part = out[start : start + step]
        scratch = np.empty((part.shape[0], row_length), dtype)
        file.into(position + start * row_bytes, scratch)
        part[...] = scratch[:, columns]


def native_dtype(dtype: np.dtype, where: str) -> str:
    """Name the dtype that values of ``dtype`` are read as.

    Raises
    ------
    SourceError
        For complex, 64-bit floats, strings, objects and records.

    Examples
    --------
    >>> native_dtype(np.dtype(">u2"), "a.tif"), native_dtype(np.dtype(bool), "a.tif")
    ('uint16', 'uint8')
    """
    if dtype.kind == "b":
        return "uint8"
    if dtype == np.float16:
        return "float32"
    name = dtype.newbyteorder("=").name
    if name not in _NATIVE:
        raise SourceError(
            f"{where}: voxels must be integers or 32-bit floats. Received: dtype {name}. Convert "
            "the file first, for example with numpy.float32(image), or rescale it to uint16"
        )
    return name


def unit_nm(unit: object) -> float | None:
    """Return how many nanometres a unit of length has; None for what is no length.

    >>> unit_nm("Micrometer"), unit_nm("pixel")
    (1000.0, None)
    """
    return _UNIT_NM.get(str(unit).strip().lower())


def checked_voxel_size(
    sizes: Iterable[float | None], scale: float | None = 1.0
) -> tuple[float, float, float] | None:
    """Return z, y, x sizes times ``scale``, or None when any of them is no positive number.

    >>> checked_voxel_size((0.5, 0.5, 0.0), 1000.0) is None
    True
    """
    if scale is None:
        return None
    result = []
    for size in sizes:
        if size is None:
            return None
        value = float(size) * scale
        if not (math.isfinite(value) and value > 0):
            return None
        # Seven digits, which is what a 32-bit header field holds: the rest is dust (29.99999933).
        result.append(float(f"{value:.7g}"))
    if len(result) != 3:
        return None
    return result[0], result[1], result[2]


def fingerprint(files: Iterable[tuple[str, int, int]]) -> str:
    """Hash (name, bytes, modification time in ns) of each file, in the order given."""
    digest = hashlib.sha256()
    for name, size, modified_ns in files:
        digest.update(f"{name}\0{size}\0{modified_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def file_fingerprint(path: str, file: FileBytes) -> str:
    """Fingerprint a source that is one file."""
    return fingerprint([(os.path.basename(path), file.size, file.modified_ns)])


def demand_unchanged(source: Source, found: str) -> None:
    """Refuse to read a source that is no longer the one that was examined.

    Raises
    ------
    SourceError
        When the fingerprints differ: offsets in a changed file point anywhere.
    """
    if found != source.fingerprint:
        raise SourceError(
            f"{source.path} must not change between examining and reading. Received: fingerprint "
            f"{found[:12]}, examined was {source.fingerprint[:12]}. Examine it again"
        )


def demand_intact(n_slices: int, damaged: Sequence[tuple[int, str]], where: str) -> None:
    """Refuse a stack without a single readable slice, or with more damage than can be listed.

    Raises
    ------
    SourceError
        With the reason of the first damaged slice.
    """
    if n_slices < 1:
        raise SourceError(f"{where}: a source needs at least one slice. Received: none")
    if len(damaged) == n_slices or len(damaged) > MAX_DAMAGED:
        z, reason = damaged[0]
        raise SourceError(
            f"{where}: a stack needs readable slices. Received: {len(damaged)} of {n_slices} slices"
            f" damaged, the first at z = {z}: {reason}. Copy the file again from the microscope"
        )


def demand_sizes(shape: Sequence[int], itemsize: int, where: str) -> None:
    """Refuse sizes that are no image, before anything is allocated for them.

    Raises
    ------
    SourceError
        When an axis is below 1 voxel or above 2**31, or all of it above 2**60 bytes.
    """
    if any(not 1 <= extent < 1 << 31 for extent in shape):
        raise SourceError(
            f"{where}: every axis needs 1 to 2147483647 voxels. Received: shape {tuple(shape)}"
        )
    if math.prod(shape) * itemsize > 1 << 60:
        raise SourceError(f"{where}: no file holds shape {tuple(shape)}: its header is corrupt")


def damage_reason(error: Exception) -> str:
    """Word an exception of a decoder as the reason of a damaged slice.

    Failures of the machine are raised again: a broken connection or a full memory must be tried
    again by whoever runs the work, never become a black slice.
    """
    if isinstance(error, DamagedSlice):
        return str(error)
    machine = isinstance(error, OSError) and error.errno is not None
    if machine or isinstance(error, (MemoryError, SourceError)):
        raise error
    return f"{type(error).__name__}: {error}"
