"""How are good files spoilt? As broken transfers, bad disks and hostile hands do it.

Bytes are flipped, cut off, copied elsewhere, and overwritten with numbers that hurt; values of JSON
and TOML are replaced by others, of other types too; members of archives are changed and packed
again with the right checksum; files disappear.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

# Where bounds of types, of memory and of a disk lie, and the numbers beside them.
NUMBERS = sorted(
    {0, 1, 2, 255, *(2**n + d for n in (7, 15, 16, 31, 32, 40, 62, 63) for d in (-1, 0))}
)
JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../../../etc/passwd",
    ),
    *(
        "\ud800",
        "é" * 300,
        [],
        {},
        [[]],
        [None],
        {"": None},
        [0] * 9,
        ["/etc/passwd"],
        {"name": {}},
    ),
    *NUMBERS,
    *(-number for number in NUMBERS),
)
TOML_JUNK = (
    *("", "-1", "0", "1e308", "nan", "inf", '""', "[]", "{}", "[[]]", "true", "1979-05-27"),
    *('"../../etc"', '"s3://user:pass@bucket/x"', '"\\u0000"', "9223372036854775807", "[1, 'a']"),
)
HEAD = 512  # bytes in which headers lie


@st.composite
def places(draw: st.DrawFn, size: int) -> int:
    """Draw a byte of a file; half of them where headers and footers are."""
    return draw(
        st.one_of(
            st.integers(0, min(size, HEAD) - 1),
            st.integers(max(0, size - HEAD), size - 1),
            st.integers(0, size - 1),
        )
    )


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Change bytes of a file."""
    if not data:
        return draw(st.binary(min_size=1, max_size=20))
    at = draw(places(len(data)))
    kind = draw(st.sampled_from(("flip", "lie", "cut", "splice", "insert", "remove")))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    if kind == "lie":
        width = draw(st.sampled_from((1, 2, 4, 8)))
        number = draw(st.sampled_from(NUMBERS)) % 256**width
        told = number.to_bytes(width, draw(st.sampled_from(("little", "big"))))
        return data[:at] + told + data[at + width :]
    if kind == "cut":
        return data[:at]
    if kind == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
    length = draw(st.integers(1, 64))
    if kind == "remove":
        return data[:at] + data[at + length :]
    source = draw(places(len(data)))
    piece = data[source : source + length]
    return data[:at] + piece + data[at + len(piece) :]


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> Any:
    """Replace or remove one value, at any depth."""
    children = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    if not children or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(JUNK))
    child = draw(st.sampled_from(children))
    changed = value.copy()
    if draw(st.integers(0, 9)) == 0:
        del changed[child]
    else:
        changed[child] = draw(damaged_json(value[child]))
    return changed


@st.composite
def damaged_toml(draw: st.DrawFn, text: str) -> str:
    """Replace a value, or remove, repeat or exchange lines."""
    lines = text.splitlines(keepends=True)
    at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    kind = draw(st.sampled_from(("value", "value", "key", "remove", "repeat", "exchange")))
    if kind == "value":
        junk = draw(st.sampled_from(TOML_JUNK))
        lines[at] = re.sub(r"=.*", lambda _: f"= {junk}", lines[at])
    elif kind == "key":
        lines[at] = (
            draw(st.sampled_from(('a."b c" = ', "[run.x]\n", "[[run]]\n", "é = "))) + lines[at]
        )
    elif kind == "remove":
        del lines[at]
    elif kind == "repeat":
        lines.insert(other, lines[at])
    else:
        lines[at], lines[other] = lines[other], lines[at]
    return "".join(lines)


@st.composite
def damaged_archive(draw: st.DrawFn, data: bytes) -> bytes:
    """Change a member of an archive, and pack it again as if it had always been so."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    members[name] = draw(damaged_file(name, members[name]))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return packed.getvalue()


@st.composite
def damaged_file(draw: st.DrawFn, name: str, data: bytes) -> bytes:
    """Change a file, half of the time as its format asks for."""
    if draw(st.booleans()):
        if name.endswith((".json", ".zarray", ".zattrs", ".zgroup")):
            if draw(st.integers(0, 19)) == 0:
                return b"[" * 100_000  # deeper than a parser can go
            try:
                return json.dumps(draw(damaged_json(json.loads(data)))).encode()
            except (ValueError, RecursionError):  # changed before
                return draw(damaged_bytes(data))
        if name.endswith(".toml"):
            return draw(damaged_toml(data.decode("utf-8", "replace") or "\n")).encode()
        if zipfile.is_zipfile(io.BytesIO(data)):
            try:
                return draw(damaged_archive(data))
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
                return draw(damaged_bytes(data))
    return draw(damaged_bytes(data))


@st.composite
def changes(draw: st.DrawFn, files: Mapping[str, bytes]) -> dict[str, bytes | None]:
    """Draw what one to three files of a folder become; None is gone."""
    changed: dict[str, bytes | None] = {}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        data = changed.get(name, files[name])
        if data is None or (len(files) > 1 and draw(st.integers(0, 19)) == 0):
            changed[name] = None
        else:
            changed[name] = draw(damaged_file(name, data))
    return changed
