"""Commands that use a network: let it classify a volume, and see how good that is.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

import cvdask
from cvdask.cli.framework import load_framework
from cvdask.cli.options import (
    COMMON,
    RARE,
    REQUIRED,
    AsJson,
    Client,
    DryRun,
    Overwrite,
    Resume,
    SliceRange,
    Verbose,
    VolumeUrl,
    Workers,
    extents,
    slice_range,
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


@group.command(epilog="Example: cvdask segment cell.zarr --model net.keras --probabilities")
def segment(
    volume: VolumeUrl,
    model: Annotated[
        str,
        typer.Option(
            metavar="FILE.keras",
            help="Network that train-unet has written.",
            rich_help_panel=REQUIRED,
        ),
    ],
    name: Annotated[
        str, typer.Option(help="Label image to write.", rich_help_panel=COMMON)
    ] = "classes",
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Write every class's probability too, as NAME_p_CLASS.",
            rich_help_panel=COMMON,
        ),
    ] = False,
    roi: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1,Y0:Y1,X0:X1",
            help="Only these voxels; the rest stays 0.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    z_range: SliceRange = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Label image: only where it is not 0; the rest stays 0.", rich_help_panel=COMMON
        ),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Average over flipped and turned slices: 4 or 8 times the work.",
            rich_help_panel=COMMON,
        ),
    ] = False,
    axes: Annotated[
        Literal["z", "zyx"],
        typer.Option(
            help="Planes the network sees: slices, or, for cubic voxels, planes across all axes.",
            rich_help_panel=COMMON,
        ),
    ] = "z",
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"],
        typer.Option(
            help="Fewer bits are faster where the processor or GPU has them; compared before use.",
            rich_help_panel=COMMON,
        ),
    ] = "float32",
    runtime: Annotated[
        Literal["keras", "openvino"],
        typer.Option(
            help="What computes on a CPU; OpenVINO is faster for wide networks.",
            rich_help_panel=RARE,
        ),
    ] = "keras",
    max_loss: Annotated[
        float,
        typer.Option(
            help="Mean F1 that a reduced precision may lose on the training's validation patches.",
            rich_help_panel=RARE,
        ),
    ] = 0.005,
    max_changed: Annotated[
        float,
        typer.Option(
            help="Where those are not to be found: share of voxels it may classify otherwise.",
            rich_help_panel=RARE,
        ),
    ] = 0.005,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Slices per call of the network; by default what suits the device.",
            rich_help_panel=RARE,
        ),
    ] = None,
    block_yx: Annotated[
        str | None,
        typer.Option(
            metavar="Y X",
            help="Extent of a block in voxels; by default the largest that fits the memory.",
            rich_help_panel=RARE,
        ),
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option(
            "--gpu/--no-gpu",
            help="Only on workers that offer a GPU; by default on those, where any does.",
            rich_help_panel=RARE,
            show_default=False,
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
    """Classify every voxel of a volume with a trained network.

    Adds a label image to the volume. The result does not depend on blocks,
    workers or interruptions.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries, tell_notes() as notes:
        run = where(client, workers, dry_run)
        if client in ("serial", "threads") and not dry_run:
            load_framework(verbose)
        written = cvdask.segment(
            volume,
            model,
            name=name,
            probabilities=probabilities,
            tta=tta,
            axes=axes,
            precision=precision,
            runtime=runtime,
            max_changed=max_changed,
            max_loss=max_loss,
            roi=roi,
            mask=mask,
            z_range=slice_range("--z-range", z_range) if z_range is not None else None,
            batch_size=batch_size,
            block_yx=extents("--block-yx", block_yx) if block_yx is not None else None,
            gpu=gpu,
            resume=resume,
            overwrite=overwrite,
            **run,
        )
    if isinstance(written, list):
        tell_plans("segment", written, as_json)
        return
    tell_written(
        "segment",
        written,
        summaries,
        # A run that was complete before has kept what it had to say.
        notes=list(dict.fromkeys([*notes, *written.attributes.get("warnings", [])])),
        told=notes,
        look=f"export VOL {shlex.quote(name)}.png --overlay {shlex.quote(name)}",
        as_json=as_json,
        verbose=verbose,
    )


@group.command(epilog="Example: cvdask evaluate cell.zarr --truth annotations --chart scores.png")
def evaluate(
    volume: VolumeUrl,
    prediction: Annotated[
        str, typer.Option(help="Label image to be judged.", rich_help_panel=COMMON)
    ] = "classes",
    truth: Annotated[
        str,
        typer.Option(
            help="Label image to judge it by; 255 is not annotated and does not count.",
            rich_help_panel=COMMON,
        ),
    ] = "annotations",
    z_range: SliceRange = None,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1,Y0:Y1,X0:X1", help="Only these voxels.", rich_help_panel=COMMON
        ),
    ] = None,
    chart: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw the scores as bars: name.png or name.svg.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    probabilities: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="V_Rand and V_Info from the label images NAME_p_CLASS, at the best threshold.",
            rich_help_panel=RARE,
        ),
    ] = None,
    client: Client = "threads",
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Score a segmentation against annotations, class by class.

    Accuracy, sensitivity, specificity, PPV, NPV, F1, Jaccard, and V_Rand and
    V_Info after border thinning.
    """
    from cvdask.engine.plan import Plan

    picture = _chart_path(chart) if chart is not None else None
    found = cvdask.evaluate(
        volume,
        prediction=prediction,
        truth=truth,
        probabilities=probabilities,
        z_range=slice_range("--z-range", z_range) if z_range is not None else None,
        box=box,
        **where(client, workers, dry_run),
    )
    if isinstance(found, Plan):
        tell_plans("evaluate", [found], as_json)
        return
    if picture is not None:
        found.draw(picture)
    if as_json:
        print_json(
            {
                "command": "evaluate",
                "ok": True,
                "volume": clean(volume),
                **found.as_dict(),
                "chart": str(picture) if picture is not None else None,
                "summaries": [found.summary.as_dict()],
                "warnings": list(found.warnings),
            }
        )
        return
    # Classes side by side: nine scores side by side are wider than a terminal.
    print_scores(list(zip(*found.table(), strict=True)))
    print_lines(f"note: {warning}" for warning in found.warnings)
    if verbose:
        print_lines([found.summary])
    if picture is not None:
        print_lines([f"drawn: {picture}"])


def _chart_path(text: str) -> Path:
    """Check where the chart is to go, before hours of work."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"--chart takes a file that ends in .png or .svg. Received: {text}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--chart takes a file in a folder that exists. Received: {text}")
    return path
