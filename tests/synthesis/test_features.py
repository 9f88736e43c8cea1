"""Features: equal to a second implementation in whole numbers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

from cvdask.synthesis import features as features_module
from cvdask.synthesis.features import FILTERS, FIRST_FILTERS, feature_blocks, slice_features


def whole_numbers(picture: np.ndarray, n_channels: int) -> np.ndarray:
    """The same network with SciPy's correlation of int64."""
    values = np.stack([(picture == c).astype(np.int64) for c in range(n_channels)], axis=-1)
    described = [np.array([(picture == c).mean() for c in range(n_channels)])]
    scale = 0
    while min(values.shape[:2]) >= 3:
        weights = features_module._weights(scale, n_channels).astype(np.int64)
        n_in, n_out = values.shape[-1], weights.shape[1]
        filters = weights.reshape(3, 3, n_in, n_out)
        response = np.stack(
            [
                sum(correlate(values[..., c], filters[..., c, f]) for c in range(n_in))[1:-1, 1:-1]
                for f in range(n_out)
            ],
            axis=-1,
        )
        response = np.maximum(response, 0)
        described += [response.mean((0, 1)), response.std((0, 1))]
        y, x = (n // 2 * 2 for n in response.shape[:2])
        cells = response[:y, :x].reshape(y // 2, 2, x // 2, 2, n_out).sum((1, 3))
        if scale == 0:
            values = 8 * cells
        else:
            bits = round(np.log2(2 * np.sqrt(9 * n_in * 2 / 3)))
            values = np.minimum(cells >> bits, 2**15 - 1)
        scale += 1
    return np.concatenate(described)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(2, 5), st.sampled_from([8, 11, 16, 24]))
def test_equal_to_whole_numbers(seed, n_channels, side):
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, n_channels, (2, -(-side // 4), -(-side // 4)), np.uint8)
    slices = coarse.repeat(4, 1).repeat(4, 2)[:, :side, :side].copy()
    slices[1] = chance.integers(0, n_channels, (side, side))
    found = slice_features(slices, n_channels)
    assert found.shape == (2, feature_blocks(side, n_channels)[-1].stop)
    expected = [whole_numbers(picture, n_channels) for picture in slices]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-6)


def test_sums_stay_exact_in_float32():
    # The largest sum of products: every activation the largest, every weight 1.
    assert 9 * FILTERS * features_module.LARGEST < 2**24
    assert 9 * FIRST_FILTERS * 4 * 9 * features_module.GAIN < 2**24


def test_a_slice_has_its_features_whoever_stands_beside_it():
    slices = np.random.default_rng(0).integers(0, 4, (5, 32, 32), np.uint8)
    together = slice_features(slices, 4)
    for number in range(5):
        alone = slice_features(slices[number : number + 1], 4)
        np.testing.assert_array_equal(alone[0], together[number])
    assert slice_features(slices[:0], 4).shape == (0, together.shape[1])


def test_weights_are_fixed():
    # Numbers in reports are of this network: another would be another distance.
    first = features_module._weights(0, 3)
    assert first.shape == (27, 16)
    assert set(np.unique(first)) == {-1, 0, 1}
    assert first[0].tolist() == [0, 0, 0, -1, -1, 0, 1, -1, -1, 0, 0, 0, -1, 0, 1, 0]


def test_what_is_no_slice_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2, 2\)"):
        slice_features(np.zeros((3, 2, 2), np.uint8), 4)
    with pytest.raises(ValueError, match=r"0 to 2.*: 3"):
        slice_features(np.full((1, 8, 8), 3, np.uint8), 3)
