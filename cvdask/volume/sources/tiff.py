"""Which pages of a TIFF file make the stack, and how is a part of one read?

1. The directory gives the pages (:mod:`cvdask.volume.sources.ifd`).
2. :func:`stack_pages` puts them in z order: as they come, by ImageJ's ``images=`` and ``channels=``
   (above 4 GiB ImageJ writes one directory for all slices), or by the OME-XML. What should be there
   and is not becomes a reason in the place of a page.
3. :func:`read_page` reads rows of one page. Uncompressed strips go from the file straight into the
   result; of compressed or tiled pages only the segments that meet the box are decoded, in the
   calling thread, each into a buffer of the size that it must have.

Values are as stored: a bilevel or inverted (MinIsWhite) page is not inverted.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from cvdask.volume.boxes import Box
from cvdask.volume.sources.ifd import (
    Directory,
    Page,
    PageFormat,
    Table,
    check_grey,
    check_ratio,
    chosen_channel,
    read_directory,
)
from cvdask.volume.sources.jpeg import check_jpeg
from cvdask.volume.sources.lzw import lzw_decode
from cvdask.volume.sources.source import (
    MAX_DAMAGED,
    DamagedSlice,
    FileBytes,
    Source,
    SourceError,
    as_bytes,
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

Pages = Sequence[Page | str]

_IMAGEJ_CHANNELS = 7  # as many as ImageJ can show together


@dataclass(frozen=True)
class Stack:
    """The pages of a file in z order.

    Parameters
    ----------
    pages : sequence of Page or str
        One entry per slice; a string is the reason why the slice cannot be read.
    sample : int
        Which value of a voxel is read.
    kind : str
        ``tiff`` or ``ome-tiff``.
    voxel_size_nm : tuple of float or None
        z, y, x.
    """

    pages: Pages
    sample: int
    kind: str
    voxel_size_nm: tuple[float, float, float] | None


def examine_tiff(path: str, channel: int | None) -> Source:
    """Describe a multi-page TIFF, BigTIFF, ImageJ or OME-TIFF file.

    Raises
    ------
    SourceError
        As :func:`cvdask.volume.sources.examine`.
    """
    with open_bytes(path) as file:
        stack = stack_pages(file, path, channel)
        damaged = _damage(file, stack.pages)
        demand_intact(len(stack.pages), damaged, path)
        form = demand_alike(stack.pages, path)
        shape = (len(stack.pages), form.height, form.width)
        demand_sizes(shape, form.dtype.itemsize, path)
        return Source(
            kind=stack.kind,
            path=path,
            shape=shape,
            dtype=native_dtype(form.dtype, path),
            dataset=None,
            channel=channel,
            voxel_size_nm=stack.voxel_size_nm,
            first_number=None,
            missing=(),
            damaged=tuple(damaged),
            fingerprint=file_fingerprint(path, file),
            row_access=has_row_access(form),
            stored_bytes=file.size,
            chunk_shape=(1, *decoded_shape(form)),
        )


def read_tiff(source: Source, box: Box, out: npt.NDArray, reasons: dict[int, str]) -> None:
    """Fill ``out`` with a box of the stack; slices that cannot be read get a reason.

    Parameters
    ----------
    source : Source
        What :func:`examine_tiff` returned.
    box : Box
        z, y, x.
    out : array of the shape of the box
        Filled in place; slices with a reason are left as they are or partly filled.
    reasons : dict of int to str
        By z. Slices that have one already are not read.
    """
    with open_bytes(source.path) as file:
        found = file_fingerprint(source.path, file)
        demand_unchanged(source, found)
        stack = _known_stack(source.path, found, source.channel)
        for z in range(box.start[0], box.stop[0]):
            if z not in reasons:
                page = stack.pages[z]
                try:
                    read_page(file, page, stack.sample, box, out[z - box.start[0]])
                except Exception as error:
                    reasons[z] = damage_reason(error)


_parsing = threading.Lock()


def _known_stack(path: str, found: str, channel: int | None) -> Stack:
    # One lock for all files: threads that want the same stack wait for the first to parse it.
    with _parsing:
        return _parsed_stack(path, found, channel)


@lru_cache(maxsize=8)
def _parsed_stack(path: str, _fingerprint: str, channel: int | None) -> Stack:
    with open_bytes(path) as file:
        return stack_pages(file, path, channel)


def _damage(file: FileBytes, pages: Pages) -> list[tuple[int, str]]:
    """List z and reason of the pages whose headers show that they cannot be read."""
    damaged: list[tuple[int, str]] = []
    for z, page in enumerate(pages):
        try:
            if isinstance(page, str):
                raise DamagedSlice(page)
            page.check_extent(file)
        except DamagedSlice as error:
            damaged.append((z, str(error)))
            if len(damaged) > MAX_DAMAGED:
                break
    return damaged


def demand_alike(pages: Pages, where: str) -> PageFormat:
    """Return the format of the first readable page after checking that all others fit it.

    Raises
    ------
    SourceError
        When shape, dtype or number of channels differ between two pages.
    """
    first: tuple[int, PageFormat] | None = None
    for z, page in enumerate(pages):
        if isinstance(page, str):
            continue
        form = page.format
        if first is None:
            first = z, form
        elif form is not first[1] and _look(form) != _look(first[1]):
            raise SourceError(
                f"{where}: all slices need the same shape and dtype. Received: "
                f"{_worded(first[1])} at z = {first[0]}, {_worded(form)} at z = {z}. Crop or "
                "convert the slices, or split the file"
            )
    assert first is not None  # demand_intact has seen a readable page
    return first[1]


def _look(form: PageFormat) -> tuple[int, int, int, str]:
    return form.height, form.width, form.samples, form.dtype.newbyteorder("=").name


def _worded(form: PageFormat) -> str:
    height, width, samples, dtype = _look(form)
    colour = f" with {samples} channels" if samples > 1 else ""
    return f"{height} x {width} {dtype}{colour} (y, x)"


def has_row_access(form: PageFormat) -> bool:
    """Tell whether a range of rows costs about its share of the page's bytes."""
    return form.direct or 4 * form.segment_rows <= form.height


def decoded_shape(form: PageFormat) -> tuple[int, int]:
    """Rows and columns of the smallest part of a page that is read whole."""
    rows = 1 if form.direct else min(form.segment_rows, form.height)
    return rows, min(form.segment_columns, form.width)


# Which pages, in which order


def stack_pages(file: FileBytes, where: str, channel: int | None) -> Stack:
    """Put the pages of a file in z order and choose one channel.

    Raises
    ------
    SourceError
        For colour or several channels without ``channel``, time series, palettes, dtypes that
        cannot be read, files of several images, and an unreadable first page.
    """
    directory = read_directory(file, where)
    first = next((page for page in directory.pages if isinstance(page, Page)), None)
    if first is None:
        reason = directory.pages[0] if directory.pages else "the file has no pages"
        raise SourceError(f"{where}: a TIFF needs at least one readable page. Received: {reason}")
    text = directory.description
    if "<OME" in text[:4096]:
        return _ome_stack(directory, first.format, channel, where)
    if text.startswith("ImageJ="):
        return _imagej_stack(file, directory, first, channel, where)
    pages: Pages = [page for page in directory.pages if isinstance(page, str) or not page.reduced]
    if _truncated_shape(text):
        pages = _unlisted_pages(file, first, _truncated_shape(text), where)
    sample = check_grey(first.format, channel, where)
    if first.format.samples == 1:
        chosen_channel(1, channel, where)
    return Stack(pages or directory.pages, sample, "tiff", None)


def _truncated_shape(text: str) -> int:
    """Return how many pages tifffile wrote behind a single directory, 0 for ordinary files."""
    if not text.startswith('{"shape"'):
        return 0
    try:
        described = json.loads(text)
        if not described.get("truncated"):
            return 0
        return int(np.prod([int(v) for v in described["shape"][:-2]], dtype=object))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return 0


def _unlisted_pages(file: FileBytes, first: Page, n_pages: int, where: str) -> Pages:
    """Return the pages of a file whose only directory describes the first of them.

    The voxels of all pages follow one another without a gap.
    """
    form = first.format
    if not form.direct or form.separate:
        raise SourceError(
            f"{where}: {n_pages} images behind one directory must be uncompressed. Received: "
            f"{form.compression}. Export the stack again"
        )
    if not 1 <= n_pages < 1 << 31:
        raise SourceError(f"{where}: a stack cannot have {n_pages} images: its header is corrupt")
    try:
        start = int(first.offsets.load(file)[0])
    except DamagedSlice as error:
        raise SourceError(f"{where}: the first page cannot be found: {error}") from error
    return _UnlistedPages(first, start, n_pages)


class _UnlistedPages(Sequence[Page | str]):
    """Pages by arithmetic, made when asked for: a lying header costs no memory."""

    def __init__(self, first: Page, start: int, n_pages: int) -> None:
        form = first.format
        self.start = start
        self.n_pages = n_pages
        self.n_bytes = form.stored_rows(form.height, form.width)
        self.format = replace(form, segment_rows=form.height)

    def __len__(self) -> int:
        return self.n_pages

    def __getitem__(self, z: int) -> Page:  # type: ignore[override]
        if not 0 <= z < self.n_pages:
            raise IndexError(z)
        offsets = struct.pack("<Q", self.start + z * self.n_bytes)
        counts = struct.pack("<Q", self.n_bytes)
        return Page(self.format, Table(0, "<Q", 1, offsets), Table(0, "<Q", 1, counts), False)


def _imagej_stack(
    file: FileBytes, directory: Directory, first: Page, channel: int | None, where: str
) -> Stack:
    """Order the pages of an ImageJ file: channels fastest, then slices, then frames."""
    facts = dict(re.findall(r"^(\w+)=(.*)$", directory.description, re.MULTILINE))
    n_listed = len(directory.pages)
    n_images = _whole(facts.get("images"), n_listed)
    pages: Pages = directory.pages
    if n_images > n_listed or (n_images > 1 and isinstance(pages[-1], str)):
        pages = _unlisted_pages(file, first, n_images, where)
    n_images = len(pages)
    n_channels = _whole(facts.get("channels"), 1)
    n_frames = _whole(facts.get("frames"), 1)
    n_slices = _whole(facts.get("slices"), 1)
    if n_channels * n_slices * n_frames != n_images:
        n_channels, n_slices, n_frames = 1, n_images, 1
    if n_channels > _IMAGEJ_CHANNELS and n_slices == n_frames == 1:
        n_channels, n_slices = 1, n_channels  # Python writers call z channels unless told otherwise
    if n_frames > 1 and n_slices > 1:
        raise SourceError(
            f"{where}: a source is one volume. Received: {n_frames} frames of {n_slices} slices. "
            "Export one time point"
        )
    if n_channels > 1 and first.format.samples > 1:
        raise SourceError(
            f"{where}: channels must lie in pages or in colours, not both. Received: {n_channels} "
            f"channels of {first.format.samples} colours. Split the channels in ImageJ"
        )
    sample = check_grey(first.format, channel, where)
    if first.format.samples == 1:
        chosen = chosen_channel(n_channels, channel, where)
        pages = (
            pages if n_channels == 1 else [pages[i] for i in range(chosen, n_images, n_channels)]
        )
    height, width = directory.voxels_per_unit
    sizes = (_real(facts.get("spacing")), height and 1 / height, width and 1 / width)
    voxel_size = checked_voxel_size(sizes, unit_nm(facts.get("unit", "")))
    return Stack(pages, sample, "tiff", voxel_size)


def _whole(text: str | None, default: int) -> int:
    """Read a positive whole number of at most ten digits."""
    return int(text) if text and re.fullmatch(r"[1-9]\d{0,9}", text.strip()) else default


def _real(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _ome_stack(directory: Directory, form: PageFormat, channel: int | None, where: str) -> Stack:
    """Order the pages of an OME-TIFF file by its XML."""
    pixels = _ome_pixels(directory.description, where)
    extents = {axis: _whole(pixels.get(f"Size{axis}"), 1) for axis in "ZCT"}
    if extents["T"] > 1:
        raise SourceError(
            f"{where}: a source is one volume. Received: {extents['T']} time points in the "
            "OME-XML. Export one of them"
        )
    sample = check_grey(form, channel, where)
    chosen = 0
    if form.samples > 1:  # the channels lie within the pages
        if extents["C"] not in (1, form.samples):
            raise SourceError(
                f"{where}: the OME-XML must count the channels of a page. Received: SizeC="
                f"{extents['C']}, pages of {form.samples}. Export the channels separately"
            )
        extents["C"] = 1
    else:
        chosen = chosen_channel(extents["C"], channel, where)
    n_planes = extents["Z"] * extents["C"]
    if n_planes > len(directory.pages) + MAX_DAMAGED:
        raise SourceError(
            f"{where}: the OME-XML must describe this file. Received: {n_planes} planes, the file "
            f"has {len(directory.pages)} pages"
        )
    pages: list[Page | str] = ["the OME-XML names no page for this slice"] * extents["Z"]
    for z, c, index in _ome_planes(pixels, extents, len(directory.pages), where):
        if c == chosen and 0 <= z < extents["Z"]:
            known = 0 <= index < len(directory.pages)
            pages[z] = (
                directory.pages[index]
                if known
                else f"the OME-XML names page {index}, the file has {len(directory.pages)} pages"
            )
    sizes = (
        (_real(pixels.get(f"PhysicalSize{axis}")), unit_nm(_unit(pixels, axis))) for axis in "ZYX"
    )
    voxel_size = checked_voxel_size(v * u if v is not None and u else None for v, u in sizes)
    return Stack(pages, sample, "ome-tiff", voxel_size)


def _unit(pixels: ElementTree.Element, axis: str) -> str:
    return pixels.get(f"PhysicalSize{axis}Unit", "µm")  # the default of the OME schema


def _ome_pixels(text: str, where: str) -> ElementTree.Element:
    """Return the one Pixels element of an OME-XML."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise SourceError(f"{where}: an OME-XML must not declare entities; the file is not trusted")
    try:
        root = ElementTree.fromstring(text.encode("utf-8", "replace"))
    except ElementTree.ParseError as error:
        raise SourceError(
            f"{where}: the OME-XML must be well-formed. Received: {error}. Export the file again, "
            "or as a plain TIFF stack"
        ) from error
    found = root.findall("{*}Image/{*}Pixels")
    if len(found) != 1:
        raise SourceError(
            f"{where}: a source is one image. Received: {len(found)} images in the OME-XML. Export "
            "one of them"
        )
    return found[0]


def _ome_planes(
    pixels: ElementTree.Element, extents: dict[str, int], n_pages: int, where: str
) -> Iterator[tuple[int, int, int]]:
    """Yield z, channel and page of every plane that the OME-XML places."""
    blocks = pixels.findall("{*}TiffData")
    names = {uuid.get("FileName") for block in blocks for uuid in block.findall("{*}UUID")}
    if len(names) > 1:
        raise SourceError(
            f"{where}: an OME-TIFF source is one file. Received: planes in {len(names)} files. "
            "Export them as one file, or as a folder of slices"
        )
    order = pixels.get("DimensionOrder", "XYZCT")[2:]
    if sorted(order) != sorted("ZCT"):
        raise SourceError(f"{where}: the OME-XML has DimensionOrder {order!r}, not one of XYZCT")
    n_planes = extents["Z"] * extents["C"]
    for block in blocks or [ElementTree.Element("TiffData")]:
        start = {axis: _count(block.get(f"First{axis}"), 0) for axis in "ZCT"}
        default = 1 if block.get("IFD") else n_pages
        count = min(_count(block.get("PlaneCount"), default), n_planes)
        first = _count(block.get("IFD"), 0)
        position, stride = 0, 1
        for axis in order:
            position += start[axis] * stride
            stride *= extents[axis]
        for step in range(count):
            place, rest = {}, position + step
            for axis in order:
                rest, place[axis] = divmod(rest, extents[axis])
            if not rest:
                yield place["Z"], place["C"], first + step


def _count(text: str | None, default: int) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,10}", text.strip()) else default


# Reading a part of one page


def read_page(file: FileBytes, page: Page | str, sample: int, box: Box, out: npt.NDArray) -> None:
    """Read the y, x part of a box from one page.

    Parameters
    ----------
    file : FileBytes
        The open file.
    page : Page or str
        The page, or why there is none.
    sample : int
        Which value of a voxel is read.
    box : Box
        z, y, x; z is not looked at.
    out : (Y, X) array, C-contiguous, native byte order
        Filled in place.

    Raises
    ------
    DamagedSlice
        When bytes are not there or do not unfold to what the header says.
    Exception
        Whatever a decoder says of corrupt bytes.
    """
    if isinstance(page, str):
        raise DamagedSlice(page)
    if page.format.direct:
        _read_direct(file, page, sample, box, out)
    else:
        _read_segments(file, page, sample, box, out)


def _read_direct(file: FileBytes, page: Page, sample: int, box: Box, out: npt.NDArray) -> None:
    """Read rows of uncompressed strips, neighbouring strips at one go."""
    form = page.format
    (y0, x0), (y1, x1) = box.start[1:], box.stop[1:]
    n = form.segment_samples
    inside = 0 if form.separate else sample
    columns = slice(x0, x1, 1) if n == 1 else slice(x0 * n + inside, x1 * n, n)
    row_bytes = form.stored_rows(1, form.width)
    rows = form.segment_rows
    first = y0 // rows
    skip = sample * form.grid[0] if form.separate else 0
    offsets = page.offsets.load(file)[skip + first : skip + -(-y1 // rows)]
    # Strip i + 1 starts where a full strip i ends: no need to stop between them.
    breaks = np.flatnonzero(np.diff(offsets) != rows * row_bytes) + 1
    for low, high in itertools.pairwise([0, *breaks.tolist(), len(offsets)]):
        start = max(y0, (first + low) * rows)
        stop = min(y1, (first + high) * rows)
        position = int(offsets[low]) + (start - (first + low) * rows) * row_bytes
        read_rows(file, position, form.width * n, form.dtype, columns, out[start - y0 : stop - y0])


def _read_segments(file: FileBytes, page: Page, sample: int, box: Box, out: npt.NDArray) -> None:
    """Decode the strips or tiles that meet the box."""
    form = page.format
    offsets, counts = page.offsets.load(file), page.counts.load(file)
    n_down, n_across = form.grid
    skip = sample * n_down * n_across if form.separate else 0
    inside = 0 if form.separate else sample
    (y0, x0), (y1, x1) = box.start[1:], box.stop[1:]
    rows, columns = form.segment_rows, form.segment_columns
    room = np.empty(form.stored_rows(rows, columns), np.uint8)
    # Plain numbers instead of boxes: a page may have thousands of segments of microseconds each.
    for down in range(y0 // rows, -(-y1 // rows)):
        top, bottom = max(y0, down * rows), min(y1, (down + 1) * rows)
        n_rows = min(rows, form.height - down * rows)
        for across in range(x0 // columns, -(-x1 // columns)):
            left, right = max(x0, across * columns), min(x1, (across + 1) * columns)
            index = skip + down * n_across + across
            data = _segment_bytes(file, int(offsets[index]), int(counts[index]), form)
            target = out[top - y0 : bottom - y0, left - x0 : right - x0]
            if target.shape == (rows, columns) and _fits(form, target):
                _decode_into(data, form, target)
                continue
            voxels = _decode(data, form, n_rows, room)  # (rows, columns, samples)
            target[...] = voxels[
                top - down * rows : bottom - down * rows,
                left - across * columns : right - across * columns,
                inside,
            ]


def _fits(form: PageFormat, target: npt.NDArray) -> bool:
    """Tell whether a whole segment can be decoded where its voxels belong, without a copy."""
    return (
        form.compression in _DECODERS
        and form.segment_samples == 1
        and form.predictor in (1, 2)
        and form.bits % 8 == 0
        and form.dtype == target.dtype
        and target.flags.c_contiguous
    )


def _decode_into(data: bytes, form: PageFormat, target: npt.NDArray) -> None:
    check_ratio(form.compression, len(data), target.nbytes)
    unfolded = _DECODERS[form.compression](data, out=as_bytes(target))
    if len(unfolded) != target.nbytes:
        raise DamagedSlice(
            f"a strip or tile unfolds to {len(unfolded)} bytes and needs {target.nbytes}"
        )
    if form.predictor == 2:
        imagecodecs.delta_decode(target, axis=-1, out=target)


def _segment_bytes(file: FileBytes, position: int, count: int, form: PageFormat) -> bytes:
    """Read one strip or tile after checking that its size can be true."""
    declared = form.stored_rows(form.segment_rows, form.segment_columns)
    if count > 2 * declared + 65536:
        raise DamagedSlice(f"{count} bytes are stored for a strip or tile of {declared}")
    return file.at(position, count)


_DECODERS: dict[str, Callable[..., Any]] = {
    "LZW": lzw_decode,
    "deflate": imagecodecs.deflate_decode,
    "PackBits": imagecodecs.packbits_decode,
    "LZMA": imagecodecs.lzma_decode,
    "zstd": imagecodecs.zstd_decode,
}


def _decode(data: bytes, form: PageFormat, n_rows: int, room: npt.NDArray[np.uint8]) -> npt.NDArray:
    """Decode one strip or tile: bytes to (rows, columns, samples), still in file byte order.

    Parameters
    ----------
    data : bytes
        As stored.
    form : PageFormat
        How.
    n_rows : int
        Rows that are needed. The last strip of a page has fewer than the others, though some
        writers fill it up: there is room for both.
    room : (n_bytes,) uint8
        For a whole segment. The result may be a view of it.
    """
    n_needed = n_rows if not form.tiled else form.segment_rows
    shape = (n_needed, form.segment_columns, form.segment_samples)
    needed = form.stored_rows(n_needed, form.segment_columns)
    check_ratio(form.compression, len(data), needed)
    if form.compression in ("JPEG", "JPEG 2000"):
        return _decode_image(data, form, shape)
    unfolded: bytes | memoryview | bytearray = data
    if form.compression != "none":
        unfolded = _DECODERS[form.compression](data, out=as_bytes(room))
    if len(unfolded) < needed:
        raise DamagedSlice(f"a strip or tile unfolds to {len(unfolded)} bytes and needs {needed}")
    if form.bits % 8:
        row = form.segment_columns * form.segment_samples
        values = imagecodecs.packints_decode(
            bytes(unfolded[:needed]), form.dtype, form.bits, runlen=row
        )
        return values.reshape(shape)
    voxels = np.frombuffer(unfolded, form.dtype, n_needed * shape[1] * shape[2]).reshape(shape)
    if form.predictor == 2:
        return imagecodecs.delta_decode(voxels, axis=-2)
    if form.predictor == 3:
        return imagecodecs.floatpred_decode(voxels, axis=-2)
    return voxels


def _decode_image(data: bytes, form: PageFormat, shape: tuple[int, int, int]) -> npt.NDArray:
    """Decode a strip or tile that is an image file of its own; it says its size itself."""
    if form.compression == "JPEG":
        size = check_jpeg(data)
        if size.width != shape[1] or not shape[0] <= size.height <= form.segment_rows:
            raise DamagedSlice(
                f"a JPEG strip or tile of {size.height} x {size.width} lies where "
                f"{shape[0]} x {shape[1]} voxels (y, x) are needed"
            )
        colours = {2: ("RGB", "RGB"), 6: ("YCBCR", "RGB")} if shape[2] == 3 else {}
        stored, wanted = colours.get(form.photometric, (None, None))
        voxels = imagecodecs.jpeg8_decode(
            data, tables=form.jpeg_tables, colorspace=stored, outcolorspace=wanted
        )
    else:
        room = np.empty(shape if shape[2] > 1 else shape[:2], form.dtype.newbyteorder("="))
        voxels = imagecodecs.jpeg2k_decode(data, out=room)
    return voxels.reshape(-1, *shape[1:])[: shape[0]]
