"""How large is a JPEG image, and is it whole? Both without decoding it.

libjpeg fills what a cut-off file does not hold with grey and says nothing, so whether the end is
there has to be looked at here.
"""

from __future__ import annotations

from typing import NamedTuple

from cvdask.volume.sources.source import DamagedSlice

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are tables
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length


class JpegSize(NamedTuple):
    """What the frame header of a JPEG image declares."""

    height: int
    width: int
    components: int
    bits: int
    scan: int  # byte at which the first scan starts, 0 where the data end before it


def is_jpeg(head: bytes) -> bool:
    """Tell whether a file starts as JPEG images do."""
    return head[:3] == b"\xff\xd8\xff"


def jpeg_size(data: bytes) -> JpegSize:
    """Read the frame header of a JPEG image, from its start or all of it.

    Raises
    ------
    DamagedSlice
        When there is no frame header in ``data``.
    """
    position, found = 2, None
    while is_jpeg(data) and position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF or marker in _ALONE:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if marker in _FRAMES and len(body) >= 6:
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            found = JpegSize(height, width, body[5], body[0], 0)
        if marker == 0xDA:
            break
        position += 2 + length
    if found is None or not found.height or not found.width:
        raise DamagedSlice("it has no JPEG frame header")
    return found._replace(scan=position)


def check_jpeg(data: bytes) -> JpegSize:
    """Read the frame header of a whole JPEG image.

    Raises
    ------
    DamagedSlice
        When there is no frame header, or the image breaks off before its end mark.
    """
    size = jpeg_size(data)
    if data.rfind(b"\xff\xd9") < size.scan:
        raise DamagedSlice(f"the JPEG image breaks off: no end mark in its {len(data)} bytes")
    return size
