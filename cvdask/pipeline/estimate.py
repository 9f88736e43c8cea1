"""How long will the steps of a run take, about?

1. A training takes as many minutes as it was given.
2. A stage that the folder's last run has taken, takes as long per voxel of a sample as it did then.
3. Any other stage over the blocks of a sample takes what ``TYPICAL_NS`` says, divided among cores.
4. What depends on more than the voxels of a sample, and was not taken here yet, has no estimate.

The voxels of a sample are known from its volume, or from the plan that ingests it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cvdask.engine.plan import Plan
from cvdask.pipeline.config import Config
from cvdask.pipeline.record import RECORD
from cvdask.volume.objects import read_json
from cvdask.volume.store import open_volume

# Nanoseconds of one core per voxel of the sample, on a server processor of 2024 (a network of the
# preset ``fast`` in float32); benchmarks/RESULTS.md has most of them.
TYPICAL_NS = {
    "ingest": 10.0,
    "segment": 1600.0,
    "evaluate": 400.0,
    "label": 30.0,
    "measure": 20.0,
    "density": 5.0,
    "descriptors": 100.0,
}
# How much longer the published network takes than the fast one.
PAPER_TIMES = 16


class Estimates:
    """Seconds of steps, as far as they can be known before.

    Parameters
    ----------
    config : Config
    n_slots : int
        Blocks that are worked on at the same time.
    """

    def __init__(self, config: Config, n_slots: int) -> None:
        self._config = config
        self._n_slots = n_slots
        self._n_voxels = {sample.name: _voxels_at(sample.url) for sample in config.samples}
        self._rates = self._taken()

    def _taken(self) -> dict[str, float]:
        """Return the seconds per voxel of each stage of the last run here."""
        sums: dict[str, list[float]] = {}
        for step in (read_json(self._config.out, RECORD) or {}).get("steps", []):
            n_voxels = self._n_voxels.get(step.get("subject"))
            if step.get("state") == "done" and n_voxels:
                total = sums.setdefault(step["stage"], [0.0, 0.0])
                total[0] += step["seconds"]
                total[1] += n_voxels
        return {stage: seconds / n_voxels for stage, (seconds, n_voxels) in sums.items()}

    def seconds(self, stage: str, subject: str, plans: Sequence[Any]) -> float | None:
        """Estimate a step.

        Parameters
        ----------
        stage, subject : str
        plans : sequence
            What the stage plans, where it can be planned yet.

        Returns
        -------
        float or None
            ``None`` where there is nothing to go by.
        """
        if stage == "ingest" and plans and isinstance(plans[0], Plan):
            self._n_voxels[subject] = math.prod(plans[0].grid.shape)
        if stage in ("train-unet", "train-gan"):
            return _training_seconds(self._config.stages[stage])
        n_voxels = self._n_voxels.get(subject)
        if n_voxels is None:
            return None
        if stage in self._rates:
            return n_voxels * self._rates[stage]
        if stage in TYPICAL_NS:
            times = _times_longer(self._config.stages) if stage == "segment" else 1
            return n_voxels * times * TYPICAL_NS[stage] * 1e-9 / self._n_slots
        return None


def _voxels_at(url: str) -> int | None:
    try:
        return math.prod(open_volume(url).shape)
    except (OSError, ValueError):
        return None


def _training_seconds(options: Mapping[str, Any]) -> float | None:
    minutes = options.get("max_minutes")
    if minutes is None:
        return None
    return 60 * minutes * (options.get("folds", 1) + bool(options.get("refit")))


def _times_longer(stages: Mapping[str, Mapping[str, Any]]) -> float:
    """Compare a segmentation with that by a fast network, which looks once at every slice."""
    training, options = stages.get("train-unet", {}), stages["segment"]
    views = (4 if training.get("upright") else 8) if options.get("tta") else 1
    planes = 3 if options.get("axes") == "zyx" else 1
    return views * planes * (PAPER_TIMES if training.get("preset") == "paper" else 1)


def duration_text(seconds: float) -> str:
    """Write a duration for people.

    >>> [duration_text(s) for s in (0.2, 42, 100, 4000, 400_000)]
    ['1 s', '42 s', '2 min', '1.1 h', '4.6 days']
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    if seconds < 86_400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"
