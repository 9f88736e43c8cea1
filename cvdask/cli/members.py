"""A command that takes one volume, given an ensemble: what it does to each member, and tells once.

1. :func:`each_member` wraps the command. A volume goes through as it came.
2. An ensemble is opened, and so is the place where blocks run, once for all members.
3. What the command would tell programs of each member is gathered into one object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cvdask.cli.options import REQUIRED, where
from cvdask.cli.printing import clean, gather_json, print_json, print_lines

VolumeOrEnsemble = Annotated[
    str,
    typer.Argument(
        metavar="VOL",
        help="A volume, or an ensemble: each of its volumes. A path or a URL.",
        rich_help_panel=REQUIRED,
    ),
]


def each_member(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that takes one volume take an ensemble too."""

    @functools.wraps(command)
    def over(volume: str, **options: Any) -> None:
        from cvdask.volume.ensemble import is_ensemble

        if is_ensemble(volume):
            _over_members(command, volume, options)
        else:
            command(volume=volume, **options)

    return over


def _over_members(command: Callable[..., None], url: str, options: dict[str, Any]) -> None:
    from cvdask.engine.cluster import connect
    from cvdask.volume.ensemble import open_ensemble

    ensemble = open_ensemble(url)
    if options.get("out") is not None:
        raise ValueError(
            f"--out is for a volume: every member of an ensemble keeps its own beside its data. "
            f"Received: --out {clean(options['out'])} and an ensemble of {len(ensemble)} volumes"
        )
    place = where(options["client"], options["workers"], options["dry_run"])
    if options["dry_run"]:
        told = _one_by_one(command, ensemble.url, ensemble.members, options)
    else:
        with connect(place["client"], workers=place["workers"]) as pool:
            here = {**options, "client": pool, "workers": None}
            told = _one_by_one(command, ensemble.url, ensemble.members, here)
    if options["as_json"]:
        print_json(
            {
                "command": command.__name__,
                "ok": True,
                "ensemble": clean(ensemble.url),
                "members": told,
            }
        )


def _one_by_one(
    command: Callable[..., None], url: str, members: tuple[str, ...], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Call a command for each member, and return what it would have told programs."""
    with gather_json() as told:
        for name in members:
            if not options["as_json"]:
                print_lines([f"{name}:"])
            command(volume=f"{url}/{name}", **options)
    return told
