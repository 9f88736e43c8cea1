"""The trainable linear unit is what the formula says, and the normalisation is that of Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from cvdask.segmentation.layers import BatchNormalization, TrainableLinearUnit


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


def normalisations(**options):
    """Return ours and Keras' with the same weights."""
    layers = [
        kind(momentum=0.75, epsilon=1e-3, **options)
        for kind in (BatchNormalization, keras.layers.BatchNormalization)
    ]
    weights = np.random.default_rng(1).uniform(0.5, 2, (4, 3))  # γ, β, mean, variance
    for layer in layers:
        layer.build((None, None, None, 3))
        layer.set_weights(list(weights))
    return layers


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (1, 1, 2, 3)])
def test_it_normalises_and_remembers_as_keras_does(shape, training):
    x = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    ours, theirs = normalisations()
    np.testing.assert_allclose(ours(x, training=training), theirs(x, training=training), atol=1e-5)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow differs")
def test_it_is_learned_through_as_keras_is():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = tf.Variable(rng.normal(3, 2, (2, 6, 5, 3)).astype(np.float32))
    weights = rng.normal(size=x.shape).astype(np.float32)

    def gradients(layer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weights * layer(x, training=True) ** 2)
        return tape.gradient(loss, [x, *(one.value for one in layer.trainable_variables)])

    for a, b in zip(*map(gradients, normalisations()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_it_normalises_half_precision_as_keras_does():
    x = np.random.default_rng(0).normal(3, 2, (4, 6, 5, 3)).astype(np.float32)
    outputs = [layer(x, training=True) for layer in normalisations(dtype="mixed_bfloat16")]
    assert {keras.backend.standardize_dtype(one.dtype) for one in outputs} == {"bfloat16"}
    ours, theirs = (keras.ops.convert_to_numpy(keras.ops.cast(o, "float32")) for o in outputs)
    np.testing.assert_allclose(ours, theirs, atol=0.05)
