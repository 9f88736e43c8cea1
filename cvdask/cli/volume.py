"""Commands that make volumes and look after them: from the microscope's files to a checked sample.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import cvdask
from cvdask.cli.options import (
    COMMON,
    RARE,
    REQUIRED,
    AsJson,
    Client,
    DryRun,
    Levels,
    Overwrite,
    Resume,
    Verbose,
    VolumeUrl,
    Workers,
    class_names,
    integers,
    numbers,
    where,
)
from cvdask.cli.printing import (
    FAILED,
    clean,
    print_info,
    print_json,
    print_lines,
    tell_plans,
    tell_written,
    verification_lines,
)

group = typer.Typer()


@group.command(epilog="Example: cvdask phantom cell.zarr --size-um 1 2 2 --voxel-nm 20")
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
            size_um=numbers("--size-um", size_um),
            voxel_nm=numbers("--voxel-nm", voxel_nm),
            seed=seed,
            kind=kind,
            n_levels=n_levels,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("phantom", written, as_json)
    else:
        tell_written("phantom", written, summaries, as_json=as_json, verbose=verbose)


@group.command(epilog="Example: cvdask ingest raw.tif sample.zarr --labels truth.tif --voxel-nm 20")
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

    limits = numbers("--range", value_range) if value_range is not None else None
    if limits is not None and len(limits) != 2:
        raise ValueError(f"--range takes LOW HIGH. Received {len(limits)}: {value_range}")
    with watch_summaries() as summaries:
        outcome = cvdask.ingest(
            source,
            out,
            voxel_nm=numbers("--voxel-nm", voxel_nm) if voxel_nm is not None else None,
            labels=labels,
            label_name=label_name,
            as_labels=as_labels,
            classes=class_names(classes) if classes is not None else None,
            label_slices=integers("--label-slices", label_slices) if label_slices else None,
            dataset=dataset,
            pattern=pattern,
            channel=channel,
            dtype=dtype,
            value_range=(limits[0], limits[1]) if limits is not None else None,
            damaged=damaged,
            bad_slices=integers("--bad-slices", bad_slices) if bad_slices else (),
            n_levels=n_levels,
            check=check,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(outcome, list):
        tell_plans("ingest", outcome, as_json)
    else:
        tell_written(
            "ingest",
            outcome.volume,
            summaries,
            notes=outcome.warnings,
            verification=outcome.verification,
            as_json=as_json,
            verbose=verbose,
        )


@group.command(epilog="Example: cvdask info cell.zarr")
def info(volume: VolumeUrl, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Tell what is in a volume: levels, voxel size, labels, origin."""
    described = cvdask.info(volume)
    if as_json:
        print_json({"command": "info", "ok": True, "volume": described})
    else:
        print_info(described, verbose)


@group.command(epilog="Example: cvdask pyramid cell.zarr --labels truth")
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
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("pyramid", written, as_json)
    else:
        tell_written("pyramid", written, summaries, as_json=as_json, verbose=verbose)


@group.command(epilog="Example: cvdask verify cell.zarr")
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
        found = cvdask.verify(volume, **where(client, workers, dry_run))
    if isinstance(found, list):
        tell_plans("verify", found, as_json)
        return
    if as_json:
        print_json(
            {
                "command": "verify",
                "ok": found.ok,
                "volume": clean(volume),
                "verification": found.as_dict(),
                "summaries": [summary.as_dict() for summary in summaries],
                "warnings": [],
            }
        )
    else:
        if verbose:
            print_lines(summaries)
        print_lines(verification_lines(found))
    if not found.ok:
        raise typer.Exit(FAILED)


@group.command(epilog="Example: cvdask export cell.zarr middle.png --overlay truth")
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
        tell_plans("export", [written], as_json)
    elif as_json:
        print_json({"command": "export", "ok": True, "output": str(written), "warnings": []})
    else:
        print_lines([f"written: {written}"])
