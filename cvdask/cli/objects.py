"""The commands that find objects: label them, measure them.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

import cvdask
from cvdask.cli.members import VolumeOrEnsemble, each_member
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
    tell_written,
)

group = typer.Typer()

Connectivity = Annotated[
    int,
    typer.Option(
        metavar="6|18|26",
        help="Neighbours of a voxel: through faces; and edges; and corners.",
        rich_help_panel=COMMON,
    ),
]
MinVoxels = Annotated[
    int, typer.Option(help="Smaller objects are left out.", rich_help_panel=COMMON)
]
Box = Annotated[
    str | None,
    typer.Option(
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="Only these voxels; objects are cut off at its faces.",
        rich_help_panel=COMMON,
    ),
]


@group.command(epilog="Example: cvdask label cell.zarr --class mitochondria --min-voxels 100")
@each_member
def label(
    volume: VolumeOrEnsemble,
    class_: Annotated[
        str,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Name or value of the class whose objects are labelled.",
            rich_help_panel=REQUIRED,
        ),
    ],
    labels: Annotated[
        str, typer.Option(help="Label image of classes.", rich_help_panel=COMMON)
    ] = "classes",
    name: Annotated[
        str | None,
        typer.Option(
            help="Label image to write; by default the name of the class.", rich_help_panel=COMMON
        ),
    ] = None,
    connectivity: Connectivity = 26,
    min_voxels: MinVoxels = 1,
    box: Box = None,
    n_levels: Annotated[
        int | None,
        typer.Option(
            help="Levels of the pyramid; by default until one fits 64 voxels along each axis.",
            rich_help_panel=RARE,
        ),
    ] = None,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Label the connected components of a class.

    Writes a label image in which every object has a number: 1, 2, 3 … in the order
    of its first voxel along z, y, x.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries, tell_notes() as notes:
        written = cvdask.label(
            volume,
            labels=labels,
            class_=class_,
            name=name,
            connectivity=connectivity,
            min_voxels=min_voxels,
            n_levels=n_levels,
            box=box,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("label", written, as_json)
        return
    small = written.attributes.get("small_objects", 0)
    left_out = f", {small:,} smaller ones left out" if small else ""
    if not as_json:
        print_lines([f"{written.attributes['objects']:,} objects{left_out}"])
    tell_written(
        "label",
        written,
        summaries,
        notes=notes,
        told=notes,
        look=f"export VOL slice.png --overlay {clean(written.name)}",
        as_json=as_json,
        verbose=verbose,
    )


@group.command(epilog="Example: cvdask measure cell.zarr --class mitochondria --fibre x --csv")
@each_member
def measure(
    volume: VolumeOrEnsemble,
    labels: Annotated[
        str,
        typer.Option(
            help="Label image of classes; of objects with --instances.", rich_help_panel=COMMON
        ),
    ] = "classes",
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Names or values of the classes whose objects are measured, between commas; by "
            "default all.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    instances: Annotated[
        bool,
        typer.Option("--instances", help="Every value is an object.", rich_help_panel=COMMON),
    ] = False,
    connectivity: Connectivity = 26,
    min_voxels: MinVoxels = 1,
    intensity: Annotated[
        bool,
        typer.Option(
            "--intensity", help="Grey values of the image in each object.", rich_help_panel=COMMON
        ),
    ] = False,
    contacts: Annotated[
        bool,
        typer.Option(
            "--contacts",
            help="Area that each object shares with every other class.",
            rich_help_panel=COMMON,
        ),
    ] = False,
    fibre: Annotated[
        str | None,
        typer.Option(
            metavar="z|y|x|Z,Y,X|estimate",
            help="Direction of the muscle fibre: adds the angle of each object to it.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="OUT.parquet",
            help="The table; by default VOL/tables/objects.parquet.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Write it as text too.", rich_help_panel=COMMON)
    ] = False,
    box: Box = None,
    voxel_extent: Annotated[
        bool,
        typer.Option(
            "--voxel-extent",
            help="Count the extent of voxels in the radii.",
            rich_help_panel=RARE,
        ),
    ] = False,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure every object: size, surface, shape, place.

    Writes a table with a row for each object, and a picture of the distributions
    beside it. Objects are connected components of the classes, found on the way.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries, tell_notes() as notes:
        written = cvdask.measure(
            volume,
            labels=labels,
            class_=class_,
            instances=instances,
            connectivity=connectivity,
            min_voxels=min_voxels,
            intensity=intensity,
            contacts=contacts,
            fibre=fibre,
            voxel_extent=voxel_extent,
            out=out,
            csv=csv,
            box=box,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("measure", written, as_json)
        return
    from cvdask.morphometry.distributions import summarize

    classes = summarize(written)
    if as_json:
        print_json(
            {
                "command": "measure",
                "ok": True,
                "volume": clean(volume),
                "table": clean(written.url),
                "classes": classes,
                "summaries": [summary.as_dict() for summary in summaries],
                "warnings": list(notes),
            }
        )
        return
    if classes:
        print_scores(_rows(classes))
    print_lines(summaries if verbose else [s for s in summaries if s.stage == "scan"])
    if not summaries:
        print_lines(["nothing to do: it was complete before"])
    n_rows = sum(found["n"] for found in classes.values())
    print_lines([f"written: {clean(written.url)}, {n_rows:,} rows"])


def _rows(classes: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a table of the classes: counts, and the medians of the measures."""
    measures = list(next(iter(classes.values()))["median"])
    header = ["class", "objects", "total (µm³)", *(f"median {name}" for name in measures)]
    rows = [header]
    for name, found in classes.items():
        medians = [found["median"][measure] for measure in measures]
        texts = ["–" if value is None else f"{value:.4g}" for value in medians]
        rows.append([name, f"{found['n']:,}", f"{found['total_volume_um3']:.4g}", *texts])
    return rows
