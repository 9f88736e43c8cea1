"""How does a latent become a slice, and how real does a slice look?

Pure functions of the arrays that ``architecture.parameters`` lists, in ``keras.ops``:

1. :func:`styles`: latents and places in the volume become styles (mapping network).
2. :func:`synthesise`: styles and seeds of noise become logits of a slice.
3. :func:`classify`: logits become what the discriminator sees, one class per voxel or
   probabilities.
4. :func:`discriminate`: slices and their places become a score, high for real.

Two presets::

    default   modulated convolutions, logits added up over all resolutions; residual discriminator
              (Karras et al. 2020, StyleGAN2); waves of the place as position code
    paper     convolutions, then AdaIN; all resolutions learned one after the other, faded in
              (Karras et al. 2019, StyleGAN); pairs of neighbouring slices as labels

Ours differ in one respect from the original: where features change resolution, the convolution runs
at the coarser one, before enlarging and after reducing. That quarters its work.

How is a volume continuous in z? One content code serves all its slices. What changes along z is
interpolated between anchors that are part of the latent (Skorokhodov et al. 2022, StyleGAN-V, with
z for time), and so is every slice in between, at any place. The discriminator sees three slices and
is told their distances.

``N`` samples of ``S`` slices of ``R`` × ``R`` voxels and ``C`` channels; ``M`` slices of any
sample; ``L`` numbers of a latent, ``W`` of a style.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from cvdask.synthesis.architecture import (
    ANCHOR_SPACINGS,
    DISTANCE_SCALES,
    MAPPING_RATE,
    MOTION,
    Architecture,
)
from cvdask.synthesis.layers import (
    GAIN,
    convolve,
    dense,
    enlarge,
    modulate,
    noise,
    normalise_instances,
    normalise_latents,
    rectify,
    reduce,
    spread,
)

Arrays = Mapping[str, Any]


# ---------------------------------------------------------------------------------------------
# Where a slice lies


def position_code(architecture: Architecture, places: Any) -> Any:
    """Say where slices lie.

    Parameters
    ----------
    architecture : Architecture
    places : (M,) float32
        0 for the first slice, 1 for the last.

    Returns
    -------
    (M, n_code) float32
        Waves of the place; in preset ``paper``, which pair of slices it is: 0 everywhere but there.
    """
    if architecture.preset == "paper":
        numbers = ops.round(places * (architecture.n_slices - 1))
        pairs = ops.floor(numbers / 2)
        return ops.one_hot(ops.cast(pairs, "int32"), architecture.n_pairs, dtype="float32")
    waves = np.pi * 2.0 ** np.arange(architecture.n_frequencies, dtype=np.float32)
    angles = places[:, None] * waves.astype(np.float32)
    return GAIN * ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)


def motion_code(architecture: Architecture, latents: Any, places: Any) -> Any:
    """Interpolate what the anchors of a volume hold.

    Between two anchors the weights are a cosine and a sine, so that the variance stays 1, of a
    smooth step, so that the change has no kink.

    Parameters
    ----------
    latents : (M, L)
    places : (M,)

    Returns
    -------
    (M, spacings · MOTION) float32
    """
    codes = []
    first = architecture.latent
    for spacing, n_anchors in zip(ANCHOR_SPACINGS, architecture.n_anchors, strict=True):
        held = ops.reshape(latents[:, first : first + n_anchors * MOTION], (-1, n_anchors, MOTION))
        first += n_anchors * MOTION
        z = places * ((architecture.n_slices - 1) / spacing)
        before = ops.clip(ops.floor(z), 0, n_anchors - 2)
        share = ops.clip(z - before, 0, 1)
        turn = (math.pi / 2) * share * share * (3 - 2 * share)
        number = ops.cast(before, "int32")
        weights = ops.cos(turn)[:, None] * ops.one_hot(number, n_anchors, dtype="float32")
        weights += ops.sin(turn)[:, None] * ops.one_hot(number + 1, n_anchors, dtype="float32")
        codes.append(ops.matmul(weights[:, None, :], held)[:, 0])  # (M, MOTION)
    return ops.concatenate(codes, axis=1)


def sample_code(architecture: Architecture, places: Any) -> Any:
    """Say where the slices of a sample lie, and how far from each other.

    Parameters
    ----------
    places : (N, S)

    Returns
    -------
    (N, numbers) float32
        The position code of the middle slice; for each step from slice to slice, in slices, its
        distance relative to several scales.
    """
    middle = architecture.slices_per_sample // 2
    codes = [position_code(architecture, places[:, middle])]
    steps = ops.abs(places[:, 1:] - places[:, :-1]) * (architecture.n_slices - 1)  # (N, S - 1)
    scales = np.array(DISTANCE_SCALES, np.float32)
    for i in range(architecture.slices_per_sample - 1):
        distance = steps[:, i : i + 1]
        codes.append(2 * distance / (distance + scales) - 1)
    return ops.concatenate(codes, axis=1)


# ---------------------------------------------------------------------------------------------
# The generator


def styles(arrays: Arrays, architecture: Architecture, latents: Any, places: Any) -> Any:
    """Map latents and places to styles.

    Parameters
    ----------
    arrays : mapping of str to array
        Of the generator.
    architecture : Architecture
    latents : (M, L) float32
        Normal numbers.
    places : (M,) float32

    Returns
    -------
    (M, W) float32
    """
    code = position_code(architecture, places)
    parts = [
        normalise_latents(latents[:, : architecture.latent]),
        normalise_latents(dense(code, arrays["mapping/code/weight"], arrays["mapping/code/bias"])),
    ]
    if architecture.n_anchors:
        motion = motion_code(architecture, latents, places)
        motion = dense(motion, arrays["mapping/motion/weight"], arrays["mapping/motion/bias"])
        parts.append(normalise_latents(motion))
    x = ops.concatenate(parts, axis=1)
    for i in range(architecture.n_mapping):
        weight, bias = arrays[f"mapping/{i}/weight"], arrays[f"mapping/{i}/bias"]
        x = rectify(dense(x, weight, bias, rate=MAPPING_RATE, gain=GAIN))
    return x


def synthesise(
    arrays: Arrays,
    architecture: Architecture,
    style: Any,
    seeds: Any,
    *,
    level: int | None = None,
    fade: Any = 1.0,
    grain: Any = 1.0,
    dtype: str = "float32",
) -> Any:
    """Make the logits of slices.

    Parameters
    ----------
    arrays : mapping of str to array
    architecture : Architecture
    style : (M, n_layers, W) float32
        One per layer.
    seeds : (M,) uint32
        Of the noise.
    level : int, optional
        Resolution to stop at; preset ``paper`` learns one after the other.
    fade : number
        Preset ``paper``: share of that resolution; the rest is the coarser one, enlarged.
    grain : number
        Share of the noise of the two finest resolutions.
    dtype : str
        Of the features.

    Returns
    -------
    (M, level, level, C) float32
    """
    level = level or architecture.resolution
    n = style.shape[0]
    x = ops.broadcast_to(arrays["constant"][None], (n, *arrays["constant"].shape))
    x = ops.cast(x, dtype)  # (M, 4, 4, K)
    logits: Any = None
    for i, r in enumerate(r for r in architecture.levels if r <= level):
        block = _block if architecture.preset == "default" else _adaptive_block
        noises = (seeds, grain if architecture.is_fine(r) else 1.0)
        x = block(arrays, x, r, style[:, 2 * i], style[:, 2 * i + 1], noises)
        if architecture.preset == "default":
            own = _modulated_logits(arrays, x, r, style[:, 2 * i + 1])
            logits = own if logits is None else enlarge(logits) + own
        elif r == level // 2 or r == level:
            own = _logits(arrays, x, r)
            logits = own if logits is None else enlarge(logits) * (1 - fade) + own * fade
    return logits


def _noised(arrays: Arrays, name: str, x: Any, noises: tuple[Any, Any], number: int) -> Any:
    """Add bias and noise, and rectify. The gain lies on all of it: see ``rectify``."""
    added = ops.cast(arrays[f"{name}/bias"] * GAIN, x.dtype)
    if f"{name}/noise" in arrays:
        seeds, share = noises
        drawn = noise(seeds, number, x.shape[1]) * (arrays[f"{name}/noise"] * share * GAIN)
        added = added + ops.cast(drawn, x.dtype)
    return rectify(x + added)


def _scales(arrays: Arrays, name: str, style: Any) -> Any:
    return dense(style, arrays[f"{name}/style/weight"], arrays[f"{name}/style/bias"])


def _block(arrays: Arrays, x: Any, r: int, first: Any, second: Any, noises: Any) -> Any:
    for layer, style in (("first", first), ("second", second)):
        name = f"{r}/{layer}"
        if layer == "first" and r == 4:
            continue
        x = modulate(x, arrays[f"{name}/weight"], _scales(arrays, name, style), gain=GAIN)
        x = enlarge(x) if layer == "first" else x
        x = _noised(arrays, name, x, noises, 2 * r + (layer == "second"))
    return x


def _modulated_logits(arrays: Arrays, x: Any, r: int, style: Any) -> Any:
    name = f"{r}/logits"
    scales = ops.cast(_scales(arrays, name, style), x.dtype)
    y = convolve(x * scales[:, None, None], arrays[f"{name}/weight"])
    return ops.cast(y, "float32") + arrays[f"{name}/bias"]


def _adaptive_block(arrays: Arrays, x: Any, r: int, first: Any, second: Any, noises: Any) -> Any:
    for layer, style in (("first", first), ("second", second)):
        name = f"{r}/{layer}"
        if f"{name}/weight" in arrays:
            x = convolve(x, arrays[f"{name}/weight"], gain=GAIN)
            x = enlarge(x) if layer == "first" else x
        x = _noised(arrays, name, x, noises, 2 * r + (layer == "second"))
        scale, offset = (_scales(arrays, f"{name}/{part}", style) for part in ("scale", "offset"))
        x = normalise_instances(x, scale, offset)
    return x


def _logits(arrays: Arrays, x: Any, r: int) -> Any:
    y = convolve(x, arrays[f"{r}/logits/weight"])
    return ops.cast(y, "float32") + arrays[f"{r}/logits/bias"]


def classify(logits: Any, head: str) -> Any:
    """Turn logits into what the discriminator sees.

    Straight-through: the likeliest class, 1, and all others 0; gradients are those of the
    probabilities (Bengio et al. 2013). So nothing but shapes tells a generated slice from a real
    one.

    Parameters
    ----------
    logits : (..., C)
    head : {"straight-through", "softmax"}

    Returns
    -------
    (..., C) float32
    """
    probabilities = ops.softmax(logits, axis=-1)
    if head == "softmax":
        return probabilities
    hard = ops.one_hot(ops.argmax(logits, axis=-1), logits.shape[-1], dtype="float32")
    return probabilities + ops.stop_gradient(hard - probabilities)


# ---------------------------------------------------------------------------------------------
# The discriminator


def discriminate(
    arrays: Arrays,
    architecture: Architecture,
    slices: Any,
    places: Any,
    *,
    level: int | None = None,
    fade: Any = 1.0,
    dtype: str = "float32",
) -> Any:
    """Score samples: how real do they look, for where they are said to lie?

    Parameters
    ----------
    arrays : mapping of str to array
        Of the discriminator.
    architecture : Architecture
    slices : (N, level, level, S · C) float32
        From 0 to 1.
    places : (N, S) float32
    level, fade, dtype
        As in :func:`synthesise`.

    Returns
    -------
    (N,) float32
    """
    level = level or architecture.resolution
    shown = ops.cast(2 * slices - 1, dtype)
    x = _shown(arrays, shown, level)
    residual = architecture.preset == "default"
    for r in (r for r in reversed(architecture.levels) if 4 < r <= level):
        y = _rectified(arrays, f"{r}/first", x)
        # After a sum of two, the square root of ½ keeps the variance.
        gain = math.sqrt(0.5) if residual else 1.0
        y = _rectified(arrays, f"{r}/second", reduce(y), gain)
        if residual:
            y = y + convolve(reduce(x), arrays[f"{r}/skip/weight"], gain=gain)
        elif r == level:
            coarse = _shown(arrays, reduce(shown), r // 2)
            y = y * ops.cast(fade, dtype) + coarse * ops.cast(1 - fade, dtype)
        x = y
    x = ops.cast(_rectified(arrays, "4/first", spread(x)), "float32")  # (N, 4, 4, K)
    x = ops.reshape(x, (x.shape[0], -1))
    x = rectify(dense(x, arrays["4/second/weight"], arrays["4/second/bias"], gain=GAIN))
    score = dense(x, arrays["score/weight"], arrays["score/bias"])[:, 0]
    # Projection (Miyato and Koyama 2018): do the features point where the place's code does?
    code = sample_code(architecture, places)
    if architecture.preset == "paper":
        direction = dense(code, arrays["code/0/weight"], gain=math.sqrt(architecture.n_pairs))
    else:
        code = rectify(dense(code, arrays["code/0/weight"], arrays["code/0/bias"], gain=GAIN))
        direction = dense(code, arrays["code/1/weight"], arrays["code/1/bias"])
    return score + ops.sum(x * direction, axis=1) / math.sqrt(x.shape[1])


def _shown(arrays: Arrays, shown: Any, r: int) -> Any:
    return _rectified(arrays, f"{r}/input", shown)


def _rectified(arrays: Arrays, name: str, x: Any, gain: float = 1.0) -> Any:
    """Convolve, add the bias and rectify; the gain lies on both."""
    gain *= GAIN
    y = convolve(x, arrays[f"{name}/weight"], gain=gain)
    return rectify(y + ops.cast(arrays[f"{name}/bias"] * gain, y.dtype))
