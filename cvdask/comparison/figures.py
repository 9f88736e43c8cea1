"""What do the numbers look like: the charts of a comparison.

=============  ===================================================================================
scores         of a segmentation, class by class (the paper's Figure 3)
slices         an image and its classes at three depths (Figure 2); see ``comparison.pictures``
rendering      the classes as surfaces, from the side (Figure 4)
density        how often which density occurs, by group, with box plots beside (Figure 5)
shapes         how often which shape occurs, by group, and the mean of each volume (Figure 6)
sections       real and generated volumes cut along three planes
continuity     how fast slices become unlike their neighbours, J(k) (Figure S3)
similarity     mutual Jaccard index of all volumes
effects        by how much groups differ, with intervals
=============  ===================================================================================

:func:`draw_all` draws those that there are data for. Every figure is PNG, SVG and, as CSV, the
numbers it shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from cvdask.comparison.drawing import (
    GROUP_COLORS,
    GROUP_MARKERS,
    Drawing,
    file_name,
    group_look,
    plain,
    save,
    shorten,
    style,
    title_of,
    write_index,
)
from cvdask.comparison.pictures import draw_rendering, draw_sections, draw_slices
from cvdask.comparison.samples import DENSITY, OBJECTS, Sample
from cvdask.comparison.similarity import (
    draw_continuity,
    draw_similarity,
    of_one_shape,
    similarity,
)
from cvdask.comparison.statistics import ALPHA, Measured, Row
from cvdask.comparison.summaries import Key, Reading, unit_of
from cvdask.volume.colors import PALETTE
from cvdask.volume.objects import normalize_url, read_json, redact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[int, Mapping[Key, Measured]]

# More would be a wall of charts; all are in the tables.
MOST_CLASSES = 6
MOST_PAIRS = 6
N_BINS = 40
# A few values far out would leave no room for all others.
SHOWN_QUANTILES = (0.005, 0.995)
SHOWN_DENSITIES = (0.0, 0.96)
SCORES = (
    "accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "jaccard",
    "v_rand",
    "v_info",
)
SCORE_TITLES = {
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "v_rand": "$V_{Rand}$",
    "v_info": "$V_{Info}$",
}


def draw_all(
    url: str,
    reading: Reading,
    found: Found,
    rows: Sequence[Row],
    scores: Sequence[str] = (),
    *,
    client: Any = None,
    workers: int | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw every figure there are data for, and the index of them.

    Parameters
    ----------
    url : str
        Folder of the comparison; figures go to ``figures/`` below.
    reading : Reading
    found : mapping of int to mapping
        Summaries of all volumes, by number.
    rows : sequence of Row
        All tests.
    scores : sequence of str
        Files of ``cvdask evaluate --json``.
    client, workers
        Where volumes are compared with one another.

    Returns
    -------
    entries : list of dict
        Name, title, caption and sources of each.
    notices : list of str
        What could not be drawn, and why.
    """
    with style():
        entries = [save(url, drawing) for drawing in _drawings(reading, found, rows, scores)]
        notices = []
        alike = of_one_shape(reading.samples)
        shape = alike[0].labels.shape
        other = next((one for one in reading.samples if one.labels.shape != shape), None)
        if other is not None:
            notices.append(
                f"the mutual similarity is drawn for volumes of one shape: {len(alike)} of "
                f"{len(reading.samples)} have {shape}, {other.name} has {other.labels.shape}"
            )
        if len(alike) > 1:
            try:
                matrix = similarity(alike, client=client, workers=workers)
            except ValueError as error:
                notices.append(f"the mutual similarity of volumes is not drawn: {error}")
            else:
                entries.append(save(url, draw_similarity(alike, matrix)))
    write_index(url, entries)
    return entries, notices


def _drawings(
    reading: Reading, found: Found, rows: Sequence[Row], scores: Sequence[str]
) -> Iterator[Drawing]:
    if scores:
        yield draw_scores(scores)
    firsts = first_samples(reading.samples)
    yield draw_slices(firsts)
    yield draw_sections(firsts)
    yield draw_rendering(firsts, reading.classes)
    yield from draw_effects(rows)
    for name in _classes(found, reading.measures):
        yield draw_shapes(reading, found, name)
    for key in _densities(found):
        yield draw_density(reading, found, key)
    yield draw_continuity(firsts)


def first_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Return the first sample of each group, for pictures."""
    firsts: dict[str, Sample] = {}
    for sample in samples:
        firsts.setdefault(sample.group, sample)
    return list(firsts.values())[: len(GROUP_COLORS)]


def _classes(found: Found, measures: Sequence[str]) -> list[str]:
    """Return the classes with most objects, in the order in which they were found."""
    counts: dict[str, int] = {}
    for number in sorted(found):
        for (name, measure), one in found[number].items():
            if measure in measures:
                counts[name] = max(counts.get(name, 0), one.n)
    most = sorted(counts, key=lambda name: -counts[name])[:MOST_CLASSES]
    return [name for name in counts if name in most]


def _densities(found: Found) -> list[Key]:
    keys = (key for number in sorted(found) for key in found[number] if key[1] == "density")
    return list(dict.fromkeys(keys))


def _by_group(reading: Reading, found: Found, key: Key) -> dict[str, list[Measured]]:
    groups: dict[str, list[Measured]] = {}
    for number, sample in enumerate(reading.samples):
        one = found[number].get(key)
        if one is not None and len(one.values):
            groups.setdefault(sample.group, []).append(one)
    return groups


# ---------------------------------------------------------------------------------------------
# Distributions


def draw_shapes(reading: Reading, found: Found, name: str) -> Drawing:
    """Draw how the objects of a class are distributed, measure by measure and group by group."""
    measures = reading.measures[:12]
    n_columns = min(4, len(measures))
    n_rows = -(-len(measures) // n_columns)
    figure = Figure(figsize=(2.75 * n_columns, 2.6 * n_rows + 0.5), layout="constrained")
    grid = figure.add_gridspec(n_rows, n_columns)
    columns: dict[str, list[Any]] = {
        key: [] for key in ("measure", "group", "from", "to", "share", "low", "high")
    }
    labels: dict[str, Any] = {}
    for place, measure in enumerate(measures):
        groups = _by_group(reading, found, (name, measure))
        cell = grid[divmod(place, n_columns)].subgridspec(2, 1, height_ratios=(4, 1), hspace=0.04)
        upper = figure.add_subplot(cell[0])
        lower = figure.add_subplot(cell[1], sharex=upper)
        for number, group in enumerate(_group_names(reading)):
            if group not in groups:
                continue
            edges = _edges(groups)
            handle = _draw_distribution(upper, groups[group], edges, number, columns)
            labels.setdefault(group, handle)
            _draw_means(lower, groups[group], number)
            n = len(columns["share"]) - len(columns["measure"])
            columns["measure"] += [measure] * n
            columns["group"] += [group] * n
        _finish_panel(upper, lower, measure, len(_group_names(reading)))
    figure.legend(
        labels.values(), [plain(shorten(label)) for label in labels],
        loc="outside upper left", ncols=min(6, max(1, len(labels))),
    )  # fmt: skip
    return Drawing(
        file_name("shapes", name),
        f"Shapes of {name}",
        f"Share of the objects by measure: mean over the volumes of a group, each volume counting "
        f"the same; shaded where nine in ten volumes of a group of four or more lie. Below, a mark "
        f"for the mean of each volume. {_group_sizes(reading)}. The axes show 99 % of all objects.",
        figure,
        columns,
        [f"{sample.name}: {OBJECTS}" for sample in reading.samples],
    )


def _group_names(reading: Reading) -> list[str]:
    return list(dict.fromkeys(sample.group for sample in reading.samples))


def _group_sizes(reading: Reading) -> str:
    names = _group_names(reading)
    counts = {name: sum(s.group == name for s in reading.samples) for name in names}
    parts = [f"{name}: {n} volume{'s' * (n != 1)}" for name, n in counts.items()]
    return "; ".join(parts)


def _edges(
    groups: Mapping[str, Sequence[Measured]], shown: tuple[float, float] = SHOWN_QUANTILES
) -> np.ndarray:
    """Return the bounds of bins; equal steps of the logarithm where values are very uneven."""
    pooled = np.concatenate([one.values for members in groups.values() for one in members])
    low, high = np.quantile(pooled, shown)
    if low == high:
        low, high = low - 0.5, high + 0.5
    n_bins = int(np.clip(math.sqrt(len(pooled)), 8, N_BINS))
    if low > 0 and high / low > 30:
        return np.geomspace(low, high, n_bins + 1)
    return np.linspace(low, high, n_bins + 1)


def _draw_distribution(
    axes: Axes,
    members: Sequence[Measured],
    edges: np.ndarray,
    number: int,
    columns: dict[str, list[Any]],
) -> Any:
    """Draw the mean of the histograms of several volumes, and note it in the columns."""
    shares = np.stack([np.histogram(one.values, edges)[0] / len(one.values) for one in members])
    mean = shares.mean(axis=0)
    low = high = np.full(len(mean), np.nan)
    look = group_look(number)
    if len(members) >= 4:
        low, high = np.quantile(shares, [0.05, 0.95], axis=0)
        axes.fill_between(
            edges, np.append(low, low[-1]), np.append(high, high[-1]),
            step="post", color=look["color"], alpha=0.18, linewidth=0,
        )  # fmt: skip
    handle = axes.stairs(mean, edges, linewidth=1.5, **look)
    if edges[0] > 0 and edges[-1] / edges[0] > 30:
        axes.set_xscale("log")
    for key, values in (
        ("from", edges[:-1]),
        ("to", edges[1:]),
        ("share", mean),
        ("low", low),
        ("high", high),
    ):
        columns[key] += [None if math.isnan(v) else float(v) for v in values]
    return handle


def _draw_means(axes: Axes, members: Sequence[Measured], number: int) -> None:
    axes.plot(
        [one.mean for one in members], np.full(len(members), -number),
        linestyle="", marker=GROUP_MARKERS[number % len(GROUP_MARKERS)], markersize=4.5,
        color=GROUP_COLORS[number % len(GROUP_COLORS)], markeredgecolor="white",
        markeredgewidth=0.5, alpha=0.9, clip_on=False,
    )  # fmt: skip


def _finish_panel(upper: Axes, lower: Axes, measure: str, n_groups: int) -> None:
    upper.set_ylim(bottom=0)
    upper.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    upper.grid(axis="y")
    upper.tick_params(labelbottom=False, length=0)
    lower.set_ylim(-n_groups + 0.4, 0.6)
    lower.set_yticks([])
    lower.spines["left"].set_visible(False)
    lower.set_xlabel(title_of(measure, unit_of(measure)))


def draw_density(reading: Reading, found: Found, key: Key) -> Drawing:
    """Draw how often which density occurs, with a box plot for each group above."""
    groups = _by_group(reading, found, key)
    names = [name for name in _group_names(reading) if name in groups]
    figure = Figure(figsize=(6.4, 3.2 + 0.32 * len(names)), layout="constrained")
    boxes, axes = figure.subplots(2, 1, sharex=True, height_ratios=(0.32 * len(names) + 0.1, 2.8))
    columns: dict[str, list[Any]] = {
        name: [] for name in ("group", "from", "to", "share", "low", "high")
    }
    edges = _edges(groups, SHOWN_DENSITIES)
    for number, name in enumerate(_group_names(reading)):
        if name not in groups:
            continue
        handle = _draw_distribution(axes, groups[name], edges, number, columns)
        handle.set_label(plain(shorten(name)))
        columns["group"] += [name] * (len(columns["share"]) - len(columns["group"]))
    _draw_boxes(boxes, [np.concatenate([one.values for one in groups[n]]) for n in names], names)
    for number, patch in enumerate(boxes.patches):
        color = GROUP_COLORS[_group_names(reading).index(names[number]) % len(GROUP_COLORS)]
        patch.set_facecolor(color)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y")
    axes.set_xlabel(plain(f"{key[0]}, voxels per voxel"))
    axes.set_ylabel("share of the places")
    axes.legend(loc="upper right")
    return Drawing(
        file_name("density", key[0]),
        f"Density of {key[0]}",
        f"Share of the places of a moving cube by density: mean over the volumes of a group; "
        f"shaded where nine in ten volumes of a group of four or more lie. Above, boxes from "
        f"quartile to quartile with the median; whiskers reach the 5th and 95th percentile. "
        f"The axis ends at the 96th percentile of all places. {_group_sizes(reading)}.",
        figure,
        columns,
        [f"{sample.name}: {DENSITY}" for sample in reading.samples],
    )


def _draw_boxes(axes: Axes, samples: Sequence[np.ndarray], names: Sequence[str]) -> None:
    axes.boxplot(
        samples,
        orientation="horizontal", widths=0.6, whis=(5, 95), showfliers=False,
        patch_artist=True, medianprops={"color": "black", "linewidth": 1.4},
        boxprops={"linewidth": 0.8, "alpha": 0.75}, whiskerprops={"linewidth": 0.8},
    )  # fmt: skip
    axes.set_yticks(range(1, len(names) + 1), [plain(shorten(name)) for name in names])
    axes.invert_yaxis()
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)


# ---------------------------------------------------------------------------------------------
# Effects


def draw_effects(rows: Sequence[Row]) -> Iterator[Drawing]:
    """Draw by how much each two groups differ, in standard deviations, with intervals."""
    pairs = list(dict.fromkeys(row.comparison for row in rows if row.main and row.group_b))
    for pair in pairs[:MOST_PAIRS]:
        shown = [row for row in rows if row.main and row.comparison == pair]
        shown = [row for row in shown if math.isfinite(row.effect)]
        if shown:
            yield _draw_pair(pair, shown)


def _draw_pair(pair: str, rows: Sequence[Row]) -> Drawing:
    classes = list(dict.fromkeys(row.class_ for row in rows))
    figure = Figure(figsize=(7.2, 1.1 + 0.24 * (len(rows) + len(classes))), layout="constrained")
    axes = figure.add_subplot()
    place = 0
    ticks: dict[int, str] = {}
    farthest = _farthest(rows)
    for name in classes:
        axes.annotate(
            plain(shorten(name, 40)), (0, place), (-6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", va="center", fontweight="bold",
        )  # fmt: skip
        for row in (row for row in rows if row.class_ == name):
            place += 1
            ticks[place] = title_of(row.measure)
            _draw_effect(axes, row, place, farthest)
        place += 1
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_xlim(-farthest, farthest)
    axes.set_ylim(place - 0.4, -0.6)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    first = rows[0]
    axes.set_xlabel(
        f"{plain(shorten(first.group_b))} over {plain(shorten(first.group_a))}: difference of "
        f"means in standard deviations (Hedges' g)"
    )
    axes.set_title("p, Holm", loc="right", fontsize=8)
    levels = {row.level for row in rows}
    unit = "volumes" if levels == {"volume"} else "ranges of slices" if len(levels) == 1 else "both"
    return Drawing(
        file_name("effects", pair),
        f"Differences: {pair}",
        f"Observations are {unit}. Filled: p < 5 % after Holm's correction for all main tests. "
        f"Lines: 95 % bootstrap intervals, where there are four observations or more in each "
        f"group. An arrow leaves the figure.",
        figure,
        {
            "class": [row.class_ for row in rows],
            "measure": [row.measure for row in rows],
            "level": [row.level for row in rows],
            "effect": [row.effect for row in rows],
            "low": [_or_none(row.effect_low) for row in rows],
            "high": [_or_none(row.effect_high) for row in rows],
            "p": [_or_none(row.p) for row in rows],
            "p_holm": [_or_none(row.p_holm) for row in rows],
        },
        ["statistics.parquet, main tests"],
    )


def _farthest(rows: Sequence[Row]) -> float:
    """Choose the bounds of the axis: no single effect so far out that the others vanish."""
    reach = [abs(v) for r in rows for v in (r.effect, r.effect_low, r.effect_high)]
    finite = sorted(v for v in reach if math.isfinite(v))
    return max(1.0, 1.1 * min(finite[-1], 3 * max(abs(r.effect) for r in rows), 20.0))


def _draw_effect(axes: Axes, row: Row, place: int, farthest: float) -> None:
    color = "#0072b2" if row.p_holm < ALPHA else "#666666"
    low, high = np.clip(np.nan_to_num([row.effect_low, row.effect_high], nan=0), -1e9, 1e9)
    if not math.isnan(row.effect_low):
        axes.plot([low, high], [place, place], color=color, linewidth=1.2, solid_capstyle="butt")
    shown = float(np.clip(row.effect, -farthest, farthest))
    beyond = shown != row.effect
    marker = ("<" if row.effect < 0 else ">") if beyond else "o"
    axes.plot(
        [shown], [place], marker=marker, markersize=5.5, color=color, clip_on=False,
        markerfacecolor=color if row.p_holm < ALPHA else "white",
    )  # fmt: skip
    axes.annotate(
        p_text(row.p_holm), (1, place), (4, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="left", va="center", fontsize=7.5, color=color,
    )  # fmt: skip


def p_text(p: float | None) -> str:
    """Write a p-value.

    >>> p_text(0.0312), p_text(1e-9), p_text(None), p_text(1.0)
    ('0.031', '< 0.001', '–', '1')
    """
    if p is None or math.isnan(p):
        return "–"
    if p < 0.001:
        return "< 0.001"
    return f"{p:.2g}"


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------
# Scores


def draw_scores(paths: Sequence[str]) -> Drawing:
    """Draw the scores that ``cvdask evaluate --json`` has printed, a panel for each file.

    Raises
    ------
    ValueError
        When a file holds no scores.
    """
    files = {path: read_scores(path) for path in paths}
    n_classes = max(len(classes) for classes in files.values())
    figure = Figure(
        figsize=(max(7.5, 1.0 + 0.2 * len(SCORES) * (n_classes + 1)), 2.9 * len(files)),
        layout="constrained",
    )
    panels = figure.subplots(len(files), 1, squeeze=False)[:, 0]
    columns: dict[str, list[Any]] = {name: [] for name in ("file", "class", "score", "value")}
    for axes, (path, classes) in zip(panels, files.items(), strict=True):
        name = redact(normalize_url(path)).rpartition("/")[2]
        _draw_score_bars(axes, classes)
        if len(files) > 1:
            axes.set_title(plain(shorten(name, 60)), loc="left")
        for one, numbers in classes.items():
            for score in SCORES:
                columns["file"].append(name)
                columns["class"].append(one)
                columns["score"].append(score)
                columns["value"].append(numbers.get(score))
    return Drawing(
        "scores",
        "Scores of the segmentation",
        "Each class against the rest, over all annotated voxels; V_Rand and V_Info over the "
        "objects of slices, after border thinning.",
        figure,
        columns,
        [redact(normalize_url(path)).rpartition("/")[2] for path in paths],
    )


def read_scores(path: str) -> dict[str, dict[str, float | None]]:
    """Read the scores of each class from what ``cvdask evaluate --json`` has printed.

    Raises
    ------
    ValueError
        When it is something else.
    """
    parent, _, name = normalize_url(path).rpartition("/")
    found = (read_json(parent, name) or {}).get("classes")
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(v, dict) and "f1" in v for v in found.values())
    ):
        raise ValueError(
            f"scores are what cvdask evaluate VOL --json prints. Received: {redact(path)}, which "
            f"holds {json.dumps(found)[:60] if found else 'no classes'}"
        )
    return found


def _draw_score_bars(axes: Axes, classes: Mapping[str, Mapping[str, float | None]]) -> None:
    width = 0.8 / len(classes)
    places = np.arange(len(SCORES))
    for k, (name, numbers) in enumerate(classes.items()):
        heights = [numbers.get(score) for score in SCORES]
        shifted = places + (k - (len(classes) - 1) / 2) * width
        axes.bar(
            shifted, [h or 0.0 for h in heights], width * 0.92,
            color=PALETTE[k % len(PALETTE)], edgecolor="black", linewidth=0.4,
            label=plain(shorten(name)),
        )  # fmt: skip
        for place, height in zip(shifted, heights, strict=True):
            axes.annotate(
                "n/a" if height is None else f"{height:.2f}", (place, height or 0.0), (0, 2),
                textcoords="offset points", ha="center", va="bottom", fontsize=6.5,
                rotation=90 if width < 0.3 else 0,
            )  # fmt: skip
    axes.set_xticks(places, [SCORE_TITLES.get(s, s.capitalize()) for s in SCORES])
    axes.set_ylim(0, 1.12)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylabel("score")
    axes.grid(axis="y")
    axes.tick_params(axis="x", length=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(6, len(classes)))
