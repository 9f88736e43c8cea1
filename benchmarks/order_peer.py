"""A peer's path through a matrix of distances, in the peer's own environment: see order.py.

``python order_peer.py fast-tsp|ortools DISTANCES.npy SECONDS OUT.json``. Peers take whole numbers
and round trips: distances are scaled, and a dummy city at distance 0 from all makes a round trip of
an open path.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

# fast-tsp takes 16 bits.
SCALE = 65_000


def by_fast_tsp(distances: np.ndarray, seconds: float) -> list[int]:
    """Search as long as it is told to, which is all that it can be told."""
    import fast_tsp

    return list(fast_tsp.find_tour(distances.tolist(), duration_seconds=seconds))


def by_ortools(distances: np.ndarray, seconds: float) -> list[int]:
    """Cheapest arcs first, then guided local search, as its own guide to routing has it."""
    from ortools.constraint_solver import pywrapcp, routing_enums_pb2

    n = len(distances)
    manager = pywrapcp.RoutingIndexManager(n, 1, n - 1)
    routing = pywrapcp.RoutingModel(manager)
    transit = routing.RegisterTransitMatrix(distances.tolist())
    routing.SetArcCostEvaluatorOfAllVehicles(transit)
    parameters = pywrapcp.DefaultRoutingSearchParameters()
    parameters.first_solution_strategy = routing_enums_pb2.FirstSolutionStrategy.PATH_CHEAPEST_ARC
    guided = routing_enums_pb2.LocalSearchMetaheuristic.GUIDED_LOCAL_SEARCH
    parameters.local_search_metaheuristic = guided
    parameters.time_limit.FromMilliseconds(int(1000 * seconds))
    solution = routing.SolveWithParameters(parameters)
    if solution is None:
        return []
    tour, index = [], routing.Start(0)
    while not routing.IsEnd(index):
        tour.append(manager.IndexToNode(index))
        index = solution.Value(routing.NextVar(index))
    return tour


def main() -> None:
    name, matrix, seconds, out = sys.argv[1:]
    distances = np.load(matrix)
    n = len(distances)
    whole = np.zeros((n + 1, n + 1), np.int64)
    whole[:n, :n] = np.rint(distances * SCALE)
    started = time.perf_counter()
    tour = {"fast-tsp": by_fast_tsp, "ortools": by_ortools}[name](whole, float(seconds))
    elapsed = time.perf_counter() - started
    if tour:
        place = tour.index(n)
        tour = tour[place + 1 :] + tour[:place]
    Path(out).write_text(json.dumps({"seconds": elapsed, "order": list(map(int, tour))}))


if __name__ == "__main__":
    main()
