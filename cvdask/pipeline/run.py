"""How is the whole way gone, again and again, without doing anything twice?

1. The config is read and checked (``config``) and laid out as steps (``steps``).
2. Every step is planned: what is complete for the same inputs and options is passed by, what can be
   planned now is, what waits for an earlier step is named. Whatever cannot work is refused here,
   all of it at once, before any work.
3. The steps are taken in order. Each decides by itself what of it is left to do, so that a run that
   was killed goes on where it was, and ends with the same bytes.
4. ``run.json`` and ``run.log`` tell what happened. One run writes to a folder at a time.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from cvdask.engine.blockwise import peak_memory_bytes
from cvdask.engine.cluster import check_client, connect, machine_limits
from cvdask.engine.cluster_options import STARTED
from cvdask.engine.plan import Plan, Summary, size_text, watch_summaries
from cvdask.errors import BlocksFailed
from cvdask.pipeline.config import Config, read_config
from cvdask.pipeline.estimate import Estimates, duration_text
from cvdask.pipeline.outcome import main_figures
from cvdask.pipeline.record import LOG, Log, Record, locked, remove_leftovers
from cvdask.pipeline.schema import STAGES
from cvdask.pipeline.steps import Step, Way, comparison_of, generated_groups, lay_out, members_of
from cvdask.pipeline.things import Thing
from cvdask.volume.objects import redact
from cvdask.volume.store import open_volume, volume_digest

# What a stage raises where its input cannot work; anything else is a fault of ours.
REFUSALS = (ValueError, OSError, MemoryError)
# Steps that the plan of another names which waits for them.
MOST_NAMED = 4


@dataclass(frozen=True)
class PlannedStep:
    """What a run would do about one step.

    Parameters
    ----------
    stage, subject : str
        The stage, and the sample or the group.
    state : {"complete", "to do", "to do anew", "waits"}
        ``waits``: its inputs are not there yet, so that it cannot be planned.
    plans : tuple
        Of the stage: a :class:`Plan` for each pass over blocks, or what a training has chosen.
    waits_for : tuple of str
        Earlier steps that make its inputs, or make them anew.
    missing : tuple of str
        Inputs that are not there and that no step makes.
    seconds : float, optional
        How long it will take, about; ``None`` where nothing is left to do, or nothing is known.
    """

    stage: str
    subject: str
    state: str
    plans: tuple[Any, ...] = ()
    waits_for: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return {
            "stage": self.stage,
            "subject": self.subject,
            "state": self.state,
            "plans": [plan.as_dict() for plan in self.plans],
            "waits_for": list(self.waits_for),
            "missing": list(self.missing),
            "seconds_estimate": self.seconds,
        }

    def __str__(self) -> str:
        head = f"{self.stage} {self.subject}".rstrip() + f": {self.state}"
        if self.seconds is not None:
            head += f", about {duration_text(self.seconds)}"
        lines = [head]
        if self.missing:
            lines.append(f"  not there, and made by no stage: {', '.join(self.missing)}")
        if self.waits_for:
            shown = self.waits_for[:MOST_NAMED]
            more = len(self.waits_for) - len(shown)
            rest = f" and {more} more" if more else ""
            lines.append(f"  waits for {', '.join(shown)}{rest}")
        for plan in self.plans:
            if isinstance(plan, Plan) and plan.stage.startswith("pyramid "):
                continue  # as the finest level is, and a quarter of it together
            text = _plan_line(plan) if isinstance(plan, Plan) else str(plan)
            lines += [f"  {line}" for line in text.splitlines()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Run:
    """What a run did.

    Parameters
    ----------
    out : str
        Its folder.
    steps : tuple of dict
        As in ``run.json``: stage, subject, state, seconds, memory, summaries, warnings.
    figures : dict
        See :func:`cvdask.pipeline.outcome.main_figures`.
    report : str or None
        The page, where there is one.
    """

    out: str
    steps: tuple[dict[str, Any], ...]
    figures: dict[str, Any] = field(default_factory=dict)
    report: str | None = None


def run(
    config: str | os.PathLike[str],
    *,
    from_: str | None = None,
    until: str | None = None,
    client: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    callback: Callable[[str], None] | None = None,
) -> Run | list[PlannedStep]:
    """Go the whole way of a config: from microscope files to a report.

    Parameters
    ----------
    config : str or path
        TOML file; see :func:`cvdask.pipeline.init.init`.
    from_, until : str, optional
        First and last stage to take; by default all that the config has. What earlier stages make
        must be there.
    client, workers
        Where blocks run, as :func:`cvdask.engine.cluster.connect` takes it; by default what the
        config says. What is started, is started once for all stages.
    overwrite : bool
        Make anew what was made for other inputs or options; what is complete for the same is kept
        even so.
    dry_run : bool
        Return the plan of every step and write nothing.
    callback : callable, optional
        Takes a line about what happens, as it happens.

    Returns
    -------
    Run
        With ``dry_run`` the list of planned steps.

    Raises
    ------
    ValueError
        When the config has faults, inputs are missing, or a stage cannot work with its own; all of
        it before any work.
    FileExistsError
        When another run writes to the same folder, or a stage finds what was made for other inputs
        or options.
    BlocksFailed
        When blocks of a stage failed; those that are done stay done.
    """
    read = read_config(config)
    where = client or read.client
    count = workers if workers is not None else read.workers
    check_client(where, count)
    steps = _select(lay_out(read), read, from_, until)
    tell = callback or (lambda text: None)
    if dry_run:
        n_slots = 1 if where == "serial" else count or machine_limits().cores
        return _estimated(_plan(steps, overwrite), Estimates(read, n_slots))
    out = Path(read.out)
    with locked(out):
        remove_leftovers(out, _own_volumes(read))
        _refuse(read, _plan(steps, overwrite))
        options = {"from": from_, "until": until, "client": redact(where), "workers": count}
        about = {"config": read.path, "options": {**options, "overwrite": overwrite}}
        record, log = Record(out, about), Log(out / LOG)
        log.write(f"run of {read.path}: {len(steps)} steps")

        def say(text: str) -> None:
            log.write(text)
            tell(text)

        with _ending(record, log, read), _opened(where, count, say) as ways:
            for number, step in enumerate(steps, 1):
                _take(step, f"[{number}/{len(steps)}] {step}", ways, overwrite, record, log, tell)
    report = Thing("file", f"{comparison_of(read)}/report.html")
    return Run(
        read.out,
        tuple(record.value["steps"]),
        record.value["figures"],
        report.url if "report" in read.stages and report.exists() else None,
    )


def _select(
    steps: Sequence[Step], config: Config, from_: str | None, until: str | None
) -> list[Step]:
    """Return the steps between two stages, both included."""
    there = [stage for stage in STAGES if any(step.stage == stage for step in steps)]
    for stage in (from_, until):
        if stage is not None and stage not in there:
            raise ValueError(f"stages of {config.path} are {', '.join(there)}. Received: {stage}")
    first = STAGES.index(from_) if from_ else 0
    last = STAGES.index(until) if until else len(STAGES) - 1
    if first > last:
        raise ValueError(f"{from_} comes after {until}: nothing lies between them")
    return [step for step in steps if first <= STAGES.index(step.stage) <= last]


def _own_volumes(config: Config) -> list[str]:
    """Return the volumes that no one else writes to."""
    samples = [sample.url for sample in config.samples if sample.kind != "volume"]
    generated = [url for group in generated_groups(config) for url in members_of(config, group)]
    return [*samples, *generated]


# ---------------------------------------------------------------------------------------------
# Before work


def _plan(steps: Sequence[Step], overwrite: bool) -> list[PlannedStep]:
    """Plan every step that can be planned.

    Raises
    ------
    ValueError, FileExistsError
        When stages refuse what they are asked for: all of them at once.
    """
    planned: list[PlannedStep] = []
    refusals: list[tuple[Step, BaseException]] = []
    pending: dict[Thing, Step] = {}
    for step in steps:
        waits = dict.fromkeys(str(pending[thing]) for thing in step.needs if thing in pending)
        missing = [str(t) for t in step.needs if t not in pending and not t.exists()]
        makes = dict.fromkeys(step.makes, step)
        if waits or missing:
            shown = tuple(waits), tuple(missing)
            planned.append(PlannedStep(step.stage, step.subject, "waits", (), *shown))
            pending |= makes
            continue
        way = Way("serial", None, overwrite, True, lambda text: None)
        try:
            with warnings.catch_warnings():
                # Told when the step is taken.
                warnings.simplefilter("ignore", UserWarning)
                plans = _as_plans(step.act(way))
        except REFUSALS as error:
            refusals.append((step, error))
            pending |= makes
            continue
        state = "to do anew" if way.redone else "to do"
        if step.is_complete() and not way.redone:
            state, plans = "complete", ()
        else:
            pending |= makes
        planned.append(PlannedStep(step.stage, step.subject, state, plans))
    if refusals:
        raise _joined(refusals)
    return planned


def _estimated(planned: Sequence[PlannedStep], estimates: Estimates) -> list[PlannedStep]:
    """Say how long each step will take that is left to do."""
    return [
        replace(step, seconds=estimates.seconds(step.stage, step.subject, step.plans))
        if step.state != "complete"
        else step
        for step in planned
    ]


def _as_plans(found: Any) -> tuple[Any, ...]:
    """Return what a stage plans; nothing for what it has returned because it is complete."""
    listed = found if isinstance(found, list) else [found]
    return tuple(plan for plan in listed if hasattr(plan, "as_dict"))


def _joined(refusals: Sequence[tuple[Step, BaseException]]) -> Exception:
    """Make one error of those of all steps."""
    if len(refusals) == 1:
        step, error = refusals[0]
        text = f"{step}: {error}"
    else:
        listed = "\n".join(f"  {step}: {error}" for step, error in refusals)
        text = f"{len(refusals)} steps cannot be taken:\n{listed}"
    if all(isinstance(error, FileExistsError) for _, error in refusals):
        return FileExistsError(
            f"{text}\nWith --overwrite the run makes anew what is for other inputs or options, and "
            f"keeps what is complete for the same"
        )
    return ValueError(text)


def _refuse(config: Config, planned: Sequence[PlannedStep]) -> None:
    """Refuse to begin where inputs are missing that no step makes."""
    missing = list(dict.fromkeys(text for step in planned for text in step.missing))
    if missing:
        listed = "\n".join(f"  {text}" for text in missing)
        raise FileNotFoundError(
            f"{config.path} needs what is not there, and no stage of this run makes it:\n{listed}"
        )


def _plan_line(plan: Plan) -> str:
    """Say a plan in one line.

    The full plan of a stage is what its own command prints with ``--dry-run``.
    """
    return (
        f"{plan.stage}: {len(plan.grid)} blocks of {' × '.join(map(str, plan.grid.block_shape))}, "
        f"read {size_text(plan.read_bytes)}, write {size_text(plan.write_bytes)}, "
        f"{size_text(plan.task_bytes)} of memory a block → {redact(plan.output)}"
    )


# ---------------------------------------------------------------------------------------------
# At work


@contextlib.contextmanager
def _opened(
    client: str, workers: int | None, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Open the place where blocks run, where that takes time; the same for all stages."""
    if client in STARTED:
        say(f"waiting for workers: {client}")
        with connect(client, workers=workers) as pool:
            say(f"workers came; {pool.slots} calls at a time are counted on")
            yield {"client": pool, "workers": None}
    else:
        yield {"client": client, "workers": workers if client == "threads" else None}


@contextlib.contextmanager
def _ending(record: Record, log: Log, config: Config) -> Iterator[None]:
    """Write down how a run ended, however that was."""
    record.write()
    state = "failed"
    try:
        yield
        state = "complete"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        inputs = {sample.name: _digest(sample.url) for sample in config.samples}
        figures = main_figures(config) if state == "complete" else {}
        record.end(state, inputs=inputs, figures=figures)
        log.write(state)


def _digest(url: str) -> str | None:
    if not Thing("volume", url).exists():
        return None
    return volume_digest(open_volume(url))


def _take(
    step: Step,
    title: str,
    ways: dict[str, Any],
    overwrite: bool,
    record: Record,
    log: Log,
    tell: Callable[[str], None],
) -> None:
    """Take a step, and write down how it went."""

    def say(text: str) -> None:
        log.write(f"{step}: {text}")
        tell(f"  {text}")

    was_complete = step.is_complete()
    way = Way(ways["client"], ways["workers"], overwrite, False, say)
    log.write(title)
    tell(title)
    notes: list[str] = []
    began = time.perf_counter()
    about: dict[str, Any] = {"stage": step.stage, "subject": step.subject}
    with watch_summaries() as summaries:
        try:
            with _noting(notes, log):
                step.act(way)
        except (Exception, KeyboardInterrupt) as error:
            text = str(error) or type(error).__name__
            log.write(f"{step}: {text}")
            about |= {"state": "failed", "error": text}
            if isinstance(error, REFUSALS) and not isinstance(error, BlocksFailed):
                _name_step(error, step)
            raise
        else:
            nothing = was_complete and not way.redone and not any(s.n_done for s in summaries)
            about["state"] = "complete before" if nothing else "done"
        finally:
            seconds = time.perf_counter() - began
            record.add({**about, **_measured(seconds, summaries), "warnings": notes})
    say(f"{about['state']}, {seconds:.1f} s")


def _name_step(error: BaseException, step: Step) -> None:
    """Say in an error of a stage which step it belongs to."""
    if error.args and isinstance(error.args[0], str) and len(error.args) == 1:
        error.args = (f"{step}: {error.args[0]}",)


def _measured(seconds: float, summaries: Sequence[Summary]) -> dict[str, Any]:
    workers = [summary.peak_worker_bytes for summary in summaries]
    return {
        "seconds": seconds,
        "peak_memory_bytes": max([peak_memory_bytes(), *workers]),
        "summaries": [summary.as_dict() for summary in summaries],
    }


@contextlib.contextmanager
def _noting(notes: list[str], log: Log) -> Iterator[None]:
    """Gather and log what stages warn of; it is shown as ever."""
    show = warnings.showwarning

    def note(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, UserWarning) and str(message) not in notes:
            notes.append(str(message))
            log.write(f"note: {message}")
        show(message, category, filename, lineno, file, line)

    warnings.showwarning = note
    try:
        yield
    finally:
        warnings.showwarning = show
