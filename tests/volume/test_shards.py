"""Is a shard what Zarr 3 says it is, and is a damaged one never taken for voxels?"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import xxhash
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Blosc, Zstd
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from cvdask.errors import DamagedData
from cvdask.volume.boxes import Box
from cvdask.volume.shards import ShardLayout
from tests import strategies
from tests.samples import random_voxels

ABSENT = 2**64 - 1


def crc32c(data: bytes) -> bytes:
    """Compute the checksum bit by bit: RFC 3720, appendix B.4."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return struct.pack("<I", value ^ 0xFFFFFFFF)


class Plain:
    """A codec that does nothing, so that the bytes of a shard can be written out."""

    def encode(self, data: np.ndarray) -> bytes:
        return data.tobytes()


def layout(shard: tuple[int, ...], chunk: tuple[int, ...], dtype: str, codec: Any) -> ShardLayout:
    return ShardLayout(shard, shard, chunk, np.dtype(dtype), codec)


def encode(shards: ShardLayout, data: np.ndarray) -> bytes:
    encoded = shards.encode(data, xxhash.xxh3_64())
    assert encoded is not None
    return bytes(encoded)


def decode(shards: ShardLayout, shard: bytes, box: Box | None = None) -> np.ndarray:
    box = box or Box.whole(shards.shard_shape)
    out = np.zeros(box.shape, shards.dtype)
    shards.decode(memoryview(shard), box, out)
    return out


# Small cases, written out


def test_the_bytes_of_a_shard() -> None:
    # Chunks of 2 × 2 in z, y, x order: the first is empty, the shard's last column is padding.
    data = np.array([[0, 0, 1], [0, 0, 2]], "<u2")
    chunk = struct.pack("<4H", 1, 0, 2, 0)
    table = struct.pack("<4Q", ABSENT, ABSENT, 0, 12)
    expected = chunk + crc32c(chunk) + table + crc32c(table)
    assert encode(layout((2, 4), (2, 2), "<u2", Plain()), data) == expected


def test_a_shard_of_zeros_is_not_stored() -> None:
    shards = layout((4, 4), (2, 2), "u1", Zstd())
    assert shards.encode(np.zeros((4, 4), "u1"), xxhash.xxh3_64()) is None


def test_negative_zero_is_no_absence() -> None:
    # Zeros of either sign compare equal, and a chunk of them may be left out: they read as 0.
    shards = layout((4,), (2,), "<f4", Zstd())
    data = np.array([-0.0, 0.0, np.nan, -0.0], "<f4")
    np.testing.assert_array_equal(decode(shards, encode(shards, data)), data)


# Invariants


@given(st.data())
def test_decode_gives_back_any_box(data: st.DataObject) -> None:
    chunk = data.draw(strategies.shapes(1, 3))
    shard = tuple(c * data.draw(st.integers(1, 3)) for c in chunk)
    codec = data.draw(st.sampled_from([Zstd(3), Blosc("zstd", 3, Blosc.BITSHUFFLE)]))
    dtype = data.draw(st.sampled_from(["u1", "<u2", "<i4", "<u8", "<f4"]))
    shards = layout(shard, chunk, dtype, codec)
    voxels = random_voxels(shard, dtype, data.draw(st.integers(0, 99)))
    voxels.flat[-1] = 1
    box = data.draw(strategies.boxes(shard))
    read = decode(shards, encode(shards, voxels), box)
    np.testing.assert_array_equal(read, voxels[box.slices])


@given(st.data())
def test_the_digest_is_that_of_the_voxels_chunk_by_chunk(data: st.DataObject) -> None:
    chunk = data.draw(strategies.shapes(2, 2))
    shape = data.draw(strategies.shapes(2, 2))
    shard = Box.whole(shape).align(chunk).stop
    voxels = random_voxels(shape, "<u2", 1)
    fed, expected = xxhash.xxh3_64(), xxhash.xxh3_64()
    layout(shard, chunk, "<u2", Zstd()).encode(voxels, fed)
    for y in range(0, shape[0], chunk[0]):
        for x in range(0, shape[1], chunk[1]):
            expected.update(voxels[y : y + chunk[0], x : x + chunk[1]].tobytes())
    assert fed.hexdigest() == expected.hexdigest()


# Damage


@pytest.fixture(params=["zstd", "blosc"])
def stored(request: pytest.FixtureRequest) -> tuple[ShardLayout, bytes]:
    codec = Zstd(3) if request.param == "zstd" else Blosc("zstd", 3, Blosc.BITSHUFFLE)
    shards = layout((4, 8), (4, 4), "<u2", codec)
    return shards, encode(shards, random_voxels((4, 8), "<u2", empty=0.0))


def test_any_flipped_byte_is_found(stored: tuple[ShardLayout, bytes]) -> None:
    shards, shard = stored
    for position in range(len(shard)):
        for bit in (0, 7):
            damaged = bytearray(shard)
            damaged[position] ^= 1 << bit
            with pytest.raises(DamagedData, match="chunk"):
                decode(shards, bytes(damaged))


def test_a_flipped_byte_matters_to_the_boxes_it_holds_and_to_no_other(
    stored: tuple[ShardLayout, bytes],
) -> None:
    shards, shard = stored
    left = Box((0, 0), (4, 4))
    table = len(shard) - 2 * 16 - 4
    offset, length = struct.unpack_from("<2Q", shard, table)
    expected = decode(shards, shard, left)
    for position in range(len(shard)):
        damaged = bytearray(shard)
        damaged[position] ^= 0x10
        if offset <= position < offset + length or position >= table:
            with pytest.raises(DamagedData, match="chunk"):
                decode(shards, bytes(damaged), left)
        else:
            np.testing.assert_array_equal(decode(shards, bytes(damaged), left), expected)


def test_a_shard_cut_anywhere_or_grown_is_found(stored: tuple[ShardLayout, bytes]) -> None:
    shards, shard = stored
    for length in range(len(shard)):
        with pytest.raises(DamagedData, match=str(length)):
            decode(shards, shard[:length])
    with pytest.raises(DamagedData, match=str(len(shard) + 1)):
        decode(shards, shard + b"\0")


def test_a_table_that_points_outside_is_found() -> None:
    shards = layout((4,), (4,), "u1", Zstd())
    table = struct.pack("<2Q", 2**40, 9)
    with pytest.raises(DamagedData, match="56"):
        decode(shards, table + crc32c(table) + bytes(16) + table + crc32c(table))


@pytest.mark.parametrize("codec", [Zstd(3), Blosc("zstd", 3, Blosc.BITSHUFFLE)])
@pytest.mark.parametrize("n_voxels", [1, 3, 5, 300, 10**6])
def test_a_chunk_that_claims_another_size_is_refused(codec: Any, n_voxels: int) -> None:
    # With good checksums: as a writer leaves it whose metadata was changed afterwards. Fewer bytes
    # must not leave the voxels of the chunk decoded before, more must not be allocated.
    shards = layout((8,), (4,), "u1", codec)
    chunks = [bytes(codec.encode(np.full(n, 7, "u1"))) for n in (4, n_voxels)]
    parts = [chunk + crc32c(chunk) for chunk in chunks]
    table = struct.pack("<4Q", 0, len(parts[0]), len(parts[0]), len(parts[1]))
    with pytest.raises(DamagedData, match=rf"chunk 1.*{n_voxels}.*4"):
        decode(shards, b"".join((*parts, table, crc32c(table))))


@pytest.mark.parametrize("n_voxels", [4, 3, 5])
def test_a_zstd_frame_that_states_no_size(n_voxels: int) -> None:
    # Streaming writers make these: RFC 8878, a frame of one raw block.
    shards = layout((4,), (4,), "u1", Zstd())
    voxels = bytes(range(1, n_voxels + 1))
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + struct.pack("<I", n_voxels << 3 | 1)[:3] + voxels
    table = struct.pack("<2Q", 0, len(frame) + 4)
    shard = frame + crc32c(frame) + table + crc32c(table)
    if n_voxels == 4:
        assert decode(shards, shard).tolist() == [1, 2, 3, 4]
    else:
        with pytest.raises(DamagedData, match="chunk 0"):
            decode(shards, shard)


# Recognising the layout


def array(**changes: Any) -> zarr.Array[Any]:
    options: dict[str, Any] = {
        "shape": (8, 8),
        "dtype": "<u2",
        "chunks": (4, 4),
        "shards": (8, 8),
        "compressors": [ZstdCodec(level=3), Crc32cCodec()],
        "fill_value": 0,
        **changes,
    }
    return zarr.create_array({}, **options)


def test_recognises_what_cvdask_writes() -> None:
    found = ShardLayout.of(array())
    assert found is not None
    assert (found.shard_shape, found.chunk_shape, found.dtype) == ((8, 8), (4, 4), np.dtype("<u2"))
    assert found.codec == Zstd(3)
    blosc = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2)
    found = ShardLayout.of(array(compressors=[blosc, Crc32cCodec()]))
    assert found is not None
    assert found.codec == Blosc("zstd", 3, Blosc.BITSHUFFLE)


def sharding(**changes: Any) -> ShardingCodec:
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}, ZstdCodec(), Crc32cCodec()]
    return ShardingCodec(**{"chunk_shape": (4, 4), "codecs": inner, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": None},  # not sharded
        {"zarr_format": 2, "shards": None, "compressors": None},
        {"compressors": [GzipCodec(), Crc32cCodec()]},
        {"compressors": [ZstdCodec()]},  # no checksum of each chunk
        {"fill_value": 1},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "/"}}},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
        {"serializer": sharding(index_location="start"), "shards": None, "compressors": None},
        {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
    ],
)
def test_leaves_other_arrays_to_zarr(changes: dict[str, Any]) -> None:
    if isinstance(changes.get("serializer"), ShardingCodec):
        changes = {**changes, "chunks": (8, 8)}
    assert ShardLayout.of(array(**changes)) is None


def test_big_endian_chunks_are_left_to_zarr() -> None:
    inner = [{"name": "bytes", "configuration": {"endian": "big"}}, ZstdCodec(), Crc32cCodec()]
    made = array(serializer=sharding(codecs=inner), chunks=(8, 8), shards=None, compressors=None)
    assert ShardLayout.of(made) is None
