"""Networks in integers: arrays, packing, what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cvdask.synthesis.architecture import (
    Architecture,
    Packing,
    flops_per_slice,
    initialise,
    parameters,
)
from tests.synthesis.gans import PAPER, SMALL, TINY, VOLUME


def test_channels_double_down_to_the_most():
    assert Architecture(1024, 4, 10, width=16, max_width=512).channels == {
        4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16,
    }  # fmt: skip


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize("architecture", [TINY, PAPER, VOLUME], ids=["default", "paper", "volume"])
def test_what_is_packed_comes_back(architecture, network):
    packing = Packing.of(architecture, network)
    arrays = initialise(architecture, network, seed=3)
    vector = packing.pack(arrays)
    assert (vector.dtype, vector.size) == (np.float32, packing.size)
    again = packing.unpack(vector)
    assert list(again) == list(parameters(architecture, network))
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_weights_follow_from_the_seed():
    ours, same, other = (initialise(TINY, "generator", seed)["constant"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(ours, same)
    assert not np.array_equal(ours, other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 48),
        ("resolution", 8),
        ("resolution", 2048),
        ("n_channels", 0),
        ("n_slices", 1.5),
        ("width", 0),
        ("max_width", 2),
        ("latent", True),
        ("preset", "stylegan3"),
        ("continuity", "time"),
        ("head", "sigmoid"),
    ],
)
def test_what_cannot_be_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*{value}"):
        Architecture(**{**SMALL, field: value})


def test_the_papers_layers_make_no_volumes():
    with pytest.raises(ValueError, match=r"paper.*volume"):
        Architecture(**SMALL, preset="paper", continuity="volume")


def test_a_description_comes_back():
    assert Architecture.from_dict(VOLUME.as_dict()) == VOLUME
    with pytest.raises(ValueError, match="depth"):
        Architecture.from_dict({**TINY.as_dict(), "depth": 4})


def test_flops_by_hand():
    # resolution 16, width 4: channels 4: 8, 8: 8, 16: 4; latent 8, two waves of 3 frequencies
    mapping = TINY.n_code * 8 + 16 * 8 + 8 * 8
    styles = 8 * (8 + 8 + 8 + 8 + 8 + 8 + 4 + 4)  # 4/second, logits, 8/first …, as listed below
    convolutions = (
        16 * (9 * 8 * 8 + 8 * 3)  # 4²: second, logits
        + 16 * 9 * 8 * 8 + 64 * (9 * 8 * 8 + 8 * 3)  # 8²: first at 4², second, logits
        + 64 * 9 * 8 * 4 + 256 * (9 * 4 * 4 + 4 * 3)  # 16²: first at 8², second, logits
    )  # fmt: skip
    assert flops_per_slice(TINY, "generator") == 2 * (mapping + styles + convolutions)


def test_no_framework_is_loaded():
    program = """
import sys
import cvdask.synthesis.architecture, cvdask.synthesis.gan_file
assert not {"keras", "tensorflow", "jax"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
