"""Commands that make virtual volumes, and tell how far they are from real ones.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.
"""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Annotated, Literal

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
    Workers,
    slice_range,
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
)

if TYPE_CHECKING:
    from cvdask.synthesis.distance import EnsembleDistance

group = typer.Typer()


@group.command(epilog="Example: cvdask generate --model gan.keras --volumes 25 virtual.zarr")
def generate(
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT.zarr", help="Ensemble to write: a path or a URL.", rich_help_panel=REQUIRED
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="FILE.keras",
            help="Generator that train-gan has written.",
            rich_help_panel=REQUIRED,
        ),
    ],
    volumes: Annotated[int, typer.Option(help="How many volumes.", rich_help_panel=COMMON)] = 1,
    slices: Annotated[
        int | None,
        typer.Option(
            help="Slices of each volume; by default as many as were trained on.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="The same seed, the same bytes.", rich_help_panel=COMMON)
    ] = 0,
    truncation: Annotated[
        float,
        typer.Option(
            help="1 is the whole variety; less draws everything towards its mean.",
            rich_help_panel=COMMON,
        ),
    ] = 1.0,
    z_range: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1",
            help="Where they lie, counted in slices from the first trained on; by default all.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    mix_seed: Annotated[
        int | None,
        typer.Option(help="Seed of the styles of finer layers.", rich_help_panel=RARE),
    ] = None,
    mix_layer: Annotated[
        int | None,
        typer.Option(
            help="First of those layers; by default the finer half.", rich_help_panel=RARE
        ),
    ] = None,
    interpolate_to: Annotated[
        int | None,
        typer.Option(
            help="Go in equal steps, volume by volume, to this seed.", rich_help_panel=RARE
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Slices per call of the generator.", rich_help_panel=RARE)
    ] = 16,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make an ensemble of label volumes with a trained generator.

    Every member of the ensemble is an ordinary volume with the label image classes.
    """
    from cvdask.engine.plan import watch_summaries

    if not dry_run:
        load_framework(verbose)
    with watch_summaries() as summaries, tell_notes() as notes:
        written = cvdask.generate(
            model,
            out,
            volumes=volumes,
            slices=slices,
            seed=seed,
            truncation=truncation,
            z_range=None if z_range is None else slice_range("--z-range", z_range),
            mix_seed=mix_seed,
            mix_layer=mix_layer,
            interpolate_to=interpolate_to,
            batch_size=batch_size,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("generate", written, as_json)
        return
    warnings = list(dict.fromkeys([*notes, *written.attributes.get("warnings", [])]))
    if as_json:
        print_json(
            {
                "command": "generate",
                "ok": True,
                "ensemble": clean(written.url),
                "members": list(written.members),
                "first": cvdask.info(written[0]),
                "summaries": [summary.as_dict() for summary in summaries],
                "warnings": warnings,
            }
        )
        return
    print_lines(summaries)
    if not summaries:
        print_lines(["nothing to do: it was complete before"])
    print_lines(f"note: {text}" for text in warnings if text not in notes)
    place = clean(written.url)
    print_lines(
        [
            f"written: {place}, {len(written)} volumes",
            f"look at one: cvdask info {shlex.quote(f'{place}/{written.members[0]}')}",
        ]
    )


@group.command(
    epilog="Example: cvdask distance virtual.zarr --real cell.zarr --labels classes --json"
)
def distance(
    ensemble: Annotated[
        str,
        typer.Argument(
            metavar="ENSEMBLE", help="Generated volumes, or one volume.", rich_help_panel=REQUIRED
        ),
    ],
    real: Annotated[
        list[str],
        typer.Option(
            metavar="VOL",
            help="Real volume; several by giving it again.",
            rich_help_panel=REQUIRED,
        ),
    ],
    labels: Annotated[
        str, typer.Option(help="Label image of the real volumes.", rich_help_panel=COMMON)
    ] = "classes",
    generated_labels: Annotated[
        str | None,
        typer.Option(
            help="Label image of the generated ones; by default ordered, else classes, else that "
            "of the real ones.",
            rich_help_panel=RARE,
        ),
    ] = None,
    z_range: SliceRange = None,
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VOL",
            help="Real volume that was not trained on, for the memorisation test; several by "
            "giving it again.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    unseen_z_range: Annotated[
        str | None,
        typer.Option(
            metavar="Z0:Z1",
            help="Slices of the real volumes that were not trained on, for the same.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.keras",
            help="The generator: measure its path length too.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    crop: Annotated[
        Literal["centre", "random"] | None,
        typer.Option(
            help="Squares of the real slices; by default as the generator was trained.",
            rich_help_panel=RARE,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of the path length, and of random squares.", rich_help_panel=RARE),
    ] = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Tell how far generated volumes are from real ones.

    Every number stands beside what real slices have: the distance of two halves of
    them, their shares of classes, their extents along z.
    """
    if model is not None:
        load_framework(verbose)
    found = cvdask.distance(
        ensemble,
        real=real,
        labels=labels,
        generated_labels=generated_labels,
        z_range=None if z_range is None else slice_range("--z-range", z_range),
        unseen=unseen or (),
        unseen_z_range=(
            None if unseen_z_range is None else slice_range("--unseen-z-range", unseen_z_range)
        ),
        model=model,
        crop=crop,
        seed=seed,
    )
    if as_json:
        print_json(
            {
                "command": "distance",
                "ok": True,
                "ensemble": clean(ensemble),
                "real": [clean(one) for one in real],
                **found.as_dict(),
                "warnings": [clean(note) for note in found.notes],
            }
        )
        return
    print_scores(_rows(found))
    print_lines(f"note: {clean(note)}" for note in found.notes)
    verdict = "passed" if found.memorisation.passed else "FAILED"
    print_lines(
        [
            f"{found.distance.n_slices} generated slices, {found.distance.n_reference} real; "
            f"memorisation test {verdict}: {found.memorisation.suspects:.1%} of the generated lie "
            f"nearer to a real slice than unseen ones do"
        ]
    )
    if found.memorisation.stand_in and not found.memorisation.passed:
        print_lines(
            [
                "real slices that lie apart stood in for unseen ones, which can fail slices of "
                "another cell too: give --unseen or --unseen-z-range to be sure"
            ]
        )


def _rows(found: EnsembleDistance) -> list[list[str]]:
    """Lay the numbers out: measure, generated, real, ratio."""
    made, floor = found.distance, found.floor
    rows = [["", "generated", "real", "ratio"]]
    rows += [
        ["Fréchet distance", *_numbers(made.frechet, floor.frechet)],
        ["kernel distance", *_numbers(made.kernel, floor.kernel)[:2], ""],
        ["density", *_numbers(made.density, floor.density)],
        ["coverage", *_numbers(made.coverage, floor.coverage)],
    ]
    rows += [[f"share of {name}", *_numbers(*both)] for name, both in found.fractions.items()]
    near = found.memorisation
    rows += [
        ["nearest real slice", *_numbers(near.generated, near.unseen)],
        [f"J(1) of {found.labels}", *_numbers(*found.neighbours)],
    ]
    rows += [
        [f"extent of {name}, in {found.depth} slices", *_numbers(*both)]
        for name, both in found.extents.items()
    ]
    if found.path_length is not None:
        rows.append(["path length", number_text(found.path_length), "", ""])
    return rows


def _numbers(generated: float, real: float) -> list[str]:
    ratio = generated / real if real else math.nan
    return [number_text(value) for value in (generated, real, ratio)]
