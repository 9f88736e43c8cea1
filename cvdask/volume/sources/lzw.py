"""What do the bytes of an LZW strip unfold to?

The LZW of TIFF 6.0, section 13: codes of 9 to 12 bits, high bits first, 256 empties the table, 257
ends. imagecodecs' own decoder (2026.3.6) reads outside its table when the first code after 256 is
no byte, and the process dies; one flipped bit in a file would take a worker with it. The decoder
here checks every code.

A string of the table is never stored: it stands in the result already, so its entry is a start and
a length there. The entry that a code adds is the string before it and the one byte that follows,
which is the first byte of the code's own string::

    result   ... a b c | a b c a ...
    entry        [-----------]          start of the last string, its length + 1
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from cvdask.volume.sources.source import DamagedSlice

_CLEAR, _END, _FIRST = 256, 257, 258
_TABLE = 4096


def lzw_decode(data: bytes, out: memoryview) -> memoryview:
    """Decode LZW bytes, as much of them as there is room for.

    Parameters
    ----------
    data : bytes
        As stored in a strip or tile.
    out : memoryview of bytes
        Filled in place.

    Returns
    -------
    memoryview
        The part of ``out`` that was filled.

    Raises
    ------
    DamagedSlice
        At a code that is not in the table.
    """
    if len(data) >= 2 and data[0] == 0 and data[1] & 1:
        raise DamagedSlice("LZW with reversed bits (before TIFF 6.0) is not supported")
    room = np.frombuffer(out, np.uint8)
    filled, wrong = _unfold(np.frombuffer(data, np.uint8), room)
    if wrong >= 0:
        raise DamagedSlice(f"LZW code {wrong} is not in the table, after {filled} bytes")
    return out[:filled]


@numba.njit(cache=True, nogil=True)
def _unfold(data: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Fill ``out`` and return how many bytes were written, and the code that was wrong or -1."""
    starts = np.empty(_TABLE, np.int64)
    lengths = np.empty(_TABLE, np.int64)
    free, width = _FIRST, 9
    bits, n_bits, position = 0, 0, 0
    filled, start, length = 0, 0, 0  # of the result, and of the string before
    while filled < out.size:
        while n_bits < width and position < data.size:
            bits = ((bits << 8) | data[position]) & 0xFFFFFF
            n_bits += 8
            position += 1
        if n_bits < width:
            break
        n_bits -= width
        code = (bits >> n_bits) & ((1 << width) - 1)
        if code == _END:
            break
        if code == _CLEAR:
            free, width, length = _FIRST, 9, 0
            continue
        if length and free < _TABLE:
            starts[free], lengths[free] = start, length + 1
            free += 1
            if free in (511, 1023, 2047):  # one code early, as TIFF has it
                width += 1
        start = filled
        if code < _CLEAR:
            length = 1
            out[filled] = code
        elif code < free:
            length = min(lengths[code], out.size - filled)
            for i in range(length):  # byte by byte: the string may run into itself
                out[filled + i] = out[starts[code] + i]
        else:
            return filled, code
        filled += length
    return filled, -1
