"""How do groups of volumes differ: the stage that reads, tests, draws and writes it all down.

1. Inputs become samples in groups: see ``comparison.samples``.
2. Every volume is summarised, on its own: see ``comparison.summaries``.
3. Every measure of every class is tested between each two groups, between all, and within each:
   see ``comparison.statistics``.
4. The figures are drawn: see ``comparison.figures``.
5. All lies in one folder, its summary last, so that a folder with a summary is complete::

       OUT/statistics.parquet, .csv     every test, a row each
           volumes.parquet, .csv        every measure of every volume
           figures/NAME.png, .svg, .csv and figures/index.json
           summary.json                 groups, notices, main tests, provenance

The same inputs and options give the same bytes, wherever it runs.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cvdask import __version__
from cvdask.comparison.samples import (
    DENSITY,
    DESCRIPTORS,
    OBJECTS,
    Sample,
    open_groups,
    open_table,
)
from cvdask.comparison.statistics import (
    ALPHA,
    FEWEST_OBJECTS,
    Group,
    Measured,
    Row,
    adjust,
    compare_all,
    compare_pair,
    compare_within,
)
from cvdask.comparison.summaries import (
    BORDER_SHARE,
    KEPT_VALUES,
    MEASURES,
    Key,
    Reading,
    merge_summaries,
    summarise_block,
    unit_of,
)
from cvdask.engine.blockwise import reduce
from cvdask.engine.ledger import standing
from cvdask.engine.plan import Plan, Summary
from cvdask.volume.boxes import Grid
from cvdask.volume.objects import (
    delete_object,
    delete_tree,
    list_objects,
    normalize_url,
    object_exists,
    read_json,
    read_object,
    redact,
    write_json,
    write_object,
)
from cvdask.volume.parquet import read_table, write_table
from cvdask.volume.store import open_volume, read_attributes, volume_digest

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray

SUMMARY = "summary.json"
# A larger share of objects at the border is worth a word.
MANY_CUT = 0.2
WRITTEN = ("statistics.parquet", "statistics.csv", "volumes.parquet", "volumes.csv", "report.html")


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found, and where it lies.

    Parameters
    ----------
    url : str
        The folder.
    summary : mapping
        Groups, notices, main tests and provenance, as in ``summary.json``.
    """

    url: str
    summary: Mapping[str, Any]

    def statistics(self) -> pa.Table:
        """Read the table of all tests."""
        return read_table(self.url, "statistics.parquet")

    def volumes(self) -> pa.Table:
        """Read the table of all volumes: a row for each measure of each class."""
        return read_table(self.url, "volumes.parquet")

    def to_xarray(self) -> xarray.Dataset:
        """Return ``mean``, ``sd`` and ``n`` with the dimensions volume, class and measure.

        NaN, or 0 for ``n``, where a volume has no such class or measure.
        """
        import numpy as np
        import xarray

        rows = self.volumes().to_pylist()
        axes = {
            name: list(dict.fromkeys(row[name] for row in rows))
            for name in ("volume", "class", "measure")
        }
        shape = tuple(map(len, axes.values()))
        arrays = {name: np.full(shape, np.nan) for name in ("mean", "sd")}
        arrays["n"] = np.zeros(shape, np.int64)
        for row in rows:
            place = tuple(names.index(row[axis]) for axis, names in axes.items())
            for name, array in arrays.items():
                if row[name] is not None:
                    array[place] = row[name]
        groups = {row["volume"]: row["group"] for row in rows}
        coordinates = {**axes, "group": ("volume", [groups[v] for v in axes["volume"]])}
        data = {name: (tuple(axes), array) for name, array in arrays.items()}
        return xarray.Dataset(data, coordinates)


def compare(
    *inputs: str,
    out: str,
    groups: Mapping[str, Sequence[str]] | None = None,
    labels: str | Mapping[str, str] = "classes",
    classes: str | Sequence[str] | None = None,
    measures: str | Sequence[str] | None = None,
    margin: float = 0.1,
    margins: Mapping[str, float] | None = None,
    z_blocks: int = 10,
    whole_objects: bool = False,
    scores: Sequence[str] = (),
    figures: bool = True,
    seed: int = 0,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Comparison | list[Plan]:
    """Compare the objects, densities and descriptors of groups of volumes.

    Parameters
    ----------
    *inputs : str
        Samples and ensembles. An ensemble counts as a group of its members.
    out : str
        Folder to write.
    groups : mapping of str to sequence of str, optional
        ``{"control": ["a.zarr", "b.zarr"], …}``; other inputs are groups of their own. What the
        others are held against comes first.
    labels : str, or mapping of str to str
        Label image of classes; by group where they differ, ``classes`` for groups without.
    classes : str or sequence of str, optional
        Names of the classes to compare; by default all.
    measures : str or sequence of str, optional
        Columns of the tables of objects; by default the eight of the paper.
    margin : float
        Means count as the same when they differ by less than this share of the first group's.
    margins : mapping of str to float, optional
        The same for single measures, in their own unit.
    z_blocks : int
        Ranges of slices that stand for volumes where a group has one only. They should be deeper
        than objects are long.
    whole_objects : bool
        Leave out objects that touch the border of their volume, whose shape is cut off.
    scores : sequence of str
        Files that ``cvdask evaluate --json`` has printed, for the figure of scores.
    figures : bool
        Draw the figures too.
    seed : int
        Of permutations and bootstrap.
    client, workers
        Where the tables are read: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`.
    dry_run : bool
        Return the plan and write nothing.

    Returns
    -------
    Comparison
        With ``dry_run`` the plan.

    Raises
    ------
    ValueError
        When there are fewer than two volumes, they share no class or state no voxel size, a table
        is absent or lacks a column, or an option breaks its rule.
    FileExistsError
        When something else lies at the destination.
    BlocksFailed
        When tables could not be read.

    Warns
    -----
    UserWarning
        What a reader should know before the numbers: single volumes, few objects, values left out,
        voxels of different size, objects cut off by the border. Recorded in the summary.
    """
    samples, notices = open_groups(inputs, groups, labels)
    reading = _describe_reading(samples, measures, classes, z_blocks, whole_objects)
    _check_margins(margin, margins or {}, reading)
    plan = plan_compare(reading, normalize_url(out))
    provenance = {
        "stage": "compare",
        "version": __version__,
        "options": {
            "groups": _members(samples),
            "labels": labels if isinstance(labels, str) else dict(labels),
            "classes": list(reading.classes) if reading.classes is not None else None,
            "measures": list(reading.measures),
            "margin": margin,
            "margins": dict(margins or {}),
            "z_blocks": z_blocks,
            "whole_objects": whole_objects,
            "figures": figures,
            "seed": seed,
        },
        "inputs": [_describe_input(sample) for sample in samples] + list(map(_score_file, scores)),
    }
    url = plan.output
    state = standing(url, _existing(url), provenance, resume=resume, overwrite=overwrite)
    if dry_run:
        return [plan]
    if state == "complete":
        return open_comparison(url)
    # First: a kill from here on leaves a folder that is known to be ours.
    write_json(url, SUMMARY, {"state": "begun", "provenance": provenance})
    _clear(url)
    outcome: tuple[Any, Summary] = reduce(
        partial(summarise_block, reading),
        merge_summaries,
        plan,
        client=client,
        workers=workers,
        batch=1,
    )
    found = outcome[0]
    notices += _reading_notices(reading, found)
    rows = adjust(_test_all(reading, found, margin, margins or {}, seed))
    notices += _test_notices(rows)
    _write_table(url, "statistics", _as_table([_row_fields(row) for row in rows]))
    _write_table(url, "volumes", _as_table(list(_volume_rows(reading, found))))
    drawn: list[dict[str, Any]] = []
    if figures:
        # Late: matplotlib takes a second to load, and a plan needs none of it.
        from cvdask.comparison.figures import draw_all

        drawn, undrawn = draw_all(url, reading, found, rows, scores, client=client, workers=workers)
        notices += undrawn
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    summary = {
        "state": "complete",
        "provenance": provenance,
        "groups": _members(samples),
        "notices": notices,
        "main": [_without_nan(_row_fields(row)) for row in rows if row.main],
        "figures": [one["name"] for one in drawn],
    }
    write_json(url, SUMMARY, json.loads(json.dumps(summary)))
    return Comparison(url, summary)


def open_comparison(url: str) -> Comparison:
    """Open the folder that :func:`compare` wrote.

    Raises
    ------
    ValueError
        When it holds no comparison, or one that is not complete.
    """
    url = normalize_url(url)
    summary = read_json(url, SUMMARY)
    if summary is None or summary.get("provenance", {}).get("stage") != "compare":
        raise ValueError(
            f"{redact(url)} is no comparison. One is made by: cvdask compare A B --out DIR"
        )
    if summary.get("state") != "complete":
        raise ValueError(
            f"{redact(url)} is not complete: compare has begun and not ended. Run the same command "
            f"again"
        )
    return Comparison(url, summary)


# ---------------------------------------------------------------------------------------------
# Before work


def plan_compare(reading: Reading, output: str) -> Plan:
    """Plan the reading of tables: a block is a volume."""
    n = len(reading.samples)
    value_bytes = 16 * reading.kept * len(reading.measures)
    return Plan(
        stage="compare",
        grid=Grid((n, 1, 1), (1, 1, 1)),
        output=output,
        # Batches of rows, and what is kept of them at most.
        task_bytes=2**27 + min(value_bytes, 2**30),
        stored_bytes=2**24,
        notes={
            "groups": {name: len(members) for name, members in _members(reading.samples).items()},
            "measures": ", ".join(reading.measures),
        },
    )


def _describe_reading(
    samples: Sequence[Sample],
    measures: str | Sequence[str] | None,
    classes: str | Sequence[str] | None,
    z_blocks: int,
    whole_objects: bool,
) -> Reading:
    if z_blocks < 2:
        raise ValueError(f"there are at least two z-blocks. Received: {z_blocks}")
    shared = _shared_classes(samples)
    wanted = _names(classes)
    if wanted is not None and shared is not None and not set(wanted) <= set(shared):
        raise ValueError(
            f"classes that all volumes have are {', '.join(shared)}. Received: {', '.join(wanted)}"
        )
    columns = _names(measures) or _default_measures(samples)
    _check_columns(samples, columns)
    return Reading(
        tuple(samples),
        columns,
        wanted if wanted is not None else shared,
        z_blocks,
        whole_objects,
        max(1000, KEPT_VALUES // len(samples)),
    )


def _names(text: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    parts = text.split(",") if isinstance(text, str) else list(text)
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not names:
        raise ValueError(f"at least one name is needed. Received: {text!r}")
    return names


def _shared_classes(samples: Sequence[Sample]) -> tuple[str, ...] | None:
    """Return the names that all have, in the order of the first; None where none has names."""
    named = [
        [name for value, name in sorted(sample.labels.classes.items()) if value]
        for sample in samples
        if sample.labels.classes
    ]
    if not named:
        return None
    return tuple(name for name in named[0] if all(name in others for others in named))


def _default_measures(samples: Sequence[Sample]) -> tuple[str, ...]:
    schemas = [set(_objects(sample).schema().names) for sample in samples]
    return tuple(m for m in MEASURES if all(m in names for names in schemas)) or MEASURES


def _check_columns(samples: Sequence[Sample], measures: Sequence[str]) -> None:
    import pyarrow

    for sample in samples:
        schema = _objects(sample).schema()
        for measure in measures:
            kind = schema.field(measure).type if measure in schema.names else None
            if kind is None or not (
                pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
            ):
                what = "is no column" if kind is None else f"holds {kind}"
                raise ValueError(
                    f"measures are numbers in the table of objects. {measure!r} {what} of "
                    f"{redact(sample.url)}/{OBJECTS}, which has {', '.join(schema.names)}"
                )


def _objects(sample: Sample) -> Any:
    table = open_table(sample.url, OBJECTS)
    assert table is not None  # open_groups has looked
    return table


def _check_margins(margin: float, margins: Mapping[str, float], reading: Reading) -> None:
    for name, value in {"": margin, **margins}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"a margin is a positive number. Received: {name} {value}".strip())
    known = {*reading.measures, "objects_per_um3", "volume_fraction", "weighted_volume_um3"}
    unknown = sorted(set(margins) - known - {"density"})
    if unknown:
        raise ValueError(
            f"margins are of measures that are compared: {', '.join(sorted(known))}, density. "
            f"Received: {', '.join(unknown)}"
        )


def _members(samples: Sequence[Sample]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for sample in samples:
        members.setdefault(sample.group, []).append(sample.name)
    return members


def _describe_input(sample: Sample) -> dict[str, Any]:
    """Say what was read of a sample, so that another run can tell whether it is the same."""
    found: dict[str, Any] = {"volume": sample.name, "group": sample.group}
    for name, path in (("objects", OBJECTS), ("descriptors", DESCRIPTORS)):
        table = open_table(sample.url, path)
        if table is not None:
            found[name] = table.digest()
    if read_attributes(f"{sample.url}/{DENSITY}"):
        found["density"] = volume_digest(open_volume(f"{sample.url}/{DENSITY}"))
    found["digest"] = volume_digest(sample.labels)
    return found


def _score_file(path: str) -> dict[str, Any]:
    parent, _, name = normalize_url(path).rpartition("/")
    data = read_object(parent, name)
    if data is None:
        raise FileNotFoundError(f"there is no file of scores at {redact(path)}")
    return {"scores": name, "digest": f"crc32:{zlib.crc32(data):08x}"}


# ---------------------------------------------------------------------------------------------
# Tests


def _groups(
    reading: Reading, found: Mapping[int, Mapping[Key, Measured]], key: Key
) -> list[Group] | None:
    """Return one measure of one class by groups; None where some volumes lack it altogether."""
    groups: dict[str, list[Measured]] = {}
    for number, sample in enumerate(reading.samples):
        one = found[number].get(key)
        if one is None:
            if key[1] not in reading.measures:
                return None
            one = Measured(sample.name, math.nan)
        groups.setdefault(sample.group, []).append(one)
    return [Group(name, tuple(members)) for name, members in groups.items()]


def measured_keys(found: Mapping[int, Mapping[Key, Measured]]) -> list[Key]:
    """Return every class and measure that any volume has, classes one after the other."""
    keys = list(dict.fromkeys(key for number in sorted(found) for key in found[number]))
    classes = list(dict.fromkeys(name for name, _ in keys))
    return sorted(keys, key=lambda key: classes.index(key[0]))


def _test_all(
    reading: Reading,
    found: Mapping[int, Mapping[Key, Measured]],
    margin: float,
    margins: Mapping[str, float],
    seed: int,
) -> list[Row]:
    rows = []
    for key in measured_keys(found):
        name, measure = key
        groups = _groups(reading, found, key) if measure != BORDER_SHARE else None
        if groups is None:
            continue
        # Its own seed for each measure, so that leaving one out does not change another.
        own_seed = zlib.crc32(f"{seed} {name} {measure}".encode())
        tested = compare_all(groups)
        for i, a in enumerate(groups):
            for b in groups[i + 1 :]:
                if measure in margins:
                    tested += compare_pair(
                        a, b, margin=margins[measure], relative=False, seed=own_seed
                    )
                else:
                    tested += compare_pair(a, b, margin=margin, seed=own_seed)
        for group in groups:
            tested += compare_within(group)
        unit = unit_of(measure)
        rows += [replace(row, class_=name, measure=measure, unit=unit) for row in tested]
    return rows


def _reading_notices(reading: Reading, found: Mapping[int, Mapping[Key, Measured]]) -> list[str]:
    """Say what of the tables a reader should know before the numbers."""
    notices = []
    for group, members in _members(reading.samples).items():
        if len(members) == 1:
            notices.append(
                f"{group} is a single volume: what is said of it holds for this volume, and not "
                f"for its kind"
            )
    few, infinite, missing, thinned = set(), set(), set(), set()
    for number, sample in enumerate(reading.samples):
        for (name, measure), one in found[number].items():
            if measure not in reading.measures:
                continue
            if one.n < FEWEST_OBJECTS:
                few.add((name, sample.name))
            if one.n_infinite:
                infinite.add(measure)
            if one.n_missing:
                missing.add(measure)
            if len(one.values) < one.n:
                thinned.add(name)
        for name in reading.classes or ():
            if (name, reading.measures[0]) not in found[number]:
                few.add((name, sample.name))
    for name in sorted({name for name, _ in few}):
        where = sorted(volume for other, volume in few if other == name)
        shown = ", ".join(where[:5]) + (f" and {len(where) - 5} more" if len(where) > 5 else "")
        notices.append(
            f"{name} has fewer than {FEWEST_OBJECTS} objects with a value in {shown}: left out of "
            f"the tests of its objects"
        )
    if infinite:
        notices.append(
            f"infinite values are left out: {', '.join(sorted(infinite))} (objects one voxel thick)"
        )
    if missing:
        notices.append(f"values that are no number are left out: {', '.join(sorted(missing))}")
    if thinned:
        notices.append(
            f"distributions of {', '.join(sorted(thinned))} rest on every second, fourth … object; "
            f"means rest on all"
        )
    return notices + _border_notices(reading, found)


def _border_notices(reading: Reading, found: Mapping[int, Mapping[Key, Measured]]) -> list[str]:
    if reading.whole_objects:
        return []
    shares: dict[str, list[float]] = {}
    for number in found:
        for (name, measure), one in found[number].items():
            if measure == BORDER_SHARE:
                shares.setdefault(name, []).append(one.mean)
    cut = {name: max(values) for name, values in shares.items() if max(values) > MANY_CUT}
    if not cut:
        return []
    listed = ", ".join(f"{share:.0%} of {name}" for name, share in cut.items())
    return [
        f"objects touch the border of their volume, and their shape is cut off there: up to "
        f"{listed}. --whole-objects leaves them out"
    ]


def _test_notices(rows: Sequence[Row]) -> list[str]:
    constant = sorted({f"{r.measure} of {r.class_}" for r in rows if "the same" in r.note})
    return [f"nothing to test, all values are the same: {', '.join(constant)}"] if constant else []


# ---------------------------------------------------------------------------------------------
# Tables


def _row_fields(row: Row) -> dict[str, Any]:
    fields = dataclasses.asdict(row)
    fields["class"] = fields.pop("class_")
    order = ("comparison", "class", "measure", "unit", "test", "level", "naive", "main")
    return {name: fields[name] for name in (*order, *(k for k in fields if k not in order))}


def _volume_rows(
    reading: Reading, found: Mapping[int, Mapping[Key, Measured]]
) -> Iterator[dict[str, Any]]:
    import numpy as np

    for key in measured_keys(found):
        for number, sample in enumerate(reading.samples):
            one = found[number].get(key)
            if one is not None:
                median = float(np.median(one.values)) if len(one.values) else math.nan
                yield {
                    "volume": sample.name,
                    "group": sample.group,
                    "class": key[0],
                    "measure": key[1],
                    "unit": unit_of(key[1]),
                    "n": one.n,
                    "n_missing": one.n_missing,
                    "n_infinite": one.n_infinite,
                    "mean": one.mean,
                    "sd": one.sd,
                    "median": median,
                }


def _without_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _as_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow

    return pyarrow.Table.from_pylist([_without_nan(row) for row in rows])


def _write_table(url: str, name: str, table: pa.Table) -> None:
    import pyarrow.csv

    write_table(url, f"{name}.parquet", table)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    write_object(url, f"{name}.csv", buffer.getvalue())


# ---------------------------------------------------------------------------------------------
# The folder


def _existing(url: str) -> Mapping[str, Any] | None:
    """Return what is known of a folder: see ``ledger.standing``."""
    summary = read_json(url, SUMMARY) if object_exists(url, SUMMARY) else None
    if summary is not None:
        return summary if summary.get("provenance", {}).get("stage") == "compare" else {}
    return {} if next(list_objects(url, ""), None) is not None else None


def _clear(url: str) -> None:
    """Remove what an earlier comparison has written beside its summary, and nothing else."""
    for name in WRITTEN:
        delete_object(url, name)
    delete_tree(url, "figures")


def main_findings(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the main tests that are below 5 % after Holm's correction, smallest p first."""
    found = [row for row in summary["main"] if row["p_holm"] is not None and row["p_holm"] < ALPHA]
    return sorted(found, key=lambda row: row["p_holm"])
