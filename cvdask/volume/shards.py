"""How do voxels become the bytes of a shard, and come back?

A shard is its non-empty chunks, one behind the other, then a table of (offset, length) pairs, one
per chunk in z, y, x order, then the table's crc32c. Each chunk ends in a crc32c of its own::

    chunk 0 crc | chunk 3 crc | … | (0, 91) (absent) (absent) (91, 80) … crc

This is the ``sharding_indexed`` codec of Zarr 3, so any reader of Zarr 3 reads it. It is written
and read here because zarr-python's pipeline spends as long on bookkeeping per chunk as on
compression (``benchmarks/store.py``).
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import google_crc32c
import numcodecs.blosc
import numpy as np
from numcodecs import Blosc, Zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from cvdask.errors import DamagedData
from cvdask.volume.boxes import Block, Box, Grid

# One request for more bytes than are wanted, where it is a tenth more at most.
MOST_FOR_NOTHING = 1.1
# One thread per worker is the engine's rule; blosc's own pool would compete with it.
numcodecs.blosc.use_threads = False


class _Scratch(threading.local):
    """Bytes that a thread puts together, in memory that it keeps."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def put(self, offset: int, *parts: bytes) -> int:
        """Place parts one behind the other and return where they end."""
        for part in parts:
            stop = offset + len(part)
            if stop > len(self._buffer):
                grown = np.empty(max(stop, 2 * len(self._buffer)), np.uint8)
                grown[:offset] = self._buffer[:offset]
                self._buffer = grown
            self._buffer[offset:stop] = np.frombuffer(part, np.uint8)
            offset = stop
        return offset

    def view(self, stop: int) -> memoryview:
        """Return what was placed, without a copy."""
        return self._buffer[:stop].data


_scratch = _Scratch()


@dataclass(frozen=True)
class ShardLayout:
    """The layout of an array's shards.

    Parameters
    ----------
    shape, shard_shape, chunk_shape : tuple of int
        Voxels z, y, x of the array, of a stored object, and of what is compressed together.
    dtype : dtype
        Little-endian type of the voxels.
    codec : numcodecs codec
        Compresses one chunk.
    """

    shape: tuple[int, ...]
    shard_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    codec: Any

    ABSENT: ClassVar[int] = 2**64 - 1
    LONGEST: ClassVar[int] = 2**62

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return tuple(s // c for s, c in zip(self.shard_shape, self.chunk_shape, strict=True))

    def encode(self, data: np.ndarray, digest: Any) -> memoryview | None:
        """Encode the voxels of one shard; None when all are zero. Feeds ``digest`` the voxels.

        The result lies in a buffer of the calling thread, which its next shard overwrites: a fresh
        one would cost as much in page faults as the checksums do.
        """
        table = np.full((math.prod(self.table_shape), 2), self.ABSENT, "<u8")
        padded = np.zeros(self.chunk_shape, self.dtype)
        whole = np.empty(self.chunk_shape, self.dtype)
        offset = 0
        for number, cut in self._cuts(data.shape):
            chunk = data[cut]
            if chunk.shape == self.chunk_shape:
                np.copyto(whole, chunk)
                chunk = whole
            else:
                chunk = np.ascontiguousarray(chunk)
            digest.update(chunk.data)
            if not chunk.flat[0] and not chunk.any():
                continue
            if chunk.shape != self.chunk_shape:
                padded[...] = 0
                padded[tuple(slice(n) for n in chunk.shape)] = chunk
                chunk = padded
            encoded = bytes(self.codec.encode(chunk))
            table[number] = offset, len(encoded) + 4
            offset = _scratch.put(offset, encoded, _checksum(encoded))
        if not offset:
            return None
        index = table.tobytes()
        return _scratch.view(_scratch.put(offset, index, _checksum(index)))

    @property
    def index_bytes(self) -> int:
        """Length of the table of chunks at a shard's end, with its checksum."""
        return 16 * math.prod(self.table_shape) + 4

    def decode(self, shard: memoryview, box: Box, out: np.ndarray) -> None:
        """Decode the chunks of one shard that meet a box of it into ``out``, of the box's shape."""

        def cut(ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
            if ranges[-1][1] > len(shard):
                raise DamagedData(
                    f"a chunk at byte {ranges[-1][0]} lies outside its shard of {len(shard)} bytes"
                )
            return [shard[start:stop] for start, stop in ranges]

        self.decode_parts(shard, cut, box, out)

    def decode_parts(
        self,
        index: memoryview,
        read: Callable[[Sequence[tuple[int, int]]], Sequence[memoryview]],
        box: Box,
        out: np.ndarray,
    ) -> None:
        """Decode the chunks of one shard that meet a box of it, reading no others.

        A chunk is decoded into a buffer of its declared size. Bytes that claim another are refused:
        more would be allocated, fewer would leave the voxels of the chunk before it.

        Parameters
        ----------
        index : memoryview
            The last ``index_bytes`` of the shard, or more.
        read : callable
            Takes ranges of bytes of the shard, (start, stop), and returns what is there.
        box : Box
            In voxels of the shard.
        out : array of ``box.shape``
            Zeros; written to.
        """
        table = self._table(index)
        wanted: list[tuple[Block, int, int]] = []
        for block in Grid(self.shard_shape, self.chunk_shape).touching(box):
            offset, length = (int(v) for v in table[block.index])
            if offset != self.ABSENT:
                wanted.append((block, offset, length))
        wanted.sort(key=lambda one: one[1])
        most = 2 * math.prod(self.chunk_shape) * self.dtype.itemsize + 1024
        ranges: list[tuple[int, int]] = []
        for block, offset, length in wanted:
            # What is compressed is little longer than what is not; none may ask for more memory.
            if not 5 <= length <= most or offset + length > self.LONGEST:
                raise DamagedData(
                    f"chunk {block.index} lies outside its shard: {length} bytes at {offset}"
                )
            if ranges and ranges[-1][1] == offset:
                ranges[-1] = (ranges[-1][0], offset + length)
            else:
                ranges.append((offset, offset + length))
        if ranges and ranges[-1][1] - ranges[0][0] <= MOST_FOR_NOTHING * sum(
            b - a for a, b in ranges
        ):
            ranges = [(ranges[0][0], ranges[-1][1])]
        pieces = zip(ranges, read(ranges) if ranges else (), strict=True)
        start, stop, piece = 0, 0, memoryview(b"")
        chunk = np.empty(self.chunk_shape, self.dtype)
        for block, offset, length in wanted:
            if offset >= stop:
                (start, stop), piece = next(pieces)
            encoded = piece[offset - start : offset - start + length]
            if len(encoded) < length:
                raise DamagedData(f"chunk {block.index} lies outside its shard")
            self._decode_chunk(block.index, encoded, chunk)
            part = block.write.intersect(box)
            out[part.within(box)] = chunk[part.within(block.write)]

    def _decode_chunk(self, number: int, data: memoryview, chunk: np.ndarray) -> None:
        encoded = bytes(data[:-4])
        if _checksum(encoded) != data[-4:]:
            raise DamagedData(f"chunk {number} does not match its checksum")
        claimed = _claimed_bytes(self.codec, encoded)
        if claimed is not None and claimed != chunk.nbytes:
            raise DamagedData(
                f"chunk {number} claims {claimed} bytes, its shape has {chunk.nbytes}"
            )
        try:
            if claimed is None:
                decoded = np.frombuffer(self.codec.decode(encoded), self.dtype)
                chunk[...] = decoded.reshape(self.chunk_shape)
            else:
                self.codec.decode(encoded, out=chunk)
        except (ValueError, RuntimeError, SystemError) as error:
            raise DamagedData(f"chunk {number} cannot be decoded: {error}") from error

    def _table(self, shard: memoryview) -> np.ndarray:
        n_bytes = 16 * math.prod(self.table_shape)
        index = bytes(shard[-n_bytes - 4 : -4])
        if len(index) != n_bytes or _checksum(index) != shard[-4:]:
            raise DamagedData(f"the chunk table of a shard of {len(shard)} bytes is damaged")
        return np.frombuffer(index, "<u8").reshape(-1, 2)

    def _cuts(self, shape: Sequence[int]) -> Iterator[tuple[int, tuple[slice, ...]]]:
        """Yield number and index of every chunk that holds voxels of a shard of this shape."""
        starts = [
            range(0, extent, step) for extent, step in zip(shape, self.chunk_shape, strict=True)
        ]
        strides = [math.prod(self.table_shape[i + 1 :]) for i in range(len(self.table_shape))]
        for corner in itertools.product(*starts):
            position = (a // c for a, c in zip(corner, self.chunk_shape, strict=True))
            number = sum(p * s for p, s in zip(position, strides, strict=True))
            yield (
                number,
                tuple(slice(a, a + c) for a, c in zip(corner, self.chunk_shape, strict=True)),
            )

    @classmethod
    def of(cls, array: Any) -> Self | None:
        """Recognise the layout in an opened Zarr array; None for any other array."""
        if array.metadata.zarr_format != 3 or array.fill_value != 0:
            return None
        if array.metadata.encode_chunk_key((0, 1)) != "c/0/1":
            return None  # stored under other names than those of shard_key
        codecs = array.metadata.codecs
        sharding = codecs[0]
        if len(codecs) != 1 or not isinstance(sharding, ShardingCodec):
            return None
        index_names = [type(codec) for codec in sharding.index_codecs]
        inner = sharding.codecs
        if (
            sharding.index_location.value != "end"
            or index_names != [BytesCodec, Crc32cCodec]
            or len(inner) != 3
            or not isinstance(inner[0], BytesCodec)
            or (inner[0].endian is not None and inner[0].endian.value != "little")
            or not isinstance(inner[2], Crc32cCodec)
        ):
            return None
        codec: Any
        if isinstance(inner[1], ZstdCodec):
            codec = Zstd(level=inner[1].level, checksum=inner[1].checksum)
        elif isinstance(inner[1], BloscCodec):
            settings = inner[1].to_dict()["configuration"]
            shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[str(settings["shuffle"])]  # type: ignore[call-overload, index]
            codec = Blosc(settings["cname"], settings["clevel"], shuffle, settings["blocksize"])  # type: ignore[call-overload, index]
        else:
            return None
        return cls(
            array.shape, array.shards, array.chunks, np.dtype(array.dtype).newbyteorder("<"), codec
        )


def _claimed_bytes(codec: Any, encoded: bytes) -> int | None:
    """Return how many bytes a compressed chunk says it holds; None where it does not say.

    References
    ----------
    Zstandard frame header: RFC 8878, section 3.1.1.1. Blosc 1 header: ``README_CHUNK_FORMAT``.
    """
    if isinstance(codec, Blosc):
        return int.from_bytes(encoded[4:8], "little")
    descriptor = encoded[4] if len(encoded) > 4 else 0
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    first = 6 - single_segment + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(encoded[first : first + width], "little") + (256 if width == 2 else 0)
    return size if width else None


def _checksum(data: bytes) -> bytes:
    """Return the crc32c as Zarr stores it."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")
