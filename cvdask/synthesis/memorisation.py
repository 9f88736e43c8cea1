"""Did a generator learn, or did it learn by heart?

1. Slices are compared pixel by pixel: their distance is the share of pixels whose class differs,
   after a reduction to at most 64 × 64 pixels by majority.
2. For each generated slice, the nearest training slice. Beside it, for each real slice that the
   network has *not* seen, its nearest training slice: that is how near an honest slice comes.
3. Where no unseen slices are given, each training slice stands in for one, compared with those of
   other volumes and those at least 32 slices away: what an unseen part of the tissue would be like.
4. Generated slices that lie nearer than the nearest 5 % of unseen ones, and nearer than three
   quarters of the median, are suspects. Of honest slices they are one in twenty at most; more than
   twice as many, and the test fails. (The second condition is for small stacks, whose slices stand
   in for few independent ones.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cvdask.synthesis.majority import vote

COMPARED_RESOLUTION = 64
# Slices that lie this far apart in a stack count as unseen by each other.
APART = 32
NEAREST_SHARE, OF_MEDIAN, MOST_SUSPECTS = 0.05, 0.75, 0.10


@dataclass(frozen=True)
class Memorisation:
    """How near generated slices come to training slices, and unseen real ones.

    Parameters
    ----------
    generated, unseen : float
        Median distance to the nearest training slice: share of pixels that differ.
    threshold : float
        Distance that makes a suspect: 5 % of the unseen ones stay below it, at most.
    suspects : float
        Share of the generated ones that do.
    n_generated, n_unseen : int
    stand_in : bool
        Whether training slices stood in for unseen ones.
    """

    generated: float
    unseen: float
    threshold: float
    suspects: float
    n_generated: int
    n_unseen: int
    stand_in: bool

    @property
    def passed(self) -> bool:
        """Whether no more generated slices than twice the honest share lie too near."""
        return self.suspects <= MOST_SUSPECTS

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-ready values."""
        return {**asdict(self), "passed": self.passed}


def memorisation(
    generated: np.ndarray,
    training: np.ndarray,
    n_channels: int,
    *,
    unseen: np.ndarray | None = None,
    z: np.ndarray | None = None,
    volume: np.ndarray | None = None,
) -> Memorisation:
    """Compare generated slices with their nearest training slices.

    Parameters
    ----------
    generated, training : (n, R, R), (m, R, R) uint8
        Channel numbers.
    n_channels : int
    unseen : (u, R, R) uint8, optional
        Real slices that were not trained on.
    z, volume : (m,) int, optional
        Where each training slice lies, for the stand-in; by default one behind the other in one
        volume.

    Raises
    ------
    ValueError
        When a set is empty.
    """
    if not len(generated) or not len(training):
        raise ValueError(
            f"generated and training slices are compared. Received: {len(generated)} and "
            f"{len(training)}"
        )
    known = _reduced(training)
    near = _nearest(_reduced(generated), known, n_channels)
    stand_in = unseen is None
    if unseen is not None:
        honest = _nearest(_reduced(unseen), known, n_channels)
    else:
        z = np.arange(len(known)) if z is None else np.asarray(z)
        volume = np.zeros(len(known), np.int64) if volume is None else np.asarray(volume)
        honest = _nearest_apart(known, n_channels, z, volume)
    threshold = min(float(np.quantile(honest, NEAREST_SHARE)), OF_MEDIAN * float(np.median(honest)))
    return Memorisation(
        generated=float(np.median(near)),
        unseen=float(np.median(honest)),
        threshold=threshold,
        suspects=float((near < threshold).mean()),
        n_generated=len(near),
        n_unseen=len(honest),
        stand_in=stand_in,
    )


def _reduced(slices: np.ndarray) -> np.ndarray:
    """Reduce slices by majority to the resolution at which they are compared."""
    factor = max(1, slices.shape[1] // COMPARED_RESOLUTION)
    if factor == 1:
        return slices
    side = slices.shape[1] // factor
    out = np.empty((len(slices), side, side), np.uint8)
    numbers = np.arange(len(slices))
    whole = np.ascontiguousarray(slices[:, : side * factor, : side * factor])
    vote(whole, numbers, np.arange(256, dtype=np.uint8), factor, out, numbers)
    return out


def _differing(slices: np.ndarray, known: np.ndarray, n_channels: int) -> np.ndarray:
    """Return the share of pixels that differ: (n, m). Counts of pixels are exact in float32."""
    equal = np.zeros((len(slices), len(known)), np.float32)
    left, right = slices.reshape(len(slices), -1), known.reshape(len(known), -1)
    for channel in range(n_channels):
        equal += (left == channel).astype(np.float32) @ (right == channel).astype(np.float32).T
    return 1 - equal.astype(np.float64) / left.shape[1]


def _nearest(slices: np.ndarray, known: np.ndarray, n_channels: int) -> np.ndarray:
    rows = [
        _differing(slices[first : first + 256], known, n_channels).min(axis=1)
        for first in range(0, len(slices), 256)
    ]
    return np.concatenate(rows)


def _nearest_apart(
    known: np.ndarray, n_channels: int, z: np.ndarray, volume: np.ndarray
) -> np.ndarray:
    """Return, for each slice, its distance to the nearest that lies elsewhere.

    In a stack too shallow for that, elsewhere is a quarter of the stack away.
    """
    apart = min(APART, max(1, int(np.ptp(z)) // 4))
    found = []
    for first in range(0, len(known), 256):
        rows = slice(first, first + 256)
        distance = _differing(known[rows], known, n_channels)
        near = (np.abs(z[rows, None] - z) < apart) & (volume[rows, None] == volume)
        distance[near] = np.inf
        found.append(distance.min(axis=1))
    nearest = np.concatenate(found)
    alone = ~np.isfinite(nearest)
    nearest[alone] = 1.0
    return nearest
