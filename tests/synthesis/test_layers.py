"""Layers against direct computations."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from scipy.signal import convolve2d

from cvdask.synthesis import layers

RANDOM = np.random.default_rng(0)
KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def numpy(tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def test_enlarging_is_zeros_in_between_and_a_blur():
    x = normal(2, 6, 5, 3)
    filled = np.zeros((2, 12, 10, 3))
    filled[:, ::2, ::2] = x
    found = numpy(layers.enlarge(ops.convert_to_tensor(x)))
    assert found.shape == filled.shape
    for i in range(2):
        for c in range(3):
            whole = convolve2d(filled[i, ..., c], 4 * KERNEL)[1:13, 1:11]
            # Every value twice, then [1, 2, 1], sees the zeros outside half a step earlier.
            np.testing.assert_allclose(found[i, 1:-1, 1:-1, c], whole[1:-1, 1:-1], atol=1e-6)


def test_reducing_is_a_blur_and_every_second_value():
    x = normal(2, 8, 12, 3)
    found = numpy(layers.reduce(ops.convert_to_tensor(x)))
    for i in range(2):
        for c in range(3):
            whole = convolve2d(x[i, ..., c], KERNEL)[2:-1:2, 2:-1:2]
            np.testing.assert_allclose(found[i, ..., c], whole, atol=1e-6)


def test_modulation_is_that_of_each_images_kernel():
    x, weight, scales = normal(2, 6, 6, 3), normal(3, 3, 3, 4), normal(2, 3)
    found = numpy(layers.modulate(*map(ops.convert_to_tensor, (x, weight, scales)), gain=1.5))
    for i in range(2):
        kernel = weight * scales[i][None, None, :, None]
        kernel = kernel / np.sqrt((kernel**2).sum((0, 1, 2)))
        alone = numpy(ops.conv(x[i : i + 1], kernel, padding="same"))[0]
        np.testing.assert_allclose(found[i], 1.5 * alone, atol=1e-5)


def test_adain_gives_each_channel_the_styles_mean_and_spread():
    x, scale, offset = 3 + 5 * normal(2, 8, 8, 3), normal(2, 3), normal(2, 3)
    found = numpy(layers.normalise_instances(*map(ops.convert_to_tensor, (x, scale, offset))))
    np.testing.assert_allclose(found.mean((1, 2)), offset, atol=1e-5)
    np.testing.assert_allclose(found.std((1, 2)), np.abs(scale), atol=1e-4)


def test_dense_layers_learn_as_slowly_as_told():
    x, weight, bias = normal(4, 5), normal(5, 6), normal(6)
    found = numpy(layers.dense(*map(ops.convert_to_tensor, (x, weight, bias)), rate=0.01))
    np.testing.assert_allclose(found, 0.01 * (x @ weight / 5**0.5 + bias), atol=1e-6)


@pytest.mark.parametrize(("n", "group"), [(8, 4), (6, 3), (1, 1), (5, 1)])
def test_spread_is_the_mean_deviation_of_a_group(n, group):
    x = normal(n, 2, 2, 3)
    found = numpy(layers.spread(ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(found[..., :3], x)
    expected = x.reshape(group, n // group, 2, 2, 3).std(0).mean((1, 2, 3))
    for i in range(n):
        np.testing.assert_allclose(found[i, ..., 3], expected[i % (n // group)], atol=1e-3)


def test_noise_is_normal_and_each_seeds_own():
    seeds = np.arange(64, dtype=np.uint32)
    found = numpy(layers.noise(ops.convert_to_tensor(seeds), 5, 32))
    assert found.shape == (64, 32, 32, 1)
    assert abs(found.mean()) < 0.02
    assert abs(found.std() - 1) < 0.02
    assert abs((found**4).mean() - 3) < 0.15
    flat = found.reshape(64, -1)
    between = np.corrcoef(flat)[~np.eye(64, dtype=bool)]
    assert np.abs(between).max() < 0.2  # 1024 numbers: standard deviation 0.03
    beside = (found[:, :, 1:] * found[:, :, :-1]).mean()
    assert abs(beside) < 0.02
    alone = numpy(layers.noise(ops.convert_to_tensor(seeds[7:8]), 5, 32))
    np.testing.assert_array_equal(alone[0], found[7])
    other = numpy(layers.noise(ops.convert_to_tensor(seeds), 6, 32))
    assert abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.02
