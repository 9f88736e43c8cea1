"""How does a network run in 8-bit integers on a processor that multiplies them?

1. :func:`quantise` converts the network to OpenVINO's representation, shows it a few images, and
   fixes from what it sees the range of every tensor: from then on activations and weights of the
   convolutions are integers of 8 bits, sums of 32.
2. The result is one string of bytes: the graph as XML, and its constants. Loading it executes
   nothing. It is made once for a run and handed to every worker, so that all compute the same.
3. :func:`load_quantised` compiles it for this processor.

The ranges belong to whole tensors and channels, never to a position or a batch: a pixel's value
still depends on the pixels within the halo only.

``openvino`` and ``nncf`` come with the extra ``int8``.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.errors import DamagedData

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
        _silence_telemetry()
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"precision int8 needs OpenVINO. Received: {error}. Install the extra int8: "
            f"pip install 'cvdask[int8]'. Or use bfloat16 or float32"
        ) from error


def _silence_telemetry() -> None:
    """Keep both libraries from reporting their use, and from logging what they optimise."""
    os.environ.setdefault("OPENVINO_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("NNCF_CI", "1")  # nncf sends nothing where this is set
    logging.getLogger("nncf").setLevel(logging.ERROR)


def quantise(model: Any, images: np.ndarray) -> bytes:
    """Return a network in 8-bit integers.

    Parameters
    ----------
    model : keras.Model
        Folded, on the TensorFlow backend: (B, Y, X, 1) float32 to (B, Y, X, C) float32.
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
    with _without_progress():
        quantised = nncf.quantize(
            openvino.convert_model(model),
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
        )
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "network.xml"
        openvino.save_model(quantised, graph, compress_to_fp16=False)
        described, constants = graph.read_bytes(), graph.with_suffix(".bin").read_bytes()
    return len(described).to_bytes(HEAD_BYTES, "little") + described + constants


def _without_progress() -> Any:
    import contextlib
    import io

    return contextlib.redirect_stdout(io.StringIO())


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
