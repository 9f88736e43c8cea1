"""The trainable linear unit is what the formula says."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from cvdask.segmentation.layers import TrainableLinearUnit


def test_it_starts_as_a_rectifier():
    x = np.array([[-2.0, -0.5], [0.0, 3.0]], np.float32)
    unit = TrainableLinearUnit()
    np.testing.assert_array_equal(unit(x), [[0, 0], [0, 3]])
    assert [weight.name for weight in unit.trainable_weights] == ["alpha", "beta"]


def test_each_channel_has_its_own_slopes():
    x = np.array([-2, -1, 0, 1, 2], np.float32)
    unit = TrainableLinearUnit()
    unit.build((None, 2))
    unit.set_weights([np.array([0.5, -1]), np.array([2, 3])])
    np.testing.assert_array_equal(unit(np.stack([x, x], -1))[:, 0], [-1, -0.5, 0, 2, 4])
    np.testing.assert_array_equal(unit(np.stack([x, x], -1))[:, 1], [2, 1, 0, 3, 6])


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_it_computes_in_its_precision_and_learns_in_float32(precision):
    unit = TrainableLinearUnit(dtype=precision)
    output = unit(np.ones((1, 4, 4, 3), np.float32))
    assert keras.backend.standardize_dtype(output.dtype) == precision.removeprefix("mixed_")
    assert output.shape == unit.compute_output_shape((1, 4, 4, 3)) == (1, 4, 4, 3)
    assert {weight.dtype for weight in unit.weights} == {"float32"}


def test_keras_can_make_it_again():
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(TrainableLinearUnit(name="unit", dtype="float16")),
        safe_mode=True,
    )
    assert isinstance(again, TrainableLinearUnit)
    assert (again.name, again.compute_dtype) == ("unit", "float16")
