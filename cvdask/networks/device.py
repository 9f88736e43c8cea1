"""What does a network run on, in which versions, and has its memory run out?

Each backend of Keras has its own words. It is imported when it is asked about, and not before.
"""

from __future__ import annotations

import contextlib
import os
import platform


def prepare_framework(threads: int) -> None:
    """Set what a framework reads only when it starts; one that has started keeps what it has.

    Parameters
    ----------
    threads : int
        Cores that a call may use.
    """
    # By default TensorFlow and JAX take all of a GPU's memory at once.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        # A RuntimeError says that it has started: then its user has decided.
        with contextlib.suppress(RuntimeError):
            tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    elif keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)


def framework_versions() -> dict[str, str]:
    """Return the versions that a run depends on. Starts the framework."""
    import keras
    import numpy

    backend = keras.backend.backend()
    return {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "keras": keras.__version__,
        backend: __import__(backend).__version__,
    }


def has_gpu() -> bool:
    """Tell whether the framework sees a GPU. Starts the framework."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        return bool(tensorflow.config.list_physical_devices("GPU"))
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import torch

    return bool(torch.cuda.is_available())


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device's memory ran out: every backend has its own words for it."""
    words = f"{type(error).__name__}: {error}".lower()
    signs = ("resourceexhausted", "resource_exhausted", "outofmemory", "out of memory")
    return isinstance(error, MemoryError) or any(sign in words for sign in signs)
