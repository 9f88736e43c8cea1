"""Which layers do both networks consist of?

Pure functions of features ``(N, H, W, C)`` and of the arrays of a layer, in ``keras.ops``. All have
a second derivative, which the penalties on gradients need: resampling is a convolution with a blur
kernel, since resizing functions have none.

``N`` images, ``H`` and ``W`` their extent, ``C`` and ``K`` channels in and out, ``L`` numbers of a
style.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

# Negative slope of the rectifiers, and the gain that keeps the variance of what passes them.
SLOPE = 0.2
GAIN = math.sqrt(2)
# Largest number of samples whose spread is told to the discriminator.
GROUP = 4


def dense(x: Any, weight: Any, bias: Any = None, *, rate: float = 1.0, gain: float = 1.0) -> Any:
    """Multiply (N, C) by a (C, K) matrix.

    Parameters
    ----------
    rate : float
        How fast weight and bias learn, relative to the learning rate.
    gain : float
        Factor on the result.
    """
    scale = gain * rate / math.sqrt(weight.shape[0])
    y = ops.matmul(x, ops.cast(weight * scale, x.dtype))
    return y if bias is None else y + ops.cast(bias * (rate * gain), x.dtype)


def convolve(x: Any, weight: Any, *, gain: float = 1.0) -> Any:
    """Convolve (N, H, W, C) with a (k, k, C, K) kernel; zeros lie outside."""
    scale = gain / math.sqrt(math.prod(weight.shape[:3]))
    return ops.conv(x, ops.cast(weight * scale, x.dtype), padding="same")


def rectify(x: Any) -> Any:
    """Rectify, leakily. The gain belongs to what comes before: both are positively homogeneous."""
    return ops.leaky_relu(x, SLOPE)


def modulate(x: Any, weight: Any, scales: Any, *, gain: float = 1.0) -> Any:
    """Convolve with a kernel whose inputs are scaled for each image, at variance 1 again.

    Scaling features before and after is the same as scaling each image's kernel (Karras et al.
    2020, section 2.2), and one convolution does for all images.

    Parameters
    ----------
    x : (N, H, W, C)
    weight : (k, k, C, K)
    scales : (N, C)
    """
    squared = ops.sum(ops.square(weight), axis=(0, 1)) / math.prod(weight.shape[:3])  # (C, K)
    spread = ops.matmul(ops.square(scales), squared)  # (N, K)
    after = gain * ops.rsqrt(spread + 1e-8)
    y = convolve(x * ops.cast(scales, x.dtype)[:, None, None], weight)
    return y * ops.cast(after, x.dtype)[:, None, None]


def normalise_instances(x: Any, scale: Any, offset: Any) -> Any:
    """Give every image's channels a mean of 0 and variance of 1, then a style's (AdaIN).

    Parameters
    ----------
    x : (N, H, W, C)
    scale, offset : (N, C)
    """
    y = ops.cast(x, "float32")
    y = y - ops.mean(y, axis=(1, 2), keepdims=True)
    y = y * ops.rsqrt(ops.mean(ops.square(y), axis=(1, 2), keepdims=True) + 1e-8)
    y = y * scale[:, None, None] + offset[:, None, None]
    return ops.cast(y, x.dtype)


def normalise_latents(x: Any) -> Any:
    """Scale the rows of (N, L) to a mean square of 1."""
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=1, keepdims=True) + 1e-8)


def enlarge(x: Any) -> Any:
    """Double height and width: zeros in between, then the blur kernel [1, 3, 3, 1].

    The same as every value twice, then [1, 2, 1]; zeros lie outside.

    >>> row = ops.convert_to_tensor(np.array([0, 0, 4, 0], np.float32).reshape(1, 1, 4, 1))
    >>> ops.convert_to_numpy(enlarge(row))[0, 0, :, 0] * 4 / 3
    array([0., 0., 0., 1., 3., 3., 1., 0.], dtype=float32)
    """
    twice = ops.repeat(ops.repeat(x, 2, axis=1), 2, axis=2)
    return _blur(twice, (1, 2, 1), padding="same")


def reduce(x: Any) -> Any:
    """Halve height and width: the blur kernel [1, 3, 3, 1], then every second value."""
    padded = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return _blur(padded, (1, 3, 3, 1), strides=2, padding="valid")


def _blur(x: Any, weights: tuple[int, ...], **how: Any) -> Any:
    """Convolve every channel with the same kernel."""
    line = np.array(weights, np.float32) / sum(weights)
    kernel = np.repeat(np.outer(line, line)[:, :, None, None], x.shape[-1], axis=2)
    return ops.depthwise_conv(x, ops.cast(kernel, x.dtype), **how)


def spread(x: Any) -> Any:
    """Append a channel that says how much samples differ (minibatch standard deviation).

    Parameters
    ----------
    x : (N, H, W, C)

    Returns
    -------
    (N, H, W, C + 1)
    """
    n, height, width, n_channels = x.shape
    group = max(g for g in range(1, GROUP + 1) if n % g == 0)
    y = ops.reshape(ops.cast(x, "float32"), (group, n // group, height, width, n_channels))
    y = y - ops.mean(y, axis=0, keepdims=True)
    y = ops.sqrt(ops.mean(ops.square(y), axis=0) + 1e-8)  # (N/G, H, W, C)
    y = ops.mean(y, axis=(1, 2, 3), keepdims=True)
    y = ops.broadcast_to(y[None, :, :, :, :], (group, n // group, height, width, 1))
    return ops.concatenate([x, ops.cast(ops.reshape(y, (n, height, width, 1)), x.dtype)], axis=-1)


def noise(seeds: Any, layer: int, extent: int) -> Any:
    """Draw normal numbers for each voxel, from each image's seed alone.

    The same on every backend and device up to rounding, wherever in a batch the image stands.

    Parameters
    ----------
    seeds : (N,) uint32
    layer : int
        Other layers draw other numbers.
    extent : int

    Returns
    -------
    (N, extent, extent, 1) float32
    """
    places = np.arange(extent * extent, dtype=np.uint32) * np.uint32(2654435769)
    start = np.uint32((layer * 2246822519 + 374761393) % 2**32)
    bits = _mix(_mix(seeds ^ start)[:, None] ^ places)  # (N, H·W)
    low, high = ops.bitwise_and(bits, np.uint32(0xFFFF)), ops.right_shift(bits, np.uint32(16))
    # Box and Muller 1958: two uniform numbers make a normal one.
    radius = ops.sqrt(-2 * ops.log((ops.cast(low, "float32") + 0.5) / 65536))
    angle = ops.cos(ops.cast(high, "float32") * (2 * math.pi / 65536))
    return ops.reshape(radius * angle, (-1, extent, extent, 1))


def _mix(bits: Any) -> Any:
    """Scatter 32-bit numbers so that neighbours have nothing in common (a hash of Wellons 2018)."""
    bits = ops.bitwise_xor(bits, ops.right_shift(bits, np.uint32(16))) * np.uint32(0x7FEB352D)
    bits = ops.bitwise_xor(bits, ops.right_shift(bits, np.uint32(15))) * np.uint32(0x846CA68B)
    return ops.bitwise_xor(bits, ops.right_shift(bits, np.uint32(16)))
