"""The command that draws objects: their surfaces as triangles.

It turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
    VolumeUrl,
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

if TYPE_CHECKING:
    import pyarrow as pa

group = typer.Typer()

# More are in the table that is written.
MOST_ROWS = 20


@group.command(epilog="Example: cvdask mesh cell.zarr --labels mitochondria --ids 1,2 --out meshes")
def mesh(
    volume: VolumeUrl,
    labels: Annotated[
        str,
        typer.Option(
            help="Label image of objects; of classes with --class.", rich_help_panel=REQUIRED
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Folder to write to: a file for each object, named by its label.",
            rich_help_panel=REQUIRED,
        ),
    ],
    ids: Annotated[
        str | None,
        typer.Option(metavar="ID,ID", help="These objects.", rich_help_panel=COMMON),
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS,CLASS",
            help="Whole classes, by name or value, each as one mesh.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    min_voxels: Annotated[
        int | None,
        typer.Option(
            help="All objects of at least so many voxels; 1 for all.", rich_help_panel=COMMON
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="ply, stl, obj (µm), or precomputed for Neuroglancer (nm); x, y, z.",
            rich_help_panel=COMMON,
        ),
    ] = "ply",
    simplify: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="Keep about one triangle in so many; whole objects have to fit into memory.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    level: Annotated[
        int, typer.Option(help="Level to mesh; 0 is the finest.", rich_help_panel=COMMON)
    ] = 0,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1,Y0:Y1,X0:X1",
            help="Only these voxels of the level; surfaces are closed at its sides.",
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
    """Write the surfaces of chosen objects as triangles.

    Say which by one of --ids, --class and --min-voxels. A table of all that
    was written lies beside the files, as meshes.parquet.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries, tell_notes() as notes:
        written = cvdask.mesh(
            volume,
            labels=labels,
            ids=ids,
            class_=class_,
            min_voxels=min_voxels,
            out=out,
            format=format,
            simplify=simplify,
            level=level,
            box=box,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("mesh", written, as_json)
        return
    from cvdask.volume.parquet import table_metadata

    warnings = list(dict.fromkeys([*notes, *table_metadata(written.schema).get("warnings", [])]))
    if as_json:
        print_json(
            {
                "command": "mesh",
                "ok": True,
                "volume": clean(volume),
                "out": clean(out),
                "meshes": written.to_pylist(),
                "summaries": [summary.as_dict() for summary in summaries],
                "warnings": warnings,
            }
        )
        return
    print_scores(_rows(written))
    if len(written) > MOST_ROWS:
        print_lines([f"… and {len(written) - MOST_ROWS} more"])
    print_lines(f"note: {text}" for text in warnings if text not in notes)
    print_lines(summaries if verbose else [])
    if not summaries:
        print_lines(["nothing to do: it was complete before"])
    print_lines([f"written: {clean(out)}, {len(written)} meshes"])


def _rows(table: pa.Table) -> list[list[str]]:
    """Lay the largest numbers of the first meshes out as rows of text."""
    rows = [["mesh", "voxels", "vertices", "triangles", "surface µm²", "volume µm³"]]
    one: dict[str, Any]
    for one in table.slice(0, MOST_ROWS).to_pylist():
        numbers = [str(one[key]) for key in ("n_voxels", "n_vertices", "n_triangles")]
        sizes = [f"{one[key]:.4g}" for key in ("mesh_surface_um2", "mesh_volume_um3")]
        rows.append([one["name"] or str(one["label"]), *numbers, *sizes])
    return rows
