"""Shortest paths: against trying every order, and where the shortest is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from cvdask.synthesis import tour
from cvdask.synthesis.jaccard import jaccard_matrix
from cvdask.synthesis.local_search import DEPTH, improve
from cvdask.synthesis.one_tree import likely_neighbours
from cvdask.synthesis.tour import Path, shortest_path
from tests.synthesis.test_one_tree import drawn


def length_of(distances: np.ndarray, order: Any) -> float:
    return math.fsum(distances[a, b] for a, b in itertools.pairwise(order))


def checked(distances: np.ndarray, path: Path) -> Path:
    """What holds of every path."""
    n = len(distances)
    assert sorted(path.order.tolist()) == list(range(n))
    assert path.length == length_of(distances, path.order)
    assert path.steps.tolist() == [distances[a, b] for a, b in itertools.pairwise(path.order)]
    assert 0 <= path.bound <= path.length
    assert path.gap == pytest.approx(
        (path.length - path.bound) / path.bound if path.length else 0.0
    )
    assert path.worst_step == max(path.steps, default=0.0)
    reverse = path.order[::-1]
    places = np.arange(n)
    assert (places * path.order).sum() >= (places * reverse).sum()
    return path


def test_four_cities_by_hand():
    places = np.array([5.0, 1.0, 0.0, 3.0])
    path = checked(d := abs(places[:, None] - places), shortest_path(d))
    assert path.order.tolist() in ([2, 1, 3, 0], [0, 3, 1, 2])
    assert (path.length, path.bound, path.gap, path.worst_step) == (5, 5, 0, 2)


@given(st.integers(1, 6), st.integers(0, 1000), st.sampled_from(["plane", "grid", "free"]))
def test_few_cities_equal_trying_every_order(n, seed, kind):
    distances = drawn(n, seed, kind)
    path = checked(distances, shortest_path(distances))
    best = min(length_of(distances, order) for order in itertools.permutations(range(n)))
    assert path.length == pytest.approx(best, abs=1e-12)
    assert path.gap == 0


@given(st.integers(7, 12), st.integers(0, 1000), st.sampled_from(["plane", "grid", "free"]))
def test_the_search_finds_what_the_dynamic_programme_finds(n, seed, kind):
    distances = drawn(n, seed, kind)
    exact = shortest_path(distances)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour, "MOST_EXACT", 2)
        found = checked(distances, shortest_path(distances, n_kicks=200))
    assert found.length == pytest.approx(exact.length, rel=1e-12, abs=1e-12)
    assert found.bound <= exact.length * (1 + 1e-12)


@pytest.mark.parametrize("n", [13, 40, 300])
def test_a_shuffled_line_is_proven(n):
    generator = np.random.default_rng(n)
    places = generator.random(n)
    distances = abs(places[:, None] - places)
    path = checked(distances, shortest_path(distances))
    ranks = np.argsort(np.argsort(places))[path.order]
    assert ranks.tolist() in (list(range(n)), list(range(n - 1, -1, -1)))
    assert path.gap == 0


def blobs(n: int, seed: int = 0) -> np.ndarray:
    """A stack of labels through which two discs move and grow: every slice like its neighbours."""
    y, x = np.mgrid[:48, :48]
    stack = np.zeros((n, 48, 48), np.uint8)
    for k in range(n):
        t = 12 * k / n
        stack[k][(y - 20 - 8 * np.sin(t)) ** 2 + (x - 24 - 10 * np.cos(t)) ** 2 < (6 + t) ** 2] = 1
        stack[k][(y - 40 + 3 * t) ** 2 + (x - 10 - 2 * t) ** 2 < 40 + 8 * t] = 2
    return stack


def test_a_shuffled_stack_is_put_in_order():
    stack = blobs(120)
    shuffled = np.random.default_rng(0).permutation(120)
    path = shortest_path(jaccard_matrix(stack[shuffled]))
    found = shuffled[path.order]
    assert (np.diff(found) == 1).all() or (np.diff(found) == -1).all()
    assert path.gap == 0


def test_a_real_shuffled_stack_is_put_in_order(real_data):
    stack = tifffile.imread(real_data("urocell-labels-fib1-3-3-0") / "labels.tif")
    shuffled = np.random.default_rng(0).permutation(len(stack))
    path = shortest_path(jaccard_matrix(stack[shuffled]))
    found = shuffled[path.order]
    assert (np.diff(found) == 1).all() or (np.diff(found) == -1).all()
    assert f"{path.gap:.3%}" == "0.000%"


def test_hard_cities_come_near_the_bound():
    distances = drawn(400, 1)
    path = checked(distances, shortest_path(distances))
    # Nothing is known to be shorter than 1 % above this bound, in a plane.
    assert path.gap < 0.03
    longer = shortest_path(distances, n_kicks=0)
    assert path.length < longer.length


def test_equal_and_unreachable_cities():
    zeros = np.zeros((20, 20))
    path = checked(zeros, shortest_path(zeros))
    assert (path.length, path.gap) == (0, 0)
    ones = 1 - np.eye(20)
    assert checked(ones, shortest_path(ones)).length == 19
    # Two heaps of equal slices, nothing in common.
    heaps = np.kron(1 - np.eye(2), np.ones((15, 15)))
    assert checked(heaps, shortest_path(heaps)).length == 1


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_slices(n):
    path = checked(d := 0.25 * (1 - np.eye(n)), shortest_path(d))
    assert (path.order.tolist(), path.length) == (list(range(n)), 0.25 * (n - 1))


def test_the_same_numbers_give_the_same_path():
    distances = drawn(150, 5)
    first, again = (shortest_path(distances, seed=3) for _ in range(2))
    assert first.order.tolist() == again.order.tolist()
    assert (first.length, first.bound) == (again.length, again.bound)
    narrow = shortest_path(distances.astype(np.float32), n_kicks=10)
    assert narrow.length == pytest.approx(first.length, rel=0.1)


def test_a_gap_that_is_enough_ends_the_search():
    distances = drawn(150, 5)
    assert shortest_path(distances, target_gap=1.0).length >= shortest_path(distances).length


@pytest.mark.parametrize("depth", range(2, DEPTH + 1))
def test_a_search_tells_what_it_has_gained(depth):
    n = 60
    distances, prices = drawn(n, 2), np.random.default_rng(0).normal(size=n) * 0.1
    neighbours = likely_neighbours(distances, prices, 6)
    trip = np.random.default_rng(1).permutation(n + 1)

    def length(trip: np.ndarray) -> float:
        place = int(np.flatnonzero(trip == n)[0])
        return length_of(distances, np.roll(trip, -place)[1:])

    before = length(trip)
    gained = improve(distances, prices, neighbours, trip, 50, 0, depth)
    assert sorted(trip) == list(range(n + 1))
    assert gained == pytest.approx(before - length(trip))
    # Nothing is left to be found without a kick.
    assert improve(distances, prices, neighbours, trip.copy(), 0, 0, depth) == 0


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros((2, 3)), r"\(2, 3\)"),
        (np.zeros((0, 0)), r"\(0, 0\)"),
        (np.array([[0, 1.0], [2.0, 0]]), r"1\.0 from 0 to 1 and 2\.0 back"),
        (np.array([[0, -1.0], [-1.0, 0]]), r"-1\.0 between 0 and 1"),
        (np.array([[0, np.nan], [np.nan, 0]]), "0 to 1|0 and 1"),
        (np.array([["a"]]), "<U1"),
    ],
)
def test_what_are_no_distances_is_refused(distances, message):
    with pytest.raises(ValueError, match=message):
        shortest_path(distances)


def test_far_cities_are_checked_too(monkeypatch):
    monkeypatch.setattr(tour, "PIECE", 4)
    distances = drawn(11, 0)
    distances[9, 2] += 1
    with pytest.raises(ValueError, match="2 to 9"):
        shortest_path(distances)


@pytest.mark.parametrize("option", [{"n_kicks": -1}, {"seed": -2}, {"target_gap": math.nan}])
def test_odd_options_are_refused(option):
    with pytest.raises(ValueError, match=str(next(iter(option.values())))):
        shortest_path(np.zeros((3, 3)), **option)
