"""The network through OpenVINO: the same numbers, on whole slices and on blocks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvdask.segmentation import model_file, predict
from cvdask.segmentation.forward import NetworkSettings, load_network, supports_bfloat16
from cvdask.segmentation.openvino_graph import compile_graph, to_openvino
from cvdask.segmentation.predict import segment
from cvdask.segmentation.unet import Architecture, fold
from tests.samples import write_sample
from tests.segmentation.networks import texture, write_network

pytest.importorskip("openvino", reason="the extra int8 is not installed")

IMAGES = texture((4, 96, 128))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "unet.keras"
    write_network(path)
    return path


@pytest.fixture
def sample(tmp_path: Path) -> Any:
    shapes = {"chunk_shape": (1, 32, 32), "shard_shape": (2, 64, 64)}
    return write_sample(tmp_path / "cell.zarr", texture((4, 96, 128), 1), **shapes)


def through_openvino(path: Path, precision: str = "float32") -> NetworkSettings:
    return NetworkSettings(
        str(path), model_file.digest(path), precision, threads=2, runtime="openvino"
    )


@pytest.mark.parametrize("preset", ["paper", "fast"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_graph_is_the_network(tmp_path: Path, preset: Any, sign: int) -> None:
    small = Architecture(
        n_classes=3, preset=preset, base_width=4, depth=2, n_dense=2 if preset == "paper" else None
    )
    write_network(tmp_path / "unet.keras", small)
    model = fold(small, model_file.load(tmp_path / "unet.keras")[1])
    for layer in model.layers:
        if layer.name.endswith("_tlu"):
            alpha, beta = layer.get_weights()
            # One channel whose factor is not positive is enough for the other way to draw units.
            beta[0] *= sign
            layer.set_weights([alpha, beta])
    image = np.random.default_rng(0).normal(size=(2, 24, 40, 1)).astype(np.float32)
    forward = compile_graph(to_openvino(small, model), threads=2)
    np.testing.assert_allclose(forward(image), np.asarray(model(image)), atol=1e-5)


def test_probabilities_are_those_of_keras(path: Path) -> None:
    found = load_network(through_openvino(path)).predict(IMAGES, 2)
    expected = load_network(NetworkSettings(str(path), model_file.digest(path))).predict(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(not supports_bfloat16(), reason="this processor has no bfloat16")
def test_bfloat16_is_near_and_not_the_same(path: Path) -> None:
    exact = load_network(through_openvino(path)).predict(IMAGES)
    found = load_network(through_openvino(path, "bfloat16")).predict(IMAGES)
    assert 1e-5 < np.abs(found - exact).mean() < 0.02


def test_blocks_are_whole_slices_and_the_runtime_is_remembered(sample: Any, path: Path) -> None:
    result = segment(sample, path, runtime="openvino", block_yx=(64, 64), client="threads")
    network = load_network(through_openvino(path))
    whole = network.predict(sample.read())  # (4, 96, 128, 3)
    values = np.array(network.unet.values, np.uint8)
    first, second = np.sort(whole, axis=-1)[..., :-3:-1].transpose(3, 0, 1, 2)
    clear = first - second > 1e-4
    np.testing.assert_array_equal(result.read()[clear], values[whole.argmax(-1)][clear])
    assert clear.mean() > 0.99
    assert result.attributes["prediction"]["runtime"] == "openvino"


def test_without_the_extra_it_is_refused(
    sample: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"runtime openvino.*cvdask\[int8\]"):
        segment(sample, path, runtime="openvino")
    assert not Path(sample.url, "labels").exists()


def test_beside_a_gpu_it_is_refused(
    sample: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "has_gpu", lambda: True)
    with pytest.raises(ValueError, match=r"processor.*has a GPU"):
        segment(sample, path, runtime="openvino")
    assert not Path(sample.url, "labels").exists()


def test_an_unknown_runtime_is_refused(sample: Any, path: Path) -> None:
    with pytest.raises(ValueError, match=r"keras or openvino.*'onnx'"):
        segment(sample, path, runtime="onnx")
