"""How often do the tests of a comparison find a difference where there is none, or miss one?

Objects of volumes are drawn again and again: what a whole volume shares, what a tenth of its depth
shares, and what each object has of its own, all normal. Two groups are compared at a level of 5 %.

1. Both groups from one distribution: 5 % of all comparisons are to be found, and no more. The
   column *naive* is one-way ANOVA over single objects, as in published tables.
2. The second group shifted by one standard deviation of objects: the share found is the power.
3. Equivalence, groups from one distribution and from two that differ by just the margin: the
   latter may be called equal in 5 %.

The intervals are 95 %, exact (Clopper and Pearson).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from report import report
from scipy import stats

from cvdask.comparison.statistics import ALPHA, Group, Measured, compare_pair

N_OBJECTS, N_BLOCKS = 100, 10
# name: volumes in each group, spread between volumes, spread between tenths of their depth
CASES = {
    "volumes alike": (5, 5, 0.0, 0.0),
    "volumes differ a little": (5, 5, 0.2, 0.0),
    "volumes differ": (5, 5, 0.5, 0.0),
    "two volumes each": (2, 2, 0.5, 0.0),
    "ten volumes each": (10, 10, 0.5, 0.0),
    "three against twelve": (3, 12, 0.5, 0.0),
    "one against 25": (1, 25, 0.5, 0.0),
    "one each, alike along z": (1, 1, 0.0, 0.0),
    "one each, varied along z": (1, 1, 0.0, 0.5),
    "one each, volumes differ": (1, 1, 0.5, 0.0),
}


def volume(rng: np.random.Generator, shift: float, between: float, along: float) -> Measured:
    blocks = np.arange(N_OBJECTS) * N_BLOCKS // N_OBJECTS
    shared = shift + between * rng.normal() + along * rng.normal(size=N_BLOCKS)[blocks]
    values = shared + rng.normal(size=N_OBJECTS)
    return Measured(
        "",
        float(values.mean()),
        N_OBJECTS,
        sd=float(values.std(ddof=1)),
        values=values,
        blocks=blocks,
        block_means=values.reshape(N_BLOCKS, -1).mean(axis=1),
    )


def compare(
    rng: np.random.Generator,
    n: tuple[int, int],
    spread: tuple[float, float],
    shift: float,
    margin: float | None = None,
) -> dict[str, float]:
    """Return the p-value of each test of one comparison."""
    groups = [
        Group(name, tuple(volume(rng, s, *spread) for _ in range(k)))
        for name, k, s in (("a", n[0], 0.0), ("b", n[1], shift))
    ]
    rows = compare_pair(*groups, margin=margin, relative=False, seed=int(rng.integers(2**32)))
    found = {("naive " if row.naive else "") + row.test: row.p for row in rows}
    return {**found, "main": rows[0].p}


def share(p: list[float]) -> str:
    """Write the share below 5 % with its interval."""
    hits = int(np.sum(np.array(p) < ALPHA))
    low, high = stats.binomtest(hits, len(p)).proportion_ci()
    return f"{hits / len(p):.1%} ({low:.1%}–{high:.1%})"


def run_cases(n_runs: int, shift: float, rng: np.random.Generator) -> list[list[str]]:
    rows = []
    for name, (n_a, n_b, between, along) in CASES.items():
        found = [compare(rng, (n_a, n_b), (between, along), shift) for _ in range(n_runs)]

        def of(test: str, found: list[dict[str, float]] = found) -> str:
            return share([one.get(test, np.nan) for one in found])

        rows.append(
            [name, f"{n_a} + {n_b}", of("main"), of("permutation"), of("ks"), of("naive anova")]
        )
        # A comparison by z-blocks has the permutation for its main test.
        if n_a == n_b == 1:
            rows[-1][3] = "–"
    return rows


def equivalence(n_runs: int, rng: np.random.Generator) -> list[list[str]]:
    margin, rows = 0.5, []
    draw: Callable[[int, float], list[float]] = lambda n, shift: [  # noqa: E731
        compare(rng, (n, n), (0.2, 0.0), shift, margin)["equivalence"] for _ in range(n_runs)
    ]
    for n in (3, 5, 10, 25):
        rows.append([f"{n} + {n}", share(draw(n, 0.0)), share(draw(n, margin))])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="comparisons of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    columns = ("objects of", "volumes", "main test", "permutation", "distributions", "naive")
    for title, shift in (("False positives at 5 %", 0.0), ("Power at 5 %, one sd apart", 1.0)):
        report(title, columns, run_cases(arguments.runs, shift, rng))
    report(
        "Equivalence within half an sd: share called equal",
        ("volumes", "the same", "apart by the margin"),
        equivalence(arguments.runs, rng),
    )


if __name__ == "__main__":
    main()
