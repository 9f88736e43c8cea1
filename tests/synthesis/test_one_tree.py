"""The bound: never above the shortest path, whatever the prices; trees against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree

from cvdask.synthesis.one_tree import (
    ascend,
    evaluate,
    lightest_tree,
    likely_neighbours,
    nearest_edges,
    raise_bound,
    unique_edges,
)
from cvdask.synthesis.tour import shortest_path


def drawn(n: int, seed: int, kind: str = "plane") -> np.ndarray:
    """Distances in a plane, on a coarse grid with equal cities, or without any geometry."""
    generator = np.random.default_rng(seed)
    if kind == "free":
        upper = np.triu(generator.random((n, n)), 1)
        return upper + upper.T
    places = generator.integers(0, 3, (n, 2)) if kind == "grid" else generator.random((n, 2))
    return np.asarray(np.linalg.norm(places[:, None] - places, axis=-1))


cases = st.tuples(
    st.integers(2, 9), st.integers(0, 1000), st.sampled_from(["plane", "grid", "free"])
)


def test_a_tree_by_hand():
    line = abs(np.array([0.0, 3.0, 1.0])[:, None] - [0.0, 3.0, 1.0])
    visited, parent, weight, largest = lightest_tree(line, np.zeros(3))
    assert visited.tolist() == [0, 2, 1]
    assert parent.tolist() == [-1, 2, 0]
    assert weight.tolist() == [0, 2, 1]
    assert largest == 3


@given(st.integers(2, 30), st.integers(0, 1000))
def test_trees_are_as_light_as_scipys(n, seed):
    distances = drawn(n, seed)
    prices = np.random.default_rng(seed).normal(size=n)
    visited, parent, weight, _ = lightest_tree(distances, prices)
    priced = distances + prices[:, None] + prices
    # SciPy takes 0 for no edge: all weights are raised.
    shift = 1 - priced.min()
    expected = minimum_spanning_tree(np.triu(priced + shift, 1)).sum() - shift * (n - 1)
    assert weight.sum() == pytest.approx(expected)
    place = np.argsort(visited)
    assert all(place[parent[city]] < place[city] for city in visited[1:])


@given(cases, st.integers(0, 1000), st.floats(0, 3))
def test_no_prices_give_a_bound_above_the_shortest_path(case, seed, scale):
    distances = drawn(*case)
    prices = np.random.default_rng(seed).normal(size=len(distances)) * scale
    bound, tree = evaluate(distances, prices)
    assert bound <= shortest_path(distances).length
    assert tree.shape == (len(distances) - 1, 2)


@given(cases)
def test_the_bound_rises_and_stays_one(case):
    distances = drawn(*case)
    path = shortest_path(distances)
    first = raise_bound(distances, None, path.order, path.length, n_steps=1)
    later = raise_bound(distances, first, path.order, path.length, n_steps=200)
    assert evaluate(distances, np.zeros(len(distances)))[0] <= first.bound
    assert first.bound <= later.bound <= path.length
    assert later.bound == pytest.approx(evaluate(distances, later.prices)[0])


def test_candidates_that_hide_a_short_edge_do_not_raise_the_bound():
    distances = drawn(40, 3)
    path = shortest_path(distances)
    # Only the edges of some other path: their tree says much more than is true.
    path_edges = np.stack([np.arange(39), np.arange(1, 40)], axis=1)
    lengths = distances[path_edges[:, 0], path_edges[:, 1]]
    _, value = ascend(path_edges, lengths, np.zeros(40), lengths.sum(), 10, 0.0)
    assert value == pytest.approx(lengths.sum())
    assert value > path.length
    state = raise_bound(distances, None, np.arange(40), lengths.sum(), n_steps=50, n_nearest=1)
    assert state.bound <= path.length


def test_nearest_edges_by_hand():
    line = abs(np.array([0.0, 1.0, 5.0, 5.5])[:, None] - [0.0, 1.0, 5.0, 5.5])
    assert nearest_edges(line, 1).tolist() == [[0, 1], [2, 3]]
    assert nearest_edges(line, 2).tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert len(nearest_edges(line, 9)) == 6
    assert unique_edges(np.array([[1, 0], [0, 1]])).tolist() == [[0, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_likely_neighbours_cost_the_1_tree_least(seed):
    distances = drawn(12, seed)
    prices = np.random.default_rng(seed).normal(size=12) * 0.1
    weights = distances + prices[:, None] + prices
    shift = 5.0 - weights.min()

    def tree(forced: tuple[int, int] | None) -> float:
        raised = weights + shift
        if forced is not None:
            raised[forced] = raised[forced[::-1]] = 1e-3
        total = minimum_spanning_tree(np.triu(raised, 1)).sum() - shift * 11
        return total + weights[forced] + shift - 1e-3 if forced is not None else total

    lightest, by_price = tree(None), np.sort(prices)
    costs = np.full((12, 13), np.inf)
    for i in range(12):
        for j in range(12):
            if i != j:
                costs[i, j] = tree((i, j)) - lightest
        costs[i, 12] = max(0.0, prices[i] - by_price[1])
    found = likely_neighbours(distances, prices, 5)
    for i in range(12):
        np.testing.assert_allclose(costs[i, found[i]], np.sort(costs[i])[:5], atol=1e-9)
    assert found[12].tolist() == np.argsort(prices)[:5].tolist()
