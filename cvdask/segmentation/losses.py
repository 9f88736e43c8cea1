"""How wrong is a predicted segmentation? Cross-entropy and Dice, on annotated voxels only.

1. Voxels marked 255 in the target are taken out: they weigh nothing in either part.
2. Cross-entropy asks every voxel; each counts with the weight of its class, and more next to a
   border between classes when asked.
3. Soft Dice asks every class for its overlap over the whole batch, so that a class of one voxel in
   a thousand counts as much as any. Classes that no voxel of the batch shows are left out of the
   mean: their overlap is 0 whatever is predicted.

Both are finite for any probabilities and any target, also without a single annotated voxel. All in
``keras.ops``: the same on every backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from cvdask.volume.colors import UNANNOTATED

# Keeps logarithms and quotients finite. A float32 probability of this size still has a gradient.
TINY = 1e-7
# A class as rare as 1 in 10 000 would weigh a hundred times background; gradients then jump with
# every batch that happens to show it.
LARGEST_WEIGHT = 10.0


class SegmentationLoss(keras.losses.Loss):
    """``(1 - dice) * cross-entropy + dice * (1 - soft Dice)`` of a batch, a scalar.

    Parameters
    ----------
    n_classes : int
        Channels of the prediction, background included.
    class_weights : sequence of float, optional
        Weight of each channel in the cross-entropy; by default all 1.
    dice : float in 0–1
        Share of the Dice term.
    boundary : float
        Voxels that touch another class count ``1 + boundary`` times in the cross-entropy.

    Raises
    ------
    ValueError
        When the number of weights is not that of the classes, or a value leaves its range.
    """

    def __init__(
        self,
        n_classes: int,
        class_weights: Sequence[float] | None = None,
        *,
        dice: float = 0.5,
        boundary: float = 0.0,
        name: str = "segmentation_loss",
    ) -> None:
        super().__init__(name=name, reduction=None)
        weights = [1.0] * n_classes if class_weights is None else [float(w) for w in class_weights]
        if len(weights) != n_classes or min(weights) < 0:
            raise ValueError(
                f"class weights are {n_classes} numbers of at least 0, background first. "
                f"Received: {weights}"
            )
        if not 0 <= dice <= 1 or boundary < 0:
            raise ValueError(
                f"dice lies in 0–1 and boundary is at least 0. Received: {dice} and {boundary}"
            )
        self.n_classes = n_classes
        self.class_weights = weights
        self.dice = dice
        self.boundary = boundary

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss.

        Parameters
        ----------
        y_true : (B, Y, X, 1)
            Channel of each voxel, 255 not annotated; any numeric type.
        y_pred : (B, Y, X, C) float32
            Probabilities.
        """
        target = ops.cast(y_true[..., 0], "int32")  # (B, Y, X)
        annotated = ops.not_equal(target, UNANNOTATED)
        known = ops.cast(annotated, "float32")
        # PyTorch refuses to encode 255, which the other backends encode as zeros.
        target = ops.where(annotated, target, 0)
        truth = ops.one_hot(target, self.n_classes, dtype="float32") * known[..., None]
        predicted = ops.cast(y_pred, "float32")  # (B, Y, X, C)
        cross_entropy = self._cross_entropy(truth, predicted)
        overlap = self._overlap(truth, predicted * known[..., None])
        return (1 - self.dice) * cross_entropy + self.dice * (1 - overlap) * ops.max(known)

    def _cross_entropy(self, truth: Any, predicted: Any) -> Any:
        surprise = -ops.sum(truth * ops.log(ops.maximum(predicted, TINY)), axis=-1)  # (B, Y, X)
        weight = ops.sum(truth * ops.convert_to_tensor(self.class_weights, "float32"), axis=-1)
        if self.boundary:
            # How many classes each voxel has within its 3 × 3 neighbours, itself included.
            near = ops.max_pool(truth, 3, strides=1, padding="same", data_format="channels_last")
            touching = ops.cast(ops.sum(near, axis=-1) > 1, "float32")
            weight = weight * (1 + self.boundary * touching)
        return ops.sum(weight * surprise) / ops.maximum(ops.sum(weight), TINY)

    def _overlap(self, truth: Any, predicted: Any) -> Any:
        """Mean soft Dice of the classes that occur; 1 where none does."""
        over = (0, 1, 2)
        n_true, n_predicted = ops.sum(truth, over), ops.sum(predicted, over)  # (C,)
        both = ops.sum(truth * predicted, over)
        dice = 2 * both / ops.maximum(n_true + n_predicted, TINY)
        occurs = ops.cast(n_true > 0, "float32")
        n_occur = ops.sum(occurs)
        mean = ops.sum(dice * occurs) / ops.maximum(n_occur, 1.0)
        return ops.where(n_occur > 0, mean, 1.0)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Weigh classes by one over the square root of their share, with mean 1 over the voxels.

    The root halves the imbalance on a logarithmic scale: full balance makes rare classes spill
    over their borders. No class weighs more than ten times the lightest.

    Parameters
    ----------
    counts : sequence of int
        Training voxels of each channel, background first.

    Raises
    ------
    ValueError
        When there are no voxels at all.

    Examples
    --------
    >>> [round(weight, 3) for weight in balanced_weights([900, 100])]
    [0.833, 2.5]
    """
    n_voxels = np.asarray(counts, np.float64)
    if n_voxels.sum() <= 0:
        raise ValueError(f"weights need voxels to balance. Received: counts {list(counts)}")
    weights = 1 / np.sqrt(np.maximum(n_voxels, 1))
    weights = np.minimum(weights / weights.min(), LARGEST_WEIGHT)
    return [float(w) for w in weights * n_voxels.sum() / (weights * n_voxels).sum()]
