"""How alike are slices of one volume, and how alike are volumes?

1. *Continuity*, J(k): the mean Jaccard distance between slices that lie k apart. It grows from a
   small J(1) to the distance of slices that have nothing to do with each other; a generated volume
   that is as continuous as a real one has the same curve.
2. *Similarity*: the mutual Jaccard index of whole volumes, voxel by voxel, which is 1 for two that
   are the same. A generated volume that copied a real one would show.

The Jaccard index of two label images is the number of voxels where both have the same class, over
the number where either has any; the background, 0, and voxels that nobody annotated, 255, are in no
class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cvdask.comparison.drawing import Drawing, group_look, plain, shorten
from cvdask.comparison.samples import Sample
from cvdask.synthesis.volume_jaccard import volume_jaccard_matrix
from cvdask.volume.boxes import Box
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.store import Level, Volume, read_box

MOST_APART = 32
# Slices that are compared with those after them; more would say no more of a mean.
MOST_ANCHORS = 96
SLICE_VOXELS = 512
# Names beside a matrix of more volumes could not be read.
MOST_NAMED = 40


def jaccard_counts(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Count voxels that agree in a class, and those that are in any class in either.

    Parameters
    ----------
    a, b : integer arrays of one shape

    Returns
    -------
    both, either : int
        Summed over classes: a voxel in two different classes counts twice in ``either``.

    Examples
    --------
    >>> jaccard_counts(np.array([1, 1, 2, 0]), np.array([1, 2, 2, 1]))
    (2, 5)
    """
    in_a, in_b = _in_class(a), _in_class(b)
    both = int(np.count_nonzero((a == b) & in_a & in_b))
    return both, int(np.count_nonzero(in_a)) + int(np.count_nonzero(in_b)) - both


def _in_class(values: np.ndarray) -> np.ndarray:
    return (values != 0) & (values != UNANNOTATED)


def continuity(labels: Volume, most_apart: int = MOST_APART) -> np.ndarray:
    """Return J(k), the mean Jaccard distance of slices k apart, for k from 1.

    Slices are taken from the coarsest level with all slices of the finest, or from the middle of
    each where even that is large; at most 96 of them, spread evenly, are compared with those after
    them.

    Returns
    -------
    (min(most_apart, slices - 1),) float64
        Two slices without any class have distance 0.
    """
    level = _level_with_all_slices(labels)
    n_slices = level.shape[0]
    n_apart = min(most_apart, n_slices - 1)
    if n_apart < 1:
        return np.empty(0)
    sums, counts = np.zeros(n_apart), np.zeros(n_apart, np.int64)
    anchors = np.unique(
        np.linspace(0, n_slices - 2, min(MOST_ANCHORS, n_slices - 1)).round().astype(int)
    )
    for anchor in anchors:
        stop = min(n_slices, anchor + n_apart + 1)
        slices = read_box(labels.url, level, _middle(level, int(anchor), int(stop)))
        for k in range(1, len(slices)):
            both, either = jaccard_counts(slices[0], slices[k])
            sums[k - 1] += 1 - both / either if either else 0.0
            counts[k - 1] += 1
    return sums / counts


def _level_with_all_slices(labels: Volume) -> Level:
    whole = [level for level in labels.levels if level.shape[0] == labels.shape[0]]
    small = [level for level in whole if max(level.shape[1:]) <= SLICE_VOXELS]
    return small[0] if small else whole[-1]


def _middle(level: Level, start: int, stop: int) -> Box:
    low = [max(0, (extent - SLICE_VOXELS) // 2) for extent in level.shape[1:]]
    high = [min(extent, a + SLICE_VOXELS) for extent, a in zip(level.shape[1:], low, strict=True)]
    return Box((start, low[0], low[1]), (stop, high[0], high[1]))


def draw_continuity(samples: Sequence[Sample]) -> Drawing:
    """Draw J(k) of each sample, over the distance in µm."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    columns: dict[str, list[Any]] = {
        name: [] for name in ("group", "volume", "k", "distance_um", "jaccard_distance")
    }
    for number, sample in enumerate(samples):
        curve = continuity(sample.labels)
        spacing = sample.labels.voxel_size_nm
        assert spacing is not None
        distances = np.arange(1, len(curve) + 1) * spacing[0] / 1000
        axes.plot(
            distances, curve, linewidth=1.6, marker="o", markersize=3,
            label=plain(shorten(sample.name)), **group_look(number),
        )  # fmt: skip
        columns["group"] += [sample.group] * len(curve)
        columns["volume"] += [sample.name] * len(curve)
        columns["k"] += list(range(1, len(curve) + 1))
        columns["distance_um"] += distances.tolist()
        columns["jaccard_distance"] += curve.tolist()
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    axes.set_xlabel("distance of two slices (µm)")
    axes.set_ylabel("Jaccard distance J(k)")
    axes.grid()
    axes.legend(loc="lower right")
    return Drawing(
        "continuity",
        "Continuity",
        "Mean Jaccard distance between slices k apart, of the first volume of each group; each "
        "mark is one more slice. Equal curves are equally continuous.",
        figure,
        columns,
        [f"{sample.name}: {sample.labels.group}" for sample in samples],
    )


def draw_similarity(samples: Sequence[Sample], matrix: np.ndarray) -> Drawing:
    """Draw the mutual Jaccard index of all volumes.

    Parameters
    ----------
    samples : sequence of Sample
    matrix : (volumes, volumes) float64
        Of :func:`similarity`.
    """
    n = len(samples)
    side = min(7.5, 2.6 + 0.24 * n)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    off_diagonal = matrix[~np.eye(n, dtype=bool)]
    low, high = float(off_diagonal.min()), float(off_diagonal.max()) or 1.0
    image = axes.imshow(
        np.where(np.eye(n, dtype=bool), np.nan, matrix), cmap="viridis",
        vmin=low, vmax=high,
    )  # fmt: skip
    axes.set_facecolor("#dddddd")
    names = [plain(shorten(sample.name, 22)) for sample in samples]
    if n <= MOST_NAMED:
        axes.set_xticks(range(n), names, rotation=90, fontsize=7)
        axes.set_yticks(range(n), names, fontsize=7)
    for bound in _group_bounds(samples):
        axes.axhline(bound, color="white", linewidth=1.5)
        axes.axvline(bound, color="white", linewidth=1.5)
    if n <= 10:
        for i in range(n):
            for j in range(n):
                if i != j:
                    dark = matrix[i, j] < low + 0.6 * (high - low)
                    axes.text(
                        j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=7,
                        color="white" if dark else "black",
                    )  # fmt: skip
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="Jaccard index", shrink=0.75)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    return Drawing(
        "similarity",
        "Mutual similarity",
        "Jaccard index of each two volumes, voxel by voxel over all classes; 1 would be the same "
        "volume. White lines part the groups.",
        figure,
        {
            "volume": [samples[i].name for i, _ in pairs],
            "other": [samples[j].name for _, j in pairs],
            "jaccard": [float(matrix[i, j]) for i, j in pairs],
        },
        [f"{sample.name}: {sample.labels.group}" for sample in samples],
    )


def _group_bounds(samples: Sequence[Sample]) -> list[float]:
    return [k - 0.5 for k in range(1, len(samples)) if samples[k].group != samples[k - 1].group]


def of_one_shape(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples of the commonest shape: only these can be compared voxel by voxel."""
    shapes = [sample.labels.shape for sample in samples]
    commonest = max(shapes, key=shapes.count)  # the first of those that are as common
    return [sample for sample in samples if sample.labels.shape == commonest]


def similarity(
    samples: Sequence[Sample], *, client: Any = None, workers: int | None = None
) -> np.ndarray:
    """Return the mutual Jaccard index of all volumes: (volumes, volumes) float64.

    Raises
    ------
    ValueError
        When their shapes differ, or only some have names of classes.
    """
    urls = [sample.url for sample in samples]
    name = samples[0].labels.name
    return 1.0 - volume_jaccard_matrix(urls, name, client=client, workers=workers)
