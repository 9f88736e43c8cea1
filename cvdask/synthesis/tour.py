"""Which order of the slices is shortest, and how short could it be at best?

:func:`shortest_path` searches a shortest open path through all cities, each visited once, and gives
with it a *certificate*: a lower bound that no path can be below.

1. Up to 12 cities: the exact dynamic programme over sets of visited cities.
2. More: edges are joined greedily, shortest first, and ``local_search`` shortens the result, as a
   round trip through a dummy city at distance 0 from all.
3. ``one_tree`` raises a lower bound towards the length that was reached. Where they meet, the path
   is proven to be shortest, and all is done.
4. Else the prices of the bound say which edges are likely; ``local_search`` goes on among these,
   kicked again and again, and the bound is raised once more at the end.

A path backwards is as short: it is turned so that, on the whole, the numbers of the cities ascend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from cvdask.synthesis.local_search import DEPTH, improve
from cvdask.synthesis.one_tree import Prices, likely_neighbours, nearest_edges, raise_bound

# The dynamic programme looks at n² 2ⁿ steps: 0.6 million of 12 cities.
MOST_EXACT = 12
# Nearest cities whose edges may be joined greedily, and likely ones that exchanges try.
N_NEAREST, N_LIKELY = 8, 6
N_STEPS = 2000
# Kicks per city, where their number is not given; after each of so many rounds of them the gap is
# looked at.
KICKS_PER_CITY = 5
N_ROUNDS = 10
# Length and bound are sums of n rounded numbers: nearer than this they are the same.
SAME = 1e-9
# Rows that are compared with columns at once.
PIECE = 1024


@dataclass(frozen=True)
class Path:
    """An open path through all cities.

    Parameters
    ----------
    order : (n,) int64
        Cities in the order they are visited.
    steps : (n - 1,) float64
        Distance from each to the next.
    length : float
        Their sum.
    bound : float
        No path through all cities is shorter.
    """

    order: np.ndarray
    steps: np.ndarray
    length: float
    bound: float

    @property
    def gap(self) -> float:
        """How much longer than the bound, as a share of it: 0.01 is 1 %. 0 where it is proven.

        The shortest path there is lies somewhere between: the path is longer than that by this
        share at most.
        """
        return (self.length - self.bound) / self.bound if self.length > self.bound else 0.0

    @property
    def worst_step(self) -> float:
        """The largest step; 0 where there is none."""
        return float(self.steps.max(initial=0.0))


def shortest_path(
    distances: np.ndarray, *, n_kicks: int | None = None, seed: int = 0, target_gap: float = 0.0
) -> Path:
    """Find a short open path through all cities, and a bound to it.

    The same numbers give the same path, on every machine: no clock plays a part.

    Parameters
    ----------
    distances : (n, n) floating
        Finite, symmetric, not negative; the diagonal is not looked at.
    n_kicks : int, optional
        Kicks of the search, unless it ends before; by default 5 for each city.
    seed : int
        Of the kicks.
    target_gap : float
        The search ends when the gap is not above this.

    Returns
    -------
    Path
        ``bound`` is lowered by what rounding may have added to it; where it then differs from the
        length by less than a thousand-millionth, both are the length, and ``gap`` is 0.

    Raises
    ------
    ValueError
        When the distances are none.

    Examples
    --------
    >>> places = np.array([3.0, 0.0, 2.0, 7.0])
    >>> path = shortest_path(abs(places[:, None] - places))
    >>> path.order, path.length, path.gap, path.worst_step
    (array([1, 2, 0, 3]), 7.0, 0.0, 4.0)
    """
    distances = _checked(distances)
    if n_kicks is None:
        n_kicks = KICKS_PER_CITY * len(distances)
    if n_kicks < 0 or seed < 0 or not target_gap >= 0:
        raise ValueError(
            f"the number of kicks, the seed and the gap are not negative. Received: n_kicks "
            f"{n_kicks}, seed {seed}, target_gap {target_gap}"
        )
    if len(distances) <= MOST_EXACT:
        order = _exact(distances)
        return _path(distances, order, math.inf)
    order, bound = _search(distances, n_kicks, seed, target_gap)
    return _path(distances, order, bound)


def _checked(distances: np.ndarray) -> np.ndarray:
    found = np.asarray(distances)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or len(found) == 0:
        raise ValueError(
            f"distances are a square matrix of at least one city. Received: shape {found.shape}"
        )
    if found.dtype.kind not in "fui":
        raise ValueError(f"distances are numbers. Received: {found.dtype}")
    n = len(found)
    found = np.ascontiguousarray(found, np.float64)
    for i in range(0, n, PIECE):
        for j in range(i, n, PIECE):
            part = found[i : i + PIECE, j : j + PIECE].copy()
            back = found[j : j + PIECE, i : i + PIECE].T
            if i == j:
                np.fill_diagonal(part, 0.0)
            elif not np.array_equal(part, back):
                raise ValueError(_asymmetry(part, back, i, j))
            if i == j and not np.array_equal(np.triu(part), np.tril(part).T):
                raise ValueError(_asymmetry(part, part.T, i, j))
            if not (np.isfinite(part).all() and part.min() >= 0):
                a, b = np.argwhere(~(np.isfinite(part) & (part >= 0)))[0]
                raise ValueError(
                    f"distances are finite and not negative. Received: {part[a, b]} between "
                    f"{i + a} and {j + b}"
                )
    return found


def _asymmetry(part: np.ndarray, back: np.ndarray, i: int, j: int) -> str:
    a, b = np.argwhere(part != back)[0]
    return (
        f"a distance is the same both ways. Received: {part[a, b]} from {i + a} to {j + b} and "
        f"{back[a, b]} back"
    )


def _path(distances: np.ndarray, order: np.ndarray, bound: float) -> Path:
    """Turn the path and add its numbers up."""
    n = len(order)
    places = np.arange(n) - (n - 1) / 2
    along = float((places * order).sum())
    if along < 0 or (along == 0 and order[0] > order[-1]):
        order = order[::-1]
    order = np.ascontiguousarray(order)
    steps = distances[order[:-1], order[1:]]
    length = math.fsum(steps)
    if bound >= length * (1 - SAME):
        bound = length
    return Path(order, steps, length, bound)


# ---------------------------------------------------------------------------------------------
# Few cities


@njit(nogil=True, cache=True)
def _exact(distances: np.ndarray) -> np.ndarray:
    """Find a shortest open path by the dynamic programme over sets (Held and Karp 1962)."""
    n = len(distances)
    n_sets = 1 << n
    shortest = np.full((n_sets, n), np.inf)
    before = np.full((n_sets, n), -1)
    for city in range(n):
        shortest[1 << city, city] = 0.0
    for visited in range(1, n_sets):
        for last in range(n):
            length = shortest[visited, last]
            if length == np.inf:
                continue
            for city in range(n):
                if visited >> city & 1:
                    continue
                there = visited | 1 << city
                if length + distances[last, city] < shortest[there, city]:
                    shortest[there, city] = length + distances[last, city]
                    before[there, city] = last
    order = np.empty(n, np.int64)
    visited, city = n_sets - 1, int(np.argmin(shortest[n_sets - 1]))
    for place in range(n - 1, -1, -1):
        order[place] = city
        visited, city = visited ^ (1 << city), before[visited, city]
    return order


# ---------------------------------------------------------------------------------------------
# Many cities


def _search(
    distances: np.ndarray, n_kicks: int, seed: int, target_gap: float
) -> tuple[np.ndarray, float]:
    """Search and bound in turn; return the order and the bound."""
    order = _join_greedily(distances)
    order = _improve(distances, np.zeros(len(distances)), order, 0, 0)
    length = _length(distances, order)
    state = raise_bound(distances, None, order, length, n_steps=N_STEPS)
    if _reached(length, state, target_gap):
        return order, state.bound
    neighbours = likely_neighbours(distances, state.prices, N_LIKELY)
    for round_ in range(N_ROUNDS):
        kicks = n_kicks * (round_ + 1) // N_ROUNDS - n_kicks * round_ // N_ROUNDS
        key = seed * N_ROUNDS + round_
        order = _improve(distances, state.prices, order, kicks, key, neighbours)
        length = _length(distances, order)
        if _reached(length, state, target_gap):
            break
    state = raise_bound(distances, state, order, length, n_steps=N_STEPS)
    return order, state.bound


def _length(distances: np.ndarray, order: np.ndarray) -> float:
    return math.fsum(distances[order[:-1], order[1:]])


def _reached(length: float, state: Prices, target_gap: float) -> bool:
    return length - state.bound <= max(SAME * length, target_gap * state.bound)


def _improve(
    distances: np.ndarray,
    prices: np.ndarray,
    order: np.ndarray,
    n_kicks: int,
    seed: int,
    neighbours: np.ndarray | None = None,
) -> np.ndarray:
    """Shorten a path as a round trip through the dummy city."""
    dummy = len(order)
    if neighbours is None:
        neighbours = likely_neighbours(distances, prices, N_LIKELY)
    tour = np.append(order, dummy)
    improve(distances, prices, neighbours, tour, n_kicks, seed, DEPTH)
    place = int(np.flatnonzero(tour == dummy)[0])
    return np.roll(tour, -place)[1:]


def _join_greedily(distances: np.ndarray) -> np.ndarray:
    """Join cities by the shortest edges that leave paths, then paths end to nearest end."""
    edges = nearest_edges(distances, N_NEAREST)
    by_length = np.argsort(distances[edges[:, 0], edges[:, 1]], kind="stable")
    links, n_links = _join(len(distances), edges[by_length])
    return _string(distances, links, n_links)


@njit(nogil=True, cache=True)
def _join(n: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take each edge that joins the ends of two paths: links (n, 2) of each city, and how many."""
    links, n_links = np.full((n, 2), -1), np.zeros(n, np.int64)
    other_end = np.arange(n)
    for e in range(len(edges)):
        a, b = edges[e]
        if n_links[a] == 2 or n_links[b] == 2 or other_end[a] == b:
            continue
        links[a, n_links[a]], links[b, n_links[b]] = b, a
        n_links[a] += 1
        n_links[b] += 1
        first, last = other_end[a], other_end[b]
        other_end[first], other_end[last] = last, first
    return links, n_links


@njit(nogil=True, cache=True)
def _string(distances: np.ndarray, links: np.ndarray, n_links: np.ndarray) -> np.ndarray:
    """String paths together, each time the one with the nearest end."""
    n = len(distances)
    order, visited = np.empty(n, np.int64), np.zeros(n, np.bool_)
    ends = np.flatnonzero(n_links < 2)
    n_ends, filled, city = len(ends), 0, ends[0]
    while True:
        # To the other end of this path.
        following = city
        while following >= 0:
            city = following
            order[filled] = city
            visited[city] = True
            filled += 1
            following = -1
            for side in range(n_links[city]):
                if not visited[links[city, side]]:
                    following = links[city, side]
        nearest, kept = -1, 0
        for k in range(n_ends):
            end = ends[k]
            if visited[end]:
                continue
            ends[kept] = end
            kept += 1
            if nearest < 0 or distances[city, end] < distances[city, nearest]:
                nearest = end
        n_ends = kept
        if nearest < 0:
            return order
        city = nearest
