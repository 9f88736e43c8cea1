"""How does a network run through OpenVINO, which multiplies faster than TensorFlow on a CPU?

1. :func:`to_openvino` reads the drawing of the network as nodes of OpenVINO's graph.
2. :func:`compile_graph` makes a function of it for this processor. Units are computed within the
   convolutions before them.

OpenVINO could convert the Keras model instead. But it works with channels first, and it moves its
transpositions neither past the selection in a trainable unit nor, as integers, past the many nodes
that Keras repeats pixels with: in ``paper`` 44 transpositions stay, and the four convolutions after
joins, half of the time, run in float32 where integers were meant. Measured on 2 busy cores: 4 ×
slower than as drawn here.

``openvino`` comes with the extra ``int8``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cvdask.segmentation.unet import Architecture, draw

# OpenVINO's names of what activations and weights are rounded to.
HINTS = {"float32": "f32", "bfloat16": "bf16"}


def check_openvino(purpose: str = "runtime openvino") -> None:
    """Refuse where the extra is not installed.

    Raises
    ------
    ValueError
        When ``openvino`` is missing.
    """
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise missing_extra(purpose, error) from error


def missing_extra(purpose: str, error: ImportError) -> ValueError:
    """Return the error that says what to install."""
    return ValueError(
        f"{purpose} needs OpenVINO. Received: {error}. Install the extra int8: "
        f"pip install 'cvdask[int8]'. Or leave it out: TensorFlow does bfloat16 and float32"
    )


def compile_graph(
    graph: Any, threads: int, precision: str = "float32"
) -> Callable[[Any], np.ndarray]:
    """Make a function of a graph.

    Parameters
    ----------
    graph : openvino.Model
        As from :func:`to_openvino`.
    threads : int
        Cores that a call may use.
    precision : {"float32", "bfloat16"}
        Of what is not quantised. Unasked, OpenVINO would take bfloat16 here and there.

    Returns
    -------
    callable
        (B, Y, X, 1) float32 to (B, Y, X, C) float32.
    """
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": HINTS[precision]}
    compiled = openvino.Core().compile_model(graph, "CPU", options)

    def forward(image: Any) -> np.ndarray:
        return np.array(compiled(np.asarray(image, np.float32))[0])

    return forward


def to_openvino(architecture: Architecture, model: Any) -> Any:
    """Return the same network in float32 as OpenVINO's graph.

    Parameters
    ----------
    architecture : Architecture
    model : keras.Model
        Of this architecture, folded; on any backend.

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
