"""Commands that hold volumes against each other, and show what was found.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

import cvdask
from cvdask.cli.options import (
    COMMON,
    RARE,
    REQUIRED,
    AsJson,
    Client,
    DryRun,
    Overwrite,
    Resume,
    Verbose,
    Workers,
    where,
)
from cvdask.cli.printing import (
    clean,
    print_json,
    print_lines,
    print_scores,
    tell_notes,
    tell_plans,
)

group = typer.Typer()


@group.command(
    epilog="Example: cvdask compare --group control=a.zarr,b.zarr --group diabetic=c.zarr,d.zarr "
    "--out comparison"
)
def compare(
    out: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder to write.", rich_help_panel=REQUIRED),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VOL…",
            help="Samples, and ensembles: each is a group of its own unless --group says else.",
            rich_help_panel=REQUIRED,
        ),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="NAME=VOL,VOL",
            help="A group and its volumes; the first is what the others are held against.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Label image of classes.", rich_help_panel=COMMON)
    ] = "classes",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS,CLASS",
            help="Classes to compare; by default all that every volume has.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Columns of the tables of objects; by default volume, surface and six of shape.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE or MEASURE=VALUE",
            help="Means that differ by less count as the same: a share of the first group's mean "
            "(0.1 by default), or a value for one measure in its own unit.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.json",
            help="What cvdask evaluate --json has printed, for the figure of scores.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    whole_objects: Annotated[
        bool,
        typer.Option(
            "--whole-objects",
            help="Leave out objects that touch the border of their volume.",
            rich_help_panel=COMMON,
        ),
    ] = False,
    figures: Annotated[
        bool, typer.Option(help="Draw the figures too.", rich_help_panel=COMMON)
    ] = True,
    z_blocks: Annotated[
        int,
        typer.Option(
            help="Ranges of slices that stand for volumes where a group has one only.",
            rich_help_panel=RARE,
        ),
    ] = 10,
    seed: Annotated[
        int, typer.Option(help="Of permutations and bootstrap.", rich_help_panel=RARE)
    ] = 0,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compare objects, densities and descriptors of volumes or groups of volumes.

    Needs the table of objects of each (cvdask measure); uses density and descriptors
    where they are. Writes tables, figures and a summary; cvdask report makes a page of them.
    """
    from cvdask.engine.plan import watch_summaries

    share, single = _margins(margin or [])
    with watch_summaries() as summaries, tell_notes() as notes:
        written = cvdask.compare(
            *(inputs or []),
            out=out,
            groups=_groups(groups or []),
            labels=labels,
            classes=classes,
            measures=measures,
            margin=share,
            margins=single,
            z_blocks=z_blocks,
            whole_objects=whole_objects,
            scores=scores or [],
            figures=figures,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("compare", written, as_json)
        return
    summary = written.summary
    if as_json:
        print_json(
            {
                "command": "compare",
                "ok": True,
                "out": clean(written.url),
                "groups": summary["groups"],
                "main": summary["main"],
                "figures": summary["figures"],
                "summaries": [one.as_dict() for one in summaries],
                "warnings": summary["notices"],
            }
        )
        return
    print_scores(_rows(summary["main"], verbose))
    print_lines(f"note: {text}" for text in summary["notices"] if text not in notes)
    print_lines(summaries if verbose else [])
    if not summaries:
        print_lines(["nothing to do: it was complete before"])
    print_lines([_count(summary["main"]), f"written: {clean(written.url)}"])
    print_lines([f"look at it: cvdask report {shlex.quote(clean(out))}"])


@group.command(epilog="Example: cvdask report comparison")
def report(
    comparison: Annotated[
        str,
        typer.Argument(metavar="DIR", help="What compare wrote.", rich_help_panel=REQUIRED),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.html",
            help="Where it is written instead of DIR/report.html.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(help="By default the names of the groups.", rich_help_panel=COMMON),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a comparison as one HTML file that needs nothing else."""
    written = clean(cvdask.report(comparison, out=out, title=title, overwrite=overwrite))
    if as_json:
        print_json({"command": "report", "ok": True, "report": written})
        return
    print_lines([f"written: {written}"])


@group.command(epilog="Example: cvdask view cell.zarr --labels classes,mitochondria")
def view(
    volumes: Annotated[
        list[str],
        typer.Argument(
            metavar="VOL…",
            help="One to four samples, side by side; of an ensemble the first members.",
            rich_help_panel=REQUIRED,
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Label images to show; by default all.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    browser: Annotated[
        bool,
        typer.Option(help="Open a browser; else only print the address.", rich_help_panel=COMMON),
    ] = True,
    port: Annotated[
        int,
        typer.Option(help="Port of the viewer; 0 for any that is free.", rich_help_panel=RARE),
    ] = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show samples in Neuroglancer: image, classes, objects, density, meshes.

    Serves them to this machine only, until Ctrl-C. Samples in a public bucket need no
    server: an address is printed that can be passed on.
    """
    with tell_notes() as notes:
        opened = cvdask.view(*volumes, labels=labels, browser=browser, port=port)
    with opened:
        if as_json:
            layers = list(opened.layers)
            print_json(
                {
                    "command": "view",
                    "ok": True,
                    "url": opened.url,
                    "layers": layers,
                    "warnings": notes,
                }
            )
        else:
            print_lines([f"layers: {', '.join(opened.layers)}", f"open: {opened.url}"])
            print_lines(["serving it to this machine until Ctrl-C"] if opened.is_served else [])
        # The address is what a program waits for: it must not stay in a buffer.
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            opened.wait()


def _groups(texts: Sequence[str]) -> dict[str, list[str]] | None:
    """Read ``name=volume,volume`` options.

    >>> _groups(["control=a.zarr,b.zarr", "diabetic=c.zarr"])
    {'control': ['a.zarr', 'b.zarr'], 'diabetic': ['c.zarr']}
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, members = text.partition("=")
        volumes = [part.strip() for part in members.split(",") if part.strip()]
        if not equals or not name.strip() or not volumes:
            raise ValueError(
                f"--group takes a name and its volumes, such as control=a.zarr,b.zarr. "
                f"Received: {clean(text)!r}"
            )
        found.setdefault(name.strip(), []).extend(volumes)
    return found or None


def _margins(texts: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Read margins: one share for all, and values for single measures.

    >>> _margins(["0.2", "sphericity=0.05"])
    (0.2, {'sphericity': 0.05})
    """
    share, single = 0.1, {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(
                f"--margin takes a share such as 0.1, or a measure and a value such as "
                f"sphericity=0.05. Received: {text!r}"
            ) from None
        if equals:
            single[name.strip()] = number
        else:
            share = number
    return share, single


def _rows(main: Sequence[Mapping[str, Any]], verbose: bool) -> list[list[str]]:
    """Lay the main tests out as rows of text: those below 5 % first, and all where asked for."""
    from cvdask.comparison.statistics import ALPHA

    header = ["comparison", "first", "second", "effect g", "p", "p, Holm", "observations", "note"]
    rows = [header]
    ordered = sorted(main, key=lambda row: 2.0 if row["p"] is None else row["p"])
    shown = [row for row in ordered if row["p"] is not None and row["p"] < ALPHA]
    for row in ordered if verbose else (shown or ordered)[:20]:
        name = f"{row['class']}, {row['measure']}: {row['comparison']}"
        numbers = (row[key] for key in ("mean_a", "mean_b", "effect", "p", "p_holm"))
        texts = ["–" if value is None else f"{value:.3g}" for value in numbers]
        units = f"{row['n_a']} + {row['n_b']} {row['level']}s"
        # Of tests between z-blocks a notice speaks once for all.
        told = row["level"] == "volume" or row["p"] is None
        rows.append([name, *texts, units, row["note"] if told else ""])
    return rows


def _count(main: Sequence[Mapping[str, Any]]) -> str:
    from cvdask.comparison.statistics import ALPHA

    tested = [row for row in main if row["p"] is not None]
    found = [row for row in tested if row["p_holm"] < ALPHA]
    return f"{len(found)} of {len(tested)} main tests below 5 % after Holm's correction"
