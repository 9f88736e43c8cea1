"""How does a trained generator make slices, the same ones whatever is asked for beside them?

1. Slices are made in calls of one fixed shape, the last filled up: a slice does not depend on how
   many others were asked for, nor on where among them it stands.
2. Each has a latent, a place and a seed of its noise. Slices of one volume share their latent where
   the generator is one of volumes.
3. :meth:`Generator.sample` goes from there to probabilities; :meth:`Generator.styles` and
   :meth:`Generator.synthesise` are its two halves, to mix and interpolate between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from keras import ops

from cvdask.networks.device import has_gpu
from cvdask.synthesis.architecture import Architecture
from cvdask.synthesis.autodiff import compiled
from cvdask.synthesis.stylegan import styles, synthesise


class Generator:
    """A generator on this process's device.

    Parameters
    ----------
    architecture : Architecture
    arrays : mapping of str to array
        Of the generator.
    mean_style : (W,) float32
        What truncation draws towards.
    batch_size : int
        Slices per call.
    level : int, optional
        Resolution to stop at, in preset ``paper`` before all are learned.
    """

    def __init__(
        self,
        architecture: Architecture,
        arrays: Mapping[str, Any],
        mean_style: np.ndarray,
        batch_size: int = 16,
        level: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a call makes at least one slice. Received: {batch_size}")
        self.architecture = architecture
        self.batch_size = batch_size
        self.level = level
        self.take(arrays, mean_style)
        self._map = compiled(self._styles, xla=has_gpu())
        self._render = compiled(self._probabilities, xla=has_gpu())

    def take(self, arrays: Mapping[str, Any], mean_style: np.ndarray) -> None:
        """Take other weights; nothing is compiled anew."""
        self.mean_style = np.asarray(mean_style, np.float32)
        self._arrays = {name: ops.convert_to_tensor(one) for name, one in arrays.items()}

    def sample(
        self,
        latents: np.ndarray,
        places: np.ndarray,
        noise_seed: np.ndarray,
        truncation: float = 1.0,
    ) -> np.ndarray:
        """Make slices.

        Parameters
        ----------
        latents : (N, L) float32
            Normal numbers.
        places : (N,) or (N, S) float32
            From 0, the first slice, to 1, the last; with S slices for each latent.
        noise_seed : (N,) integers, 0 to 2³² − 1
        truncation : float
            1 is the whole variety; less draws styles towards their mean, 0 is the mean itself.

        Returns
        -------
        (N, R, R, C) or (N, S, R, R, C) float32
            Probabilities of the classes.

        Raises
        ------
        ValueError
            When shapes do not fit or a place lies outside 0 to 1.
        """
        return self.synthesise(self.styles(latents, places, truncation), noise_seed)

    def styles(
        self, latents: np.ndarray, places: np.ndarray, truncation: float = 1.0
    ) -> np.ndarray:
        """Map latents and places to styles: (N, W) or (N, S, W) float32."""
        latents, places = np.asarray(latents, np.float32), np.asarray(places, np.float32)
        n_latent = self.architecture.n_latent
        if (
            latents.ndim != 2
            or latents.shape[1] != n_latent
            or places.shape[:1] != latents.shape[:1]
        ):
            raise ValueError(
                f"latents are (N, {n_latent}) and places (N,) or (N, S). Received: "
                f"{latents.shape} and {places.shape}"
            )
        if places.size and not (places.min() >= 0 and places.max() <= 1):
            raise ValueError(
                f"places lie between 0, the first slice, and 1, the last. Received: "
                f"{places.min()} to {places.max()}"
            )
        per_slice = np.repeat(latents, places[0].size if len(places) else 1, axis=0)
        found = self._in_calls(self._map, per_slice, places.reshape(-1))
        found = self.mean_style + (found - self.mean_style) * np.float32(truncation)
        return found.reshape(*places.shape, self.architecture.latent)

    def synthesise(self, style: np.ndarray, noise_seed: np.ndarray) -> np.ndarray:
        """Make slices from styles.

        Parameters
        ----------
        style : (N, [S,] W) or (N, [S,] n_layers, W) float32
            One for all layers, or one for each.
        noise_seed : (N,) integers, 0 to 2³² − 1
            All slices of a sample have the same noise, so that it does not change along z.

        Returns
        -------
        (N, [S,] R, R, C) float32
        """
        architecture = self.architecture
        style, seeds = np.asarray(style, np.float32), np.asarray(noise_seed)
        layered = style.ndim > 2 and style.shape[-2] == architecture.n_layers
        leading = style.shape[: -2 if layered else -1]
        if style.shape[-1] != architecture.latent or not 1 <= len(leading) <= 2:
            raise ValueError(
                f"styles are (N, W), (N, S, W), or these with {architecture.n_layers} layers "
                f"before W, which is {architecture.latent}. Received: {style.shape}"
            )
        if seeds.shape != leading[:1] or seeds.dtype.kind not in "iu":
            raise ValueError(
                f"every sample has a whole number as seed of its noise. Received: {seeds.shape} "
                f"{seeds.dtype} for {leading[0]} samples"
            )
        if not layered:
            style = np.repeat(style[..., None, :], architecture.n_layers, axis=-2)
        flat = style.reshape(-1, *style.shape[-2:])
        per_slice = np.repeat(seeds.astype(np.uint32), len(flat) // max(1, len(seeds)))
        found = self._in_calls(self._render, flat, per_slice)
        return found.reshape(*leading, *found.shape[1:])

    def _in_calls(self, function: Callable[..., Any], *given: np.ndarray) -> np.ndarray:
        """Call with ``batch_size`` rows at a time, the last filled up with zeros."""
        n, size = len(given[0]), self.batch_size
        parts = []
        for first in range(0, max(n, 1), size):
            rows = [one[first : first + size] for one in given]
            filled = [
                np.concatenate([one, np.zeros((size - len(one), *one.shape[1:]), one.dtype)])
                for one in rows
            ]
            made = function(self._arrays, *map(ops.convert_to_tensor, filled))
            parts.append(np.asarray(ops.convert_to_numpy(made))[: len(rows[0])])
        return np.concatenate(parts)

    def _styles(self, arrays: Any, latents: Any, places: Any) -> Any:
        return styles(arrays, self.architecture, latents, places)

    def _probabilities(self, arrays: Any, style: Any, seeds: Any) -> Any:
        logits = synthesise(arrays, self.architecture, style, seeds, level=self.level)
        return ops.softmax(logits, axis=-1)
