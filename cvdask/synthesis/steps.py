"""What is one step of the training? A pure function of where the training stands.

1. A *state* is a flat dict of arrays: each network as one vector, the optimisers' moments, the
   average of the generator, and a few numbers.
2. Everything random is drawn on the host from (seed, step, phase), by :func:`draw`; the noise of
   each voxel follows on the device from 32 bits of it. The same step is the same on TensorFlow and
   on JAX, and after a kill.
3. A phase is one loss: see ``losses``. :meth:`Steps.gradients` differentiates it for some samples,
   :meth:`Steps.apply` changes the state. Where a batch is divided, over devices or because memory
   is short, gradients are averaged in between; where it is not, :meth:`Steps.step` is both as one
   compiled function.

::

    phase            every          changes
    discriminator    step           discriminator, what the augmentation knows
    r1               16 steps       discriminator
    generator        step           generator, its average, the mean style
    path             4 steps        generator, the mean path length

Adam has β1 = 0 here, hence no first moment. A regularisation that is applied every k steps only is
k times as strong, and the optimiser, which then takes k + 1 steps instead of k, gets a smaller
learning rate, by the factor c = k / (k + 1), and a longer memory, β2 to the power of c (Karras et
al. 2020, appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from keras import ops

from cvdask.synthesis import mask_augment
from cvdask.synthesis.architecture import Architecture, Packing, initialise
from cvdask.synthesis.autodiff import compiled, value_and_gradients
from cvdask.synthesis.layers import noise
from cvdask.synthesis.losses import (
    Loss,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    path_lengths,
    share_difference,
)
from cvdask.synthesis.stylegan import classify, discriminate, styles, synthesise

Phase = Literal["discriminator", "r1", "generator", "path"]
State = Mapping[str, Any]

BETA = 0.99
EPSILON = 1e-8
# The mean style, which truncation draws towards, moves this much per step.
STYLE_PACE = 0.002
PATH_DECAY = 0.01
PATH_WEIGHT = 2.0
# The original's γ is for images from −1 to 1; ours go from 0 to 1, with twice the slope.
SLOPE_OF_INPUT = 2.0
# Batches between two moves of the probability of augmentation.
ADAPT_EVERY = 4


@dataclass(frozen=True)
class Recipe:
    """The constants of a training.

    Parameters
    ----------
    loss : Loss
    learning_rate : float
        Of Adam, before the correction for lazy steps.
    gamma : float
        Weight of R1 (and R2).
    penalty_every, path_every : int
        Steps between two; 0 has none. ``penalty_every`` 1 is part of the discriminator's own step.
    mixing : float
        Share of images whose finer layers take the style of another latent.
    augment : bool
        Whether slices are altered, adaptively.
    augment_target, augment_pace
        See :func:`cvdask.synthesis.mask_augment.adapt`.
    noise : bool
        Whether the noise of the finest resolutions stays; otherwise it fades out: :meth:`grain`.
    smoothing : float
        Share of a real voxel's class that all classes are given alike, with head ``softmax``.
    share_weight : float
        Of the difference between the classes' shares, in the generator's loss; 0 for none. It grows
        as the learning rate falls: what slices look like is learned first.
    last_rate : float
        Learning rate at the end, as a share of that before: see :meth:`rate`.
    dtype : str
        Of features.
    """

    loss: Loss = "non_saturating"
    learning_rate: float = 0.0025
    gamma: float = 0.1
    penalty_every: int = 16
    path_every: int = 4
    mixing: float = 0.9
    augment: bool = True
    augment_target: float = 0.6
    augment_pace: float = 500_000
    noise: bool = True
    smoothing: float = 0.05
    share_weight: float = 0.0
    last_rate: float = 1.0
    dtype: str = "float32"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    def grain(self, progress: float) -> float:
        """Return the share of the finest noise when so much of the training is over, 0 to 1.

        Where classes lie is found sooner with noise. But that of the two finest resolutions is seen
        as single voxels, so shapes are learned without it. Coarser noise becomes shapes, and stays.

        >>> [Recipe(noise=False).grain(progress) for progress in (0.0, 0.5, 0.625, 0.75, 1.0)]
        [1.0, 1.0, 0.5, 0.0, 0.0]
        """
        return 1.0 if self.noise else min(1.0, max(0.0, 3 - 4 * progress))

    def rate(self, progress: float) -> float:
        """Return the share of the learning rate when so much of the training is over.

        It falls as a half cosine, from the middle on.

        >>> [Recipe(last_rate=0.1).rate(progress) for progress in (0.0, 0.5, 0.75, 1.0)]
        [1.0, 1.0, 0.55, 0.1]
        """
        fallen = (1 - math.cos(math.pi * min(1.0, max(0.0, 2 * progress - 1)))) / 2
        return round(1 - (1 - self.last_rate) * fallen, 9)

    def phases(self, step: int) -> list[Phase]:
        """List the phases of a step, counted from 0.

        >>> Recipe(penalty_every=2, path_every=3).phases(2)
        ['discriminator', 'r1', 'generator']
        """
        found: list[Phase] = ["discriminator"]
        if self.penalty_every > 1 and step % self.penalty_every == 0:
            found.append("r1")
        found.append("generator")
        if self.path_every and step % self.path_every == 0:
            found.append("path")
        return found


def start(architecture: Architecture, seed: int) -> dict[str, np.ndarray]:
    """Return the state of networks that have learned nothing, in NumPy."""
    state: dict[str, np.ndarray] = {}
    for network in ("generator", "discriminator"):
        vector = Packing.of(architecture, network).pack(initialise(architecture, network, seed))
        state[network] = vector
        state[f"{network}/moment"] = np.zeros_like(vector)
        state[f"{network}/steps"] = np.zeros((), np.float32)
    state["average"] = state["generator"].copy()
    state["mean_style"] = np.zeros(architecture.latent, np.float32)
    for name in ("path_mean", "augment/probability", "augment/sureness", "augment/batches"):
        state[name] = np.zeros((), np.float32)
    return state


def draw(
    architecture: Architecture, recipe: Recipe, key: tuple[int, int, int], n: int
) -> dict[str, np.ndarray]:
    """Draw everything random of ``n`` samples.

    Parameters
    ----------
    key : seed, step, phase
        What the random numbers follow from.

    Returns
    -------
    dict of str to (n, …) array
        ``latents`` and ``others`` (n, L); ``crossover`` (n,), the first layer that takes the style
        of the other; ``seeds`` (n,) of the noise; ``path_seeds`` (n,); and what
        :func:`cvdask.synthesis.mask_augment.draw` draws.
    """
    random = np.random.default_rng(key)
    mixed = random.random(n) < recipe.mixing
    crossover = np.where(mixed, random.integers(1, architecture.n_layers, n), architecture.n_layers)
    return {
        "latents": random.standard_normal((n, architecture.n_latent), np.float32),
        "others": random.standard_normal((n, architecture.n_latent), np.float32),
        "crossover": crossover.astype(np.int32),
        "seeds": random.integers(0, 2**32, n, np.uint32),
        "path_seeds": random.integers(0, 2**32, n, np.uint32),
        **mask_augment.draw(random, n),
    }


@dataclass(frozen=True)
class Steps:
    """The steps of a training, compiled when first taken.

    Parameters
    ----------
    architecture : Architecture
    recipe : Recipe
    xla : bool
        See :func:`cvdask.synthesis.autodiff.compiled`.
    level : int, optional
        Resolution that is learned now, in preset ``paper``.
    """

    architecture: Architecture
    recipe: Recipe
    xla: bool = False
    level: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", {})

    @cached_property
    def packings(self) -> dict[str, Packing]:
        """Where the arrays lie in each network's vector."""
        return {
            network: Packing.of(self.architecture, network)
            for network in ("generator", "discriminator")
        }

    def gradients(
        self, phase: Phase, state: State, samples: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Differentiate a phase's loss.

        Parameters
        ----------
        phase : Phase
        state : mapping of str to array
        samples : mapping of str to array
            ``channels`` (N, S, R, R) uint8 of real slices, ``places`` (N, S), ``fade``, ``grain``
            and ``share_weight``, numbers, and what :func:`draw` draws.

        Returns
        -------
        gradient : vector
        found : dict of str to number or array
            What else the step has to tell.
        """
        return self._once("gradients", phase, self._gradients)(state, samples)

    def apply(
        self,
        phase: Phase,
        state: State,
        gradient: Any,
        found: Mapping[str, Any],
        pace: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Change the state.

        Parameters
        ----------
        phase : Phase
        state, gradient, found
            See :meth:`gradients`; averaged where a batch was divided.
        pace : mapping of str to number
            ``rate``, the learning rate; ``kept``, the share of the old in the average of the
            generator; ``n_images`` of the step.
        """
        return dict(self._once("apply", phase, self._apply)(state, gradient, found, pace))

    def step(
        self,
        phase: Phase,
        state: State,
        samples: Mapping[str, Any],
        pace: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Take a step: :meth:`gradients` and :meth:`apply` as one function.

        Returns
        -------
        state, found
        """
        new, found = self._once("step", phase, self._step)(state, samples, pace)
        return dict(new), dict(found)

    def _once(self, kind: str, phase: Phase, function: Any) -> Any:
        """Compile a function of a phase when it is first needed."""
        known: dict[tuple[str, str], Any] = self._compiled  # type: ignore[attr-defined]
        if (kind, phase) not in known:
            known[kind, phase] = compiled(lambda *given: function(phase, *given), xla=self.xla)
        return known[kind, phase]

    def _step(self, phase: Phase, state: State, samples: Any, pace: Any) -> Any:
        gradient, found = self._gradients(phase, state, samples)
        return self._apply(phase, state, gradient, found, pace), found

    # -----------------------------------------------------------------------------------------
    # Gradients

    def _gradients(self, phase: Phase, state: State, samples: Any) -> Any:
        losses = {
            "discriminator": self._discriminator,
            "r1": self._penalty,
            "generator": self._generator,
            "path": self._path,
        }
        network = network_of(phase)
        learning = self._unpack(network, state[network])

        def loss(arrays: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
            return losses[phase](arrays, state, samples)

        value, found, gradients = value_and_gradients(loss, learning)
        names = self.packings[network].shapes
        vector = ops.concatenate([ops.reshape(gradients[name], (-1,)) for name in names])
        return vector, {**found, "loss": value}

    def _discriminator(self, arrays: Any, state: State, samples: Any) -> Any:
        generator = self._unpack("generator", state["generator"])
        logits, _ = self._images(generator, samples)
        shown = ops.stop_gradient(classify(logits, self.architecture.head))
        probability = state["augment/probability"]
        real_slices = self._real(samples)
        generated = self._score(arrays, shown, samples, probability)
        real = self._score(arrays, real_slices, samples, probability)
        value = discriminator_loss(self.recipe.loss, real, generated)
        found = {
            "real": ops.mean(real),
            "generated": ops.mean(generated),
            "sureness": ops.mean(ops.sign(real)),
        }
        if self.recipe.penalty_every == 1:
            penalty, told = self._penalty(arrays, state, samples)
            return value + penalty, {**found, **told}
        return value, found

    def _penalty(self, arrays: Any, state: State, samples: Any) -> Any:
        def score(slices: Any) -> Any:
            return self._score(arrays, slices, samples, state["augment/probability"])

        penalty = gradient_penalty(score, self._real(samples)) / SLOPE_OF_INPUT**2
        found = {"r1": penalty}
        if self.recipe.loss == "rpgan_r1_r2":
            generator = self._unpack("generator", state["generator"])
            logits, _ = self._images(generator, samples)
            shown = ops.stop_gradient(classify(logits, self.architecture.head))
            found["r2"] = gradient_penalty(score, shown) / SLOPE_OF_INPUT**2
            penalty = penalty + found["r2"]
        return penalty * (self.recipe.gamma / 2 * self.recipe.penalty_every), found

    def _generator(self, arrays: Any, state: State, samples: Any) -> Any:
        logits, style = self._images(arrays, samples)
        shown = classify(logits, self.architecture.head)
        discriminator = self._unpack("discriminator", state["discriminator"])
        probability = state["augment/probability"]
        generated = self._score(discriminator, shown, samples, probability)
        real = generated
        if self.recipe.loss == "rpgan_r1_r2":
            real = self._score(discriminator, self._real(samples), samples, probability)
        value = generator_loss(self.recipe.loss, real, generated)
        found = {"mean_style": ops.mean(ops.stop_gradient(style), axis=0)}
        if self.recipe.share_weight:
            found["shares"] = share_difference(self._real(samples), shown)
            value = value + samples["share_weight"] * found["shares"]
        return value, found

    def _path(self, arrays: Any, state: State, samples: Any) -> Any:
        style, _ = self._styles(arrays, samples)  # (M, n_layers, W)
        level = self.level or self.architecture.resolution
        seeds = self._per_slice(samples["seeds"])

        def image(w: Any) -> Any:
            return ops.softmax(self._synthesise(arrays, w, seeds, samples), axis=-1)

        # The same number for all classes would see no change at all: probabilities sum to 1.
        drawn = [
            noise(self._per_slice(samples["path_seeds"]), i, level)
            for i in range(self.architecture.n_channels)
        ]
        lengths = path_lengths(image, style, ops.concatenate(drawn, axis=-1))
        mean = state["path_mean"]
        mean = ops.stop_gradient(mean + PATH_DECAY * (ops.mean(lengths) - mean))
        value = ops.mean(ops.square(lengths - mean)) * (PATH_WEIGHT * self.recipe.path_every)
        return value, {"path_mean": mean, "path": ops.mean(lengths)}

    def _unpack(self, network: str, vector: Any) -> dict[str, Any]:
        packing = self.packings[network]
        parts = ops.split(vector, packing.ends[:-1])
        return {
            name: ops.reshape(part, shape)
            for (name, shape), part in zip(packing.shapes.items(), parts, strict=True)
        }

    def _per_slice(self, values: Any) -> Any:
        """Repeat what belongs to a sample for each of its slices: (N, …) to (M, …)."""
        s = self.architecture.slices_per_sample
        return values if s == 1 else ops.repeat(values, s, axis=0)

    def _styles(self, arrays: Any, samples: Any) -> tuple[Any, Any]:
        """Return the styles of all layers, (M, n_layers, W), and the unmixed ones, (M, W)."""
        architecture = self.architecture
        places = ops.reshape(samples["places"], (-1,))
        own = styles(arrays, architecture, self._per_slice(samples["latents"]), places)
        if not self.recipe.mixing:
            return ops.repeat(own[:, None], architecture.n_layers, axis=1), own
        other = styles(arrays, architecture, self._per_slice(samples["others"]), places)
        layers = np.arange(architecture.n_layers, dtype=np.int32)
        is_own = layers < self._per_slice(samples["crossover"])[:, None]  # (M, n_layers)
        return ops.where(is_own[:, :, None], own[:, None], other[:, None]), own

    def _synthesise(self, arrays: Any, style: Any, seeds: Any, samples: Any) -> Any:
        return synthesise(
            arrays,
            self.architecture,
            style,
            seeds,
            level=self.level,
            fade=samples["fade"],
            grain=samples["grain"],
            dtype=self.recipe.dtype,
        )

    def _images(self, arrays: Any, samples: Any) -> tuple[Any, Any]:
        """Return logits (M, R, R, C), and styles (M, W)."""
        style, own = self._styles(arrays, samples)
        return self._synthesise(arrays, style, self._per_slice(samples["seeds"]), samples), own

    def _real(self, samples: Any) -> Any:
        """Return real slices as the discriminator sees them: (M, level, level, C)."""
        architecture, extent = self.architecture, samples["channels"].shape[-1]
        numbers = ops.reshape(ops.cast(samples["channels"], "int32"), (-1, extent, extent))
        real = ops.one_hot(numbers, architecture.n_channels, dtype="float32")
        factor = extent // (self.level or architecture.resolution)
        if factor > 1:
            # The commonest class, so that voxels stay of one class at every resolution.
            mean = ops.average_pool(real, factor, factor)
            real = ops.one_hot(ops.argmax(mean, axis=-1), architecture.n_channels, dtype="float32")
        if architecture.head == "softmax":
            # Probabilities never reach 0 and 1: real ones must not be told by that.
            smoothing = self.recipe.smoothing
            real = real * (1 - smoothing) + smoothing / architecture.n_channels
        return real

    def _score(self, arrays: Any, slices: Any, samples: Any, probability: Any) -> Any:
        """Join the slices of a sample, (M, R, R, C) to (N, R, R, S·C), alter and score them."""
        s = self.architecture.slices_per_sample
        _, extent, _, n_channels = slices.shape
        if s > 1:
            slices = ops.reshape(slices, (-1, s, extent, extent, n_channels))
            slices = ops.transpose(slices, (0, 2, 3, 1, 4))
            slices = ops.reshape(slices, (-1, extent, extent, s * n_channels))
        if self.recipe.augment:
            slices = mask_augment.alter(slices, samples, probability)
        return discriminate(
            arrays,
            self.architecture,
            slices,
            samples["places"],
            level=self.level,
            fade=samples["fade"],
            dtype=self.recipe.dtype,
        )

    # -----------------------------------------------------------------------------------------
    # What a gradient changes

    def _apply(self, phase: Phase, state: State, gradient: Any, found: Any, pace: Any) -> Any:
        network = network_of(phase)
        new = dict(state)
        new |= self._adam(network, state, gradient, pace["rate"])
        if phase == "generator":
            kept = pace["kept"]
            new["average"] = new["generator"] + (state["average"] - new["generator"]) * kept
            moved = found["mean_style"] - state["mean_style"]
            new["mean_style"] = state["mean_style"] + STYLE_PACE * moved
        elif phase == "path":
            new["path_mean"] = found["path_mean"]
        elif phase == "discriminator" and self.recipe.augment:
            new |= self._adapt(state, found["sureness"], pace["n_images"])
        return new

    def _adam(self, network: str, state: State, gradient: Any, rate: Any) -> dict[str, Any]:
        recipe = self.recipe
        every = recipe.penalty_every if network == "discriminator" else recipe.path_every
        ratio = every / (every + 1) if every > 1 or (network == "generator" and every) else 1.0
        beta = BETA**ratio
        steps = state[f"{network}/steps"] + 1.0
        square = ops.square(gradient)
        moment = square + (state[f"{network}/moment"] - square) * beta
        correction = 1 - ops.exp(steps * float(np.log(beta)))
        change = gradient / (ops.sqrt(moment / correction) + EPSILON)
        return {
            network: state[network] - rate * ratio * change,
            f"{network}/moment": moment,
            f"{network}/steps": steps,
        }

    def _adapt(self, state: State, sureness: Any, n_images: Any) -> dict[str, Any]:
        total = state["augment/sureness"] + sureness
        batches = state["augment/batches"] + 1.0
        due = ops.cast(batches >= ADAPT_EVERY, "float32")
        moved = mask_augment.adapt(
            state["augment/probability"],
            total / batches,
            batches * n_images,
            target=self.recipe.augment_target,
            pace=self.recipe.augment_pace,
        )
        probability = state["augment/probability"]
        return {
            "augment/probability": probability + (moved - probability) * due,
            "augment/sureness": total * (1 - due),
            "augment/batches": batches * (1 - due),
        }


def network_of(phase: Phase) -> str:
    """Name the network that a phase changes."""
    assert phase in get_args(Phase)
    return "discriminator" if phase in ("discriminator", "r1") else "generator"
