"""Losses from their definitions; penalties against gradients known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from cvdask.synthesis.autodiff import gradient
from cvdask.synthesis.losses import (
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    path_lengths,
    share_difference,
)

RANDOM = np.random.default_rng(0)
REAL, FAKE = np.float32([1.5, -0.5]), np.float32([0.5, -2.0])


def softplus(x):
    return np.log1p(np.exp(x))


def test_losses_by_definition():
    expected = {
        "non_saturating": (softplus(FAKE) + softplus(-REAL), softplus(-FAKE)),
        "rpgan_r1_r2": (softplus(FAKE - REAL), softplus(REAL - FAKE)),
    }
    real, fake = ops.convert_to_tensor(REAL), ops.convert_to_tensor(FAKE)
    for loss, (ours, theirs) in expected.items():
        assert float(discriminator_loss(loss, real, fake)) == pytest.approx(ours.mean(), rel=1e-5)
        assert float(generator_loss(loss, real, fake)) == pytest.approx(theirs.mean(), rel=1e-5)


def test_the_penalty_of_a_quadratic_score():
    # D(x) = |x|²: the gradient is 2x, and that of the penalty 4|x|² is 8x / n.
    x = ops.convert_to_tensor(RANDOM.normal(size=(3, 4, 4, 2)).astype(np.float32))

    def penalty(slices):
        return gradient_penalty(lambda y: ops.sum(ops.square(y), axis=(1, 2, 3)), slices)

    values = ops.convert_to_numpy(x)
    assert float(penalty(x)) == pytest.approx(4 * (values**2).sum() / 3, rel=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(gradient(penalty, x)), 8 * values / 3, rtol=1e-4
    )


def test_the_path_length_of_a_linear_image():
    # image = w · A: the gradient of the sum with n is A n, whatever w.
    matrix = RANDOM.normal(size=(6, 4 * 4 * 2)).astype(np.float32)
    style = ops.convert_to_tensor(RANDOM.normal(size=(2, 3, 6)).astype(np.float32))
    noise = RANDOM.normal(size=(2, 4, 4, 2)).astype(np.float32)

    def image(w):
        return ops.reshape(ops.matmul(ops.sum(w, axis=1), matrix), (2, 4, 4, 2))

    found = path_lengths(image, style, ops.convert_to_tensor(noise))
    expected = np.linalg.norm(noise.reshape(2, -1) / 4 @ matrix.T, axis=1)  # the same per layer
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


def one_hot(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw slices of 8² voxels whose classes have these shares, (n, C), on average."""
    drawn = [rng.choice(len(one), (8, 8), p=one) for one in shares]
    return np.eye(shares.shape[1], dtype=np.float32)[np.stack(drawn)]


def test_the_difference_of_shares_is_by_halves():
    real = one_hot(np.full((4, 3), 1 / 3), RANDOM)
    generated = one_hot(np.tile([0.5, 0.25, 0.25], (4, 1)), RANDOM)
    differences = (generated - real).mean((1, 2)) / real.mean((0, 1, 2))
    expected = (differences[:2].mean(0) * differences[2:].mean(0)).sum()
    found = share_difference(ops.convert_to_tensor(real), ops.convert_to_tensor(generated))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    # A single slice is both halves; a class of no voxel divides by no zero.
    alone = share_difference(
        ops.convert_to_tensor(np.eye(2, dtype=np.float32)[np.zeros((1, 2, 2), int)]),
        ops.convert_to_tensor(np.eye(2, dtype=np.float32)[np.ones((1, 2, 2), int)]),
    )
    assert float(alone) == pytest.approx(1 + (1 / 0.01) ** 2, rel=1e-5)


def test_the_difference_of_shares_holds_no_chance():
    # Slices of very different shares, but the same on average: a plain square would be large.
    rng = np.random.default_rng(1)
    shares = np.stack([share := rng.random(2000), 1 - share], axis=1)
    found = np.array(
        [
            float(share_difference(*(ops.convert_to_tensor(one_hot(part, rng)) for part in parts)))
            for parts in shares.reshape(250, 2, 4, 2)
        ]
    )
    assert abs(found.mean()) < 3 * found.std() / 250**0.5
    assert found.std() > 0.05
