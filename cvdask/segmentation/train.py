"""How does a network learn from a few annotated patches, and how good is it then?

1. ``patches`` chooses the patches and divides them. What is going to happen is written to
   ``<out>.run.json`` before the first step.
2. Each fold: augmented crops are prepared in a thread while the network takes its step. A moving
   average of its weights is the network that is judged, on whole validation patches, after every
   epoch; the best is kept in ``<out>.fold<k>.keras``.
3. After every epoch a line goes to ``<out>.jsonl`` and everything that training needs to go on to
   ``<out>.state.npz``. Kill it anywhere and call it again: it goes on where it was, and ends with
   the same numbers.
4. The best fold's network becomes ``out`` (or one that learned from all patches, ``refit``), with
   all folds' scores inside; the curves go to ``<out>.png``.

``<out>`` stands for the path without ``.keras``.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from cvdask import __version__
from cvdask.engine.ledger import standing
from cvdask.networks.device import framework_versions, has_gpu, is_out_of_memory
from cvdask.networks.files import existing_record, write_json_file
from cvdask.networks.prefetch import prefetch
from cvdask.segmentation import model_file
from cvdask.segmentation.crops import CropPlan, Data, batches
from cvdask.segmentation.forward import supports_bfloat16
from cvdask.segmentation.losses import SegmentationLoss, balanced_weights
from cvdask.segmentation.model_file import UNet
from cvdask.segmentation.patches import Candidate, Fold, Selection, SplitBy, read_patch, select
from cvdask.segmentation.run_files import (
    FoldState,
    RunFiles,
    load_state,
    rewrite_log,
    save_state,
)
from cvdask.segmentation.unet import Architecture, build, stride
from cvdask.volume.colors import PALETTE, UNANNOTATED
from cvdask.volume.objects import redact
from cvdask.volume.store import Volume, open_volume, volume_digest

# Batches that wait for the network: enough to ride out one slow crop.
N_PREPARED = 3
# The learning rate rises over this share of the training, and over no more than so many steps.
WARM_UP_SHARE = 0.05
WARM_UP_STEPS = 50
# Longer gradients are shortened to this: one odd batch must not undo an epoch.
LARGEST_GRADIENT = 1.0
# An epoch without a stated length shows about this many times the voxels of the training patches.
VIEWS_PER_EPOCH = 2
STEPS_PER_EPOCH = (10, 200)

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")


@dataclass(frozen=True)
class TrainingOptions:
    """What can be chosen about a training."""

    preset: str = "fast"
    """Network: ``fast``, or the published one, ``paper``."""
    base_width: int | None = None
    """Channels of the first block; None is the preset's."""
    depth: int | None = None
    """Times the network halves its input; None is the preset's."""
    n_dense: int | None = None
    """Densely connected convolutions at the bottom; None is the preset's."""
    folds: int = 1
    """1 divides the patches once, 20 : 5 : 5; more cross-validate, each part validating once."""
    split_by: SplitBy = "region"
    """What stays whole: an image ``region``, or a ``slice`` where slices are unrelated images."""
    refit: bool = False
    """Train once more on all patches, without validation, and let that network be the result."""
    n_patches: int | None = 30
    """Patches to draw; None takes all that fit."""
    patch_size: int = 512
    """Largest extent of a patch along y and x, in voxels."""
    crop: int = 256
    """Extent of what the network sees in a training step, in voxels."""
    batch_size: int = 8
    """Crops per step."""
    epochs: int = 100
    """Epochs of each fold, at most."""
    max_minutes: float | None = None
    """Minutes of each fold, at most; the learning rate then follows the clock. None: no limit."""
    steps_per_epoch: int | None = None
    """Steps between two validations; None shows the training patches' voxels about twice."""
    patience: int | None = 25
    """Epochs without a better score after which a fold ends; None never does."""
    learning_rate: float = 1e-3
    """Highest learning rate of AdamW, after the warm-up and before the cosine decline."""
    weight_decay: float = 1e-4
    """Decay of the kernels per step, in units of the learning rate."""
    ema: float = 0.99
    """Share of the old in the moving average of the weights, per step; 0 has no average."""
    dice: float = 0.5
    """Share of the Dice term in the loss; the rest is cross-entropy."""
    boundary: float = 0.0
    """How much more a voxel beside another class counts in the cross-entropy; 1 is twice."""
    mixed_precision: str = "auto"
    """``float32``, ``mixed_float16``, ``mixed_bfloat16``, or ``auto``: half precision on a GPU."""
    z_range: tuple[int, int] | None = None
    """First slice and one past the last that patches come from; None takes all."""
    classes: Sequence[str] | Mapping[int, str] | None = None
    """Names of the classes to learn, the others being background; or names for label values."""
    alone: str | None = None
    """Learn only this one of the classes, on the very patches that are drawn for all of them."""
    augment: bool = True
    """Whether crops are turned, warped, and altered in intensity."""
    upright: bool = False
    """Crops are mirrored but turned by a few degrees only: for tissue of one direction."""
    balanced: bool = True
    """Whether rare classes are guaranteed patches, crops and weight."""
    seed: int = 0
    """The same seed draws the same patches, weights and crops."""

    def __post_init__(self) -> None:
        if self.z_range is not None:
            object.__setattr__(self, "z_range", tuple(self.z_range))
        for name, least in (
            ("folds", 1),
            ("n_patches", 2),
            ("patch_size", 1),
            ("crop", 1),
            ("batch_size", 1),
            ("epochs", 1),
            ("steps_per_epoch", 1),
            ("patience", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and (value != int(value) or value < least):
                raise ValueError(f"{name} is a whole number of at least {least}. Received: {value}")
        for name, low, high in (
            ("max_minutes", 0, math.inf),
            ("learning_rate", 0, 1),
            ("weight_decay", 0, 1),
            ("ema", 0, 1),
            ("dice", 0, 1),
            ("boundary", 0, math.inf),
        ):
            value = getattr(self, name)
            if (
                value is not None
                and not low <= value < high
                and not (name == "dice" and value == 1)
            ):
                raise ValueError(f"{name} lies between {low} and {high}. Received: {value}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(
                f"mixed_precision is one of {', '.join(PRECISIONS)}. "
                f"Received: {self.mixed_precision!r}"
            )
        if self.split_by not in ("region", "slice"):
            raise ValueError(f"split_by is 'region' or 'slice'. Received: {self.split_by!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values."""
        values = asdict(self)
        if isinstance(self.classes, Mapping):
            values["classes"] = {str(value): name for value, name in self.classes.items()}
        return dict(json.loads(json.dumps(values)))


def train(
    volumes: Volume | str | os.PathLike[str] | Sequence[Volume | str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    labels: str = "annotations",
    callback: Callable[[Mapping[str, Any]], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> UNet | Selection:
    """Train a network on the annotated slices of one or several samples.

    Sets the seeds of Python's, NumPy's and the backend's global random generators: networks are
    initialised from them.

    Parameters
    ----------
    volumes : Volume, str or path, or a sequence of these
        Images, each with a label image of that name.
    out : str or path
        ``.keras`` file to write, on a local disk.
    labels : str
        Name of the label image with the annotations, 255 where nobody has annotated.
    callback : callable, optional
        Called after each epoch with what was written to the log.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted training is always continued.
    dry_run : bool
        Return the selection of patches and write nothing.
    **options
        Fields of :class:`TrainingOptions`.

    Returns
    -------
    UNet
        What was written; ``.run["scores"]`` has the scores of all folds.

    Raises
    ------
    ValueError
        When options or annotations cannot work; see :func:`cvdask.segmentation.patches.select`.
    FileExistsError
        When something else lies at ``out``.
    FloatingPointError
        When the loss is not finite before any network was worth keeping.
    """
    choice = _choose(options)
    files = RunFiles.beside(out)
    listed = [volumes] if isinstance(volumes, Volume | str | os.PathLike) else volumes
    samples = [one if isinstance(one, Volume) else open_volume(one) for one in listed]
    network = {key: getattr(choice, key) for key in ("preset", "base_width", "depth", "n_dense")}
    step = stride(Architecture(n_classes=2, **network))
    shared = ("n_patches", "folds", "split_by", "z_range", "classes", "balanced", "seed")
    selection = select(
        samples,
        labels,
        size=choice.patch_size,
        stride=step,
        **{key: getattr(choice, key) for key in shared},
    )
    if choice.alone is not None:
        selection = selection.only(choice.alone)
    crop = min(choice.crop, selection.size) // step * step
    if crop < 1:
        raise ValueError(
            f"a crop must hold at least the network's stride of {step} voxels. Received: "
            f"{choice.crop}. Choose a larger crop or a network of less depth"
        )
    if crop != choice.crop:
        note = (
            f"crops of {crop} instead of {choice.crop}: patches of {selection.size}, stride {step}"
        )
        selection = replace(selection, notes=(*selection.notes, note))
    if choice.mixed_precision not in ("auto", _precision(choice.mixed_precision)):
        wanted = choice.mixed_precision
        note = f"float32 instead of {wanted}: this processor has no instructions for it"
        selection = replace(selection, notes=(*selection.notes, note))
    if dry_run:
        return selection

    # Look at the destination, and say what is going to happen.
    provenance = _provenance(samples, labels, choice)
    record = _begin(files, provenance, selection, resume=resume, overwrite=overwrite)
    if record["state"] == "complete":
        _tidy(files, len(record["folds"]))  # a kill behind the record leaves what follows here
        return model_file.describe(files.out)
    for note in selection.notes if not record["folds"] else ():
        warnings.warn(note, stacklevel=2)

    # Train fold after fold; those that an earlier run has finished are in the record.
    # A process that the scheduler lets share a GPU must not take all of its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    architecture = Architecture(n_classes=len(selection.classes) + 1, **network)
    values = tuple(selection.classes)
    data = [read_patch(candidate.patch, values) for candidate in selection.candidates]
    folds = list(selection.folds)
    if choice.refit:
        folds.append(Fold(tuple(range(len(data))), ()))
    for number, fold in enumerate(folds, 1):
        if number > len(record["folds"]):
            task = _Task(number, fold, selection, architecture, choice, crop, provenance)
            record["folds"].append(_train_fold(task, data, files, callback))
            write_json_file(files.record, record)

    # Keep the best.
    scores = summarize(record["folds"], tuple(selection.classes.values()))
    unet, model = model_file.load(files.fold(scores["chosen_fold"]))
    # A reduced precision is tried on these before it is used.
    judges = [asdict(one.patch) for one in _judges(selection, scores["best_fold"])]
    run = {**provenance, "versions": framework_versions(), "scores": scores, "validation": judges}
    unet = replace(unet, run=run)
    _draw_curves(files.log, files.curves, tuple(selection.classes.values()))
    model_file.save(unet, model, files.out)
    write_json_file(files.record, {**record, "state": "complete", "scores": scores})
    _tidy(files, len(folds))
    return unet


def _tidy(files: RunFiles, n_folds: int) -> None:
    """Remove what only a training under way needs, and the one fold's copy of the network."""
    for path in (files.state, *files.leftovers(), *([files.fold(1)] if n_folds == 1 else [])):
        path.unlink(missing_ok=True)


def _judges(selection: Selection, fold: int) -> list[Candidate]:
    """Return what a fold was validated on; nothing that names a place with a secret in it."""
    found = [selection.candidates[i] for i in selection.folds[fold - 1].validation]
    return [one for one in found if redact(one.patch.volume_url) == one.patch.volume_url]


def _choose(options: Mapping[str, Any]) -> TrainingOptions:
    known = [one.name for one in fields(TrainingOptions)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"options of a training are {', '.join(known)}. Received: {unknown}")
    return TrainingOptions(**options)


# ---------------------------------------------------------------------------------------------
# The record of a run


def _provenance(samples: Sequence[Volume], labels: str, options: TrainingOptions) -> dict[str, Any]:
    inputs = [
        {
            "path": redact(sample.url),
            "digest": volume_digest(sample),
            "labels": labels,
            "labels_digest": volume_digest(sample.label(labels)),
        }
        for sample in samples
    ]
    return {
        "stage": "train-unet",
        "version": __version__,
        "options": options.as_dict(),
        "inputs": inputs,
    }


def _begin(
    files: RunFiles,
    provenance: Mapping[str, Any],
    selection: Selection,
    *,
    resume: bool,
    overwrite: bool,
) -> dict[str, Any]:
    """Look at the destination, clear it when it is to be replaced, and write the run record."""
    existing = existing_record(files.record, files.out)
    state = standing(os.fspath(files.out), existing, provenance, resume=resume, overwrite=overwrite)
    if existing and state != "new" and (state == "begun" or files.out.exists()):
        return dict(existing)
    leftovers = files.stem.parent.glob(f"{files.stem.name}.fold*.keras")
    for path in (files.out, files.log, files.state, files.curves, *leftovers):
        path.unlink(missing_ok=True)
    files.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "state": "begun",
        "provenance": dict(provenance),
        "versions": framework_versions(),
        "selection": selection.as_dict(),
        "folds": [],
    }
    write_json_file(files.record, record)
    return record


# ---------------------------------------------------------------------------------------------
# One fold


@dataclass(frozen=True)
class _Task:
    """What one fold needs to know."""

    number: int
    fold: Fold
    selection: Selection
    architecture: Architecture
    options: TrainingOptions
    crop: int
    provenance: Mapping[str, Any]

    @property
    def n_classes(self) -> int:
        return self.architecture.n_classes

    @property
    def crops(self) -> CropPlan:
        """How training crops are drawn."""
        options = self.options
        return CropPlan(
            n_classes=self.n_classes,
            size=self.crop,
            batch_size=options.batch_size,
            n_steps=self.n_steps,
            epochs=options.epochs,
            key=(options.seed, self.number),
            balanced=options.balanced,
            augmented=options.augment,
            upright=options.upright,
        )

    @property
    def n_steps(self) -> int:
        """Steps of an epoch."""
        if self.options.steps_per_epoch is not None:
            return self.options.steps_per_epoch
        n_voxels = len(self.fold.train) * self.selection.size**2
        n = math.ceil(VIEWS_PER_EPOCH * n_voxels / (self.crop**2 * self.options.batch_size))
        return min(max(n, STEPS_PER_EPOCH[0]), STEPS_PER_EPOCH[1])


def _train_fold(
    task: _Task,
    data: Data,
    files: RunFiles,
    callback: Callable[[Mapping[str, Any]], None] | None,
) -> dict[str, Any]:
    """Train one network and keep its best weights; return the fold's scores.

    Parameters
    ----------
    task : _Task
    data : sequence of (image (S, S), target (S, S) uint8)
        All patches of the selection.
    files : RunFiles
    callback : callable, optional
    """
    options, number = task.options, task.number
    names = tuple(task.selection.classes.values())

    # Normalise by the training patches.
    mean, sd = _statistics([data[i][0] for i in task.fold.train])
    training = [_normalized(*data[i], mean, sd) for i in task.fold.train]
    validation = [_normalized(*data[i], mean, sd) for i in task.fold.validation]
    unet = UNet(
        architecture=task.architecture,
        classes=dict(task.selection.classes),
        mean=mean,
        sd=sd,
        voxel_size_nm=task.selection.voxel_size_nm,
        image_dtype=task.selection.image_dtype,
        run=dict(task.provenance),
    )

    # Build the network, and a second one that holds the moving average of its weights.
    counts = np.sum(
        [np.bincount(t[t != UNANNOTATED], minlength=task.n_classes) for _, t in training], 0
    )
    weights = balanced_weights(counts.tolist()) if options.balanced else None
    loss = SegmentationLoss(task.n_classes, weights, dice=options.dice, boundary=options.boundary)
    model, average = _networks(task, loss)
    arrays = {
        "model": model.variables,
        "average": average.variables,
        "optimizer": model.optimizer.variables,
    }
    state = load_state(files.state, number, arrays)
    state = state or FoldState(fold=number, largest_batch=options.batch_size)
    follow = _as_graph(partial(_follow, average, model))
    rewrite_log(files.log, number, state.records)

    # Epoch after epoch: steps, validation, log, state.
    not_finite = ""
    begun = time.monotonic() - state.seconds
    supply = prefetch(batches(training, task.crops, state.epoch), N_PREPARED)
    try:
        while not state.stopped and state.epoch < options.epochs:
            epoch_begun = time.monotonic()
            losses: list[float] = []
            for _ in range(task.n_steps):
                images, targets = next(supply)
                progress = _progress(state.step, time.monotonic() - begun, task)
                if progress >= 1 and state.step:
                    break
                rate = learning_rate(state.step, progress, options.learning_rate)
                model.optimizer.learning_rate = rate
                losses.append(_step(model, images, targets, state))
                state.step += 1
                if not math.isfinite(losses[-1]):
                    not_finite = _not_finite(state, rate, task)
                    break
                share = min(options.ema, (1 + state.step) / (10 + state.step))
                follow(ops.convert_to_tensor(share, "float32"))
            if not_finite or not losses:
                break
            training_seconds = time.monotonic() - epoch_begun
            validation_loss, confusion = validate(average, validation, loss, task.n_classes)
            scores = f1_scores(confusion)[1:]  # without background
            score = _mean(scores)
            state.epoch += 1
            state.seconds = time.monotonic() - begun
            record = {
                "fold": number,
                "epoch": state.epoch,
                "loss": float(np.mean(losses)),
                "val_loss": validation_loss,
                "f1": dict(zip(names, map(_finite, scores), strict=True)),
                "mean_f1": _finite(score),
                "learning_rate": rate,
                "seconds": round(state.seconds, 3),
                "samples_per_second": round(len(losses) * options.batch_size / training_seconds, 3),
            }
            state.records.append(record)
            # Without validation the last network is the one to keep.
            if not validation or score > (-1.0 if state.best_score is None else state.best_score):
                state.best_score, state.best_epoch = _finite(score), state.epoch
                run = {
                    **unet.run,
                    "versions": framework_versions(),
                    "fold": number,
                    "epoch": state.epoch,
                }
                kept = replace(unet, run={**run, "f1": record["f1"]})
                model_file.save(kept, average, files.fold(number))
            if (
                options.patience
                and validation
                and state.epoch - state.best_epoch >= options.patience
            ):
                state.stopped = (
                    f"no better score since epoch {state.best_epoch} (patience {options.patience})"
                )
            with files.log.open("a") as log:
                log.write(json.dumps(record, allow_nan=False) + "\n")
            save_state(files.state, state, arrays)
            if callback is not None:
                callback(record)
    finally:
        supply.close()

    # Judge the best network on the test patches.
    if not_finite and not state.best_epoch:
        raise FloatingPointError(not_finite)
    if not_finite:
        warnings.warn(f"fold {number}: {not_finite}", stacklevel=3)
    best = state.records[state.best_epoch - 1]
    result = {
        "fold": number,
        "best_epoch": state.best_epoch,
        "n_epochs": state.epoch,
        "minutes": round(state.seconds / 60, 3),
        "stopped": not_finite or state.stopped,
        "batch_size": state.largest_batch,
        "validated": bool(validation),
        "f1": best["f1"],
        "mean_f1": best["mean_f1"],
        "last_mean_f1": state.records[-1]["mean_f1"],
    }
    if task.fold.test:
        _, model = model_file.load(files.fold(number))
        _compile(model)
        test = [_normalized(*data[i], mean, sd) for i in task.fold.test]
        scores = f1_scores(validate(model, test, loss, task.n_classes)[1])[1:]
        result["test_f1"] = dict(zip(names, map(_finite, scores), strict=True))
        result["test_mean_f1"] = _finite(_mean(scores))
    return result


def _statistics(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return mean and standard deviation of all pixels of the training patches."""
    pixels = np.stack(images).astype(np.float64)
    mean, sd = float(pixels.mean()), float(pixels.std())
    if not (math.isfinite(mean) and math.isfinite(sd)) or sd == 0:
        raise ValueError(
            f"training patches need finite grey values that differ. Received: mean {mean}, "
            f"standard deviation {sd}, from {pixels.min()} to {pixels.max()}"
        )
    return mean, sd


def _normalized(
    image: np.ndarray, target: np.ndarray, mean: float, sd: float
) -> tuple[np.ndarray, np.ndarray]:
    return ((image.astype(np.float32) - np.float32(mean)) / np.float32(sd)), target


def _networks(task: _Task, loss: SegmentationLoss) -> tuple[keras.Model, keras.Model]:
    """Build the network that learns, and its average with the same weights."""
    options = task.options
    keras.utils.set_random_seed(options.seed + task.number)
    model = build(task.architecture, precision=_precision(options.mixed_precision))
    average = build(task.architecture)
    _follow(average, model, 0.0)
    optimizer = keras.optimizers.AdamW(
        options.learning_rate, weight_decay=options.weight_decay, global_clipnorm=LARGEST_GRADIENT
    )
    # Only kernels decay: pulling a scale, slope or bias to 0 changes what the network computes.
    optimizer.exclude_from_weight_decay(
        [one for one in model.trainable_variables if one.name != "kernel"]
    )
    _compile(model, optimizer, loss)
    # With half precision, compile wraps the optimizer in one that scales the loss.
    model.optimizer.build(model.trainable_variables)
    _compile(average)
    return model, average


def _compile(model: keras.Model, optimizer: Any = "sgd", loss: Any = None) -> None:
    backend = keras.backend.backend()
    # Measured on CPU: TensorFlow's own kernels are 1.4–2.5 times faster than what XLA makes.
    # JAX is nothing without its compiler; PyTorch's takes minutes for a network of this size.
    jit = {"jax": True, "torch": False}.get(backend, has_gpu())
    model.compile(optimizer=optimizer, loss=loss, jit_compile=jit)


def _precision(chosen: str) -> str:
    """Return what a network is trained in here: a processor without the instructions takes float32.

    It would emulate them: a step in bfloat16 then lasts tens of times as long as one in float32.
    """
    # bfloat16 has the range of float32 and needs no scaling of the loss; GPUs too old for it are
    # served by mixed_float16.
    if chosen == "auto":
        return "mixed_bfloat16" if has_gpu() else "float32"
    supported = {"mixed_bfloat16": supports_bfloat16, "mixed_float16": has_gpu}.get(chosen)
    return "float32" if supported is not None and not supported() else chosen


def _progress(step: int, seconds: float, task: _Task) -> float:
    """Return how much of a fold is over, by steps or by the clock, 0 to 1."""
    by_steps = step / (task.options.epochs * task.n_steps)
    if task.options.max_minutes is None:
        return by_steps
    return max(by_steps, seconds / (60 * task.options.max_minutes))


def learning_rate(step: int, progress: float, highest: float) -> float:
    """Rise linearly, then decline as a half cosine.

    Parameters
    ----------
    step : int
        Steps that were taken.
    progress : float
        Share of the training that is over, 0–1.
    highest : float

    Examples
    --------
    >>> [learning_rate(step, step / 1000, 1.0) for step in (0, 500, 1000)]
    [0.02, 0.5, 0.0]
    """
    rise = min(1.0, max((step + 1) / WARM_UP_STEPS, progress / WARM_UP_SHARE))
    return highest * rise * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def _step(model: keras.Model, images: np.ndarray, targets: np.ndarray, state: FoldState) -> float:
    """Take a step, or several smaller ones where the batch exceeds the device's memory.

    Returns the mean loss of the crops.
    """
    first, total = 0, 0.0
    while first < len(images):
        part = slice(first, first + state.largest_batch)
        try:
            # Whether Keras returns this batch's loss or the mean of all so far depends on its
            # version; after a reset both are the same.
            model.reset_metrics()
            total += float(model.train_on_batch(images[part], targets[part])) * len(images[part])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if state.largest_batch == 1:
                raise MemoryError(
                    f"one crop of {images.shape[1]} × {images.shape[2]} voxels exceeds the "
                    f"device's memory. Choose a smaller crop, base_width or depth"
                ) from error
            halved = max(1, state.largest_batch // 2)
            warnings.warn(
                f"a batch of {state.largest_batch} crops exceeds the device's memory: training "
                f"goes on with {halved}",
                stacklevel=5,
            )
            state.largest_batch = halved
            continue
        first += state.largest_batch
    return total / len(images)


def _not_finite(state: FoldState, rate: float, task: _Task) -> str:
    options = task.options
    kept = f"the weights of epoch {state.best_epoch} are kept" if state.best_epoch else "none kept"
    lower = [f"learning_rate ({options.learning_rate}; it was {rate:.2g} here)"]
    if options.mixed_precision not in ("auto", "float32"):
        lower.append(f"the demand on precision: mixed_precision {options.mixed_precision!r}")
    return (
        f"the loss was not finite at step {state.step} of epoch {state.epoch + 1}; {kept}. "
        f"Lower {' or '.join(lower)}"
    )


def _follow(average: keras.Model, model: keras.Model, share: float) -> None:
    """Move the average towards the network; ``share`` of the old remains.

    The running means and variances of a normalisation are averages already. Averaged again they
    would lag behind the weights, by more than a short training lasts; they are copied. Into memory
    of their own: JAX's training step overwrites the network's.
    """
    for old, new in zip(average.weights, model.weights, strict=True):
        value = ops.cast(ops.stop_gradient(ops.convert_to_tensor(new)), old.dtype)
        if old.trainable:
            kept = ops.stop_gradient(ops.convert_to_tensor(old)) * share
            old.assign(kept + value * (1 - share))
        else:
            old.assign(ops.copy(value))


def _as_graph(function: Callable[..., None]) -> Callable[..., None]:
    """Let TensorFlow run hundreds of small operations as one graph, in an eighth of the time."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function)


# ---------------------------------------------------------------------------------------------
# Scores


def validate(
    model: keras.Model, patches: Data, loss: SegmentationLoss, n_classes: int
) -> tuple[float | None, np.ndarray]:
    """Predict whole patches and compare.

    Parameters
    ----------
    model : keras.Model
        Compiled.
    patches : sequence of (image (S, S) float32 normalised, target (S, S) uint8)
    loss : SegmentationLoss
    n_classes : int

    Returns
    -------
    loss : float or None
        Mean over the patches; None without patches.
    confusion : (n_classes, n_classes) int64
        Annotated voxels by true and predicted channel.
    """
    losses = []
    confusion = np.zeros((n_classes, n_classes), np.int64)
    for image, target in patches:
        probabilities = np.asarray(model.predict_on_batch(image[None, ..., None]))  # (1, S, S, C)
        losses.append(float(loss(target[None, ..., None], probabilities)))
        confusion += confusion_matrix(target, probabilities[0].argmax(-1), n_classes)
    return (_finite(float(np.mean(losses))) if losses else None), confusion


def confusion_matrix(target: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Count annotated voxels by true and predicted channel.

    >>> confusion_matrix(np.array([0, 1, 1, 255]), np.array([0, 0, 1, 1]), 2)
    array([[1, 0],
           [1, 1]])
    """
    known = target != UNANNOTATED
    pairs = target[known].astype(np.int64) * n_classes + predicted[known]
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def f1_scores(confusion: np.ndarray) -> list[float]:
    """Return the F1 score of each channel; NaN for one that neither side shows.

    >>> f1_scores(np.array([[6, 2], [1, 3]]))
    [0.8, 0.6666666666666666]
    """
    hits, either = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    return [2 * int(h) / int(n) if n else math.nan for h, n in zip(hits, either, strict=True)]


def _mean(scores: Sequence[float]) -> float:
    known = [score for score in scores if math.isfinite(score)]
    return sum(known) / len(known) if known else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summarize(folds: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Combine the scores of all folds.

    Parameters
    ----------
    folds : sequence of mapping
        Results of the folds; one that was not validated is the refit.
    names : sequence of str
        Classes.

    Returns
    -------
    dict
        ``best_fold``; ``chosen_fold``, the refit where there is one; the mean and the standard
        deviation (n - 1; None for one fold) of each class's F1 over the folds that show it; and
        the folds themselves.

    Examples
    --------
    >>> one = {"fold": 1, "validated": True, "f1": {"nuclei": 0.75}, "mean_f1": 0.75}
    >>> two = {"fold": 2, "validated": True, "f1": {"nuclei": 0.25}, "mean_f1": 0.25}
    >>> scores = summarize([one, two], ["nuclei"])
    >>> scores["best_fold"], scores["f1_mean"]["nuclei"], round(scores["f1_sd"]["nuclei"], 3)
    (1, 0.5, 0.354)
    """
    validated = [fold for fold in folds if fold["validated"]]
    best = max(validated, key=lambda fold: fold["mean_f1"] or 0.0)
    by_name = {
        name: [fold["f1"][name] for fold in validated if fold["f1"][name] is not None]
        for name in names
    }
    by_name["mean"] = [fold["mean_f1"] for fold in validated if fold["mean_f1"] is not None]
    return {
        "best_fold": best["fold"],
        "chosen_fold": next(
            (fold["fold"] for fold in folds if not fold["validated"]), best["fold"]
        ),
        "f1_mean": {name: float(np.mean(f)) if f else None for name, f in by_name.items()},
        "f1_sd": {
            name: float(np.std(f, ddof=1)) if len(f) > 1 else None for name, f in by_name.items()
        },
        "folds": [dict(fold) for fold in folds],
    }


def _draw_curves(log: Path, path: Path, names: Sequence[str]) -> None:
    """Draw loss and F1 against the epoch, a line per fold and class."""
    # Late: only at the end of a training is anything drawn.
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text().splitlines()]
    folds = sorted({record["fold"] for record in records})
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for fold in folds:
        rows = [record for record in records if record["fold"] == fold]
        epochs = [row["epoch"] for row in rows]
        first = fold == folds[0]
        left.plot(
            epochs,
            [row["loss"] for row in rows],
            "--",
            color="#999999",
            lw=1,
            label="training" if first else None,
        )
        left.plot(
            epochs,
            [_or_nan(row["val_loss"]) for row in rows],
            color="#222222",
            lw=1.5,
            label="validation" if first else None,
        )
        for i, name in enumerate(names):
            right.plot(
                epochs,
                [_or_nan(row["f1"][name]) for row in rows],
                lw=1.5,
                color=PALETTE[i % len(PALETTE)],
                label=name if first else None,
            )
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="F1 on validation patches", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(f"{path.stem}: {len(folds)} fold{'s' if len(folds) > 1 else ''}")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=130)
    os.replace(partial, path)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
