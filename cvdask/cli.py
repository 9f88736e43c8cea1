"""The ``cvdask`` command: one subcommand for every stage.

What did the user ask for, and what is to be told? Each subcommand does three things:

1. it turns its options into the keywords of the Python function of the same name, which checks
   them;
2. it calls the function, which shows its progress on standard error;
3. it tells what was written, for people or, with ``--json``, as one JSON object for programs.

Everything that can go wrong ends in :func:`run`, which turns it into a message and a number::

    0  done                         1  blocks failed, or verify found faults: they are listed
    2  bad input, nothing begun   130  interrupted: the same command goes on where it was

Stages are imported by the command that needs them: the help loads no array library.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

import typer

import cvdask
from cvdask.errors import BlocksFailed

if TYPE_CHECKING:
    from cvdask.engine.plan import Plan, Summary
    from cvdask.volume.verify import Verification

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# What a shell reports of a program that its reader has left.
READER_GONE = 141

# Options that take several numbers, and how many at most.
NUMBER_OPTIONS = {"--voxel-nm": 3, "--size-um": 3, "--range": 2}

# Releases of typer differ in where they keep the error of all bad usage; this one derives from it.
USAGE_ERROR = cast(type[Exception], typer.BadParameter.__bases__[0])

REQUIRED, COMMON = "Required", "Common options"
RARE, WHERE = "Rarely needed", "How it runs"

app = typer.Typer(
    name="cvdask",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Client = Annotated[
    str,
    typer.Option(
        help="serial, threads, local (processes), or the address of a Dask scheduler.",
        rich_help_panel=WHERE,
        metavar="WHERE",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Threads or processes; by default one per core that this process may use.",
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
# :func:`run` looks for it too: what it shows of an error lies beyond any command.
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


class _Run(TypedDict):
    """The keywords that all stages with blocks share."""

    client: str
    workers: int | None
    dry_run: bool


# ---------------------------------------------------------------------------------------------
# The commands


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cvdask {cvdask.__version__}")
        raise typer.Exit(DONE)


@app.callback(epilog="Each command's help ends in an example. Try: cvdask phantom --help")
def _about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Volume electron microscopy of heart cells, from the microscope's files to numbers."""


@app.command(epilog="Example: cvdask phantom cell.zarr --size-um 1 2 2 --voxel-nm 20")
def phantom(
    out: Annotated[
        str,
        typer.Argument(metavar="OUT.zarr", help="Volume to write.", rich_help_panel=REQUIRED),
    ],
    size_um: Annotated[
        str,
        typer.Option(metavar="Z Y X", help="Extent in µm.", rich_help_panel=COMMON),
    ] = "4 10 10",
    voxel_nm: Annotated[
        str,
        typer.Option(
            metavar="N | Z Y X", help="Voxel size in nm, one or three.", rich_help_panel=COMMON
        ),
    ] = "20",
    seed: Annotated[
        int,
        typer.Option(help="The same seed gives the same cell.", rich_help_panel=COMMON),
    ] = 0,
    kind: Annotated[
        Literal["healthy", "diabetic"],
        typer.Option(
            help="Diabetic cells have larger mitochondrial clusters.", rich_help_panel=COMMON
        ),
    ] = "healthy",
    n_levels: Levels = None,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a synthetic heart cell with its exact truth.

    The truth lies beside the image: labels/truth holds the classes,
    labels/truth_objects every mitochondrion, tables/truth.parquet their volumes.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries:
        written = cvdask.phantom(
            out,
            size_um=_numbers("--size-um", size_um),
            voxel_nm=_numbers("--voxel-nm", voxel_nm),
            seed=seed,
            kind=kind,
            n_levels=n_levels,
            resume=resume,
            overwrite=overwrite,
            **_where(client, workers, dry_run),
        )
    if isinstance(written, list):
        _tell_plans("phantom", written, as_json)
    else:
        _tell_written("phantom", written, summaries, as_json=as_json, verbose=verbose)


@app.command(epilog="Example: cvdask ingest raw.tif sample.zarr --labels truth.tif --voxel-nm 20")
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="TIFF stack, folder of numbered slices, MRC, HDF5, NIfTI, Zarr or N5.",
            rich_help_panel=REQUIRED,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT.zarr",
            help="Volume to write; with --as-labels, one that exists.",
            rich_help_panel=REQUIRED,
        ),
    ],
    voxel_nm: Annotated[
        str | None,
        typer.Option(
            metavar="N | Z Y X",
            help="Voxel size in nm, one or three; by default what the file states.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Label image of the same voxels.", rich_help_panel=COMMON),
    ] = None,
    label_name: Annotated[
        str, typer.Option(help="Its name in the volume.", rich_help_panel=COMMON)
    ] = "annotations",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Names of the label values 1, 2, 3 …; or single ones: 1=nucleus,7=z_disc.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    damaged: Annotated[
        Literal["refuse", "hole", "interpolate"],
        typer.Option(
            help="Missing and unreadable slices: end with an error, leave zero, or fill from the "
            "nearest good ones.",
            rich_help_panel=COMMON,
        ),
    ] = "refuse",
    bad_slices: Annotated[
        str | None,
        typer.Option(
            metavar="Z,Z,…", help="Slices to be treated as damaged.", rich_help_panel=COMMON
        ),
    ] = None,
    label_slices: Annotated[
        str | None,
        typer.Option(
            metavar="Z,Z,…",
            help="The label image holds just these slices; all others become not annotated.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    as_labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="SRC is itself a label image: add it to OUT.zarr under this name.",
            rich_help_panel=RARE,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Which array of an HDF5, Zarr or N5 file.", rich_help_panel=RARE),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Which files of a folder, such as 'slice_*_ch0.tif'.", rich_help_panel=RARE
        ),
    ] = None,
    channel: Annotated[
        int | None,
        typer.Option(help="Which channel of a coloured source.", rich_help_panel=RARE),
    ] = None,
    dtype: Annotated[
        Literal["uint8", "uint16"] | None,
        typer.Option(
            help="Type to convert to, together with --range.",
            rich_help_panel=RARE,
            show_default=False,
        ),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW HIGH",
            help="Values that become 0 and the largest integer.",
            rich_help_panel=RARE,
        ),
    ] = None,
    n_levels: Levels = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Read everything back in the end and compare.",
            rich_help_panel=RARE,
        ),
    ] = True,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Turn microscope files into a volume.

    Reads a slab at a time, never the stack. Damaged, missing and blank slices
    are found and told.
    """
    from cvdask.engine.plan import watch_summaries

    limits = _numbers("--range", value_range) if value_range is not None else None
    if limits is not None and len(limits) != 2:
        raise ValueError(f"--range takes LOW HIGH. Received {len(limits)}: {value_range}")
    with watch_summaries() as summaries:
        outcome = cvdask.ingest(
            source,
            out,
            voxel_nm=_numbers("--voxel-nm", voxel_nm) if voxel_nm is not None else None,
            labels=labels,
            label_name=label_name,
            as_labels=as_labels,
            classes=_class_names(classes) if classes is not None else None,
            label_slices=_integers("--label-slices", label_slices) if label_slices else None,
            dataset=dataset,
            pattern=pattern,
            channel=channel,
            dtype=dtype,
            value_range=(limits[0], limits[1]) if limits is not None else None,
            damaged=damaged,
            bad_slices=_integers("--bad-slices", bad_slices) if bad_slices else (),
            n_levels=n_levels,
            check=check,
            resume=resume,
            overwrite=overwrite,
            **_where(client, workers, dry_run),
        )
    if isinstance(outcome, list):
        _tell_plans("ingest", outcome, as_json)
    else:
        _tell_written(
            "ingest",
            outcome.volume,
            summaries,
            warnings=outcome.warnings,
            verification=outcome.verification,
            as_json=as_json,
            verbose=verbose,
        )


@app.command(epilog="Example: cvdask info cell.zarr")
def info(volume: VolumeUrl, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Tell what is in a volume: levels, voxel size, labels, origin."""
    described = cvdask.info(volume)
    if as_json:
        _print_json({"command": "info", "ok": True, "volume": described})
    else:
        _print_info(described, verbose)


@app.command(epilog="Example: cvdask pyramid cell.zarr --labels truth")
def pyramid(
    volume: VolumeUrl,
    labels: Annotated[
        str | None,
        typer.Option(help="Label image to treat instead of the image.", rich_help_panel=COMMON),
    ] = None,
    n_levels: Levels = None,
    client: Client = "threads",
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Add the coarser levels.

    Means of an image, the most frequent value of labels. Levels that are there stay.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries:
        written = cvdask.pyramid(
            volume,
            labels=labels,
            n_levels=n_levels,
            **_where(client, workers, dry_run),
        )
    if isinstance(written, list):
        _tell_plans("pyramid", written, as_json)
    else:
        _tell_written("pyramid", written, summaries, as_json=as_json, verbose=verbose)


@app.command(epilog="Example: cvdask verify cell.zarr")
def verify(
    volume: VolumeUrl,
    client: Client = "threads",
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Read everything back and compare it with what was written.

    Ends with 1 and the list of faults when a shard is damaged, missing or not
    what was written.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries:
        found = cvdask.verify(volume, **_where(client, workers, dry_run))
    if isinstance(found, list):
        _tell_plans("verify", found, as_json)
        return
    if as_json:
        _print_json(
            {
                "command": "verify",
                "ok": found.ok,
                "volume": _clean(volume),
                "verification": found.as_dict(),
                "summaries": [summary.as_dict() for summary in summaries],
                "warnings": [],
            }
        )
    else:
        if verbose:
            _print_lines(summaries)
        _print_lines(_verification_lines(found))
    if not found.ok:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: cvdask export cell.zarr middle.png --overlay truth")
def export(
    volume: VolumeUrl,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="name.tif: a stack; name.png: a slice; name: a folder of PNGs.",
            rich_help_panel=REQUIRED,
        ),
    ],
    box: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1,Y0:Y1,X0:X1",
            help="Voxels of the level, ends may be left out, 7 means one slice; by default all, "
            "and of a .png the middle slice.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    level: Annotated[int, typer.Option(help="0 is the finest.", rich_help_panel=COMMON)] = 0,
    labels: Annotated[
        str | None,
        typer.Option(help="Label image to export instead of the image.", rich_help_panel=COMMON),
    ] = None,
    overlay: Annotated[
        str | None,
        typer.Option(help="Label image to draw over the image, in colour.", rich_help_panel=COMMON),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Cut a box out of a volume as TIFF or PNG."""
    written = cvdask.export(
        volume,
        out,
        box=box,
        level=level,
        labels=labels,
        overlay=overlay,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if not isinstance(written, Path):
        _tell_plans("export", [written], as_json)
    elif as_json:
        _print_json({"command": "export", "ok": True, "output": str(written), "warnings": []})
    else:
        _print_lines([f"written: {written}"])


# ---------------------------------------------------------------------------------------------
# What the user wrote


def _where(client: str, workers: int | None, dry_run: bool) -> _Run:
    """Check where blocks are to run, before a stage touches its destination."""
    from cvdask.engine.cluster import check_client

    check_client(client, workers)
    if workers is not None and client not in ("threads", "local"):
        raise ValueError(
            f"--workers is for --client threads or local: serial is one thread, and a cluster has "
            f"its own workers. Received: --workers {workers} --client {_clean(client)}"
        )
    return _Run(client=client, workers=workers, dry_run=dry_run)


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
        numbers: list[str] = []
        while rest and len(numbers) < NUMBER_OPTIONS.get(argument, 0) and _is_number(rest[0]):
            numbers.append(rest.pop(0))
        joined.append(f"{argument}={' '.join(numbers)}" if numbers else argument)
    return joined


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers between spaces or commas."""
    parts = re.split(r"[\s,]+", text.strip())
    if not all(map(_is_number, parts)):
        raise ValueError(f"{option} takes numbers. Received: {text!r}")
    return tuple(map(float, parts))


def _integers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers between commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{option} takes slice numbers between commas, such as 3,7. Received: {text!r}"
        ) from None


def _class_names(text: str) -> list[str] | dict[int, str]:
    """Read names between commas, or ``value=name`` pairs."""
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


# ---------------------------------------------------------------------------------------------
# What the user is told


def _tell_plans(command: str, plans: Sequence[Plan], as_json: bool) -> None:
    if as_json:
        described = [plan.as_dict() for plan in plans]
        _print_json({"command": command, "ok": True, "dry_run": True, "plans": described})
        return
    _print_lines(plans)
    if not plans:
        _print_lines(["nothing to do"])
    _print_lines(["dry run: nothing was written"])


def _tell_written(
    command: str,
    volume: cvdask.Volume,
    summaries: Sequence[Summary],
    *,
    warnings: Sequence[str] = (),
    verification: Verification | None = None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Tell what a stage wrote; ends the program with 1 where reading back found faults."""
    ok = verification is None or verification.ok
    if as_json:
        _print_json(
            {
                "command": command,
                "ok": ok,
                "volume": cvdask.info(volume),
                "summaries": [summary.as_dict() for summary in summaries],
                "verification": verification.as_dict() if verification is not None else None,
                "warnings": list(warnings),
            }
        )
    else:
        _print_lines(summaries if verbose or command == "pyramid" else _main_lines(summaries))
        if verification is not None:
            _print_lines(_verification_lines(verification))
        _print_lines(f"note: {warning}" for warning in dict.fromkeys(warnings))
        if not summaries:
            _print_lines(["nothing to do: it was complete before"])
        _print_lines([f"look at it: cvdask info {shlex.quote(_clean(volume.url))}"])
    if not ok:
        raise typer.Exit(FAILED)


def _main_lines(summaries: Sequence[Summary]) -> Iterator[str]:
    """Yield the lines of the finest levels, and one for all coarser ones together."""
    coarser = [s for s in summaries if s.stage.startswith("pyramid ")]
    yield from (str(s) for s in summaries if not s.stage.startswith(("pyramid ", "verify ")))
    if coarser:
        n_voxels, seconds = sum(s.n_voxels for s in coarser), sum(s.seconds for s in coarser)
        yield f"pyramid: {len(coarser)} levels, {n_voxels / 1e6:.1f} Mvoxel in {seconds:.1f} s"


def _verification_lines(found: Verification) -> list[str]:
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


def _print_info(described: Mapping[str, Any], verbose: bool) -> None:
    """Print a volume as tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cvdask.engine.plan import size_text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file has no edge to wrap at
    size = f"{_times(described['size_um'])} µm" if described["size_um"] else "size not stated"
    _print_lines(
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
    _print_lines([""])
    console.print(levels)
    if described["labels"]:
        labels = Table("labels", "type", "values", box=None, pad_edge=False)
        for name, image in described["labels"].items():
            named = ", ".join(f"{value} {text}" for value, text in image["classes"].items())
            labels.add_row(*map(Text, (name, image["dtype"], named or "without names")))
        _print_lines([""])
        console.print(labels)
    _print_lines(["", *_origin_lines(described, verbose)])


def _origin_lines(described: Mapping[str, Any], verbose: bool) -> list[str]:
    """Say where a volume comes from, and which of its slices are not what they seem."""
    provenance = described.get("provenance")
    if not provenance:
        return ["not written by cvdask: no provenance, no checksums of its own"]
    lines = [f"made by cvdask {provenance['version']} {provenance['stage']}"]
    options = {k: v for k, v in provenance["options"].items() if verbose or v not in (None, [], {})}
    lines += [f"  {name}: {json.dumps(value)}" for name, value in options.items()]
    for source in provenance["inputs"]:
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


def _times(values: Sequence[Any]) -> str:
    return " × ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _print_lines(lines: Iterable[object]) -> None:
    for line in lines:
        print(line)


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _clean(text: str) -> str:
    """Take user names, passwords and queries out of every URL of a text."""
    if "://" not in text:
        return text
    from cvdask.volume.objects import redact

    return re.sub(r"\w+://[^\s'\"]+", lambda found: redact(found.group()), text)


# ---------------------------------------------------------------------------------------------
# From the first argument to the exit code


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str
        Without the program's name.

    Returns
    -------
    int
        0 done; 1 blocks failed or faults were found; 2 bad input; 130 interrupted.
    """
    as_json = "--json" in arguments
    verbose = not {"-v", "--verbose"}.isdisjoint(arguments)
    try:
        command = typer.main.get_command(app)
        with command.make_context("cvdask", join_numbers(arguments or ["--help"])) as context:
            command.invoke(context)
        sys.stdout.flush()
        return DONE
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        # The reader has seen enough; nothing is left to flush to it when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        return _fail(
            INTERRUPTED,
            "KeyboardInterrupt",
            "interrupted; run the same command again, it goes on where it was",
            as_json=as_json,
        )
    except USAGE_ERROR as error:
        context_of_error = getattr(error, "ctx", None)
        asked = context_of_error.command_path if context_of_error else "cvdask"
        message = f"{error.format_message()} Try: {asked} --help"  # type: ignore[attr-defined]
        return _fail(BAD_INPUT, type(error).__name__, message, as_json=as_json)
    except BlocksFailed as error:
        message = str(error)
        if verbose:
            message = "\n".join([message.partition("\n")[0], *map("  {}".format, error.failures)])
        failures = [
            {"block": f.block, "box": str(f.box), "cause": _clean(f.cause), "attempts": f.attempts}
            for f in error.failures
        ]
        return _fail(FAILED, "BlocksFailed", message, as_json=as_json, failures=failures)
    except (ValueError, OSError, MemoryError) as error:
        if verbose:
            print(_clean(traceback.format_exc()), file=sys.stderr)
        message = str(error) or type(error).__name__
        return _fail(BAD_INPUT, type(error).__name__, message, as_json=as_json)
    except Exception as error:
        print(_clean(traceback.format_exc()), file=sys.stderr)
        message = f"not foreseen, so please report it with the lines above: {error}"
        return _fail(FAILED, type(error).__name__, message, as_json=as_json)


def _fail(code: int, kind: str, message: str, *, as_json: bool, **more: Any) -> int:
    """Say what went wrong, on standard error or as JSON, and return the exit code."""
    message = _clean(message)
    print(f"error: {message}" if code != INTERRUPTED else message, file=sys.stderr)
    if as_json:
        error = {"type": kind, "message": message, **more}
        _print_json({"ok": False, "exit_code": code, "error": error})
    return code


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
