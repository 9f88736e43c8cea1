"""The commands that go the whole way: one runs a config, one writes it.

Each turns its options into the keywords of the function of the same name, calls it, and tells what
came of it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cvdask
from cvdask.cli.framework import load_framework
from cvdask.cli.options import (
    COMMON,
    REQUIRED,
    WHERE,
    AsJson,
    DryRun,
    Overwrite,
    Verbose,
    Workers,
)
from cvdask.cli.printing import clean, print_json, print_lines, print_scores, tell_notes

if TYPE_CHECKING:
    from cvdask.pipeline.run import PlannedStep, Run

group = typer.Typer()

# Stages that load a network framework.
NETWORK_STAGES = {"train-unet", "segment", "train-gan", "generate"}


@group.command(epilog="Example: cvdask run cvdask.toml --dry-run")
def run(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG.toml", help="Written by cvdask init.", rich_help_panel=REQUIRED
        ),
    ],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="First stage to take; what earlier ones make must be there.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Last stage to take.", rich_help_panel=COMMON),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(
            "--client",
            "--cluster",
            metavar="WHERE",
            help="serial, threads, local (processes), cuda, slurm, pbs, lsf, kubernetes, or the "
            "address of a Dask scheduler; by default what the config says.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Go the whole way of a config: from microscope files to a report.

    Stage by stage, for all samples. What is complete is passed by; kill it at any
    time, the same command goes on. With --overwrite, what was made for other inputs
    or options is made anew.
    """

    def tell(text: str) -> None:
        print(clean(text), file=sys.stderr, flush=True)

    with tell_notes() as notes:
        _load_networks(config, verbose)
        done = cvdask.run(
            config,
            from_=from_,
            until=until,
            client=client,
            workers=workers,
            overwrite=overwrite,
            dry_run=dry_run,
            callback=tell,
        )
    if isinstance(done, list):
        _tell_plan(done, as_json, verbose)
        return
    if as_json:
        print_json(
            {
                "command": "run",
                "ok": True,
                "out": done.out,
                "steps": list(done.steps),
                "figures": done.figures,
                "report": done.report,
                "warnings": notes,
            }
        )
        return
    _tell_run(done)


@group.command(epilog="Example: cvdask init cvdask.toml")
def init(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG.toml", help="File to write.", rich_help_panel=COMMON),
    ] = "cvdask.toml",
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The experiment of the paper.", rich_help_panel=COMMON),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a config to begin with: every stage, with what can be said of it."""
    written = str(cvdask.init(config, paper=paper, overwrite=overwrite))
    if as_json:
        print_json({"command": "init", "ok": True, "config": written})
        return
    quoted = shlex.quote(written)
    print_lines([f"written: {written}", f"edit it, then look: cvdask run {quoted} --dry-run"])


def _load_networks(config: str, verbose: bool) -> None:
    """Load the network framework without its noise, where the config has a stage for it."""
    from cvdask.pipeline.config import read_config

    stages = set(read_config(config).stages)
    if NETWORK_STAGES & stages:
        load_framework(verbose, training=not stages & {"segment", "generate"})


def _tell_plan(planned: Sequence[PlannedStep], as_json: bool, verbose: bool) -> None:
    if as_json:
        described = [step.as_dict() for step in planned]
        print_json({"command": "run", "ok": True, "dry_run": True, "steps": described})
        return
    print_lines(clean(str(step)) for step in planned)
    if verbose:
        print_lines(plan for step in planned for plan in step.plans)
    print_lines([_total(planned), "dry run: nothing was written"])


def _total(planned: Sequence[PlannedStep]) -> str:
    """Add up what the steps will take, and say of how many that is known."""
    from cvdask.pipeline.estimate import duration_text

    left = [step for step in planned if step.state != "complete"]
    known = [step.seconds for step in left if step.seconds is not None]
    if not left:
        return f"all {len(planned)} steps are complete"
    if not known:
        return f"{len(left)} steps to do; how long they take is not known"
    without = len(left) - len(known)
    rest = f", and {without} more whose time is not known" if without else ""
    return f"{len(known)} steps of about {duration_text(sum(known))} together{rest}"


def _tell_run(done: Run) -> None:
    from cvdask.pipeline.outcome import figures_line

    print_scores(_rows(done.steps))
    print_lines([f"record: {done.out}/run.json, run.log"])
    print_lines([f"report: {clean(done.report)}"] if done.report else [])
    print_lines([f"main figures: {figures_line(done.figures)}"])


def _rows(steps: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Lay the steps out as rows of text.

    >>> step = {"stage": "label", "subject": "cell", "state": "done", "seconds": 1.25}
    >>> _rows([{**step, "peak_memory_bytes": 2_000_000}])
    [['step', '', 'seconds', 'memory'], ['label cell', 'done', '1.2', '2.0 MB']]
    """
    from cvdask.engine.plan import size_text

    rows = [["step", "", "seconds", "memory"]]
    for step in steps:
        name = f"{step['stage']} {step['subject']}".rstrip()
        memory = size_text(step["peak_memory_bytes"])
        rows.append([name, step["state"], f"{step['seconds']:.1f}", memory])
    return rows
