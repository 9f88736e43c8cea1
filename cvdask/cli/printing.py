"""What is told to people, and what to programs?

1. For people: lines on standard output, tables where there are several numbers; notes about what
   may surprise go to standard error as soon as they are known.
2. For programs: one JSON object on standard output, and an exit code::

       0  done                         1  blocks failed, or verify found faults: they are listed
       2  bad input, nothing begun   130  interrupted: the same command goes on where it was

No user name, password or query of a URL is told to either.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

import typer

import cvdask

if TYPE_CHECKING:
    from cvdask.engine.plan import Plan, Summary
    from cvdask.volume.verify import Verification

# Stages that only prepare what a person asked for.
INNER_STAGES = ("verify ", "seam", "gather", "total")

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# What a shell reports of a program that its reader has left.
READER_GONE = 141
_GATHERED: ContextVar[list[dict[str, Any]] | None] = ContextVar("gathered", default=None)


def tell_plans(command: str, plans: Sequence[Plan], as_json: bool) -> None:
    """Tell what a stage would do."""
    if as_json:
        described = [plan.as_dict() for plan in plans]
        print_json({"command": command, "ok": True, "dry_run": True, "plans": described})
        return
    print_lines(plans)
    if not plans:
        print_lines(["nothing to do"])
    print_lines(["dry run: nothing was written"])


def tell_written(
    command: str,
    volume: cvdask.Volume,
    summaries: Sequence[Summary],
    *,
    notes: Sequence[str] = (),
    told: Sequence[str] = (),
    verification: Verification | None = None,
    look: str = "info VOL",
    as_json: bool,
    verbose: bool,
) -> None:
    """Tell what a stage wrote; ends the program with 1 where reading back found faults.

    Parameters
    ----------
    command : str
    volume : Volume
        What was written.
    summaries : sequence of Summary
        None where it was there before.
    notes : sequence of str
        What the user should know.
    told : sequence of str
        Notes that were told to people already: see :func:`tell_notes`.
    verification : Verification, optional
    look : str
        Command that shows the result, with ``VOL`` for the volume.
    as_json, verbose : bool
    """
    ok = verification is None or verification.ok
    if as_json:
        print_json(
            {
                "command": command,
                "ok": ok,
                "volume": cvdask.info(volume),
                "summaries": [summary.as_dict() for summary in summaries],
                "verification": verification.as_dict() if verification is not None else None,
                "warnings": list(notes),
            }
        )
    else:
        print_lines(summaries if verbose or command == "pyramid" else _main_lines(summaries))
        if verification is not None:
            print_lines(verification_lines(verification))
        print_lines(f"note: {note}" for note in dict.fromkeys(notes) if note not in told)
        if not summaries:
            print_lines(["nothing to do: it was complete before"])
        print_lines([f"look at it: cvdask {look.replace('VOL', shlex.quote(clean(volume.url)))}"])
    if not ok:
        raise typer.Exit(FAILED)


def _main_lines(summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield the lines of the main stages, and one for all coarser levels together."""
    coarser = [s for s in summaries if s.stage.startswith("pyramid ")]
    yield from (str(s) for s in summaries if not s.stage.startswith(("pyramid ", *INNER_STAGES)))
    if coarser:
        n_voxels, seconds = sum(s.n_voxels for s in coarser), sum(s.seconds for s in coarser)
        yield f"pyramid: {len(coarser)} levels, {n_voxels / 1e6:.1f} Mvoxel in {seconds:.1f} s"


def verification_lines(found: Verification) -> list[str]:
    """Say what reading back has shown."""
    n_shards, n_levels = sum(found.n_shards.values()), len(found.n_shards)
    lines = [f"read back: {n_shards} shards of {n_levels} levels, {len(found.faults)} faults"]
    lines += [f"  {where}: {reason}" for where, reason in found.faults.items()]
    if found.unsealed:
        lines.append(
            f"note: {', '.join(found.unsealed)} can be read, but no checksums were recorded to "
            f"compare with"
        )
    if found.faults:
        lines.append("make it again from its source, with --overwrite")
    return lines


def print_info(described: Mapping[str, Any], verbose: bool) -> None:
    """Print a volume as tables."""
    from rich.table import Table
    from rich.text import Text

    from cvdask.engine.plan import size_text

    size = f"{_times(described['size_um'])} µm" if described["size_um"] else "size not stated"
    print_lines(
        [
            described["url"],
            f"OME-Zarr {described['ome_zarr']}, {described['dtype']}, {size} (z × y × x)",
        ]
    )
    images = {"image": described, **described["labels"]}
    levels = Table("levels of", "level", "voxels z × y × x", "voxel nm", box=None, pad_edge=False)
    levels.add_column("uncompressed", justify="right")
    if verbose:
        for title in ("chunk", "shard", "shards"):
            levels.add_column(title)
    for name, image in images.items():
        for number, level in enumerate(image["levels"]):
            row = [
                name if number == 0 else "",
                str(number),
                _times(level["shape"]),
                _times(level["voxel_size_nm"] or ["not stated"]),
                size_text(level["uncompressed_bytes"]),
            ]
            if verbose:
                row += [_times(level["chunk_shape"]), _times(level["shard_shape"])]
                row.append(str(level["n_shards"]))
            levels.add_row(*map(Text, row))
    print_lines([""])
    _print_table(levels)
    if described["labels"]:
        labels = Table("labels", "type", "values", box=None, pad_edge=False)
        for name, image in described["labels"].items():
            named = ", ".join(f"{value} {text}" for value, text in image["classes"].items())
            labels.add_row(*map(Text, (name, image["dtype"], named or "without names")))
        print_lines([""])
        _print_table(labels)
    print_lines(["", *_origin_lines(described, verbose)])


def _origin_lines(described: Mapping[str, Any], verbose: bool) -> list[str]:
    """Say where a volume comes from, and which of its slices are not what they seem."""
    provenance = described.get("provenance")
    if not provenance:
        return ["not written by cvdask: no provenance, no checksums of its own"]
    lines = [f"made by cvdask {provenance['version']} {provenance['stage']}"]
    options = {k: v for k, v in provenance["options"].items() if verbose or v not in (None, [], {})}
    lines += [f"  {name}: {json.dumps(value)}" for name, value in options.items()]
    for source in provenance["inputs"]:
        if "path" not in source:  # a volume, not a file
            lines.append(f"  from {', '.join(str(v) for k, v in source.items() if k != 'digest')}")
            continue
        lines.append(f"  from {source['path']} ({source['format']}) into {source['into']}")
        if verbose:
            lines.append(f"    sha256 of its names, sizes and times: {source['fingerprint']}")
    slices = described.get("slices", {})
    for what in ("missing", "damaged", "blank", "outliers"):
        found = list(map(int, slices.get(what, [])))
        if found:
            shown = ", ".join(map(str, found if verbose else found[:20]))
            more = " …" if len(found) > 20 and not verbose else ""
            lines.append(f"  {what} slices: z = {shown}{more}")
    if any(slices.get(what) for what in ("missing", "damaged")):
        lines.append(f"  missing and damaged slices: {slices['treatment']}")
    return lines


def print_scores(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text as a table, the first as its header; all but the first column are numbers.

    Parameters
    ----------
    rows : sequence of rows
        Of equal length.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(rows[0]):
        table.add_column(Text(title), justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    _print_table(table)


def _print_table(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file has no edge to wrap at
    console.print(table)


def number_text(value: float | None) -> str:
    """Write a number for people, and a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _times(values: Sequence[Any]) -> str:
    return " × ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def print_lines(lines: Iterable[object]) -> None:
    """Print on standard output."""
    for line in lines:
        print(line)


def print_json(value: Mapping[str, Any]) -> None:
    """Print the one object that a program reads, or gather it with others."""
    gathered = _GATHERED.get()
    if gathered is not None:
        gathered.append(dict(value))
    else:
        print(json.dumps(value, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def gather_json() -> Iterator[list[dict[str, Any]]]:
    """Keep what :func:`print_json` is given inside a ``with`` statement, and print none of it."""
    gathered: list[dict[str, Any]] = []
    token = _GATHERED.set(gathered)
    try:
        yield gathered
    finally:
        _GATHERED.reset(token)


def clean(text: str) -> str:
    """Take user names, passwords and queries out of every URL of a text."""
    if ":/" not in text:
        return text
    from cvdask.volume.objects import redact

    text = re.sub(r"\w+://[^\s'\"]+", lambda found: redact(found.group()), text)
    # An address that was taken for a path has one slash less.
    return re.sub(r"(\w+:/)[^\s'\"/@]+@", r"\1", text)


@contextlib.contextmanager
def tell_notes() -> Iterator[list[str]]:
    """Tell on standard error what stages warn of, once and at once, and gather it.

    A stage warns of what the user may want to know before it ends, hours later. Other warnings than
    those for users are shown as ever.
    """
    notes: list[str] = []
    show = warnings.showwarning

    def tell(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, UserWarning):
            show(message, category, filename, lineno, file, line)
            return
        note = clean(str(message))
        if note not in notes:
            notes.append(note)
            print(f"note: {note}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell
        yield notes
