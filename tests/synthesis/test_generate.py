"""Generated ensembles: what the generator makes, slice by slice, the same bytes however it ran."""

from __future__ import annotations

import tracemalloc
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cvdask
from cvdask.engine.cluster import SerialPool
from cvdask.engine.dask_pool import DaskPool
from cvdask.engine.plan import Plan
from cvdask.errors import BlocksFailed
from cvdask.synthesis import gan_file
from cvdask.synthesis import generate as module
from cvdask.synthesis.architecture import Architecture, initialise
from cvdask.synthesis.gan_file import MEAN_STYLE, Gan
from cvdask.synthesis.generate import generate, grey_values, slice_places
from cvdask.volume.ensemble import Ensemble, open_ensemble
from cvdask.volume.verify import Verification, verify
from tests.trees import tree_digest

CLASSES = {1: "mitochondria", 4: "z_discs"}


def tiny_gan(continuity: Any = "volume", n_slices: int = 70, **options: Any) -> Gan:
    """A generator that has learned nothing, whose noise shows."""
    architecture = Architecture(
        16, 3, n_slices, continuity=continuity, width=2, max_width=4, latent=4, n_mapping=1
    )
    weights = initialise(architecture, "generator", 0)
    for name, array in weights.items():
        if name.endswith("/noise"):
            array[...] = 0.5
    weights[MEAN_STYLE] = np.full(4, 0.1, np.float32)
    given = {"places": (0.0, 1.0), "colors": {1: "#102030"}, **options}
    return Gan(architecture, CLASSES, voxel_size_nm=(40, 20, 20), weights=weights, **given)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for continuity in ("volume", "order"):
        gan_file.save(tiny_gan(continuity), folder / f"{continuity}.keras")
    return {continuity: folder / f"{continuity}.keras" for continuity in ("volume", "order")}


def made(model: Path, out: Path, **options: Any) -> Ensemble:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the generator makes independent", UserWarning)
        ensemble = generate(model, out, **{"batch_size": 8, **options})
    assert isinstance(ensemble, Ensemble)
    return ensemble


def one_by_one(
    model: Path, places: np.ndarray, number: int, seed: int = 0, truncation: float = 1.0
) -> np.ndarray:
    """Make the slices of a volume alone, each in a call of its own."""
    gan = gan_file.load(model)
    generator = gan.generator(1)
    slices = []
    for z, place in enumerate(places):
        key = [number, 0 if gan.continuity == "volume" else z]
        latent = np.random.default_rng([seed, 1, *key]).standard_normal(gan.n_latent, np.float32)
        noise = np.random.default_rng([seed, 2, number, 0]).integers(0, 2**32, 1, np.uint32)
        made = generator.sample(latent[None], np.float32([place]), noise, truncation)
        slices.append(np.array([0, 1, 4])[made[0].argmax(-1)])
    return np.stack(slices)


@pytest.mark.parametrize("continuity", ["volume", "order"])
def test_members_hold_what_the_generator_makes(tmp_path, models, continuity):
    ensemble = made(
        models[continuity], tmp_path / "out.zarr",
        volumes=2, slices=9, seed=3, truncation=0.7,
    )  # fmt: skip
    assert (len(ensemble), ensemble.members) == (2, ("0000", "0001"))
    places = np.arange(9) / 69 if continuity == "volume" else np.linspace(0, 1, 9)
    for number, volume in enumerate(ensemble):
        labels = volume.label("classes")
        assert labels.classes == CLASSES
        assert (labels.colors[1], set(labels.colors)) == ("#102030", {1, 4})
        assert (volume.voxel_size_nm, volume.shape) == ((40, 20, 20), (9, 16, 16))
        expected = one_by_one(models[continuity], places, number, 3, 0.7)
        # Calls of one slice may round otherwise where two classes are equally likely.
        assert (labels.read() != expected).mean() < 0.002
        assert len(np.unique(expected)) > 1
        grey = np.array([0, 128, 255], np.uint8)[np.searchsorted([0, 1, 4], labels.read())]
        np.testing.assert_array_equal(volume.read(), grey)
        checked = verify(volume)
        assert isinstance(checked, Verification)
        assert (checked.ok, checked.unsealed) == (True, ())
    first, second = (volume.label("classes").read() for volume in ensemble)
    assert (first != second).mean() > 0.05
    steps = [(a != b).mean() for a, b in pairwise(first)]
    assert (np.mean(steps) < 0.3 * (first != second).mean()) == (continuity == "volume")
    assert not (tmp_path / "out.zarr" / ".cvdask").exists()
    assert ensemble.attributes["provenance"]["options"]["truncation"] == 0.7


def test_the_same_bytes_on_any_client(tmp_path, models, client):
    options = {"volumes": 2, "slices": 40, "seed": 1}
    made(models["order"], tmp_path / "reference.zarr", client="serial", **options)
    made(models["order"], tmp_path / "other.zarr", client=client, **options)
    assert tree_digest(tmp_path / "other.zarr") == tree_digest(tmp_path / "reference.zarr")


def test_a_slice_is_the_same_among_others(tmp_path, models):
    few = made(models["order"], tmp_path / "few.zarr", volumes=1, slices=5, z_range=(0, 5))
    more = made(models["order"], tmp_path / "more.zarr", volumes=2, slices=40, z_range=(0, 40))
    np.testing.assert_array_equal(
        few[0].label("classes").read(), more[0].label("classes").read()[:5]
    )


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, models, monkeypatch):
    options: dict[str, Any] = {"volumes": 2, "slices": 70, "client": "serial"}
    made(models["volume"], tmp_path / "reference.zarr", **options)
    out = tmp_path / "out.zarr"
    function = module._generate_block

    def break_some(job, block):
        if block.index % 3 == 1:
            raise OSError("no answer")
        return function(job, block)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_generate_block", break_some)
        with pytest.raises(BlocksFailed, match="no answer"):
            made(models["volume"], out, **options)
    with pytest.raises(ValueError, match="not complete"):
        open_ensemble(out)
    (out / "0001" / "0" / "c" / "left.partial").write_bytes(b"half")
    done = []

    def note(job, block):
        done.append(block.index)
        return function(job, block)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_generate_block", note)
        patch.setattr(module, "publish_ensemble", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(models["volume"], out, **options)
    assert done == [1, 4]
    monkeypatch.setattr(module, "_generate_block", lambda *_: 1 / 0)
    ensemble = made(models["volume"], out, **options)
    assert tree_digest(out) == tree_digest(tmp_path / "reference.zarr")
    assert made(models["volume"], out, **options) == ensemble
    with pytest.raises(FileExistsError, match=r"options\.seed: 0 → 5"):
        made(models["volume"], out, **{**options, "seed": 5})


def test_styles_of_two_seeds_are_mixed(tmp_path, models):
    options: dict[str, Any] = {"slices": 6}
    ways = {"own": {"seed": 1}, "other": {"seed": 2}}
    ways["mixed"] = {"seed": 1, "mix_seed": 2, "mix_layer": 4}
    found = {
        name: made(models["order"], tmp_path / f"{name}.zarr", **way, **options)[0]
        .label("classes")
        .read()
        for name, way in ways.items()
    }
    assert (found["mixed"] != found["own"]).mean() > 0
    assert (found["mixed"] != found["other"]).mean() > 0
    gan = gan_file.load(models["order"])
    generator = gan.generator(8)
    keys = [[1, z] for z in range(6)]
    places = np.float32(slice_places(gan, 6, None))
    styles = [
        generator.styles(
            np.stack(
                [
                    np.random.default_rng([seed, 1, 0, z]).standard_normal(gan.n_latent, np.float32)
                    for _, z in keys
                ]
            ),
            places,
        )
        for seed in (1, 2)
    ]
    layered = np.stack([styles[0]] * 4 + [styles[1]] * 2, axis=1)
    noise = np.random.default_rng([1, 2, 0, 0]).integers(0, 2**32, 1, np.uint32).repeat(6)
    expected = generator.synthesise(layered, noise).argmax(-1)
    np.testing.assert_array_equal(found["mixed"], np.array([0, 1, 4])[expected])


def test_volumes_go_from_seed_to_seed(tmp_path, models):
    options: dict[str, Any] = {"slices": 6}
    path = made(
        models["order"], tmp_path / "path.zarr", volumes=5, seed=1, interpolate_to=2, **options
    )
    whole = path.to_xarray().values
    start = made(models["order"], tmp_path / "start.zarr", seed=1, **options)
    np.testing.assert_array_equal(whole[0], start[0].label("classes").read())
    steps = [(a != b).mean() for a, b in pairwise(whole)]
    assert 0 < max(steps) < (whole[0] != whole[-1]).mean()


def test_places_lie_where_the_generator_was_trained():
    gan = tiny_gan("volume", n_slices=101, places=(0.2, 0.6))
    assert slice_places(gan, None, None) == pytest.approx(np.arange(20, 61) / 100)
    assert slice_places(gan, 3, (30, 40)) == pytest.approx([0.3, 0.31, 0.32])
    independent = tiny_gan("order", n_slices=101, places=(0.2, 0.6))
    assert slice_places(independent, 3, None) == pytest.approx([0.2, 0.4, 0.6])
    assert len(slice_places(independent, 500, None)) == 500
    assert max(slice_places(independent, 500, None)) <= np.float32(0.6)
    with pytest.raises(ValueError, match=r"slices 20 to 60.*z_range 10:30"):
        slice_places(gan, None, (10, 30))
    with pytest.raises(ValueError, match=r"slices 20 to 60.*z_range 50:62"):
        slice_places(independent, None, (50, 62))
    with pytest.raises(ValueError, match=r"41 lie in z_range 20:61.*42 slices"):
        slice_places(gan, 42, None)
    with pytest.raises(ValueError, match="at least one slice"):
        slice_places(gan, 0, None)
    assert slice_places(tiny_gan("order", n_slices=1), 2, None) == (0, 0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"volumes": 0}, "Received: 0"),
        ({"seed": -1}, "Received: -1"),
        ({"truncation": 1.5}, r"Received: 1\.5"),
        ({"batch_size": 0}, "Received: 0"),
        ({"slices": 71}, "71 slices"),
        ({"mix_layer": 2}, "mix_layer 2"),
        ({"mix_seed": 1, "mix_layer": 6}, "between 1 and 5.*layer 6"),
        ({"interpolate_to": 1}, "interpolate_to 1, 1 volumes"),
        ({"interpolate_to": 1, "volumes": 3, "mix_seed": 2}, "mix_seed 2"),
    ],
    ids=str,
)
def test_options_that_break_a_rule(tmp_path, models, options, told):
    with pytest.raises(ValueError, match=told):
        generate(models["volume"], tmp_path / "out.zarr", **options)
    assert not (tmp_path / "out.zarr").exists()


def test_a_model_that_changed_is_refused(tmp_path, models):
    model = tmp_path / "gan.keras"
    gan_file.save(tiny_gan(), model)
    made(model, tmp_path / "out.zarr", slices=4)
    gan_file.save(replace(tiny_gan(), run={"seed": 1}), model)
    with pytest.raises(FileExistsError, match="digest"):
        made(model, tmp_path / "out.zarr", slices=4)


def test_independent_slices_are_said(tmp_path, models):
    with pytest.warns(UserWarning, match="cvdask order"):
        ensemble = generate(models["order"], tmp_path / "out.zarr", slices=2)
    assert isinstance(ensemble, Ensemble)
    assert len(ensemble.attributes["warnings"]) == 1


def test_planning_takes_the_memory_of_one_volume(tmp_path, models):
    tracemalloc.start()
    (plan,) = generate(  # type: ignore[misc]
        models["volume"], tmp_path / "out.zarr", volumes=1000, dry_run=True
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(plan, Plan)
    assert (len(plan.grid), plan.grid.shape) == (3000, (1000, 70, 16, 16))
    assert peak < 2**20
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize(("offered", "slots"), [({}, 3), ({"GPU": 1}, 2)])
def test_workers_with_a_gpu_are_preferred(offered, slots):
    workers = {
        "a": {"nthreads": 2, "memory_limit": 2**30, "resources": offered},
        "b": {"nthreads": 1, "memory_limit": 2**30, "resources": {}},
    }
    same = {"packages": {"cvdask": cvdask.__version__}}
    client: Any = SimpleNamespace(
        scheduler=SimpleNamespace(address="tcp://host:1"),
        scheduler_info=lambda n_workers: {"workers": workers},
        get_versions=lambda packages: {"scheduler": same, "workers": dict.fromkeys(workers, same)},
        dashboard_link=None,
    )
    assert module._on_gpus(DaskPool(client)).slots == slots
    serial = SerialPool()
    assert module._on_gpus(serial) is serial


def test_grey_values_span_the_range():
    assert grey_values(2).tolist() == [0, 255]
    assert len(set(grey_values(255).tolist())) == 255
