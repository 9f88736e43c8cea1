"""Networks in 8-bit integers: near the original, the same from blocks, and made once for a run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from cvdask.errors import DamagedData
from cvdask.segmentation import predict
from cvdask.segmentation.forward import (
    Network,
    NetworkSettings,
    load_network,
    quantise_network,
    supports_int8,
)
from cvdask.segmentation.model_file import digest
from cvdask.segmentation.predict import segment
from cvdask.segmentation.quantise import check_quantiser, load_quantised
from cvdask.segmentation.unet import Architecture, halo, stride
from cvdask.volume.store import Volume
from tests.samples import write_sample
from tests.segmentation.networks import TINY, texture, write_network

pytest.importorskip("openvino", reason="the extra int8 is not installed")
pytest.importorskip("nncf", reason="the extra int8 is not installed")
int8 = pytest.mark.skipif(
    not supports_int8(), reason="this processor has no instructions for 8-bit integers"
)
# Both libraries use what Python and NumPy deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The structure of `inputs`"),
]

IMAGES = texture((4, 96, 128))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("quantise") / "unet.keras"
    write_network(path)
    return path


@pytest.fixture(scope="module")
def settings(path: Path) -> NetworkSettings:
    return NetworkSettings(str(path), digest(path), "int8", threads=2)


@pytest.fixture(scope="module")
def quantised(settings: NetworkSettings) -> tuple[bytes, Network]:
    return quantise_network(settings, IMAGES)


@pytest.fixture
def sample(tmp_path) -> Volume:
    shapes = {"chunk_shape": (1, 64, 64), "shard_shape": (2, 128, 128)}
    return write_sample(tmp_path / "cell.zarr", texture((4, 96, 128), 1), **shapes)


def test_it_is_near_the_original_and_not_the_same(quantised, path):
    exact = load_network(NetworkSettings(str(path), digest(path))).predict(IMAGES)
    found = quantised[1].predict(IMAGES)
    assert found.shape == exact.shape
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert 1e-4 < np.abs(found - exact).mean() < 0.1
    assert (found.argmax(-1) == exact.argmax(-1)).mean() > 0.9


def test_blocks_and_batches_change_nothing(quantised):
    network = quantised[1]
    whole = network.predict(IMAGES)
    np.testing.assert_array_equal(network.predict(IMAGES, 3), whole)
    reach, step = halo(TINY), stride(TINY)
    first = 64 - -(-reach // step) * step
    part = network.predict(IMAGES[:, :, first:])
    np.testing.assert_allclose(part[:, :, 64 - first :], whole[:, :, 64:], atol=1e-6)


@int8
def test_every_convolution_of_the_published_network_is_quantised(tmp_path):
    import openvino

    small = Architecture(n_classes=3, preset="paper", base_width=8, depth=2, n_dense=2)
    write_network(tmp_path / "unet.keras", small)
    settings = NetworkSettings(
        str(tmp_path / "unet.keras"), digest(tmp_path / "unet.keras"), "int8", threads=2
    )
    data, _ = quantise_network(settings, IMAGES)
    head = int.from_bytes(data[:8], "little")
    graph = openvino.Core().read_model(data[8 : 8 + head], data[8 + head :])
    kinds = [node.get_type_name() for node in graph.get_ops()]
    assert kinds.count("Convolution") == 13
    assert kinds.count("Transpose") == 2  # of the image and of the probabilities
    runtime = (
        openvino.Core()
        .compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        .get_runtime_model()
    )
    names = [
        str(node.get_rt_info()["primitiveType"].astype(str))
        for node in runtime.get_ops()
        if "Convolution" in str(node.get_rt_info()["layerType"].astype(str))
    ]
    assert len(names) == 13
    assert all(name.endswith("I8") for name in names), names


def test_what_was_loaded_again_computes_the_same(quantised):
    forward = load_quantised(quantised[0], 1)
    images = quantised[1].normalised(IMAGES)
    np.testing.assert_array_equal(forward(images), load_quantised(quantised[0], 2)(images))


@pytest.mark.parametrize("damage", [lambda d: d[:400], lambda d: b"\0" * len(d), lambda d: b""])
def test_damaged_networks_are_refused(quantised, damage):
    with pytest.raises(DamagedData, match=f"{len(damage(quantised[0]))} bytes"):
        load_quantised(damage(quantised[0]), 1)


@int8
def test_a_volume_is_segmented_and_the_difference_remembered(sample, path):
    exact = segment(sample, path, name="exact").read()
    result = segment(sample, path, precision="int8", max_changed=0.3, client="threads")
    prediction = result.attributes["prediction"]
    changed = (result.read() != exact).mean()
    assert 0 < changed < 0.2
    assert prediction["precision"] == "int8"
    assert prediction["changed_share"] == pytest.approx(changed, rel=0.9)
    assert not Path(sample.url, "labels/classes/0/.cvdask/int8").exists()


@int8
def test_it_is_refused_where_it_changes_too_much(sample, path):
    with pytest.raises(ValueError, match=r"int8.*0\.00%.*\d\.\d\d%.*--max-changed"):
        segment(sample, path, precision="int8", max_changed=0)
    assert not Path(sample.url, "labels").exists()


def stop_after(n_calls: int):
    """Let the user press Ctrl-C at a call of the network."""
    classify, calls = Network.classify, []

    def stops(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > n_calls:
            raise KeyboardInterrupt
        return classify(self, *args, **kwargs)

    return stops


@int8
def test_an_interrupted_run_goes_on_with_the_network_it_began_with(sample, path, monkeypatch):
    whole = segment(sample, path, name="undisturbed", precision="int8", max_changed=1).read()
    with monkeypatch.context() as patch:
        # three slices twice to compare, then blocks
        patch.setattr(Network, "classify", stop_after(7))
        with pytest.raises(KeyboardInterrupt):
            segment(sample, path, precision="int8", max_changed=1)
    kept = Path(sample.url, "labels/classes/0/.cvdask/int8")
    assert kept.exists()

    def never(*_):
        raise AssertionError("quantised again")

    monkeypatch.setattr(predict, "quantise_network", never)
    result = segment(sample, path, precision="int8", max_changed=1)
    np.testing.assert_array_equal(result.read(), whole)


@int8
def test_a_run_whose_network_is_gone_is_refused(sample, path, monkeypatch):
    """Another one, made anew, need not have the same ranges."""
    with monkeypatch.context() as patch:
        patch.setattr(Network, "classify", stop_after(7))
        with pytest.raises(KeyboardInterrupt):
            segment(sample, path, precision="int8", max_changed=1)
    Path(sample.url, "labels/classes/0/.cvdask/int8").unlink()
    with pytest.raises(DamagedData, match=r"none at .*/int8.*--overwrite"):
        segment(sample, path, precision="int8", max_changed=1)


@int8
def test_who_goes_on_without_the_instructions_says_how_many_blocks(sample, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Network, "classify", stop_after(7))
        with pytest.raises(KeyboardInterrupt):
            segment(sample, path, precision="int8", max_changed=1)
    monkeypatch.setattr(predict, "supports_int8", lambda: False)
    with pytest.warns(UserWarning, match=r"of \d blocks were computed in float32"):
        result = segment(sample, path, precision="int8", max_changed=1)
    assert result.attributes["prediction"]["precision"] == "int8"


def test_a_processor_without_it_uses_float32_and_says_so(sample, path, monkeypatch):
    exact = segment(sample, path, name="exact").read()
    monkeypatch.setattr(predict, "supports_int8", lambda: False)
    with pytest.warns(UserWarning, match=r"int8.*avx512_vnni.*float32"):
        result = segment(sample, path, precision="int8")
    np.testing.assert_array_equal(result.read(), exact)
    assert result.attributes["prediction"] == {"device": "cpu", "precision": "float32"}


def test_without_the_extra_it_is_refused_by_name(sample, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ValueError, match=r"nncf.*cvdask\[int8\]"):
        check_quantiser()
    with pytest.raises(ValueError, match=r"cvdask\[int8\]"):
        segment(sample, path, precision="int8")
    assert not Path(sample.url, "labels").exists()


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx512_vnni", True), ("fpu amx_int8", True), ("avx2", False)]
)
def test_the_processor_says_whether_it_has_it(tmp_path, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {flags}\n")
    assert supports_int8(cpuinfo) == expected
