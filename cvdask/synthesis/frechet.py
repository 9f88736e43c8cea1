"""How far are generated slices from real ones, and how far is real from real?

A distance alone says little: it depends on how many slices there are and how much real slices
differ from one another. So it stands beside its floor, the same distance between two halves of the
real slices.

1. Slices become features (``synthesis.features``), standardised by the real ones, and projected on
   the real ones' principal components; what the components do not span is one coordinate more.
   Lengths are divided by the root of the number of features: 1 is the variance of real slices.
2. :func:`frechet_distance` and :func:`kernel_distance` compare the two clouds as a whole;
   :func:`density_and_coverage` tells whether the generated lie among the real (density), and
   whether all the real have generated near them (coverage).
3. :func:`fit_reference` does what depends on the real slices only, once; then
   :meth:`Reference.distance` is fast enough for every report of a training.

Neighbouring slices of a stack are nearly equal, so halves drawn at random would hold each other's
copies, and a floor of almost nothing. Halves are taken block by block instead::

    z        0 … 15 | 16 … 31 | 32 … 47 | 48 … 63
    half       A    |    B    |    A    |    B
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cvdask.synthesis.features import feature_blocks, slice_features
from cvdask.synthesis.slices import SliceSet

# Most components that are kept, and the share of the variance that is enough.
LARGEST_COMPONENTS = 64
ENOUGH_VARIANCE = 0.999
# Slices for each component: a covariance needs points.
SLICES_PER_COMPONENT = 8
# A feature that hardly varies between real slices is not blown up: its spread is this share of the
# median of its kind, at least.
LEAST_SPREAD = 0.1
# Slices of a block of a half.
BLOCK = 16
# Neighbours that make a ball: as in the paper.
NEIGHBOURS = 5
# Slices that describe the real ones well enough.
ENOUGH_SLICES = 2000


@dataclass(frozen=True)
class Distance:
    """How far one set of slices is from another.

    Parameters
    ----------
    frechet : float
        Fréchet distance of two Gaussian clouds of features; 0 where they are the same, 1 is the
        variance of real slices. Fewer slices come out farther, so the floor, of halves, is about
        twice what slices of one kind have.
    kernel : float
        Unbiased squared maximum mean discrepancy (KID); around 0, also below, where the sets are
        of one kind.
    density : float
        Balls around real slices that a slice lies in, over those expected: around 1 for slices of
        one kind, 0 far away.
    coverage : float
        Share of the real slices that have one within their ball.
    n_slices, n_reference : int
        Slices that were compared.
    """

    frechet: float
    kernel: float
    density: float
    coverage: float
    n_slices: int
    n_reference: int

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """Real slices, as far as distances need them; made by :func:`fit_reference`.

    Parameters
    ----------
    n_channels : int
    resolution : int
    mean, spread : (d,) float64
        Of the real features.
    components : (d, k) float64
        Principal components of the standardised features.
    points : (n, k + 1) float64
        The real slices.
    fractions : (n, n_channels) float64
        Share of each channel in each real slice.
    floor : Distance
        One half of the real slices from the other.
    """

    n_channels: int
    resolution: int
    mean: np.ndarray = field(repr=False)
    spread: np.ndarray = field(repr=False)
    components: np.ndarray = field(repr=False)
    points: np.ndarray = field(repr=False)
    fractions: np.ndarray = field(repr=False)
    floor: Distance

    def project(self, slices: np.ndarray) -> np.ndarray:
        """Return the points of slices: (n, k + 1) float64.

        Parameters
        ----------
        slices : (n, R, R) uint8
            Channel numbers.
        """
        return _project(
            slice_features(slices, self.n_channels), self.mean, self.spread, self.components
        )

    def distance(self, slices: np.ndarray) -> Distance:
        """Return how far slices are from the real ones.

        Parameters
        ----------
        slices : (n, R, R) uint8
            Channel numbers, of the resolution of the real ones; two at least.

        Raises
        ------
        ValueError
            When slices have another size, or there are fewer than two.
        """
        if slices.shape[1:] != (self.resolution, self.resolution) or len(slices) < 2:
            raise ValueError(
                f"at least 2 slices of {self.resolution} × {self.resolution} pixels are compared. "
                f"Received: {slices.shape}"
            )
        return compare_points(self.project(slices), self.points)

    def ratio(self, distance: Distance) -> float:
        """Return a Fréchet distance in units of the floor; infinite where the floor is 0."""
        return distance.frechet / self.floor.frechet if self.floor.frechet > 0 else math.inf


def reference_of(slices: SliceSet, most: int = ENOUGH_SLICES) -> Reference:
    """Fit the reference to slices of a set, as a training sees them.

    Parameters
    ----------
    slices : SliceSet
    most : int
        Slices, at most.
    """
    real, index = slices.examples(most)
    return fit_reference(real, slices.n_channels, volume=slices.volume[index])


def fit_reference(
    slices: np.ndarray, n_channels: int, *, volume: np.ndarray | None = None
) -> Reference:
    """Learn from real slices what distances need.

    Parameters
    ----------
    slices : (n, R, R) uint8
        Channel numbers, in the order of the stack.
    n_channels : int
    volume : (n,) int, optional
        Number of each slice's volume; by default all are of one. Blocks of the two halves end
        where a volume ends.

    Raises
    ------
    ValueError
        When there are fewer than 4 slices: no two halves of two.
    """
    if len(slices) < 4:
        raise ValueError(
            f"a distance and its floor take at least 4 real slices. Received: {len(slices)}"
        )
    features = slice_features(slices, n_channels)
    mean, spread = (
        features.mean(axis=0),
        _spread(features, feature_blocks(slices.shape[1], n_channels)),
    )
    components = _principal((features - mean) / spread)
    points = _project(features, mean, spread, components)
    half = halves(len(slices), volume)
    return Reference(
        n_channels=n_channels,
        resolution=slices.shape[1],
        mean=mean,
        spread=spread,
        components=components,
        points=points,
        fractions=features[:, :n_channels],
        floor=compare_points(points[~half], points[half]),
    )


def halves(n_slices: int, volume: np.ndarray | None = None) -> np.ndarray:
    """Divide a stack into two halves, block by block in turn: (n,) bool.

    >>> halves(8, None).astype(int)
    array([0, 0, 1, 1, 0, 0, 1, 1])
    """
    volume = np.zeros(n_slices, np.int64) if volume is None else volume
    half = np.zeros(n_slices, bool)
    turn = False
    for number in np.unique(volume):
        mine = np.flatnonzero(volume == number)
        # An even number of equal blocks; four at least, where a stack is that deep.
        n_blocks = 2 * max(1, round(len(mine) / BLOCK / 2), min(2, len(mine) // 4))
        for block in np.array_split(mine, n_blocks):
            half[block] = turn
            turn = not turn
    return half


def compare_points(points: np.ndarray, reference: np.ndarray) -> Distance:
    """Compare two clouds of points (n, k) and (m, k), at least two each."""
    density, coverage = density_and_coverage(points, reference)
    return Distance(
        frechet=frechet_distance(points, reference),
        kernel=kernel_distance(points, reference),
        density=density,
        coverage=coverage,
        n_slices=len(points),
        n_reference=len(reference),
    )


def frechet_distance(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the Fréchet distance of the Gaussians with the moments of two clouds.

    ‖μ1 − μ2‖² + tr(Σ1 + Σ2 − 2 (Σ1^½ Σ2 Σ1^½)^½).

    Parameters
    ----------
    points, reference : (n, k), (m, k) float64
        At least two points each.

    References
    ----------
    Dowson and Landau 1982, J. Multivariate Analysis 12: 450, equation 4; for images Heusel et al.
    2017, "GANs trained by a two time-scale update rule".

    Examples
    --------
    >>> line = np.arange(5.0)[:, None]
    >>> frechet_distance(line, line + 3)
    9.0
    """
    first, second = (np.atleast_2d(np.cov(cloud.T)) for cloud in (points, reference))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    shift = points.mean(axis=0) - reference.mean(axis=0)
    # Equal clouds may come out below 0 by rounding.
    return max(0.0, float(shift @ shift + np.trace(first) + np.trace(second) - 2 * shared))


def kernel_distance(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the unbiased squared MMD of two clouds with the kernel (x·y + 1)³.

    The kernel is (x·y / d + 1)³ of d standardised features: points are divided by the root of d.

    Parameters
    ----------
    points, reference : (n, k), (m, k) float64
        At least two points each.

    References
    ----------
    Binkowski et al. 2018, "Demystifying MMD GANs", section 4; Gretton et al. 2012, lemma 6.
    """

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T + 1) ** 3

    within = 0.0
    for cloud in (points, reference):
        n = len(cloud)
        values = kernel(cloud, cloud)
        within += float(values.sum() - np.trace(values)) / (n * (n - 1))
    return within - 2 * float(kernel(points, reference).mean())


def density_and_coverage(points: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Tell how points lie in the balls around reference points.

    A ball reaches to its centre's fifth neighbour among the reference (or the farthest, where
    there are fewer).

    Returns
    -------
    density : float
        Balls that a point lies in, on average, over five.
    coverage : float
        Share of the balls that hold a point.

    References
    ----------
    Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models", equations 4
    and 5.
    """
    k = min(NEIGHBOURS, len(reference) - 1)
    among = _square_distances(reference, reference)
    radius = np.partition(among, k, axis=1)[:, k]  # the nearest is the point itself
    inside = _square_distances(reference, points) <= radius[:, None]
    return float(inside.sum() / (k * len(points))), float(inside.any(axis=1).mean())


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(a, b, "sqeuclidean"))


def _spread(features: np.ndarray, blocks: Sequence[slice]) -> np.ndarray:
    """Return what features are divided by: (d,) standard deviations, none too small."""
    spread = features.std(axis=0)
    for block in blocks:
        kind = spread[block]
        median = np.median(kind[kind > 0]) if (kind > 0).any() else 1.0
        spread[block] = np.maximum(kind, LEAST_SPREAD * median)
    return spread


def _principal(standard: np.ndarray) -> np.ndarray:
    """Return the principal components that hold nearly all variance: (d, k)."""
    _, singular, rows = np.linalg.svd(standard, full_matrices=False)
    share = np.cumsum(singular**2) / max(float((singular**2).sum()), 1e-300)
    enough = int(np.searchsorted(share, ENOUGH_VARIANCE)) + 1
    most = max(1, min(LARGEST_COMPONENTS, len(standard) // SLICES_PER_COMPONENT, enough))
    # A component has two directions; the same one on every machine.
    kept = rows[:most]
    signs = np.sign(kept[np.arange(most), np.abs(kept).argmax(axis=1)])
    return (kept * signs[:, None]).T


def _project(
    features: np.ndarray, mean: np.ndarray, spread: np.ndarray, components: np.ndarray
) -> np.ndarray:
    """Return components and, last, the length of what they leave: (n, k + 1)."""
    standard = (features - mean) / spread / math.sqrt(features.shape[1])
    points = standard @ components
    rest = standard - points @ components.T
    return np.concatenate([points, np.sqrt((rest**2).sum(axis=1))[:, None]], axis=1)
