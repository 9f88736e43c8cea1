"""The command that puts slices in order.

It turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from cvdask.cli.printing import clean, print_json, print_lines, print_scores, tell_notes, tell_plans

group = typer.Typer()

# Slices apart that the table shows; the JSON object has all.
SHOWN_LAGS = (1, 2, 4, 8, 16, 32)
# Volumes that are told one by one.
MOST_SHOWN = 25


@group.command(epilog="Example: cvdask order virtual.zarr --real cell.zarr")
def order(
    volumes: Annotated[
        str,
        typer.Argument(
            metavar="ENSEMBLE", help="An ensemble, or one volume.", rich_help_panel=REQUIRED
        ),
    ],
    labels: Annotated[
        str, typer.Option(help="Label image of classes.", rich_help_panel=COMMON)
    ] = "classes",
    name: Annotated[
        str,
        typer.Option(help="Label image to write, in every volume.", rich_help_panel=COMMON),
    ] = "ordered",
    real: Annotated[
        str | None,
        typer.Option(
            metavar="VOL",
            help="A real stack: how alike are its neighbours?",
            rich_help_panel=COMMON,
        ),
    ] = None,
    real_labels: Annotated[
        str | None,
        typer.Option(
            help="Its label image of classes; by default that of --labels.", rich_help_panel=RARE
        ),
    ] = None,
    n_kicks: Annotated[
        int | None,
        typer.Option(
            help="How long to search where the order is not proven; by default 5 for each slice.",
            rich_help_panel=RARE,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search.", rich_help_panel=RARE)] = 0,
    client: Client = "threads",
    workers: Workers = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Put independent slices into the shortest order, and tell how short it could be at best.

    Writes a label image with the same slices in their new order, and a table of
    which slice lies where.
    """
    from cvdask.engine.plan import watch_summaries

    with watch_summaries() as summaries, tell_notes() as notes:
        written = cvdask.order(
            volumes,
            labels=labels,
            name=name,
            real=real,
            real_labels=real_labels,
            n_kicks=n_kicks,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            **where(client, workers, dry_run),
        )
    if isinstance(written, list):
        tell_plans("order", written, as_json)
        return
    from cvdask.volume.parquet import table_metadata

    found = table_metadata(written.schema)
    if as_json:
        print_json(
            {
                "command": "order",
                "ok": True,
                "url": clean(volumes),
                "labels": name,
                **{key: found[key] for key in ("volumes", "mean", "real", "j1_ratio")},
                "summaries": [summary.as_dict() for summary in summaries],
                "warnings": list(dict.fromkeys([*notes, *found["warnings"]])),
            }
        )
        return
    print_scores(_certificates(found["volumes"]))
    print_lines([""])
    print_scores(_mean_distances(found))
    if found["j1_ratio"] is not None:
        print_lines([f"J(1) ordered over J(1) real: {found['j1_ratio']:.2f}"])
    if verbose:
        print_lines(summaries)
    if not summaries:
        print_lines(["nothing to do: it was complete before"])
    print_lines([f"written: label image {name!r} of {len(found['volumes'])} volumes"])


def _certificates(volumes: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Lay out how short the orders are: a row for each volume, of many only the first."""
    rows = [["volume", "slices", "length", "bound", "gap", "worst step"]]
    for name, one in list(volumes.items())[:MOST_SHOWN]:
        numbers = (one["length"], one["bound"])
        rows.append(
            [
                name,
                str(one["n_slices"]),
                *(f"{value:.4f}" for value in numbers),
                f"{one['gap']:.3%}",
                f"{one['worst_step']:.4f}",
            ]
        )
    if len(volumes) > MOST_SHOWN:
        rows.append([f"… {len(volumes) - MOST_SHOWN} more", *[""] * 5])
    return rows


def _mean_distances(found: Mapping[str, Any]) -> list[list[str]]:
    """Lay out J(k) of all volumes together, before and after, and of the real stack."""
    curves = {"as stored": found["mean"]["j_before"], "ordered": found["mean"]["j"]}
    if found["real"] is not None:
        curves["real"] = found["real"]
    n_lags = max(map(len, curves.values()))
    lags = [k for k in SHOWN_LAGS if k <= n_lags]
    rows = [["mean distance of slices k apart", *(f"k = {k}" for k in lags)]]
    for name, values in curves.items():
        shown = [values[k - 1] if k <= len(values) else None for k in lags]
        rows.append([name, *("–" if v is None else f"{v:.4f}" for v in shown)])
    return rows
