"""The network is the one described: its size, its cost, how far it sees, and that it learns."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import cvdask
from cvdask.segmentation.model_file import UNet, save
from cvdask.segmentation.unet import (
    PRESETS,
    Architecture,
    build,
    flops_per_pixel,
    fold,
    halo,
    impulse_reach,
    n_parameters,
    stride,
)
from cvdask.volume.boxes import Grid

TINY = {
    "paper": Architecture(n_classes=3, preset="paper", base_width=4, depth=2, n_dense=3),
    "fast": Architecture(n_classes=3, base_width=4, depth=2),
}


def scatter_weights(model: keras.Model, seed: int = 0) -> keras.Model:
    """Give every weight a value that training could have given it, running means included."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name == "kernel":
            weight.assign(random.normal(0, np.prod(weight.shape[:-1]) ** -0.5, weight.shape))
        elif weight.name in ("gamma", "moving_variance"):
            weight.assign(random.uniform(0.5, 2, weight.shape))
        else:
            weight.assign(weight + random.normal(0, 0.2, weight.shape))
    return model


def apply(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------
# Size and cost


def test_the_paper_has_the_parameters_of_the_formula():
    pairs = [
        *[(1, 64), (64, 128), (128, 256), (256, 512)],
        *[(512, 1024), (1024, 1024), (2 * 1024, 1024)],  # each sees all before it
        *[(1024 + 512, 512), (512 + 256, 256), (256 + 128, 128), (128 + 64, 64)],
    ]
    # Two kernels of 3×3; per channel of both, a bias, an α and a β.
    by_hand = sum(9 * a * b + 9 * b * b + 2 * 3 * b for a, b in pairs) + 64 * 2 + 2
    assert by_hand == 78_587_842
    assert n_parameters(Architecture(n_classes=2, preset="paper")) == by_hand


def test_the_paper_has_nine_blocks():
    paper = Architecture(n_classes=2, preset="paper", base_width=1)
    names = [layer.name for layer in build(paper).layers]
    sides = {name[:-1] for name in names if re.fullmatch(r"(down|up)\d[ab]", name)}
    assert len(sides) == 9 - 1  # the dense bottom is the ninth
    convolutions = [name for name in names if re.fullmatch(r"(down|dense|up)\d[ab]", name)]
    assert len(convolutions) == 2 * (4 + 3 + 4)
    assert sum(name.startswith("pool") for name in names) == 4
    assert sum(name.endswith("_tlu") for name in names) == len(convolutions)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("depth", "in_channels"), [(1, 1), (2, 3), (3, 1)])
def test_counts_are_those_of_the_network(preset, depth, in_channels):
    architecture = Architecture(
        n_classes=4, preset=preset, base_width=3, depth=depth, in_channels=in_channels
    )
    model = build(architecture)
    assert n_parameters(architecture) == model.count_params()

    side = 4 * stride(architecture)
    kernels = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    shapes = [
        keras.ops.shape(output)
        for output in keras.Model(model.input, [layer.output for layer in kernels])(
            np.zeros((1, side, side, in_channels), np.float32)
        )
    ]
    products = [
        np.prod(layer.kernel.shape) * shape[1] * shape[2]
        for layer, shape in zip(kernels, shapes, strict=True)
    ]
    assert flops_per_pixel(architecture) == pytest.approx(2 * sum(products) / side**2)


def test_fast_costs_a_tenth_to_a_twentieth_of_the_paper():
    paper, fast = (flops_per_pixel(Architecture(2, preset=preset)) for preset in ("paper", "fast"))
    assert 10 <= paper / fast <= 20


# ---------------------------------------------------------------------------------------------
# Input and output


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(4, 4), (8, 20)])
def test_every_pixel_gets_probabilities(preset, shape):
    output = apply(scatter_weights(build(TINY[preset])), noise(2, *shape, 1))
    assert output.shape == (2, *shape, 3)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output.sum(-1), 1, atol=1e-6)
    assert output.std() > 0.01


@pytest.mark.parametrize("preset", PRESETS)
def test_reduced_precision_keeps_weights_and_softmax(preset):
    model = scatter_weights(build(TINY[preset]))
    reduced = build(TINY[preset], precision="mixed_bfloat16")
    reduced.set_weights(model.get_weights())
    assert {weight.dtype for weight in reduced.weights} == {"float32"}
    assert reduced.get_layer("logits").compute_dtype == "bfloat16"
    output, expected = apply(reduced, noise(1, 8, 8, 1)), apply(model, noise(1, 8, 8, 1))
    assert output.dtype == np.float32
    np.testing.assert_allclose(output.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(output, expected, atol=0.05)
    assert np.abs(output - expected).max() > 1e-5  # it was computed in bfloat16


@pytest.mark.parametrize("preset", PRESETS)
def test_an_image_does_not_see_the_rest_of_its_batch(preset):
    model = scatter_weights(build(TINY[preset]))
    images = noise(3, 16, 16, 1) * np.array([1, 50, 0.1], np.float32)[:, None, None, None]
    alone = np.concatenate([apply(model, image[None]) for image in images])
    np.testing.assert_allclose(apply(model, images), alone, atol=1e-5)


def test_folded_is_the_same_function_without_normalisation():
    model = scatter_weights(build(TINY["fast"]))
    folded = fold(TINY["fast"], model)
    assert not [layer for layer in folded.layers if layer.name.endswith("_norm")]
    images = noise(2, 16, 12, 1)
    np.testing.assert_allclose(apply(folded, images), apply(model, images), atol=1e-5)


def test_folding_the_paper_changes_nothing():
    model = scatter_weights(build(TINY["paper"]))
    images = noise(2, 16, 12, 1)
    np.testing.assert_array_equal(apply(fold(TINY["paper"], model), images), apply(model, images))


# ---------------------------------------------------------------------------------------------
# How far it sees


def test_halo_of_the_smallest_networks_by_hand():
    # Down 1 pixel; a pool of 2; at the bottom 2·2; 2 more by where the pixel lies; up 1.
    assert halo(Architecture(2, base_width=1, depth=1)) == 7
    # Down 2, at the bottom 2·2, up 2, and the pool.
    assert halo(Architecture(2, preset="paper", base_width=1, depth=1, n_dense=1)) == 9


@pytest.mark.parametrize(
    ("preset", "depth", "n_dense"),
    [
        ("fast", 1, None),
        ("fast", 2, None),
        ("fast", 3, None),
        ("fast", 4, None),
        ("paper", 1, 1),
        ("paper", 2, 3),
        ("paper", 3, 2),
        ("paper", 4, 3),
    ],
)
def test_halo_is_what_an_impulse_reaches(preset, depth, n_dense):
    architecture = Architecture(2, preset=preset, base_width=2, depth=depth, n_dense=n_dense)
    model = build(architecture)
    before = model.get_weights()
    assert impulse_reach(model, stride(architecture)) == halo(architecture)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_width_does_not_change_the_halo():
    assert halo(Architecture(2, base_width=1)) == halo(Architecture(5, base_width=64)) == 105


def fill_up(image: np.ndarray, step: int) -> np.ndarray:
    """Add zeros behind a normalised image up to the next multiple, as prediction does."""
    return np.pad(image, [(0, -n % step) for n in image.shape])


@settings(max_examples=8)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    shape=st.tuples(st.integers(1, 130), st.integers(1, 60)),
    block_shape=st.tuples(st.integers(9, 50), st.integers(20, 50)),
)
def test_blocks_equal_the_whole_slice(preset, shape, block_shape):
    architecture = TINY[preset]
    model = fold(architecture, scatter_weights(build(architecture)))
    step, image = stride(architecture), noise(*shape)

    def predict(part: np.ndarray) -> np.ndarray:
        return apply(model, fill_up(part, step)[None, ..., None])[0]

    whole = predict(image)[: shape[0], : shape[1]]
    grid = Grid(shape, block_shape, halo=halo(architecture), align=(step, step))
    for block in grid:
        inside = block.write.within(block.read)
        np.testing.assert_allclose(
            predict(image[block.read.slices])[inside], whole[block.write.slices], atol=1e-5
        )


@pytest.mark.parametrize("preset", PRESETS)
def test_more_zeros_than_to_the_next_multiple_are_another_input(preset):
    model = scatter_weights(build(TINY[preset]))
    image = noise(1, 16, 16, 1)
    further = np.pad(image, [(0, 0), (0, 16), (0, 0), (0, 0)])
    assert np.abs(apply(model, further)[:, :16] - apply(model, image)).max() > 1e-3


# ---------------------------------------------------------------------------------------------
# Learning


@pytest.mark.parametrize("preset", PRESETS)
def test_the_gradient_reaches_every_weight(preset):
    model = scatter_weights(build(TINY[preset]))
    truth = np.random.default_rng(1).integers(0, 3, (4, 16, 16))
    with tf.GradientTape() as tape:
        output = model(noise(4, 16, 16, 1), training=True)
        loss = keras.ops.mean(keras.losses.sparse_categorical_crossentropy(truth, output))
    weights = model.trainable_variables
    for weight, slope in zip(weights, tape.gradient(loss, weights), strict=True):
        assert slope is not None, weight.path
        assert np.abs(slope).max() > 0, weight.path


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loss_falls_on_eight_samples(preset):
    keras.utils.set_random_seed(0)
    images = noise(8, 16, 16, 1)
    truth = (images[..., 0] > 0).astype(np.int32)
    model = build(TINY[preset])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    losses = [float(model.train_on_batch(images, truth)) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


# ---------------------------------------------------------------------------------------------
# Other backends


# Keras reads its own variables in a way that NumPy 2 would like to be asked otherwise.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("preset", PRESETS)
def test_other_backends_give_the_same_output_and_train(tmp_path, preset, backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    architecture = TINY[preset]
    model = scatter_weights(build(architecture))
    unet = UNet(architecture, {1: "a", 2: "b"}, 0.0, 1.0, (1.0, 1.0, 1.0), "uint8")
    save(unet, model, tmp_path / "unet.keras")
    images = noise(2, 24, 16, 1)
    np.save(tmp_path / "images.npy", images)
    program = """
        import sys
        import keras
        import numpy as np
        from cvdask.segmentation.model_file import load

        folder, backend = sys.argv[1:]
        assert keras.backend.backend() == backend
        unet, model = load(f"{folder}/unet.keras")
        images = np.load(f"{folder}/images.npy")
        np.save(f"{folder}/output.npy", keras.ops.convert_to_numpy(model(images, training=False)))

        # Not the sparse loss: Keras' own fails on PyTorch for images (gradient not contiguous).
        truth = np.eye(3, dtype=np.float32)[(images[..., 0] > 0).astype(int)]
        model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy")
        losses = [float(model.train_on_batch(images, truth)) for _ in range(10)]
        assert losses[-1] < losses[0], losses
    """
    root = Path(cvdask.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), backend],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), apply(model, images), atol=1e-4)


# ---------------------------------------------------------------------------------------------
# The description


def test_the_preset_fills_in_what_is_left_out():
    assert Architecture(2) == Architecture(2, "fast", 24, 4, 0, 1)
    assert Architecture(2, "paper") == Architecture(2, "paper", 64, 4, 3, 1)
    assert Architecture(2, "paper").widths == (64, 128, 256, 512, 1024)
    assert Architecture(2, "paper", depth=2, n_dense=1).as_dict() == {
        "n_classes": 2,
        "preset": "paper",
        "base_width": 64,
        "depth": 2,
        "n_dense": 1,
        "in_channels": 1,
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("depth", "n_classes"), [(None, 2), (3, 255)])
def test_it_comes_back_from_json(preset, depth, n_classes):
    architecture = Architecture(n_classes, preset, depth=depth)
    again = Architecture.from_dict(json.loads(json.dumps(architecture.as_dict())))
    assert again == architecture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "big"}, r"fast, paper.*'big'"),
        ({"preset": ["fast"]}, r"\['fast'\]"),
        ({"n_classes": 1}, r"n_classes.*2 to 255.*1"),
        ({"n_classes": 256}, r"n_classes.*2 to 255.*256"),
        ({"base_width": 0}, r"base_width.*1 to 1024.*0"),
        ({"base_width": 24.0}, r"base_width.*24\.0"),
        ({"depth": 8}, r"depth.*1 to 7.*8"),
        ({"depth": True}, r"depth.*True"),
        ({"in_channels": 0}, r"in_channels.*1 to 64.*0"),
        ({"in_channels": "1"}, r"in_channels.*'1'"),
        ({"n_dense": 2}, r"fast.*n_dense=2.*paper"),
        ({"n_dense": 9, "preset": "paper"}, r"n_dense.*1 to 8.*9"),
        ({"n_dense": 0, "preset": "paper"}, r"n_dense.*1 to 8.*0"),
    ],
)
def test_what_is_no_network_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Architecture(**{"n_classes": 2, **options})


@pytest.mark.parametrize(
    "change", [{"layers": []}, {"depth": None, "n_classes": 0}, {"preset": None}]
)
def test_a_description_with_other_fields_is_refused(change):
    with pytest.raises(ValueError, match=next(reversed(change))):
        Architecture.from_dict({**Architecture(2).as_dict(), **change})


def test_a_description_with_a_field_missing_is_refused():
    values = Architecture(2).as_dict()
    del values["depth"]
    with pytest.raises(ValueError, match=r"'depth'.*Received: \['base_width', 'in_channels'"):
        Architecture.from_dict(values)
