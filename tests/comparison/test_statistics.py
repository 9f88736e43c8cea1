"""Are the tests those of SciPy and statsmodels, and is the volume their unit?"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.oneway import anova_oneway
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import ttost_ind

from cvdask.comparison.statistics import (
    ALPHA,
    Group,
    Measured,
    Row,
    Units,
    adjust,
    compare_all,
    compare_pair,
    compare_within,
    detectable_difference,
    distributions,
    effect_interval,
    group_permutations,
    hedges_g,
    intraclass_correlation,
    permutation_tests,
)


def volume(values: np.ndarray, n_blocks: int = 10, name: str = "v") -> Measured:
    """Summarise objects that lie one after the other along z."""
    blocks = np.arange(len(values)) * n_blocks // max(1, len(values))
    means = [values[blocks == b].mean() if (blocks == b).any() else np.nan for b in range(n_blocks)]
    return Measured(
        name,
        float(values.mean()) if len(values) else math.nan,
        len(values),
        sd=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        values=values,
        blocks=blocks,
        block_means=np.array(means),
    )


def group(name: str, rng: np.random.Generator, n: int, shift: float = 0.0, **drawn: float) -> Group:
    return Group(name, tuple(volume(draw(rng, shift, **drawn)) for _ in range(n)))


def draw(
    rng: np.random.Generator,
    shift: float = 0.0,
    between: float = 0.0,
    along: float = 0.0,
    n: int = 60,
) -> np.ndarray:
    """Draw the objects of a volume: what they share, what a z-block shares, what is their own."""
    common = shift + between * rng.normal() + np.repeat(along * rng.normal(size=10), n // 10)
    return common + rng.normal(size=n)


def row_of(rows: list[Row], test: str, *, naive: bool = False) -> Row:
    (row,) = [row for row in rows if row.test == test and row.naive == naive]
    return row


# ---------------------------------------------------------------------------------------------
# The same numbers as SciPy and statsmodels


@pytest.fixture
def pair() -> tuple[Group, Group]:
    rng = np.random.default_rng(4)
    return group("a", rng, 4, between=0.5), group("b", rng, 6, shift=0.7, between=0.5)


def test_welch_over_means_of_volumes(pair: tuple[Group, Group]):
    a, b = pair
    main = compare_pair(a, b)[0]
    expected = stats.ttest_ind(b.means, a.means, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (main.test, main.level, main.main, main.n_a, main.n_b) == ("welch", "volume", True, 4, 6)
    assert main.statistic == pytest.approx(expected.statistic)
    assert main.p == pytest.approx(expected.pvalue)
    assert main.df1 == pytest.approx(expected.df)
    assert (main.low, main.high) == pytest.approx((interval.low, interval.high))
    assert main.difference == pytest.approx(b.means.mean() - a.means.mean())


def test_naive_tests_are_those_of_scipy(pair: tuple[Group, Group]):
    a, b = pair
    rows = compare_pair(a, b)
    for test, expected in (
        ("anova", stats.f_oneway(a.values, b.values)),
        ("levene", stats.levene(a.values, b.values)),
        ("ks", stats.ks_2samp(a.values, b.values, method="asymp")),
    ):
        row = row_of(rows, test, naive=True)
        assert (row.statistic, row.p) == pytest.approx((expected.statistic, expected.pvalue))
        assert row.level == "object"
    distance = row_of(rows, "wasserstein", naive=True)
    assert distance.statistic == pytest.approx(stats.wasserstein_distance(a.values, b.values))
    anova = row_of(rows, "anova", naive=True)
    assert (anova.df1, anova.df2) == (1, 598)


@pytest.mark.parametrize("margin", [0.2, 1.0, 3.0])
def test_equivalence_is_that_of_statsmodels(pair: tuple[Group, Group], margin: float):
    a, b = pair
    row = row_of(compare_pair(a, b, margin=margin, relative=False), "equivalence")
    p, _, _ = ttost_ind(b.means, a.means, -margin, margin, usevar="unequal")
    assert row.p == pytest.approx(float(p))
    assert row.margin == margin
    # The 90 % interval inside the margin and p below 5 % say the same.
    assert (row.p < ALPHA) == (-margin < row.low and row.high < margin)


def test_a_relative_margin_is_a_share_of_the_first_mean():
    rng = np.random.default_rng(0)
    a, b = group("a", rng, 3, shift=-20.0), group("b", rng, 3, shift=-20.0)
    row = row_of(compare_pair(a, b, margin=0.1), "equivalence")
    assert row.margin == pytest.approx(0.1 * abs(a.means.mean()))


def test_welch_anova_of_three_groups_is_that_of_statsmodels(pair: tuple[Group, Group]):
    c = group("c", np.random.default_rng(8), 5, shift=0.2, between=0.5)
    rows = compare_all([*pair, c])
    expected = anova_oneway([pair[0].means, pair[1].means, c.means], use_var="unequal")
    welch = row_of(rows, "welch")
    assert (welch.statistic, welch.p) == pytest.approx((expected.statistic, expected.pvalue))
    naive = stats.f_oneway(pair[0].values, pair[1].values, c.values)
    assert row_of(rows, "anova", naive=True).p == pytest.approx(naive.pvalue)
    assert compare_all(pair) == []


def test_volumes_of_one_group_are_compared_over_their_objects(pair: tuple[Group, Group]):
    rows = compare_within(pair[1])
    parts = [one.values for one in pair[1].volumes]
    assert row_of(rows, "anova").p == pytest.approx(stats.f_oneway(*parts).pvalue)
    assert row_of(rows, "levene").p == pytest.approx(stats.levene(*parts).pvalue)
    assert row_of(rows, "anova").comparison == "within b"


def test_holm_is_that_of_statsmodels_and_naive_tests_are_a_family_of_their_own():
    p = [0.01, 0.04, 0.03, 0.5]
    rows = [Row("x", "welch", "volume", main=True, p=value) for value in p]
    rows += [Row("x", "anova", "object", naive=True, p=0.02), Row("x", "ks", "volume", p=0.01)]
    rows.append(Row("x", "none", "volume", main=True))
    adjusted = adjust(rows)
    assert [row.p_holm for row in adjusted[:4]] == pytest.approx(
        list(multipletests(p, method="holm")[1])
    )
    assert adjusted[4].p_holm == 0.02
    assert math.isnan(adjusted[5].p_holm)
    assert math.isnan(adjusted[6].p_holm)


# ---------------------------------------------------------------------------------------------
# Permutations


def test_all_ways_are_taken_where_they_are_few():
    ways = group_permutations(3, 4, np.random.default_rng(0))
    assert {tuple(np.flatnonzero(way)) for way in ways} == set(combinations(range(7), 3))
    assert ways[0].tolist() == [True] * 3 + [False] * 4


def test_many_ways_are_drawn_beside_the_true_one():
    ways = group_permutations(20, 30, np.random.default_rng(0), n_resamples=500)
    assert ways.shape == (501, 50)
    assert (ways.sum(axis=1) == 20).all()
    assert ways[0, :20].all()
    assert len(np.unique(ways, axis=0)) == 501


def test_exact_permutation_is_that_of_scipy(pair: tuple[Group, Group]):
    a, b = (Units(one.means, tuple(v.values for v in one.volumes)) for one in pair)
    found = permutation_tests(a, b, np.random.default_rng(0))
    expected = stats.permutation_test(
        (a.means, b.means),
        lambda x, y, axis: y.mean(axis) - x.mean(axis),
        vectorized=True,
        n_resamples=np.inf,
    )
    assert found["permutation"][0] == pytest.approx(expected.statistic)
    # SciPy doubles the smaller tail, ours counts both.
    tails = np.abs(expected.null_distribution) >= abs(expected.statistic) * (1 - 1e-9)
    assert found["permutation"][1] == pytest.approx(tails.mean())


def test_distances_of_two_volumes_are_those_of_scipy():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=40), rng.normal(0.5, 2, size=70)
    units = (Units(np.array([x.mean()]), (x,)), Units(np.array([y.mean()]), (y,)))
    found = permutation_tests(*units, np.random.default_rng(0))
    assert found["ks"][0] == pytest.approx(stats.ks_2samp(x, y).statistic)
    assert found["wasserstein"][0] == pytest.approx(stats.wasserstein_distance(x, y))


@given(
    st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), min_size=1, max_size=4
    )
)
def test_distributions_are_counts_of_values_no_larger(parts: list[list[float]]):
    places, heights = distributions([np.array(part) for part in parts])
    assert (np.diff(places) > 0).all()
    for part, height in zip(parts, heights, strict=True):
        counts = [sum(v <= place for v in part) / len(part) for place in places]
        assert height == pytest.approx(counts)


def test_a_distribution_of_many_values_is_known_at_quantiles():
    values = np.random.default_rng(0).normal(size=10_000)
    places, heights = distributions([values])
    assert len(places) == 257
    assert heights[0] == pytest.approx(np.linspace(0, 1, 257), abs=1e-3)


# ---------------------------------------------------------------------------------------------
# Sizes


def test_effects_are_known_ones():
    a, b = np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])
    sd = math.sqrt(5 / 3)
    assert hedges_g(a, b) == pytest.approx(2 / sd * (1 - 3 / 23))
    assert hedges_g(b, a) == -hedges_g(a, b)
    assert math.isnan(hedges_g(a * 0, b * 0))


def test_the_bootstrap_covers_the_true_effect_and_needs_four():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(60):
        a, b = rng.normal(size=15), rng.normal(1.0, size=15)
        low, high = effect_interval(a, b, rng, n_resamples=400)
        hits += low <= 1.0 <= high
    assert hits >= 50  # 57 are expected, of which a percentile bootstrap keeps most
    assert math.isnan(effect_interval(np.arange(3.0), np.arange(9.0), rng)[0])


@pytest.mark.parametrize(("n_a", "n_b"), [(2, 2), (3, 9), (1, 25), (100, 200)])
def test_the_detectable_difference_has_the_power_it_says(n_a: int, n_b: int):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=n_a), rng.normal(size=n_b)
    spread = math.sqrt((a.var() * n_a + b.var() * n_b) / (n_a + n_b - 2))
    effect = detectable_difference(a, b) / spread
    power = TTestIndPower().power(effect, n_a, ALPHA, ratio=n_b / n_a)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_intraclass_correlation_finds_the_share_between_volumes():
    rng = np.random.default_rng(2)
    alike = intraclass_correlation(group("a", rng, 60))
    apart = intraclass_correlation(group("a", rng, 60, between=1.0))
    assert alike == pytest.approx(0, abs=0.03)
    assert apart == pytest.approx(0.5, abs=0.12)


# ---------------------------------------------------------------------------------------------
# Which unit


def test_a_single_volume_is_held_against_the_spread_of_many():
    rng = np.random.default_rng(0)
    a, b = group("real", rng, 1), group("generated", rng, 25, between=0.5)
    rows = compare_pair(a, b, margin=0.5, relative=False)
    expected = stats.ttest_ind(b.means, a.means, equal_var=True)
    assert rows[0].test == "student"
    assert rows[0].p == pytest.approx(expected.pvalue)
    # One of 26 is the most extreme at best.
    exact = np.abs(np.append(b.means, a.means) - np.append(b.means, a.means).mean())
    assert row_of(rows, "permutation").p == pytest.approx((exact >= exact[-1] - 1e-12).mean())
    tost = ttost_ind(b.means, a.means, -0.5, 0.5, usevar="pooled")[0]
    assert row_of(rows, "equivalence").p == pytest.approx(float(tost))


def test_two_single_volumes_are_compared_by_z_blocks_and_it_says_so():
    rng = np.random.default_rng(0)
    a, b = group("a", rng, 1), group("b", rng, 1, shift=2.0)
    rows = compare_pair(a, b, margin=0.1, relative=False)
    main = rows[0]
    assert (main.test, main.level, main.n_a, main.n_b) == ("permutation", "z-block", 10, 10)
    assert main.p < 0.001
    assert "these volumes" in main.note
    expected = stats.permutation_test(
        (a.volumes[0].block_means, b.volumes[0].block_means),
        lambda x, y, axis: y.mean(axis) - x.mean(axis),
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    assert main.statistic == pytest.approx(expected.statistic)
    assert main.p == pytest.approx(expected.pvalue, abs=2e-3)


def test_a_volume_measure_without_blocks_cannot_tell_two_volumes_apart():
    a, b = (Group(name, (Measured("v", mean),)) for name, mean in (("a", 1.0), ("b", 9.0)))
    (row,) = compare_pair(a, b)
    assert (row.test, row.main) == ("none", True)
    assert "too few" in row.note


def test_volumes_with_few_objects_are_left_out():
    rng = np.random.default_rng(0)
    poor = volume(rng.normal(100.0, size=4))
    a, b = group("a", rng, 3), group("b", rng, 3)
    with_poor = Group("b", (*b.volumes, poor))
    assert compare_pair(a, with_poor)[0] == compare_pair(a, b)[0]
    (none,) = compare_pair(a, Group("b", (poor,)))
    assert none.main
    assert none.test == "none"
    assert "5" in none.note
    assert "b has no volume" in none.note


def test_a_group_without_spread_is_compared_without_warnings():
    rng = np.random.default_rng(0)
    alike = Group("a", tuple(volume(np.full(20, 0.1)) for _ in range(4)))
    other = group("b", rng, 4, shift=1.0, between=0.3)
    main = next(row for row in compare_pair(alike, other) if row.main)
    expected = stats.ttest_1samp([v.mean for v in other.volumes], 0.1)
    assert main.p == pytest.approx(expected.pvalue)


def test_constant_measures_are_not_tested():
    same = Group("a", tuple(volume(np.full(20, 0.3)) for _ in range(3)))
    (row,) = compare_pair(same, Group("b", same.volumes), margin=0.1)
    assert row.test == "none"
    assert math.isnan(row.p)
    assert "same" in row.note
    assert compare_within(same) == []


def test_equal_means_within_groups_give_no_p_but_a_reason():
    a = Group("a", tuple(Measured("v", 1.0) for _ in range(3)))
    b = Group("b", tuple(Measured("v", 2.0) for _ in range(3)))
    main = compare_pair(a, b, margin=0.1)[0]
    assert math.isnan(main.p)
    assert "same mean" in main.note


def test_seeds_decide_the_draws_and_nothing_else():
    rng = np.random.default_rng(0)
    a, b = group("a", rng, 12), group("b", rng, 12, shift=0.1)
    assert compare_pair(a, b, seed=1) == compare_pair(a, b, seed=1)
    first, second = (row_of(compare_pair(a, b, seed=s), "permutation") for s in (1, 2))
    assert first.p != second.p
    assert first.p == pytest.approx(second.p, abs=0.02)


# ---------------------------------------------------------------------------------------------
# False positives: ours nominal, the naive test's not


def share_of_false_positives(
    n_runs: int, seed: int, n_volumes: int, **drawn: float
) -> dict[str, float]:
    """Compare groups of one distribution again and again; return how often p is below 5 %."""
    rng = np.random.default_rng(seed)
    hits = {"main": 0, "permutation": 0, "naive": 0}
    for run in range(n_runs):
        a, b = group("a", rng, n_volumes, **drawn), group("b", rng, n_volumes, **drawn)
        rows = compare_pair(a, b, seed=run)
        hits["main"] += rows[0].p < ALPHA
        hits["naive"] += row_of(rows, "anova", naive=True).p < ALPHA
        shuffled = [row for row in rows if row.test in ("permutation", "ks") and not row.naive]
        hits["permutation"] += shuffled[-1].p < ALPHA
    return {name: n / n_runs for name, n in hits.items()}


def largest_share(n_runs: int) -> float:
    """Return what a nominal test exceeds once in a thousand times."""
    return float(stats.binom.ppf(0.999, n_runs, ALPHA)) / n_runs


def test_with_volumes_that_differ_ours_is_nominal_and_the_naive_one_is_not():
    shares = share_of_false_positives(150, 11, n_volumes=5, between=0.5)
    assert shares["main"] <= largest_share(150)
    assert shares["permutation"] <= largest_share(150)
    assert shares["naive"] > 0.3


def test_with_single_volumes_that_vary_along_z_ours_is_nominal_and_the_naive_one_is_not():
    shares = share_of_false_positives(60, 12, n_volumes=1, along=0.7)
    assert shares["main"] <= largest_share(60)
    assert shares["naive"] > 0.2


def test_a_true_difference_is_found():
    rng = np.random.default_rng(5)
    found = [
        compare_pair(group("a", rng, 6, between=0.3), group("b", rng, 6, shift=1.0, between=0.3))[0]
        for _ in range(20)
    ]
    assert sum(row.p < ALPHA for row in found) >= 18
