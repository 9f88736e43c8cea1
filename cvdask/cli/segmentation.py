"""Commands around the network: train it, let it classify a volume, and see how good that is.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
came of it. A training tells every epoch on standard error, where that is a terminal or with ``-v``.

The defaults stand here once more, because the help must not load what has them: the classes of the
options import a network framework. A test holds the two together.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

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
    SliceRange,
    Verbose,
    VolumeUrl,
    Workers,
    class_names,
    count_or,
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

if TYPE_CHECKING:
    from cvdask.segmentation.model_file import UNet
    from cvdask.segmentation.patches import Selection

group = typer.Typer()


@group.command(epilog="Example: cvdask train-unet cell.zarr --classes mitochondria --out net.keras")
def train_unet(
    volumes: Annotated[
        list[str],
        typer.Argument(
            metavar="VOL",
            help="Volumes with annotations: paths or URLs.",
            rich_help_panel=REQUIRED,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE.keras",
            help="Network to write; records, log and curves lie beside it.",
            rich_help_panel=REQUIRED,
        ),
    ],
    labels: Annotated[
        str,
        typer.Option(
            help="Label image with the annotations; 255 is not annotated.", rich_help_panel=COMMON
        ),
    ] = "annotations",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Classes to learn, the others become background; by default all that have a "
            "name. Or names for label values: 1=nucleus,7=z_disc.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    z_range: SliceRange = None,
    preset: Annotated[
        Literal["fast", "paper"],
        typer.Option(
            help="Network: a fast one, or the published one, 15 times the work.",
            rich_help_panel=COMMON,
        ),
    ] = "fast",
    folds: Annotated[
        int,
        typer.Option(
            help="1 divides the patches 20 : 5 : 5; more cross-validate.", rich_help_panel=COMMON
        ),
    ] = 1,
    epochs: Annotated[int, typer.Option(help="At most, each fold.", rich_help_panel=COMMON)] = 100,
    max_minutes: Annotated[
        float | None, typer.Option(help="At most, each fold.", rich_help_panel=COMMON)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="The same seed draws the same patches, weights and crops.", rich_help_panel=COMMON
        ),
    ] = 0,
    n_patches: Annotated[
        str,
        typer.Option(metavar="N | all", help="Patches to draw.", rich_help_panel=RARE),
    ] = "30",
    patch_size: Annotated[
        int, typer.Option(help="Largest extent of a patch, voxels.", rich_help_panel=RARE)
    ] = 512,
    split_by: Annotated[
        Literal["region", "slice"],
        typer.Option(
            help="What is never divided between training and validation.", rich_help_panel=RARE
        ),
    ] = "region",
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", help="Train once more on all patches; keep that.", rich_help_panel=RARE
        ),
    ] = False,
    crop: Annotated[
        int, typer.Option(help="What the network sees in a step, voxels.", rich_help_panel=RARE)
    ] = 256,
    batch_size: Annotated[int, typer.Option(help="Crops per step.", rich_help_panel=RARE)] = 8,
    steps_per_epoch: Annotated[
        int | None,
        typer.Option(
            help="By default until the voxels of the patches were seen about twice.",
            rich_help_panel=RARE,
        ),
    ] = None,
    patience: Annotated[
        str,
        typer.Option(
            metavar="N | never",
            help="Epochs without a better score that end a fold.",
            rich_help_panel=RARE,
        ),
    ] = "25",
    base_width: Annotated[
        int | None,
        typer.Option(
            help="Channels of the first block; by default the preset's.", rich_help_panel=RARE
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Times the input is halved; by default the preset's.", rich_help_panel=RARE
        ),
    ] = None,
    n_dense: Annotated[
        int | None,
        typer.Option(
            help="Densely connected convolutions of preset paper; by default 3.",
            rich_help_panel=RARE,
        ),
    ] = None,
    learning_rate: Annotated[
        float, typer.Option(help="Highest, after the warm-up.", rich_help_panel=RARE)
    ] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=RARE)] = 1e-4,
    ema: Annotated[
        float,
        typer.Option(help="Share of the old in the mean of the weights.", rich_help_panel=RARE),
    ] = 0.99,
    dice: Annotated[
        float,
        typer.Option(
            help="Share of Dice in the loss; the rest is cross-entropy.", rich_help_panel=RARE
        ),
    ] = 0.5,
    boundary: Annotated[
        float,
        typer.Option(
            help="How much more a voxel beside another class counts.", rich_help_panel=RARE
        ),
    ] = 0.0,
    mixed_precision: Annotated[
        Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"],
        typer.Option(help="auto: half precision on a GPU.", rich_help_panel=RARE),
    ] = "auto",
    augment: Annotated[
        bool,
        typer.Option(
            "--augment/--no-augment",
            help="Turn, warp and alter what the network sees.",
            rich_help_panel=RARE,
        ),
    ] = True,
    balanced: Annotated[
        bool,
        typer.Option(
            "--balanced/--no-balanced",
            help="Guarantee rare classes patches, crops and weight.",
            rich_help_panel=RARE,
        ),
    ] = True,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a network on annotated slices.

    Validates after every epoch and keeps the best. Kill it at any time: the same
    command goes on.
    """
    n_reported = 0

    def report(record: Mapping[str, Any]) -> None:
        nonlocal n_reported
        n_reported += 1
        if verbose or sys.stderr.isatty():
            print(_epoch_line(record), file=sys.stderr)

    with tell_notes() as notes:
        _load_framework(verbose)
        written = cvdask.train_unet(
            volumes,
            out=out,
            labels=labels,
            callback=report,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            classes=class_names(classes) if classes is not None else None,
            z_range=slice_range("--z-range", z_range) if z_range is not None else None,
            preset=preset,
            folds=folds,
            epochs=epochs,
            max_minutes=max_minutes,
            seed=seed,
            n_patches=count_or("--n-patches", n_patches, "all"),
            patch_size=patch_size,
            split_by=split_by,
            refit=refit,
            crop=crop,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            patience=count_or("--patience", patience, "never"),
            base_width=base_width,
            depth=depth,
            n_dense=n_dense,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            ema=ema,
            dice=dice,
            boundary=boundary,
            mixed_precision=mixed_precision,
            augment=augment,
            balanced=balanced,
        )
    if dry_run:
        _tell_selection(cast("Selection", written), as_json)
        return
    unet = cast("UNet", written)
    if as_json:
        _print_trained(unet, out, notes)
        return
    if not n_reported:
        print_lines(["no epoch was left to do: an earlier run has finished"])
    print_lines(_fold_lines(unet.run["scores"]))
    print_scores(_training_rows(unet.run["scores"]))
    model, volume = shlex.quote(out), shlex.quote(clean(volumes[0]))
    print_lines([f"written: {out}", f"use it: cvdask segment {volume} --model {model}"])


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
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            help="bfloat16 is faster where the processor or GPU has it; compared before use.",
            rich_help_panel=COMMON,
        ),
    ] = "float32",
    max_changed: Annotated[
        float,
        typer.Option(
            help="Share of voxels that bfloat16 may classify otherwise.", rich_help_panel=RARE
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
            _load_framework(verbose)
        written = cvdask.segment(
            volume,
            model,
            name=name,
            probabilities=probabilities,
            tta=tta,
            precision=precision,
            max_changed=max_changed,
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


# ---------------------------------------------------------------------------------------------
# Before work


def _load_framework(verbose: bool) -> None:
    """Import the network framework without what its C++ parts write past Python on loading.

    A dozen lines about the processor and drivers that are absent hide what we have to say. They
    are shown with ``-v``, and when the import fails.
    """
    if verbose or "keras" in sys.modules:
        return
    # Read by TensorFlow when it is loaded, here and in the processes that are started from here:
    # errors about a GPU that is not there are its habit too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            import_module("cvdask.segmentation.layers")
        except BaseException:
            kept.seek(0)
            os.write(standard_error, kept.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


def _chart_path(text: str) -> Path:
    """Check where the chart is to go, before hours of work."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"--chart takes a file that ends in .png or .svg. Received: {text}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--chart takes a file in a folder that exists. Received: {text}")
    return path


# ---------------------------------------------------------------------------------------------
# What is told of a training


def _epoch_line(record: Mapping[str, Any]) -> str:
    """Say how an epoch went, in one line.

    >>> _epoch_line(
    ...     {
    ...         "fold": 1,
    ...         "epoch": 3,
    ...         "loss": 0.5,
    ...         "val_loss": None,
    ...         "mean_f1": 0.25,
    ...         "f1": {"nuclei": 0.25},
    ...         "samples_per_second": 12.34,
    ...         "seconds": 61.2,
    ...     }
    ... )
    'fold 1, epoch 3: loss 0.5000, validation –, F1 0.2500 (nuclei 0.2500), 12.3 crops/s, 61 s'
    """
    classes = ", ".join(f"{name} {_score(f1)}" for name, f1 in record["f1"].items())
    return (
        f"fold {record['fold']}, epoch {record['epoch']}: loss {record['loss']:.4f}, validation "
        f"{_score(record['val_loss'])}, F1 {_score(record['mean_f1'])} ({classes}), "
        f"{record['samples_per_second']:.1f} crops/s, {record['seconds']:.0f} s"
    )


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _fold_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """Say of every fold how long it took and which epoch was kept."""
    for fold in scores["folds"]:
        what = f"fold {fold['fold']}" if fold["validated"] else "all patches"
        kept = ", this network is kept" if fold["fold"] == scores["chosen_fold"] else ""
        yield (
            f"{what}: epoch {fold['best_epoch']} of {fold['n_epochs']}, {fold['minutes']:.1f} min"
            f"{kept}"
        )


def _training_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """Arrange the F1 scores of all folds: a row per class, and their mean.

    >>> one = {"fold": 1, "validated": True, "f1": {"nuclei": 0.75}, "mean_f1": 0.75}
    >>> scores = {"folds": [one], "f1_mean": {"nuclei": 0.75, "mean": 0.75}}
    >>> _training_rows(scores)
    [['F1', 'validation'], ['nuclei', '0.7500'], ['mean', '0.7500']]
    """
    folds = [fold for fold in scores["folds"] if fold["validated"]]
    columns: dict[str, Mapping[str, float | None]] = {}
    for fold in folds:
        title = "validation" if len(folds) == 1 else f"fold {fold['fold']}"
        columns[title] = {**fold["f1"], "mean": fold["mean_f1"]}
    if len(folds) == 1 and "test_f1" in folds[0]:
        columns["test"] = {**folds[0]["test_f1"], "mean": folds[0]["test_mean_f1"]}
    rows = [["F1", *columns]]
    rows += [[name, *(_score(c[name]) for c in columns.values())] for name in scores["f1_mean"]]
    if len(folds) > 1:
        rows[0].append("mean ± sd")
        for row in rows[1:]:
            row.append(f"{_score(scores['f1_mean'][row[0]])} ± {_score(scores['f1_sd'][row[0]])}")
    return rows


def _print_trained(unet: UNet, out: str, notes: Sequence[str]) -> None:
    print_json(
        {
            "command": "train-unet",
            "ok": True,
            "model": out,
            "classes": {str(value): name for value, name in unet.classes.items()},
            "scores": unet.run["scores"],
            "warnings": list(notes),
        }
    )


def _tell_selection(selection: Selection, as_json: bool) -> None:
    if as_json:
        described = {"stage": "train-unet", **selection.as_dict()}
        print_json({"command": "train-unet", "ok": True, "dry_run": True, "plans": [described]})
        return
    print_lines(["plan:", *(f"  {line}" for line in str(selection).splitlines())])
    print_lines(["dry run: nothing was written"])
