"""How does a trained network classify slices, as fast as the device it is on can?

1. :func:`load_network` builds the network once per process, keyed by the digest of its file, with
   the batch normalisation folded into the convolutions.
2. :meth:`Network.classify` divides slices into batches of one shape and calls a function that the
   backend has compiled. The grey values travel to the device as
   they are stored, a byte or two per pixel; normalisation and argmax happen there, and a byte per
   pixel comes back.
3. Height and width are filled up there too, with zeros after normalisation, at the upper ends, to
   the next multiples of the stride: ``segmentation.unet`` says why just so.
4. A batch that does not fit the device's memory is halved, for the rest of the process.

One thread computes at a time, on all the cores that the process may use, while others read and
write: so two tasks per device keep it busy.

Framework libraries are imported when a network is loaded, and not before.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.engine.cluster import machine_limits
from cvdask.networks.device import has_gpu, is_out_of_memory, prepare_framework
from cvdask.segmentation import model_file
from cvdask.segmentation.model_file import UNet
from cvdask.segmentation.openvino_graph import check_openvino, compile_graph, to_openvino
from cvdask.segmentation.quantise import INT8_FLAGS, load_quantised, quantise
from cvdask.segmentation.unet import fold, stride
from cvdask.volume.objects import read_object, redact

PRECISIONS = ("float32", "bfloat16", "int8")
RUNTIMES = ("keras", "openvino")
# How Linux names the instructions that multiply bfloat16 numbers.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
# What TensorFlow's graph optimiser calls the same weights with bfloat16 convolutions on a CPU.
ONEDNN_BFLOAT16 = "auto_mixed_precision_onednn_bfloat16"

_loading = threading.Lock()
_computing = threading.Lock()


@dataclass(frozen=True)
class Quantised:
    """Where a network in 8-bit integers lies: one for all workers of a run.

    Parameters
    ----------
    url, key : str
        As for :func:`cvdask.volume.objects.read_object`.
    digest : str
        Its sha256.
    """

    url: str
    key: str
    digest: str


@dataclass(frozen=True)
class NetworkSettings:
    """Which network, and how it is to be run: all a worker needs to load it.

    Parameters
    ----------
    path : str
        The model file, as this process and every worker find it.
    digest : str
        Its sha256.
    precision : {"float32", "bfloat16", "int8"}
    n_views : {1, 4, 8}
        Test-time augmentation: how many flipped and turned views are averaged.
    threads : int
        Tasks that a worker process runs at the same time: it may use at least as many cores.
    processes : int
        Worker processes that share a machine, and its cores.
    quantised : Quantised, optional
        What int8 runs.
    runtime : {"keras", "openvino"}
        What computes: the backend of Keras, or OpenVINO. int8 is always OpenVINO's.
    """

    path: str
    digest: str
    precision: str = "float32"
    n_views: int = 1
    threads: int = 1
    processes: int = 1
    quantised: Quantised | None = None
    runtime: str = "keras"

    @property
    def cores(self) -> int:
        """Cores that a call of the network may use on this machine."""
        cores = machine_limits().cores
        return min(cores, max(self.threads, cores // self.processes))


@dataclass(frozen=True)
class Classified:
    """What a network says about some slices.

    Parameters
    ----------
    classes : (N, Y, X) uint8
        Label values, as in the annotations the network was trained on.
    probabilities : (C, N, Y, X) uint8, or None
        255 × the probability of each class without the background, classes ascending.
    batch_size : int
        Slices per call that were possible: less than asked for where the device's memory ran out.
    """

    classes: np.ndarray
    probabilities: np.ndarray | None
    batch_size: int


def load_network(settings: NetworkSettings) -> Network:
    """Return the network of some settings, loaded once per process.

    Raises
    ------
    ValueError
        When the file is damaged, or is not the one with this digest.
    """
    with _loading:  # two threads must not both load it
        return _load(settings)


@lru_cache(maxsize=2)
def _load(settings: NetworkSettings) -> Network:
    found = model_file.digest(settings.path)
    if found != settings.digest:
        raise ValueError(
            f"every worker must find the model that the run began with, {settings.digest[:12]}…. "
            f"Received at {redact(settings.path)}: {found[:12]}…. Put the same file there, or "
            f"start over with --overwrite"
        )
    prepare_framework(settings.cores)
    unet, model = model_file.load(settings.path)
    if settings.precision == "int8":
        forward = load_quantised(_read_quantised(settings.quantised), settings.cores)
        return Network(unet, forward, "int8", settings.n_views)
    if settings.runtime == "openvino":
        check_openvino()
        graph = to_openvino(unet.architecture, fold(unet.architecture, model))
        forward = compile_graph(graph, settings.cores, settings.precision)
        return Network(unet, forward, settings.precision, settings.n_views)
    lowered = settings.precision == "bfloat16" and not _by_graph_optimiser()
    policy = "mixed_bfloat16" if lowered else "float32"
    model = fold(unet.architecture, model, precision=policy)
    return Network(unet, _compile(model), settings.precision, settings.n_views)


def _read_quantised(place: Quantised | None) -> bytes:
    assert place is not None, "int8 runs what was quantised when the run began"
    data = read_object(place.url, place.key)
    found = None if data is None else hashlib.sha256(data).hexdigest()
    if data is None or found != place.digest:
        raise ValueError(
            f"every worker must find the int8 network that the run began with, "
            f"{place.digest[:12]}…. Received at {redact(place.url)}/{place.key}: "
            f"{'nothing' if found is None else found[:12] + '…'}. Start over with --overwrite"
        )
    return data


def quantise_network(settings: NetworkSettings, images: np.ndarray) -> tuple[bytes, Network]:
    """Make a network of 8-bit integers, its ranges taken from some images.

    Parameters
    ----------
    settings : NetworkSettings
        Of the network in float32.
    images : (N, Y, X) grey values as stored

    Returns
    -------
    data, network
        What every worker is to load, and the same ready to be tried.
    """
    prepare_framework(settings.cores)
    unet, model = model_file.load(settings.path)
    exact = load_network(replace(settings, precision="float32", quantised=None))
    grey = exact.normalised(images)[..., 0]
    data = quantise(unet.architecture, fold(unet.architecture, model), grey)
    return data, Network(unet, load_quantised(data, settings.cores), "int8", settings.n_views)


def supports_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this machine's processor multiplies 8-bit integers faster than floats."""
    return bool(INT8_FLAGS & _processor_flags(cpuinfo))


def supports_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this machine multiplies bfloat16 numbers itself: a GPU, or such a processor."""
    return has_gpu() or bool(BFLOAT16_FLAGS & _processor_flags(cpuinfo))


def _processor_flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


def _by_graph_optimiser() -> bool:
    """Tell whether TensorFlow's graph optimiser lowers the precision, rather than the layers.

    On a CPU it is the faster way: it keeps a whole chain of layers in bfloat16.
    """
    import keras

    return bool(keras.backend.backend() == "tensorflow" and not has_gpu())


class Network:
    """A network on this process's device.

    Parameters
    ----------
    unet : UNet
        What it was trained for.
    forward : callable
        (B, Y, X, 1) float32 to (B, Y, X, C) float32 probabilities.
    precision, n_views
        See :class:`NetworkSettings`.
    """

    def __init__(
        self,
        unet: UNet,
        forward: Callable[[Any], Any],
        precision: str = "float32",
        n_views: int = 1,
    ) -> None:
        self.unet = unet
        self.precision = precision
        self.views = [(bool(i & 4), bool(i & 2), bool(i & 1)) for i in range(n_views)]
        self._forward = forward
        # Slices per call that the device's memory has turned out to hold, by their shape.
        self._fitting: dict[tuple[int, ...], int] = {}

    def predict(self, images: np.ndarray, batch_size: int = 1) -> np.ndarray:
        """Return class probabilities.

        Parameters
        ----------
        images : (N, Y, X) grey values as stored
        batch_size : int
            Slices per call.

        Returns
        -------
        (N, Y, X, C) float32
            Background first, then classes ascending.
        """
        batches, _ = self._run(images, batch_size, _to_numpy)
        return np.concatenate(batches)

    def classify(
        self, images: np.ndarray, batch_size: int = 1, *, probabilities: bool = False
    ) -> Classified:
        """Return the label value of every pixel.

        Parameters
        ----------
        images, batch_size
            As in :meth:`predict`.
        probabilities : bool
            Return quantised probabilities too.

        Raises
        ------
        MemoryError
            When one slice alone does not fit the device.
        """
        import keras

        ops = keras.ops
        values = np.array(self.unet.values, np.uint8)

        def finish(total: Any) -> tuple[np.ndarray, np.ndarray | None]:
            # (B, Y, X, C) → (B, Y, X): the lowest class where several are equally likely.
            channel = ops.cast(ops.argmax(total, axis=-1), "uint8")
            quantised = None
            if probabilities:
                rounded = ops.cast(ops.floor(total[..., 1:] * 255 + 0.5), "uint8")
                quantised = np.moveaxis(_to_numpy(rounded), -1, 0)  # (B, Y, X, C) → (C, B, Y, X)
            return values[_to_numpy(channel)], quantised

        parts, limit = self._run(images, batch_size, finish)
        planes = [plane for _, plane in parts if plane is not None]
        return Classified(
            np.concatenate([classes for classes, _ in parts]),
            np.concatenate(planes, axis=1) if planes else None,
            limit,
        )

    def classify_across(
        self,
        image: np.ndarray,
        kept: tuple[slice, ...],
        axes: Sequence[int],
        batch_size: int = 1,
        *,
        probabilities: bool = False,
    ) -> Classified:
        """Return the label value of every voxel, from planes across several axes.

        The probabilities are averaged on the host: what crosses from the device is one float per
        class, plane and pixel.

        Parameters
        ----------
        image : (Z, Y, X) grey values as stored
            What the network sees.
        kept : tuple of slice
            What of it counts.
        axes : sequence of int
            Axes that the planes lie across.
        batch_size, probabilities
            As in :meth:`classify`; planes per call.

        Raises
        ------
        MemoryError
            When one plane alone does not fit the device.
        """
        shape = image[kept].shape
        total = np.zeros((*shape, len(self.unet.values)), np.float32)  # (z, y, x, C)
        limits = []
        for axis in axes:
            planes = np.moveaxis(image, axis, 0)[kept[axis]]  # (N, A, B)
            within = (slice(None), *(one for i, one in enumerate(kept) if i != axis))
            sums = iter(np.moveaxis(total, axis, 0))  # (a, b, C) each, of the same memory

            def add(
                average: Any, within: tuple[slice, ...] = within, sums: Iterator[Any] = sums
            ) -> None:
                for one, place in zip(_to_numpy(average)[within], sums, strict=False):
                    place += one

            limits.append(self._run(planes, batch_size, add)[1])
        total /= len(axes)
        values = np.array(self.unet.values, np.uint8)
        quantised = None
        if probabilities:
            rounded = np.floor(total[..., 1:] * 255 + 0.5).astype(np.uint8)
            quantised = np.moveaxis(rounded, -1, 0)  # (C, z, y, x)
        return Classified(values[total.argmax(-1)], quantised, min(limits))

    def normalised(self, images: np.ndarray) -> np.ndarray:
        """Return what the network itself sees of (N, Y, X) images: (N, Y', X', 1) float32."""
        return _to_numpy(self._normalise(images))

    def _run(
        self, images: np.ndarray, batch_size: int, finish: Callable[[Any], Any]
    ) -> tuple[list[Any], int]:
        """Call ``finish`` on the averaged probabilities of each batch, cut to its slices.

        The lock is held for all batches of a call: threads that took turns batch by batch would
        read at the same time and compute at the same time, and nothing would overlap.
        """
        shape = images.shape[1:]
        out: list[Any] = []
        limit = size = batch_size
        with _computing, _numerics(self.precision):
            first = 0
            while first < len(images):
                if not out or size > limit:
                    # Even parts, so that little is computed for nothing: 5 slices by 4 are 3 and 2.
                    limit = min(batch_size, self._fitting.get(shape, batch_size))
                    size = -(-(len(images) - first) // -(-(len(images) - first) // limit))
                batch = images[first : first + size]
                n_slices = len(batch)
                if n_slices < size:
                    batch = np.concatenate(
                        [batch, np.zeros((size - n_slices, *shape), batch.dtype)]
                    )
                try:
                    average = self._average(batch)  # (size, Y, X, C)
                    out.append(finish(average[:n_slices]))
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    if size == 1:
                        raise MemoryError(
                            f"one slice of {shape[0]} × {shape[1]} pixels does not fit the memory "
                            f"of the device. Use smaller blocks, such as --block-yx "
                            f"{shape[0] // 2} {shape[1] // 2}"
                        ) from error
                    limit = self._fitting[shape] = size // 2
                    continue
                first += n_slices
        return out, limit

    def _average(self, batch: np.ndarray) -> Any:
        """Average the probabilities of all views of a batch: (B, Y, X) to (B, Y, X, C)."""
        import keras

        ops = keras.ops
        height, width = batch.shape[1:]
        image = self._normalise(batch)  # (B, Y', X', 1), multiples of the stride
        total: Any = None
        for turned, flip_y, flip_x in self.views:
            axes = [axis for axis, flipped in ((1, flip_y), (2, flip_x)) if flipped]
            view = ops.flip(image, axis=axes) if axes else image
            view = ops.transpose(view, (0, 2, 1, 3)) if turned else view
            one = ops.convert_to_tensor(self._forward(view))  # (B, Y', X', C)
            one = ops.transpose(one, (0, 2, 1, 3)) if turned else one
            one = ops.flip(one, axis=axes) if axes else one
            total = one if total is None else total + one
        total = total / len(self.views) if len(self.views) > 1 else total
        return total[:, :height, :width]

    def _normalise(self, batch: np.ndarray) -> Any:
        import keras

        ops = keras.ops
        step = stride(self.unet.architecture)
        grey = (ops.cast(ops.convert_to_tensor(batch), "float32") - self.unet.mean) / self.unet.sd
        fill = [(0, 0), *((0, -extent % step) for extent in batch.shape[1:])]
        return ops.expand_dims(ops.pad(grey, fill), -1)  # (B, Y, X) → (B, Y', X', 1)


def _compile(model: Any) -> Callable[[Any], Any]:
    """Return a compiled function from (B, Y, X, 1) images to (B, Y, X, C) probabilities."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        # One graph for all shapes: tracing takes a second, and on CPUs a graph for one shape is not
        # faster. XLA, which compiles for each shape, makes convolutions a fifth slower there.
        any_shape = tensorflow.TensorSpec((None, None, None, 1), tensorflow.float32)

        @tensorflow.function(input_signature=[any_shape], jit_compile=has_gpu())
        def by_tensorflow(image: Any) -> Any:
            return model(image, training=False)

        return by_tensorflow
    if backend == "jax":
        import jax

        trained = [variable.value for variable in model.trainable_variables]
        fixed = [variable.value for variable in model.non_trainable_variables]

        @jax.jit
        def by_jax(trained: Any, fixed: Any, image: Any) -> Any:
            with jax.default_matmul_precision("float32"):
                return model.stateless_call(trained, fixed, image, training=False)[0]

        return lambda image: by_jax(trained, fixed, image)
    import torch

    def by_torch(image: Any) -> Any:
        with torch.no_grad():
            return model(image, training=False)

    return by_torch


def _to_numpy(tensor: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(tensor))


@contextlib.contextmanager
def _numerics(precision: str) -> Iterator[None]:
    """Let TensorFlow compute in this precision, and leave its settings as they were.

    They belong to the process: a training in the same session must not change with them. float32
    means float32, also on GPUs, which would round the factors of a product to 10 bits (TF32).
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow

    config, optimiser = tensorflow.config.experimental, tensorflow.config.optimizer
    rounded = config.tensor_float_32_execution_enabled()
    before = bool(optimiser.get_experimental_options().get(ONEDNN_BFLOAT16, False))
    config.enable_tensor_float_32_execution(precision != "float32")
    wanted = precision == "bfloat16" and _by_graph_optimiser()
    optimiser.set_experimental_options({ONEDNN_BFLOAT16: wanted})
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(rounded)
        optimiser.set_experimental_options({ONEDNN_BFLOAT16: before})
