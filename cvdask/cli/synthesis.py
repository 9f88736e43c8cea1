"""The command that trains a network to make label slices.

It turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.

The defaults stand here once more, because the help must not load what has them: the class of the
options imports a network framework. A test holds the two together.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
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
    slice_range,
)
from cvdask.cli.printing import clean, print_json, print_lines, print_scores, tell_notes

if TYPE_CHECKING:
    from cvdask.synthesis.gan_file import Gan
    from cvdask.synthesis.train import GanPlan

group = typer.Typer()


# ---------------------------------------------------------------------------------------------
# train-gan


@group.command(epilog="Example: cvdask train-gan cell.zarr --resolution 64 --out cell.keras")
def train_gan(
    volumes: Annotated[
        list[str],
        typer.Argument(
            metavar="VOL",
            help="Volumes with a label image of classes: paths or URLs.",
            rich_help_panel=REQUIRED,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE.keras",
            help="Generator to write; records, log and pictures lie beside it.",
            rich_help_panel=REQUIRED,
        ),
    ],
    labels: Annotated[
        str, typer.Option(help="Label image of classes.", rich_help_panel=COMMON)
    ] = "classes",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Classes to learn, the others become background; by default all that have a name.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    z_range: SliceRange = None,
    preset: Annotated[
        Literal["default", "paper"],
        typer.Option(
            help="StyleGAN2's layers, or the published ones: StyleGAN's, grown, labelled by "
            "pairs of slices.",
            rich_help_panel=COMMON,
        ),
    ] = "default",
    continuity: Annotated[
        Literal["order", "volume"],
        typer.Option(
            help="Independent slices, to be ordered; or whole stacks, continuous in z.",
            rich_help_panel=COMMON,
        ),
    ] = "order",
    resolution: Annotated[
        int | None,
        typer.Option(
            help="Side of the squares, voxels: a power of two, 16 to 1024; by default what fits.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    kimg: Annotated[
        float | None,
        typer.Option(
            help="Thousands of images, at most; by default 300 on a CPU, 5000 on a GPU.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="At most.", rich_help_panel=COMMON)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="The same seed draws the same weights, batches and noise.", rich_help_panel=COMMON
        ),
    ] = 0,
    exclude: Annotated[
        str | None,
        typer.Option(
            metavar="Z,Z,…",
            help="Slices to leave out, besides missing, damaged and odd ones.",
            rich_help_panel=RARE,
        ),
    ] = None,
    crop: Annotated[
        Literal["centre", "random"],
        typer.Option(help="Which square of a slice.", rich_help_panel=RARE),
    ] = "centre",
    reduction: Annotated[
        int | None,
        typer.Option(
            help="Voxels of a side that become one, by the commonest class; by default what fits.",
            rich_help_panel=RARE,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples per step; by default 32, fewer above 256 voxels.", rich_help_panel=RARE
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="Channels at the finest resolution; by default for the device.",
            rich_help_panel=RARE,
        ),
    ] = None,
    max_width: Annotated[
        int | None,
        typer.Option(
            help="Most channels; by default 64 on a CPU, 512 on a GPU.", rich_help_panel=RARE
        ),
    ] = None,
    latent: Annotated[
        int | None,
        typer.Option(
            help="Numbers of a latent; by default 128 on a CPU, 512 on a GPU.",
            rich_help_panel=RARE,
        ),
    ] = None,
    n_mapping: Annotated[
        int | None,
        typer.Option(
            help="Layers of the mapping network; by default 2, in preset paper 8.",
            rich_help_panel=RARE,
        ),
    ] = None,
    head: Annotated[
        Literal["straight-through", "softmax"],
        typer.Option(
            help="The discriminator sees one class per voxel, or probabilities.",
            rich_help_panel=RARE,
        ),
    ] = "straight-through",
    loss: Annotated[
        Literal["non_saturating", "rpgan_r1_r2"],
        typer.Option(help="With R1; or relativistic pairs with R1 and R2.", rich_help_panel=RARE),
    ] = "non_saturating",
    share_weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the classes' shares in the generator's loss; by default 1, in preset "
            "paper 0.",
            rich_help_panel=RARE,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of Adam; by default for the preset.", rich_help_panel=RARE),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(
            help="Weight of R1; by default for preset, resolution and batch.",
            rich_help_panel=RARE,
        ),
    ] = None,
    penalty_every: Annotated[
        int | None,
        typer.Option(
            help="Steps from R1 to R1; by default 16, in preset paper 1.", rich_help_panel=RARE
        ),
    ] = None,
    path_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between two path lengths, 0 for none; by default for preset and device.",
            rich_help_panel=RARE,
        ),
    ] = None,
    mixing: Annotated[
        float,
        typer.Option(help="Share of images with the styles of two latents.", rich_help_panel=RARE),
    ] = 0.9,
    noise: Annotated[
        bool | None,
        typer.Option(
            "--noise/--no-noise",
            help="Keep the noise of single voxels to the end; by default in preset paper only.",
            rich_help_panel=RARE,
        ),
    ] = None,
    augment: Annotated[
        bool,
        typer.Option(
            "--augment/--no-augment",
            help="Mirror and shift what the discriminator sees, adaptively.",
            rich_help_panel=RARE,
        ),
    ] = True,
    ema_kimg: Annotated[
        float | None,
        typer.Option(
            help="Half-life of the generator's average; by default batch · 10/32.",
            rich_help_panel=RARE,
        ),
    ] = None,
    mixed_precision: Annotated[
        Literal["auto", "float32", "mixed_bfloat16"],
        typer.Option(help="auto: half precision on a GPU.", rich_help_panel=RARE),
    ] = "auto",
    n_devices: Annotated[
        int | None,
        typer.Option(
            help="Devices to divide a batch over; by default all GPUs.", rich_help_panel=RARE
        ),
    ] = None,
    report_kimg: Annotated[
        float | None,
        typer.Option(
            help="Thousands of images between two reports; by default 10 on a CPU, 50 on a GPU.",
            rich_help_panel=RARE,
        ),
    ] = None,
    n_judged: Annotated[
        int, typer.Option(help="Slices that are made for a report.", rich_help_panel=RARE)
    ] = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a generator of label slices.

    Reads slices straight from the volumes. Keeps the generator whose slices are
    closest to real ones. Kill it at any time: the same command goes on.
    """

    def report(record: Mapping[str, Any]) -> None:
        if verbose or sys.stderr.isatty():
            print(_report_line(record), file=sys.stderr)

    with tell_notes() as notes:
        load_framework(verbose, training=True)
        written = cvdask.train_gan(
            volumes,
            out=out,
            labels=labels,
            callback=report,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            classes=classes.split(",") if classes is not None else None,
            z_range=slice_range("--z-range", z_range) if z_range is not None else None,
            preset=preset,
            continuity=continuity,
            resolution=resolution,
            kimg=kimg,
            max_minutes=max_minutes,
            seed=seed,
            exclude=_slice_numbers(exclude),
            crop=crop,
            reduction=reduction,
            batch_size=batch_size,
            width=width,
            max_width=max_width,
            latent=latent,
            n_mapping=n_mapping,
            head=head,
            loss=loss,
            share_weight=share_weight,
            learning_rate=learning_rate,
            gamma=gamma,
            penalty_every=penalty_every,
            path_every=path_every,
            mixing=mixing,
            noise=noise,
            augment=augment,
            ema_kimg=ema_kimg,
            mixed_precision=mixed_precision,
            n_devices=n_devices,
            report_kimg=report_kimg,
            n_judged=n_judged,
        )
    if dry_run:
        _tell_plan(cast("GanPlan", written), as_json)
    else:
        _tell_trained(cast("Gan", written), out, notes, as_json)


def _slice_numbers(text: str | None) -> tuple[int, ...]:
    """Read slice numbers.

    >>> _slice_numbers("3,17")
    (3, 17)
    """
    if text is None:
        return ()
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"--exclude takes slice numbers, such as 3,17. Received: {text!r}")
    return tuple(map(int, parts))


def _report_line(record: Mapping[str, Any]) -> str:
    """Say how a training stands, in one line.

    >>> _report_line(
    ...     {
    ...         "kimg": 20.0,
    ...         "distance": 1.5,
    ...         "floor": 0.25,
    ...         "images_per_second": 150.2,
    ...         "seconds": 133.0,
    ...         "eta_minutes": 28.0,
    ...         "fractions": {"background": 0.75, "nuclei": 0.25},
    ...         "real_fractions": {"background": 0.8, "nuclei": 0.2},
    ...     }
    ... )
    '20 kimg: distance 1.500, 6.0 × floor; background 75.0 % (80.0 %), nuclei 25.0 % (20.0 %);
    150 images/s, 133 s, 28 min left'
    """
    shares = ", ".join(
        f"{name} {100 * share:.1f} % ({100 * record['real_fractions'][name]:.1f} %)"
        for name, share in record["fractions"].items()
    )
    parts = [f"{record['kimg']:g} kimg: {_distance(record)}", shares]
    if record["images_per_second"] is not None:
        parts.append(
            f"{record['images_per_second']:.0f} images/s, {record['seconds']:.0f} s, "
            f"{record['eta_minutes']:.0f} min left"
        )
    return "; ".join(parts)


def _distance(record: Mapping[str, Any]) -> str:
    if record["distance"] is None:
        return "distance –"
    told = f"distance {record['distance']:.3f}"
    return (
        f"{told}, {record['distance'] / record['floor']:.1f} × floor" if record["floor"] else told
    )


def _tell_plan(plan: GanPlan, as_json: bool) -> None:
    if as_json:
        described = {"stage": "train-gan", **plan.as_dict()}
        print_json({"command": "train-gan", "ok": True, "dry_run": True, "plans": [described]})
        return
    print_lines(["plan:", *(f"  {line}" for line in str(plan).splitlines())])
    print_lines(["dry run: nothing was written"])


def _tell_trained(gan: Gan, out: str, notes: list[str], as_json: bool) -> None:
    reports = gan.run["reports"]
    best = next(one for one in reports if one["step"] == gan.run["best_step"])
    if as_json:
        print_json(
            {
                "command": "train-gan",
                "ok": True,
                "model": out,
                "best": best,
                "first": reports[0],
                **{key: gan.run[key] for key in ("n_images", "minutes", "stopped")},
                "warnings": list(notes),
            }
        )
        return
    rows = [["class", "generated", "real"]]
    for name, share in best["fractions"].items():
        rows.append([name, f"{share:.2%}", f"{best['real_fractions'][name]:.2%}"])
    print_scores(rows)
    stem = clean(out).removesuffix(".keras")
    print_lines(
        [
            f"{gan.run['n_images'] / 1000:g} kimg in {gan.run['minutes']:.1f} min; kept: "
            f"{best['kimg']:g} kimg, {_distance(best)}; at the start {_distance(reports[0])}",
            f"written: {clean(out)}, {stem}.run.json, {stem}.jsonl, {stem}.samples/",
            f"make slices: cvdask generate --model {shlex.quote(clean(out))} OUT.zarr",
        ]
    )
