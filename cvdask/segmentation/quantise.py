"""How does a network run in 8-bit integers on a processor that multiplies them?

1. :func:`quantise` takes the network as OpenVINO's graph (``openvino_graph``), shows it a few
   images, and fixes from what it sees the range of every tensor: from then on activations and
   weights of the convolutions are integers of 8 bits, sums of 32.
2. The result is one string of bytes: the graph as XML, and its constants. Loading it executes
   nothing. It is made once for a run and handed to every worker, so that all compute the same.
3. :func:`load_quantised` compiles it for this processor.

The ranges belong to whole tensors and channels, never to a position or a batch: a pixel's value
still depends on the pixels within the halo only.

``openvino`` and ``nncf`` come with the extra ``int8``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.errors import DamagedData
from cvdask.segmentation.openvino_graph import (
    check_openvino,
    compile_graph,
    missing_extra,
    to_openvino,
)
from cvdask.segmentation.unet import Architecture

# How Linux names the instructions that multiply 8-bit integers and add up in 32 bits.
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# The length of the graph's part, in bytes, before it.
HEAD_BYTES = 8


def check_quantiser() -> None:
    """Refuse where the extra is not installed.

    Raises
    ------
    ValueError
        When ``openvino`` or ``nncf`` is missing.
    """
    check_openvino("precision int8")
    try:
        _silence_nncf()
        import nncf  # noqa: F401
    except ImportError as error:
        raise missing_extra("precision int8", error) from error


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
    check_quantiser()
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
    check_quantiser()
    import openvino

    length = int.from_bytes(data[:HEAD_BYTES], "little")
    described, constants = data[HEAD_BYTES : HEAD_BYTES + length], data[HEAD_BYTES + length :]
    try:
        # What is not quantised stays float32.
        return compile_graph(openvino.Core().read_model(described, constants), threads)
    except RuntimeError as error:
        raise DamagedData(
            f"the network in 8-bit integers cannot be read ({len(data)} bytes): {error}. Start "
            f"over with --overwrite"
        ) from error
