"""Which two networks are meant, and which arrays do they consist of?

1. An :class:`Architecture` says in a few integers and words which generator and discriminator are
   meant. It is all that a file has to tell, and it needs no network framework.
2. :func:`parameters` lists their arrays: name, shape, and what they start from.
3. :func:`initialise` draws them from a seed, in NumPy: the same on every backend.
4. :class:`Packing` says where each array lies in one long vector. Optimisers, averages, checkpoints
   and devices then handle one array per network.

Weights start as normal numbers of variance 1 and are scaled by 1/√(fan-in) whenever they are used
(equalised learning rate; Karras et al. 2018), so that one learning rate fits all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

Preset = Literal["default", "paper"]
Continuity = Literal["order", "volume"]
Head = Literal["straight-through", "softmax"]
Network = Literal["generator", "discriminator"]

RESOLUTIONS = tuple(2**k for k in range(4, 11))

# The mapping network learns this much slower (Karras et al. 2019): its weights are as much larger.
MAPPING_RATE = 0.01

# A volume: what changes from slice to slice is interpolated between anchors this many slices apart.
ANCHOR_SPACINGS = (32, 8)
# Numbers per anchor.
MOTION = 16
# Slices per sample that the discriminator of a volume compares.
SLICES_PER_SAMPLE = {"order": 1, "volume": 3}
# Distances between slices are told relative to each of these: d / (d + s).
DISTANCE_SCALES = (1, 2, 4, 8, 16, 32)
# The position code changes over no less than so many slices: finer, it would name single slices.
SHORTEST_WAVE = 16
MOST_FREQUENCIES = 6


@dataclass(frozen=True)
class Architecture:
    """A generator and a discriminator, in a few integers and words.

    Parameters
    ----------
    resolution : int
        Voxels of a slice along y and x: a power of two, 16 to 1024.
    n_channels : int
        Classes with background.
    n_slices : int
        Slices from place 0 to place 1.
    preset : {"default", "paper"}
        Layers of StyleGAN2 with a continuous position code, or of StyleGAN with pairs of slices.
    continuity : {"order", "volume"}
        Independent slices, or slices of one volume that go over into each other.
    head : {"straight-through", "softmax"}
        Whether the discriminator sees one class per voxel or their probabilities.
    width, max_width : int
        Channels at the finest resolution; they double with every coarser one up to ``max_width``.
    latent : int
        Numbers of the content code, and of a style.
    n_mapping : int
        Layers of the mapping network.
    fine_noise : bool
        Whether the two finest resolutions add noise to their features, as all coarser ones do.

    Raises
    ------
    ValueError
        When a value is not possible.

    Examples
    --------
    >>> Architecture(64, 4, 100).channels
    {4: 64, 8: 64, 16: 64, 32: 32, 64: 16}
    """

    resolution: int
    n_channels: int
    n_slices: int
    preset: Preset = "default"
    continuity: Continuity = "order"
    head: Head = "straight-through"
    width: int = 16
    max_width: int = 64
    latent: int = 128
    n_mapping: int = 4
    fine_noise: bool = True

    def __post_init__(self) -> None:
        if self.resolution not in RESOLUTIONS:
            raise ValueError(
                f"resolution is a power of two from {RESOLUTIONS[0]} to {RESOLUTIONS[-1]}. "
                f"Received: {self.resolution!r}"
            )
        for name, least, most in (
            ("n_channels", 1, 256),
            ("n_slices", 1, 10**6),
            ("width", 1, 1024),
            ("max_width", 1, 1024),
            ("latent", 1, 4096),
            ("n_mapping", 1, 16),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"{name} is a whole number from {least} to {most}. Received: {value!r}"
                )
        if type(self.fine_noise) is not bool:
            raise ValueError(f"fine_noise is true or false. Received: {self.fine_noise!r}")
        if self.max_width < self.width:
            raise ValueError(
                f"max_width is at least width, {self.width}. Received: {self.max_width}"
            )
        for name, kind in (("preset", Preset), ("continuity", Continuity), ("head", Head)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is one of {', '.join(get_args(kind))}. Received: "
                    f"{getattr(self, name)!r}"
                )
        if self.preset == "paper" and self.continuity == "volume":
            raise ValueError(
                "preset paper makes independent slices (continuity order), labelled by pairs. "
                "Received: continuity volume. Choose the default preset for it"
            )

    def is_fine(self, level: int) -> bool:
        """Tell whether what noise adds at a resolution shows as single voxels, not as shapes.

        >>> [Architecture(64, 4, 100).is_fine(level) for level in (8, 16, 32, 64)]
        [False, False, True, True]
        """
        return 2 * level >= self.resolution

    @property
    def levels(self) -> tuple[int, ...]:
        """Resolutions from the coarsest, 4, to the finest."""
        return tuple(2**k for k in range(2, self.resolution.bit_length()))

    @property
    def channels(self) -> dict[int, int]:
        """Channels of the features by resolution."""
        return {r: min(self.max_width, self.width * self.resolution // r) for r in self.levels}

    @property
    def n_layers(self) -> int:
        """Styles of an image: two for every resolution."""
        return 2 * len(self.levels)

    @property
    def slices_per_sample(self) -> int:
        """Slices that the discriminator sees at once."""
        return SLICES_PER_SAMPLE[self.continuity]

    @property
    def n_pairs(self) -> int:
        """Labels of preset ``paper``: two neighbouring slices share one."""
        return -(-self.n_slices // 2)

    @property
    def n_frequencies(self) -> int:
        """Waves of the position code."""
        waves = math.floor(math.log2(max(2, 2 * self.n_slices / SHORTEST_WAVE))) + 1
        return min(waves, MOST_FREQUENCIES)

    @property
    def n_code(self) -> int:
        """Numbers of the position code."""
        return self.n_pairs if self.preset == "paper" else 2 * self.n_frequencies

    @property
    def n_anchors(self) -> tuple[int, ...]:
        """Anchors along z for every spacing; none for independent slices."""
        if self.continuity == "order":
            return ()
        return tuple((self.n_slices - 1) // spacing + 2 for spacing in ANCHOR_SPACINGS)

    @property
    def n_latent(self) -> int:
        """Numbers of a latent: the content code, and what the anchors hold."""
        return self.latent + MOTION * sum(self.n_anchors)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Return the architecture that :meth:`as_dict` wrote.

        Raises
        ------
        ValueError
            When a field is missing, unknown or not possible.
        """
        known = {one.name for one in fields(cls)}
        if set(values) != known:
            raise ValueError(
                f"an architecture has the fields {sorted(known)}. Received: "
                f"{sorted(map(str, values))}"
            )
        return cls(**values)


@dataclass(frozen=True)
class Parameter:
    """An array of a network before it has learned anything.

    Parameters
    ----------
    shape : tuple of int
    start : float
        Its value, or, for what is ``drawn``, the standard deviation.
    drawn : bool
        Whether it starts as normal numbers.
    """

    shape: tuple[int, ...]
    start: float = 0.0
    drawn: bool = False

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def parameters(architecture: Architecture, network: Network) -> dict[str, Parameter]:
    """List the arrays of a network, in the order in which they are packed."""
    return _generator(architecture) if network == "generator" else _discriminator(architecture)


def _drawn(*shape: int, deviation: float = 1.0) -> Parameter:
    return Parameter(shape, deviation, True)


def _dense(name: str, n_in: int, n_out: int, rate: float = 1.0) -> dict[str, Parameter]:
    return {
        f"{name}/weight": _drawn(n_in, n_out, deviation=1 / rate),
        f"{name}/bias": Parameter((n_out,)),
    }


def _convolution(name: str, extent: int, n_in: int, n_out: int) -> dict[str, Parameter]:
    return {
        f"{name}/weight": _drawn(extent, extent, n_in, n_out),
        f"{name}/bias": Parameter((n_out,)),
    }


def _style(name: str, n_style: int, n_out: int, bias: float = 1.0) -> dict[str, Parameter]:
    """List what turns a style into scales that start at 1."""
    return {
        f"{name}/style/weight": _drawn(n_style, n_out),
        f"{name}/style/bias": Parameter((n_out,), bias),
    }


def _generator(architecture: Architecture) -> dict[str, Parameter]:
    style, channels = architecture.latent, architecture.channels
    found = _dense("mapping/code", architecture.n_code, style)
    n_in = 2 * style
    if architecture.n_anchors:
        found |= _dense("mapping/motion", MOTION * len(architecture.n_anchors), style)
        n_in += style
    for i in range(architecture.n_mapping):
        found |= _dense(f"mapping/{i}", n_in if i == 0 else style, style, MAPPING_RATE)
    found["constant"] = _drawn(4, 4, channels[4])
    for r in architecture.levels:
        n_in = channels[max(4, r // 2)]
        for layer in ("first", "second") if r > 4 else ("second",):
            name, n_out = f"{r}/{layer}", channels[r]
            found |= _convolution(name, 3, n_in if layer == "first" else n_out, n_out)
            if architecture.fine_noise or not architecture.is_fine(r):
                found[f"{name}/noise"] = Parameter((1,))
            if architecture.preset == "default":
                found |= _style(name, style, n_in if layer == "first" else n_out)
        if architecture.preset == "paper":
            if r == 4:
                found["4/first/bias"] = Parameter((channels[4],))
                found["4/first/noise"] = Parameter((1,))
            # AdaIN: a scale, which starts at 1, and an offset.
            for layer in ("first", "second"):
                found |= _style(f"{r}/{layer}/scale", style, channels[r])
                found |= _style(f"{r}/{layer}/offset", style, channels[r], 0.0)
        else:
            found |= _style(f"{r}/logits", style, channels[r])
        found |= _convolution(f"{r}/logits", 1, channels[r], architecture.n_channels)
    return found


def _discriminator(architecture: Architecture) -> dict[str, Parameter]:
    channels, finest = architecture.channels, architecture.resolution
    n_seen = architecture.slices_per_sample * architecture.n_channels
    found: dict[str, Parameter] = {}
    for r in reversed(architecture.levels):
        if r == finest or architecture.preset == "paper":
            found |= _convolution(f"{r}/input", 1, n_seen, channels[r])
        if r > 4:
            found |= _convolution(f"{r}/first", 3, channels[r], channels[r])
            found |= _convolution(f"{r}/second", 3, channels[r], channels[r // 2])
            if architecture.preset == "default":
                found[f"{r}/skip/weight"] = _drawn(1, 1, channels[r], channels[r // 2])
    found |= _convolution("4/first", 3, channels[4] + 1, channels[4])
    found |= _dense("4/second", 16 * channels[4], channels[4])
    found |= _dense("score", channels[4], 1)
    n_code = architecture.n_code
    n_code += len(DISTANCE_SCALES) * (architecture.slices_per_sample - 1)
    if architecture.preset == "paper":
        return found | {"code/0/weight": _drawn(n_code, channels[4])}
    return (
        found | _dense("code/0", n_code, channels[4]) | _dense("code/1", channels[4], channels[4])
    )


def initialise(architecture: Architecture, network: Network, seed: int) -> dict[str, np.ndarray]:
    """Draw the arrays of a network that has learned nothing.

    Returns
    -------
    dict of str to float32 array
    """
    generator = np.random.default_rng((seed, ("generator", "discriminator").index(network)))
    return {
        name: generator.normal(0, one.start, one.shape).astype(np.float32)
        if one.drawn
        else np.full(one.shape, one.start, np.float32)
        for name, one in parameters(architecture, network).items()
    }


def flops_per_slice(architecture: Architecture, network: Network) -> int:
    """Count the floating-point operations of the products of one forward pass.

    A product and a sum are two. What is added, blurred or rectified is not counted.

    Returns
    -------
    int
        Per slice of the generator, per sample of the discriminator.
    """
    total = 0
    for name, one in parameters(architecture, network).items():
        if not name.endswith("/weight") or len(one.shape) not in (2, 4):
            continue
        pixels = 1
        if len(one.shape) == 4:
            r = int(name.split("/")[0])
            # Where the resolution changes, the convolution runs at the coarser one.
            changes = {"generator": "first", "discriminator": "second"}[network]
            coarser = r > 4 and name.split("/")[1] in (changes, "skip")
            in_passing = architecture.preset == "paper" and r != architecture.resolution
            if in_passing and name.split("/")[1] in ("logits", "input"):
                continue  # used while the resolution is learned, not afterwards
            pixels = (r // 2 if coarser else r) ** 2
        total += 2 * one.size * pixels
    return total


@dataclass(frozen=True)
class Packing:
    """Where each array lies in one vector.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        In the order in which they lie.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, architecture: Architecture, network: Network) -> Packing:
        """Return the packing of a network."""
        listed = parameters(architecture, network)
        return cls({name: one.shape for name, one in listed.items()})

    @property
    def size(self) -> int:
        """Numbers in the vector."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def ends(self) -> list[int]:
        """Where each array ends."""
        return np.cumsum([math.prod(shape) for shape in self.shapes.values()]).tolist()

    def pack(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the vector of some arrays."""
        return np.concatenate([np.ravel(arrays[name]) for name in self.shapes])

    def unpack(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays in a vector.

        >>> packing = Packing({"a": (2,), "b": (1, 2)})
        >>> packing.unpack(np.arange(4))["b"].tolist()
        [[2, 3]]
        """
        parts = np.split(vector, self.ends[:-1])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
