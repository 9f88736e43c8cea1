"""What makes a round trip shorter, and when is nothing left that does?

1. :func:`improve` looks, from each city in turn, for an exchange of up to eight edges: remove an
   edge, add a likely one at its end, remove one at that one's end … as long as what was removed
   is longer than what was added (Lin and Kernighan 1973). The first exchange that closes to a
   shorter round trip is made.
2. Then it *kicks*: a double bridge exchanges three short stretches that lie side by side, which no
   such search undoes by itself; the search goes on from the ends of the stretches, and the outcome
   is kept unless it is longer (Martin, Otto and Felten 1991).

The trip is an array of cities; an exchange turns and moves the stretches between the removed edges,
all but the longest, so exchanges among near cities cost little however many cities there are. No
clock plays a part: a seed and a number of kicks give the same trip everywhere.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Likely neighbours that are tried at each depth of an exchange. Measured on 2000 independent
# slices: trying five at each of five depths takes four times as long for the same length.
BREADTH = (5, 5, 3, 2, 1, 1, 1)
DEPTH = len(BREADTH) + 1
# Cities of a stretch that is exchanged by a kick, at most.
LONGEST_STRETCH = 50
TINY = 1e-12


@njit(nogil=True, cache=True)
def _weight(distances: np.ndarray, prices: np.ndarray, a: int, b: int) -> float:
    """Length of an edge with the prices of its ends; the last city is the dummy."""
    n = len(distances)
    if a == n:
        return prices[b]
    if b == n:
        return prices[a]
    return distances[a, b] + prices[a] + prices[b]


@njit(nogil=True, cache=True)
def _draw(state: np.ndarray, below: int) -> int:
    """Draw a number from 0 to ``below - 1`` (xorshift64*)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return int(np.int64((x * np.uint64(2685821657736338717)) >> np.uint64(33))) % below


@njit(nogil=True, cache=True)
def _close(
    ends: np.ndarray, position: np.ndarray, n: int, k: int, cuts: np.ndarray, walk: np.ndarray
) -> bool:
    """Tell whether an exchange of ``k`` edges gives one round trip, and in which order.

    ``ends`` holds t1, t2 … t2k: edges (t1, t2), (t3, t4) … are removed, (t2, t3) … (t2k, t1) added.
    ``cuts`` receives the place before each removed edge, ascending; ``walk`` the stretches between
    them in their new order, ``2 * stretch``, and 1 more where it is walked backwards. Stretch ``s``
    begins behind cut ``s``.
    """
    number = np.empty(2 * DEPTH, np.int64)  # of the stretch's end that each t is: 2s or 2s + 1
    owner = np.empty(2 * DEPTH, np.int64)  # the t that each stretch's end is
    # Sort the cuts, with the edge that each is of.
    edge = np.empty(DEPTH, np.int64)
    for e in range(k):
        a, b = position[ends[2 * e]], position[ends[2 * e + 1]]
        cut = a if b == a + 1 or (a == n - 1 and b == 0) else b
        slot = e
        while slot > 0 and cuts[slot - 1] > cut:
            cuts[slot], edge[slot] = cuts[slot - 1], edge[slot - 1]
            slot -= 1
        cuts[slot], edge[slot] = cut, e
    for slot in range(k):
        e = edge[slot]
        before = 2 * e if position[ends[2 * e]] == cuts[slot] else 2 * e + 1
        behind = 4 * e + 1 - before
        number[behind] = 2 * slot
        number[before] = 2 * ((slot + k - 1) % k) + 1
        owner[number[behind]], owner[number[before]] = behind, before
    # Walk from the beginning of the first stretch until it is reached again.
    at, count = 0, 0
    while True:
        walk[count] = at  # an even number is the beginning: forwards
        count += 1
        t = owner[at ^ 1]
        joined = (t + 1) % (2 * k) if t % 2 == 1 else (t - 1) % (2 * k)
        at = number[joined]
        if at == 0:
            return count == k
        if count == k:
            return False


@njit(nogil=True, cache=True)
def _rearrange(
    tour: np.ndarray,
    position: np.ndarray,
    k: int,
    cuts: np.ndarray,
    walk: np.ndarray,
    buffer: np.ndarray,
    changed: np.ndarray,
    n_changed: int,
    is_changed: np.ndarray,
) -> int:
    """Put the stretches between cuts into their new order, the longest staying where it is.

    Returns the number of places that were ever changed since ``is_changed`` was all False.
    """
    n = len(tour)
    longest, extent = 0, -1
    for s in range(k):
        size = (cuts[(s + 1) % k] - cuts[s] + n - 1) % n + 1
        if size > extent:
            longest, extent = s, size
    first = 0
    while walk[first] >> 1 != longest:
        first += 1
    turned = walk[first] & 1
    filled = 0
    for i in range(1, k):
        # Where the longest is walked backwards, all is walked the other way round.
        w = walk[(first - i + k) % k] ^ 1 if turned else walk[(first + i) % k]
        s = w >> 1
        start, stop = cuts[s] + 1, cuts[(s + 1) % k]
        size = (stop - start + n) % n + 1
        at = stop if w & 1 else start % n
        for _ in range(size):
            buffer[filled] = tour[at]
            filled += 1
            at += n - 1 if w & 1 else 1
            at -= n if at >= n else 0
    at = (cuts[(longest + 1) % k] + 1) % n
    for i in range(filled):
        tour[at] = buffer[i]
        position[buffer[i]] = at
        if not is_changed[at]:
            is_changed[at] = True
            changed[n_changed] = at
            n_changed += 1
        at = at + 1 if at < n - 1 else 0
    return n_changed


@njit(nogil=True, cache=True)
def _find_exchange(
    distances: np.ndarray,
    prices: np.ndarray,
    neighbours: np.ndarray,
    weights: np.ndarray,
    tour: np.ndarray,
    position: np.ndarray,
    start: int,
    depth: int,
    ends: np.ndarray,
    cuts: np.ndarray,
    walk: np.ndarray,
) -> tuple[int, float]:
    """Look for an exchange from one city; return its number of edges and its gain, or 0, 0.0."""
    n, n_neighbours = len(tour), neighbours.shape[1]
    gain = np.empty(DEPTH + 1)  # removed minus added, before the closing edge
    choice = np.empty(DEPTH + 1, np.int64)  # 2 * neighbour + side
    ends[0] = start
    for side in range(2):
        at = position[start] + (1 if side == 0 else -1)
        ends[1] = tour[at if 0 <= at < n else (0 if at == n else n - 1)]
        gain[0] = _weight(distances, prices, ends[0], ends[1])
        level = 0
        choice[0] = 0
        while level >= 0:
            last = ends[2 * level + 1]
            # Next pair of an added and a removed edge at this level.
            pick = choice[level]
            neighbour = pick >> 1
            widest = min(BREADTH[level], n_neighbours)
            if neighbour >= widest or gain[level] - weights[last, neighbour] <= TINY:
                # Neighbours are in order of weight only nearly; those behind may still be lighter.
                if neighbour >= widest:
                    level -= 1
                else:
                    choice[level] = 2 * (neighbour + 1)
                continue
            choice[level] = pick + 1
            to = neighbours[last, neighbour]
            here, there = position[last], position[to]
            apart = abs(here - there)
            if apart == 1 or apart == n - 1:
                continue
            at = there + (1 if pick & 1 == 0 else -1)
            at = at if 0 <= at < n else (0 if at == n else n - 1)
            nxt = tour[at]
            # An edge is removed once.
            used = False
            for e in range(level + 1):
                a, b = ends[2 * e], ends[2 * e + 1]
                if (a == to and b == nxt) or (a == nxt and b == to):
                    used = True
            if used:
                continue
            ends[2 * level + 2], ends[2 * level + 3] = to, nxt
            partial = gain[level] - weights[last, neighbour] + _weight(distances, prices, to, nxt)
            closed = partial - _weight(distances, prices, nxt, start)
            if closed > TINY and _close(ends, position, n, level + 2, cuts, walk):
                return level + 2, closed
            if level + 2 < depth:
                level += 1
                gain[level] = partial
                choice[level] = 0
    return 0, 0.0


@njit(nogil=True, cache=True)
def improve(
    distances: np.ndarray,
    prices: np.ndarray,
    neighbours: np.ndarray,
    tour: np.ndarray,
    n_kicks: int,
    seed: int,
    depth: int,
) -> float:
    """Shorten a round trip in place, and return by how much.

    Parameters
    ----------
    distances : (n, n) float
        Of the cities; city ``n`` is the dummy.
    prices : (n,) float64
        Added to the edges of each city, which changes all round trips by the same.
    neighbours : (n + 1, m) int64
        Likely neighbours of each city, to which edges are added.
    tour : (n + 1,) int64
        Cities in order.
    n_kicks : int
    seed : int
    depth : int
        Edges of an exchange, at most: 2 to ``DEPTH``.
    """
    n, n_neighbours = len(tour), neighbours.shape[1]
    weights = np.empty((n, n_neighbours))
    for i in range(n):
        for j in range(n_neighbours):
            weights[i, j] = _weight(distances, prices, i, neighbours[i, j])
    position = np.empty(n, np.int64)
    for at in range(n):
        position[tour[at]] = at
    saved, buffer = tour.copy(), np.empty(n, np.int64)
    changed, n_changed = np.empty(n, np.int64), 0
    is_changed = np.zeros(n, np.bool_)
    ends = np.empty(2 * DEPTH + 2, np.int64)
    cuts, walk = np.empty(DEPTH + 1, np.int64), np.empty(DEPTH + 1, np.int64)
    queue, queued = tour.copy(), np.ones(n, np.bool_)
    head, n_queued = 0, n
    state = np.array([np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)])
    total = 0.0
    longest = min(LONGEST_STRETCH, (n - 2) // 3)
    for kick in range(n_kicks + 1):
        gained = 0.0
        if kick > 0:
            if longest < 1:
                break
            cuts[0] = _draw(state, n)
            for s in range(3):
                cuts[s + 1] = cuts[s] + 1 + _draw(state, longest)
            for s in range(4):
                cuts[s] %= n
            # Ascending cuts are what the rearrangement expects: turn them so.
            lowest = 0
            for s in range(1, 4):
                if cuts[s] < cuts[lowest]:
                    lowest = s
            for s in range(4):
                ends[s] = cuts[(lowest + s) % 4]
            for s in range(4):
                cuts[s] = ends[s]
                walk[s] = 2 * ((4 - s) % 4)
            for s in range(4):
                before, behind = tour[cuts[s]], tour[(cuts[s] + 1) % n]
                gained += _weight(distances, prices, before, behind)
                ends[2 * s], ends[2 * s + 1] = before, behind
            n_changed = _rearrange(
                tour, position, 4, cuts, walk, buffer, changed, n_changed, is_changed
            )
            for s in range(8):
                city = ends[s]
                if not queued[city]:
                    queued[city] = True
                    queue[(head + n_queued) % n] = city
                    n_queued += 1
            for s in range(4):
                # What follows each end now: every new edge begins at the last city of a stretch.
                before = ends[2 * s]
                gained -= _weight(distances, prices, before, tour[(position[before] + 1) % n])
        while n_queued:
            city = queue[head]
            k, gain = _find_exchange(
                distances, prices, neighbours, weights, tour, position, city, depth, ends, cuts,
                walk,
            )  # fmt: skip
            if k == 0:
                queued[city] = False
                head = (head + 1) % n
                n_queued -= 1
                continue
            gained += gain
            n_changed = _rearrange(
                tour, position, k, cuts, walk, buffer, changed, n_changed, is_changed
            )
            for e in range(2 * k):
                if not queued[ends[e]]:
                    queued[ends[e]] = True
                    queue[(head + n_queued) % n] = ends[e]
                    n_queued += 1
        keep = kick == 0 or gained >= -TINY
        for c in range(n_changed):
            at = changed[c]
            is_changed[at] = False
            if keep:
                saved[at] = tour[at]
            else:
                tour[at] = saved[at]
                position[saved[at]] = at
        n_changed = 0
        if keep:
            total += gained
    return total
