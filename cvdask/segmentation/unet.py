"""Which network is it, how far does it see, and what does it cost?

1. An :class:`Architecture` says in a few integers which network is meant.
2. The network itself is drawn once, by :func:`draw`, in five strokes: convolve, pool, enlarge,
   join and add.
3. :func:`build` reads the drawing as Keras layers. :func:`halo`, :func:`flops_per_pixel` and
   :func:`n_parameters` read the same drawing as integers, without Keras.
4. :func:`fold` turns a trained network into the one that predicts: the same function, with the
   batch normalisation inside the convolutions.
5. :func:`impulse_reach` measures on a network what :func:`halo` computes.

Both presets go down and up again, ``depth`` times; level ℓ has 1/2^ℓ of the pixels per axis::

    level 0   image ─ down ──────────────── skip ───────────────▶ up ─ logits ─ softmax
    level 1             └ pool ─ down ───── skip ─────▶ up ─ enlarge ┘
    level 2                        └ pool ─ bottom ─ enlarge ┘

``paper``
    Two 3×3 convolutions with biases on every level down and up, widths ``base_width``·2^ℓ; skips
    are joined to the enlarged features. At the bottom, ``n_dense`` pairs of convolutions: the first
    takes what was pooled, every later one the join of what all pairs before it gave (Azad et al.
    2019, BCDU-Net). Every convolution is followed by trainable linear units.
``fast``
    For few patches, and for machines without a GPU. Residual pairs of normalised 3×3 convolutions
    (He et al. 2016) on every level but the finest, where a pixel costs most: there, one convolution
    down and one up. Features are narrowed by a 1×1 convolution before they are enlarged, and skips
    are added, not joined, which halves the widest convolutions.

When does a network give a pixel the same value from a block as from the whole slice? Outside the
array that it is given, every convolution sees zeros: not only beside the image but beside the
features of every level. So an array that is cut off gives other values near the cut, up to
:func:`halo` pixels inward; and an array whose ends differ from the slice's is cut off. Hence:

1. Read boxes start at multiples of :func:`stride`, so that pooling takes the same fours.
2. They reach at least :func:`halo` pixels beyond what is written, or to the end of the slice.
3. At the upper end of the slice both are filled up, with zeros *after* normalisation, to the next
   multiple of the stride, and no further. More zeros there are another input: beyond its end the
   slice has features 0, and zeros that were convolved have features of their own.

Nothing normalises over space or over the batch at inference: a pixel's value depends on the pixels
within the halo and on the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import keras

# preset: its widths, depth and pairs at the bottom
PRESETS = {
    "paper": {"base_width": 64, "depth": 4, "n_dense": 3},  # 2.07 MFLOP per pixel
    "fast": {"base_width": 24, "depth": 4, "n_dense": 0},  # 0.14 MFLOP per pixel
}

# Smallest and largest value of each size. Labels are uint8 and 255 means not annotated.
LIMITS = {
    "n_classes": (2, 255),
    "base_width": (1, 1024),
    "depth": (1, 7),
    "n_dense": (1, 8),
    "in_channels": (1, 64),
}

# Added to the variance of a channel before its square root is taken.
EPSILON = 1e-3


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the same network again.

    Parameters
    ----------
    n_classes : int
        Channels of the output, background included; 2 to 255.
    preset : {"fast", "paper"}
        Which drawing; see the module.
    base_width : int, optional
        Channels at full resolution, 1 to 1024; every level below has twice as many. None is the
        preset's: 24 or 64. So are the next two.
    depth : int, optional
        How often the resolution is halved, 1 to 7; 4 in both presets.
    n_dense : int, optional
        Densely connected pairs of convolutions at the bottom, 1 to 8; 3 in ``paper``. ``fast`` has
        none: 0.
    in_channels : int
        Channels of the image, 1 to 64.

    Raises
    ------
    ValueError
        When the preset is not known, or a size is not an integer within its limits.

    Examples
    --------
    >>> Architecture(n_classes=2)
    Architecture(n_classes=2, preset='fast', base_width=24, depth=4, n_dense=0, in_channels=1)
    >>> Architecture(n_classes=2, preset="paper").widths
    (64, 128, 256, 512, 1024)
    """

    n_classes: int
    preset: str = "fast"
    base_width: int | None = None
    depth: int | None = None
    n_dense: int | None = None
    in_channels: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.preset, str) or self.preset not in PRESETS:
            raise ValueError(
                f"the preset is one of {', '.join(sorted(PRESETS))}. Received: {self.preset!r}"
            )
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.preset == "fast" and self.n_dense != 0:
            raise ValueError(
                f"densely connected convolutions belong to the preset paper; fast has none. "
                f"Received: n_dense={self.n_dense!r}. Leave it out, or choose preset paper"
            )
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if name == "n_dense" and self.preset == "fast":
                continue
            if type(value) is not int or not least <= value <= most:  # True is no width
                raise ValueError(
                    f"{name} is an integer from {least} to {most}. Received: {value!r}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level, finest first."""
        assert self.base_width is not None
        assert self.depth is not None
        return tuple(self.base_width * 2**level for level in range(self.depth + 1))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, the preset's filled in.

        A network that was saved stays itself when a preset changes.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Return the architecture that :meth:`as_dict` wrote.

        Raises
        ------
        ValueError
            When a field is missing, unknown or out of its limits.
        """
        expected = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != expected:
            received = sorted(map(str, values)) if isinstance(values, Mapping) else repr(values)
            raise ValueError(
                f"an architecture has the fields {sorted(expected)}. Received: {received}"
            )
        return cls(**values)


def stride(architecture: Architecture) -> int:
    """Return what the height and width of an input must be multiples of, in pixels.

    >>> stride(Architecture(n_classes=2, depth=3))
    8
    """
    assert architecture.depth is not None
    return 2**architecture.depth


def halo(architecture: Architecture) -> int:
    """Return how far away from a pixel the pixels lie that its output depends on, at most.

    Along y and x alike, on either side. It is the exact maximum over the positions of the pixel
    within the stride, not a bound: see :func:`impulse_reach`.

    >>> halo(Architecture(n_classes=2)), halo(Architecture(n_classes=2, preset="paper"))
    (105, 171)
    """
    output = draw(architecture, _Count(), _Seen.image(architecture))
    position = np.arange(len(output.first))
    return int(max((position - output.first).max(), (output.last - position).max()))


def flops_per_pixel(architecture: Architecture) -> float:
    """Return the operations of all convolutions per pixel of the input, 2 per multiply and add.

    >>> paper = flops_per_pixel(Architecture(n_classes=2, preset="paper"))
    >>> round(paper), round(paper / flops_per_pixel(Architecture(n_classes=2)), 1)
    (2065792, 14.8)
    """
    count = _Count()
    draw(architecture, count, _Seen.image(architecture))
    return count.flops


def n_parameters(architecture: Architecture) -> int:
    """Return how many numbers the weights hold, running means and variances included.

    >>> n_parameters(Architecture(n_classes=2))
    3729002
    """
    count = _Count()
    draw(architecture, count, _Seen.image(architecture))
    return count.parameters


def build(
    architecture: Architecture, *, precision: str = "float32", folded: bool = False
) -> keras.Model:
    """Build the network, with fresh weights.

    Parameters
    ----------
    architecture : Architecture
    precision : str
        A Keras dtype policy, such as ``mixed_bfloat16``. Weights and softmax stay float32. The
        policy that is set globally is not looked at.
    folded : bool
        Leave the batch normalisation out and give its convolutions biases: see :func:`fold`.

    Returns
    -------
    keras.Model
        From (B, Y, X, in_channels) float32, normalised, to (B, Y, X, n_classes) float32,
        probabilities that sum to 1. Y and X are any multiples of :func:`stride`. Not compiled.
    """
    import keras

    image = keras.Input((None, None, architecture.in_channels), dtype="float32", name="image")
    logits = draw(architecture, _Layers(precision, folded), image)  # (B, Y, X, n_classes)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    return keras.Model(image, probabilities, name="unet")


def fold(architecture: Architecture, model: keras.Model, *, precision: str = "float32") -> Any:
    """Return the network that predicts: the same function with fewer passes over memory.

    A normalised convolution, (w∗x − mean)·γ/√(variance + ε) + β, is a convolution with the kernel
    w·γ/√(variance + ε) and the bias β − mean·γ/√(variance + ε). Zeros beside the array stay exact,
    since the normalisation comes after the convolution. Measured on 2 cores: 1.1 × the pixels
    per second.

    Parameters
    ----------
    architecture : Architecture
        The model's.
    model : keras.Model
        From :func:`build`; it stays as it is.
    precision : str
        As in :func:`build`.

    Returns
    -------
    keras.Model
        With ``training=False`` the same outputs as ``model``, to rounding.
    """
    folded = build(architecture, precision=precision, folded=True)
    norms = {layer.name: layer for layer in model.layers}
    for layer in folded.layers:
        weights = norms[layer.name].get_weights()
        norm = norms.get(f"{layer.name}_norm")
        if norm is not None:
            gamma, beta, mean, variance = (w.astype(np.float64) for w in norm.get_weights())
            scale = gamma / np.sqrt(variance + EPSILON)
            weights = [weights[0] * scale, beta - mean * scale]
        layer.set_weights(weights)
    return folded


def impulse_reach(model: keras.Model, step: int) -> int:
    """Measure how far away from a pixel the pixels lie that its output depends on.

    One pixel of an empty image is lit, at each of ``step`` positions, and the farthest pixel that
    is not empty afterwards is looked for. The network is copied, with positive kernels and without
    biases: nothing then cancels, what is empty stays exactly 0, and what a trained network happens
    to weaken below rounding still counts. ``model`` stays as it is.

    Parameters
    ----------
    model : keras.Model
        From :func:`build`, in float32.
    step : int
        Its :func:`stride`.

    Returns
    -------
    int
        Pixels, the larger of y and x.
    """
    import keras

    positive = keras.models.clone_model(model)  # with initial weights: no bias, nothing normalised
    random = np.random.default_rng(0)
    for layer in positive.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, *biases = layer.get_weights()
            gain = random.uniform(0.5, 1.5, kernel.shape) / np.prod(kernel.shape[:-1])
            layer.set_weights([gain, *biases])
    # Softmax would round a faint light away.
    logits = keras.Model(positive.input, positive.get_layer("logits").output)
    return max(_reach_along(logits, axis, step) for axis in (1, 2))


def _reach_along(model: keras.Model, axis: int, step: int) -> int:
    """Light one pixel at each position within the stride; the images grow until it stays inside."""
    import keras

    extent = 8 * step
    while True:
        centres = extent // 2 + np.arange(step)
        lines = np.zeros((step, extent, step, model.input_shape[-1]), np.float32)
        lines[np.arange(step), centres] = 1
        images = lines if axis == 1 else lines.swapaxes(1, 2)
        output = keras.ops.convert_to_numpy(model(images, training=False))  # (step, Y, X, C)
        lit = (output != 0).any(axis=(3 - axis, 3))  # (step, extent)
        if not lit[:, [0, -1]].any():
            distance = np.abs(np.arange(extent) - centres[:, None])
            return int(distance[lit].max())
        extent *= 2


# ---------------------------------------------------------------------------------------------
# The drawing


class _Strokes(Protocol):
    """What a network is drawn with. A feature is (B, Y, X, C), whatever stands for it."""

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
        """Convolve with zeros beside the array; then normalise, then apply "tlu" or "relu"."""

    def pool(self, x: Any, name: str) -> Any:
        """Take the maximum of 2×2."""

    def enlarge(self, x: Any, name: str) -> Any:
        """Repeat every pixel 2×2."""

    def join(self, xs: Sequence[Any], name: str) -> Any:
        """Put channels behind one another."""

    def add(self, xs: Sequence[Any], name: str, unit: str | None = None) -> Any:
        """Add features of one width; then apply the unit."""


def draw(architecture: Architecture, strokes: _Strokes, image: Any) -> Any:
    """Draw the network from an image, (B, Y, X, in_channels), to logits, (B, Y, X, n_classes)."""
    preset = {"paper": _draw_paper, "fast": _draw_fast}[architecture.preset]
    x = preset(architecture, strokes, image)  # (B, Y, X, base_width)
    return strokes.convolve(x, architecture.n_classes, "logits", size=1)


def _draw_paper(architecture: Architecture, strokes: _Strokes, x: Any) -> Any:
    """Draw the published network: pairs of convolutions, dense at the bottom, joined skips."""

    def pair(x: Any, width: int, name: str) -> Any:
        x = strokes.convolve(x, width, f"{name}a", unit="tlu")
        return strokes.convolve(x, width, f"{name}b", unit="tlu")

    *widths, bottom = architecture.widths
    skips = []
    for level, width in enumerate(widths):
        skips.append(pair(x, width, f"down{level}"))  # (B, Y/2^level, X/2^level, width)
        x = strokes.pool(skips[-1], f"pool{level + 1}")

    assert architecture.n_dense is not None
    given: list[Any] = []
    for i in range(architecture.n_dense):
        if len(given) > 1:
            x = strokes.join(given, f"dense{i}_join")  # (B, …, …, i·bottom)
        x = pair(x, bottom, f"dense{i}")
        given.append(x)

    for level, width in reversed(list(enumerate(widths))):
        x = strokes.enlarge(x, f"enlarge{level}")  # (B, Y/2^level, X/2^level, 2·width)
        x = strokes.join([x, skips[level]], f"up{level}_join")  # (…, 3·width)
        x = pair(x, width, f"up{level}")
    return x


def _draw_fast(architecture: Architecture, strokes: _Strokes, x: Any) -> Any:
    """Draw the small network: residual pairs, added skips, little work at full resolution."""

    def residual(x: Any, width: int, name: str, *, widen: bool) -> Any:
        y = strokes.convolve(x, width, f"{name}a", norm=True, unit="relu")
        y = strokes.convolve(y, width, f"{name}b", norm=True)
        if widen:
            x = strokes.convolve(x, width, f"{name}_widen", size=1, norm=True)
        return strokes.add([x, y], f"{name}_add", unit="relu")

    widths = architecture.widths
    skips = [strokes.convolve(x, widths[0], "down0", norm=True, unit="relu")]
    for level, width in list(enumerate(widths))[1:]:
        x = strokes.pool(skips[-1], f"pool{level}")
        skips.append(residual(x, width, f"down{level}", widen=True))  # (B, Y/2^level, …, width)

    x = skips.pop()
    for level, skip in reversed(list(enumerate(skips))):
        x = strokes.convolve(x, widths[level], f"up{level}_narrow", size=1, norm=True)
        x = strokes.enlarge(x, f"enlarge{level}")  # (B, Y/2^level, X/2^level, width)
        x = strokes.add([x, skip], f"up{level}_skip")
        if level:
            x = residual(x, widths[level], f"up{level}", widen=False)
    return strokes.convolve(x, widths[0], "up0", norm=True, unit="relu")


# ---------------------------------------------------------------------------------------------
# Its readings


class _Layers:
    """Read the drawing as Keras layers, each with a name that a model file can rely on."""

    def __init__(self, precision: str, folded: bool) -> None:
        import keras

        from cvdask.segmentation.layers import BatchNormalization, TrainableLinearUnit

        self.layers = keras.layers
        self.normalisation = BatchNormalization
        self.units = {"tlu": TrainableLinearUnit, "relu": keras.layers.ReLU}
        self.dtype = precision
        self.folded = folded
        # Said in every layer: somebody's Keras configuration may say channels first.
        self.last = {"data_format": "channels_last", "dtype": self.dtype}

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
        norm = norm and not self.folded
        x = self.layers.Conv2D(
            width,
            size,
            padding="same",
            use_bias=not norm,
            kernel_initializer="he_normal",
            name=name,
            **self.last,
        )(x)
        if norm:
            # A short training has few steps: with Keras' 0.99 the running mean would lag behind.
            x = self.normalisation(
                momentum=0.95, epsilon=EPSILON, dtype=self.dtype, name=f"{name}_norm"
            )(x)
        return self._unit(x, name, unit)

    def pool(self, x: Any, name: str) -> Any:
        return self.layers.MaxPooling2D(2, name=name, **self.last)(x)

    def enlarge(self, x: Any, name: str) -> Any:
        return self.layers.UpSampling2D(2, name=name, **self.last)(x)

    def join(self, xs: Sequence[Any], name: str) -> Any:
        return self.layers.Concatenate(dtype=self.dtype, name=name)(xs)

    def add(self, xs: Sequence[Any], name: str, unit: str | None = None) -> Any:
        return self._unit(self.layers.Add(dtype=self.dtype, name=name)(xs), name, unit)

    def _unit(self, x: Any, name: str, unit: str | None) -> Any:
        return x if unit is None else self.units[unit](dtype=self.dtype, name=f"{name}_{unit}")(x)


@dataclass(frozen=True)
class _Seen:
    """What the pixels of a feature depend on, along one axis; both axes are alike.

    ``first`` and ``last`` are pixels of the image, for each position within one stride of it; the
    pattern repeats from stride to stride.
    """

    channels: int
    level: int
    first: np.ndarray
    last: np.ndarray

    @classmethod
    def image(cls, architecture: Architecture) -> _Seen:
        """Every pixel of the image depends on itself."""
        position = np.arange(stride(architecture))
        return cls(architecture.in_channels, 0, position, position)


class _Count:
    """Read the drawing as numbers: operations per pixel, parameters, and what is seen."""

    def __init__(self) -> None:
        self.flops = 0.0
        self.parameters = 0

    def convolve(
        self,
        x: _Seen,
        width: int,
        name: str,
        *,
        size: int = 3,
        norm: bool = False,
        unit: str | None = None,
    ) -> _Seen:
        kernel = size * size * x.channels * width
        self.flops += 2 * kernel / 4**x.level
        self.parameters += kernel + (4 * width if norm else width)  # γ, β, mean, variance or bias
        self.parameters += 2 * width if unit == "tlu" else 0  # α, β
        first, last = x.first, x.last
        step = len(first) * 2**x.level  # the stride, in pixels of the image
        for _ in range(size // 2):
            # The neighbour of the first position is the last one of the stride before.
            first = np.concatenate([first[-1:] - step, first[:-1]])
            last = np.concatenate([last[1:], last[:1] + step])
        return _Seen(width, x.level, first, last)

    def pool(self, x: _Seen, name: str) -> _Seen:
        return _Seen(x.channels, x.level + 1, x.first[::2], x.last[1::2])

    def enlarge(self, x: _Seen, name: str) -> _Seen:
        return _Seen(x.channels, x.level - 1, x.first.repeat(2), x.last.repeat(2))

    def join(self, xs: Sequence[_Seen], name: str) -> _Seen:
        return self._union(xs, sum(x.channels for x in xs))

    def add(self, xs: Sequence[_Seen], name: str, unit: str | None = None) -> _Seen:
        return self._union(xs, xs[0].channels)

    @staticmethod
    def _union(xs: Sequence[_Seen], channels: int) -> _Seen:
        first = np.min([x.first for x in xs], axis=0)
        last = np.max([x.last for x in xs], axis=0)
        return _Seen(channels, xs[0].level, first, last)
