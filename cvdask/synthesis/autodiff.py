"""How are gradients taken and functions compiled, on TensorFlow and on JAX?

``keras.ops`` computes on both; differentiating is each backend's own. Three functions hold all the
difference there is. They nest: the gradient of a penalty that is itself a gradient is taken on both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
            f"adversarial networks are trained on tensorflow or jax. Received: KERAS_BACKEND="
            f"{name}"
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

    return tensorflow.function(function, jit_compile=xla, reduce_retracing=False)
