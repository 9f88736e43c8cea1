"""How does a folder of numbered pictures become a stack?

1. The last group of digits in a name is the slice's number: ``cell1_s0007.tif`` is slice 7.
   Numbers are sorted as numbers; a number that is not there is a gap, and counts as a slice.
2. The header of every picture is read (TIFF, PNG, JPEG); all must agree.
3. :func:`read_folder` lists the folder again, on whichever machine it runs, and makes sure that it
   is still the one that was examined.

A single PNG or JPEG picture is a stack of one slice.
"""

from __future__ import annotations

import fnmatch
import os
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt

from cvdask.volume.boxes import Box
from cvdask.volume.sources.ifd import (
    Page,
    check_grey,
    check_ratio,
    chosen_channel,
    is_tiff,
    read_directory,
)
from cvdask.volume.sources.jpeg import check_jpeg, is_jpeg, jpeg_size
from cvdask.volume.sources.source import (
    DamagedSlice,
    FileBytes,
    Source,
    SourceError,
    damage_reason,
    demand_intact,
    demand_sizes,
    demand_unchanged,
    fingerprint,
    native_dtype,
    open_bytes,
)
from cvdask.volume.sources.tiff import decoded_shape, has_row_access, read_page

EXTENSIONS = {
    ".tif": "TIFF", ".tiff": "TIFF",
    ".png": "PNG",
    ".jpg": "JPEG", ".jpeg": "JPEG",
}  # fmt: skip

_PNG_MARK = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_PALETTE = 3


@dataclass(frozen=True)
class Listing:
    """The slices of a folder.

    Parameters
    ----------
    names : tuple of (str or None)
        File name by z; None is a gap.
    first_number : int or None
        Number of the first slice; None where a single picture has none.
    fingerprint : str
        Over all names, sizes and modification times.
    stored_bytes : int
        Of all slices.
    """

    names: tuple[str | None, ...]
    first_number: int | None
    fingerprint: str
    stored_bytes: int


class Picture(NamedTuple):
    """What the header of one slice says."""

    height: int
    width: int
    channels: int
    dtype: str
    row_access: bool
    decoded_shape: tuple[int, int]


def examine_folder(path: str, pattern: str | None, channel: int | None) -> Source:
    """Describe a folder of numbered slices, or a single picture.

    Raises
    ------
    SourceError
        As :func:`cvdask.volume.sources.examine`.
    """
    listing = list_slices(path, pattern)
    damaged: list[tuple[int, str]] = []
    first: tuple[str, Picture] | None = None
    for z, name in enumerate(listing.names):
        if name is None:
            continue
        try:
            picture = _examine_picture(os.path.join(_folder(path), name), channel)
        except DamagedSlice as error:
            damaged.append((z, f"{name}: {error}"))
            continue
        if first is None:
            first = name, picture
        elif picture[:4] != first[1][:4]:
            raise SourceError(
                f"{path}: all slices need the same shape and dtype. Received: "
                f"{_worded(first[1])} in {first[0]}, {_worded(picture)} in {name}. Crop or convert "
                "the slices, or choose some with pattern="
            )
    missing = tuple(z for z, name in enumerate(listing.names) if name is None)
    demand_intact(len(listing.names) - len(missing), damaged, path)
    assert first is not None  # demand_intact has seen a readable slice
    picture = first[1]
    shape = (len(listing.names), picture.height, picture.width)
    demand_sizes(shape, np.dtype(picture.dtype).itemsize, path)
    return Source(
        kind="folder",
        path=path,
        shape=shape,
        dtype=picture.dtype,
        dataset=None,
        channel=channel,
        voxel_size_nm=None,
        first_number=listing.first_number,
        missing=missing,
        damaged=tuple(damaged),
        fingerprint=listing.fingerprint,
        row_access=picture.row_access,
        stored_bytes=listing.stored_bytes,
        chunk_shape=(1, *picture.decoded_shape),
        pattern=pattern,
    )


def read_folder(source: Source, box: Box, out: npt.NDArray, reasons: dict[int, str]) -> None:
    """Fill ``out`` with a box of the stack; as :func:`cvdask.volume.sources.tiff.read_tiff`."""
    listing = _known_listing(source)
    folder = _folder(source.path)
    for z in range(box.start[0], box.stop[0]):
        name = listing.names[z]
        if name is not None and z not in reasons:
            try:
                _read_picture(os.path.join(folder, name), source, box, out[z - box.start[0]])
            except Exception as error:
                reasons[z] = f"{name}: {damage_reason(error)}"


def _folder(path: str) -> str:
    return path if os.path.isdir(path) else os.path.dirname(path)


_listing = threading.Lock()


def _known_listing(source: Source) -> Listing:
    # Once per process and examination: looking up a hundred thousand sizes takes a second.
    with _listing:
        listing = _listed(source.path, source.pattern, source.fingerprint)
    demand_unchanged(source, listing.fingerprint)
    return listing


@lru_cache(maxsize=8)
def _listed(path: str, pattern: str | None, _fingerprint: str) -> Listing:
    return list_slices(path, pattern)


def list_slices(path: str, pattern: str | None) -> Listing:
    """Put the pictures of a folder in the order of their numbers.

    Hidden files, folders and files of other extensions are ignored.

    Raises
    ------
    SourceError
        When there is no picture, formats are mixed, a name has no number, two names have the
        same, or more numbers are missing than present.
    """
    if not os.path.isdir(path):
        status = os.stat(path)
        found = [(os.path.basename(path), status.st_size, status.st_mtime_ns)]
        return Listing((found[0][0],), None, fingerprint(found), status.st_size)
    by_format: dict[str, list[tuple[str, int, int]]] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            kind = EXTENSIONS.get(os.path.splitext(entry.name)[1].lower())
            fits = pattern is None or fnmatch.fnmatchcase(entry.name, pattern)
            if kind and fits and not entry.name.startswith(".") and entry.is_file():
                status = entry.stat()
                record = (entry.name, status.st_size, status.st_mtime_ns)
                by_format.setdefault(kind, []).append(record)
    if not by_format:
        among = f" whose name matches {pattern!r}" if pattern else ""
        raise SourceError(
            f"{path}: a folder of slices needs at least one picture ({', '.join(EXTENSIONS)}). "
            f"Received: a folder without any{among}"
        )
    if len(by_format) > 1:
        counts = ", ".join(f"{len(files)} {kind}" for kind, files in sorted(by_format.items()))
        raise SourceError(
            f"{path}: all slices need the same format. Received: {counts}. Choose some with "
            "pattern=, for example pattern='*.tif'"
        )
    files = sorted(next(iter(by_format.values())))
    numbers = _numbered([name for name, _, _ in files], path)
    names: tuple[str | None, ...] = (files[0][0],)
    first = None
    if numbers:
        first, last = min(numbers), max(numbers)
        if last - first + 1 > 2 * len(numbers):
            raise SourceError(
                f"{path}: slices must be numbered without large gaps. Received: {len(numbers)} "
                f"slices numbered {first} to {last}, {last - first + 1 - len(numbers)} missing. "
                "Number them by one, or choose some with pattern="
            )
        names = tuple(numbers.get(number) for number in range(first, last + 1))
    return Listing(names, first, fingerprint(files), sum(size for _, size, _ in files))


def _numbered(names: list[str], where: str) -> dict[int, str]:
    """Return names by number; empty for a single picture without one."""
    numbers: dict[int, str] = {}
    for name in names:
        groups = re.findall(r"[0-9]+", os.path.splitext(name)[0])
        if not groups:
            if len(names) == 1:
                return {}
            raise SourceError(
                f"{where}: every slice needs a number in its name. Received: {name!r} among "
                f"{len(names)} pictures. Rename it, or leave it out with pattern="
            )
        # Twenty digits are a time stamp or a hash; the gaps would not fit into memory.
        number = int(groups[-1][-20:])
        if number in numbers:
            raise SourceError(
                f"{where}: every slice needs a number of its own. Received: number {number} in "
                f"{numbers[number]!r} and in {name!r}. Choose some with pattern="
            )
        numbers[number] = name
    return numbers


def _worded(picture: Picture) -> str:
    colour = f" with {picture.channels} channels" if picture.channels > 1 else ""
    return f"{picture.height} x {picture.width} {picture.dtype}{colour} (y, x)"


# One slice


def _examine_picture(path: str, channel: int | None) -> Picture:
    """Read the header of one slice.

    Raises
    ------
    DamagedSlice
        When it cannot be understood, or promises more than the file holds.
    SourceError
        When it is no grey picture that can be read.
    """
    with open_bytes(path) as file:
        head = file.up_to(0, 32)
        if is_tiff(head):
            page = _only_page(file, path)
            sample = check_grey(page.format, channel, path)
            if page.format.samples == 1:
                chosen_channel(1, channel, path)
            assert sample < page.format.samples
            page.check_extent(file)
            form = page.format
            dtype = native_dtype(form.dtype, path)
            return Picture(
                form.height,
                form.width,
                form.samples,
                dtype,
                has_row_access(form),
                decoded_shape(form),
            )
        if is_png(head):
            picture = _png_header(head, path)
        elif is_jpeg(head):
            picture = _jpeg_header(file, path)
        else:
            raise DamagedSlice(f"it is no TIFF, PNG or JPEG picture: it starts with {head[:8]!r}")
        chosen_channel(picture.channels, channel, path)
        n_bytes = picture.height * picture.width * np.dtype(picture.dtype).itemsize
        check_ratio("deflate", file.size, n_bytes)
        return picture


def _only_page(file: FileBytes, path: str) -> Page:
    """Return the page of a TIFF slice; thumbnails beside it do not count."""
    try:
        pages = read_directory(file, path, max_pages=16).pages
    except SourceError as error:  # of a whole stack, one slice costs no more than itself
        raise DamagedSlice(str(error)) from error
    full = [page for page in pages if isinstance(page, str) or not page.reduced]
    if len(full) > 1 and not isinstance(full[1], str):
        raise SourceError(
            f"{path}: a slice in a folder must be one image. Received: {len(full)} pages or more. "
            "Ingest multi-page files one by one"
        )
    page = full[0] if full else "the file has no pages"
    if isinstance(page, str):
        raise DamagedSlice(page)
    return page


def is_png(head: bytes) -> bool:
    """Tell whether a file starts as PNG pictures do."""
    return head.startswith(_PNG_MARK)


def _png_header(head: bytes, path: str) -> Picture:
    if len(head) < 29 or head[12:16] != b"IHDR":
        raise DamagedSlice("it has no PNG header")
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    bits, colour = head[24], head[25]
    if colour == _PNG_PALETTE:
        raise SourceError(
            f"{path}: slices must be grey. Received: palette colours (PNG colour type 3). Convert "
            "the file to grey values first"
        )
    if colour not in _PNG_CHANNELS or bits not in (1, 2, 4, 8, 16) or not height or not width:
        raise DamagedSlice(
            f"its PNG header declares {height} x {width} voxels (y, x) of {bits} bits, colour type "
            f"{colour}"
        )
    dtype = "uint16" if bits == 16 else "uint8"
    return Picture(height, width, _PNG_CHANNELS[colour], dtype, False, (height, width))


def _jpeg_header(file: FileBytes, path: str) -> Picture:
    size = jpeg_size(file.up_to(0, 1 << 20))  # comments and profiles come before the frame
    if size.bits != 8:
        raise SourceError(
            f"{path}: JPEG slices must have 8 bits. Received: {size.bits}. Convert them to TIFF"
        )
    return Picture(
        size.height, size.width, size.components, "uint8", False, (size.height, size.width)
    )


def _read_picture(path: str, source: Source, box: Box, out: npt.NDArray) -> None:
    """Read the y, x part of a box from one slice."""
    with open_bytes(path) as file:
        head = file.up_to(0, 32)
        if is_tiff(head):
            page = _only_page(file, path)
            demand_size((page.format.height, page.format.width), source)
            read_page(file, page, check_grey(page.format, source.channel, path), box, out)
            return
        data = file.at(0, file.size)
    if is_jpeg(head):
        size = check_jpeg(data)
        demand_size((size.height, size.width), source)
        voxels = imagecodecs.jpeg8_decode(data)
    else:
        picture = _png_header(head, path)
        demand_size((picture.height, picture.width), source)
        voxels = imagecodecs.png_decode(data)
        if head[25] == 0 and head[24] < 8:
            # The decoder stretches 1, 2, 4 bits to 0-255; labels must keep their numbers.
            voxels = voxels // (255 // ((1 << head[24]) - 1))
    channels = voxels.reshape(*voxels.shape[:2], -1)  # (Y, X) or (Y, X, C) -> (Y, X, C)
    out[...] = channels[..., source.channel or 0][box.slices[1:]]


def demand_size(size: tuple[int, int], source: Source) -> None:
    """Refuse a slice that is not as large as the stack; nothing is decoded then.

    Raises
    ------
    DamagedSlice
        With both sizes.
    """
    if size != source.shape[1:]:
        raise DamagedSlice(
            f"it has {size[0]} x {size[1]} voxels (y, x), the stack {source.shape[1:]}"
        )
