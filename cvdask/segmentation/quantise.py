"""How does a network run in 8-bit integers on a processor that multiplies them?

1. :func:`quantise` reads the drawing of the network as nodes of OpenVINO, shows it a few images,
   and fixes from what it sees the range of every tensor: from then on activations and weights of
   the convolutions are integers of 8 bits, sums of 32.
2. The result is one string of bytes: the graph as XML, and its constants. Loading it executes
   nothing. It is made once for a run and handed to every worker, so that all compute the same.
3. :func:`load_quantised` compiles it for this processor.

The ranges belong to whole tensors and channels, never to a position or a batch: a pixel's value
still depends on the pixels within the halo only.

OpenVINO could convert the Keras model instead. But it works with channels first, and it moves its
transpositions neither past the selection in a trainable unit nor, as integers, past the many nodes
that Keras repeats pixels with: in ``paper`` 44 transpositions stay, and the four convolutions after
joins, half of the time, run in float32. Measured on 2 busy cores: 4 × slower than as drawn here.

``openvino`` and ``nncf`` come with the extra ``int8``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.errors import DamagedData
from cvdask.segmentation.unet import Architecture, draw

# How Linux names the instructions that multiply 8-bit integers and add up in 32 bits.
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# The length of the graph's part, in bytes, before it.
HEAD_BYTES = 8


def check_openvino() -> None:
    """Refuse where the extra is not installed.

    Raises
    ------
    ValueError
        When ``openvino`` or ``nncf`` is missing.
    """
    try:
        _silence_nncf()
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"precision int8 needs OpenVINO. Received: {error}. Install the extra int8: "
            f"pip install 'cvdask[int8]'. Or use bfloat16 or float32"
        ) from error


def _silence_nncf() -> None:
    """Keep it from reporting its use to its makers, and from logging what it optimises."""
    os.environ.setdefault("NNCF_CI", "1")  # read when it is imported: nothing is sent then
    logging.getLogger("nncf").setLevel(logging.ERROR)


def quantise(architecture: Architecture, model: Any, images: np.ndarray) -> bytes:
    """Return a network in 8-bit integers.

    Parameters
    ----------
    architecture : Architecture
    model : keras.Model
        Of this architecture, folded; on any backend.
    images : (N, Y, X) float32
        Normalised; what the ranges are taken from. Y and X are multiples of the network's stride.

    Returns
    -------
    bytes
        For :func:`load_quantised`.
    """
    check_openvino()
    import nncf
    import openvino

    samples = [image[None, ..., None] for image in images]  # (1, Y, X, 1)
    # A network is small beside the images; progress bars of a second are noise.
    with contextlib.redirect_stdout(io.StringIO()):
        quantised = nncf.quantize(
            to_openvino(architecture, model),
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
        )
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "network.xml"
        openvino.save_model(quantised, graph, compress_to_fp16=False)
        described, constants = graph.read_bytes(), graph.with_suffix(".bin").read_bytes()
    return len(described).to_bytes(HEAD_BYTES, "little") + described + constants


def to_openvino(architecture: Architecture, model: Any) -> Any:
    """Return the same network in float32 as OpenVINO's graph.

    Parameters
    ----------
    architecture, model
        As for :func:`quantise`.

    Returns
    -------
    openvino.Model
        (B, Y, X, in_channels) float32 to (B, Y, X, n_classes) float32, channels first inside.
    """
    import openvino
    from openvino import opset13 as nodes

    weights = {layer.name: layer.get_weights() for layer in model.layers}
    image = nodes.parameter([-1, -1, -1, architecture.in_channels], np.float32, name="image")
    x = nodes.transpose(image, np.array([0, 3, 1, 2]))  # (B, Y, X, C) → (B, C, Y, X)
    x = draw(architecture, _Nodes(weights), x)  # (B, n_classes, Y, X)
    x = nodes.transpose(x, np.array([0, 2, 3, 1]))  # (B, Y, X, n_classes)
    return openvino.Model([nodes.softmax(x, -1)], [image], "unet")


class _Nodes:
    """Read the drawing as nodes of OpenVINO, (B, C, Y, X), with the weights of a folded network.

    Parameters
    ----------
    weights : mapping of str to list of ndarray
        Those of each layer, as Keras orders them.
    """

    def __init__(self, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
        from openvino import opset13

        self.nodes = opset13
        self.weights = weights

    def convolve(
        self,
        x: Any,
        width: int,
        name: str,
        *,
        size: int = 3,
        norm: bool = False,
        unit: str | None = None,
    ) -> Any:
        kernel, bias = self.weights[name]  # (size, size, C, width), (width,)
        alpha = beta = np.ones(width, np.float32)
        if unit == "tlu":
            alpha, beta = self.weights[f"{name}_tlu"]
            if (beta > 0).all():
                # A positive factor may come before the unit as well as after it.
                kernel, bias = kernel * beta, bias * beta
                alpha, beta = alpha / beta, np.ones_like(beta)
        first = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))  # (width, C, size, size)
        beside = [size // 2] * 2
        x = self.nodes.convolution(
            x, self.nodes.constant(first), [1, 1], beside, beside, [1, 1], name=name
        )
        x = self.nodes.add(x, self._by_channel(bias))
        if unit == "tlu":
            return self._trainable(x, alpha, beta)
        return self._relu(x, unit)

    def pool(self, x: Any, name: str) -> Any:
        pooled = self.nodes.max_pool(
            x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2], index_element_type="i64", name=name
        )
        return pooled.output(0)  # the other is where the maxima were

    def enlarge(self, x: Any, name: str) -> Any:
        return self.nodes.interpolate(
            x,
            np.array([2, 2], np.float32),
            "nearest",
            "scales",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=np.array([2, 3]),
            name=name,
        )

    def join(self, xs: Sequence[Any], name: str) -> Any:
        return self.nodes.concat(list(xs), 1, name=name)

    def add(self, xs: Sequence[Any], name: str, unit: str | None = None) -> Any:
        return self._relu(self.nodes.add(*xs, name=name), unit)

    def _relu(self, x: Any, unit: str | None) -> Any:
        return x if unit is None else self.nodes.relu(x)

    def _trainable(self, x: Any, alpha: np.ndarray, beta: np.ndarray) -> Any:
        if (beta == 1).all():
            return self.nodes.prelu(x, self.nodes.constant(alpha))
        # Slow, but right for any sign: αx + (β − α)·max(x, 0).
        bent = self.nodes.multiply(self.nodes.relu(x), self._by_channel(beta - alpha))
        return self.nodes.add(self.nodes.multiply(x, self._by_channel(alpha)), bent)

    def _by_channel(self, values: np.ndarray) -> Any:
        return self.nodes.constant(values.reshape(1, -1, 1, 1))


def load_quantised(data: bytes, threads: int) -> Callable[[Any], np.ndarray]:
    """Compile what :func:`quantise` has made.

    Parameters
    ----------
    data : bytes
    threads : int
        Cores that a call may use.

    Returns
    -------
    callable
        (B, Y, X, 1) float32 to (B, Y, X, C) float32.

    Raises
    ------
    DamagedData
        When the bytes are not such a network.
    """
    check_openvino()
    import openvino

    length = int.from_bytes(data[:HEAD_BYTES], "little")
    described, constants = data[HEAD_BYTES : HEAD_BYTES + length], data[HEAD_BYTES + length :]
    try:
        core = openvino.Core()
        graph = core.read_model(described, constants)
        # What is not quantised stays float32: OpenVINO would choose bfloat16 for it here and there.
        compiled = core.compile_model(
            graph,
            "CPU",
            {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"},
        )
    except RuntimeError as error:
        raise DamagedData(
            f"the network in 8-bit integers cannot be read ({len(data)} bytes): {error}. Start "
            f"over with --overwrite"
        ) from error

    def forward(image: Any) -> np.ndarray:
        return np.array(compiled(np.asarray(image, np.float32))[0])

    return forward
