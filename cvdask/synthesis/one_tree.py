"""How short can a path through all cities be at best, and which steps are likely to be part of it?

A shortest open path is a shortest round trip through the cities and one *dummy* city that is at
distance 0 from all. A round trip is a *1-tree*: a tree over the cities, and two edges of the dummy.
So the lightest 1-tree is a lower bound, and stays one whatever *price* each city puts on its edges,
as long as the prices of the two edges that each city has in a round trip are given back::

    L(prices) = lightest tree of (d_ij + p_i + p_j) + the two smallest prices − 2 Σ p

1. :func:`ascend` raises L by subgradient steps: a city with more than two edges gets dearer, one at
   the end of a branch cheaper. The trees of these steps are taken among *candidate* edges only,
   which is fast and proves nothing.
2. :func:`raise_bound` evaluates L over all edges at the prices that came out, which is the bound;
   edges that the tree needs and the candidates lack are added, and the ascent goes on from there.
3. :func:`likely_neighbours` ranks edges by how much heavier the 1-tree gets that must use them.

References
----------
Held and Karp 1970 and 1971, "The traveling-salesman problem and minimum spanning trees". The
ranking is the alpha-nearness of Helsgaun 2000, "An effective implementation of the Lin–Kernighan
traveling salesman heuristic".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

# Rounding of a weight d + p + p, relative to the largest; a bound is lowered by what it may cost.
ROUNDING = 2.0**-50
# The step is halved after so many evaluations that did not raise the bound.
PATIENCE = 30
SMALLEST_STEP = 1e-4
MOST_ROUNDS = 12


@dataclass
class Prices:
    """Where the ascent stands.

    Parameters
    ----------
    prices : (n,) float64
        Best found.
    bound : float
        L over all edges at these prices, less what rounding may have added: no open path is
        shorter.
    edges : (m, 2) int64
        Candidate edges, first city below the second.
    """

    prices: np.ndarray
    bound: float
    edges: np.ndarray


def nearest_edges(distances: np.ndarray, n_nearest: int) -> np.ndarray:
    """List the edges from each city to its nearest: (m, 2) int64, each once, in order."""
    n = len(distances)
    nearest = _nearest(distances, min(n_nearest, n - 1))
    first = np.repeat(np.arange(n), nearest.shape[1])
    return unique_edges(np.stack([first, nearest.ravel()], axis=1))


def unique_edges(edges: np.ndarray) -> np.ndarray:
    """Return edges once each, the lower city first, in order."""
    return np.unique(np.sort(edges, axis=1), axis=0)


@njit(nogil=True, cache=True)
def _nearest(distances: np.ndarray, n_nearest: int) -> np.ndarray:
    """Return the nearest cities of each, nearest first; of equals the lower number."""
    n = len(distances)
    found = np.empty((n, n_nearest), np.int64)
    for i in range(n):
        row = distances[i]
        count = 0
        for j in range(n):
            if j == i:
                continue
            if count == n_nearest and row[j] >= row[found[i, count - 1]]:
                continue
            place = count if count < n_nearest else count - 1
            while place > 0 and row[found[i, place - 1]] > row[j]:
                found[i, place] = found[i, place - 1]
                place -= 1
            found[i, place] = j
            count = min(count + 1, n_nearest)
    return found


# ---------------------------------------------------------------------------------------------
# Trees


@njit(nogil=True, cache=True)
def lightest_tree(
    distances: np.ndarray, prices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Find the lightest tree over all edges, by Prim's algorithm.

    Parameters
    ----------
    distances : (n, n) float
    prices : (n,) float64

    Returns
    -------
    visited : (n,) int64
        Cities in the order they joined; a city's parent joined before it.
    parent : (n,) int64
        -1 for the first.
    weight : (n,) float64
        Of the edge to the parent, with the prices of both ends; 0 for the first.
    largest : float
        Largest weight that was looked at, without sign: what rounding is relative to.
    """
    n = len(distances)
    visited, parent = np.empty(n, np.int64), np.full(n, -1)
    weight, key = np.zeros(n), np.full(n, np.inf)
    outside = np.arange(n)
    largest = 0.0
    city = 0
    for step in range(n):
        visited[step] = city
        remaining = n - step - 1
        # The place of the city among those outside is taken by the last of them.
        if step == 0:
            outside[0] = outside[remaining]
        row, price = distances[city], prices[city]
        best, best_place = np.inf, -1
        for place in range(remaining):
            other = outside[place]
            w = row[other] + price + prices[other]
            largest = max(largest, abs(w))
            if w < key[other]:
                key[other] = w
                parent[other] = city
            if key[other] < best or (key[other] == best and other < outside[best_place]):
                best, best_place = key[other], place
        if remaining:
            city = outside[best_place]
            weight[city] = best
            outside[best_place] = outside[remaining - 1]
    return visited, parent, weight, largest


@njit(nogil=True, cache=True)
def _root(group: np.ndarray, city: int) -> int:
    while group[city] != city:
        group[city] = group[group[city]]
        city = group[city]
    return city


@njit(nogil=True, cache=True)
def _candidate_tree(
    edges: np.ndarray, lengths: np.ndarray, prices: np.ndarray, degree: np.ndarray
) -> float:
    """Find the lightest tree among edges that connect all cities; return its weight.

    Borůvka's algorithm: every group of cities takes its lightest edge to another group, until there
    is one group. ``degree`` receives the number of edges at each city.
    """
    n, m = len(prices), len(edges)
    group, best = np.arange(n), np.empty(n, np.int64)
    weights, alive = np.empty(m), np.arange(m)
    for e in range(m):
        weights[e] = lengths[e] + prices[edges[e, 0]] + prices[edges[e, 1]]
    degree[:] = 0
    total, n_edges, n_alive = 0.0, 0, m
    while n_edges < n - 1:
        best[:] = -1
        kept = 0
        for k in range(n_alive):
            e = alive[k]
            a, b = _root(group, edges[e, 0]), _root(group, edges[e, 1])
            if a == b:
                continue
            alive[kept] = e
            kept += 1
            # Of equal weights the first edge: alive edges stay in order.
            if best[a] < 0 or weights[e] < weights[best[a]]:
                best[a] = e
            if best[b] < 0 or weights[e] < weights[best[b]]:
                best[b] = e
        n_alive = kept
        for city in range(n):
            e = best[city]
            if e < 0:
                continue
            a, b = _root(group, edges[e, 0]), _root(group, edges[e, 1])
            if a == b:
                continue
            group[max(a, b)] = min(a, b)
            total += weights[e]
            degree[edges[e, 0]] += 1
            degree[edges[e, 1]] += 1
            n_edges += 1
    return total


@njit(nogil=True, cache=True)
def _two_smallest(values: np.ndarray) -> tuple[int, int]:
    first, second = (0, 1) if values[0] <= values[1] else (1, 0)
    for i in range(2, len(values)):
        if values[i] < values[first]:
            first, second = i, first
        elif values[i] < values[second]:
            second = i
    return first, second


# ---------------------------------------------------------------------------------------------
# Ascent


@njit(nogil=True, cache=True)
def ascend(
    edges: np.ndarray,
    lengths: np.ndarray,
    prices: np.ndarray,
    path_length: float,
    n_steps: int,
    tolerance: float,
) -> tuple[np.ndarray, float]:
    """Raise L among candidate edges, from given prices.

    Parameters
    ----------
    edges : (m, 2) int64
        They connect all cities.
    lengths : (m,) float64
    prices : (n,) float64
        Left as they are.
    path_length : float
        Length of a path that is known: what L is steered towards.
    n_steps : int
        Evaluations at most.
    tolerance : float
        Done when L is so near the path's length.

    Returns
    -------
    prices : (n,) float64
        Best found.
    value : float
        L there, among these edges.
    """
    n = len(prices)
    current, best = prices.copy(), prices.copy()
    degree, before = np.zeros(n, np.int64), np.zeros(n)
    best_value, scale, waiting = -np.inf, 1.0, 0
    for step in range(n_steps):
        total = _candidate_tree(edges, lengths, current, degree)
        first, second = _two_smallest(current)
        degree[first] += 1
        degree[second] += 1
        total += current[first] + current[second]
        for i in range(n):
            total -= 2 * current[i]
        if total > best_value:
            # A gain below a thousandth of what is left counts as waiting.
            waiting = 0 if total - best_value > 1e-3 * (path_length - total) else waiting + 1
            best_value = total
            best[:] = current
        else:
            waiting += 1
        if waiting >= PATIENCE:
            scale, waiting = scale / 2, 0
            current[:] = best
            if scale < SMALLEST_STEP:
                break
        squares = 0.0
        for i in range(n):
            squares += (degree[i] - 2.0) ** 2
        # Every city has two edges: the 1-tree is a round trip, the bound is its length.
        if squares == 0 or path_length - best_value <= tolerance:
            break
        length = scale * (path_length - total) / squares
        for i in range(n):
            slope = degree[i] - 2.0
            direction = slope if step == 0 else 0.7 * slope + 0.3 * before[i]
            before[i] = slope
            current[i] += length * direction
    return best, best_value


def raise_bound(
    distances: np.ndarray,
    state: Prices | None,
    path: np.ndarray,
    path_length: float,
    *,
    n_steps: int,
    n_nearest: int = 8,
) -> Prices:
    """Raise the bound towards the length of a known path.

    Parameters
    ----------
    distances : (n, n) float
    state : Prices, optional
        Where an earlier ascent ended.
    path : (n,) int64
        Its edges become candidates.
    path_length : float
    n_steps : int
        Trees at most, in each round between two evaluations over all edges.
    n_nearest : int
        Nearest cities that edges are candidates to, at first.

    Returns
    -------
    Prices
        With a bound not below that of ``state``.
    """
    n = len(distances)
    if state is None:
        state = Prices(np.zeros(n), -np.inf, nearest_edges(distances, n_nearest))
    steps = np.stack([path[:-1], path[1:]], axis=1)
    edges = unique_edges(np.concatenate([state.edges, steps]))
    prices, best = state.prices, state
    tolerance = 1e-12 * path_length
    for _ in range(MOST_ROUNDS):
        lengths = distances[edges[:, 0], edges[:, 1]].astype(np.float64)
        prices, value = ascend(edges, lengths, prices, path_length, n_steps, tolerance)
        bound, tree = evaluate(distances, prices)
        lacking = unique_edges(np.concatenate([edges, tree]))
        if bound > best.bound:
            best = Prices(prices, bound, lacking)
        # The candidates' tree is the lightest of all: nothing is gained by adding to them.
        if value - bound <= 1e-4 * max(path_length - value, 0) + 1e-9 * path_length:
            break
        if len(lacking) == len(edges):
            break
        edges = lacking
    return best


def evaluate(distances: np.ndarray, prices: np.ndarray) -> tuple[float, np.ndarray]:
    """Evaluate L over all edges.

    Returns
    -------
    bound : float
        Lowered by what rounding may have added to it.
    tree : (n - 1, 2) int64
        Edges of the lightest tree.
    """
    visited, parent, weight, largest = lightest_tree(distances, prices)
    first, second = _two_smallest(prices)
    total = weight.sum() + prices[first] + prices[second] - 2 * prices.sum()
    margin = ROUNDING * len(prices) * (largest + 2 * np.abs(prices).max())
    children = visited[1:]
    return float(total - margin), np.stack([parent[children], children], axis=1)


# ---------------------------------------------------------------------------------------------
# Which edges are likely


@njit(nogil=True, cache=True)
def _likely(
    distances: np.ndarray,
    prices: np.ndarray,
    visited: np.ndarray,
    parent: np.ndarray,
    weight: np.ndarray,
    n_likely: int,
) -> np.ndarray:
    n = len(distances)
    place = np.empty(n, np.int64)
    for k in range(n):
        place[visited[k]] = k
    _, second = _two_smallest(prices)
    heaviest = np.empty(n)  # edge on the way from city i, by place
    on_way = np.full(n, -1)
    found = np.full((n + 1, n_likely), -1)
    alpha, length = np.empty(n_likely), np.empty(n_likely)
    up = np.empty(n, np.int64)
    edge = np.empty(n)
    for k in range(n):
        city = visited[k]
        up[k] = place[parent[city]] if k else -1
        edge[k] = weight[city]
    for i in range(n):
        k = place[i]
        heaviest[k] = -np.inf
        on_way[k] = i
        while k > 0:
            heaviest[up[k]] = max(heaviest[k], edge[k])
            k = up[k]
            on_way[k] = i
        count = 0
        # The dummy city: a third edge of it would replace its heavier one.
        for k in range(n + 1):
            if k < n:
                if on_way[k] != i:
                    heaviest[k] = max(heaviest[up[k]], edge[k])
                j = visited[k]
                if j == i:
                    continue
                w = distances[i, j] + prices[i] + prices[j]
                a = w - heaviest[k]
            else:
                j, w = n, prices[i]
                a = max(0.0, w - prices[second])
            if count == n_likely and (a, w) >= (alpha[count - 1], length[count - 1]):
                continue
            slot = count if count < n_likely else count - 1
            while slot > 0 and (a, w) < (alpha[slot - 1], length[slot - 1]):
                alpha[slot], length[slot] = alpha[slot - 1], length[slot - 1]
                found[i, slot] = found[i, slot - 1]
                slot -= 1
            alpha[slot], length[slot], found[i, slot] = a, w, j
            count = min(count + 1, n_likely)
    return found


def likely_neighbours(distances: np.ndarray, prices: np.ndarray, n_likely: int) -> np.ndarray:
    """Rank, for each city and the dummy, the others by how likely the edge to them is.

    An edge's rank is by how much heavier the lightest 1-tree is that contains it, at these prices.

    Parameters
    ----------
    distances : (n, n) float
    prices : (n,) float64
    n_likely : int
        At most ``n``.

    Returns
    -------
    (n + 1, n_likely) int64
        City ``n`` is the dummy.
    """
    visited, parent, weight, _ = lightest_tree(distances, prices)
    found = _likely(distances, prices, visited, parent, weight, n_likely)
    found[-1] = np.argsort(prices, kind="stable")[:n_likely]
    return found
