"""Training: it learns, it goes on after a kill, and it says what went wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import ndimage

import cvdask
from cvdask.segmentation import model_file
from cvdask.segmentation import train as module
from cvdask.segmentation.patches import Selection
from cvdask.segmentation.train import (
    TrainingOptions,
    f1_scores,
    learning_rate,
    summarize,
    train,
    validate,
)
from cvdask.segmentation.unet import Architecture, build
from cvdask.volume.colors import UNANNOTATED
from tests.samples import write_sample

# Keras turns TensorFlow's variables into arrays in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

# Small enough for a step in milliseconds, and large enough to learn what is bright.
TINY = {
    "base_width": 4,
    "depth": 1,
    "patch_size": 64,
    "crop": 32,
    "batch_size": 4,
    "n_patches": 12,
    "steps_per_epoch": 3,
    "epochs": 2,
    "patience": None,
    "ema": 0.9,
    "learning_rate": 0.02,
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> str:
    """Bright and very bright blobs on noise, annotated in two of twelve slices."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.standard_normal((12, 128, 192)), (0, 4, 4))
    blobs /= blobs.std()
    truth = np.digitize(blobs, [0.8, 1.8]).astype(np.uint8)
    image = 90 + 35 * truth + rng.normal(0, 5, truth.shape)
    labels = np.full(truth.shape, UNANNOTATED, np.uint8)
    labels[[1, 10]] = truth[[1, 10]]
    shapes = {"chunk_shape": (4, 64, 64), "shard_shape": (12, 128, 192)}
    url = tmp_path_factory.mktemp("train") / "a.zarr"
    write_sample(url, image.astype(np.uint8), **shapes)
    names = {1: "mitochondria", 2: "z_discs"}
    write_sample(url, labels, labels="annotations", classes=names, **shapes)
    return str(url)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights_of(path) -> list[np.ndarray]:
    return [np.asarray(weight) for weight in model_file.load(path)[1].get_weights()]


class Killed(Exception):
    pass


def kill_after(fold: int, epoch: int):
    def callback(record):
        if (record["fold"], record["epoch"]) == (fold, epoch):
            raise Killed

    return callback


@pytest.fixture(scope="module")
def two_folds(tmp_path_factory, sample) -> Path:
    """A folder with a cross-validation that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy")
        train(sample, out=folder / "net.keras", **{**TINY, "folds": 2})
    return folder


# ---------------------------------------------------------------------------------------------
# It learns


def test_it_learns_and_leaves_what_it_did(tmp_path, sample):
    seen = []
    out = tmp_path / "net.keras"
    unet = train(
        sample, out=out, callback=seen.append, **{**TINY, "epochs": 5, "steps_per_epoch": 15}
    )
    assert isinstance(unet, model_file.UNet)
    rows = lines(tmp_path / "net.jsonl")
    assert rows == seen
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert max(row["f1"]["mitochondria"] for row in rows) > 0.8
    assert set(rows[0]) == {
        *("fold", "epoch", "loss", "val_loss", "f1", "mean_f1"),
        *("learning_rate", "seconds", "samples_per_second"),
    }
    # the network says what it is
    assert unet.classes == {1: "mitochondria", 2: "z_discs"}
    assert unet.architecture == Architecture(n_classes=3, base_width=4, depth=1)
    assert unet.voxel_size_nm == (40.0, 10.0, 10.0)
    assert 90 < unet.mean < 130
    assert 5 < unet.sd < 60
    assert model_file.describe(out) == unet
    (fold,) = unet.run["scores"]["folds"]
    assert fold["mean_f1"] == max(row["mean_f1"] for row in rows)
    assert fold["test_mean_f1"] > 0.4
    # and so does the record
    record = json.loads((tmp_path / "net.run.json").read_text())
    assert record["state"] == "complete"
    assert record["provenance"]["options"]["epochs"] == 5
    assert record["versions"]["keras"] == keras.__version__
    assert len(record["selection"]["patches"]) == 12
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("net.keras", "net.jsonl", "net.run.json", "net.png"),
    }


def test_the_record_is_there_before_the_first_step(tmp_path, sample, monkeypatch):
    def fail(*_):
        raise Killed

    monkeypatch.setattr(module, "_train_fold", fail)
    with pytest.raises(Killed):
        train(sample, out=tmp_path / "net.keras", **TINY)
    record = json.loads((tmp_path / "net.run.json").read_text())
    assert record["state"] == "begun"
    assert record["provenance"]["inputs"][0]["digest"].startswith("sha256:")
    assert not (tmp_path / "net.keras").exists()


def test_folds_are_scored_and_the_best_is_kept(two_folds):
    out = two_folds / "net.keras"
    scores = model_file.describe(out).run["scores"]
    means = [fold["mean_f1"] for fold in scores["folds"]]
    assert len(means) == 2
    assert scores["best_fold"] == scores["chosen_fold"] == 1 + int(np.argmax(means))
    assert scores["f1_mean"]["mean"] == pytest.approx(np.mean(means))
    assert scores["f1_sd"]["mean"] == pytest.approx(np.std(means, ddof=1))
    assert [(row["fold"], row["epoch"]) for row in lines(two_folds / "net.jsonl")] == [
        *((1, 1), (1, 2), (2, 1), (2, 2))
    ]
    best = two_folds / f"net.fold{scores['best_fold']}.keras"
    for ours, theirs in zip(weights_of(out), weights_of(best), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_refit_learns_from_all_patches(tmp_path, sample):
    options = {**TINY, "epochs": 1, "folds": 2, "refit": True}
    unet = train(sample, out=tmp_path / "net.keras", **options)
    scores = unet.run["scores"]
    assert scores["chosen_fold"] == 3
    assert scores["best_fold"] in (1, 2)
    assert [fold["validated"] for fold in scores["folds"]] == [True, True, False]
    assert scores["folds"][2]["mean_f1"] is None
    assert lines(tmp_path / "net.jsonl")[-1]["val_loss"] is None


def test_early_stopping_and_what_is_kept(tmp_path, sample, monkeypatch):
    best = iter([0.5, 0.6, 0.55, 0.4, 0.3, 0.2])

    def judge(model, patches, loss, n_classes):
        hits = round(1000 * next(best, 0.1))
        either = 1000 - hits
        return 1.0, np.array([[0, either, 0], [either, hits, 0], [0, 0, 0]])

    monkeypatch.setattr(module, "validate", judge)
    unet = train(sample, out=tmp_path / "net.keras", **{**TINY, "epochs": 50, "patience": 3})
    (fold,) = unet.run["scores"]["folds"]
    assert (fold["best_epoch"], fold["n_epochs"]) == (2, 5)
    assert "since epoch 2 (patience 3)" in fold["stopped"]
    assert fold["f1"] == {"mitochondria": pytest.approx(0.6), "z_discs": None}


def test_minutes_end_a_training(tmp_path, sample):
    options = {**TINY, "epochs": 10_000, "max_minutes": 0.02}
    unet = train(sample, out=tmp_path / "net.keras", **options)
    (fold,) = unet.run["scores"]["folds"]
    assert 0 < fold["n_epochs"] < 10_000
    assert lines(tmp_path / "net.jsonl")[-1]["learning_rate"] < 0.02


def test_weights_that_are_judged_are_the_moving_average(tmp_path, sample):
    plain, averaged = (
        train(sample, out=tmp_path / f"{ema}.keras", **{**TINY, "ema": ema}) for ema in (0, 0.9)
    )
    assert plain.mean == averaged.mean
    ours, theirs = weights_of(tmp_path / "0.keras"), weights_of(tmp_path / "0.9.keras")
    assert any(not np.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_mixed_precision_trains_and_is_saved_in_float32(tmp_path, sample, preset, monkeypatch):
    monkeypatch.setattr(module, "supports_bfloat16", lambda: True)
    options = {**TINY, "preset": preset, "epochs": 1, "mixed_precision": "mixed_bfloat16"}
    train(sample, out=tmp_path / "net.keras", **options)
    assert {weight.dtype for weight in weights_of(tmp_path / "net.keras")} == {np.dtype("float32")}
    assert json.loads((tmp_path / "net.jsonl").read_text())["loss"] < 2


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_processor_without_the_instructions_trains_in_float32(
    tmp_path, sample, precision, monkeypatch
):
    monkeypatch.setattr(module, "supports_bfloat16", lambda: False)
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    options = {**TINY, "epochs": 1}
    with pytest.warns(UserWarning, match=f"float32 instead of {precision}"):
        train(sample, out=tmp_path / "half.keras", **options, mixed_precision=precision)
    train(sample, out=tmp_path / "full.keras", **options, mixed_precision="float32")
    ours, theirs = (weights_of(tmp_path / f"{name}.keras") for name in ("half", "full"))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_train_and_go_on(tmp_path, sample, backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    program = f"""
        import numpy as np
        from cvdask.segmentation.model_file import load
        from cvdask.segmentation.train import train

        def stop(record):
            if record["epoch"] == 1:
                raise InterruptedError

        options = {TINY!r}
        train({sample!r}, out="whole.keras", **options)
        try:
            train({sample!r}, out="killed.keras", callback=stop, **options)
        except InterruptedError:
            train({sample!r}, out="killed.keras", **options)
        whole, killed = (load(name)[1].get_weights() for name in ("whole.keras", "killed.keras"))
        for ours, theirs in zip(killed, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
    """
    root = Path(cvdask.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "killed.jsonl")) == 2


# ---------------------------------------------------------------------------------------------
# It goes on


@pytest.mark.parametrize("when", [(1, 1), (1, 2), (2, 1)])
def test_a_killed_training_ends_with_the_same_numbers(tmp_path, sample, two_folds, when):
    options = {**TINY, "folds": 2}
    with pytest.raises(Killed):
        train(sample, out=tmp_path / "killed.keras", callback=kill_after(*when), **options)
    assert not (tmp_path / "killed.keras").exists()
    # A kill between the log and the state leaves a line too many, cut in two at worst.
    with (tmp_path / "killed.jsonl").open("a") as log:
        log.write('{"fold": 1, "ep')
    again = []
    train(sample, out=tmp_path / "killed.keras", callback=again.append, **options)
    assert len(again) == 4 - (2 * (when[0] - 1) + when[1])
    timed = ("seconds", "samples_per_second")
    for ours, theirs in zip(
        lines(tmp_path / "killed.jsonl"), lines(two_folds / "net.jsonl"), strict=True
    ):
        for key in timed:
            ours.pop(key), theirs.pop(key)
        assert ours["f1"] == pytest.approx(theirs["f1"], abs=1e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["learning_rate"] == pytest.approx(theirs["learning_rate"])
    for a, b in zip(
        weights_of(tmp_path / "killed.keras"), weights_of(two_folds / "net.keras"), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_finished_training_is_not_done_again(tmp_path, sample):
    out = tmp_path / "net.keras"
    first = train(sample, out=out, **TINY)
    seen = []
    again = train(sample, out=out, callback=seen.append, **TINY)
    assert (seen, again) == ([], first)
    with pytest.raises(FileExistsError, match=r"options\.epochs: 2 → 1"):
        train(sample, out=out, **{**TINY, "epochs": 1})
    train(sample, out=out, callback=seen.append, overwrite=True, **{**TINY, "epochs": 1})
    assert len(seen) == 1


def test_a_network_of_others_is_not_overwritten(tmp_path, sample):
    (tmp_path / "net.keras").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"net\.keras"):
        train(sample, out=tmp_path / "net.keras", **TINY)
    assert (tmp_path / "net.keras").read_bytes() == b"precious"


def test_a_state_of_another_network_is_refused(tmp_path, sample):
    out = tmp_path / "net.keras"
    with pytest.raises(Killed):
        train(sample, out=out, callback=kill_after(1, 1), **TINY)
    with np.load(tmp_path / "net.state.npz", allow_pickle=False) as saved:
        arrays = dict(saved)
    arrays["model0"] = np.zeros((3, 3, 1, 9), np.float32)
    np.savez(tmp_path / "net.state.npz", **arrays)
    with pytest.raises(ValueError, match=r"\(3, 3, 1, 9\) instead of \(3, 3, 1, 4\)"):
        train(sample, out=out, **TINY)


def test_the_state_holds_no_pickle(tmp_path, sample):
    with pytest.raises(Killed):
        train(sample, out=tmp_path / "net.keras", callback=kill_after(1, 1), **TINY)
    with zipfile.ZipFile(tmp_path / "net.state.npz") as archive:
        for name in archive.namelist():
            assert b"O" not in archive.read(name)[:80].split(b"descr")[1].split(b",")[0]


# ---------------------------------------------------------------------------------------------
# What goes wrong


def poison(monkeypatch, at_step: int) -> None:
    """Make the loss not a number from a step on."""
    steps = iter(range(10**6))
    train_on_batch = keras.Model.train_on_batch

    def poisoned(self, *args, **kwargs):
        value = train_on_batch(self, *args, **kwargs)
        return np.float32(np.nan) if next(steps) >= at_step else value

    monkeypatch.setattr(keras.Model, "train_on_batch", poisoned)


def test_a_loss_that_is_not_finite_stops_and_the_best_weights_stay(tmp_path, sample, monkeypatch):
    poison(monkeypatch, at_step=4)
    with pytest.warns(UserWarning, match=r"step 5 of epoch 2.*of epoch 1 .*learning_rate \(0\.02"):
        unet = train(sample, out=tmp_path / "net.keras", **TINY)
    (fold,) = unet.run["scores"]["folds"]
    assert fold["n_epochs"] == 1
    assert all(np.isfinite(weight).all() for weight in weights_of(tmp_path / "net.keras"))


def test_a_loss_that_was_never_finite_is_an_error(tmp_path, sample, monkeypatch):
    poison(monkeypatch, at_step=0)
    with pytest.raises(FloatingPointError, match=r"step 1 of epoch 1.*none kept.*learning_rate"):
        train(sample, out=tmp_path / "net.keras", **TINY)


def test_a_batch_that_does_not_fit_is_halved_and_it_is_said_once(tmp_path, sample, monkeypatch):
    sizes = []
    train_on_batch = keras.Model.train_on_batch

    class ResourceExhaustedError(Exception):
        """Named as the backend names its own."""

    def cramped(self, x, *args, **kwargs):
        if len(x) > 2:
            raise ResourceExhaustedError("no memory")
        sizes.append(len(x))
        return train_on_batch(self, x, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "train_on_batch", cramped)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        unet = train(sample, out=tmp_path / "net.keras", **TINY)
    assert sizes == [2] * (2 * 6)
    halved = [str(one.message) for one in said if "memory" in str(one.message)]
    assert len(halved) == 1
    assert "of 4 crops" in halved[0]
    assert "with 2" in halved[0]
    assert unet.run["scores"]["folds"][0]["batch_size"] == 2


def test_a_crop_that_does_not_fit_alone_is_an_error(tmp_path, sample, monkeypatch):
    def cramped(self, x, *args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(keras.Model, "train_on_batch", cramped)
    with (
        pytest.warns(UserWarning, match="memory"),
        pytest.raises(MemoryError, match=r"32 × 32.*crop, base_width"),
    ):
        train(sample, out=tmp_path / "net.keras", **TINY)


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path, sample, monkeypatch):
    def broken(self, x, *args, **kwargs):
        raise RuntimeError("cable")

    monkeypatch.setattr(keras.Model, "train_on_batch", broken)
    with pytest.raises(RuntimeError, match="cable"):
        train(sample, out=tmp_path / "net.keras", **TINY)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("crops", 3, "crops"),  # unknown
        ("batch_size", 0, "batch_size.*0"),
        ("epochs", 2.5, "epochs.*2.5"),
        ("learning_rate", -1.0, "learning_rate.*-1"),
        ("ema", 1.0, "ema.*1"),
        ("mixed_precision", "half", "'half'"),
        ("split_by", "volume", "'volume'"),
        ("preset", "tiny", "tiny"),
        ("crop", 1, "stride of 2.* 1"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, sample, option, value, words):
    with pytest.raises(ValueError, match=words):
        train(sample, out=tmp_path / "net.keras", **{**TINY, option: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["s3://bucket/net.keras", "net.h5"])
def test_networks_go_to_local_keras_files(sample, out):
    with pytest.raises(ValueError, match=out):
        train(sample, out=out, **TINY)


def test_a_constant_image_is_refused(tmp_path):
    labels = np.zeros((1, 128, 128), np.uint8)
    labels[0, ::2] = 1
    shapes = {"chunk_shape": (1, 64, 64), "shard_shape": (1, 128, 128)}
    write_sample(tmp_path / "a.zarr", np.full((1, 128, 128), 7, np.uint8), **shapes)
    write_sample(tmp_path / "a.zarr", labels, labels="annotations", classes={1: "fibre"}, **shapes)
    with pytest.raises(ValueError, match=r"mean 7\.0.*deviation 0\.0"):
        train(tmp_path / "a.zarr", out=tmp_path / "net.keras", **{**TINY, "n_patches": None})


def test_dry_run_returns_the_selection_and_writes_nothing(tmp_path, sample):
    chosen = train([sample], out=tmp_path / "net.keras", dry_run=True, **{**TINY, "crop": 100})
    assert isinstance(chosen, Selection)
    assert any("crops of 64 instead of 100" in note for note in chosen.notes)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# Parts


def test_the_learning_rate_rises_and_declines():
    rates = [learning_rate(step, step / 2000, 1e-3) for step in range(2001)]
    assert rates[0] == pytest.approx(1e-3 / 50)
    assert max(rates) == pytest.approx(1e-3, rel=1e-2)
    assert 45 <= int(np.argmax(rates)) <= 50
    assert (np.diff(rates[50:]) < 0).all()
    assert rates[-1] == 0
    # In a short training the share counts: 5 % of 100 steps.
    assert learning_rate(5, 0.05, 1.0) > 0.99


def test_validation_counts_what_is_annotated():
    class Sure:
        """Predicts channel 1 where the image is positive."""

        def predict_on_batch(self, images):
            bright = (images[..., 0] > 0).astype(np.float32)
            return np.stack([1 - bright, bright], -1)

    image = np.array([[1, 1, -1, -1]], np.float32)
    target = np.array([[1, 0, 1, UNANNOTATED]], np.uint8)
    loss, confusion = validate(Sure(), [(image, target)], lambda target, p: 0.25, 2)
    assert loss == 0.25
    np.testing.assert_array_equal(confusion, [[0, 1], [1, 1]])
    assert f1_scores(confusion) == [0.0, 0.5]
    assert validate(Sure(), [], lambda target, p: 0.25, 2)[0] is None


def test_a_class_that_no_side_shows_has_no_score():
    assert np.isnan(f1_scores(np.array([[5, 0], [0, 0]]))[1])


def test_scores_of_folds_without_a_class_are_left_out():
    folds = [
        {"fold": 1, "validated": True, "f1": {"a": 0.5, "b": None}, "mean_f1": 0.5},
        {"fold": 2, "validated": True, "f1": {"a": 0.75, "b": 0.25}, "mean_f1": 0.5},
    ]
    scores = summarize(folds, ["a", "b"])
    assert scores["f1_mean"] == {"a": 0.625, "b": 0.25, "mean": 0.5}
    assert scores["f1_sd"]["b"] is None


def test_options_survive_json():
    options = TrainingOptions(classes={1: "a"}, z_range=[2, 5])
    assert options.as_dict()["classes"] == {"1": "a"}
    assert options.as_dict()["z_range"] == [2, 5]


def test_the_average_follows_weights_and_copies_statistics():
    architecture = Architecture(n_classes=2, base_width=2, depth=1)
    model, average = build(architecture), build(architecture)
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 2.0))
    for weight in average.weights:
        weight.assign(np.full(weight.shape, 1.0))
    module._follow(average, model, 0.75)
    assert any(not weight.trainable for weight in average.weights)
    for weight in average.weights:
        np.testing.assert_allclose(weight.numpy(), 1.25 if weight.trainable else 2.0)
