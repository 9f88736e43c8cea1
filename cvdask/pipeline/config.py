"""What does a config ask for, and can it be meant?

1. :func:`read_config` parses the file and finds the line of every key.
2. Every table and key is held against ``schema``: unknown ones are refused with the nearest known
   one, values of the wrong kind with what is expected. Paths are taken from the config's folder.
3. What tables say together is checked: samples that are named, networks that somebody makes.

All faults are told at once, each with its line, before any work.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvdask.pipeline.lines import Lines, find_lines
from cvdask.pipeline.schema import (
    NEEDED,
    RUN,
    SAMPLE,
    SEEDED,
    SOURCES,
    STAGES,
    TABLES,
    Keys,
    Kind,
)
from cvdask.volume.objects import is_remote, normalize_url, redact
from cvdask.volume.store import SEGMENT

SAMPLE_TABLE = "sample"
RUN_TABLE = "run"


@dataclass(frozen=True)
class Sample:
    """One volume of a run.

    Parameters
    ----------
    name : str
    group : str
        What it is compared as.
    kind : {"source", "volume", "phantom"}
    origin : str
        The microscope's files, a volume, or the kind of cell.
    url : str
        Where the volume lies, or will.
    options : mapping
        Keywords of ``ingest`` or ``phantom``.
    """

    name: str
    group: str
    kind: str
    origin: str
    url: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """A config without faults.

    Parameters
    ----------
    path : str
        The file.
    out : str
        Folder of what is written.
    store : str
        Folder or URL of the volumes that are written.
    client : str
        Where blocks run.
    workers : int or None
    samples : tuple of Sample
    stages : mapping of str to mapping
        Tables of the stages that are there, in the order in which they are taken; keywords of their
        functions.
    """

    path: str
    out: str
    store: str
    client: str
    workers: int | None
    samples: tuple[Sample, ...]
    stages: Mapping[str, Mapping[str, Any]]

    def chosen(self, stage: str) -> tuple[Sample, ...]:
        """Return the samples that a stage names; all where it names none."""
        named = self.stages[stage].get("samples")
        return tuple(s for s in self.samples if named is None or s.name in named)

    def options(self, stage: str, *without: str) -> dict[str, Any]:
        """Return the keywords of a stage, without those that only a config has."""
        left_out = {"samples", *without}
        return {name: v for name, v in self.stages[stage].items() if name not in left_out}


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a config and check all of it. Reads no other file.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is no TOML, or anything in it is unknown, of the wrong kind, or contradicts another.
        Each fault has its line.
    """
    if is_remote(os.fspath(path)):
        raise ValueError(
            f"a config is a file on this machine. Received: {redact(os.fspath(path))}. Copy it "
            f"here first"
        )
    file = Path(path)
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no config at {file}. Write one to begin with: cvdask init {file}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: a config is a text in UTF-8: {error}") from error
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not a TOML file: {error}") from error
    reading = _Reading(file, find_lines(text))
    config = reading.config(tables)
    if reading.faults:
        listed = "\n".join(f"  {fault}" for fault in reading.sorted_faults())
        raise ValueError(f"{file} cannot be run:\n{listed}")
    return config


class _Reading:
    """The faults that are found on the way, and the lines to tell them with."""

    def __init__(self, path: Path, lines: Lines) -> None:
        self.path = path
        self.folder = path.absolute().parent
        self.lines = lines
        self.faults: list[tuple[int, str]] = []

    def sorted_faults(self) -> list[str]:
        return [f"line {line}: {text}" if line else text for line, text in sorted(self.faults)]

    def fault(self, text: str, table: str, key: str | None = None, number: int = 0) -> None:
        line = self.lines.get((table, number), 0)
        if key is not None:
            line = self.lines.get((table, number, key), line)
        self.faults.append((line, text))

    # -----------------------------------------------------------------------------------------
    # Tables

    def config(self, tables: Mapping[str, Any]) -> Config:
        known = (RUN_TABLE, SAMPLE_TABLE, *TABLES)
        for name, value in tables.items():
            wanted = list if name == SAMPLE_TABLE else dict
            if name not in known:
                self.fault(f"unknown table [{name}]{_nearest(name, known)}", *self._at(name, value))
            elif not isinstance(value, wanted):
                shown = f"[[{name}]]" if wanted is list else f"[{name}]"
                self.fault(f"{name} is a table, {shown}", *self._at(name, value))
        run = self.keys(tables.get(RUN_TABLE, {}), RUN, RUN_TABLE)
        out = run.get("out", str(self.folder))
        if is_remote(out):
            self.fault(
                f"out is a folder on this machine, where networks and records lie; volumes may lie "
                f"elsewhere: store. Received: {redact(out)}",
                RUN_TABLE,
                "out",
            )
        store = run.get("store", out)
        seed = run.get("seed", 0)
        self._check_where(run)
        defaults = self.keys(tables.get("ingest", {}), TABLES["ingest"], "ingest")
        samples = self.samples(tables.get(SAMPLE_TABLE, []), defaults, store, seed)
        stages = {"ingest": defaults}
        for name in TABLES:
            if name == "ingest" or not isinstance(tables.get(name), dict):
                continue
            stage = self.keys(tables[name], TABLES[name], name)
            if name in SEEDED:
                stage.setdefault("seed", seed)
            stages[name] = stage
        config = Config(
            path=str(self.path),
            out=out,
            store=store,
            client=run.get("client", "threads"),
            workers=run.get("workers"),
            samples=tuple(samples),
            stages={name: stages[name] for name in STAGES if name in stages},
        )
        self.check_together(config)
        return config

    def _at(self, name: str, value: Any) -> tuple[str, str | None]:
        """Say where something stands that is no known table: it may be a key without one."""
        return (name, None) if isinstance(value, dict | list) else ("", name)

    def keys(
        self, table: Any, known: Keys, name: str, number: int = 0, title: str | None = None
    ) -> dict[str, Any]:
        """Return the values of a table's known keys, converted; note what is wrong."""
        title = title or f"[{name}]"
        found: dict[str, Any] = {}
        if not isinstance(table, dict):
            return found
        for key, value in table.items():
            kind = known.get(key)
            if kind is None:
                text = f"unknown key {key!r} in {title}{_nearest(key, known)}"
                self.fault(text, name, key, number)
            elif not kind.accepts(value):
                text = f"{key} is {kind.words}. Received: {_shown(value)}"
                self.fault(text, name, key, number)
            else:
                found[key] = self._converted(kind, value, name, key, number)
        for key in NEEDED.get(name, ()):
            if key not in table:
                self.fault(f"{title} needs {key}: {known[key].words}", name, None, number)
        return found

    def _converted(self, kind: Kind, value: Any, name: str, key: str, number: int) -> Any:
        if not kind.is_path:
            return kind.convert(value)
        try:
            if isinstance(value, list):
                return [self.place(one) for one in value]
            return self.place(value)
        except ValueError as error:
            self.fault(f"{key}: {error}", name, key, number)
            return str(self.folder)

    def place(self, text: str) -> str:
        """Take a relative path from the config's folder."""
        if is_remote(text):
            return normalize_url(text)
        return os.path.normpath(self.folder / Path(text.removeprefix("file://")).expanduser())

    def _check_where(self, run: Mapping[str, Any]) -> None:
        from cvdask.engine.cluster import check_client

        try:
            check_client(run.get("client"), run.get("workers"))
        except ValueError as error:
            self.fault(str(error), RUN_TABLE, "workers" if "worker" in str(error) else "client")

    # -----------------------------------------------------------------------------------------
    # Samples

    def samples(
        self, tables: Any, defaults: Mapping[str, Any], store: str, seed: int
    ) -> list[Sample]:
        if not isinstance(tables, list):
            return []
        if not tables:
            self.fault("at least one [[sample]] is needed", SAMPLE_TABLE)
        found: list[Sample] = []
        for number, table in enumerate(tables):
            sample = self._sample(table, number, defaults, store, seed)
            if sample is None:
                continue
            if sample.name in [other.name for other in found]:
                text = f"each sample has a name of its own. Received twice: {sample.name!r}"
                self.fault(text, SAMPLE_TABLE, "name", number)
            found.append(sample)
        return found

    def _sample(
        self, table: Any, number: int, defaults: Mapping[str, Any], store: str, seed: int
    ) -> Sample | None:
        kinds = [kind for kind in SOURCES if kind in table]
        if len(kinds) != 1:
            text = (
                f"a sample is one of source (the microscope's files), volume (an OME-Zarr that is "
                f"there) or phantom (healthy, diabetic). Received: {', '.join(kinds) or 'none'}"
            )
            self.fault(text, SAMPLE_TABLE, kinds[-1] if kinds else None, number)
            return None
        (kind,) = kinds
        origin, own = SOURCES[kind]
        known = {**SAMPLE, kind: origin, **own}
        values = self.keys(table, known, SAMPLE_TABLE, number, f"a [[sample]] with {kind}")
        name = values.pop("name", None)
        place = values.pop(kind, None)
        if name is None or not SEGMENT.match(name):
            if name is not None or "name" not in table:
                text = (
                    f"a sample needs a name, of letters, digits and _ - . +, which becomes a "
                    f"folder. Received: {name!r}"
                )
                self.fault(text, SAMPLE_TABLE, "name", number)
            return None
        if place is None:
            return None
        group = values.pop("group", name)
        if not SEGMENT.match(group):
            text = f"a group is of letters, digits and _ - . +. Received: {group!r}"
            self.fault(text, SAMPLE_TABLE, "group", number)
            return None
        if kind == "source":
            values = {**defaults, **values}
        elif kind == "phantom":
            values = {"seed": seed + number, **values}
        url = place if kind == "volume" else f"{store.rstrip('/')}/samples/{name}.zarr"
        return Sample(name, group, kind, place, url, values)

    # -----------------------------------------------------------------------------------------
    # What tables say together

    def check_together(self, config: Config) -> None:
        names = [sample.name for sample in config.samples]
        for stage, values in config.stages.items():
            for name in values.get("samples", ()):
                if name not in names:
                    text = f"no sample is called {name!r}{_nearest(name, names)}"
                    self.fault(text, stage, "samples")
        label = config.stages.get("label", {})
        if "name" in label and isinstance(label.get("class_"), list):
            text = "one label image has one name: leave name out, and each has that of its class"
            self.fault(text, "label", "name")
        self._needs(config, "segment", "train-unet", "model")
        self._needs(config, "generate", "train-gan", "model")
        for stage in ("order", "distance"):
            self._needs(config, stage, "generate")
        self._needs(config, "report", "compare")
        if "compare" in config.stages:
            self._check_compare(config)
        if "generate" in config.stages and "train-gan" not in config.stages and config.samples:
            groups = {sample.group for sample in config.samples}
            if len(groups) > 1:
                text = (
                    f"one model makes the volumes of one group, and there are {len(groups)}: "
                    f"{', '.join(sorted(groups))}. Add [train-gan], or a run for each group"
                )
                self.fault(text, "generate", "model")

    def _needs(self, config: Config, stage: str, other: str, key: str | None = None) -> None:
        """Note a stage that lacks another, and has no key that stands in for it."""
        if stage in config.stages and other not in config.stages:
            if key is not None and key in config.stages[stage]:
                return
            instead = f", or {key} in [{stage}]" if key else ""
            self.fault(f"[{stage}] needs a table [{other}]{instead}", stage)

    def _check_compare(self, config: Config) -> None:
        from_volumes = all(sample.kind == "volume" for sample in config.chosen("compare"))
        if "measure" not in config.stages and not from_volumes:
            self.fault("[compare] needs a table [measure]", "compare")
        if "generate" in config.stages and "measure" not in config.stages:
            self.fault("[compare] of generated volumes needs a table [measure]", "compare")
        if len(config.chosen("compare")) < 2 and "generate" not in config.stages:
            text = "[compare] needs two volumes: another [[sample]], or [generate]"
            self.fault(text, "compare")


def _nearest(name: str, known: Iterable[str]) -> str:
    """Suggest what was meant, or list what there is.

    >>> _nearest("kernl_um", ["kernel_um", "stride_um"])
    '; did you mean kernel_um?'
    """
    listed: Sequence[str] = list(known)
    close = difflib.get_close_matches(name, listed, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(listed)}"


def _shown(value: Any) -> str:
    """Write a value for a message, short and without what a URL must not tell."""
    text = redact(value) if isinstance(value, str) else value
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"
