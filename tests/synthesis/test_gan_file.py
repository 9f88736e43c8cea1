"""A generator in a file: the same again, and nothing in it is trusted."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pytest

from cvdask.synthesis.gan_file import METADATA, WEIGHTS, Gan, describe, load, save
from tests.synthesis.gans import PAPER, TINY, VOLUME, small_gan


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, changed, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in changed.items():
            archive.writestr(name, data)


def metadata(path, **changes):
    """Change fields of the description."""
    held = members(path)
    described = {**json.loads(held[METADATA]), **changes}
    rewrite(path, {**held, METADATA: json.dumps(described)})


@pytest.fixture
def path(tmp_path):
    save(small_gan(run={"options": {"seed": 3}}), tmp_path / "gan.keras")
    return tmp_path / "gan.keras"


@pytest.mark.parametrize("architecture", [TINY, PAPER, VOLUME], ids=["default", "paper", "volume"])
def test_saved_is_loaded(tmp_path, architecture):
    gan = small_gan(architecture, places=(0.1, 0.9), run={"scores": [1.5, None]})
    save(gan, tmp_path / "gan.keras")
    again = load(tmp_path / "gan.keras")
    assert again == gan
    assert again.weights.keys() == gan.weights.keys()
    for name, array in gan.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)
    assert (again.values, again.resolution) == ((0, 1, 4), 16)
    assert again.n_slices == architecture.n_slices
    assert len(again.digest) == 64
    described = describe(tmp_path / "gan.keras")
    assert (described, described.digest, described.weights) == (gan, again.digest, None)
    with pytest.raises(ValueError, match="load"):
        described.generator()


def test_the_same_generator_is_the_same_file(tmp_path):
    for name in "ab":
        save(small_gan(), tmp_path / f"{name}.keras")
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()


def test_describing_loads_no_framework(path):
    program = f"""
import sys
from cvdask.synthesis.gan_file import describe, load
assert describe({str(path)!r}).preset == "default"
load({str(path)!r})
assert not {{"keras", "tensorflow", "jax"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_damaged_file_is_refused(path, at):
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"gan\.keras"):
        load(path)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_file_cut_short_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"gan\.keras"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format"),
        ({"kind": "unet"}, "train-gan"),
        ({"extra": 1}, "extra"),
        ({"classes": {"1": "mitochondria"}}, "3 channels"),
        ({"classes": {"0": "a", "1": "b"}}, "1 to 254"),
        ({"classes": {"-1": "a", "1": "b"}}, "-1"),
        ({"colors": {"7": "#ffffff"}}, "7"),
        ({"voxel_size_nm": [1, 1]}, "voxel_size_nm"),
        ({"voxel_size_nm": [1, 1, 0]}, "0"),
        ({"places": [0.5, 1.5]}, r"1\.5"),
        ({"architecture": {**TINY.as_dict(), "resolution": 2**20}}, str(2**20)),
        ({"architecture": {**TINY.as_dict(), "latent": 10**9}}, str(10**9)),
    ],
)
def test_a_description_that_cannot_be_is_refused(path, changes, words):
    metadata(path, **changes)
    with pytest.raises(ValueError, match=words):
        describe(path)


def test_arrays_of_another_architecture_are_refused_before_anything_is_allocated(path):
    metadata(path, architecture={**TINY.as_dict(), "max_width": 1024, "width": 1024})
    with pytest.raises(ValueError, match=r"bytes.*Received"):
        load(path)


def arrays(path, change):
    """Let a function change the HDF5 file inside."""
    held = members(path)
    inside = io.BytesIO(held[WEIGHTS])
    with h5py.File(inside, "r+") as file:
        change(file["generator"])
    rewrite(path, {**held, WEIGHTS: inside.getvalue()})


def not_finite(group):
    group["constant"][0, 0, 0] = np.nan


def missing(group):
    del group["constant"]


def elsewhere(group):
    del group["constant"]
    group["constant"] = h5py.ExternalLink("/etc/passwd", "/")


def other_type(group):
    shape = group["constant"].shape
    del group["constant"]
    group.create_dataset("constant", shape, np.int32)


@pytest.mark.parametrize("change", [not_finite, missing, elsewhere, other_type])
def test_arrays_that_cannot_be_are_refused(path, change):
    arrays(path, change)
    with pytest.raises(ValueError, match="constant"):
        load(path)


def test_a_compressed_archive_is_refused(path):
    rewrite(path, members(path), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="uncompressed"):
        load(path)


def test_a_file_of_keras_is_refused(tmp_path):
    rewrite(tmp_path / "other.keras", {"config.json": "{}", WEIGHTS: b""})
    with pytest.raises(ValueError, match=METADATA):
        load(tmp_path / "other.keras")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.keras")


def test_what_cannot_be_saved_is_refused_and_nothing_is_written(tmp_path):
    out = tmp_path / "gan.keras"
    weights = dict(small_gan().weights)
    bad = {**weights, "constant": weights["constant"] * np.inf}
    for gan, words in (
        (small_gan(weights=bad), "finite"),
        (small_gan(weights={}), "0"),
        (small_gan(run={"path": out}), "JSON"),
    ):
        with pytest.raises(ValueError, match=words):
            save(gan, out)
    with pytest.raises(ValueError, match=r"\.keras"):
        save(small_gan(), tmp_path / "gan.h5")
    assert list(tmp_path.iterdir()) == []


def test_classes_are_held_against_channels():
    with pytest.raises(ValueError, match="3 channels"):
        replace(small_gan(), classes={1: "mitochondria"}, colors={})
    assert isinstance(small_gan(), Gan)
