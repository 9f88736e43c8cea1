"""Both networks: shapes, every array counts, places and continuity."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from cvdask.synthesis.architecture import Architecture, initialise
from cvdask.synthesis.autodiff import value_and_gradients
from cvdask.synthesis.stylegan import (
    classify,
    discriminate,
    position_code,
    sample_code,
    styles,
    synthesise,
)
from tests.synthesis.gans import PAPER, SMALL, TINY, VOLUME

RANDOM = np.random.default_rng(0)
ALL = pytest.mark.parametrize(
    "architecture", [TINY, PAPER, VOLUME], ids=["default", "paper", "volume"]
)


def arrays_of(architecture, network):
    """Random arrays; those that start at 0 are not, so that gradients pass."""
    found = initialise(architecture, network, 0)
    return {
        name: ops.convert_to_tensor(
            array if array.std() else array + 0.3 * RANDOM.normal(size=array.shape).astype("f")
        )
        for name, array in found.items()
    }


def inputs(architecture, m=4):
    return (
        ops.convert_to_tensor(RANDOM.normal(size=(m, architecture.n_latent)).astype(np.float32)),
        ops.convert_to_tensor(np.linspace(0.1, 0.9, m, dtype=np.float32)),
        ops.convert_to_tensor(np.arange(m, dtype=np.uint32)),
    )


def layered(architecture, style):
    return ops.repeat(style[:, None], architecture.n_layers, axis=1)


@ALL
def test_a_slice_has_logits_for_each_voxel_and_a_sample_a_score(architecture):
    latents, places, seeds = inputs(architecture)
    arrays = arrays_of(architecture, "generator")
    style = styles(arrays, architecture, latents, places)
    assert tuple(style.shape) == (4, 8)
    logits = synthesise(arrays, architecture, layered(architecture, style), seeds)
    assert tuple(logits.shape) == (4, 16, 16, 3)
    assert np.isfinite(ops.convert_to_numpy(logits)).all()
    s = architecture.slices_per_sample
    seen = ops.concatenate([classify(logits, "softmax")] * s, axis=-1)
    among = ops.convert_to_tensor(np.sort(RANDOM.random((4, s)).astype(np.float32), 1))
    score = discriminate(arrays_of(architecture, "discriminator"), architecture, seen, among)
    assert tuple(score.shape) == (4,)
    assert len(np.unique(ops.convert_to_numpy(score))) == 4


@ALL
def test_the_gradient_reaches_every_array(architecture):
    latents, places, seeds = inputs(architecture)
    s = architecture.slices_per_sample
    among = ops.convert_to_tensor(np.sort(RANDOM.random((4, s)).astype(np.float32), 1))
    judge = arrays_of(architecture, "discriminator")

    def seen(arrays, level, fade):
        style = layered(architecture, styles(arrays, architecture, latents, places))
        logits = synthesise(arrays, architecture, style, seeds, level=level, fade=fade)
        return ops.concatenate([classify(logits, "softmax")] * s, axis=-1)

    def score(arrays, slices, level, fade):
        return discriminate(arrays, architecture, slices, among, level=level, fade=fade)

    # Preset paper uses some arrays at one resolution only.
    stages = [(8, 0.5), (16, 0.5)] if architecture.preset == "paper" else [(None, 1.0)]
    maker = arrays_of(architecture, "generator")

    def of_maker(arrays):
        return sum(ops.sum(score(judge, seen(arrays, *one), *one)) for one in stages), ()

    def of_judge(arrays):
        return sum(ops.sum(score(arrays, seen(maker, *one), *one) ** 2) for one in stages), ()

    for function, arrays in ((of_maker, maker), (of_judge, judge)):
        gradients = value_and_gradients(function, arrays)[2]
        still = [
            name for name, one in gradients.items() if not np.abs(ops.convert_to_numpy(one)).max()
        ]
        assert still == []


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512, 1024])
def test_every_resolution_can_be_made(resolution):
    architecture = Architecture(**{**SMALL, "resolution": resolution, "width": 1, "max_width": 4})
    latents, places, seeds = inputs(architecture, 1)
    arrays = arrays_of(architecture, "generator")
    style = layered(architecture, styles(arrays, architecture, latents, places))
    assert synthesise(arrays, architecture, style, seeds).shape[1:3] == (resolution, resolution)


def test_two_neighbouring_slices_share_a_label():
    places = np.arange(9, dtype=np.float32) / 8
    code = ops.convert_to_numpy(position_code(PAPER, ops.convert_to_tensor(places)))
    assert code.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert code.sum(1).tolist() == [1.0] * 9


def test_waves_tell_places_apart_and_change_slowly():
    places = np.linspace(0, 1, 40, dtype=np.float32)
    code = ops.convert_to_numpy(position_code(TINY, ops.convert_to_tensor(places)))
    apart = np.linalg.norm(code[:, None] - code[None], axis=2)
    assert apart[~np.eye(40, dtype=bool)].min() > 0.1
    assert np.diag(apart, 1).max() < apart.max() / 3


def test_a_volumes_styles_are_continuous_and_independent_slices_are_not_asked_to_be():
    latents = RANDOM.normal(size=(1, VOLUME.n_latent)).astype(np.float32).repeat(400, 0)
    places = np.linspace(0, 1, 400, dtype=np.float32)
    arrays = arrays_of(VOLUME, "generator")
    style = ops.convert_to_numpy(
        styles(arrays, VOLUME, *map(ops.convert_to_tensor, (latents, places)))
    )
    steps = np.linalg.norm(np.diff(style, axis=0), axis=1)
    whole = np.linalg.norm(style[:, None] - style[None], axis=2).max()
    assert steps.max() < whole / 20  # no jump, at anchors neither
    assert whole > 0.1  # and yet it changes


def test_distances_are_told():
    places = np.float32([[0.1, 0.2, 0.3], [0.1, 0.2, 0.4]])
    ours, theirs = ops.convert_to_numpy(sample_code(VOLUME, ops.convert_to_tensor(places)))
    n = VOLUME.n_code
    np.testing.assert_array_equal(ours[: n + 6], theirs[: n + 6])
    assert (ours[n + 6 :] < theirs[n + 6 :]).all()
    step = 0.1 * 39
    np.testing.assert_allclose(ours[n], 2 * step / (step + 1) - 1, rtol=1e-5)


def test_the_discriminator_sees_one_class_and_the_gradient_of_probabilities():
    logits = ops.convert_to_tensor(RANDOM.normal(size=(2, 3, 3, 4)).astype(np.float32))
    weights = RANDOM.normal(size=(2, 3, 3, 4)).astype(np.float32)
    hard = ops.convert_to_numpy(classify(logits, "straight-through"))
    np.testing.assert_allclose(hard.max(-1), 1, atol=1e-6)
    np.testing.assert_allclose(hard.sum(-1), 1, atol=1e-6)
    assert (hard.argmax(-1) == ops.convert_to_numpy(logits).argmax(-1)).all()

    def through(head):
        def function(tree):
            return ops.sum(classify(tree["x"], head) * weights), ()

        return ops.convert_to_numpy(value_and_gradients(function, {"x": logits})[2]["x"])

    np.testing.assert_allclose(through("straight-through"), through("softmax"), atol=1e-6)


def test_fading_goes_from_the_coarser_resolution_to_the_finer():
    latents, places, seeds = inputs(PAPER)
    arrays = arrays_of(PAPER, "generator")
    style = layered(PAPER, styles(arrays, PAPER, latents, places))
    coarse = synthesise(arrays, PAPER, style, seeds, level=8)
    start, half, end = (
        ops.convert_to_numpy(synthesise(arrays, PAPER, style, seeds, level=16, fade=fade))
        for fade in (0.0, 0.5, 1.0)
    )
    from cvdask.synthesis.layers import enlarge

    np.testing.assert_allclose(start, ops.convert_to_numpy(enlarge(coarse)), atol=1e-5)
    np.testing.assert_allclose(half, (start + end) / 2, atol=1e-5)
