"""What do the two networks try to make small?

With ``D`` the score, ``x`` real and ``y`` generated:

=============  ==================================  ==================================
loss           discriminator                       generator
=============  ==================================  ==================================
non-saturating softplus(D(y)) + softplus(−D(x))    softplus(−D(y))
rpgan          softplus(D(y) − D(x))               softplus(D(x) − D(y))
=============  ==================================  ==================================

to which the generator's adds, by a weight, how far the share of each class is from the real one
(:func:`share_difference`); and, lazily, in steps of their own:

- R1, γ/2 · |∂D(x)/∂x|² (Mescheder et al. 2018), and R2, the same at ``y``; both with the
  relativistic loss (Huang et al. 2024, R3GAN),
- the path length, (|∂(G(w)·n)/∂w| − mean)², with n normal noise over √voxels (Karras et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from keras import ops

from cvdask.synthesis.autodiff import gradient

Loss = Literal["non_saturating", "rpgan_r1_r2"]

# A class that takes less of the real slices than this is compared as if it took as much.
LEAST_SHARE = 0.01


def discriminator_loss(loss: Loss, real: Any, generated: Any) -> Any:
    """Return what the discriminator makes small.

    Parameters
    ----------
    loss : Loss
    real, generated : (N,)
        Scores.
    """
    if loss == "rpgan_r1_r2":
        return ops.mean(ops.softplus(generated - real))
    return ops.mean(ops.softplus(generated) + ops.softplus(-real))


def generator_loss(loss: Loss, real: Any, generated: Any) -> Any:
    """Return what the generator makes small; ``real`` is used by the relativistic loss alone."""
    if loss == "rpgan_r1_r2":
        return ops.mean(ops.softplus(real - generated))
    return ops.mean(ops.softplus(-generated))


def share_difference(real: Any, generated: Any) -> Any:
    """Return how far the classes' shares of generated slices are from those of real ones.

    The relative difference of each class is taken in either half of the batch, and both are
    multiplied: the expected product is the square of the expected difference. The square of one
    batch's difference would hold its chance as well, and teach slices to be alike.

    Parameters
    ----------
    real, generated : (M, H, W, C)
        One-hot, or probabilities, of the same places. A single slice is both halves.

    Returns
    -------
    number
        Sum over the classes; below 0 where halves differ in sign.
    """
    half = (real.shape[0] + 1) // 2
    shares = ops.mean(real, axis=(1, 2))  # (M, C)
    differences = ops.mean(generated, axis=(1, 2)) - shares
    scale = ops.maximum(ops.mean(shares, axis=0), LEAST_SHARE)
    first, second = (
        ops.mean(part, axis=0) / scale for part in (differences[:half], differences[-half:])
    )
    return ops.sum(first * second)


def gradient_penalty(score: Callable[[Any], Any], slices: Any) -> Any:
    """Return the squared length of the gradient of a score by what it sees (R1, R2).

    Parameters
    ----------
    score : callable
        From (N, H, W, C) slices to (N,) scores. The mean over samples of what one changes in
        another's score (``spread``) is part of it, as in the original.
    slices : (N, H, W, C)
        −1 to 1, or 0 to 1: the gradient is by these numbers.

    Returns
    -------
    number
        Mean over the samples.
    """
    found = gradient(lambda x: ops.sum(score(x)), slices)
    return ops.mean(ops.sum(ops.square(found), axis=(1, 2, 3)))


def path_lengths(image: Callable[[Any], Any], styles: Any, noise: Any) -> Any:
    """Return how much an image changes with its styles.

    Parameters
    ----------
    image : callable
        From (M, n_layers, W) styles to (M, H, W, C) images.
    styles : (M, n_layers, W)
    noise : (M, H, W, 1) or (M, H, W, C)
        Normal numbers.

    Returns
    -------
    (M,)
        Root of the mean over layers of the squared gradient.
    """
    _, height, width, _ = noise.shape
    scaled = noise / (height * width) ** 0.5
    found = gradient(lambda w: ops.sum(image(w) * scaled), styles)
    return ops.sqrt(ops.mean(ops.sum(ops.square(found), axis=2), axis=1) + 1e-12)
