"""How is a file read that is a header and then all voxels, MRC or NIfTI?

1. mrcfile or nibabel understand the header; neither touches a voxel.
2. What remains is a :class:`RawLayout`: a position, a dtype, a shape. Both formats store x fastest
   and z slowest, so a slice is one range of bytes and a row is another.
3. Rows are read by position into the result. A gzipped NIfTI has no positions: it is unpacked once
   per process into a temporary file without a name, which the system removes with the process.
"""

from __future__ import annotations

import gzip
import math
import os
import tempfile
import threading
import weakref
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cvdask.volume.boxes import Box
from cvdask.volume.sources.ifd import chosen_channel
from cvdask.volume.sources.source import (
    FORMATS_HINT,
    MAX_DAMAGED,
    FileBytes,
    Source,
    SourceError,
    checked_voxel_size,
    damage_reason,
    demand_intact,
    demand_sizes,
    demand_unchanged,
    file_fingerprint,
    native_dtype,
    open_bytes,
    read_rows,
    unit_nm,
)

# A gzipped volume above this is unpacked by every worker process for a part of an hour.
MAX_GZIP_BYTES = 4 << 30

# Bytes behind the voxels of a gzipped volume: none are usual.
MOST_BEHIND = 1 << 20

_IMOD_STAMP = 1146047817  # "IMOD" as IMOD writes it into its headers


@dataclass(frozen=True)
class RawLayout:
    """Where the voxels of a file lie.

    Parameters
    ----------
    offset : int
        Byte of the first voxel.
    dtype : numpy.dtype
        As stored, with byte order.
    shape : tuple of int
        z, y, x.
    slope, intercept : float
        A stored value v means ``v * slope + intercept``.
    zipped : bool
        True for gzip: the offset counts unpacked bytes.
    voxel_size_nm : tuple of float or None
        z, y, x.
    """

    offset: int
    dtype: np.dtype
    shape: tuple[int, int, int]
    slope: float = 1.0
    intercept: float = 0.0
    zipped: bool = False
    voxel_size_nm: tuple[float, float, float] | None = None

    @property
    def scaled(self) -> bool:
        """Tell whether stored values are not the values meant."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def slice_bytes(self) -> int:
        """Bytes of one slice."""
        return self.shape[1] * self.shape[2] * self.dtype.itemsize

    @property
    def stop(self) -> int:
        """Byte behind the last voxel."""
        return self.offset + self.shape[0] * self.slice_bytes


def examine_raw(path: str, kind: str, channel: int | None) -> Source:
    """Describe an MRC or NIfTI file.

    Raises
    ------
    SourceError
        As :func:`cvdask.volume.sources.examine`.
    """
    chosen_channel(1, channel, path)
    with open_bytes(path) as file:
        layout = _layout(path, kind)
        demand_sizes(layout.shape, layout.dtype.itemsize, path)
        dtype = native_dtype(layout.dtype, path)
        damaged: list[tuple[int, str]] = []
        if layout.zipped:
            _demand_small(layout, file.size, path)
        else:
            damaged = _beyond_end(layout, file.size)
            demand_intact(layout.shape[0], damaged, path)
        return Source(
            kind=kind,
            path=path,
            shape=layout.shape,
            dtype="float32" if layout.scaled else dtype,
            dataset=None,
            channel=channel,
            voxel_size_nm=layout.voxel_size_nm,
            first_number=None,
            missing=(),
            damaged=tuple(damaged),
            fingerprint=file_fingerprint(path, file),
            row_access=not layout.zipped,
            stored_bytes=file.size,
            chunk_shape=layout.shape if layout.zipped else (1, 1, layout.shape[2]),
        )


def read_raw(source: Source, box: Box, out: npt.NDArray, reasons: dict[int, str]) -> None:
    """Fill ``out`` with a box of the stack; as :func:`cvdask.volume.sources.tiff.read_tiff`."""
    with open_bytes(source.path) as file:
        found = file_fingerprint(source.path, file)
        demand_unchanged(source, found)
        layout = _known_layout(source.path, source.kind, found)
        if layout.zipped:
            unpacked = _unpacked(source.path, source.kind, found)
            if unpacked.fault:
                reasons.update(dict.fromkeys(range(box.start[0], box.stop[0]), unpacked.fault))
            _read_slices(unpacked.file, layout, box, out, reasons)
        else:
            _read_slices(file, layout, box, out, reasons)


def _read_slices(
    file: FileBytes, layout: RawLayout, box: Box, out: npt.NDArray, reasons: dict[int, str]
) -> None:
    (y0, x0), (_, x1) = box.start[1:], box.stop[1:]
    row_bytes = layout.shape[2] * layout.dtype.itemsize
    columns = slice(x0, x1, 1)
    for z in range(box.start[0], box.stop[0]):
        if z in reasons:
            continue
        position = layout.offset + z * layout.slice_bytes + y0 * row_bytes
        target = out[z - box.start[0]]
        try:
            if layout.scaled:
                stored = np.empty(target.shape, layout.dtype.newbyteorder("="))
                read_rows(file, position, layout.shape[2], layout.dtype, columns, stored)
                target[...] = stored * np.float64(layout.slope) + layout.intercept
            else:
                read_rows(file, position, layout.shape[2], layout.dtype, columns, target)
        except Exception as error:
            reasons[z] = damage_reason(error)


def _beyond_end(layout: RawLayout, n_bytes: int) -> list[tuple[int, str]]:
    """List the slices that the file is too short for."""
    n_whole = max(0, n_bytes - layout.offset) // layout.slice_bytes
    last = min(layout.shape[0], n_whole + MAX_DAMAGED + 1)
    return [
        (
            z,
            f"its voxels end at byte {layout.offset + (z + 1) * layout.slice_bytes}, beyond the "
            f"end of the file, which has {n_bytes} bytes",
        )
        for z in range(n_whole, last)
    ]


_parsing = threading.Lock()


def _known_layout(path: str, kind: str, found: str) -> RawLayout:
    with _parsing:
        return _parsed_layout(path, kind, found)


@lru_cache(maxsize=32)
def _parsed_layout(path: str, kind: str, _fingerprint: str) -> RawLayout:
    return _layout(path, kind)


def _layout(path: str, kind: str) -> RawLayout:
    layout = _mrc_layout(path) if kind == "mrc" else _nifti_layout(path)
    demand_sizes(layout.shape, layout.dtype.itemsize, path)
    return layout


# MRC


def _mrc_layout(path: str) -> RawLayout:
    try:
        from mrcfile.dtypes import HEADER_DTYPE
        from mrcfile.utils import byte_order_from_machine_stamp
    except ImportError as error:
        raise SourceError(f"{path}: MRC needs the package mrcfile: {FORMATS_HINT}") from error
    # mrcfile.open would read the extended header too, whatever size a corrupt file claims for it.
    with open_bytes(path) as file:
        head, n_bytes = file.up_to(0, HEADER_DTYPE.itemsize), file.size
    try:
        order = byte_order_from_machine_stamp(np.frombuffer(head, "u1", 4, 212))
        stored = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order), 1)
    except (ValueError, IndexError) as error:
        raise SourceError(
            f"{path}: the MRC header cannot be read: {error}. The file is corrupt or no MRC file"
        ) from error
    header = stored.view(np.recarray)[0]
    if not 0 <= int(header.nsymbt) <= n_bytes:
        raise SourceError(
            f"{path}: the extended MRC header must lie in the file. Received: "
            f"{int(header.nsymbt)} bytes in a file of {n_bytes}. The file is corrupt"
        )
    shape = (int(header.nz), int(header.ny), int(header.nx))
    if int(header.ispg) >= 401:
        raise SourceError(
            f"{path}: a source is one volume. Received: a stack of volumes (ISPG "
            f"{int(header.ispg)}). Export one of them"
        )
    axes = (int(header.mapc), int(header.mapr), int(header.maps))
    if axes not in ((1, 2, 3), (0, 0, 0)):
        raise SourceError(
            f"{path}: columns, rows and sections must be x, y, z (1, 2, 3). Received: {axes}. "
            "Export the volume in standard orientation"
        )
    intervals = (int(header.mz), int(header.my), int(header.mx))
    lengths = (float(header.cella.z), float(header.cella.y), float(header.cella.x))
    sizes = [a / n if n > 0 else None for a, n in zip(lengths, intervals, strict=True)]
    return RawLayout(
        offset=1024 + int(header.nsymbt),
        dtype=_mrc_dtype(header, head, order, path),
        shape=shape,
        voxel_size_nm=checked_voxel_size(sizes, 0.1),  # Å
    )


def _mrc_dtype(header: Any, head: bytes, order: str, path: str) -> np.dtype:
    """Return the dtype of a mode, in the byte order of the header.

    Mode 0 is signed in MRC2014, but unsigned in files of older programs. IMOD says which in a
    flag; without one, a header minimum or maximum outside the other range decides.
    """
    mode = int(header.mode)
    if mode == 0:
        stamp, flags = np.frombuffer(head, order + "i4", 2, 152)
        if stamp == _IMOD_STAMP:
            return np.dtype("i1" if flags & 1 else "u1")
        return np.dtype("u1" if float(header.dmin) >= 0 and float(header.dmax) > 127 else "i1")
    codes = {1: "i2", 2: "f4", 6: "u2", 12: "f2"}
    if mode not in codes:
        raise SourceError(
            f"{path}: an MRC volume must have mode 0, 1, 2, 6 or 12 (integers, 32- or 16-bit "
            f"floats). Received: mode {mode}. Convert it, for example with newstack -mode"
        )
    return np.dtype(order + codes[mode])


# NIfTI


def _nifti_layout(path: str) -> RawLayout:
    try:
        import nibabel
    except ImportError as error:
        raise SourceError(f"{path}: NIfTI needs the package nibabel: {FORMATS_HINT}") from error
    zipped = is_gzip(path)
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            head = file.read(540)
            two = head[4:8] in (b"n+2\0", b"ni2\0")
            kind = nibabel.Nifti2Header if two else nibabel.Nifti1Header
            # Unchecked: nibabel's check mends what it dislikes, voxel sizes of 0 to 1 among it.
            header = kind(head[: 540 if two else 348], check=False)
            dtype = header.get_data_dtype()
            unit = str(header.get_xyzt_units()[0])
            start = float(header["vox_offset"])
    except Exception as error:  # nibabel raises whatever a corrupt field leads to
        raise SourceError(
            f"{path}: the NIfTI header cannot be read: {type(error).__name__}: {error}. The file "
            "is corrupt or no NIfTI file"
        ) from error
    magic = header["magic"].tobytes()
    if not magic.startswith((b"n+1", b"n+2")):
        raise SourceError(
            f"{path}: a NIfTI source is one file, .nii or .nii.gz. Received: magic {magic[:4]!r}. "
            "Convert the pair of .hdr and .img"
        )
    if not (math.isfinite(start) and start >= 0) or not 1 <= int(header["dim"][0]) <= 7:
        raise SourceError(
            f"{path}: the NIfTI header is corrupt. Received: voxels at byte {start}, "
            f"{int(header['dim'][0])} axes"
        )
    n_axes = int(header["dim"][0])
    extents = [int(v) for v in header["dim"][1 : 1 + n_axes]]
    spatial = [*extents, 1, 1, 1][:3]
    if any(extent != 1 for extent in extents[3:]):
        raise SourceError(
            f"{path}: a source is one volume. Received: {n_axes} axes of sizes {tuple(extents)} "
            "(x, y, z, t, ...). Export one volume"
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0:  # the standard: then values are as stored
        slope, intercept = 1.0, 0.0
    # A unit "unknown" is no length: the customary mm would be wrong by 10^5 for microscopy.
    zooms = [float(v) for v in header["pixdim"][1:4]]
    return RawLayout(
        offset=max(int(start), header.sizeof_hdr + 4),
        dtype=dtype,
        shape=(spatial[2], spatial[1], spatial[0]),
        slope=slope,
        intercept=intercept if math.isfinite(intercept) else 0.0,
        zipped=zipped,
        voxel_size_nm=checked_voxel_size(zooms[::-1], unit_nm(unit)),
    )


def is_gzip(path: str) -> bool:
    """Tell whether a file starts as gzip files do."""
    with open_bytes(path) as file:
        return file.up_to(0, 2) == b"\x1f\x8b"


def _demand_small(layout: RawLayout, stored: int, path: str) -> None:
    if layout.stop > MAX_GZIP_BYTES:
        raise SourceError(
            f"{path}: a gzipped volume has no random access and must not exceed {MAX_GZIP_BYTES} "
            f"bytes unpacked. Received: {layout.stop} bytes. Unpack it first: gunzip -k"
        )
    if layout.stop > stored * 1100:  # deflate cannot pass 1032:1
        raise SourceError(
            f"{path}: the header declares {layout.stop} bytes but {stored} bytes of gzip are "
            "stored: it lies. Copy the file again"
        )


class _Unpacked:
    """A gzipped file in a temporary file without a name, closed with this object.

    ``fault`` says why none of it can be believed; empty where it can.
    """

    def __init__(self, path: str, n_bytes: int) -> None:
        self.fault = ""
        descriptor, name = tempfile.mkstemp(prefix="cvdask-")
        os.unlink(name)
        weakref.finalize(self, os.close, descriptor)
        try:
            with gzip.open(path) as packed, open(descriptor, "wb", closefd=False) as target:
                # read1: an ordinary read throws away what it had when the file breaks off.
                while n_bytes and (data := packed.read1(min(n_bytes, 1 << 18))):
                    n_bytes -= target.write(data)
                # The checksum stands behind the last byte, and is compared when that was read.
                if len(packed.read(MOST_BEHIND + 1)) > MOST_BEHIND:
                    self.fault = "the gzip file holds more than its header declares: one is wrong"
        except EOFError:
            # What came out before the break is taken; the slices behind it are reported. Where all
            # came out there is nothing to report, and nothing to compare it with either.
            if not n_bytes:
                self.fault = "the gzip file ends before its checksum: it is damaged or cut off"
        except (zlib.error, gzip.BadGzipFile) as error:
            # Which bytes were changed is not known. What follows a whole file is no part of it.
            if n_bytes or "Not a gzipped file" not in str(error):
                self.fault = f"the gzip file is damaged: {error}"
        self.file = FileBytes(descriptor)


_unpacking = threading.Lock()


def _unpacked(path: str, kind: str, found: str) -> _Unpacked:
    with _unpacking:
        return _unpacked_once(path, kind, found)


@lru_cache(maxsize=2)
def _unpacked_once(path: str, kind: str, found: str) -> _Unpacked:
    return _Unpacked(path, _known_layout(path, kind, found).stop)
