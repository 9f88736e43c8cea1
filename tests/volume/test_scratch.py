"""Scratch objects: what is read is what was written, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cvdask.errors import DamagedData
from cvdask.volume.scratch import pack, read_arrays, unpack, write_arrays

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)


@given(
    arrays.arrays(
        np.int64, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0), elements=NUMBERS
    )
)
def test_any_integers(array):
    found = unpack(pack({"a": array, "b": np.arange(3, dtype=np.uint8)}))
    np.testing.assert_array_equal(found["a"], array)
    assert (found["a"].dtype, found["a"].shape) == (np.int64, array.shape)
    assert found["b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("high", [1, 127, 128, 255, 2**16, 2**31, 2**32, 2**40, 2**62])
def test_no_key_beside_large_keys(high):
    for low in (0, -1, -129, -high):
        assert unpack(pack({"a": np.array([low, high])}))["a"].tolist() == [low, high]


def test_small_numbers_take_little_room(tmp_path):
    columns = np.stack([np.arange(100_000) % 100, np.full(100_000, 2**40)], axis=1)
    write_arrays(str(tmp_path), {"a": {"rows": columns}})
    assert (tmp_path / "a").stat().st_size < 20_000


def test_they_are_stored(tmp_path: Path):
    write_arrays(str(tmp_path), {"a/b": {"x": np.array([[1, -2]])}})
    assert read_arrays(str(tmp_path), "a/b")[0]["x"].tolist() == [[1, -2]]
    with pytest.raises(DamagedData, match=r"a/c is gone.*--overwrite"):
        read_arrays(str(tmp_path), "a/c")
    good = (tmp_path / "a/b").read_bytes()
    for bad in (b"", good[:-3], good[:20] + bytes([good[20] ^ 1]) + good[21:], b"other"):
        (tmp_path / "a/b").write_bytes(bad)
        with pytest.raises(DamagedData, match=r"a/b.*--overwrite"):
            read_arrays(str(tmp_path), "a/b")
