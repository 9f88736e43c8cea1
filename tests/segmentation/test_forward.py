"""A network on a device: the numbers of Keras, whatever the batches, views and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import cvdask
from cvdask.segmentation import forward
from cvdask.segmentation.forward import (
    ONEDNN_BFLOAT16,
    Network,
    NetworkSettings,
    load_network,
    supports_bfloat16,
)
from cvdask.segmentation.model_file import digest
from cvdask.segmentation.tiling import read_window
from cvdask.segmentation.unet import Architecture
from cvdask.volume.boxes import Box
from tests.segmentation.networks import (
    TINY,
    clear_of_ties,
    needs_bfloat16,
    texture,
    whole_slices,
    write_network,
)

# Keras 3.15 under NumPy 2, when it saves a network
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

IMAGE = texture((3, 61, 83))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "tiny.keras"
    write_network(path)
    return path


@pytest.fixture(scope="module")
def whole(path: Path) -> np.ndarray:
    return whole_slices(path, IMAGE)


def network(path: Path, **options) -> Network:
    return load_network(NetworkSettings(str(path), digest(path), **options))


def test_the_class_is_the_likeliest_channel_by_its_value(path, whole):
    found = network(path).classify(IMAGE)
    expected = np.array([0, 2, 7], np.uint8)[whole.argmax(-1)]
    clear = clear_of_ties(whole)
    np.testing.assert_array_equal(found.classes[clear], expected[clear])
    assert found.classes.dtype == np.uint8
    assert found.probabilities is None
    assert clear.mean() > 0.99
    assert set(np.unique(expected)) == {0, 2, 7}  # else the test would show nothing


def test_probabilities_are_those_of_keras(path, whole):
    np.testing.assert_allclose(network(path).predict(IMAGE), whole, atol=1e-5)


def test_probabilities_are_quantised_by_rounding(path, whole):
    found = network(path).classify(IMAGE, probabilities=True)
    assert found.probabilities is not None
    assert found.probabilities.shape == (2, 3, 61, 83)
    scaled = 255 * np.moveaxis(whole[..., 1:], -1, 0)
    assert np.abs(found.probabilities - scaled).max() < 0.5 + 1e-2


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_batches_change_nothing(path, whole, batch_size):
    np.testing.assert_allclose(network(path).predict(IMAGE, batch_size), whole, atol=1e-5)


def test_slices_are_divided_evenly(path, monkeypatch):
    subject = network(path)
    calls = []
    average = subject._average
    monkeypatch.setattr(
        subject, "_average", lambda batch: calls.append(len(batch)) or average(batch)
    )
    subject.classify(texture((5, 8, 8)), 4)
    assert calls == [3, 3]  # and not 4, 4


@given(st.data())
def test_a_window_gives_what_the_whole_slice_gives(path, whole, data):
    start = [data.draw(st.integers(0, n - 1)) for n in IMAGE.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, IMAGE.shape, strict=True)]
    kept = Box(tuple(start), tuple(stop))
    window = read_window(IMAGE.shape, kept, TINY)
    found = network(path).predict(IMAGE[window.slices])[kept.within(window)]
    np.testing.assert_allclose(found, whole[kept.slices], atol=1e-5)


def test_one_voxel_less_halo_would_show(path, whole):
    """The other direction: else the test above could pass by a network that sees nothing."""
    kept = Box((0, 28, 40), (1, 32, 44))
    narrow = kept.grow((0, 4, 4), (0, 4, 4))
    found = network(path).predict(IMAGE[narrow.slices])[kept.within(narrow)]
    assert np.abs(found - whole[kept.slices]).max() > 1e-3


@pytest.mark.parametrize("n_views", [4, 8])
def test_views_are_averaged(path, n_views):
    views = []
    for turned in (False, True)[: n_views // 4]:
        for flip_y in (1, -1):
            for flip_x in (1, -1):
                image = IMAGE[:, :60, :80].swapaxes(1, 2) if turned else IMAGE[:, :60, :80]
                one = whole_slices(path, image[:, ::flip_y, ::flip_x])[:, ::flip_y, ::flip_x]
                views.append(one.swapaxes(1, 2) if turned else one)
    found = network(path, n_views=n_views).predict(IMAGE[:, :60, :80])
    np.testing.assert_allclose(found, np.mean(views, axis=0), atol=1e-5)
    assert np.abs(views[0] - views[1]).max() > 1e-3


def test_views_of_a_window_too(path):
    """The fill at the upper ends is turned with the slice."""
    subject = network(path, n_views=8)
    kept = Box((0, 40, 50), (3, 61, 83))
    window = read_window(IMAGE.shape, kept, TINY)
    found = subject.predict(IMAGE[window.slices])[kept.within(window)]
    np.testing.assert_allclose(found, subject.predict(IMAGE)[kept.slices], atol=1e-5)


class Device:
    """A forward pass whose memory holds so many slices."""

    def __init__(self, subject: Network, n_slices: int, error: Exception) -> None:
        self.forward, self.n_slices, self.error = subject._forward, n_slices, error
        self.calls: list[int] = []

    def __call__(self, image):
        self.calls.append(len(image))
        if len(image) > self.n_slices:
            raise self.error
        return self.forward(image)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(path, error):
    unet, model = forward.model_file.load(path)
    subject = Network(unet, model)
    image = texture((9, 16, 16))
    expected = subject.classify(image).classes
    device = subject._forward = Device(subject, 2, error)
    found = subject.classify(image, 8)
    np.testing.assert_array_equal(found.classes, expected)
    assert found.batch_size == 2
    # 9 slices by 8 are 5 and 4; half of 5 is 2; then 5 calls by twos, the last filled up.
    assert device.calls == [5, 2, 2, 2, 2, 2]
    device.calls.clear()
    assert subject.classify(image, 8).batch_size == 2
    assert device.calls == [2] * 5  # it is remembered


def test_a_slice_that_does_not_fit_is_an_error_with_its_size(path):
    unet, model = forward.model_file.load(path)
    subject = Network(unet, model)
    subject._forward = Device(subject, 0, MemoryError())
    with pytest.raises(MemoryError, match=r"64 × 128.*--block-yx 32 64"):
        subject.classify(texture((4, 64, 128)), 2)


def test_another_error_is_not_taken_for_that(path):
    unet, model = forward.model_file.load(path)
    subject = Network(unet, model)
    subject._forward = Device(subject, 0, RuntimeError("wrong shape"))
    with pytest.raises(RuntimeError, match="wrong shape"):
        subject.classify(texture((4, 8, 8)), 2)


def test_another_file_at_the_same_place_is_refused(tmp_path):
    write_network(tmp_path / "a.keras")
    settings = NetworkSettings(str(tmp_path / "a.keras"), 64 * "0")
    with pytest.raises(ValueError, match=r"000000000000.*" + digest(tmp_path / "a.keras")[:12]):
        load_network(settings)


def test_threads_load_it_once_and_compute_in_turn(path):
    write = []
    settings = NetworkSettings(str(path), digest(path), threads=3)
    threads = [
        threading.Thread(target=lambda: write.append(load_network(settings))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in write}) == 1


@needs_bfloat16
def test_bfloat16_is_near_and_leaves_no_trace(path, whole):
    options = tf.config.optimizer.get_experimental_options()
    rounded = tf.config.experimental.tensor_float_32_execution_enabled()
    found = network(path, precision="bfloat16").predict(IMAGE)
    assert 1e-5 < np.abs(found - whole).max() < 0.1
    after = tf.config.optimizer.get_experimental_options()
    assert after.get(ONEDNN_BFLOAT16, False) == options.get(ONEDNN_BFLOAT16, False)
    assert tf.config.experimental.tensor_float_32_execution_enabled() == rounded
    # Nor on the network that is loaded beside it.
    np.testing.assert_allclose(network(path).predict(IMAGE), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512_bf16 sse", True), ("fpu amx_bf16", True), ("fpu avx512f", False), (None, False)],
)
def test_the_processor_says_whether_it_has_bfloat16(tmp_path, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n")
    assert supports_bfloat16(cpuinfo) == expected


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_give_the_same(path, whole, tmp_path, backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    program = """
        import sys
        import numpy as np
        from cvdask.segmentation.forward import NetworkSettings, load_network
        from cvdask.segmentation.model_file import digest
        path, folder = sys.argv[1:]
        image = np.load(folder + "/image.npy")
        for precision, n_views in (("float32", 1), ("float32", 8), ("bfloat16", 1)):
            settings = NetworkSettings(path, digest(path), precision, n_views)
            network = load_network(settings)
            found = network.predict(image, 2)
            np.save(f"{folder}/{precision}-{n_views}.npy", found)
            network.classify(image, 2, probabilities=True)
        assert "tensorflow" not in sys.modules
    """
    np.save(tmp_path / "image.npy", IMAGE)
    root = Path(cvdask.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path), str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "float32-1.npy"), whole, atol=1e-4)
    views = network(path, n_views=8).predict(IMAGE)
    np.testing.assert_allclose(np.load(tmp_path / "float32-8.npy"), views, atol=1e-4)
    np.testing.assert_allclose(np.load(tmp_path / "bfloat16-1.npy"), whole, atol=0.1)


def test_a_network_without_features_at_full_resolution_is_no_special_case(tmp_path):
    """Depth 1 of the published drawing: stride 2, biases, trainable units."""
    architecture = Architecture(3, "paper", base_width=2, depth=1, n_dense=1)
    write_network(tmp_path / "paper.keras", architecture)
    expected = whole_slices(tmp_path / "paper.keras", IMAGE)
    np.testing.assert_allclose(
        network(tmp_path / "paper.keras").predict(IMAGE), expected, atol=1e-5
    )
    assert keras.config.dtype_policy().name == "float32"
