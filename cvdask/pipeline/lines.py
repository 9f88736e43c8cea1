"""Where in a TOML file does a key stand?

The parser of the standard library tells values, not places. :func:`find_lines` scans the text of a
file that has parsed without error: that leaves few cases to tell apart. What stands inside strings,
arrays and inline tables is passed by.

>>> find_lines('[run]\\nout = "results"')
{('run', 0): 1, ('run', 0, 'out'): 2}
"""

from __future__ import annotations

import re
from collections import Counter

# Table, its number among tables of that name, and for keys their name: the line, from 1.
Lines = dict[tuple[str | int, ...], int]

HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?")
KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[\w-])+(?:\s*\.\s*[\w-]+)*)\s*=""")
# What ends one state or begins another: strings, comments, brackets. Longer quotes come first.
MARKS = re.compile(r"\"\"\"|'''|\"|'|\\.|#|[\[\]{}]")


def find_lines(text: str) -> Lines:
    """Return the line of every table and of every key of a table.

    Parameters
    ----------
    text : str
        TOML without errors.

    Returns
    -------
    dict
        ``(table, n)`` and ``(table, n, key)``, where n counts tables of the same name; keys before
        the first table have the table ``""``.
    """
    found: Lines = {}
    tables: Counter[str] = Counter()
    table: tuple[str, int] = ("", 0)
    depth, quote = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        start = 0
        if depth == 0 and not quote:
            header, key = HEADER.match(line), KEY.match(line)
            if header:
                name = header[1].strip()
                table = (name, tables[name])
                tables[name] += 1
                found[table] = number
                continue
            if key:
                found[(*table, key[1].strip("\"'"))] = number
                start = key.end()
        depth, quote = _end_state(line[start:], depth, quote)
    return found


def _end_state(text: str, depth: int, quote: str) -> tuple[int, str]:
    """Return how many brackets are open at the end of a line, and the quotes of an open string."""
    for mark in (found[0] for found in MARKS.finditer(text)):
        if quote:
            # A literal string knows no escapes; the mark then is a backslash and what follows it.
            if mark == quote or (quote in ("'", "'''") and mark == f"\\{quote}"):
                quote = ""
        elif mark in ('"""', "'''", '"', "'"):
            quote = mark
        elif mark == "#":
            break
        elif mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
    # A string of one line ends with its line.
    return depth, quote if len(quote) == 3 else ""
