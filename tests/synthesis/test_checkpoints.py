"""Where a training stands: whole or not there, the previous one if the last is damaged."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cvdask.synthesis.checkpoints import GanFiles, Standing, load_state, rewrite_log, save_state

SHAPES = {"generator": (40,), "path_mean": ()}


def arrays(step):
    random = np.random.default_rng(step)
    return {name: random.normal(size=shape).astype("f") for name, shape in SHAPES.items()}


def standing(step):
    return Standing(step, 32 * step, 1.5 * step, 0.25, step, 16, [{"step": step, "loss": None}])


@pytest.fixture
def files(tmp_path):
    files = GanFiles.beside(tmp_path / "cell.keras")
    for step in (1, 2, 3):
        save_state(files, standing(step), arrays(step))
    return files


def assert_is(found, step):
    assert found[0] == standing(step)
    for name, array in arrays(step).items():
        np.testing.assert_array_equal(found[1][name], array)


def test_the_last_state_is_read_and_the_one_before_is_kept(files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_is(load_state(files, SHAPES), 3)
    files.state.unlink()
    assert_is(load_state(files, SHAPES), 2)
    files.previous.unlink()
    assert load_state(files, SHAPES) is None


@pytest.mark.parametrize("at", [0.3, 0.6, 0.99])
def test_a_damaged_state_falls_back_to_the_previous_and_says_so(files, at):
    data = bytearray(files.state.read_bytes())
    for i in range(int(at * len(data)), min(len(data), int(at * len(data)) + 40)):
        data[i] ^= 0xFF
    files.state.write_bytes(data)
    with pytest.warns(UserWarning, match=r"cell\.state\.npz.*cell\.previous\.npz, of step 2"):
        assert_is(load_state(files, SHAPES), 2)


@pytest.mark.parametrize("keep", [0, 50, 600])
def test_a_state_cut_short_falls_back(files, keep):
    files.state.write_bytes(files.state.read_bytes()[:keep])
    with pytest.warns(UserWarning, match="step 2"):
        assert_is(load_state(files, SHAPES), 2)


def test_arrays_that_were_exchanged_are_found(files):
    with np.load(files.state) as saved:
        held = {name: saved[name] for name in saved.files}
    np.savez(files.state, **{**held, "generator": held["generator"] + 1})
    with pytest.warns(UserWarning, match="digest"):
        assert_is(load_state(files, SHAPES), 2)


def test_pickles_are_never_read(files):
    with np.load(files.state) as saved:
        held = {name: saved[name] for name in saved.files}
    np.savez(files.state, **{**held, "generator": np.array([print], object)})
    with pytest.warns(UserWarning, match="step 2"):
        assert_is(load_state(files, SHAPES), 2)


def test_two_damaged_states_are_an_error(files):
    files.state.write_bytes(b"no state")
    files.previous.write_bytes(b"no state either")
    with pytest.raises(ValueError, match=r"state\.npz.*previous\.npz.*--overwrite"):
        load_state(files, SHAPES)


def test_states_of_other_networks_are_refused(files):
    with pytest.raises(ValueError, match=r"\(41,\).*\(40,\)"):
        load_state(files, {**SHAPES, "generator": (41,)})
    with pytest.raises(ValueError, match="moment"):
        load_state(files, {**SHAPES, "moment": (1,)})


def test_the_log_holds_the_reports_and_no_half_lines(files):
    files.log.write_text('{"step": 1}\n{"step": 2}\n{"st')
    rewrite_log(files.log, [{"step": 1}])
    assert files.log.read_text() == '{"step": 1}\n'


def test_a_generator_is_a_local_keras_file():
    for name in ("gan.h5", "s3://bucket/gan.keras"):
        with pytest.raises(ValueError, match=r"local.*\.keras"):
            GanFiles.beside(name)
