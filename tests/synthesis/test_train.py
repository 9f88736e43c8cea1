"""Training from the store: it ends, goes on bit for bit after a kill, and says what is wrong."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow

from cvdask.synthesis import judge
from cvdask.synthesis import train as train_module
from cvdask.synthesis.architecture import Architecture
from cvdask.synthesis.checkpoints import GanFiles
from cvdask.synthesis.gan_file import MEAN_STYLE, load
from cvdask.synthesis.slices import open_slices
from cvdask.synthesis.train import GanOptions, GanPlan, growth, plan, train, train_gan
from tests.samples import write_sample
from tests.synthesis.gans import run_program
from tests.trees import tree_digest

NAMES = {1: "mitochondria", 4: "z_discs"}
TINY = {
    "width": 2,
    "max_width": 4,
    "latent": 4,
    "n_mapping": 1,
    "batch_size": 4,
    "kimg": 0.032,
    "report_kimg": 0.016,
    "n_judged": 6,
    "path_every": 0,
    "penalty_every": 4,
}


class Killed(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """Compiling takes far longer than these few steps; ``test_steps`` has compiled ones."""
    tensorflow.config.run_functions_eagerly(True)
    yield
    tensorflow.config.run_functions_eagerly(False)


def write_classes(folder: Path, data: np.ndarray, classes=NAMES) -> str:
    url = str(folder / "cell.zarr")
    shape = {"shard_shape": (64, 32, 32), "chunk_shape": (16, 16, 16)}
    write_sample(url, np.zeros(data.shape, np.uint8), **shape)
    write_sample(url, data, labels="classes", classes=classes, colors={1: "#e69f00"}, **shape)
    return url


def blocks(n=60, seed=0) -> np.ndarray:
    cells = np.random.default_rng(seed).choice(np.uint8([0, 0, 1, 4]), (n // 4, 5, 5))
    return cells.repeat(4, 0).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("sample"), blocks())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sample):
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    gan = train_gan(sample, out=folder / "gan.keras", resolution=16, **TINY)
    return folder, gan


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(records):
    timed = ("seconds", "images_per_second", "eta_minutes")
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


def quietly(function, *given, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*given, **keywords)


# ---------------------------------------------------------------------------------------------
# What is written


def test_a_training_leaves_a_generator_a_log_a_record_and_pictures(whole):
    folder, gan = whole
    assert sorted(path.name for path in folder.iterdir()) == [
        "gan.jsonl", "gan.keras", "gan.run.json", "gan.samples",
    ]  # fmt: skip
    records = lines(folder / "gan.jsonl")
    assert [record["step"] for record in records] == [0, 4, 8]
    assert records == gan.run["reports"]
    for record in records:
        assert record["distance"] > 0
        assert record["floor"] > 0
        assert sum(record["fractions"].values()) == pytest.approx(1)
        assert list(record["real_fractions"]) == ["background", "mitochondria", "z_discs"]
    assert records[1]["images_per_second"] > 0
    assert records[-1]["eta_minutes"] == 0
    assert len(list((folder / "gan.samples").glob("*.png"))) >= 1
    assert [record["noise"] for record in records] == [1, 1, 0]
    run = json.loads((folder / "gan.run.json").read_text())
    assert run["state"] == "complete"
    assert run["provenance"]["inputs"][0]["volumes"][0]["n_slices"] == 60
    assert GanPlan.from_dict(run["plan"]).batch_size == 4


def test_the_generator_knows_what_it_was_trained_on(whole):
    folder, gan = whole
    assert load(folder / "gan.keras") == gan
    assert (gan.classes, gan.colors, gan.n_slices) == (NAMES, {1: "#e69f00"}, 60)
    assert (gan.resolution, gan.places, gan.voxel_size_nm) == (16, (0.0, 1.0), (40.0, 10.0, 10.0))
    made = gan.generator(4).sample(
        np.zeros((1, gan.n_latent)), np.float32([0.5]), np.zeros(1, np.uint32)
    )
    assert made.shape == (1, 16, 16, 3)


def test_a_dry_run_writes_nothing(tmp_path, sample):
    before = tree_digest(Path(sample))
    found = train_gan(sample, out=tmp_path / "gan.keras", dry_run=True, resolution=16, **TINY)
    assert isinstance(found, GanPlan)
    assert "60 slices of 16 × 16" in str(found)
    assert GanPlan.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    assert list(tmp_path.iterdir()) == []
    assert tree_digest(Path(sample)) == before


def test_devices_decide_what_was_left_open(sample):
    slices = open_slices(sample, resolution=16)
    small, large = (plan(slices, GanOptions(), gpu=gpu) for gpu in (False, True))
    assert small.architecture.max_width < large.architecture.max_width
    assert (small.recipe.dtype, large.recipe.dtype) == ("float32", "bfloat16")
    chosen = plan(slices, GanOptions(width=5, gamma=3.0, batch_size=7), gpu=True)
    assert (chosen.architecture.width, chosen.recipe.gamma, chosen.batch_size) == (5, 3.0, 7)
    paper = plan(slices, GanOptions(preset="paper"), gpu=False)
    noisy = plan(slices, GanOptions(noise=True), gpu=False)
    assert [one.recipe.noise for one in (small, paper, noisy)] == [False, True, True]
    assert (paper.recipe.gamma, paper.recipe.penalty_every, paper.recipe.path_every) == (10, 1, 0)


# ---------------------------------------------------------------------------------------------
# It goes on


@pytest.mark.parametrize("when", [0, 4])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, sample, whole, when):
    def kill(record):
        if record["step"] == when:
            raise Killed

    options = {"out": tmp_path / "gan.keras", "resolution": 16, **TINY}
    with pytest.raises(Killed):
        train_gan(sample, callback=kill, **options)
    assert not (tmp_path / "gan.keras").exists()
    # A kill between log and state leaves a line too many, cut in two at worst.
    with (tmp_path / "gan.jsonl").open("a") as log:
        log.write('{"step": 8, "ki')
    gan = train_gan(sample, **options)
    folder, undisturbed = whole
    for name, array in undisturbed.weights.items():
        np.testing.assert_array_equal(gan.weights[name], array, err_msg=name)
    ours, theirs = lines(tmp_path / "gan.jsonl"), lines(folder / "gan.jsonl")
    assert without_times(ours) == without_times(theirs)


def test_jax_trains_and_goes_on(tmp_path, sample):
    program = f"""
        from cvdask.synthesis.train import train_gan

        def stop(record):
            if record["step"] == 4:
                raise InterruptedError

        options = {{"out": "gan.keras", "resolution": 16, **{TINY!r}, "penalty_every": 1}}
        try:
            train_gan({sample!r}, callback=stop, **options)
        except InterruptedError:
            gan = train_gan({sample!r}, **options)
        assert [record["step"] for record in gan.run["reports"]] == [0, 4, 8]
        assert "jax" in gan.run["versions"]
    """
    run_program(program, tmp_path, "jax")


def test_a_damaged_state_costs_one_report(tmp_path, sample, whole):
    def kill(record):
        if record["step"] == 4:
            raise Killed

    options = {"out": tmp_path / "gan.keras", "resolution": 16, **TINY}
    with pytest.raises(Killed):
        train_gan(sample, callback=kill, **options)
    state = GanFiles.beside(tmp_path / "gan.keras").state
    state.write_bytes(state.read_bytes()[:-1000])
    again = []
    with pytest.warns(UserWarning, match="of step 0"):
        gan = train_gan(sample, callback=again.append, **options)
    assert [record["step"] for record in again] == [4, 8]
    np.testing.assert_array_equal(gan.weights[MEAN_STYLE], whole[1].weights[MEAN_STYLE])


def test_a_finished_training_is_not_done_again(whole, sample):
    folder, gan = whole
    seen = []
    options = {"out": folder / "gan.keras", "resolution": 16, **TINY}
    assert train_gan(sample, callback=seen.append, **options) == gan
    assert seen == []
    with pytest.raises(FileExistsError, match=r"options\.seed: 0 → 1"):
        train_gan(sample, **options, seed=1)


def test_what_is_not_ours_is_left(tmp_path, sample):
    (tmp_path / "gan.keras").write_bytes(b"other")
    with pytest.raises(FileExistsError, match="overwrite"):
        train_gan(sample, out=tmp_path / "gan.keras", resolution=16, **TINY)
    assert (tmp_path / "gan.keras").read_bytes() == b"other"


# ---------------------------------------------------------------------------------------------
# Other trainings


def test_distances_may_be_ones_own_and_the_best_is_kept(tmp_path, sample, monkeypatch):
    monkeypatch.setattr(judge, "TOLERATED", 1e9)  # what has learned nothing has any shares
    given = iter([9.0, 2.0, 5.0])
    gan = train(
        open_slices(sample, resolution=16),
        GanOptions(**TINY, noise=True),
        GanFiles.beside(tmp_path / "gan.keras"),
        distance=lambda made: next(given),
    )
    assert (gan.run["best_step"], gan.run["best_distance"], gan.run["floor"]) == (4, 2.0, None)


@pytest.mark.parametrize(("last", "kept"), [(3.9, 8), (4.1, 4)])
def test_noise_doubles_a_distance(tmp_path, sample, monkeypatch, last, kept):
    monkeypatch.setattr(judge, "TOLERATED", 1e9)
    # It is whole to the middle and gone at the end.
    given = iter([9.0, 2.0, last])
    gan = train(
        open_slices(sample, resolution=16),
        GanOptions(**TINY),
        GanFiles.beside(tmp_path / "gan.keras"),
        distance=lambda made: next(given),
    )
    assert gan.run["best_step"] == kept
    assert gan.architecture.fine_noise == (kept == 4)
    # Coarser noise stays.
    noisy = {name for name in gan.weights if name.endswith("/noise")}
    assert len(noisy) == (5 if kept == 4 else 1)


def test_a_volume_and_the_relativistic_loss(tmp_path, sample):
    options = {**TINY, "continuity": "volume", "loss": "rpgan_r1_r2", "path_every": 2}
    gan = train_gan(sample, out=tmp_path / "gan.keras", resolution=16, **options)
    assert gan.continuity == "volume"
    assert {"r1/r2", "path/path"} < set(gan.run["reports"][-1])


def test_the_papers_preset_grows_and_walks_through_the_stack(tmp_path, sample):
    options = {**TINY, "preset": "paper", "head": "softmax", "report_kimg": 0.008}
    options.pop("penalty_every")
    gan = train_gan(sample, out=tmp_path / "gan.keras", resolution=16, **options)
    records = gan.run["reports"]
    assert [record["level"] for record in records] == [8, 16, 16, 16, 16]
    assert gan.run["inputs"][0]["shuffle"] is False
    assert "discriminator/r1" in records[-1]  # in the discriminator's own step


def test_growth_shows_every_resolution():
    architecture = Architecture(256, 3, 10, preset="paper")
    found = [growth(architecture, share) for share in np.linspace(0, 1, 500)]
    assert sorted({level for level, _ in found}) == [8, 16, 32, 64, 128, 256]
    assert [level for level, _ in found] == sorted(level for level, _ in found)
    assert all(0 <= fade <= 1 for _, fade in found)
    assert growth(Architecture(256, 3, 10), 0.0) == (256, 1.0)


def test_few_slices_warn_and_one_class_alone_works(tmp_path):
    url = write_classes(tmp_path, np.ones((6, 20, 20), np.uint8), {1: "mitochondria"})
    with pytest.warns(UserWarning, match="6 slices are few"):
        gan = train_gan(url, out=tmp_path / "gan.keras", resolution=16, **TINY)
    assert gan.run["reports"][-1]["real_fractions"] == {"background": 0.0, "mitochondria": 1.0}


def test_empty_slices_work(tmp_path):
    data = blocks(60)
    data[::2] = 0
    url = write_classes(tmp_path, data)
    gan = train_gan(url, out=tmp_path / "gan.keras", resolution=16, **TINY)
    assert gan.run["stopped"] == ""


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(tmp_path, sample, monkeypatch):
    adam = train_module.Steps._adam

    def spoil(self, network, state, gradient, rate):
        found = adam(self, network, state, gradient, rate)
        steps = found[f"{network}/steps"]
        return {**found, network: found[network] * (6 - steps) / abs(6 - steps)}  # 0 / 0 at step 6

    monkeypatch.setattr(train_module.Steps, "_adam", spoil)
    with pytest.warns(UserWarning, match=r"not finite.*step 4 is kept.*learning_rate"):
        gan = train_gan(sample, out=tmp_path / "gan.keras", resolution=16, **TINY)
    assert (gan.run["best_step"], len(gan.run["reports"])) == (4, 2)
    assert all(np.isfinite(array).all() for array in gan.weights.values())
    with pytest.raises(FloatingPointError, match="none is worth keeping"):
        train_gan(
            sample,
            out=tmp_path / "none.keras",
            resolution=16,
            **{**TINY, "report_kimg": 0.032},
        )


# ---------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 24}, "24"),
        ({"resolution": 64}, "64"),
        ({"batch_size": 0}, "batch_size.*0"),
        ({"kimg": -1}, "kimg.*-1"),
        ({"mixing": 2}, "mixing.*2"),
        ({"preset": "stylegan3"}, "stylegan3"),
        ({"preset": "paper", "continuity": "volume"}, "paper.*volume"),
        ({"n_layers": 3}, "n_layers"),
        ({"n_devices": 50}, "50"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, sample, options, words):
    with pytest.raises(ValueError, match=words):
        quietly(
            train_gan, sample, out=tmp_path / "gan.keras", **{**TINY, "resolution": 16, **options}
        )
    assert not (tmp_path / "gan.keras").exists()


def test_a_remote_destination_is_refused(sample):
    with pytest.raises(ValueError, match="local"):
        train_gan(sample, out="s3://bucket/gan.keras")
