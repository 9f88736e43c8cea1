"""How good is a segmentation? Scores from counts of voxels, and from how objects are split.

1. :func:`count_pairs` counts which class of the truth met which class of the prediction: integers
   that add, over slices, blocks and machines. :func:`confusion` turns them into one class against
   the rest, and a :class:`Confusion` into accuracy, F1 and the others.
2. :func:`score_slice` compares the *objects* of one slice at eleven thresholds: the prediction's
   borders are thinned to one voxel, then both are read as partitions of the truth's foreground.
3. :func:`best_scores` takes the mean over slices, then the best threshold: V_Rand and V_Info.

Thinning lets the objects of the prediction grow until one-voxel dams part them, so that a border
which is a little wide costs nothing, and two objects which became one cost what they should::

    truth       proposal    thinned
    1 1 . 2 2   a . . . b   a a 0 b b      0: a dam; a dam voxel in the truth's foreground
    1 1 . 2 2   a . . . b   a a 0 b b      counts as an object of its own

Nothing here opens a file; ``segmentation.evaluate`` does this over whole volumes.

References
----------
Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image segmentation algorithms for
connectomics": V_Rand and V_Info restricted to the foreground, after border thinning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numba import njit

from cvdask.volume.colors import UNANNOTATED

# Divided, not stepped: 0.6 is the double nearest to 0.6, also where 153 / 255 is compared with it.
THRESHOLDS = tuple(k / 10 for k in range(11))

COUNT_SCORES = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "jaccard")

# States of a voxel while basins grow; a basin's label is positive, 0 is not reached yet and
# -1 - label waits in the queue for that label.
OUTSIDE = -1
DAM = -(2**31)


# ---------------------------------------------------------------------------------------------
# Scores from counts


@dataclass(frozen=True)
class Confusion:
    """Voxels of one class against the rest.

    A score whose denominator is 0 is NaN: it asks about voxels that do not exist, such as the
    sensitivity for a class without a voxel in the truth.

    Parameters
    ----------
    tp, fp, fn, tn : int
        True positives, false positives, false negatives, true negatives.

    Examples
    --------
    >>> part = Confusion(tp=3, fp=1, fn=2, tn=4)
    >>> part.f1, part.jaccard, (part + part).n_voxels
    (0.6666666666666666, 0.5, 20)
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def n_voxels(self) -> int:
        """Voxels that were compared."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def accuracy(self) -> float:
        """Share of all voxels that are right."""
        return _ratio(self.tp + self.tn, self.n_voxels)

    @property
    def sensitivity(self) -> float:
        """Share of the truth's voxels that were found (recall)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Share of the other voxels that were left alone."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def ppv(self) -> float:
        """Share of the predicted voxels that are right (precision)."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> float:
        """Share of the voxels predicted as something else that are right."""
        return _ratio(self.tn, self.tn + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and PPV (Dice)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def jaccard(self) -> float:
        """Intersection over union."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    def scores(self) -> dict[str, float]:
        """Return all scores by name, in the order of the paper's figure."""
        return {name: getattr(self, name) for name in COUNT_SCORES}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


PairCounts = dict[tuple[int, int], int]


def count_pairs(truth: np.ndarray, prediction: np.ndarray) -> PairCounts:
    """Count how often each class of the truth met each class of the prediction.

    Parameters
    ----------
    truth, prediction : uint8 arrays of the same shape
        Classes; 255 in the truth is not annotated and is left out.

    Returns
    -------
    dict of (truth, prediction) to int
        Pairs that occur.

    Examples
    --------
    >>> truth = np.array([0, 1, 1, 255], "uint8")
    >>> count_pairs(truth, np.array([0, 1, 0, 1], "uint8"))
    {(0, 0): 1, (1, 0): 1, (1, 1): 1}
    """
    _check_same_shape(truth, prediction, "prediction")
    table = np.zeros((256, 256), np.int64)
    _count_into(table, np.ravel(truth), np.ravel(prediction))
    table[UNANNOTATED] = 0
    rows, columns = np.nonzero(table)
    return {(int(t), int(p)): int(table[t, p]) for t, p in zip(rows, columns, strict=True)}


@njit(nogil=True, cache=True)
def _count_into(table: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> None:
    for i in range(truth.size):
        table[truth[i], prediction[i]] += 1


def add_pairs(parts: Sequence[Mapping[tuple[int, int], int]]) -> PairCounts:
    """Add counts of pairs.

    >>> add_pairs([{(0, 1): 2}, {(0, 1): 3, (1, 1): 1}])
    {(0, 1): 5, (1, 1): 1}
    """
    total: PairCounts = {}
    for part in parts:
        for pair, count in part.items():
            total[pair] = total.get(pair, 0) + count
    return dict(sorted(total.items()))


def confusion(
    pairs: Mapping[tuple[int, int], int], value: int, predicted_value: int | None
) -> Confusion:
    """Turn counts of pairs into one class against the rest.

    Parameters
    ----------
    pairs : mapping
        As from :func:`count_pairs`.
    value : int
        The class in the truth.
    predicted_value : int or None
        The class in the prediction; None where the prediction does not know it.

    Examples
    --------
    >>> confusion({(0, 0): 5, (1, 0): 2, (0, 7): 1, (1, 7): 3}, 1, 7)
    Confusion(tp=3, fp=1, fn=2, tn=5)
    """
    tp = fp = fn = tn = 0
    for (t, p), count in pairs.items():
        if t == value and p == predicted_value:
            tp += count
        elif p == predicted_value:
            fp += count
        elif t == value:
            fn += count
        else:
            tn += count
    return Confusion(tp, fp, fn, tn)


# ---------------------------------------------------------------------------------------------
# Scores from objects


@dataclass(frozen=True)
class ObjectScores:
    """V_Rand and V_Info after thinning, each at its best threshold.

    Parameters
    ----------
    v_rand, v_info : float
        Means over slices, 0 to 1; NaN where no slice has foreground in the truth.
    v_rand_threshold, v_info_threshold : float
        The lowest threshold that gives the best mean.
    n_slices : int
        Slices with foreground in the truth.
    """

    v_rand: float
    v_info: float
    v_rand_threshold: float
    v_info_threshold: float
    n_slices: int


def v_rand_thinned(truth: np.ndarray, probability: np.ndarray) -> float:
    """Score how well objects are kept apart: F-score of pairs of voxels, after thinning.

    See :func:`segmentation_scores`, which gives both scores for the price of one.

    Examples
    --------
    >>> truth = np.array([[[1, 1, 0, 1, 1]]])
    >>> v_rand_thinned(truth, truth), v_rand_thinned(truth, np.ones_like(truth))
    (1.0, 0.6666666666666666)
    """
    return segmentation_scores(truth, probability).v_rand


def v_info_thinned(truth: np.ndarray, probability: np.ndarray) -> float:
    """Score how well objects are kept apart: shared information, after thinning.

    See :func:`segmentation_scores`.

    Examples
    --------
    >>> truth = np.array([[[1, 1, 0, 1, 1]]])
    >>> v_info_thinned(truth, truth)
    1.0
    """
    return segmentation_scores(truth, probability).v_info


def segmentation_scores(truth: np.ndarray, probability: np.ndarray) -> ObjectScores:
    """Compute V_Rand and V_Info of a class after border thinning.

    Per slice and threshold τ = 0, 0.1 … 1: T are the 4-connected components of the truth; the
    proposal, where the probability exceeds τ (strictly, in float64), is thinned; over the truth's
    foreground both are partitions, and dam voxels are parts of their own. The mean over slices
    follows, then the maximum over τ. At the edges of this definition:

    - A slice without foreground in the truth has nothing to compare and is left out; where no
      slice is left, the scores are NaN.
    - An empty proposal, which τ = 1 always gives, has no object that could grow: every voxel is a
      part of its own. V_Rand is then 2 / (1 + Σt² / n) for objects of t voxels, near 0; V_Info is
      2 H(T) / (ln n + H(T)), the least that any prediction gets.
    - A proposal that is foreground everywhere is one object.
    - Two partitions of one part each agree: V_Info, 0 / 0 by its formula, is 1.

    With one object in a slice's truth, a proposal of everything is therefore perfect. Neither
    score looks at the background; F1 does.

    Parameters
    ----------
    truth : (n, Y, X) bool or number
        1 in the class, 0 elsewhere.
    probability : (n, Y, X) bool or number
        0 to 1. Hard classes are a probability of 0 or 1.

    Returns
    -------
    ObjectScores

    Raises
    ------
    ValueError
        When shapes differ or are not (n, Y, X), or a value lies outside its range.
    """
    truth, probability = np.asarray(truth), np.asarray(probability)
    if truth.ndim != 3:
        raise ValueError(f"the scores take slices (n, Y, X). Received: shape {truth.shape}")
    _check_same_shape(truth, probability, "probability")
    rows = [score_slice(*pair) for pair in zip(truth, probability, strict=True)]
    return best_scores([row for row in rows if row is not None])


def best_scores(rows: Sequence[np.ndarray]) -> ObjectScores:
    """Take the mean over slices, then the best threshold.

    Parameters
    ----------
    rows : sequence of (2, 11) float64
        From :func:`score_slice`, in an order that is always the same: floating-point sums.
    """
    if not len(rows):
        return ObjectScores(math.nan, math.nan, math.nan, math.nan, 0)
    mean = np.mean(np.stack(rows), axis=0)  # (2, 11)
    rand, info = (int(k) for k in np.argmax(mean, axis=1))
    return ObjectScores(
        float(mean[0, rand]), float(mean[1, info]), THRESHOLDS[rand], THRESHOLDS[info], len(rows)
    )


def score_slice(truth: np.ndarray, probability: np.ndarray) -> np.ndarray | None:
    """Compare the objects of one slice at every threshold.

    Parameters
    ----------
    truth : (Y, X) of 0 and 1
    probability : (Y, X) of 0 to 1

    Returns
    -------
    (2, 11) float64, or None
        V_Rand and V_Info per threshold; None where the truth has no foreground.

    Raises
    ------
    ValueError
        When a value lies outside its range.
    """
    _check_values(truth, probability)
    objects = _components(truth != 0)
    inside = np.flatnonzero(objects)
    if not len(inside):
        return None
    true_parts = objects.ravel()[inside]
    probability = probability.astype(np.float64, copy=False)
    rows = np.empty((2, len(THRESHOLDS)))
    n_before = -1
    for k, threshold in enumerate(THRESHOLDS):
        proposal = probability > threshold
        n_proposed = int(np.count_nonzero(proposal))
        if n_proposed == n_before:  # proposals shrink as τ grows: as many voxels are the same ones
            rows[:, k] = rows[:, k - 1]
        else:
            rows[:, k] = _compare(true_parts, thin(proposal).ravel()[inside])
        n_before = n_proposed
    return rows


def thin(proposal: np.ndarray) -> np.ndarray:
    """Let the 4-connected objects of a slice grow until one-voxel dams part them.

    The watershed of the inverse of the slice, voxel for voxel that of scikit-image with
    ``watershed_line=True`` and the objects as markers, in about a twentieth of its time. An empty
    slice has no marker and stays 0.

    Parameters
    ----------
    proposal : (Y, X) bool

    Returns
    -------
    (Y, X) int32
        Labels from 1; 0 is a dam.

    Examples
    --------
    >>> thin(np.array([[1, 0, 0, 0, 0, 1]], bool))
    array([[1, 1, 1, 0, 2, 2]], dtype=int32)
    """
    basins = np.pad(_components(proposal), 1, constant_values=OUTSIDE)
    _grow_basins(basins.ravel(), basins.shape[1])
    inner = basins[1:-1, 1:-1]
    return np.where(inner > 0, inner, 0)


def _components(mask: np.ndarray) -> np.ndarray:
    """Label the 4-connected components of a slice, int32 from 1."""
    labels = cc3d.connected_components(np.ascontiguousarray(mask, np.uint8), connectivity=4)
    return labels.astype(np.int32)


@njit(nogil=True, cache=True)
def _grow_basins(basins: np.ndarray, stride: int) -> None:
    """Grow labels over a raveled slice with a border of OUTSIDE, in place.

    On two grey values a watershed is a breadth-first search: voxels are taken in the order in
    which they were first reached. One is a dam when a label other than its own is beside it; what
    lies behind a dam is still reached through it. A voxel is queued once: reached again, it could
    only be what it has become already.

    Where the gap between two objects is even, the order in which the objects' own voxels start
    decides on which side of its middle the dam lies. That order is not free: scikit-image keeps
    all voxels in one binary heap, in which those of the objects are all equal, and a heap hands
    equals back in an order that depends on everything else in it. It is followed here with a heap
    of bare ages, 0 for voxels of objects, only until the last of these has come out.
    """
    n_started = 0
    n_edges = 0
    for i in range(basins.size):
        if basins[i] > 0:
            n_started += 1
            for offset in (-stride, -1, 1, stride):
                n_edges += basins[i + offset] == 0
    # An entry is age · 2³² + voxel; only ages are compared.
    heap = np.empty(n_started + n_edges, np.int64)
    n_heap = 0
    for i in range(basins.size):
        if basins[i] > 0:
            heap[n_heap] = i
            n_heap += 1
    queue = np.empty(basins.size, np.int32)
    n_queued = 0
    age = 0
    for _ in range(n_started):
        i = int(heap[0] & 0xFFFFFFFF)
        n_heap -= 1
        heap[0] = heap[n_heap]
        _sift_down(heap, n_heap)
        for offset in (-stride, -1, 1, stride):
            j = i + offset
            if basins[j] == 0:
                basins[j] = -1 - basins[i]
                queue[n_queued] = j
                n_queued += 1
            elif basins[j] >= OUTSIDE:
                continue
            # No age is below that of its parent, so the last place is the right one.
            age += 1
            heap[n_heap] = age << 32
            n_heap += 1
    k = 0
    while k < n_queued:
        i = queue[k]
        label = -1 - basins[i]
        basins[i] = label
        for offset in (-stride, -1, 1, stride):
            j = i + offset
            if basins[j] == 0:
                basins[j] = -1 - label
                queue[n_queued] = j
                n_queued += 1
            elif basins[j] > 0 and basins[j] != label:
                basins[i] = DAM
        k += 1


@njit(nogil=True, cache=True)
def _sift_down(heap: np.ndarray, n: int) -> None:
    """Move the first entry down to where no child is younger; on equal children to the left."""
    parent = 0
    while True:
        least = parent
        for child in (2 * parent + 1, 2 * parent + 2):
            if child < n and heap[child] >> 32 < heap[least] >> 32:
                least = child
        if least == parent:
            return
        heap[parent], heap[least] = heap[least], heap[parent]
        parent = least


def _compare(true_parts: np.ndarray, parts: np.ndarray) -> tuple[float, float]:
    """Compare two partitions of n voxels.

    Parameters
    ----------
    true_parts : (n,) int32
        Labels from 1.
    parts : (n,) int32
        Labels from 1; every voxel of label 0 is a part of its own.

    Returns
    -------
    v_rand, v_info : float
        2 Σp² / (Σs² + Σt²) in exact integers, and 2 I(S; T) / (H(S) + H(T)).
    """
    n = len(true_parts)
    n_labels = int(parts.max()) + 1
    pair = true_parts.astype(np.int64) * n_labels + parts
    joint = _tally(pair[parts > 0])
    sizes = np.bincount(parts)[1:]
    true_sizes = np.bincount(true_parts)[1:]
    # Parts of one voxel: n0 of them, each with 1² in the sums and 1 · ln 1 = 0 in the entropies.
    n0 = n - int(sizes.sum())
    squares, true_squares, joint_squares = (
        int(np.dot(counts, counts)) for counts in (sizes, true_sizes, joint)
    )
    v_rand = 2 * (joint_squares + n0) / (squares + n0 + true_squares)
    h_s, h_t, h_st = (_entropy(counts, n) for counts in (sizes, true_sizes, joint))
    if h_s + h_t == 0:
        return v_rand, 1.0  # one part each
    # The information is not negative; rounding may leave -1e-16.
    return v_rand, max(0.0, 2 * (h_s + h_t - h_st) / (h_s + h_t))


def _tally(values: np.ndarray) -> np.ndarray:
    """Count each value that occurs, in no particular order."""
    if not len(values):
        return np.zeros(0, np.int64)
    if values.max() <= 4 * len(values):  # a table costs less than sorting
        counts = np.bincount(values)
        return counts[counts > 0]
    return np.unique(values, return_counts=True)[1]


def _entropy(counts: np.ndarray, n: int) -> float:
    """Return the entropy in nats of n voxels in parts of these sizes, all others alone."""
    counts = counts[counts > 1]
    # Exactly 0 for one part, which ln n - ln n also is, but n ln n / n need not be.
    if len(counts) == 1 and counts[0] == n:
        return 0.0
    return math.log(n) - float(np.sum(counts * np.log(counts))) / n


def _check_same_shape(truth: np.ndarray, other: np.ndarray, name: str) -> None:
    if truth.shape != other.shape:
        raise ValueError(
            f"truth and {name} must have the same shape. Received: truth {truth.shape}, "
            f"{name} {other.shape}"
        )


def _check_values(truth: np.ndarray, probability: np.ndarray) -> None:
    if not ((truth == 0) | (truth == 1)).all():
        raise ValueError(
            f"the truth of one class is 1 where the class is and 0 elsewhere. "
            f"Received: {_range_text(truth)}"
        )
    # Written so that NaN fails it too.
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(
            f"a probability lies between 0 and 1; divide uint8 by 255. "
            f"Received: {_range_text(probability)}"
        )


def _range_text(values: np.ndarray[Any, Any]) -> str:
    return f"{values.dtype} from {values.min()} to {values.max()}"
