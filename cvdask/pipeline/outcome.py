"""What came of a run, in a few numbers?

:func:`main_figures` reads what the stages have left: F1 of each class, objects of each sample, how
far generated slices are from real ones, and how alike neighbours are along z. What a run does not
have is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cvdask.comparison.samples import open_table
from cvdask.pipeline.config import Config
from cvdask.pipeline.steps import OBJECTS, distance_of, generated_groups, scores_of
from cvdask.pipeline.things import Thing
from cvdask.volume.objects import read_json


def main_figures(config: Config) -> dict[str, Any]:
    """Return the main figures of a run.

    Returns
    -------
    dict
        ``f1`` and ``objects`` by sample; ``distance`` (Fréchet distance in units of the floor) and
        ``j1`` (J(1) of generated over J(1) of real volumes) by group.
    """
    found: dict[str, Any] = {"f1": {}, "objects": {}, "distance": {}, "j1": {}}
    for sample in config.samples:
        if "evaluate" in config.stages:
            scores = _read(scores_of(config, sample)).get("classes", {})
            if scores:
                found["f1"][sample.name] = {name: one["f1"] for name, one in scores.items()}
        if Thing("table", sample.url, f"tables/{OBJECTS}").exists():
            table = open_table(sample.url, f"tables/{OBJECTS}")
            assert table is not None
            found["objects"][sample.name] = sum(b.num_rows for b in table.batches(["class"]))
    for group in generated_groups(config) if "distance" in config.stages else ():
        told = _read(distance_of(config, group))
        pair = told.get("neighbour_distance") or {}
        if told:
            found["distance"][group] = told["ratio"]
        if pair.get("ratio") is not None:
            found["j1"][group] = pair["ratio"]
    return {name: values for name, values in found.items() if values}


def figures_line(figures: Mapping[str, Any]) -> str:
    """Say the main figures in one line.

    >>> figures_line({"f1": {"cell": {"nucleus": 0.912}}, "objects": {"cell": 31}})
    'F1 of cell: nucleus 0.91; 31 objects in cell'
    """
    return "; ".join(_parts(figures)) or "no stage that counts or scores"


def _parts(figures: Mapping[str, Any]) -> Iterator[str]:
    for sample, scores in figures.get("f1", {}).items():
        shown = ", ".join(f"{n} {'–' if v is None else f'{v:.2f}'}" for n, v in scores.items())
        yield f"F1 of {sample}: {shown}"
    for sample, n_objects in figures.get("objects", {}).items():
        yield f"{n_objects} objects in {sample}"
    for group, ratio in figures.get("distance", {}).items():
        shown = "–" if ratio is None else f"{ratio:.1f}"
        yield f"generated {group}: distance {shown} × the floor"
    for group, ratio in figures.get("j1", {}).items():
        yield f"J(1) generated over real, {group}: {ratio:.2f}"


def _read(path: str) -> dict[str, Any]:
    parent, _, name = path.rpartition("/")
    return read_json(parent, name) or {}
