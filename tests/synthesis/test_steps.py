"""One step: gradients against finite differences, the optimiser against Keras', both backends."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
from keras import ops

from cvdask.synthesis.autodiff import compiled
from cvdask.synthesis.steps import BETA, Recipe, Steps, draw, network_of, start
from tests.synthesis.gans import PACE, PAPER, TINY, VOLUME, run_program, samples_of

PHASES = ("discriminator", "r1", "generator", "path")


def tensors(tree):
    return {name: ops.convert_to_tensor(one) for name, one in tree.items()}


def test_lazy_phases_come_when_they_are_due():
    recipe = Recipe(penalty_every=4, path_every=2)
    found = [recipe.phases(step) for step in range(5)]
    assert [("r1" in one, "path" in one) for one in found] == [
        (True, True), (False, False), (False, True), (False, False), (True, True),
    ]  # fmt: skip
    assert Recipe(penalty_every=1, path_every=0).phases(0) == ["discriminator", "generator"]


def test_what_is_drawn_follows_from_the_key():
    recipe = Recipe(mixing=0.5)
    one, same, other = (draw(TINY, recipe, (0, step, 0), 200) for step in (3, 3, 4))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["latents"], other["latents"])
    mixed = one["crossover"] < TINY.n_layers
    assert 0.35 < mixed.mean() < 0.65
    assert one["crossover"].min() >= 1


# ---------------------------------------------------------------------------------------------
# Gradients

DIFFERENCES = """
    import numpy as np
    from keras import ops
    from cvdask.synthesis import stylegan
    from cvdask.synthesis.steps import Recipe, Steps, network_of, start
    from tests.synthesis.gans import TINY, VOLUME, samples_of

    # The gradient of a rectified network jumps where a feature changes sign, and so do penalties on
    # it, which no derivative shows: differences need a rectifier without a kink.
    stylegan.rectify = lambda x: 0.2 * x + 0.8 * ops.softplus(x)

    def differences(architecture, loss, phase):
        # Along the gradient, the loss must rise by the gradient's length.
        recipe = Recipe(loss=loss, gamma=10.0)
        steps = Steps(architecture, recipe)
        state = start(architecture, 0)
        random = np.random.default_rng(0)
        for network in ("generator", "discriminator"):  # off the points where much is 0
            state[network] += 0.1 * random.normal(size=state[network].shape).astype("f")
        samples = {k: ops.convert_to_tensor(v) for k, v in samples_of(architecture, recipe).items()}
        network = network_of(phase)

        def at(vector):
            changed = {**state, network: vector.astype(np.float32)}
            changed = {k: ops.convert_to_tensor(v) for k, v in changed.items()}
            gradient, found = steps.gradients(phase, changed, samples)
            return np.asarray(ops.convert_to_numpy(gradient), np.float64), float(found["loss"])

        gradient, _ = at(state[network])
        length = np.linalg.norm(gradient)
        step = 2e-3
        up, down = (at(state[network] + sign * step * gradient / length)[1] for sign in (1, -1))
        return length, (up - down) / (2 * step)

    for architecture, loss, phase in (
        (TINY, "non_saturating", "r1"),
        (TINY, "non_saturating", "path"),
        (TINY, "non_saturating", "discriminator"),
        (VOLUME, "rpgan_r1_r2", "r1"),
    ):
        length, slope = differences(architecture, loss, phase)
        assert length > 1e-4, (phase, length)
        assert abs(slope - length) < 0.03 * length, (phase, length, slope)
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_gradients_agree_with_finite_differences(tmp_path, backend):
    run_program(DIFFERENCES, tmp_path, backend)


TWO_STEPS = """
    import sys
    import numpy as np
    from keras import ops
    from cvdask.synthesis.steps import Recipe, Steps, start
    from tests.synthesis.gans import PACE, PAPER, TINY, samples_of

    found = {}
    for name, architecture, level in (("default", TINY, None), ("paper", PAPER, 8)):
        recipe = Recipe(share_weight=1.0)
        steps = Steps(architecture, recipe, level=level)
        state = {k: ops.convert_to_tensor(v) for k, v in start(architecture, 0).items()}
        pace = {k: ops.convert_to_tensor(v) for k, v in PACE.items()}
        for phase in ("discriminator", "r1", "generator", "path"):
            samples = samples_of(architecture, recipe)
            samples = {k: ops.convert_to_tensor(v) for k, v in samples.items()}
            gradient, told = steps.gradients(phase, state, samples)
            state, again = steps.step(phase, state, samples, pace)
            found |= {f"{name}.{phase}.gradient": gradient, f"{name}.{phase}.loss": told["loss"]}
            assert abs(float(again["loss"]) - float(told["loss"])) < 1e-5
        found |= {f"{name}.{k}": v for k, v in state.items()}
    np.savez("{backend}.npz", **{k: ops.convert_to_numpy(v) for k, v in found.items()})
"""


def test_tensorflow_and_jax_take_the_same_steps(tmp_path):
    for backend in ("jax", "tensorflow"):
        run_program(TWO_STEPS.replace("{backend}", backend), tmp_path, backend)
    with np.load(tmp_path / "jax.npz") as ours, np.load(tmp_path / "tensorflow.npz") as theirs:
        assert sorted(ours.files) == sorted(theirs.files)
        for name in ours.files:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, rtol=1e-4, err_msg=name)


# ---------------------------------------------------------------------------------------------
# What a gradient changes


def test_the_optimiser_is_adam_with_corrected_constants():
    recipe = Recipe(penalty_every=16)
    steps, state = Steps(TINY, recipe), tensors(start(TINY, 0))
    ratio = 16 / 17
    adam = keras.optimizers.Adam(0.0025 * ratio, 0.0, BETA**ratio, epsilon=1e-8)
    variable = keras.Variable(ops.convert_to_numpy(state["discriminator"]))
    adam.build([variable])
    random = np.random.default_rng(0)
    found = {"sureness": ops.convert_to_tensor(np.float32(0))}
    for phase in ("discriminator", "r1", "discriminator"):
        gradient = ops.convert_to_tensor(random.normal(size=variable.shape).astype(np.float32))
        state = steps.apply(phase, state, gradient, found, tensors(PACE))
        adam.apply([gradient], [variable])
    ours, theirs = map(ops.convert_to_numpy, (state["discriminator"], variable))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_only_its_own_network_changes_and_the_average_follows():
    recipe = Recipe()
    steps, state = Steps(TINY, recipe), tensors(start(TINY, 0))
    samples, pace = tensors(samples_of(TINY, recipe)), tensors(PACE)
    for phase, network in (("discriminator", "discriminator"), ("generator", "generator")):
        new, _ = steps.step(phase, state, samples, pace)
        changed = {
            name
            for name in ("generator", "discriminator", "average")
            if not np.array_equal(*map(ops.convert_to_numpy, (state[name], new[name])))
        }
        assert changed == {network} | ({"average"} if phase == "generator" else set())
        assert network_of(phase) == network
    old, now, average = (
        ops.convert_to_numpy(one) for one in (state["generator"], new["generator"], new["average"])
    )
    np.testing.assert_allclose(average, 0.9 * old + 0.1 * now, rtol=1e-5, atol=1e-6)


def test_augmentation_adapts_every_fourth_batch():
    steps, state = Steps(TINY, Recipe(augment_pace=1000)), tensors(start(TINY, 0))
    found = {"sureness": ops.convert_to_tensor(np.float32(1))}
    gradient = ops.zeros_like(state["discriminator"])
    seen = []
    for _ in range(8):
        state = steps.apply("discriminator", state, gradient, found, tensors(PACE))
        seen.append(round(float(state["augment/probability"]), 6))
    assert seen == [0, 0, 0, 0.016, 0.016, 0.016, 0.016, 0.032]  # 16 images of 1000


@pytest.mark.parametrize(
    ("architecture", "loss"),
    [(TINY, "non_saturating"), (PAPER, "non_saturating"), (VOLUME, "rpgan_r1_r2")],
    ids=["default", "paper", "volume"],
)
def test_the_discriminator_learns_to_tell_a_few_samples(architecture, loss):
    recipe = Recipe(loss=loss, augment=False, learning_rate=0.01)
    steps, state = Steps(architecture, recipe), tensors(start(architecture, 0))
    samples = tensors(samples_of(architecture, recipe, n=8))
    pace = tensors({**PACE, "rate": np.float32(0.01)})
    losses = []
    for _ in range(12):
        state, found = steps.step("discriminator", state, samples, pace)
        losses.append(float(found["loss"]))
    assert losses[-1] < 0.6 * losses[0]


def test_half_precision_is_close():
    samples = tensors(samples_of(TINY, Recipe()))
    whole, half = (
        Steps(TINY, Recipe(dtype=dtype)).gradients(
            "discriminator", tensors(start(TINY, 0)), samples
        )
        for dtype in ("float32", "bfloat16")
    )
    assert float(half[1]["loss"]) == pytest.approx(float(whole[1]["loss"]), rel=0.05)
    ours, theirs = (ops.convert_to_numpy(one[0]) for one in (half, whole))
    assert ours.dtype == np.float32
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a word of TensorFlow's")
def test_many_trainings_in_one_process_are_no_retracing(caplog):
    for _ in range(8):
        assert float(compiled(lambda x: x + 1, xla=False)(ops.convert_to_tensor(1.0))) == 2
    logging.getLogger("tensorflow").warning("another word")
    assert caplog.messages == ["another word"]
