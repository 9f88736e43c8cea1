"""Do groups of volumes differ in a measure, by how much, and could a difference have been missed?

Objects of one volume resemble each other: they share a cell, a fixation, a segmentation. A test
that takes each of a thousand objects for an observation of its own finds differences where there
are none. So the *volume* is the unit:

1. :func:`choose_units`. Two volumes or more in both groups: their means are the observations.
   One volume against four or more: it is held against their spread. Otherwise the volumes are cut
   into ranges of slices, *z-blocks*, and what is said holds for these volumes, not for their kind.
2. :func:`compare_pair` tests the observations: Welch's t or, for a single volume, Student's; the
   permutation of volumes (or z-blocks) among the groups, for the means and for the distributions
   (Kolmogorov–Smirnov, Wasserstein); equivalence within a stated margin by two one-sided tests;
   effect size with a bootstrap interval; the smallest difference that would have been found.
3. Beside them stand the tests of published tables, one-way ANOVA and Levene's over single objects,
   called *naive*. :func:`compare_all` tests more than two groups at once, :func:`compare_within`
   the volumes of one group, and tells how alike objects of one volume are.
4. :func:`adjust` corrects the p-values for their number, by Holm's method: main tests in one
   family, naive ones in another.

The tests are SciPy's and statsmodels'. Only the permutations are drawn here, because SciPy's refuse
a group of one, and means and distributions can share them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import brentq

ALPHA = 0.05
POWER = 0.8
N_RESAMPLES = 9999
# A volume with fewer objects says too little of its distribution to be an observation.
FEWEST_OBJECTS = 5
# A single volume is held against at least so many others.
FEWEST_OTHERS = 4
# Fewer volumes than this are too few to draw from with replacement.
FEWEST_DRAWN = 4
# Places at which distributions are compared: quantiles of all values together.
N_PLACES = 257


@dataclass(frozen=True)
class Measured:
    """One measure of one class in one volume.

    Parameters
    ----------
    volume : str
        Name of the volume.
    mean : float
        Of all finite values; for a measure of the whole volume its value.
    n : int
        Finite values; 0 for a measure of the whole volume.
    n_missing, n_infinite : int
        Values that are left out: NaN or null, and infinite.
    sd : float
        Standard deviation between the values, with n - 1.
    values : (k,) float64
        The finite values, or every second, fourth … of very many; empty for a measure of the whole
        volume.
    blocks : (k,) int
        z-block of each.
    block_means : (b,) float64
        Mean of each z-block; NaN where it has no value. Empty where there are none.
    """

    volume: str
    mean: float
    n: int = 0
    n_missing: int = 0
    n_infinite: int = 0
    sd: float = math.nan
    values: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    blocks: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    block_means: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def of_objects(self) -> bool:
        """Whether there are single objects behind the mean."""
        return self.n > 0


@dataclass(frozen=True)
class Row:
    """One test, as a row of the table of all tests.

    Parameters
    ----------
    comparison : str
        ``control – diabetic``, ``all groups`` or ``within control``.
    test : str
        ``welch``, ``student``, ``permutation``, ``ks``, ``wasserstein``, ``equivalence``,
        ``anova``, ``levene``; ``none`` where nothing could be tested, and ``note`` says why.
    level : str
        What an observation is: ``volume``, ``z-block`` or ``object``.
    naive : bool
        Whether objects are taken for independent.
    main : bool
        Whether this is the test that answers the comparison; one for each.
    n_a, n_b : int
        Observations in each group; for more than two groups all of them are in ``n_a``.
    statistic, df1, df2, p, p_holm : float
    mean_a, mean_b : float
        Means of the observations.
    difference, low, high : float
        ``mean_b - mean_a`` with its 95 % interval (90 % for equivalence).
    effect, effect_low, effect_high : float
        Hedges' g of b over a, with a 95 % bootstrap interval. For ``within``: the intraclass
        correlation, the share of the variance that lies between volumes.
    margin : float
        Largest difference that still counts as the same, for equivalence.
    detectable : float
        Smallest difference found with 80 % power at 5 %, in the unit of the measure.
    note : str
    """

    comparison: str
    test: str
    level: str
    group_a: str = ""
    group_b: str = ""
    class_: str = ""
    measure: str = ""
    unit: str = ""
    naive: bool = False
    main: bool = False
    n_a: int = 0
    n_b: int = 0
    statistic: float = math.nan
    df1: float = math.nan
    df2: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    mean_a: float = math.nan
    mean_b: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    effect: float = math.nan
    effect_low: float = math.nan
    effect_high: float = math.nan
    margin: float = math.nan
    detectable: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Group:
    """The volumes of one group, each with the same measure of the same class."""

    name: str
    volumes: tuple[Measured, ...]

    def observed(self) -> Group:
        """Leave out volumes with too few objects to be an observation, and those without value."""
        kept = tuple(
            one
            for one in self.volumes
            if math.isfinite(one.mean) and (not one.of_objects or one.n >= FEWEST_OBJECTS)
        )
        return replace(self, volumes=kept)

    @property
    def means(self) -> np.ndarray:
        """Mean of each volume: (volumes,) float64."""
        return np.array([one.mean for one in self.volumes])

    @property
    def values(self) -> np.ndarray:
        """Values of all objects: (objects,) float64."""
        return np.concatenate([one.values for one in self.volumes] or [np.empty(0)])


# ---------------------------------------------------------------------------------------------
# Observations


@dataclass(frozen=True)
class Units:
    """What the tests take for independent observations of one group.

    Parameters
    ----------
    means : (n,) float64
    parts : tuple of (k,) float64
        Values of the objects of each; empty for measures of whole volumes.
    """

    means: np.ndarray
    parts: tuple[np.ndarray, ...] = ()


def choose_units(a: Group, b: Group) -> tuple[str, str, Units, Units]:
    """Decide what an observation is when two groups are compared, and which test is the main one.

    Returns
    -------
    level : str
        ``volume`` or ``z-block``.
    test : str
        ``welch``, ``student`` or ``permutation``.
    units_a, units_b : Units

    Examples
    --------
    >>> def group(name, *means):
    ...     return Group(name, tuple(Measured("", m, block_means=np.array([m, m])) for m in means))
    >>> choose_units(group("a", 1, 2), group("b", 3, 4))[:2]
    ('volume', 'welch')
    >>> choose_units(group("a", 1), group("b", 2, 3, 4, 5))[:2]
    ('volume', 'student')
    >>> choose_units(group("a", 1), group("b", 3))[:2]
    ('z-block', 'permutation')
    """
    fewest, most = sorted((len(a.volumes), len(b.volumes)))
    if fewest >= 2:
        return "volume", "welch", _by_volume(a), _by_volume(b)
    if fewest == 1 and most >= FEWEST_OTHERS:
        return "volume", "student", _by_volume(a), _by_volume(b)
    return "z-block", "permutation", _by_block(a), _by_block(b)


def _by_volume(group: Group) -> Units:
    parts = tuple(one.values for one in group.volumes) if _has_objects(group) else ()
    return Units(group.means, parts)


def _by_block(group: Group) -> Units:
    means, parts = [], []
    for one in group.volumes:
        for block in np.flatnonzero(np.isfinite(one.block_means)):
            means.append(one.block_means[block])
            parts.append(one.values[one.blocks == block])
    # Very many values are thinned, and a block may lose all of its few: its mean stays.
    whole = _has_objects(group) and all(len(part) for part in parts)
    return Units(np.array(means), tuple(parts) if whole else ())


def _has_objects(group: Group) -> bool:
    return bool(group.volumes) and all(one.of_objects for one in group.volumes)


# ---------------------------------------------------------------------------------------------
# Two groups


def compare_pair(
    a: Group, b: Group, *, margin: float | None = None, relative: bool = True, seed: int = 0
) -> list[Row]:
    """Compare one measure between two groups of volumes.

    Parameters
    ----------
    a, b : Group
        ``a`` is what ``b`` is held against.
    margin : float, optional
        Differences up to this count as the same; without it, equivalence is not tested.
    relative : bool
        The margin is a share of the mean of ``a``, else in the unit of the measure.
    seed : int
        Of permutations and bootstrap.

    Returns
    -------
    list of Row
        The main test first; where none could be made, a row that says why in its place.
    """
    comparison = f"{a.name} – {b.name}"
    blank = Row(comparison, "none", "volume", a.name, b.name)
    kept_a, kept_b = a.observed(), b.observed()
    naive = _naive_pair(blank, kept_a, kept_b)
    for group, kept in ((a, kept_a), (b, kept_b)):
        if not kept.volumes:
            reason = (
                f"{group.name} has no volume with at least {FEWEST_OBJECTS} objects that have a "
                f"value"
            )
            return [replace(blank, main=True, note=reason)]
    level, test, units_a, units_b = choose_units(kept_a, kept_b)
    blank = replace(blank, level=level, n_a=len(units_a.means), n_b=len(units_b.means))
    if min(blank.n_a, blank.n_b) < 1 or (level == "z-block" and blank.n_a + blank.n_b < 6):
        reason = "too few volumes, and too few z-blocks to stand for them"
        return [replace(blank, main=True, note=reason), *naive]
    if _is_constant(np.concatenate([units_a.means, units_b.means, kept_a.values, kept_b.values])):
        return [replace(blank, main=True, note="all values are the same: nothing to test")]
    rng = np.random.default_rng(seed)
    tested = _test_units(blank, test, units_a, units_b, rng)
    if margin is not None:
        width = abs(margin * float(units_a.means.mean())) if relative else margin
        tested.append(_equivalence(blank, test, units_a.means, units_b.means, width))
    if level == "z-block":
        tested[0] = replace(
            tested[0],
            note="holds for these volumes, not for their groups: there are too few of them",
        )
    return [*tested, *naive]


def _is_constant(values: np.ndarray) -> bool:
    """Tell whether values differ by no more than rounding."""
    largest = float(np.abs(values).max(initial=0.0))
    return float(np.ptp(values)) <= 1e-12 * largest


def _test_units(blank: Row, test: str, a: Units, b: Units, rng: np.random.Generator) -> list[Row]:
    """Return the row of the main test, then the permutations."""
    permuted = permutation_tests(a, b, rng)
    effect = hedges_g(a.means, b.means)
    low, high = effect_interval(a.means, b.means, rng)
    main = replace(
        blank,
        test=test,
        main=True,
        mean_a=float(a.means.mean()),
        mean_b=float(b.means.mean()),
        difference=float(b.means.mean() - a.means.mean()),
        effect=effect,
        effect_low=low,
        effect_high=high,
        detectable=detectable_difference(a.means, b.means),
    )
    rows = []
    for name, (statistic, p) in permuted.items():
        if name == test:
            main = replace(main, statistic=statistic, p=p)
        else:
            rows.append(replace(blank, test=name, statistic=statistic, p=p))
    if test != "permutation":
        main = _with_t(main, a.means, b.means, equal_variance=test == "student")
    else:
        main = _with_interval(main, a.means, b.means)
    return [main, *rows]


def _with_t(row: Row, a: np.ndarray, b: np.ndarray, *, equal_variance: bool) -> Row:
    if _no_spread(a, b):
        return replace(row, note="the volumes of each group have the very same mean")
    result = _t_test(b, a, equal_var=equal_variance)
    interval = result.confidence_interval(0.95)
    return replace(
        row,
        statistic=float(result.statistic),
        df1=float(result.df),
        p=float(result.pvalue),
        low=float(interval.low),
        high=float(interval.high),
    )


def _t_test(b: np.ndarray, a: np.ndarray, **options: Any) -> Any:
    """Compare two means by Student's or Welch's t; one of the groups may have no spread."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        return stats.ttest_ind(b, a, **options)


def _with_interval(row: Row, a: np.ndarray, b: np.ndarray) -> Row:
    """Add the interval of Welch's t to the difference of z-blocks."""
    if min(len(a), len(b)) < 2 or _no_spread(a, b):
        return row
    interval = _t_test(b, a, equal_var=False).confidence_interval(0.95)
    return replace(row, low=float(interval.low), high=float(interval.high))


def _no_spread(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether there is no spread within groups to hold a difference against."""
    return all(len(part) < 2 or _is_constant(part) for part in (a, b))


def _equivalence(blank: Row, test: str, a: np.ndarray, b: np.ndarray, margin: float) -> Row:
    """Test by two one-sided tests whether the means differ by less than a margin.

    References
    ----------
    D. J. Schuirmann, J. Pharmacokinet. Biopharm. 15:657 (1987).
    """
    row = replace(blank, test="equivalence", margin=margin)
    if min(len(a), len(b)) < (1 if test == "student" else 2) or _no_spread(a, b):
        return replace(row, note="too few volumes for a test of equivalence")
    equal = test == "student"
    above = _t_test(b + margin, a, equal_var=equal, alternative="greater")
    below = _t_test(b - margin, a, equal_var=equal, alternative="less")
    weaker = above if above.pvalue >= below.pvalue else below
    interval = _t_test(b, a, equal_var=equal).confidence_interval(1 - 2 * ALPHA)
    return replace(
        row,
        statistic=float(weaker.statistic),
        df1=float(weaker.df),
        p=float(weaker.pvalue),
        difference=float(b.mean() - a.mean()),
        low=float(interval.low),
        high=float(interval.high),
    )


def _naive_pair(blank: Row, a: Group, b: Group) -> list[Row]:
    """Return the tests over single objects, as published tables have them."""
    values_a, values_b = a.values, b.values
    if min(len(values_a), len(values_b)) < FEWEST_OBJECTS:
        return []
    if _is_constant(np.concatenate([values_a, values_b])):
        return []
    rows = _naive_rows(blank, [values_a, values_b])
    # Exact p-values are for small samples; these are sampled in any case.
    ks = stats.ks_2samp(values_a, values_b, method="asymp")
    distance = stats.wasserstein_distance(values_a, values_b)
    row = replace(rows[0], df1=math.nan, df2=math.nan)
    rows.append(replace(row, test="ks", statistic=float(ks.statistic), p=float(ks.pvalue)))
    rows.append(replace(row, test="wasserstein", statistic=float(distance), p=math.nan))
    return rows


def _naive_rows(blank: Row, samples: Sequence[np.ndarray]) -> list[Row]:
    """Return one-way ANOVA and Levene's test (around medians) over single objects."""
    counts = [len(sample) for sample in samples]
    pair = len(samples) == 2 and bool(blank.group_b)
    row = replace(
        blank,
        level="object",
        naive=True,
        n_a=counts[0] if pair else sum(counts),
        n_b=counts[1] if pair else 0,
        mean_a=float(samples[0].mean()) if pair else math.nan,
        mean_b=float(samples[1].mean()) if pair else math.nan,
        df1=float(len(samples) - 1),
        df2=float(sum(counts) - len(samples)),
    )
    found = []
    for test, run in (("anova", stats.f_oneway), ("levene", stats.levene)):
        statistic, p = _quietly(run, samples)
        found.append(replace(row, test=test, statistic=statistic, p=p))
    return found


def _quietly(run: Callable[..., Any], samples: Sequence[np.ndarray]) -> tuple[float, float]:
    """Run a test; NaN instead of a warning where each sample is constant."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = run(*samples)
    return float(found.statistic), float(found.pvalue)


# ---------------------------------------------------------------------------------------------
# Many groups, and within one


def compare_all(groups: Sequence[Group]) -> list[Row]:
    """Test whether any of several groups differs: Welch's ANOVA over volumes, and naive.

    Returns
    -------
    list of Row
        Empty for fewer than three groups, where a pair says it all.
    """
    if len(groups) < 3:
        return []
    kept = [group.observed() for group in groups]
    blank = Row("all groups", "none", "volume")
    rows = []
    means = [group.means for group in kept]
    if all(len(m) >= 2 for m in means) and not any(_is_constant(m) for m in means):
        # Late: it takes a second to load, and a figure needs none of it.
        from statsmodels.stats.oneway import anova_oneway

        found = anova_oneway(means, use_var="unequal")
        rows.append(
            replace(
                blank,
                test="welch",
                main=True,
                n_a=sum(map(len, means)),
                statistic=float(found.statistic),
                df1=float(found.df_num),
                df2=float(found.df_denom),
                p=float(found.pvalue),
            )
        )
    return rows + _naive_many(blank, [group.values for group in kept])


def compare_within(group: Group) -> list[Row]:
    """Test whether the volumes of one group differ from each other, over their objects.

    Here a volume is what is compared, and its objects are the observations. The column ``effect``
    is the intraclass correlation: the share of the variance between objects that lies between
    volumes, 0 where volumes are alike. With it, n objects a volume weigh only as much as
    n / (1 + (n - 1) · icc) that were independent.
    """
    kept = group.observed()
    blank = Row(f"within {group.name}", "none", "object", group_a=group.name)
    rows = _naive_many(blank, [one.values for one in kept.volumes])
    return [replace(row, effect=intraclass_correlation(kept), naive=False) for row in rows]


def _naive_many(blank: Row, samples: Sequence[np.ndarray]) -> list[Row]:
    if len(samples) < 2 or any(len(sample) < FEWEST_OBJECTS for sample in samples):
        return []
    if _is_constant(np.concatenate(samples)):
        return []
    return _naive_rows(blank, samples)


def intraclass_correlation(group: Group) -> float:
    """Estimate the share of the variance that lies between volumes, from one-way ANOVA.

    References
    ----------
    Donner, Int. Stat. Rev. 54:67 (1986), the ANOVA estimator for groups of unequal size.
    """
    counts = np.array([one.n for one in group.volumes], float)
    if len(counts) < 2 or counts.min() < 2:
        return math.nan
    means, sds = group.means, np.array([one.sd for one in group.volumes])
    total = counts.sum()
    grand = (counts * means).sum() / total
    between = (counts * (means - grand) ** 2).sum() / (len(counts) - 1)
    within = ((counts - 1) * sds**2).sum() / (total - len(counts))
    size = (total - (counts**2).sum() / total) / (len(counts) - 1)
    share = between + (size - 1) * within
    return float((between - within) / share) if share > 0 else math.nan


# ---------------------------------------------------------------------------------------------
# Permutations


def group_permutations(
    n_a: int, n_b: int, rng: np.random.Generator, n_resamples: int = N_RESAMPLES
) -> np.ndarray:
    """Put observations into two groups in every way, or in many ways drawn at random.

    Returns
    -------
    (ways, n_a + n_b) bool
        True in the first group. All ways where they are no more than ``n_resamples``, else that
        many and the true one, so that the share of ways at least as extreme is the p-value.

    Examples
    --------
    >>> group_permutations(1, 2, np.random.default_rng(0)).astype(int)
    array([[1, 0, 0],
           [0, 1, 0],
           [0, 0, 1]])
    """
    n = n_a + n_b
    if math.comb(n, n_a) <= n_resamples:
        chosen = np.array(list(combinations(range(n), n_a)))
    else:
        drawn = rng.permuted(np.tile(np.arange(n), (n_resamples, 1)), axis=1)[:, :n_a]
        chosen = np.vstack([np.arange(n_a), drawn])
    ways = np.zeros((len(chosen), n), bool)
    np.put_along_axis(ways, chosen, True, axis=1)
    return ways


def permutation_tests(
    a: Units, b: Units, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Test means and distributions by putting observations into groups in other ways.

    The distribution of a group is the mean of the distributions of its observations: a volume with
    many objects does not outweigh the others.

    Returns
    -------
    dict of str to (statistic, p)
        ``permutation``: difference of the means. Where objects are known, also ``ks``: the largest
        difference between the distributions, and ``wasserstein``: the area between them.
    """
    ways = group_permutations(len(a.means), len(b.means), rng)
    weights = ways / ways.sum(axis=1, keepdims=True) - ~ways / (~ways).sum(axis=1, keepdims=True)
    found = {"permutation": _extreme(-(weights @ np.concatenate([a.means, b.means])))}
    if not (a.parts and b.parts):
        return found
    places, heights = distributions([*a.parts, *b.parts])
    gaps, widths = np.empty(len(ways)), np.empty(len(ways))
    steps = np.diff(places)
    for start in range(0, len(ways), 2048):  # bounds memory: 2048 × 257 numbers
        apart = np.abs(weights[start : start + 2048] @ heights)
        gaps[start : start + 2048] = apart.max(axis=1)
        widths[start : start + 2048] = apart[:, :-1] @ steps
    return {**found, "ks": _extreme(gaps), "wasserstein": _extreme(widths)}


def _extreme(statistics: np.ndarray) -> tuple[float, float]:
    """Return the first statistic, and the share that lies at least as far from 0."""
    sizes = np.abs(statistics)
    # Sums in another order may round to another last digit.
    return float(statistics[0]), float((sizes >= sizes[0] * (1 - 1e-9)).mean())


def distributions(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return cumulative distributions at common places.

    Parameters
    ----------
    parts : sequence of (k,) float64

    Returns
    -------
    places : (m,) float64
        Quantiles of all values together; every value where there are few.
    heights : (len(parts), m) float64
        Share of each part's values that are no larger.
    """
    pooled = np.unique(np.concatenate(parts))
    if len(pooled) > N_PLACES:
        everything = np.concatenate(parts)
        pooled = np.unique(np.quantile(everything, np.linspace(0, 1, N_PLACES)))
    counts = [np.searchsorted(np.sort(part), pooled, side="right") / len(part) for part in parts]
    return pooled, np.stack(counts)


# ---------------------------------------------------------------------------------------------
# Sizes


def hedges_g(a: np.ndarray, b: np.ndarray) -> float:
    """Return the difference of means in standard deviations, corrected for small samples.

    References
    ----------
    L. V. Hedges, J. Educ. Stat. 6:107 (1981).

    >>> round(hedges_g(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])), 3)
    0.8
    """
    spread = _pooled_sd(a, b)
    if not spread > 0:
        return math.nan
    return float((b.mean() - a.mean()) / spread * _small_sample(len(a) + len(b) - 2))


def _small_sample(df: int) -> float:
    return 1 - 3 / (4 * df - 1)


def _pooled_sd(a: np.ndarray, b: np.ndarray) -> float:
    df = len(a) + len(b) - 2
    if df < 1:
        return math.nan
    squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
    return math.sqrt(squares / df)


def effect_interval(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, n_resamples: int = 1999
) -> tuple[float, float]:
    """Return the 95 % interval of :func:`hedges_g`: percentiles of a bootstrap within groups.

    NaN where a group has fewer than four observations, too few to draw from.
    """
    if min(len(a), len(b)) < FEWEST_DRAWN or _no_spread(a, b):
        return math.nan, math.nan
    drawn_a = rng.choice(a, (n_resamples, len(a)))
    drawn_b = rng.choice(b, (n_resamples, len(b)))
    df = len(a) + len(b) - 2
    squares = drawn_a.var(axis=1) * len(a) + drawn_b.var(axis=1) * len(b)
    # A draw of one volume, again and again, has no spread: its effect is beyond all others.
    with np.errstate(divide="ignore", invalid="ignore"):
        effects = (drawn_b.mean(axis=1) - drawn_a.mean(axis=1)) / np.sqrt(squares / df)
    effects = np.sort(effects[~np.isnan(effects)]) * _small_sample(df)
    low, high = np.quantile(effects, [0.025, 0.975], method="nearest")
    return float(low), float(high)


def detectable_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the smallest difference of means that so many observations find.

    Power 80 %, level 5 %, for the spread that was seen; in the unit of the measure.
    """
    spread = _pooled_sd(a, b)
    if not spread > 0:
        return math.nan
    return _detectable_effect(len(a), len(b)) * spread


@lru_cache(maxsize=1024)
def _detectable_effect(n_a: int, n_b: int) -> float:
    """Solve the power of a two-sided t-test for the effect, in standard deviations."""
    df = n_a + n_b - 2
    critical = stats.t.isf(ALPHA / 2, df)
    # The other tail, below 1e-4 of the power at 80 %, is left out.
    offset = brentq(lambda nc: stats.nct.sf(critical, df, nc) - POWER, 0, 3 * critical + 10)
    return float(offset * math.sqrt(1 / n_a + 1 / n_b))


# ---------------------------------------------------------------------------------------------
# Many tests


def adjust(rows: Sequence[Row]) -> list[Row]:
    """Correct p-values for their number by Holm's method.

    Main tests form one family, naive tests of a kind another each; the rest are not corrected.
    """
    from statsmodels.stats.multitest import multipletests

    out = list(rows)
    families: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        name = "main" if row.main else row.test if row.naive else ""
        if name and not math.isnan(row.p):
            families.setdefault(name, []).append(place)
    for places in families.values():
        corrected = multipletests([rows[place].p for place in places], method="holm")[1]
        for place, p in zip(places, corrected, strict=True):
            out[place] = replace(rows[place], p_holm=float(p))
    return out
