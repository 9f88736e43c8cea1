"""Which crops does the network see, in which order? Batches, prepared while it takes its step.

1. :func:`choose_crop` picks a patch and a place in it; half of the crops show a class that is drawn
   evenly from all, so that a class of one voxel in a thousand is not waited for.
2. :func:`batches` cuts and augments the crops of each epoch, each from a random generator of its
   own: (seed, fold, epoch, number). A training that goes on after a kill sees the crops that it
   would have seen.
3. :func:`cvdask.networks.prefetch.prefetch` does that in a thread, a few batches ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cvdask.segmentation.augment import augment, cut

# Half of the crops are drawn around a voxel of a class, each class as often as any other.
SHARE_BALANCED = 0.5
# Positions of a class that are remembered per patch, for crops to be centred on.
MOST_POSITIONS = 4096

# (image (S, S) float32 normalised, target (S, S) uint8) of each patch
Data = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class CropPlan:
    """How the crops of one fold are drawn.

    Parameters
    ----------
    n_classes : int
        Background included.
    size : int
        Voxels of a crop along y and x.
    batch_size : int
        Crops per step.
    n_steps : int
        Steps per epoch.
    epochs : int
    key : tuple of int
        Seed and number of the fold: what the random generators start from.
    balanced : bool
        Whether half of the crops are drawn by class.
    augmented : bool
        Whether crops are altered; see ``augment``.
    upright : bool
        Whether they keep the direction of the tissue then.
    """

    n_classes: int
    size: int
    batch_size: int
    n_steps: int
    epochs: int
    key: tuple[int, int]
    balanced: bool = True
    augmented: bool = True
    upright: bool = False


def batches(
    training: Data, plan: CropPlan, first_epoch: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the batches of the epochs from ``first_epoch``, ``plan.n_steps`` for each.

    Parameters
    ----------
    training : sequence of (image (S, S) float32 normalised, target (S, S) uint8)
    plan : CropPlan
    first_epoch : int

    Yields
    ------
    images : (B, size, size, 1) float32
    targets : (B, size, size, 1) uint8
    """
    places = [positions(training, channel) for channel in range(plan.n_classes)]
    for epoch in range(first_epoch, plan.epochs):
        for first in range(0, plan.n_steps * plan.batch_size, plan.batch_size):
            crops = []
            for number in range(first, first + plan.batch_size):
                rng = np.random.default_rng((*plan.key, epoch, number))
                i, center = choose_crop(training, places, plan, rng)
                if plan.augmented:
                    altered = augment(*training[i], center, plan.size, rng, upright=plan.upright)
                    crops.append(altered)
                else:
                    crops.append(cut(*training[i], center, plan.size))
            images, targets = zip(*crops, strict=True)
            yield np.stack(images)[..., None], np.stack(targets)[..., None]


def positions(training: Data, channel: int) -> list[tuple[int, np.ndarray]]:
    """List, for the patches that show a channel, where: (N, 2) rows and columns, evenly thinned."""
    found = []
    for i, (_, target) in enumerate(training):
        flat = np.flatnonzero(target == channel)
        if len(flat):
            flat = flat[:: -(-len(flat) // MOST_POSITIONS)]
            found.append((i, np.stack(np.unravel_index(flat, target.shape), 1)))
    return found


def choose_crop(
    training: Data,
    places: Sequence[Sequence[tuple[int, np.ndarray]]],
    plan: CropPlan,
    rng: np.random.Generator,
) -> tuple[int, tuple[float, float]]:
    """Choose a patch and the centre of a crop in it.

    Half of the crops hold a voxel of a class drawn evenly from all, off the centre by up to a
    quarter of the crop: what is rare must not always be seen in the middle.
    """
    if plan.balanced and rng.random() < SHARE_BALANCED:
        shown = [one for one in places if one]
        channel = shown[int(rng.integers(len(shown)))]
        i, shows = channel[int(rng.integers(len(channel)))]
        y, x = shows[rng.integers(len(shows))] + rng.uniform(-0.25, 0.25, 2) * plan.size
        return i, (float(y), float(x))
    i = int(rng.integers(len(training)))
    y, x = rng.uniform(0, training[i][0].shape)
    return i, (float(y), float(x))
