"""What can be written on the command line, and what does it mean?

1. Option types that several commands share, so that a flag is called and explained the same
   everywhere.
2. :func:`join_numbers` makes one argument of the numbers behind an option, before the parser sees
   them.
3. The other functions turn the text of one option into the value that a stage takes, and say what
   they expect where it is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypedDict

import typer

from cvdask.cli.printing import clean

# Options that take several numbers, and how many at most.
NUMBER_OPTIONS = {"--voxel-nm": 3, "--size-um": 3, "--range": 2, "--block-yx": 2}

# Headings of the help.
REQUIRED, COMMON = "Required", "Common options"
RARE, WHERE = "Rarely needed", "How it runs"

Client = Annotated[
    str,
    typer.Option(
        "--client",
        "--cluster",
        help="serial, threads, local (processes), cuda (one process per GPU), slurm, pbs, lsf, "
        "kubernetes, or the address of a Dask scheduler.",
        rich_help_panel=WHERE,
        metavar="WHERE",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Threads or processes; by default one per core that this process may use. Jobs or "
        "pods of a cluster.",
        rich_help_panel=WHERE,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan, write nothing.", rich_help_panel=WHERE)
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Tell the outcome as one JSON object.", rich_help_panel=WHERE),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with an interrupted run; happens by itself for the same inputs and options.",
        rich_help_panel=WHERE,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there.", rich_help_panel=WHERE)
]
# :func:`cvdask.cli.run` looks for it too: what it shows of an error lies beyond any command.
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Tell more; show where an error arose.", rich_help_panel=WHERE
    ),
]
Levels = Annotated[
    int | None,
    typer.Option(
        help="Levels with the finest; by default until one fits 64 voxels along each axis.",
        rich_help_panel=RARE,
    ),
]
VolumeUrl = Annotated[
    str,
    typer.Argument(metavar="VOL", help="A volume: a path or a URL.", rich_help_panel=REQUIRED),
]
SliceRange = Annotated[
    str | None,
    typer.Option(
        metavar="Z0:Z1",
        help="Only these slices: first, and one past the last; by default all.",
        rich_help_panel=COMMON,
    ),
]


class Run(TypedDict):
    """The keywords that all stages with blocks share."""

    client: str
    workers: int | None
    dry_run: bool


def where(client: str, workers: int | None, dry_run: bool) -> Run:
    """Check where blocks are to run, before a stage touches its destination."""
    from cvdask.engine.cluster import check_client

    check_client(client, workers)
    if workers is not None and (client == "serial" or "://" in client):
        raise ValueError(
            f"--workers is for threads and for clusters that are started: serial is one thread, "
            f"and a running cluster has its own workers. Received: --workers {workers} "
            f"--client {clean(client)}"
        )
    return Run(client=client, workers=workers, dry_run=dry_run)


def join_numbers(arguments: Sequence[str]) -> list[str]:
    """Join the numbers behind an option that takes several, so that it becomes one argument.

    A parser of options wants to know their number beforehand; ``--voxel-nm 20`` and
    ``--voxel-nm 5 5 5`` are both wanted, and ``--range -1 1`` holds no option ``-1``.

    >>> join_numbers(["a.tif", "--voxel-nm", "5", "5", "5", "b.zarr"])
    ['a.tif', '--voxel-nm=5 5 5', 'b.zarr']
    """
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*joined, argument, *rest]
        several: list[str] = []
        while rest and len(several) < NUMBER_OPTIONS.get(argument, 0) and _is_number(rest[0]):
            several.append(rest.pop(0))
        joined.append(f"{argument}={' '.join(several)}" if several else argument)
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers between spaces or commas.

    >>> numbers("--voxel-nm", "40 10,10")
    (40.0, 10.0, 10.0)
    """
    parts = re.split(r"[\s,]+", text.strip())
    if not all(map(_is_number, parts)):
        raise ValueError(f"{option} takes numbers. Received: {text!r}")
    return tuple(map(float, parts))


def integers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers between commas.

    >>> integers("--bad-slices", "3,7")
    (3, 7)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{option} takes slice numbers between commas, such as 3,7. Received: {text!r}"
        ) from None


def slice_range(option: str, text: str) -> tuple[int, int]:
    """Read the first slice and one past the last.

    >>> slice_range("--z-range", "0:10")
    (0, 10)
    """
    first, colon, stop = text.partition(":")
    try:
        limits = int(first), int(stop)
    except ValueError:
        limits = (0, 0)
    if not colon or not 0 <= limits[0] < limits[1]:
        raise ValueError(
            f"{option} takes the first slice and one past the last, such as 0:10. "
            f"Received: {text!r}"
        )
    return limits


def extents(option: str, text: str) -> tuple[int, int]:
    """Read a height and a width in voxels.

    >>> extents("--block-yx", "512 1024")
    (512, 1024)
    """
    found = numbers(option, text)
    if len(found) != 2 or any(value != int(value) for value in found):
        raise ValueError(f"{option} takes Y X, two whole numbers. Received: {text!r}")
    return int(found[0]), int(found[1])


def count_or(option: str, text: str, word: str) -> int | None:
    """Read a whole number; None where the text is the word for no limit.

    >>> count_or("--n-patches", "30", "all"), count_or("--n-patches", "all", "all")
    (30, None)
    """
    if text == word:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option} takes a whole number, or {word}. Received: {text!r}") from None


def class_names(text: str) -> list[str] | dict[int, str]:
    """Read names between commas, or ``value=name`` pairs.

    >>> class_names("mitochondria, membrane"), class_names("1=nucleus,7=z_disc")
    (['mitochondria', 'membrane'], {1: 'nucleus', 7: 'z_disc'})
    """
    parts = [part.strip() for part in text.split(",")]
    if "=" not in text:
        return parts
    pairs = [part.partition("=") for part in parts]
    values = [value.strip() for value, _, _ in pairs]
    if not all(equals and v.isdecimal() for v, (_, equals, _) in zip(values, pairs, strict=True)):
        raise ValueError(
            f"--classes takes names (a,b,c) or values with names (1=a,7=b). Received: {text!r}"
        )
    if len(set(map(int, values))) != len(values):
        raise ValueError(f"--classes names each value once. Received: {text!r}")
    return {int(v): name.strip() for v, (_, _, name) in zip(values, pairs, strict=True)}
