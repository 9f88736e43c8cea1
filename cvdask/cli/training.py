"""Commands that train networks: one, or two to compare.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
came of it. A training tells every epoch on standard error, where that is a terminal or with ``-v``.

The defaults stand here once more, because the help must not load what has them: the classes of the
options import a network framework. A test holds the two together.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

import cvdask
from cvdask.cli.framework import load_framework
from cvdask.cli.options import (
    COMMON,
    RARE,
    REQUIRED,
    AsJson,
    DryRun,
    Overwrite,
    Resume,
    SliceRange,
    Verbose,
    class_names,
    count_or,
    slice_range,
)
from cvdask.cli.printing import clean, print_json, print_lines, print_scores, tell_notes

if TYPE_CHECKING:
    from cvdask.segmentation.model_file import UNet
    from cvdask.segmentation.patches import Selection
    from cvdask.segmentation.study import Study

group = typer.Typer()

# Options that several commands have.
AnnotationLabels = Annotated[
    str,
    typer.Option(
        help="Label image with the annotations; 255 is not annotated.", rich_help_panel=COMMON
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="Classes to learn, the others become background; by default all that have a "
        "name. Or names for label values: 1=nucleus,7=z_disc.",
        rich_help_panel=COMMON,
    ),
]
Preset = Annotated[
    Literal["fast", "paper"],
    typer.Option(
        help="Network: a fast one, or the published one, 15 times the work.",
        rich_help_panel=COMMON,
    ),
]
Folds = Annotated[
    int,
    typer.Option(
        help="1 divides the patches 20 : 5 : 5; more cross-validate.", rich_help_panel=COMMON
    ),
]
Epochs = Annotated[int, typer.Option(help="At most, each fold.", rich_help_panel=COMMON)]
MaxMinutes = Annotated[
    float | None, typer.Option(help="At most, each fold.", rich_help_panel=COMMON)
]
Seed = Annotated[
    int,
    typer.Option(
        help="The same seed draws the same patches, weights and crops.", rich_help_panel=COMMON
    ),
]
NPatches = Annotated[
    str,
    typer.Option(metavar="N | all", help="Patches to draw.", rich_help_panel=RARE),
]
PatchSize = Annotated[
    int, typer.Option(help="Largest extent of a patch, voxels.", rich_help_panel=RARE)
]
SplitBy = Annotated[
    Literal["region", "slice"],
    typer.Option(
        help="What is never divided between training and validation.", rich_help_panel=RARE
    ),
]
Crop = Annotated[
    int, typer.Option(help="What the network sees in a step, voxels.", rich_help_panel=RARE)
]
BatchSize = Annotated[int, typer.Option(help="Crops per step.", rich_help_panel=RARE)]
StepsPerEpoch = Annotated[
    int | None,
    typer.Option(
        help="By default until the voxels of the patches were seen about twice.",
        rich_help_panel=RARE,
    ),
]
Patience = Annotated[
    str,
    typer.Option(
        metavar="N | never",
        help="Epochs without a better score that end a fold.",
        rich_help_panel=RARE,
    ),
]
BaseWidth = Annotated[
    int | None,
    typer.Option(
        help="Channels of the first block; by default the preset's.", rich_help_panel=RARE
    ),
]
Depth = Annotated[
    int | None,
    typer.Option(help="Times the input is halved; by default the preset's.", rich_help_panel=RARE),
]
MixedPrecision = Annotated[
    Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"],
    typer.Option(help="auto: half precision on a GPU.", rich_help_panel=RARE),
]
Upright = Annotated[
    bool,
    typer.Option(
        "--upright",
        help="The tissue has one direction in all slices, as muscle cut lengthwise: "
        "turn crops by a few degrees only.",
        rich_help_panel=COMMON,
    ),
]


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
    labels: AnnotationLabels = "annotations",
    classes: ClassNames = None,
    alone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Learn only this class, on the patches that are drawn for all.",
            rich_help_panel=RARE,
        ),
    ] = None,
    z_range: SliceRange = None,
    preset: Preset = "fast",
    folds: Folds = 1,
    epochs: Epochs = 100,
    max_minutes: MaxMinutes = None,
    seed: Seed = 0,
    n_patches: NPatches = "30",
    patch_size: PatchSize = 512,
    split_by: SplitBy = "region",
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", help="Train once more on all patches; keep that.", rich_help_panel=RARE
        ),
    ] = False,
    crop: Crop = 256,
    batch_size: BatchSize = 8,
    steps_per_epoch: StepsPerEpoch = None,
    patience: Patience = "25",
    base_width: BaseWidth = None,
    depth: Depth = None,
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
    mixed_precision: MixedPrecision = "auto",
    augment: Annotated[
        bool,
        typer.Option(
            "--augment/--no-augment",
            help="Turn, warp and alter what the network sees.",
            rich_help_panel=RARE,
        ),
    ] = True,
    upright: Upright = False,
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
        load_framework(verbose, training=True)
        written = cvdask.train_unet(
            volumes,
            out=out,
            labels=labels,
            callback=report,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            classes=class_names(classes) if classes is not None else None,
            alone=alone,
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
            upright=upright,
            balanced=balanced,
        )
    if dry_run:
        _tell_selection(cast("Selection", written), as_json, "train-unet")
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


@group.command(epilog="Example: cvdask study-imbalance cell.zarr --class z_discs --out study")
def study_imbalance(
    volumes: Annotated[
        list[str],
        typer.Argument(
            metavar="VOL",
            help="Volumes with annotations: paths or URLs.",
            rich_help_panel=REQUIRED,
        ),
    ],
    class_: Annotated[
        str,
        typer.Option(
            "--class",
            metavar="NAME",
            help="Class that is learned alone, and with all others.",
            rich_help_panel=REQUIRED,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Scores, picture and both networks.", rich_help_panel=REQUIRED
        ),
    ],
    labels: AnnotationLabels = "annotations",
    classes: ClassNames = None,
    z_range: SliceRange = None,
    preset: Preset = "fast",
    folds: Folds = 1,
    epochs: Epochs = 100,
    max_minutes: MaxMinutes = None,
    seed: Seed = 0,
    n_patches: NPatches = "30",
    patch_size: PatchSize = 512,
    split_by: SplitBy = "region",
    crop: Crop = 256,
    batch_size: BatchSize = 8,
    steps_per_epoch: StepsPerEpoch = None,
    patience: Patience = "25",
    base_width: BaseWidth = None,
    depth: Depth = None,
    mixed_precision: MixedPrecision = "auto",
    upright: Upright = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compare: a rare class learned alone, and together with all others.

    Trains twice on the same patches for the same time, and scores that class on
    patches that neither training has seen.
    """

    def report(way: str, record: Mapping[str, Any]) -> None:
        if verbose or sys.stderr.isatty():
            print(f"{way}: {_epoch_line(record)}", file=sys.stderr)

    with tell_notes() as notes:
        load_framework(verbose, training=True)
        found = cvdask.study_imbalance(
            volumes,
            class_=class_,
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
            crop=crop,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            patience=count_or("--patience", patience, "never"),
            base_width=base_width,
            depth=depth,
            mixed_precision=mixed_precision,
            upright=upright,
        )
    if dry_run:
        _tell_selection(cast("Selection", found), as_json, "study-imbalance")
        return
    study = cast("Study", found)
    if as_json:
        print_json(
            {"command": "study-imbalance", "ok": True, **study.as_dict(), "warnings": list(notes)}
        )
        return
    print_scores(study.table())
    print_lines(
        [
            f"{study.class_}: {study.share:.2%} of the annotated voxels, {study.judged_on} patches",
            f"written: {out}/study.json, study.png, together.keras, alone.keras",
        ]
    )


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


def _tell_selection(selection: Selection, as_json: bool, command: str) -> None:
    if as_json:
        described = {"stage": command, **selection.as_dict()}
        print_json({"command": command, "ok": True, "dry_run": True, "plans": [described]})
        return
    print_lines(["plan:", *(f"  {line}" for line in str(selection).splitlines())])
    print_lines(["dry run: nothing was written"])
