"""Slices depend on their latent, place and seed alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cvdask.synthesis.architecture import initialise
from cvdask.synthesis.generator import Generator
from tests.synthesis.gans import PAPER, TINY, VOLUME, small_gan

RANDOM = np.random.default_rng(0)


def given(n, architecture=TINY, *slices):
    return (
        RANDOM.normal(size=(n, architecture.n_latent)).astype(np.float32),
        RANDOM.random((n, *slices)).astype(np.float32),
        RANDOM.integers(0, 2**32, n, np.uint32),
    )


@pytest.fixture(scope="module")
def generator():
    return small_gan().generator(batch_size=4)


def test_probabilities_do_not_depend_on_what_is_made_beside_them(generator):
    latents, places, seeds = given(7)
    whole = generator.sample(latents, places, seeds)
    assert (whole.shape, whole.dtype) == ((7, 16, 16, 3), np.float32)
    np.testing.assert_allclose(whole.sum(-1), 1, atol=1e-5)
    alone = generator.sample(latents[5:6], places[5:6], seeds[5:6])
    np.testing.assert_array_equal(alone[0], whole[5])
    turned = generator.sample(latents[::-1], places[::-1], seeds[::-1])
    np.testing.assert_array_equal(turned[::-1], whole)
    assert generator.sample(latents[:0], places[:0], seeds[:0]).shape == (0, 16, 16, 3)


def test_noise_place_and_latent_each_change_a_slice(generator):
    latents, places, seeds = given(1)
    whole = generator.sample(latents, places, seeds)
    for other in (
        (latents + 1, places, seeds),
        (latents, 1 - places, seeds),
        (latents, places, seeds + np.uint32(1)),
    ):
        assert np.abs(generator.sample(*other) - whole).max() > 1e-3


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_without_noise_latent_and_place_decide(preset):
    architecture = replace(PAPER if preset == "paper" else TINY, fine_noise=False)
    arrays = initialise(architecture, "generator", 0)
    coarse = ["4/first", "4/second"] if preset == "paper" else ["4/second"]
    noises = [name for name in arrays if name.endswith("noise")]
    assert sorted(noises) == [f"{layer}/noise" for layer in coarse]
    arrays |= {name: np.zeros(1, np.float32) for name in noises}
    quiet = Generator(architecture, arrays, np.zeros(architecture.latent, np.float32))
    latents = np.random.default_rng(0).normal(size=(1, architecture.n_latent))
    one, other = (
        quiet.sample(latents, np.float32([0.5]), np.array([seed], np.uint32)) for seed in (1, 2)
    )
    np.testing.assert_array_equal(one, other)


def test_slices_of_a_volume_share_latent_and_noise():
    generator = small_gan(VOLUME).generator(batch_size=4)
    latents, places, seeds = given(2, VOLUME, 3)
    whole = generator.sample(latents, places, seeds)
    assert whole.shape == (2, 3, 16, 16, 3)
    single = generator.sample(latents[[1]], places[1, [2]], seeds[[1]])
    np.testing.assert_array_equal(single[0], whole[1, 2])
    # From place to place a little at a time.
    fine = np.linspace(0.4, 0.6, 400, dtype=np.float32)[None]
    stack = generator.sample(latents[:1], fine, seeds[:1])[0]
    assert np.abs(np.diff(stack, axis=0)).max() < 0.1
    assert np.abs(stack[-1] - stack[0]).max() > 0.3


def test_truncation_draws_towards_the_mean_style(generator):
    latents, places, seeds = given(3)
    own, none = (generator.styles(latents, places, truncation=t) for t in (1.0, 0.0))
    np.testing.assert_array_equal(none, np.broadcast_to(generator.mean_style, (3, 8)))
    half = generator.styles(latents, places, truncation=0.5)
    np.testing.assert_allclose(half, (own + none) / 2, atol=1e-6)
    same = np.repeat(seeds[:1], 3)
    average = generator.sample(latents, places, same, truncation=0.0)
    np.testing.assert_array_equal(average[0], average[2])


def test_styles_can_be_mixed(generator):
    latents, places, seeds = given(2)
    style = generator.styles(latents, places)
    layered = np.repeat(style[:, None], TINY.n_layers, axis=1)
    np.testing.assert_array_equal(
        generator.synthesise(layered, seeds), generator.sample(latents, places, seeds)
    )
    mixed = layered[:1].copy()
    mixed[:, 4:] = layered[1:, 4:]
    new = generator.synthesise(mixed, seeds[:1])
    assert np.abs(new - generator.synthesise(layered[:1], seeds[:1])).max() > 1e-3


@pytest.mark.parametrize(
    ("latents", "places", "seeds", "words"),
    [
        ((2, 7), (2,), (2,), r"8.*\(2, 7\)"),
        ((2, 8), (3,), (2,), r"\(3,\)"),
        ((2, 8), (2,), (3,), r"\(3,\).*2 samples"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(generator, latents, places, seeds, words):
    with pytest.raises(ValueError, match=words):
        generator.sample(np.zeros(latents), np.zeros(places), np.zeros(seeds, np.uint32))


def test_places_outside_the_volume_are_refused(generator):
    latents, _, seeds = given(2)
    with pytest.raises(ValueError, match=r"0.*1.*1\.25"):
        generator.sample(latents, np.float32([0.5, 1.25]), seeds)
    with pytest.raises(ValueError, match="float64"):
        generator.sample(latents, np.float32([0.5, 0.5]), np.zeros(2))
