"""How is one step taken on several devices, or where a batch exceeds the memory of one?

A batch is divided evenly over the devices, and each part once more where memory has run out before.
Gradients of all parts are averaged, weighted by their samples, and applied once: what a step
computes stays the same, but for the spread of a batch, which is taken within each part.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from keras import ops

from cvdask.networks.device import is_out_of_memory
from cvdask.synthesis.autodiff import on, put
from cvdask.synthesis.steps import Phase, State, Steps

# What all samples of a step share.
SHARED = ("fade", "grain", "share_weight")


class Devices:
    """The devices of a training.

    Parameters
    ----------
    devices : sequence
        From :func:`cvdask.synthesis.autodiff.devices`. The first holds the state.
    largest : int
        Samples that a device takes at once; 0 for as many as there are.
    """

    def __init__(self, devices: list[Any], largest: int = 0) -> None:
        self.devices = devices
        self.largest = largest
        self._pool = ThreadPoolExecutor(len(devices), "device") if len(devices) > 1 else None

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def step(
        self,
        steps: Steps,
        phase: Phase,
        state: State,
        samples: Mapping[str, np.ndarray],
        pace: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Take a step: see :meth:`cvdask.synthesis.steps.Steps.step`.

        Raises
        ------
        MemoryError
            When one sample alone exceeds a device's memory.
        """
        while True:
            parts = self._divide(samples)
            try:
                return self._step(steps, phase, state, parts, pace)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                size = max(len(part["places"]) for part in parts)
                if size == 1:
                    raise MemoryError(
                        f"one sample of {steps.architecture.resolution}² voxels exceeds the "
                        f"device's memory. Choose a lower resolution, width or max_width"
                    ) from error
                self.largest = size // 2
                warnings.warn(
                    f"{size} samples at once exceed the device's memory: training goes on with "
                    f"{self.largest} at once, and gradients summed up over the batch",
                    stacklevel=4,
                )

    def _divide(self, samples: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        n = len(samples["places"])
        n_parts = min(n, len(self.devices))
        if self.largest:
            n_parts = max(n_parts, -(-n // self.largest))
        rows = np.array_split(np.arange(n), n_parts)
        return [
            {
                name: one if name in SHARED else one[part[0] : part[-1] + 1]
                for name, one in samples.items()
            }
            for part in rows
        ]

    def _step(
        self,
        steps: Steps,
        phase: Phase,
        state: State,
        parts: list[dict[str, np.ndarray]],
        pace: Mapping[str, Any],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        first = self.devices[0]
        if len(parts) == 1:
            with on(first):
                return steps.step(phase, state, put(parts[0], first), put(pace, first))
        sizes = [len(part["places"]) for part in parts]
        shares = [np.float32(size / sum(sizes)) for size in sizes]

        def differentiate(number: int) -> dict[str, Any]:
            """Sum up the weighted gradients of every part that one device takes."""
            device = self.devices[number]
            total: dict[str, Any] = {}
            with on(device):
                here = put(state, device)
                for part, share in list(zip(parts, shares, strict=True))[
                    number :: len(self.devices)
                ]:
                    gradient, found = steps.gradients(phase, here, put(part, device))
                    scaled = {"gradient": gradient, **found}
                    scaled = {name: one * share for name, one in scaled.items()}
                    total = _sum(total, scaled)
            return total

        numbers = range(min(len(parts), len(self.devices)))
        sums = list(self._pool.map(differentiate, numbers)) if self._pool else [differentiate(0)]
        with on(first):
            total: dict[str, Any] = {}
            for one in sums:
                total = _sum(total, put(one, first))
            gradient = total.pop("gradient")
            return steps.apply(phase, state, gradient, total, put(pace, first)), total


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: ops.add(one[name], other[name]) if one else other[name] for name in other}
