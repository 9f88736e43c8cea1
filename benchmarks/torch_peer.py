"""Train a U-Net of a PyTorch library on patches that are handed over as files.

``segment_peers.py`` runs this in an environment of its own, which has PyTorch and no cvdask:
``python torch_peer.py FOLDER MODEL``. The folder holds the patches and ``task.json``; what comes
back is the best network's classes of the validation patches and a file that tells how they came
about. The recipe is the one that these libraries' users would take:

1. Crops from random places, a third of them around a class drawn evenly (as nnU-Net does); flips,
   right angles (half turns alone where tissue is ``upright``), gain, offset, gamma and noise.
2. Dice and cross-entropy; AdamW with a warm-up and a cosine decline that follows the clock.
3. Memory with channels last, and bfloat16 where a trial, which does not count as training, shows
   that it is faster here.
4. The validation patches are predicted now and then, for a tenth of the time at most; the network
   with the best mean F1 is kept, as ``train-unet`` keeps its own.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

UNANNOTATED = 255
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2
WARM_UP_SHARE = 0.05
SHARE_BY_CLASS = 1 / 3
# Both networks halve their input five times.
STRIDE = 32
N_VALIDATIONS = 40


@cache
def networks() -> Any:
    """Import the library of networks, which wants a torchvision that it makes no use of here.

    The registry's torchvision is built for a PyTorch with CUDA. Beside one for CPUs its compiled
    operators are missing, and the import stops at the first two unless they are declared.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import segmentation_models_pytorch

    segmentation_models_pytorch.operators = operators  # which end when nobody holds them
    return segmentation_models_pytorch


def build(model: str, n_classes: int, weights: str | None) -> torch.nn.Module:
    """Build ``unet-resnet34`` or its like, or nnU-Net's architecture as MONAI has it."""
    if model == "dynunet":
        from monai.networks.nets import DynUNet

        return DynUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=n_classes,
            kernel_size=[3] * 6,
            strides=[1, 2, 2, 2, 2, 2],
            upsample_kernel_size=[2] * 5,
            filters=[32, 64, 128, 256, 512, 512],
        )
    encoder = model.removeprefix("unet-")
    return networks().Unet(encoder, encoder_weights=weights, in_channels=1, classes=n_classes)


class Crops:
    """Draws augmented batches.

    Parameters
    ----------
    images : (N, S, S) float32
    targets : (N, S, S) uint8
    size : int
    n_classes : int
    turns : sequence of int
        Quarter turns that crops may be given.
    """

    def __init__(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        size: int,
        n_classes: int,
        turns: Sequence[int],
    ) -> None:
        self.images, self.targets, self.size, self.turns = images, targets, size, turns
        self.rng = np.random.default_rng(0)
        shown = [np.argwhere(targets == channel) for channel in range(n_classes)]
        self.places = [places for places in shown if len(places)]

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (n, 1, size, size) float32 images and (n, size, size) int64 targets."""
        crops = [self._crop() for _ in range(n)]
        images, targets = (np.stack(one) for one in zip(*crops, strict=True))
        return torch.from_numpy(images[:, None]), torch.from_numpy(targets.astype(np.int64))

    def _crop(self) -> tuple[np.ndarray, np.ndarray]:
        rng, size = self.rng, self.size
        extent = self.images.shape[1]
        if rng.random() < SHARE_BY_CLASS:
            places = self.places[rng.integers(len(self.places))]
            i, y, x = places[rng.integers(len(places))]
            y, x = (min(max(0, one - int(rng.integers(size))), extent - size) for one in (y, x))
        else:
            i = rng.integers(len(self.images))
            y, x = rng.integers(0, extent - size + 1, 2)
        turns, mirrored = int(rng.choice(self.turns)), bool(rng.integers(2))
        image, target = (
            np.rot90(one[i, y : y + size, x : x + size][:, :: -1 if mirrored else 1], turns)
            for one in (self.images, self.targets)
        )
        return self._alter(image), np.ascontiguousarray(target)

    def _alter(self, image: np.ndarray) -> np.ndarray:
        rng = self.rng
        if rng.random() < 0.3:
            low, high = float(image.min()), float(image.max())
            spread = max(high - low, 1e-6)
            image = ((image - low) / spread) ** rng.uniform(0.7, 1.5) * spread + low
        image = image * rng.uniform(0.75, 1.25) + rng.normal(0, 0.2)
        if rng.random() < 0.3:
            image = image + rng.uniform(0, 0.25) * rng.standard_normal(image.shape)
        return image.astype(np.float32)


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def take_step(
    model: torch.nn.Module, optimizer: Any, loss: Loss, batch: Any, bfloat16: bool
) -> None:
    images, targets = batch
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(images)
    optimizer.zero_grad(set_to_none=True)
    loss(logits.float(), targets).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def optimizer_of(model: torch.nn.Module) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def bfloat16_is_faster(model: torch.nn.Module, loss: Loss, batch: Any) -> bool:
    """Take a few steps either way with a copy of the network."""
    seconds = {}
    for bfloat16 in (False, True):
        trial = copy.deepcopy(model).train()
        optimizer = optimizer_of(trial)
        times = []
        for _ in range(3):  # the first sets up
            started = time.perf_counter()
            take_step(trial, optimizer, loss, batch, bfloat16)
            times.append(time.perf_counter() - started)
        seconds[bfloat16] = min(times)
    return seconds[True] < seconds[False]


@torch.inference_mode()
def predict(
    model: torch.nn.Module,
    images: np.ndarray,
    bfloat16: bool,
    views: Sequence[tuple[int, bool]] = ((0, False),),
) -> np.ndarray:
    """Return the most probable channel of each pixel: (N, S, S) uint8.

    The probabilities are the mean over views, each turned so often and mirrored or not.
    """
    model.eval()
    fill = -images.shape[1] % STRIDE
    found = []
    for image in images:
        batch = torch.from_numpy(image[None, None])
        batch = torch.nn.functional.pad(batch, (0, fill, 0, fill), mode="reflect")
        total: Any = 0
        for turns, mirrored in views:
            one = torch.rot90(batch.flip(-1) if mirrored else batch, turns, (-2, -1))
            one = one.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model(one)
            one = torch.rot90(logits.float().softmax(1), -turns, (-2, -1))
            total = total + (one.flip(-1) if mirrored else one)
        channels = total[0].argmax(0)[: image.shape[0], : image.shape[1]]
        found.append(channels.numpy().astype(np.uint8))
    return np.stack(found)


def mean_f1(targets: np.ndarray, predicted: np.ndarray, n_classes: int) -> float:
    """Average the F1 of the classes without the background, where either side shows them."""
    known = targets != UNANNOTATED
    scores = []
    for channel in range(1, n_classes):
        truth, found = targets[known] == channel, predicted[known] == channel
        either = int(truth.sum()) + int(found.sum())
        if either:
            scores.append(2 * int((truth & found).sum()) / either)
    return float(np.mean(scores)) if scores else 0.0


def train(
    model: torch.nn.Module,
    crops: Crops,
    validation: tuple[np.ndarray, np.ndarray],
    task: dict[str, Any],
    bfloat16: bool,
    loss: Loss,
) -> dict[str, Any]:
    """Train until the time is over; leave the best weights in the model."""
    budget, n_classes = 60 * task["minutes"], task["n_classes"]
    optimizer = optimizer_of(model)
    best, best_state, best_step = -1.0, copy.deepcopy(model.state_dict()), 0
    judging, step = 0.0, 0
    begun = time.monotonic()
    next_judgement = begun + budget / N_VALIDATIONS
    over = False
    while not over:
        progress = (time.monotonic() - begun) / budget
        rise = min(1.0, max((step + 1) / 50, progress / WARM_UP_SHARE))
        for group in optimizer.param_groups:
            decline = (1 + math.cos(math.pi * min(1.0, progress))) / 2
            group["lr"] = LEARNING_RATE * rise * decline
        model.train()
        take_step(model, optimizer, loss, crops.batch(task["batch_size"]), bfloat16)
        step += 1
        now = time.monotonic()
        over = now - begun >= budget
        if over or now >= next_judgement:
            score = mean_f1(validation[1], predict(model, validation[0], bfloat16), n_classes)
            if score > best:
                best, best_state, best_step = score, copy.deepcopy(model.state_dict()), step
            judging = time.monotonic() - now
            next_judgement = time.monotonic() + max(10 * judging, budget / N_VALIDATIONS)
    model.load_state_dict(best_state)
    return {"train_seconds": time.monotonic() - begun, "n_steps": step, "best_step": best_step}


def main(folder: Path, name: str) -> None:
    task = json.loads((folder / "task.json").read_text())
    torch.manual_seed(0)
    torch.set_num_threads(task["cores"])
    images, targets, judges, truth = (
        np.load(folder / f"{part}.npy")
        for part in ("train_images", "train_targets", "validation_images", "validation_targets")
    )
    mean, sd = float(images.mean(dtype=np.float64)), float(images.std(dtype=np.float64))
    images, judges = ((one.astype(np.float32) - mean) / sd for one in (images, judges))
    losses = networks().losses
    dice = losses.DiceLoss("multiclass", ignore_index=UNANNOTATED)
    entropy = torch.nn.CrossEntropyLoss(ignore_index=UNANNOTATED)
    model = build(name, task["n_classes"], task["encoder_weights"])
    model = model.to(memory_format=torch.channels_last)
    # Tissue of one direction is left in it, as train-unet does when it is told so.
    turns = (0, 2) if task["options"].get("upright") else (0, 1, 2, 3)
    size = min(task["crop"], images.shape[1])
    crops = Crops(images, targets, size, task["n_classes"], turns)

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return dice(logits, target) + entropy(logits, target)

    bfloat16 = bfloat16_is_faster(model, loss, crops.batch(task["batch_size"]))
    told = train(model, crops, (judges, truth), task, bfloat16, loss)

    # Predict, the first call being a warm-up.
    precision = "bfloat16" if bfloat16 else "float32"
    n_weights = sum(one.numel() for one in model.parameters()) / 1e6
    weights = task["encoder_weights"] if name.startswith("unet") else None
    remark = (
        f"{told['n_steps']} steps, best after {told['best_step']}; {n_weights:.1f} M weights, "
        f"begun {'from ' + weights if weights else 'at random'}"
    )
    predict(model, judges[:1], bfloat16)
    rows = []
    all_views = [(turn, mirrored) for turn in turns for mirrored in (False, True)]
    for views in (all_views[:1], all_views):
        started = time.perf_counter()
        predicted = predict(model, judges, bfloat16, views)
        seconds = time.perf_counter() - started
        np.save(folder / f"{name}-{len(views)}.npy", predicted)
        rows.append(
            {
                "way": name if len(views) == 1 else f"{name}, {len(views)} views",
                "predicted": f"{name}-{len(views)}.npy",
                "predict_seconds": seconds,
                "precision": precision,
                "remark": remark if len(views) == 1 else "",
            }
        )
    (folder / f"{name}.json").write_text(json.dumps({**told, "rows": rows}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
