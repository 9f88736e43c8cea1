"""A divided batch: weighted gradients, memory that runs out, two devices."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from keras import ops

from cvdask.synthesis.autodiff import devices, put
from cvdask.synthesis.parallel import SHARED, Devices
from cvdask.synthesis.steps import Recipe, Steps, start
from tests.synthesis.gans import PACE, TINY, run_program, samples_of

RECIPE = Recipe()


class Full(Exception):
    pass


class SmallDevice:
    """Steps that run out of memory beyond so many samples, and add places up otherwise."""

    architecture = TINY

    def __init__(self, most):
        self.most, self.seen = most, []

    def gradients(self, phase, state, samples):
        n = len(samples["places"])
        if n > self.most:
            raise Full("ResourceExhaustedError: out of memory")
        self.seen.append(n)
        mean = ops.mean(samples["places"])
        return mean, {"loss": mean}

    def apply(self, phase, state, gradient, found, pace):
        return {"sum": state["sum"] + gradient}

    def step(self, phase, state, samples, pace):
        gradient, found = self.gradients(phase, state, samples)
        return self.apply(phase, state, gradient, found, pace), found


@pytest.mark.parametrize(("most", "parts"), [(10, [10]), (6, [5, 5]), (3, [2, 2, 2, 2, 2])])
def test_a_batch_is_divided_until_it_fits(most, parts):
    samples = {"places": np.arange(10, dtype=np.float32)[:, None], "fade": np.float32(1)}
    one, small = Devices(devices(1)), SmallDevice(most)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state, found = one.step(small, "generator", {"sum": np.float32(1)}, samples, PACE)
    assert sorted(small.seen, reverse=True) == parts
    assert float(found["loss"]) == pytest.approx(4.5)
    assert float(state["sum"]) == pytest.approx(5.5)
    assert len(told) == (len(parts) > 1) + (len(parts) > 2)
    if told:
        assert str(one.largest) in str(told[-1].message)
    small.seen.clear()  # the next step knows
    one.step(small, "generator", {"sum": np.float32(1)}, samples, PACE)
    assert sorted(small.seen, reverse=True) == parts


def test_one_sample_too_many_is_an_error():
    samples = {"places": np.zeros((4, 1), np.float32), "fade": np.float32(1)}
    with (
        pytest.warns(UserWarning, match="memory"),
        pytest.raises(MemoryError, match=r"16².*resolution"),
    ):
        Devices(devices(1)).step(SmallDevice(0), "r1", {"sum": np.float32(0)}, samples, PACE)


def test_other_errors_pass():
    samples = {"places": np.zeros((4, 1), np.float32), "fade": np.float32(1)}
    with pytest.raises(KeyError, match="sum"):
        Devices(devices(1)).step(SmallDevice(9), "r1", {}, samples, PACE)


def test_parts_give_the_mean_gradient():
    steps, state = Steps(TINY, RECIPE), start(TINY, 0)
    samples = samples_of(TINY, RECIPE, n=8)
    (device,) = devices(1)
    halves = [
        {k: v if k in SHARED else v[rows] for k, v in samples.items()}
        for rows in (slice(0, 4), slice(4, 8))
    ]
    parts = [steps.gradients("generator", put(state, device), put(h, device)) for h in halves]
    gradient = (parts[0][0] + parts[1][0]) / 2
    found = {name: (parts[0][1][name] + parts[1][1][name]) / 2 for name in parts[0][1]}
    expected = steps.apply("generator", put(state, device), gradient, found, put(PACE, device))
    new, told = Devices([device], largest=4).step(steps, "generator", state, samples, PACE)
    assert float(told["loss"]) == pytest.approx(float(found["loss"]), rel=1e-6)
    for name in ("generator", "average", "mean_style"):
        ours, theirs = map(ops.convert_to_numpy, (new[name], expected[name]))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


TWO_DEVICES = """
    import numpy as np
    import keras
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf
        (cpu,) = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    from keras import ops
    from cvdask.synthesis.autodiff import devices
    from cvdask.synthesis.parallel import Devices
    from cvdask.synthesis.steps import Recipe, Steps, start
    from tests.synthesis.gans import PACE, TINY, samples_of

    recipe = Recipe()
    assert len(devices(2)) == 2
    results = []
    for chosen, largest in ((devices(2), 0), (devices(1), 4)):
        steps, state = Steps(TINY, recipe), start(TINY, 0)
        taker = Devices(chosen, largest)
        for phase in ("generator",):
            state, found = taker.step(steps, phase, state, samples_of(TINY, recipe, n=8), PACE)
        taker.close()
        results.append({k: ops.convert_to_numpy(v) for k, v in state.items()})
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], atol=1e-4, err_msg=name)
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_two_devices_take_the_step_of_one(tmp_path, backend):
    flags = "--xla_force_host_platform_device_count=2"
    run_program(TWO_DEVICES, tmp_path, backend, XLA_FLAGS=flags)


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="99"):
        devices(99)
