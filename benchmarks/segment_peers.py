"""Who segments best after the same minutes of training: cvdask, or what one would take otherwise?

1. Patches are drawn and divided as ``train-unet`` does, from a sample or from a phantom made on the
   spot. Every competitor gets the training patches of one fold as files.
2. One after another, each in a process of its own on all cores, they train for the same wall time:
   ``cvdask.train_unet``; a random forest on the features that ilastik offers, on as many pixels as
   that time admits; and U-Nets of PyTorch libraries, with the recipe told in ``torch_peer.py``.
   Networks start from random weights unless ``--encoder-weights`` names others.
3. All are scored alike: F1 of each class over all annotated pixels of the fold's validation
   patches. The networks, ours and theirs, keep their weights of the epoch that did best on these,
   so the scores compare them with one another and are no estimate for other tissue.

PyTorch goes into an environment of its own, made on first use below ``--cache``; a peer that cannot
be installed is left out and the reason told.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from report import machine, report
from scipy import ndimage
from torch_environment import CannotInstall, last_line, torch_python

HERE = Path(__file__).parent

TORCH_PEERS = ("unet-resnet34", "unet-resnet18", "unet-efficientnet-b0", "dynunet")
PEERS = ("cvdask", "forest", *TORCH_PEERS)

# Phantom: extent in µm (z, y, x) at 20 nm: four columns of patches of 512², 64 slices.
PHANTOM_UM = (1.28, 20.48, 20.48)
PHANTOM_NM = 20.0

# ilastik's standard scales in pixels, and the trees of its forest.
SIGMAS = (0.7, 1.0, 1.6, 3.5, 5.0, 10.0)
N_TREES = 100
# Its features may take this share of the time, and its table of features so many pixels.
FEATURE_SHARE = 0.4
MOST_PIXELS = 4_000_000
FIRST_PIXELS = 20_000


# ---------------------------------------------------------------------------------------------
# Ours


def by_cvdask(folder: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """Train one fold as ``train-unet`` does, predict as ``segment`` does."""
    import cvdask
    from cvdask.segmentation import model_file
    from cvdask.segmentation import train as training
    from cvdask.segmentation.forward import NetworkSettings, load_network, supports_bfloat16
    from cvdask.segmentation.patches import Selection, select

    def one_fold(*arguments: Any, **keywords: Any) -> Selection:
        selection = select(*arguments, **keywords)
        return replace(selection, folds=(selection.folds[task["fold"] - 1],))

    out = folder / "cvdask.keras"
    with mock.patch.object(training, "select", one_fold):
        unet = cvdask.train_unet(task["sample"], out=out, labels=task["labels"], **task["options"])
    assert isinstance(unet, model_file.UNet)
    fold = unet.run["scores"]["folds"][0]
    images = np.load(folder / "validation_images.npy")
    remark = f"{fold['n_epochs']} epochs, best {fold['best_epoch']}"
    rows: list[dict[str, Any]] = []
    precisions = ["float32", "bfloat16"] if supports_bfloat16() else ["float32"]
    # As segment --tta does: tissue that was learned in one direction is not turned.
    n_views = 4 if unet.upright else 8
    for precision, views in [*((one, 1) for one in precisions), ("float32", n_views)]:
        digest = model_file.digest(out)
        settings = NetworkSettings(str(out), digest, precision, views, threads=task["cores"])
        network = load_network(settings)
        network.predict(images[:1])
        started = time.perf_counter()
        predicted = network.predict(images).argmax(-1).astype(np.uint8)
        seconds = time.perf_counter() - started
        name = f"cvdask-{precision}-{views}.npy"
        np.save(folder / name, predicted)
        way = f"cvdask {unet.architecture.preset}"
        rows.append(
            {
                "way": way if views == 1 else f"{way}, {views} views",
                "predicted": name,
                "predict_seconds": seconds,
                "precision": precision,
                "remark": remark if len(rows) == 0 else "",
            }
        )
    return {"train_seconds": 60 * fold["minutes"], "rows": rows}


# ---------------------------------------------------------------------------------------------
# Random forest


def features(image: np.ndarray) -> np.ndarray:
    """Compute ilastik's standard features of an image, (Y, X) to (Y, X, 48) float32.

    At each scale: the smoothed image, Laplacian, gradient magnitude, difference of Gaussians, and
    the eigenvalues of structure tensor and Hessian. As in ilastik, the difference is from 0.66 of
    the scale, and the structure tensor is smoothed over half of it.
    """
    return np.stack([one for sigma in SIGMAS for one in _features(image, sigma)], -1)


def _features(image: np.ndarray, sigma: float) -> Iterator[np.ndarray]:
    def smooth(array: np.ndarray, scale: float, order: Sequence[int] = (0, 0)) -> np.ndarray:
        return np.asarray(ndimage.gaussian_filter(array, scale, order=order, truncate=3))

    smoothed = smooth(image, sigma)
    by_y, by_x = smooth(image, sigma, (1, 0)), smooth(image, sigma, (0, 1))
    hessian = [smooth(image, sigma, order) for order in ((2, 0), (1, 1), (0, 2))]
    tensor = [smooth(one, sigma / 2) for one in (by_y * by_y, by_y * by_x, by_x * by_x)]
    yield smoothed
    yield hessian[0] + hessian[2]
    yield np.hypot(by_y, by_x)
    yield smoothed - smooth(image, 0.66 * sigma)
    yield from _eigenvalues(*tensor)
    yield from _eigenvalues(*hessian)


def _eigenvalues(yy: np.ndarray, xy: np.ndarray, xx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of symmetric 2 × 2 matrices, the larger first."""
    half_trace, radius = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    return half_trace + radius, half_trace - radius


def table_of_pixels(
    images: np.ndarray, targets: np.ndarray, n_threads: int, deadline: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute features of patch after patch until the deadline; keep annotated pixels, evenly.

    Returns
    -------
    table : (P, 48) float32
    channels : (P,) uint8
        In random order.
    """
    from cvdask.volume.colors import UNANNOTATED

    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    quota = MOST_PIXELS // len(images)
    tables, channels = [], []
    with ThreadPoolExecutor(n_threads) as pool:
        for first in range(0, len(order), n_threads):
            chosen = order[first : first + n_threads]
            for i, found in zip(chosen, pool.map(features, images[chosen]), strict=True):
                known = np.flatnonzero(targets[i] != UNANNOTATED)
                kept = rng.permutation(known)[:quota]
                tables.append(found.reshape(-1, found.shape[-1])[kept])
                channels.append(targets[i].ravel()[kept])
            if time.monotonic() > deadline:
                break
    shuffled = rng.permutation(sum(map(len, channels)))
    return np.concatenate(tables)[shuffled], np.concatenate(channels)[shuffled]


def grow_forest(table: np.ndarray, channels: np.ndarray, cores: int, deadline: float) -> Any:
    """Fit a forest to more and more pixels, as many as the time that is left admits.

    What a fit takes is told by the one before: a little more than in proportion to its pixels.
    """
    from sklearn.ensemble import RandomForestClassifier

    n_pixels = min(FIRST_PIXELS, len(table))
    while True:
        started = time.monotonic()
        forest = RandomForestClassifier(N_TREES, n_jobs=cores, random_state=0)
        forest.fit(table[:n_pixels], channels[:n_pixels])
        took, left = time.monotonic() - started, deadline - time.monotonic()
        growth = min(8.0, (0.85 * max(0.0, left) / took) ** (1 / 1.1))
        if n_pixels == len(table) or growth < 1.25:
            return forest, n_pixels
        n_pixels = min(int(n_pixels * growth), len(table))


def by_forest(folder: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """Train a pixel classifier as ilastik does, on all annotated pixels that there is time for."""
    images, targets, judges = (
        np.load(folder / f"{part}.npy")
        for part in ("train_images", "train_targets", "validation_images")
    )
    begun, budget, cores = time.monotonic(), 60 * task["minutes"], task["cores"]
    images, judges = images.astype(np.float32), judges.astype(np.float32)
    table, channels = table_of_pixels(images, targets, cores, begun + FEATURE_SHARE * budget)
    forest, n_pixels = grow_forest(table, channels, cores, begun + budget)
    train_seconds = time.monotonic() - begun

    started = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        rows_of = [one.reshape(-1, one.shape[-1]) for one in pool.map(features, judges)]
    predicted = [forest.predict(rows).reshape(judges.shape[1:]) for rows in rows_of]
    seconds = time.perf_counter() - started
    np.save(folder / "forest.npy", np.stack(predicted).astype(np.uint8))
    row = {
        "way": "random forest, ilastik's features",
        "predicted": "forest.npy",
        "predict_seconds": seconds,
        "precision": "float32",
        "remark": f"{N_TREES} trees, {n_pixels:,} of {len(table):,} pixels",
    }
    return {"train_seconds": train_seconds, "rows": [row]}


HERE_IN_PROCESS = {"cvdask": by_cvdask, "forest": by_forest}


# ---------------------------------------------------------------------------------------------
# The run


@dataclass(frozen=True)
class Result:
    """How one way of predicting did: a row of the table."""

    way: str
    train_seconds: float
    f1: dict[str, float | None]
    mean_f1: float
    mpixel_per_s: float
    precision: str
    remark: str


def prepare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Draw the patches, write them to the folder, and describe the task there."""
    import cvdask
    from cvdask.engine.cluster import machine_limits
    from cvdask.segmentation.forward import supports_bfloat16
    from cvdask.segmentation.patches import Selection, read_patch

    sample = arguments.sample
    if sample is None:
        sample = str(folder / "phantom.zarr")
        cvdask.phantom(sample, size_um=PHANTOM_UM, voxel_nm=PHANTOM_NM, client="threads")
    labels = arguments.labels or ("annotations" if arguments.sample else "truth")
    options: dict[str, Any] = {
        "preset": "fast",
        "batch_size": 4,
        "mixed_precision": "mixed_bfloat16" if supports_bfloat16() else "float32",
        "split_by": arguments.split_by,
        "folds": arguments.folds,
        "n_patches": arguments.n_patches,
        "max_minutes": arguments.minutes,
        # The clock alone ends a training.
        "epochs": 1_000_000,
        "patience": None,
        **dict(arguments.option),
    }
    selection = cvdask.train_unet(
        sample, out=folder / "unused.keras", labels=labels, dry_run=True, **options
    )
    assert isinstance(selection, Selection)
    fold = selection.folds[arguments.fold - 1]
    for part, numbers in (("train", fold.train), ("validation", fold.validation)):
        patches = [selection.candidates[i].patch for i in numbers]
        read = [read_patch(patch, tuple(selection.classes)) for patch in patches]
        images, targets = (np.stack(one) for one in zip(*read, strict=True))
        np.save(folder / f"{part}_images.npy", images)
        np.save(folder / f"{part}_targets.npy", targets)
    task = {
        "sample": sample,
        "labels": labels,
        "fold": arguments.fold,
        "minutes": arguments.minutes,
        "options": options,
        "classes": list(selection.classes.values()),
        "n_classes": len(selection.classes) + 1,
        "patches": {
            "size": selection.size,
            "training": len(fold.train),
            "validation": len(fold.validation),
        },
        "crop": options.get("crop", 256),
        "batch_size": options["batch_size"],
        "cores": machine_limits().cores,
        "encoder_weights": arguments.encoder_weights,
    }
    (folder / "task.json").write_text(json.dumps(task))
    return task


def compete(name: str, folder: Path, cache: Path) -> dict[str, Any]:
    """Let one competitor train and predict, in a process of its own.

    Raises
    ------
    CannotInstall
        When it cannot be installed.
    RuntimeError
        When it stops with an error.
    """
    command = [sys.executable, __file__, "--one", name, str(folder)]
    if name in TORCH_PEERS:
        command = [str(torch_python(cache)), str(HERE / "torch_peer.py"), str(folder), name]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"stopped with {done.returncode}: {last_line(done.stderr)}")
    return dict(json.loads((folder / f"{name}.json").read_text()))


def score(told: Mapping[str, Any], folder: Path, task: Mapping[str, Any]) -> list[Result]:
    """Compare what was predicted with the annotations."""
    from cvdask.segmentation.train import confusion_matrix, f1_scores

    truth = np.load(folder / "validation_targets.npy")
    results = []
    for row in told["rows"]:
        predicted = np.load(folder / row["predicted"])
        confusion = confusion_matrix(truth, predicted, task["n_classes"])
        f1 = f1_scores(confusion)[1:]
        known = [one for one in f1 if math.isfinite(one)]
        results.append(
            Result(
                row["way"],
                told["train_seconds"],
                {
                    name: one if math.isfinite(one) else None
                    for name, one in zip(task["classes"], f1, strict=True)
                },
                sum(known) / len(known),
                predicted.size / row["predict_seconds"] / 1e6,
                row["precision"],
                row["remark"],
            )
        )
    return results


def option(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE, a value that is no JSON being text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"an option of train_unet is NAME=VALUE. Received: {text}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def number_of_patches(text: str) -> int | None:
    return None if text == "all" else int(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=10, help="of training, each")
    parser.add_argument("--sample", metavar="URL", help="by default a phantom")
    parser.add_argument("--labels", metavar="NAME", help="annotations; of the phantom, truth")
    parser.add_argument("--split-by", choices=("region", "slice"), default="region")
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--fold", type=int, default=1, metavar="K", help="the one that is trained")
    parser.add_argument("--n-patches", type=number_of_patches, default=30, metavar="N|all")
    parser.add_argument(
        "--option",
        type=option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of cvdask.train_unet, such as upright=true; may be given several times",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=("cvdask", "forest", "unet-resnet34", "unet-efficientnet-b0"),
        metavar="NAME",
        help=", ".join(PEERS),
    )
    parser.add_argument("--encoder-weights", metavar="NAME", help="such as imagenet: a download")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cvdask-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where PyTorch is installed")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_args()
    if not 1 <= arguments.fold <= arguments.folds:
        parser.error(f"--fold lies between 1 and --folds {arguments.folds}: {arguments.fold}")
    if arguments.minutes <= 0:
        parser.error(f"--minutes is more than 0: {arguments.minutes}")
    return arguments


def print_table(
    results: Sequence[Result], skipped: Mapping[str, str], task: Mapping[str, Any]
) -> None:
    def shown(f1: float | None) -> str:
        return "" if f1 is None else f"{f1:.4f}"

    patches = task["patches"]
    columns = (
        "way",
        "trained (s)",
        *(f"F1 {name}" for name in task["classes"]),
        "mean F1",
        "Mpixel/s",
        "precision",
        "remark",
    )
    rows = [
        (
            one.way,
            f"{one.train_seconds:.0f}",
            *map(shown, one.f1.values()),
            f"**{one.mean_f1:.4f}**",
            f"{one.mpixel_per_s:.2f}",
            one.precision,
            one.remark,
        )
        for one in results
    ]
    report(
        f"Segmentation after {task['minutes']:g} minutes of training: {patches['training']} "
        f"patches of {patches['size']}², {patches['validation']} to judge by",
        columns,
        rows,
    )
    for name, reason in skipped.items():
        print(f"\nLeft out: {name}, {reason}")


def main() -> None:
    arguments = parse()
    if arguments.one:
        name, folder = arguments.one[0], Path(arguments.one[1])
        task = json.loads((folder / "task.json").read_text())
        told = HERE_IN_PROCESS[name](folder, task)
        (folder / f"{name}.json").write_text(json.dumps(told))
        return
    folder = Path(tempfile.mkdtemp(prefix="cvdask-segment-peers-"))
    results: list[Result] = []
    skipped: dict[str, str] = {}
    failed = False
    try:
        task = prepare(arguments, folder)
        for name in arguments.peers:
            try:
                told = compete(name, folder, arguments.cache)
            except (CannotInstall, RuntimeError) as error:
                skipped[name] = str(error)
                failed |= isinstance(error, RuntimeError)
                continue
            results += score(told, folder, task)
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        found = {
            **{key: task[key] for key in ("sample", "labels", "fold", "minutes", "options")},
            "patches": task["patches"],
            "machine": machine(),
            "ways": [vars(one) for one in results],
            "left_out": skipped,
        }
        print(json.dumps(found, indent=2))
    else:
        print_table(results, skipped, task)
    # What cannot be had is told; what breaks is an error, after the others have had their turn.
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
