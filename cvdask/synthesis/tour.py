from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from numba import njit
from cvdask.synthesis.local_search import improve
from cvdask.synthesis.one_tree import likely_neighbours, nearest_edges, raise_bound
import time

@njit(cache=True)
def _greedy(distances, edges, order):
    n = len(distances)
    group = np.arange(n)
    link = np.full((n, 2), -1)
    degree = np.zeros(n, np.int64)
    for e in order:
        a, b = edges[e, 0], edges[e, 1]
        if degree[a] == 2 or degree[b] == 2:
            continue
        ra, rb = a, b
        while group[ra] != ra:
            group[ra] = group[group[ra]]
            ra = group[ra]
        while group[rb] != rb:
            group[rb] = group[group[rb]]
            rb = group[rb]
        if ra == rb:
            continue
        group[ra] = rb
        link[a, degree[a]] = b
        link[b, degree[b]] = a
        degree[a] += 1
        degree[b] += 1
    # pieces
    done = np.zeros(n, np.bool_)
    path = np.empty(n, np.int64)
    filled = 0
    ends = np.empty(n, np.int64)
    m = 0
    for i in range(n):
        if degree[i] < 2:
            ends[m] = i
            m += 1
    city = ends[0]
    while True:
        before = -1
        while True:
            path[filled] = city
            filled += 1
            done[city] = True
            nxt = -1
            for s in range(degree[city]):
                if link[city, s] != before:
                    nxt = link[city, s]
            if nxt < 0:
                break
            before, city = city, nxt
        best = -1
        kept = 0
        for k in range(m):
            other = ends[k]
            if done[other]:
                continue
            ends[kept] = other
            kept += 1
            if best < 0 or distances[city, other] < distances[city, best]:
                best = other
        m = kept
        if best < 0:
            return path
        city = best

def go(D, kicks, depth=5, K=5, seed=0, steps=2000, verbose=True):
    n = len(D)
    t0=time.perf_counter()
    def say(*a):
        if verbose: print(f'{time.perf_counter()-t0:.2f}', *a, flush=True)
    L = lambda p: D[p[:-1], p[1:]].sum()
    E = nearest_edges(D, 8)
    w = D[E[:,0],E[:,1]]
    p = _greedy(D, E, np.argsort(w, kind='stable'))
    say('greedy', L(p))
    zero = np.zeros(n)
    nb = likely_neighbours(D, zero, K)
    say('alpha')
    tour = np.append(p, n)
    improve(D, zero, nb, tour, 0, seed, depth)
    k = int(np.flatnonzero(tour==n)[0]); p = np.roll(tour, -k)[1:]
    say('ls', L(p))
    st = raise_bound(D, None, p, L(p), n_steps=steps)
    say('bound', st.bound, 'gap', L(p)/st.bound-1, len(st.edges))
    nb = likely_neighbours(D, st.prices, K)
    say('alpha')
    tour = np.append(p, n)
    for kk in kicks:
        improve(D, st.prices, nb, tour, kk, seed, depth)
        k = int(np.flatnonzero(tour==n)[0]); p = np.roll(tour, -k)[1:]
        say('ils', kk, L(p), 'gap', L(p)/st.bound-1)
    st = raise_bound(D, st, p, L(p), n_steps=steps)
    say('bound', st.bound, 'gap', L(p)/st.bound-1)
    return p, st
