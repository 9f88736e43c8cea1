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
