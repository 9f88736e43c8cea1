"""How does a generator learn what the slices of a cell look like, straight from the store?

1. ``slices`` opens the label slices; nothing is copied. What is going to happen is written to
   ``<out>.run.json`` before the first step: options, inputs, architecture, constants.
2. Step after step, the phases of ``steps`` are taken on batches that a thread prepares. Batches and
   everything random follow from the seed and the number of the step.
3. Every few thousand images a report: the average generator makes slices, whose distance to real
   ones and class fractions are measured (``judge``), a picture is drawn, a line goes to
   ``<out>.jsonl``, the best generator is kept, and where the training stands is written to
   ``<out>.state.npz``. Kill it anywhere and call it again: it goes on from the last report, and on
   a CPU ends with the same bytes.
4. The best generator becomes ``out``.

In the second half the recipe changes: the finest noise fades out, the learning rate falls, and the
weight of the classes' shares grows (:class:`cvdask.synthesis.steps.Recipe`).

``<out>`` stands for the path without ``.keras``. Preset ``paper`` learns one resolution after the
other, by :func:`growth`; the default learns all at once.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

import keras
import numpy as np

from cvdask import __version__
from cvdask.engine.ledger import standing
from cvdask.engine.progress import ProgressBar
from cvdask.networks.device import framework_versions, has_gpu
from cvdask.networks.files import existing_record, write_json_file
from cvdask.synthesis import gan_file
from cvdask.synthesis.architecture import (
    Architecture,
    Continuity,
    Head,
    Packing,
    Preset,
    flops_per_slice,
)
from cvdask.synthesis.autodiff import backend, devices
from cvdask.synthesis.checkpoints import GanFiles, Standing, load_state, rewrite_log, save_state
from cvdask.synthesis.gan_file import MEAN_STYLE, Gan
from cvdask.synthesis.generator import Generator
from cvdask.synthesis.judge import Distance, Judge, score
from cvdask.synthesis.losses import Loss
from cvdask.synthesis.parallel import Devices
from cvdask.synthesis.slices import Batch, SliceSet, open_slices
from cvdask.synthesis.steps import Phase, Recipe, Steps, draw, start
from cvdask.volume.store import Volume

PRECISIONS = ("auto", "float32", "mixed_bfloat16")
PHASES: tuple[Phase, ...] = get_args(Phase)

# The average of the generator: half of it is as new as this many batches' images times 10/32, and
# early on as this share of the training so far (Karras et al. 2020, adaptive augmentation).
HALF_LIFE = 10_000 / 32
RAMP_UP = 0.05
# Weight of R1 by resolution and batch, as in the same paper; and the first StyleGAN's. Small slices
# need more than the former: their discriminator soon knows a few hundred of them.
GAMMA = 0.0002
LEAST_GAMMA = 1.0
GAMMA_PAPER = 10.0
# Weight of the classes' shares. A larger one brings them closer, and slices less close.
SHARE_WEIGHT = 1.0
# Learning rate at the end, as a share of that of the first half.
LAST_RATE = 0.1
# Learning rate of preset ``paper`` by the resolution that is learned.
RATES_PAPER = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}
RATE_PAPER = 0.001
# Images over which augmentation may go from nothing to all, and as a share of a short training.
AUGMENT_PACE = 500_000
AUGMENT_SHARE = 1 / 3
# Places differ by at most this many slices within a sample of a volume.
LARGEST_SPAN = 32


@dataclass(frozen=True)
class GanOptions:
    """What can be chosen about a training. None: by preset, resolution and device."""

    preset: Preset = "default"
    """Layers: ``default``, StyleGAN2's, or ``paper``, StyleGAN's with labels by pairs of slices."""
    continuity: Continuity = "order"
    """Independent slices, or, ``volume``, whole stacks that are continuous in z."""
    resolution: int | None = None
    """Voxels of a square's side, a power of two from 16; None is the largest that fits."""
    classes: str | int | Sequence[str | int] | None = None
    """Classes that get a channel, the others are background; None takes all that have a name."""
    z_range: tuple[int, int] | None = None
    """First slice and one past the last to learn from; None takes all."""
    exclude: Sequence[int] = ()
    """Slices to leave out besides those that are missing, damaged or unlike their neighbours."""
    crop: str = "centre"
    """The ``centre`` square of each slice, or ``random`` ones."""
    reduction: int | None = None
    """Voxels of a cell's side that become one voxel, by the commonest class; None: what fits."""
    kimg: float | None = None
    """Thousands of images to train on; None is 300 on a CPU and 5000 on a GPU."""
    max_minutes: float | None = None
    """Minutes, at most. None: no limit."""
    batch_size: int | None = None
    """Samples per step; None is 32, fewer above 256 voxels."""
    width: int | None = None
    """Channels at the finest resolution; None is 8 on a CPU at 64 voxels, and more on a GPU."""
    max_width: int | None = None
    """Most channels at any resolution; None is 64 on a CPU, 512 on a GPU."""
    latent: int | None = None
    """Numbers of the content code and of a style; None is 128 on a CPU, 512 on a GPU."""
    n_mapping: int | None = None
    """Layers of the mapping network; None is 2, and 8 in preset ``paper``."""
    noise: bool | None = None
    """Whether the two finest resolutions keep their noise, which otherwise fades out while the
    generator learns; None keeps it in preset ``paper``."""
    head: Head = "straight-through"
    """What the discriminator sees: one class per voxel, or, ``softmax``, probabilities."""
    loss: Loss = "non_saturating"
    """``non_saturating`` with R1, or ``rpgan_r1_r2``: relativistic pairs with R1 and R2."""
    share_weight: float | None = None
    """Of the difference between the classes' shares and the real ones, and ten times that at the
    end; None is 1, and 0 in preset ``paper``."""
    learning_rate: float | None = None
    """Of Adam, and a tenth at the end; None is 0.0025, and, kept to the end, 0.001 to 0.003 by
    resolution in preset ``paper``."""
    gamma: float | None = None
    """Weight of R1; None is 0.0002 · resolution² / batch, at least 1, and 10 in ``paper``."""
    penalty_every: int | None = None
    """Steps from R1 to R1; None is 16, and 1 in preset ``paper``."""
    path_every: int | None = None
    """Steps between path lengths; 0 for none. None: 4 on a GPU, 16 on a CPU, 0 in ``paper``."""
    mixing: float = 0.9
    """Share of images whose finer layers take the style of another latent."""
    augment: bool = True
    """Mirror and shift slices, as much as the discriminator's sureness asks for."""
    ema_kimg: float | None = None
    """Half-life of the generator's average, thousands of images; None is batch · 10/32."""
    mixed_precision: str = "auto"
    """``float32``, ``mixed_bfloat16``, or ``auto``: half precision on a GPU."""
    n_devices: int | None = None
    """Devices to divide a batch over; None is all GPUs, or the CPU."""
    report_kimg: float | None = None
    """Thousands of images between two reports; None is 10 on a CPU, 50 on a GPU."""
    n_judged: int = 1000
    """Slices that are made for each report."""
    seed: int = 0
    """The same seed draws the same weights, batches and noise."""

    def __post_init__(self) -> None:
        fix = object.__setattr__
        if self.z_range is not None:
            fix(self, "z_range", tuple(self.z_range))
        fix(self, "exclude", tuple(self.exclude))
        for name, least in (
            ("batch_size", 1),
            ("width", 1),
            ("max_width", 1),
            ("latent", 1),
            ("n_mapping", 1),
            ("penalty_every", 1),
            ("path_every", 0),
            ("n_devices", 1),
            ("n_judged", 2),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and (value != int(value) or value < least):
                raise ValueError(f"{name} is a whole number of at least {least}. Received: {value}")
        for name, most in (
            ("kimg", math.inf),
            ("max_minutes", math.inf),
            ("learning_rate", 1),
            ("gamma", math.inf),
            ("ema_kimg", math.inf),
            ("report_kimg", math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < most:
                raise ValueError(f"{name} lies between 0 and {most}. Received: {value}")
        if self.share_weight is not None and not 0 <= self.share_weight < math.inf:
            raise ValueError(f"share_weight is 0 or more. Received: {self.share_weight}")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing lies between 0 and 1. Received: {self.mixing}")
        for name, kinds in (
            ("preset", get_args(Preset)),
            ("continuity", get_args(Continuity)),
            ("head", get_args(Head)),
            ("loss", get_args(Loss)),
            ("crop", ("centre", "random")),
            ("mixed_precision", PRECISIONS),
        ):
            if getattr(self, name) not in kinds:
                raise ValueError(
                    f"{name} is one of {', '.join(kinds)}. Received: {getattr(self, name)!r}"
                )

    def as_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values."""
        return dict(json.loads(json.dumps(asdict(self))))


@dataclass(frozen=True)
class GanPlan:
    """What a training would do, down to its constants.

    Parameters
    ----------
    architecture : Architecture
    recipe : Recipe
    n_slices : int
        To learn from.
    batch_size : int
    n_images : int
        At most.
    images_per_report : int
    ema_images : float
        Half-life of the generator's average.
    notes : tuple of str
        What may surprise.
    """

    architecture: Architecture
    recipe: Recipe
    n_slices: int
    batch_size: int
    n_images: int
    images_per_report: int
    ema_images: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return {
            **asdict(self),
            "architecture": self.architecture.as_dict(),
            "recipe": self.recipe.as_dict(),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GanPlan:
        """Return the plan that :meth:`as_dict` wrote."""
        return cls(
            **{
                **values,
                "architecture": Architecture.from_dict(values["architecture"]),
                "recipe": Recipe(**values["recipe"]),
                "notes": tuple(values["notes"]),
            }
        )

    def __str__(self) -> str:
        one = self.architecture
        sizes = [Packing.of(one, network).size for network in ("generator", "discriminator")]
        flops = [flops_per_slice(one, network) for network in ("generator", "discriminator")]
        lines = [
            f"{self.n_slices} slices of {one.resolution} × {one.resolution} voxels, "
            f"{one.n_channels} channels, {one.continuity}",
            f"preset {one.preset}: generator {sizes[0] / 1e6:.2f} M numbers, "
            f"{flops[0] / 1e6:.0f} MFLOP a slice; discriminator {sizes[1] / 1e6:.2f} M, "
            f"{flops[1] / 1e6:.0f} MFLOP",
            f"{self.n_images / 1000:g} thousand images at most in batches of {self.batch_size}, a "
            f"report every {self.images_per_report / 1000:g} thousand",
            f"{self.recipe.loss}, learning rate {self.recipe.learning_rate:g}, γ "
            f"{self.recipe.gamma:.4g} every {self.recipe.penalty_every}, {self.recipe.dtype}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def train_gan(
    volumes: Volume | str | os.PathLike[str] | Sequence[Volume | str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    labels: str = "classes",
    callback: Callable[[Mapping[str, Any]], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> Gan | GanPlan:
    """Train a generator on the label slices of one or several samples.

    Parameters
    ----------
    volumes : Volume, str or path, or a sequence of these
        Each with a label image of that name.
    out : str or path
        ``.keras`` file to write, on a local disk.
    labels : str
        Name of the label image.
    callback : callable, optional
        Called after each report with what was written to the log.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted training is always continued.
    dry_run : bool
        Return the plan and write nothing.
    **options
        Fields of :class:`GanOptions`.

    Returns
    -------
    Gan
        What was written; ``.run["reports"]`` has distances and class fractions.

    Raises
    ------
    ValueError
        When options or slices cannot work; see :func:`cvdask.synthesis.slices.open_slices`.
    FileExistsError
        When something else lies at ``out``.
    FloatingPointError
        When a loss is not finite before any generator was worth keeping.
    """
    choice = _choose(options)
    files = GanFiles.beside(out)
    backend()
    listed = [volumes] if isinstance(volumes, Volume | str | os.PathLike) else list(volumes)
    samples = [one if isinstance(one, Volume) else os.fspath(one) for one in listed]
    slices = open_slices(
        samples,
        labels,
        classes=choice.classes,
        resolution=choice.resolution,
        crop=choice.crop,  # type: ignore[arg-type]
        reduction=choice.reduction,
        slices_per_sample=3 if choice.continuity == "volume" else 1,
        max_span=LARGEST_SPAN,
        # The paper walks through the stack; slices that follow one another share a label.
        shuffle=choice.preset != "paper",
        seed=choice.seed,
        z_range=choice.z_range,
        exclude=choice.exclude,
    )
    if dry_run:
        return plan(slices, choice)
    return train(slices, choice, files, callback=callback, resume=resume, overwrite=overwrite)


def _choose(options: Mapping[str, Any]) -> GanOptions:
    known = [one.name for one in fields(GanOptions)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"options of a training are {', '.join(known)}. Received: {unknown}")
    return GanOptions(**options)


def plan(slices: SliceSet, options: GanOptions, *, gpu: bool | None = None) -> GanPlan:
    """Decide what was left open.

    Parameters
    ----------
    slices : SliceSet
    options : GanOptions
    gpu : bool, optional
        Whether it is for a GPU; by default what this process sees.
    """
    gpu = has_gpu() if gpu is None else gpu
    paper, resolution = options.preset == "paper", slices.resolution

    def chosen(name: str, otherwise: Any) -> Any:
        value = getattr(options, name)
        return otherwise if value is None else value

    width = chosen("width", min(512, max(16, 16384 // resolution)) if gpu else 8)
    architecture = Architecture(
        resolution=resolution,
        n_channels=slices.n_channels,
        n_slices=slices.depth,
        preset=options.preset,
        continuity=options.continuity,
        head=options.head,
        width=width,
        max_width=chosen("max_width", max(width, 512 if gpu else 64)),
        latent=chosen("latent", 512 if gpu else 128),
        n_mapping=chosen("n_mapping", 8 if paper else 2),
    )
    batch_size = chosen("batch_size", min(32, max(4, 32 * 256 // resolution)))
    precision = options.mixed_precision
    half = precision == "mixed_bfloat16" or (precision == "auto" and gpu)
    kimg = chosen("kimg", 5000 if gpu else 300)
    recipe = Recipe(
        loss=options.loss,
        learning_rate=chosen(
            "learning_rate", RATES_PAPER.get(resolution, RATE_PAPER) if paper else 0.0025
        ),
        gamma=chosen(
            "gamma",
            GAMMA_PAPER if paper else max(LEAST_GAMMA, GAMMA * resolution**2 / batch_size),
        ),
        penalty_every=chosen("penalty_every", 1 if paper else 16),
        path_every=chosen("path_every", 0 if paper else 4 if gpu else 16),
        mixing=options.mixing,
        augment=options.augment,
        noise=chosen("noise", paper),
        last_rate=1.0 if paper else LAST_RATE,
        share_weight=chosen("share_weight", 0.0 if paper else SHARE_WEIGHT),
        augment_pace=min(AUGMENT_PACE, AUGMENT_SHARE * 1000 * kimg),
        dtype="bfloat16" if half else "float32",
    )
    report_kimg = chosen("report_kimg", 50 if gpu else 10)
    return GanPlan(
        architecture=architecture,
        recipe=recipe,
        n_slices=slices.n_slices,
        batch_size=batch_size,
        n_images=max(batch_size, round(kimg * 1000)),
        images_per_report=max(batch_size, round(report_kimg * 1000)),
        ema_images=1000 * chosen("ema_kimg", batch_size * HALF_LIFE / 1000),
        notes=tuple(slices.notes),
    )


def growth(architecture: Architecture, progress: float) -> tuple[int, float]:
    """Return the resolution that is learned, and how far it is faded in.

    In preset ``paper`` every resolution is faded in and then trained as long again, the finest
    three times as long.

    Parameters
    ----------
    architecture : Architecture
    progress : float
        Share of the training that is over, 0 to 1.

    Examples
    --------
    >>> paper = Architecture(32, 3, 10, preset="paper")
    >>> [growth(paper, share) for share in (0, 1 / 7, 1.5 / 7, 2.5 / 7, 3.5 / 7, 1)]
    [(8, 1.0), (16, 0.0), (16, 0.5), (16, 1.0), (32, 0.5), (32, 1.0)]
    """
    if architecture.preset != "paper":
        return architecture.resolution, 1.0
    levels = architecture.levels[1:]
    position = progress * (2 * len(levels) + 1)
    if position < 1:
        return levels[0], 1.0
    number = 1 + int((position - 1) / 2)
    if number >= len(levels):
        return levels[-1], 1.0
    return levels[number], min(1.0, round(position - 1 - 2 * (number - 1), 9))


# ---------------------------------------------------------------------------------------------
# The record of a run


def _provenance(slices: SliceSet, options: GanOptions) -> dict[str, Any]:
    return {
        "stage": "train-gan",
        "version": __version__,
        "options": options.as_dict(),
        "inputs": [json.loads(json.dumps(slices.describe()))],
    }


def _begin(
    files: GanFiles,
    provenance: Mapping[str, Any],
    slices: SliceSet,
    options: GanOptions,
    *,
    resume: bool,
    overwrite: bool,
) -> dict[str, Any]:
    """Look at the destination, clear it when it is to be replaced, and write the run record."""
    existing = existing_record(files.record, files.out)
    state = standing(os.fspath(files.out), existing, provenance, resume=resume, overwrite=overwrite)
    if existing and state != "new" and (state == "begun" or files.out.exists()):
        return dict(existing)
    for path in (files.out, files.log, files.state, files.previous, files.best):
        path.unlink(missing_ok=True)
    shutil.rmtree(files.samples, ignore_errors=True)
    files.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "state": "begun",
        "provenance": dict(provenance),
        "versions": framework_versions(),
        "plan": plan(slices, options).as_dict(),
    }
    write_json_file(files.record, record)
    return record


# ---------------------------------------------------------------------------------------------
# The training


def train(
    slices: SliceSet,
    options: GanOptions,
    files: GanFiles,
    *,
    distance: Distance | None = None,
    callback: Callable[[Mapping[str, Any]], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Gan:
    """Train on slices that are open: see :func:`train_gan`.

    Parameters
    ----------
    slices : SliceSet
    options : GanOptions
    files : GanFiles
    distance : callable, optional
        From (n, R, R) channel numbers to how far they are from real slices; by default the Fréchet
        distance of ``frechet``.
    callback, resume, overwrite
        As in :func:`train_gan`.
    """
    # A process that the scheduler lets share a GPU must not take all of its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    provenance = _provenance(slices, options)
    record = _begin(files, provenance, slices, options, resume=resume, overwrite=overwrite)
    if record["state"] == "complete":
        return gan_file.load(files.out)
    training = _Training(slices, options, files, record, distance)
    try:
        training.run(callback)
    finally:
        training.close()
    return training.finish()


class _Training:
    """A training under way."""

    def __init__(
        self,
        slices: SliceSet,
        options: GanOptions,
        files: GanFiles,
        record: dict[str, Any],
        distance: Distance | None,
    ) -> None:
        self.slices, self.options, self.files, self.record = slices, options, files, record
        self.plan = GanPlan.from_dict(record["plan"])
        self.floor: float | None = None
        if distance is None:
            from cvdask.synthesis.frechet import reference_of

            reference = reference_of(slices)
            self.floor = reference.floor.frechet

            def distance(made: np.ndarray) -> float:
                return reference.distance(made).frechet

        seed, architecture = options.seed, self.plan.architecture
        self.judge = Judge(slices, architecture.n_latent, options.n_judged, seed, distance)
        self.packing = Packing.of(architecture, "generator")
        initial = start(architecture, seed)
        found = load_state(files, {name: one.shape for name, one in initial.items()})
        self.standing, self.state = found or (Standing(), initial)
        rewrite_log(files.log, self.standing.records)
        self.devices = Devices(devices(options.n_devices), self.standing.largest)
        self.not_finite = ""
        self._steps: dict[int, Steps] = {}
        self._generators: dict[int, Generator] = {}
        self._begun = time.monotonic() - self.standing.seconds

    def close(self) -> None:
        """End the threads."""
        self.devices.close()

    @property
    def progress(self) -> float:
        """Share that is over, by images or by the clock."""
        by_images = self.standing.n_images / self.plan.n_images
        if self.options.max_minutes is None:
            return by_images
        return max(by_images, (time.monotonic() - self._begun) / (60 * self.options.max_minutes))

    def run(self, callback: Callable[[Mapping[str, Any]], None] | None) -> None:
        """Take steps and report, until it is over or a loss is not finite."""
        size, now = self.plan.batch_size, self.standing
        supply: Iterator[Batch] = self.slices.batches(size, now.step)
        title = f"training {self.plan.architecture.resolution}²"
        try:
            with ProgressBar(title, self.plan.n_images, unit="images") as bar:
                bar.advance(now.n_images, 0)
                if not now.records:
                    self._report([], callback)
                while self.progress < 1 and not self.not_finite:
                    told, begun = [], (now.n_images, time.monotonic())
                    while (
                        self.progress < 1 and now.n_images - begun[0] < self.plan.images_per_report
                    ):
                        told.append(self._step(next(supply)))
                        bar.advance(size, size)
                    rate = (now.n_images - begun[0]) / (time.monotonic() - begun[1])
                    self._report(told, callback, rate)
        finally:
            supply.close()  # type: ignore[attr-defined]

    def _step(self, batch: Batch) -> dict[str, Any]:
        """Take all phases of one step."""
        architecture, recipe, now = self.plan.architecture, self.plan.recipe, self.standing
        level, fade = growth(architecture, self.progress)
        steps = self._steps_at(level)
        told: dict[str, Any] = {}
        for phase in recipe.phases(now.step):
            # The path length takes half of the batch, as in the original.
            n = len(batch.place) if phase != "path" else max(1, len(batch.place) // 2)
            key = (self.options.seed, now.step, PHASES.index(phase))
            samples: dict[str, Any] = {
                "channels": batch.channels[:n],
                "places": batch.place[:n],
                "fade": np.float32(fade),
                "grain": np.float32(recipe.grain(self.progress)),
                "share_weight": np.float32(recipe.share_weight / recipe.rate(self.progress)),
                **draw(architecture, recipe, key, n),
            }
            self.state, found = self.devices.step(
                steps, phase, self.state, samples, self._pace(level, n)
            )
            told |= {f"{phase}/{name}": one for name, one in found.items() if name != "mean_style"}
        now.step += 1
        now.n_images += len(batch.place)
        return told

    def _steps_at(self, level: int) -> Steps:
        if level not in self._steps:
            one = self.plan
            self._steps[level] = Steps(one.architecture, one.recipe, has_gpu(), level)
        return self._steps[level]

    def _pace(self, level: int, n: int) -> dict[str, np.float32]:
        recipe = self.plan.recipe
        rate = recipe.learning_rate
        if self.plan.architecture.preset == "paper" and self.options.learning_rate is None:
            rate = RATES_PAPER.get(level, RATE_PAPER)
        rate *= recipe.rate(self.progress)
        half_life = min(self.plan.ema_images, RAMP_UP * max(1, self.standing.n_images))
        kept = 0.5 ** (self.plan.batch_size / half_life)
        return {"rate": np.float32(rate), "kept": np.float32(kept), "n_images": np.float32(n)}

    # -----------------------------------------------------------------------------------------
    # Reports

    def _report(
        self,
        told: list[dict[str, Any]],
        callback: Callable[[Mapping[str, Any]], None] | None,
        rate: float | None = None,
    ) -> None:
        """Judge the average generator, keep the best, write where the training stands."""
        now, files = self.standing, self.files
        arrays = {name: _numpy(one) for name, one in self.state.items()}
        means = _means(told)
        if not all(map(math.isfinite, means.values())) or not _all_finite(arrays):
            self.not_finite = self._lower(means)
            return
        level, _ = growth(self.plan.architecture, self.progress)
        grain = self.plan.recipe.grain(self.progress)
        generator = self._generator_at(level, grain, arrays)
        made = self.judge.make(generator)
        distance, fractions = self.judge.judge(made)
        files.samples.mkdir(exist_ok=True)
        self.judge.draw(made, files.samples / f"{now.n_images // 1000:06d}.png")
        now.seconds = time.monotonic() - self._begun
        names = self.slices.names
        record = {
            "step": now.step,
            "kimg": round(now.n_images / 1000, 3),
            "seconds": round(now.seconds, 3),
            "images_per_second": None if rate is None else round(rate, 3),
            "eta_minutes": self._eta(rate),
            "level": level,
            "distance": distance,
            "floor": self.floor,
            "fractions": dict(zip(names, fractions, strict=True)),
            "real_fractions": dict(zip(names, self.judge.real_shares, strict=True)),
            "augment": float(arrays["augment/probability"]),
            "noise": grain,
            "largest": self.devices.largest,
            **means,
        }
        now.records.append(record)
        now.largest = self.devices.largest
        finest = level == self.plan.architecture.resolution
        scored = score(distance, grain, fractions, self.judge.real_shares)
        better = scored is None or now.best_score is None or scored < now.best_score
        if finest and now.step and better:
            now.best_distance, now.best_step, now.best_score = distance, now.step, scored
            gan_file.save(self._gan(grain, arrays, {"report": record}), files.best)
        with files.log.open("a") as log:
            log.write(json.dumps(record, allow_nan=False) + "\n")
        save_state(files, now, arrays)
        if callback is not None:
            callback(record)

    def _eta(self, rate: float | None) -> float | None:
        """Return the minutes that are left, by images or by the clock."""
        if rate is None:
            return None
        left = (self.plan.n_images - self.standing.n_images) / rate / 60
        if self.options.max_minutes is not None:
            left = min(left, self.options.max_minutes - (time.monotonic() - self._begun) / 60)
        return round(max(0.0, left), 2)

    def _average(self, grain: float, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays of the average generator, with this share of its finest noise."""
        kept = Packing.of(replace(self.plan.architecture, fine_noise=False), "generator").shapes
        return {
            name: one if name in kept else one * np.float32(grain)
            for name, one in self.packing.unpack(arrays["average"]).items()
        }

    def _generator_at(
        self, level: int, grain: float, arrays: Mapping[str, np.ndarray]
    ) -> Generator:
        average = self._average(grain, arrays)
        if level not in self._generators:
            size = min(64, max(1, 64 * 64**2 // level**2))
            self._generators[level] = Generator(
                self.plan.architecture, average, arrays[MEAN_STYLE], size, level
            )
        self._generators[level].take(average, arrays[MEAN_STYLE])
        return self._generators[level]

    def _gan(self, grain: float, arrays: Mapping[str, np.ndarray], more: Mapping[str, Any]) -> Gan:
        slices = self.slices
        architecture = replace(self.plan.architecture, fine_noise=grain > 0)
        average = self._average(grain, arrays)
        weights = {name: average[name] for name in Packing.of(architecture, "generator").shapes}
        places = slices.places(np.arange(slices.n_slices))
        return Gan(
            architecture=architecture,
            classes=dict(zip(slices.values[1:], slices.names[1:], strict=True)),
            colors={v: c for v, c in slices.colors.items() if v in slices.values},
            voxel_size_nm=slices.voxel_size_nm,
            places=(float(places.min()), float(places.max())),
            run={**self.record["provenance"], "versions": self.record["versions"], **more},
            weights={**weights, MEAN_STYLE: arrays[MEAN_STYLE]},
        )

    def _lower(self, means: Mapping[str, float]) -> str:
        odd = [name for name, value in means.items() if not math.isfinite(value)]
        kept = f"the generator of step {self.standing.best_step} is kept"
        if not self.standing.best_step:
            kept = "none is worth keeping"
        recipe = self.plan.recipe
        lower = [f"learning_rate ({recipe.learning_rate:g})"]
        if recipe.dtype != "float32":
            lower.append("the demand on precision (mixed_precision float32)")
        return (
            f"{' and '.join(odd) or 'a weight'} was not finite before step {self.standing.step}; "
            f"{kept}. Lower {' or '.join(lower)}, or raise gamma ({recipe.gamma:.4g})"
        )

    def finish(self) -> Gan:
        """Let the best generator be the result."""
        files, now = self.files, self.standing
        if not files.best.exists():
            raise FloatingPointError(
                self.not_finite
                or "the training ended before the finest resolution was learned: "
                "give it more kimg or max_minutes"
            )
        if self.not_finite:
            warnings.warn(self.not_finite, stacklevel=4)
        best = gan_file.load(files.best)
        result = {
            "n_images": now.n_images,
            "minutes": round(now.seconds / 60, 3),
            "best_step": now.best_step,
            "best_distance": now.best_distance,
            "floor": self.floor,
            "stopped": self.not_finite,
            "reports": now.records,
        }
        run = {key: value for key, value in best.run.items() if key != "report"}
        gan_file.save(replace(best, run={**run, **result}), files.out)
        write_json_file(files.record, {**self.record, "state": "complete", "result": result})
        for path in (files.state, files.previous, files.best):
            path.unlink(missing_ok=True)
        return gan_file.load(files.out)


def _numpy(array: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(array))


def _all_finite(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(bool(np.isfinite(one).all()) for one in arrays.values())


def _means(told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average what the steps since the last report told."""
    names = sorted({name for one in told for name in one})
    values = {name: [float(_numpy(one[name])) for one in told if name in one] for name in names}
    return {name: float(np.mean(found)) for name, found in values.items()}
