"""How do tasks hand arrays to one another? As small objects below the output, checked when read.

1. :func:`write_arrays` stores named integer arrays, a set of them in each object. Each is kept
   in the smallest type that holds it: partial sums of objects are mostly zeros and small numbers.
2. :func:`read_arrays` returns them, or says that an object is gone or damaged. Both see to several
   objects at a time: from an object store, each answer is a while in coming.
3. :func:`write_checked` and :func:`read_checked` do the same with bytes of any kind, or one array
   whose type and shape the reader knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from cvdask.errors import DamagedData
from cvdask.volume.objects import redact, view_object, view_objects, write_object, write_objects

# The checksum is what matters; level 1 is as fast as writing is.
CODEC = Zstd(level=1, checksum=True)
# For floating-point numbers: a quarter of the time for three quarters more bytes. Reads like the
# other.
QUICK_CODEC = Zstd(level=-100, checksum=True)


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Encode named integer arrays.

    >>> unpack(pack({"a": np.array([[1, -2]]), "b": np.array([], "uint8")}))
    {'a': array([[ 1, -2]]), 'b': array([], dtype=int64)}
    """
    header, parts = [], []
    for name, array in arrays.items():
        array = np.asarray(array)
        # Columns of a table differ in what they hold, so each finds its own type.
        columns = array.T if array.ndim == 2 else [array]
        narrow = [_narrowed(column) for column in columns]
        header.append([name, list(array.shape), [column.dtype.str for column in narrow]])
        parts += [column.tobytes() for column in narrow]
    described = json.dumps(header, separators=(",", ":")).encode()
    return len(described).to_bytes(4, "little") + described + b"".join(parts)


def _narrowed(array: np.ndarray) -> np.ndarray:
    if array.size == 0:
        return array.astype(np.uint8)
    low, high = int(array.min()), int(array.max())
    # Both bounds together may need more bits than either: −1 and 255 need 16. NumPy's own answer
    # for −1 and 2⁴⁰ would be float64.
    kind = np.min_scalar_type(high) if low >= 0 else np.min_scalar_type(min(low, -high - 1))
    return np.ascontiguousarray(array, kind)


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """Decode what :func:`pack` has encoded; every array is int64 again."""
    offset = 4 + int.from_bytes(data[:4], "little")
    arrays = {}
    for name, shape, kinds in json.loads(data[4:offset]):
        array = np.empty(shape, np.int64)
        columns = array.T if array.ndim == 2 else [array]
        for column, kind in zip(columns, kinds, strict=True):
            count = column.size
            values = np.frombuffer(data, kind, count, offset)
            column[...] = values.reshape(column.shape)
            offset += values.nbytes
        arrays[name] = array
    return arrays


def write_arrays(url: str, several: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Store named integer arrays, a set of them under each key."""
    write_objects(url, {key: bytes(CODEC.encode(pack(one))) for key, one in several.items()})


def read_arrays(url: str, *keys: str) -> list[dict[str, np.ndarray]]:
    """Read the named integer arrays under each key, as int64; see :func:`read_checked`."""
    found = view_objects(url, keys)
    return [
        unpack(bytes(_decoded(url, key, data, None))) for key, data in zip(keys, found, strict=True)
    ]


def write_checked(url: str, key: str, data: bytes | np.ndarray, *, dense: bool = False) -> None:
    """Store bytes, or those of an array, compressed and with a checksum.

    ``dense`` says that there is little to compress, as in floating-point numbers.
    """
    write_object(url, key, bytes((QUICK_CODEC if dense else CODEC).encode(data)))


def read_checked(url: str, key: str) -> bytes:
    """Read what :func:`write_checked` has stored.

    Raises
    ------
    DamagedData
        When the object is gone or its bytes are not what was written.
    """
    return bytes(_decoded(url, key, view_object(url, key), None))


def read_array(url: str, key: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Read an array that :func:`write_checked` has stored; see :func:`read_checked`."""
    found = np.empty(shape, dtype)
    _decoded(url, key, view_object(url, key), found)
    return found


def _decoded(
    url: str, key: str, data: memoryview | None, out: np.ndarray | None
) -> bytes | np.ndarray:
    where = f"{redact(url)}/{key}"
    if data is None:
        raise DamagedData(f"{where} is gone: run the same command with --overwrite")
    try:
        return CODEC.decode(data, out)
    except (RuntimeError, ValueError) as error:
        raise DamagedData(f"{where}: {error}. Run the same command with --overwrite") from error
