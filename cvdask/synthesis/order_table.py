"""What is told of ordered volumes, and where does it lie?

1. :func:`write_tables` gathers what every volume records of its order, says what is odd, and writes
   a table and a JSON file below the ensemble or the sample::

       tables/order.parquet    volume, position, slice, step
       tables/order.json       for every volume length, bound, gap, worst step, J(k)

2. Where both lie there and rest on the same, they are read instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cvdask.volume.objects import object_exists, read_json, write_json
from cvdask.volume.parquet import read_table, write_table
from cvdask.volume.store import Volume, read_attributes

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("volume", "position", "slice", "step")


def write_tables(
    url: str,
    stem: str,
    outputs: Mapping[str, Volume],
    rests_on: Mapping[str, Any],
    real: Callable[[], list[float]] | None,
) -> pa.Table:
    """Write what was found of all volumes, or read it where it lies there.

    Parameters
    ----------
    url : str
        The ensemble, or the sample.
    stem : str
        Name of both files, without their endings.
    outputs : mapping of str to Volume
        Ordered label image of each volume, by the volume's name.
    rests_on : mapping
        Provenance; where it has changed, both files are written anew.
    real : callable, optional
        Returns J(k) of the real stack; only called when it is needed.
    """
    rests_on = json.loads(json.dumps(rests_on))
    known = read_json(url, f"{stem}.json")
    rests_on_the_same = known is not None and known.get("provenance") == rests_on
    if rests_on_the_same and object_exists(url, f"{stem}.parquet"):
        return read_table(url, f"{stem}.parquet")
    found = {
        name: read_attributes(output.url, labels=output.name) for name, output in outputs.items()
    }
    summary = _summary(found, rests_on, real() if real is not None else None)
    table = _as_table(found, summary)
    write_table(url, f"{stem}.parquet", table)
    # Last: it says what the table rests on.
    write_json(url, f"{stem}.json", summary)
    return table


def _summary(
    found: Mapping[str, Mapping[str, Any]],
    provenance: Mapping[str, Any],
    real: list[float] | None,
) -> dict[str, Any]:
    keys = ("length", "bound", "gap", "worst_step", "n_empty", "j", "j_before")
    volumes = {
        name: {"n_slices": len(one["order"]), **{key: one[key] for key in keys}}
        for name, one in found.items()
    }
    n_lags = min(len(one["j"]) for one in volumes.values())
    mean = {
        which: [
            math.fsum(one[which][k] for one in volumes.values()) / len(volumes)
            for k in range(n_lags)
        ]
        for which in ("j", "j_before")
    }
    ratio = mean["j"][0] / real[0] if real and n_lags and real[0] > 0 else None
    return {
        "state": "complete",
        "volumes": volumes,
        "mean": mean,
        "real": None if real is None else [None if math.isnan(v) else v for v in real],
        "j1_ratio": ratio,
        "warnings": _notices(found),
        "provenance": provenance,
    }


def _notices(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what is odd: slices without classes, equal slices."""
    notices = []
    for name, one in found.items():
        n, n_empty = len(one["order"]), one["n_empty"]
        equal = sum(step == 0 for step in one["steps"]) - max(0, n_empty - 1)
        if n_empty:
            notices.append(
                f"{n_empty} of {n} slices of {name} hold no class: they are equal to one another "
                f"and unlike all others"
            )
        if equal > 0:
            notices.append(
                f"{equal} of {n} slices of {name} equal the one before: the order of these is free"
            )
    return notices


def _as_table(found: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> pa.Table:
    # Late: a worker writes no table.
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for name, one in found.items():
        n = len(one["order"])
        columns["volume"] += [name] * n
        columns["position"] += range(n)
        columns["slice"] += one["order"]
        columns["step"] += [*one["steps"], None]
    kinds = (pa.string(), pa.int64(), pa.int64(), pa.float64())
    metadata = {"cvdask": json.dumps(summary, ensure_ascii=False)}
    return pa.Table.from_pydict(
        columns, pa.schema(list(zip(COLUMNS, kinds, strict=True)), metadata)
    )
