"""Commands that describe places and whole volumes: how dense, how thick, how correlated.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
    number_text,
    print_json,
    print_lines,
    print_scores,
    tell_notes,
    tell_plans,
    tell_written,
)

if TYPE_CHECKING:
    import pyarrow as pa

group = typer.Typer()

ClassImage = Annotated[str, typer.Option(help="Label image of classes.", rich_help_panel=COMMON)]
Box = Annotated[
    str | None,
    typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Only these voxels.", rich_help_panel=COMMON),
]


@group.command(
    epilog="Example: cvdask density cell.zarr --numerator mitochondria --denominator all"
)
@each_member
def density(
    volume: VolumeOrEnsemble,
    numerator: Annotated[
        str,
        typer.Option(
            metavar="CLASS",
            help="Name or value of the class that is counted; several between commas.",
            rich_help_panel=REQUIRED,
        ),
    ],
    denominator: Annotated[
        str,
        typer.Option(
            metavar="CLASS",
            help="Class it is divided by, or all: every annotated voxel.",
            rich_help_panel=REQUIRED,
        ),
    ],
    labels: ClassImage = "classes",
    kernel_um: Annotated[
        float, typer.Option(help="Side of the cube that is counted in.", rich_help_panel=COMMON)
    ] = 4.0,
    stride_um: Annotated[
        float, typer.Option(help="Step from one place to the next.", rich_help_panel=COMMON)
    ] = 0.4,
    name: Annotated[
        str,
        typer.Option(help="The result is VOL/tables/NAME.zarr.", rich_help_panel=COMMON),
    ] = "density",
    out: Annotated[
        str | None,
        typer.Option(
            metavar="OUT.zarr", help="Where it is written instead.", rich_help_panel=COMMON
        ),
    ] = None,
    box: Box = None,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Count one class for each voxel of another in a moving cube.

    Writes an image with a voxel for each place of the cube: the ratio of the two
    counts, NaN where the second is 0.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries, tell_notes() as notes:
        written = cvdask.density(
            volume,
            labels=labels,
            numerator=numerator,
            denominator=denominator,
            kernel_um=kernel_um,
            stride_um=stride_um,
            name=name,
            out=out,
            box=box,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("density", written, as_json)
        return
    tell_written(
        "density",
        written,
        summaries,
        notes=list(dict.fromkeys([*notes, *written.attributes.get("warnings", [])])),
        told=notes,
        as_json=as_json,
        verbose=verbose,
    )


@group.command(epilog="Example: cvdask descriptors cell.zarr --labels classes --z-blocks 20")
@each_member
def descriptors(
    volume: VolumeOrEnsemble,
    labels: ClassImage = "classes",
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.parquet",
            help="Table to write; by default VOL/tables/descriptors.parquet.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS,CLASS",
            help="Classes whose correlation, paths and thickness are described; by default all.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,KIND",
            help="Some of fractions, interfaces, two_point, lineal_path, thickness.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    max_distance_um: Annotated[
        float,
        typer.Option(help="Largest distance of correlation and paths.", rich_help_panel=COMMON),
    ] = 2.0,
    max_thickness_um: Annotated[
        float, typer.Option(help="Largest diameter of a ball.", rich_help_panel=COMMON)
    ] = 2.0,
    thickness_step_um: Annotated[
        float,
        typer.Option(
            help="Step of the diameters; the level with voxels of half of it is used.",
            rich_help_panel=RARE,
        ),
    ] = 0.1,
    z_blocks: Annotated[
        int,
        typer.Option(
            help="Ranges of slices that are drawn from for the intervals.", rich_help_panel=RARE
        ),
    ] = 10,
    box: Box = None,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Describe the classes of a volume in numbers with intervals.

    Fractions, interface densities, two-point correlation, lineal path and local
    thickness, as one long table.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries, tell_notes() as notes:
        written = cvdask.descriptors(
            volume,
            labels=labels,
            classes=classes,
            only=only,
            max_distance_um=max_distance_um,
            max_thickness_um=max_thickness_um,
            thickness_step_um=thickness_step_um,
            z_blocks=z_blocks,
            out=out,
            box=box,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("descriptors", written, as_json)
        return
    from cvdask.volume.parquet import table_metadata

    warnings = [*notes, *table_metadata(written.schema).get("warnings", [])]
    place = clean(out or f"{volume.rstrip('/')}/tables/descriptors.parquet")
    if as_json:
        print_json(
            {
                "command": "descriptors",
                "ok": True,
                "volume": clean(volume),
                "table": place,
                "n_rows": len(written),
                "classes": _main_numbers(written),
                "summaries": [summary.as_dict() for summary in summaries],
                "warnings": list(dict.fromkeys(warnings)),
            }
        )
        return
    print_scores(_number_rows(written))
    print_lines(f"note: {text}" for text in dict.fromkeys(warnings) if text not in notes)
    print_lines(summaries if verbose else [])
    if not summaries:
        print_lines(["nothing to do: it was complete before"])
    print_lines([f"written: {place}, {len(written)} rows"])


def _main_numbers(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Return, by class, the descriptors that are one number: value, low and high."""
    found: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        if row["other"] is None and row["distance_um"] is None:
            numbers = {key: row[key] for key in ("value", "low", "high", "unit")}
            found.setdefault(row["class"], {})[row["descriptor"]] = numbers
        elif row["descriptor"] == "interface_density":
            numbers = {key: row[key] for key in ("value", "low", "high", "unit")}
            found.setdefault(row["class"], {})[f"interface with {row['other']}"] = numbers
    return found


def _number_rows(table: pa.Table) -> list[list[str]]:
    """Lay the main numbers out as rows of text."""
    rows = [["class", "", "value", "95 % low", "high", "unit"]]
    for name, numbers in _main_numbers(table).items():
        for descriptor, one in numbers.items():
            texts = [number_text(one[key]) for key in ("value", "low", "high")]
            rows.append([name, descriptor.replace("_", " "), *texts, one["unit"]])
    return rows
