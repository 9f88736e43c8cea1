"""LZW strips, against imagecodecs' encoder and against codes that are not in the table."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.volume.sources.lzw import lzw_decode
from cvdask.volume.sources.source import DamagedSlice


def packed(*codes: int) -> bytes:
    """Write codes of nine bits."""
    text = "".join(f"{code:09b}" for code in codes)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def unfold(data: bytes, n_bytes: int) -> bytes:
    return bytes(lzw_decode(data, memoryview(bytearray(n_bytes))))


def test_the_example_of_the_specification():
    data = packed(256, 7, 258, 8, 8, 258, 6, 257)
    assert unfold(data, 20) == bytes([7, 7, 7, 8, 8, 7, 7, 6])
    assert unfold(data, 5) == bytes([7, 7, 7, 8, 8])


@given(
    symbols=st.integers(1, 255),
    n_bytes=st.integers(1, 20_000),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_was_encoded_comes_back(symbols: int, n_bytes: int, seed: int):
    data = np.random.default_rng(seed).integers(0, symbols, n_bytes).astype(np.uint8).tobytes()
    assert unfold(imagecodecs.lzw_encode(data), n_bytes) == data


@pytest.mark.parametrize("codes", [(256, 356), (256, 258), (256, 1, 259), (256, 1, 2, 256, 300)])
def test_a_code_outside_the_table(codes: tuple[int, ...]):
    with pytest.raises(DamagedSlice, match=str(codes[-1])):
        unfold(packed(*codes, 257), 100)


@given(data=st.binary(max_size=300))
def test_any_bytes_unfold_or_are_refused(data: bytes):
    out = bytearray(b"\7" * 600)
    try:
        filled = lzw_decode(data, memoryview(out)[:500])
    except DamagedSlice:
        filled = memoryview(b"")
    assert len(filled) <= 500
    assert out[500:] == b"\7" * 100


def test_reversed_bits_are_refused():
    with pytest.raises(DamagedSlice, match="reversed"):
        unfold(b"\0\1\2\3", 10)
