"""How are gradients taken, functions compiled and devices chosen, on TensorFlow and on JAX?

``keras.ops`` computes on both; the rest is each backend's own, and all of it is here. Gradients
nest: that of a penalty which is itself a gradient is taken on both.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

Tree = Mapping[str, Any]


def backend() -> str:
    """Name the backend, one that can differentiate twice what ``keras.ops`` computes.

    Raises
    ------
    ValueError
        When it is neither of the two.
    """
    name = str(keras.backend.backend())
    if name not in ("tensorflow", "jax"):
        raise ValueError(
            f"adversarial networks are trained on tensorflow or jax. Received: KERAS_BACKEND={name}"
        )
    return name


def value_and_gradients(
    function: Callable[[Tree], tuple[Any, Any]], tree: Tree
) -> tuple[Any, Any, dict[str, Any]]:
    """Evaluate a function of several arrays and differentiate it by each.

    Parameters
    ----------
    function : callable
        From the arrays to a number, and to whatever else is to be kept.
    tree : mapping of str to array

    Returns
    -------
    value, kept, gradients
        0 for what the value does not depend on.
    """
    if backend() == "jax":
        import jax

        (value, kept), gradients = jax.value_and_grad(function, has_aux=True)(dict(tree))
        return value, kept, gradients
    import tensorflow

    tree = dict(tree)
    with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tree)
        value, kept = function(tree)
    zero = tensorflow.UnconnectedGradients.ZERO
    return value, kept, tape.gradient(value, tree, unconnected_gradients=zero)


def gradient(function: Callable[[Any], Any], array: Any) -> Any:
    """Differentiate a function of one array, which gives a number."""
    return value_and_gradients(lambda tree: (function(tree["x"]), ()), {"x": array})[2]["x"]


def compiled(function: Callable[..., Any], *, xla: bool) -> Callable[..., Any]:
    """Compile a pure function of nested dicts of arrays.

    Parameters
    ----------
    function : callable
    xla : bool
        Whether TensorFlow uses XLA: on GPUs it is faster; on CPUs its own kernels are 1.4–2.5 times
        as fast. JAX always does.
    """
    if backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow

    logging.getLogger("tensorflow").addFilter(_says_more_than_retracing)
    return tensorflow.function(function, jit_compile=xla, reduce_retracing=False)


def _says_more_than_retracing(record: logging.LogRecord) -> bool:
    """Leave out a false alarm: all functions of one place in the source pass for one.

    So the phases of two trainings in one process look like a function that is traced all the time.
    """
    return "triggered tf.function retracing" not in record.getMessage()


def devices(n: int | None = None) -> list[Any]:
    """List the devices to train on: all GPUs, or one CPU.

    Parameters
    ----------
    n : int, optional
        So many of them; CPUs count, of which a process can be given several.

    Raises
    ------
    ValueError
        When there are fewer.
    """
    if backend() == "jax":
        import jax

        found = list(jax.devices())
    else:
        import tensorflow

        logical = tensorflow.config.list_logical_devices
        found = [one.name for one in logical("GPU") or logical("CPU")]
    if n is not None and not 1 <= n <= len(found):
        raise ValueError(f"this process sees {len(found)} devices. Received: {n} to train on")
    return found[:n]


@contextlib.contextmanager
def on(device: Any) -> Iterator[None]:
    """Compute on a device."""
    if backend() == "jax":
        import jax

        with jax.default_device(device):
            yield
        return
    import tensorflow

    with tensorflow.device(device):
        yield


def put(tree: Tree, device: Any) -> dict[str, Any]:
    """Bring arrays to a device; those that are there already stay."""
    if backend() == "jax":
        import jax

        return dict(jax.device_put(dict(tree), device))
    with on(device):
        return {name: keras.ops.convert_to_tensor(one) for name, one in tree.items()}
