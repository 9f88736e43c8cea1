"""Where do the voxels of each TIFF page lie?

A TIFF is a chain of directories (IFD), one per page; each says how its page is cut into strips or
tiles and where their bytes are. The chain of ten thousand pages is walked here in about a second
because only the tags that matter are looked at, and long tables of strips stay on disk until their
page is read.

1. The eight or sixteen bytes at the start give byte order and the first directory.
2. Each directory becomes a :class:`Page`: a :class:`PageFormat`, which equal pages share, and two
   :class:`Table` values that say where the offsets and byte counts of the segments are.
3. A directory that cannot be understood becomes its reason, a string, in the place of the page.

Nothing in a header is believed: every position is checked against the size of the file, and a chain
that returns to itself is refused. TIFF 6.0 and BigTIFF, of both byte orders.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cvdask.volume.sources.source import (
    MAX_SEGMENT_BYTES,
    DamagedSlice,
    FileBytes,
    SourceError,
    native_dtype,
)

COMPRESSIONS = {
    1: "none",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    34712: "JPEG 2000",
    34925: "LZMA",
    50000: "zstd",
}

# More than this many voxels' bytes per stored byte is a lying header or a bomb. deflate cannot
# pass 1032:1, LZW about 2600:1, PackBits 64:1; the others hold a blank slice in almost nothing.
_MAX_RATIO = {"LZW": 5000, "deflate": 5000, "PackBits": 5000, "JPEG": 5000}
_MAX_RATIO_BLANK = 100_000

_N_PIXELS_LIMIT = 1 << 20  # per side: four times the largest microscope frame known to us

_TYPE_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 13: 4, 16: 8, 18: 8}

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_FILL_ORDER, _DESCRIPTION, _OFFSETS, _SAMPLES, _ROWS, _COUNTS = 266, 270, 273, 277, 278, 279
_X_RESOLUTION, _Y_RESOLUTION, _PLANAR, _PREDICTOR = 282, 283, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_SAMPLE_FORMAT, _JPEG_TABLES, _DEPTH = 339, 347, 32997


@dataclass(frozen=True)
class PageFormat:
    """How the pages of one look are stored; equal pages share one.

    Parameters
    ----------
    height, width : int
        Voxels.
    samples : int
        Values per voxel, 1 for grey.
    separate : bool
        True where the samples lie in planes of their own.
    bits : int
        Bits per value on disk.
    dtype : numpy.dtype
        dtype of a value once unpacked, in the file's byte order.
    compression : str
        One of the values of ``COMPRESSIONS``.
    predictor : int
        1 none, 2 differences along x, 3 differences of float bytes.
    segment_rows, segment_columns : int
        Voxels of a strip or tile; strips have the width of the page.
    tiled : bool
        True for tiles, which are padded at the borders; strips are not.
    photometric : int
        As in TIFF: 0 and 1 grey, 2 RGB, 3 palette, 6 YCbCr.
    jpeg_tables : bytes or None
        Tables that all JPEG segments of a page share.
    """

    height: int
    width: int
    samples: int
    separate: bool
    bits: int
    dtype: np.dtype
    compression: str
    predictor: int
    segment_rows: int
    segment_columns: int
    tiled: bool
    photometric: int
    jpeg_tables: bytes | None

    @property
    def segment_samples(self) -> int:
        """Values per voxel within one segment."""
        return 1 if self.separate else self.samples

    @property
    def grid(self) -> tuple[int, int]:
        """Segments along y and x."""
        return -(-self.height // self.segment_rows), -(-self.width // self.segment_columns)

    @property
    def direct(self) -> bool:
        """Tell whether rows lie in the file as they do in memory."""
        return self.compression == "none" and not self.tiled and self.bits % 8 == 0

    def stored_rows(self, n_rows: int, n_columns: int) -> int:
        """Bytes of uncompressed rows; each row is padded to whole bytes."""
        return n_rows * -(-n_columns * self.segment_samples * self.bits // 8)


class Table(NamedTuple):
    """A list of unsigned integers in the file, not read yet."""

    position: int
    code: str
    n_values: int
    inline: bytes

    def load(self, file: FileBytes) -> npt.NDArray[np.int64]:
        """Read the list.

        Raises
        ------
        DamagedSlice
            When it or one of its values lies beyond the end of the file.
        """
        values = self.values(file)
        largest = int(values.max())
        if largest > file.size:
            raise DamagedSlice(
                f"a strip or tile at byte, or of bytes, {largest} lies beyond the end of the file, "
                f"which has {file.size} bytes"
            )
        return values.astype(np.int64)

    def values(self, file: FileBytes) -> npt.NDArray[np.unsignedinteger]:
        """Read the list as it is stored."""
        dtype = np.dtype(self.code)
        data = self.inline or file.at(self.position, self.n_values * dtype.itemsize)
        return np.frombuffer(data, dtype, self.n_values)


class Page(NamedTuple):
    """One image of a TIFF file."""

    format: PageFormat
    offsets: Table
    counts: Table
    reduced: bool  # a thumbnail or pyramid level of another page

    def check_extent(self, file: FileBytes) -> None:
        """Check declared sizes against the bytes that are there, without decoding any.

        Raises
        ------
        DamagedSlice
            When a segment lies beyond the end of the file, has no bytes, or the page is declared
            larger than its bytes can unfold to.
        """
        form = self.format
        offsets, counts = self.offsets.load(file), self.counts.load(file)
        if form.direct:
            counts = np.full(counts.shape, form.stored_rows(form.segment_rows, form.width))
            n_last = form.height - (form.grid[0] - 1) * form.segment_rows
            counts[form.grid[0] - 1 :: form.grid[0]] = form.stored_rows(n_last, form.width)
        ends = offsets + counts
        if int(ends.max()) > file.size:
            raise DamagedSlice(
                f"its voxels end at byte {int(ends.max())}, beyond the end of the file, which has "
                f"{file.size} bytes"
            )
        if int(counts.min()) == 0 or int(offsets.min()) < 8:
            raise DamagedSlice("a strip or tile has no bytes")
        declared = form.height * form.width * form.samples * form.bits // 8
        check_ratio(form.compression, int(counts.sum()), declared)


def check_ratio(compression: str, n_stored: int, n_declared: int) -> None:
    """Refuse to unfold bytes into more than their compression can hold.

    Raises
    ------
    DamagedSlice
        When more bytes are declared than ``n_stored`` bytes of this compression can unfold to.
    """
    limit = 1 if compression == "none" else _MAX_RATIO.get(compression, _MAX_RATIO_BLANK)
    if n_declared > n_stored * limit:
        raise DamagedSlice(
            f"its header declares {n_declared} bytes of voxels but {n_stored} bytes are stored "
            f"({compression}, at most {limit}:1): the header lies"
        )


@dataclass
class Directory:
    """All pages of a TIFF file, and what its first page says about the rest.

    Parameters
    ----------
    pages : list of Page or str
        In the order of the chain; a string is the reason why a page cannot be read.
    description : str
        Text of the first page, empty where there is none.
    voxels_per_unit : tuple of float
        y and x resolution of the first page, 0 where there is none.
    """

    pages: list[Page | str] = field(default_factory=list)
    description: str = ""
    voxels_per_unit: tuple[float, float] = (0.0, 0.0)


def is_tiff(head: bytes) -> bool:
    """Tell whether a file starts as a TIFF or BigTIFF does."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_directory(file: FileBytes, where: str, max_pages: int | None = None) -> Directory:
    """Walk the chain of pages.

    Parameters
    ----------
    file : FileBytes
        The open file.
    where : str
        Its name, for errors.
    max_pages : int, optional
        Stop after so many pages.

    Raises
    ------
    SourceError
        When the chain returns to an earlier page.
    """
    try:
        walk = _Walk(file)
    except DamagedSlice as error:
        return Directory([str(error)])
    result = Directory()
    position = walk.first
    seen: dict[int, int] = {}
    while position and (max_pages is None or len(result.pages) < max_pages):
        if position in seen:
            raise SourceError(
                f"{where}: pages of a TIFF must form a chain. Received: page {len(seen) - 1} names "
                f"page {seen[position]} (byte {position}) as its successor. The file is corrupt; "
                "export it again"
            )
        seen[position] = len(seen)
        try:
            entries, position = walk.entries(position)
        except DamagedSlice as error:
            # The way to later pages is lost with this one.
            result.pages.append(f"page header unreadable: {error}")
            break
        try:
            result.pages.append(walk.page(entries))
        except DamagedSlice as error:
            result.pages.append(f"page header unreadable: {error}")
        if len(result.pages) == 1:
            result.description = walk.text(entries, _DESCRIPTION)
            result.voxels_per_unit = (
                walk.rational(entries, _Y_RESOLUTION),
                walk.rational(entries, _X_RESOLUTION),
            )
    return result


class _Entry(NamedTuple):
    kind: int
    n_values: int
    payload: bytes


class _Walk:
    """The byte order of one file, and how its directories are taken apart."""

    def __init__(self, file: FileBytes) -> None:
        head = file.up_to(0, 16)
        if not is_tiff(head):
            raise DamagedSlice(f"a TIFF starts with 'II*' or 'MM.*', it starts with {head[:4]!r}")
        self.file = file
        self.order = "<" if head[:2] == b"II" else ">"
        self.big = b"+" in head[2:4]
        self.word = 8 if self.big else 4
        if len(head) < 2 * self.word:
            raise DamagedSlice(f"the TIFF header is cut off after {len(head)} bytes")
        self.first = self.unpack("Q", head[8:16]) if self.big else self.unpack("I", head[4:8])
        self.formats: dict[PageFormat, PageFormat] = {}
        self.entry = struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))

    def unpack(self, code: str, data: bytes) -> int:
        return int(struct.unpack(self.order + code, data)[0])

    def entries(self, position: int) -> tuple[dict[int, _Entry], int]:
        """Return the tags of the directory at ``position``, and where the next one is."""
        n_head = 8 if self.big else 2
        if position + n_head > self.file.size:
            raise DamagedSlice(
                f"it should lie at byte {position}, the file has {self.file.size} bytes"
            )
        # One system call for all of a usual directory.
        data = self.file.up_to(position, 1024)
        n_entries = self.unpack("Q" if self.big else "H", data[:n_head])
        if not 1 <= n_entries <= 1 << 16:
            raise DamagedSlice(f"it declares {n_entries} tags at byte {position}")
        n_bytes = n_head + n_entries * self.entry.size + self.word
        if n_bytes > len(data):
            data = self.file.at(position, n_bytes)
        table = data[n_head : n_bytes - self.word]
        tags = {tag: _Entry(*rest) for tag, *rest in self.entry.iter_unpack(table)}
        following = self.unpack("Q" if self.big else "I", data[n_bytes - self.word : n_bytes])
        return tags, following

    def payload(self, entry: _Entry, size: int) -> tuple[int, bytes]:
        """Return where an entry's values lie, or the values where they fit into the entry."""
        if entry.n_values * size <= self.word:
            return 0, entry.payload[: entry.n_values * size]
        position = self.unpack("Q" if self.big else "I", entry.payload)
        if position + entry.n_values * size > self.file.size:
            raise DamagedSlice(
                f"{entry.n_values} values of a tag at byte {position} lie beyond the end of the "
                f"file, which has {self.file.size} bytes"
            )
        return position, b""

    def table(self, tags: dict[int, _Entry], tag: int) -> Table:
        entry = tags.get(tag)
        code = _TYPE_CODES.get(entry.kind) if entry else None
        if entry is None or code is None or entry.n_values < 1:
            raise DamagedSlice(f"it has no usable tag {tag}")
        position, inline = self.payload(entry, _TYPE_SIZES[entry.kind])
        return Table(position, self.order + code, entry.n_values, inline)

    def number(self, tags: dict[int, _Entry], tag: int, default: int | None = None) -> int:
        """Return the one value of a tag; all values where there are several must be equal."""
        entry = tags.get(tag)
        if entry is None and default is not None:
            return default
        if entry is not None and entry.n_values == 1 and entry.kind in _TYPE_CODES:
            size = _TYPE_SIZES[entry.kind]
            if size <= self.word:  # by far the most frequent case
                return self.unpack(_TYPE_CODES[entry.kind], entry.payload[:size])
        if entry is not None and entry.n_values > 64:
            raise DamagedSlice(f"tag {tag} has {entry.n_values} values")
        values = set(self.table(tags, tag).values(self.file).tolist())
        if len(values) != 1:
            raise DamagedSlice(f"tag {tag} has different values per sample: {sorted(values)}")
        return values.pop()

    def text(self, tags: dict[int, _Entry], tag: int) -> str:
        """Return a text, empty where it is absent, unreadable or above 64 MiB."""
        entry = tags.get(tag)
        if entry is None or entry.n_values > 64 << 20:
            return ""
        try:
            position, inline = self.payload(entry, 1)
            data = inline or self.file.at(position, entry.n_values)
        except DamagedSlice:
            return ""
        return data.split(b"\0", 1)[0].decode("utf-8", "replace")

    def rational(self, tags: dict[int, _Entry], tag: int) -> float:
        """Return a fraction, 0 where it is absent or no number."""
        entry = tags.get(tag)
        if entry is None or entry.kind != 5 or entry.n_values != 1:
            return 0.0
        try:
            position, inline = self.payload(entry, 8)
            data = inline or self.file.at(position, 8)
        except DamagedSlice:
            return 0.0
        above, below = struct.unpack(self.order + "II", data)
        return above / below if below else 0.0

    def page(self, tags: dict[int, _Entry]) -> Page:
        """Understand one directory."""
        number = self.number
        height, width = number(tags, _HEIGHT), number(tags, _WIDTH)
        samples = number(tags, _SAMPLES, 1)
        if not (1 <= height <= _N_PIXELS_LIMIT and 1 <= width <= _N_PIXELS_LIMIT):
            raise DamagedSlice(
                f"height and width must be 1 to {_N_PIXELS_LIMIT}, it declares {height} and {width}"
            )
        if not 1 <= samples <= 1024:
            raise DamagedSlice(f"it declares {samples} samples per voxel")
        if number(tags, _DEPTH, 1) != 1:
            raise DamagedSlice("volumes inside one page (ImageDepth) are not supported")
        if number(tags, _FILL_ORDER, 1) != 1:
            raise DamagedSlice("reversed bits (FillOrder 2) are not supported")
        code = number(tags, _COMPRESSION, 1)
        if code not in COMPRESSIONS:
            raise DamagedSlice(
                f"compression {code} is not among those known: "
                + ", ".join(f"{name} ({key})" for key, name in COMPRESSIONS.items())
            )
        bits = number(tags, _BITS, 1)
        tiled = _TILE_WIDTH in tags or _TILE_OFFSETS in tags
        rows = number(tags, _TILE_HEIGHT) if tiled else number(tags, _ROWS, height)
        columns = number(tags, _TILE_WIDTH) if tiled else width
        form = PageFormat(
            height=height,
            width=width,
            samples=samples,
            separate=samples > 1 and number(tags, _PLANAR, 1) == 2,
            bits=bits,
            dtype=self.dtype(bits, number(tags, _SAMPLE_FORMAT, 1)),
            compression=COMPRESSIONS[code],
            # Predictors belong to compression; libtiff ignores them without one, so do we.
            predictor=number(tags, _PREDICTOR, 1) if code != 1 else 1,
            segment_rows=rows if tiled else min(rows, height),
            segment_columns=columns,
            tiled=tiled,
            photometric=number(tags, _PHOTOMETRIC, 1),
            jpeg_tables=self.jpeg_tables(tags),
        )
        self.check(form)
        page = Page(
            format=self.formats.setdefault(form, form),
            offsets=self.table(tags, _TILE_OFFSETS if tiled else _OFFSETS),
            counts=self.byte_counts(tags, form),
            reduced=bool(number(tags, _SUBFILE, 0) & 1),
        )
        n_expected = form.grid[0] * form.grid[1] * (samples if form.separate else 1)
        for table in (page.offsets, page.counts):
            if table.n_values != n_expected:
                raise DamagedSlice(
                    f"it lists {table.n_values} strips or tiles and needs {n_expected}"
                )
        return page

    def byte_counts(self, tags: dict[int, _Entry], form: PageFormat) -> Table:
        """Return the byte counts; writers of uncompressed single strips may leave them out."""
        tag = _TILE_COUNTS if form.tiled else _COUNTS
        if tag not in tags and form.direct and form.grid == (1, 1) and not form.separate:
            data = struct.pack(self.order + "Q", form.stored_rows(form.height, form.width))
            return Table(0, self.order + "Q", 1, data)
        return self.table(tags, tag)

    def jpeg_tables(self, tags: dict[int, _Entry]) -> bytes | None:
        entry = tags.get(_JPEG_TABLES)
        if entry is None:
            return None
        if entry.n_values > 1 << 16:
            raise DamagedSlice(f"its JPEG tables have {entry.n_values} bytes")
        position, inline = self.payload(entry, 1)
        return inline or self.file.at(position, entry.n_values)

    def dtype(self, bits: int, sample_format: int) -> np.dtype:
        if bits in (8, 16, 32, 64, 128):
            kinds = {1: "u", 2: "i", 3: "f", 4: "u", 5: "c", 6: "c"}
            try:
                return np.dtype(f"{self.order}{kinds[sample_format]}{bits // 8}")
            except (KeyError, TypeError):
                pass
        elif sample_format in (1, 4) and bits in (1, 2, 4, 10, 12, 14):
            # Packed values are unpacked into native integers.
            return np.dtype(np.uint8 if bits <= 8 else np.uint16)
        raise DamagedSlice(f"{bits} bits of sample format {sample_format} are no known number")

    def check(self, form: PageFormat) -> None:
        """Refuse combinations that would be decoded to something else than was meant."""
        if form.segment_rows < 1 or form.segment_columns < 1:
            raise DamagedSlice(
                f"its strips or tiles are {form.segment_rows} by {form.segment_columns} voxels"
            )
        n_bytes = form.stored_rows(form.segment_rows, form.segment_columns)
        if n_bytes > MAX_SEGMENT_BYTES and not form.direct:
            raise DamagedSlice(
                f"a strip or tile has {n_bytes} bytes, more than {MAX_SEGMENT_BYTES}, which would "
                "have to be decoded at once"
            )
        whole = form.bits % 8 == 0
        allowed = form.predictor == 1 or (
            whole and (form.predictor == 2 or (form.predictor == 3 and form.dtype.kind == "f"))
        )
        if not allowed:
            raise DamagedSlice(f"predictor {form.predictor} does not fit {form.dtype}")
        if form.compression == "JPEG" and form.bits != 8:
            raise DamagedSlice(f"JPEG with {form.bits} bits is not supported")


def check_grey(form: PageFormat, channel: int | None, where: str) -> int:
    """Return which sample of a voxel is read, after refusing what is no grey image.

    Raises
    ------
    SourceError
        For palettes, for colour without ``channel``, for a channel that does not exist, and for
        dtypes that cannot be read.
    """
    native_dtype(form.dtype, where)
    if form.photometric == 3:
        raise SourceError(
            f"{where}: slices must be grey. Received: palette colours (photometric 3). Convert "
            "the file to grey values first"
        )
    if form.samples == 1:
        return 0
    return chosen_channel(form.samples, channel, where)


def chosen_channel(n_channels: int, channel: int | None, where: str) -> int:
    """Return the channel that is read.

    Raises
    ------
    SourceError
        When there are several and none is chosen, or the chosen one does not exist.
    """
    if channel is None and n_channels > 1:
        raise SourceError(
            f"{where}: slices must be grey, one value per voxel. Received: {n_channels} channels. "
            "Choose one, for example channel=0"
        )
    if channel is not None and not 0 <= channel < n_channels:
        raise SourceError(
            f"{where}: channel must be 0 to {n_channels - 1}. Received: channel={channel}"
        )
    return channel or 0
