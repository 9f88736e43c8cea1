"""How good is the segmentation of a volume, class by class?

1. Classes of the prediction are matched with those of the truth: by name, or by value where one of
   the two has no names.
2. Each block is a slab of whole slices. Its truth is read first: slices that nobody has annotated
   are passed by without reading the prediction; voxels of 255 are left out of every count.
3. Blocks leave counts of voxels, which add, and a few numbers per slice and class for V_Rand and
   V_Info; see ``segmentation.metrics``. They meet as a tree on the workers.
4. An :class:`Evaluation` holds the scores and gives them as JSON, as a table and as a bar chart.

The result is the same to the last bit whatever the blocks, workers and shards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.engine.blockwise import reduce
from cvdask.engine.plan import Plan, Summary
from cvdask.segmentation.metrics import (
    COUNT_SCORES,
    Confusion,
    ObjectScores,
    PairCounts,
    add_pairs,
    best_scores,
    confusion,
    count_pairs,
    score_slice,
)
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.colors import PALETTE, UNANNOTATED
from cvdask.volume.objects import redact
from cvdask.volume.ome import label_name
from cvdask.volume.store import Level, Volume, open_volume, read_box

BACKGROUND = 0
SCORES = (*COUNT_SCORES, "v_rand", "v_info")
COUNTS = ("tp", "fp", "fn", "tn")
SCORE_TITLES = {
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "jaccard": "Jaccard",
    "v_rand": "V_Rand",
    "v_info": "V_Info",
}

# A slab holds few slices, so that few slices occupy many workers. A chunk 64 deep is then decoded
# eight times, about 8 ns a voxel; measured, scoring takes 200 ns.
SLAB_SLICES = 8
SLAB_BYTES = 2**27
# Per voxel of a slice: components of both, basins, queue, heap, float64 probability, pairs.
SLICE_BYTES_PER_VOXEL = 80


@dataclass(frozen=True)
class ClassScores:
    """How well one class was found.

    Parameters
    ----------
    name : str
    value : int
        In the truth.
    color : str
        ``#rrggbb``.
    confusion : Confusion
        This class against the rest, over all annotated voxels.
    objects : ObjectScores
        V_Rand and V_Info, over the slices where the truth has the class.
    """

    name: str
    value: int
    color: str
    confusion: Confusion
    objects: ObjectScores

    def scores(self) -> dict[str, float]:
        """Return all scores by name; NaN where a score has nothing to say."""
        return {
            **self.confusion.scores(),
            "v_rand": self.objects.v_rand,
            "v_info": self.objects.v_info,
        }


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Parameters
    ----------
    classes : tuple of ClassScores
        In the order of their values in the truth, without the background.
    n_voxels : int
        Annotated voxels, all of which were compared.
    warnings : tuple of str
        Classes without voxels or without a counterpart, slices left out.
    summary : Summary
    """

    classes: tuple[ClassScores, ...]
    n_voxels: int
    warnings: tuple[str, ...] = ()
    summary: Summary = field(default_factory=lambda: Summary("evaluate"), repr=False)

    def mean(self) -> dict[str, float]:
        """Return the mean of each score over the classes for which it is a number."""
        means = {}
        for name in SCORES:
            values = [one.scores()[name] for one in self.classes]
            numbers = [value for value in values if not math.isnan(value)]
            means[name] = math.fsum(numbers) / len(numbers) if numbers else math.nan
        return means

    def as_dict(self) -> dict[str, Any]:
        """Return scores and counts as JSON-ready values; None where a score is not a number."""
        return {
            "classes": {
                one.name: {
                    **_without_nan(one.scores()),
                    **{count: getattr(one.confusion, count) for count in COUNTS},
                }
                for one in self.classes
            },
            "mean": _without_nan(self.mean()),
            "n_voxels": self.n_voxels,
        }

    def table(self) -> list[list[str]]:
        """Return the scores as rows of text: a header, a row per class, their mean.

        A score that is not a number is a dash.
        """
        rows = [["class", *(SCORE_TITLES[name] for name in SCORES), "voxels"]]
        for one in self.classes:
            n_true = one.confusion.tp + one.confusion.fn
            rows.append([one.name, *map(_score_text, one.scores().values()), f"{n_true}"])
        rows.append(["mean", *map(_score_text, self.mean().values()), f"{self.n_voxels}"])
        return rows

    def draw(self, path: str | os.PathLike[str]) -> Path:
        """Draw the scores as a bar chart: a group for each score, a bar for each class.

        Parameters
        ----------
        path : str or path
            ``name.png`` or ``name.svg``; replaced where it exists, whole or not at all.

        Raises
        ------
        ValueError
            When the name has another ending.
        """
        target = Path(os.fspath(path))
        kind = target.suffix.lower().lstrip(".")
        if kind not in ("png", "svg"):
            raise ValueError(f"a chart is drawn as .png or .svg. Received: {target}")
        unfinished = target.with_name(f".{target.name}.partial")
        try:
            _draw_bars(self, unfinished, kind)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        return target


def _without_nan(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def _score_text(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _draw_bars(evaluation: Evaluation, path: Path, kind: str) -> None:
    # Late: a worker that evaluates blocks draws nothing.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    n_classes = len(evaluation.classes)
    width = 0.8 / max(1, n_classes)
    positions = np.arange(len(SCORES))
    # Salt and no date: the same scores give the same file. Text stays text, so it can be edited.
    with rc_context({"svg.hashsalt": "cvdask", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(max(8.0, 1.2 + 9 * (0.4 + 0.22 * n_classes)), 4.2))
        axes = figure.add_subplot()
        for k, one in enumerate(evaluation.classes):
            heights = np.array(list(one.scores().values()))
            places = positions + (k - (n_classes - 1) / 2) * width
            axes.bar(
                places, np.nan_to_num(heights), width * 0.92,
                color=one.color, edgecolor="black", linewidth=0.5, label=one.name,
            )  # fmt: skip
            for place, height in zip(places, heights, strict=True):
                text = "n/a" if math.isnan(height) else f"{height:.3f}"
                axes.annotate(
                    text, (place, 0.0 if math.isnan(height) else height), (0, 3),
                    textcoords="offset points", ha="center", va="bottom", rotation=90, fontsize=7,
                )  # fmt: skip
        axes.set_xticks(positions, [_math_title(name) for name in SCORES])
        axes.set_xlim(-0.6, len(SCORES) - 0.4)
        axes.set_ylim(0, 1.18)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.set_ylabel("score")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if n_classes:
            axes.legend(
                loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(6, n_classes), frameon=False
            )
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(path, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)


def _math_title(name: str) -> str:
    """Write V_Rand with a lowered Rand.

    >>> _math_title("v_rand"), _math_title("f1")
    ('$V_{Rand}$', 'F1')
    """
    title = SCORE_TITLES[name]
    return f"$V_{{{title[2:]}}}$" if title.startswith("V_") else title


# ---------------------------------------------------------------------------------------------
# The stage


def evaluate(
    volume: Volume | str,
    *,
    prediction: str = "classes",
    truth: str = "annotations",
    probabilities: str | None = None,
    z_range: Sequence[int] | str | None = None,
    box: Box | str | None = None,
    client: Any = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> Evaluation | Plan:
    """Score a segmentation against annotations.

    Only annotated voxels count, those whose truth is not 255; slices without any are left out.

    Parameters
    ----------
    volume : Volume or str
        The sample.
    prediction, truth : str
        Label images of classes, 0 is background.
    probabilities : str, optional
        V_Rand and V_Info from the label images ``<probabilities>_p_<class>`` that ``segment``
        writes on request (uint8: 255 is 1), at the best of eleven thresholds. By default, and for
        a class without such an image, from the predicted classes.
    z_range : (int, int) or "z0:z1", optional
        Slices to score, first and last + 1; by default all.
    box : Box or str, optional
        Voxels to score instead, as ``z0:z1,y0:y1,x0:x1``.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    dry_run : bool
        Return the plan and read no voxel.

    Returns
    -------
    Evaluation
        Or the plan.

    Raises
    ------
    ValueError
        When a label image is absent, or shapes or voxel sizes differ; when both have class names
        and share none; when both ``z_range`` and ``box`` are given, or one leaves the volume; when
        no voxel is annotated there.
    BlocksFailed
        When blocks could not be read, or hold values above 255: objects rather than classes.
    MemoryError
        When a slice is too large for a worker.
    """
    if isinstance(volume, str):
        volume = open_volume(volume)
    true, predicted = volume.label(truth), volume.label(prediction)
    region = _region(true, z_range, box)
    partners = match_classes(true, predicted)
    soft = _probability_levels(volume, true, predicted, partners, probabilities)
    for other in (predicted, *soft.values()):
        _check_fits(true, other)
    job = _Job(
        true.url,
        true.levels[0],
        predicted.levels[0],
        {value: image.levels[0] for value, image in soft.items()},
        partners,
        region,
        _annotated_slices(true),
    )
    plan = plan_evaluate(job)
    if dry_run:
        return plan
    outcome: tuple[Any, Summary] = reduce(
        partial(_tally_block, job), _merge, plan, client=client, workers=workers, batch=1
    )
    tally, summary = outcome
    if tally is None or not tally.pairs:
        raise ValueError(
            f"a score needs annotated voxels, whose value is not {UNANNOTATED}. {truth!r} of "
            f"{redact(true.url)} has none in {region}"
        )
    return _conclude(tally, true, predicted, partners, region, soft, probabilities, summary)


def _region(truth: Volume, z_range: Sequence[int] | str | None, box: Box | str | None) -> Box:
    if z_range is not None and box is not None:
        raise ValueError(f"give z_range or box, not both. Received: {z_range} and {box}")
    if z_range is not None:
        text = z_range if isinstance(z_range, str) else ":".join(str(int(z)) for z in z_range)
        return Box.parse(f"{text},:,:", truth.shape)
    if isinstance(box, str):
        return Box.parse(box, truth.shape)
    region = box if box is not None else Box.whole(truth.shape)
    if not Box.whole(truth.shape).contains(region) or region.size == 0:
        raise ValueError(
            f"the box must hold at least one voxel and lie inside {truth.name}, "
            f"{Box.whole(truth.shape)}. Received: {region}"
        )
    return region


def match_classes(truth: Volume, prediction: Volume) -> dict[int, int | None]:
    """Find the class of the prediction that each value of the truth means.

    By name where both label images have names, else by value. A value without a name means the
    same value, unless the prediction uses that for another class.

    Returns
    -------
    dict of int to int or None
        For every value from 1 to 254; None where the prediction does not have the class.

    Raises
    ------
    ValueError
        When both have names and share none, or one has the same name twice.
    """
    values = range(BACKGROUND + 1, UNANNOTATED)
    true_names, names = _names(truth), _names(prediction)
    if not true_names or not names:
        return {value: value for value in values}
    by_name = {name: value for value, name in names.items()}
    if not by_name.keys() & set(true_names.values()):
        raise ValueError(
            f"classes are matched by name, and {truth.name!r} and {prediction.name!r} share none. "
            f"Received: {sorted(true_names.values())} and {sorted(by_name)}"
        )
    return {
        value: by_name.get(true_names[value])
        if value in true_names
        else (None if value in names else value)
        for value in values
    }


def _names(labels: Volume) -> dict[int, str]:
    names = {
        value: name
        for value, name in labels.classes.items()
        if value not in (BACKGROUND, UNANNOTATED)
    }
    if len(set(names.values())) < len(names):
        raise ValueError(f"class names must differ. {labels.name!r} has {names}")
    return names


def _probability_levels(
    volume: Volume,
    truth: Volume,
    prediction: Volume,
    partners: Mapping[int, int | None],
    probabilities: str | None,
) -> dict[int, Volume]:
    """Open the probabilities of each class, by its value in the truth."""
    if probabilities is None:
        return {}
    prefix = f"{probabilities}_p_"
    present = volume.label_names()
    found = {}
    for value, partner in partners.items():
        name = _names(prediction).get(partner or BACKGROUND) or _names(truth).get(value)
        if name is None:
            continue
        label = label_name(prefix + name)  # as segment names them
        if label in present:
            found[value] = volume.label(label)
    if not found:
        raise ValueError(
            f"probabilities are label images {prefix}<class>, written by segment on request. "
            f"{redact(volume.url)} has {volume.label_names()}"
        )
    return found


def _check_fits(truth: Volume, other: Volume) -> None:
    if other.shape != truth.shape:
        raise ValueError(
            f"{truth.name!r} and {other.name!r} must have the same voxels z, y, x. "
            f"Received: {truth.shape} and {other.shape}"
        )
    sizes = truth.voxel_size_nm, other.voxel_size_nm
    if sizes[0] and sizes[1] and not np.allclose(sizes[0], sizes[1], rtol=1e-6, atol=0):
        raise ValueError(
            f"{truth.name!r} and {other.name!r} must have the same voxel size z, y, x. "
            f"Received: {sizes[0]} nm and {sizes[1]} nm"
        )


def _annotated_slices(truth: Volume) -> frozenset[int] | None:
    """Return the slices that ingest recorded as annotated; None where it recorded none."""
    known = truth.attributes.get("slices", {}).get("annotated")
    return None if known is None else frozenset(int(z) for z in known)


@dataclass(frozen=True)
class _Job:
    """What each block needs to know; travels with every task, so it holds no data."""

    url: str
    truth: Level
    prediction: Level
    probabilities: Mapping[int, Level]
    partners: Mapping[int, int | None]
    region: Box
    annotated: frozenset[int] | None


def plan_evaluate(job: _Job) -> Plan:
    """Plan the slabs: a few slices, fewer where slices are large."""
    _, height, width = job.region.shape
    levels = (job.truth, job.prediction, *job.probabilities.values())
    itemsizes = [np.dtype(level.dtype).itemsize for level in levels]
    slice_bytes = height * width * max(itemsizes)
    depth = max(1, min(SLAB_SLICES, SLAB_BYTES // slice_bytes, job.region.shape[0]))
    # Truth, prediction, one class of it and its probabilities lie in memory at the same time.
    slabs = sum(itemsizes[:2]) + 1 + max(itemsizes[2:], default=0)
    return Plan(
        stage="evaluate",
        grid=Grid(job.truth.shape, (depth, *job.truth.shape[1:]), roi=job.region),
        output=job.url,
        read_bytes=job.region.size * sum(itemsizes),
        task_bytes=height * width * (depth * slabs + SLICE_BYTES_PER_VOXEL),
        notes={"region": str(job.region)},
    )


@dataclass(frozen=True)
class _Tally:
    """What blocks leave: counts that add, and numbers per slice that are only gathered.

    V_Rand and V_Info are sums of floats in the end. Gathered (176 bytes a slice and class), they
    are added once, in the order of slices, so that blocks cannot change a bit.
    """

    pairs: PairCounts
    rows: Mapping[int, Mapping[int, np.ndarray]]  # class → z → (2, 11) float64
    n_left_out: int


def _tally_block(job: _Job, block: Block) -> _Tally:
    box = block.write.intersect(job.region)
    wanted = range(box.start[0], box.stop[0])
    if job.annotated is not None and job.annotated.isdisjoint(wanted):
        return _Tally({}, {}, len(wanted))
    truth = _read_classes(job.url, job.truth, box)
    inside = np.flatnonzero((truth != UNANNOTATED).any(axis=(1, 2)))
    if not len(inside):
        return _Tally({}, {}, len(wanted))
    first, last = int(inside[0]), int(inside[-1]) + 1
    box = replace(
        box,
        start=(wanted[first], *box.start[1:]),
        stop=(wanted[last - 1] + 1, *box.stop[1:]),
    )
    truth = truth[first:last]
    prediction = _read_classes(job.url, job.prediction, box)
    pairs = count_pairs(truth, prediction)
    rows = {}
    for value in sorted({t for t, _ in pairs} - {BACKGROUND}):
        level = job.probabilities.get(value)
        soft = read_box(job.url, level, box) if level else None
        partner = job.partners[value]
        hard = prediction == partner if partner is not None else np.zeros(truth.shape, bool)
        by_slice = {}
        for k in range(len(truth)):
            proposal = hard[k] if soft is None else _as_probability(soft[k])
            scores = score_slice(truth[k] == value, proposal)
            if scores is not None:
                by_slice[box.start[0] + k] = scores
        rows[value] = by_slice
    return _Tally(pairs, rows, len(wanted) - len(inside))


def _read_classes(url: str, level: Level, box: Box) -> np.ndarray:
    """Read classes as uint8, whatever integers they are stored as."""
    data = read_box(url, level, box)
    if data.dtype == np.uint8:
        return data
    low, high = data.min(), data.max()
    if low < 0 or high > UNANNOTATED:
        raise ValueError(
            f"classes are numbered 0 to {UNANNOTATED - 1}, and {UNANNOTATED} is not annotated. "
            f"{level.path} holds {low} to {high} in box {box}: are these objects?"
        )
    return data.astype(np.uint8)


def _as_probability(data: np.ndarray) -> np.ndarray:
    """Undo the quantisation of probabilities: the largest integer of the type is 1."""
    if data.dtype.kind == "f":
        return data
    return data / float(np.iinfo(data.dtype).max)


def _merge(parts: list[_Tally]) -> _Tally:
    rows: dict[int, dict[int, np.ndarray]] = {}
    for part in parts:
        for value, by_slice in part.rows.items():
            rows.setdefault(value, {}).update(by_slice)
    return _Tally(
        add_pairs([part.pairs for part in parts]), rows, sum(part.n_left_out for part in parts)
    )


def _conclude(
    tally: _Tally,
    truth: Volume,
    prediction: Volume,
    partners: Mapping[int, int | None],
    region: Box,
    soft: Mapping[int, Volume],
    probabilities: str | None,
    summary: Summary,
) -> Evaluation:
    """Turn what all blocks left into scores, and say what could mislead."""
    seen = {t for t, _ in tally.pairs} - {BACKGROUND}
    names = _names(truth) or _names(prediction)
    values = sorted(seen | _names(truth).keys())
    classes, warnings = [], []
    for value in values:
        name = names.get(value, f"class {value}")
        partner = partners[value]
        counts = confusion(tally.pairs, value, partner)
        by_slice = tally.rows.get(value, {})
        objects = best_scores([by_slice[z] for z in sorted(by_slice)])
        classes.append(ClassScores(name, value, _color(value, truth, prediction), counts, objects))
        if value not in seen:
            warnings.append(f"{name} has no voxel in {truth.name!r} within {region}")
        if partner is None:
            if counts.fn:
                warnings.append(
                    f"{prediction.name!r} does not know {name}: its {counts.fn} voxels are missed"
                )
        elif counts.tp + counts.fp == 0:
            warnings.append(f"{name} has no voxel in {prediction.name!r} where there is truth")
        if probabilities is not None and value not in soft:
            warnings.append(f"{name} has no probabilities: V_Rand and V_Info are of the classes")
    matched = {partners[value] for value in values} | {BACKGROUND}
    for other in sorted({p for _, p in tally.pairs} - matched):
        count = sum(n for (_, p), n in tally.pairs.items() if p == other)
        name = prediction.classes.get(other, f"class {other}")
        warnings.append(
            f"{truth.name!r} does not know {name}: its {count} predicted voxels count as background"
        )
    if tally.n_left_out:
        warnings.append(
            f"{tally.n_left_out} of {region.shape[0]} slices are not annotated and were left out"
        )
    n_voxels = sum(tally.pairs.values())
    return Evaluation(tuple(classes), n_voxels, tuple(warnings), summary)


def _color(value: int, truth: Volume, prediction: Volume) -> str:
    default = PALETTE[(value - 1) % len(PALETTE)]
    return truth.colors.get(value) or prediction.colors.get(value) or default
