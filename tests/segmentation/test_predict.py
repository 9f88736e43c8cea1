"""Segment: every voxel's class as from whole slices, whatever the blocks, workers and kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvdask.engine.cluster import SerialPool
from cvdask.engine.plan import watch_summaries
from cvdask.errors import BlocksFailed
from cvdask.segmentation import model_file, predict
from cvdask.segmentation.forward import Network, NetworkSettings, load_network
from cvdask.segmentation.model_file import digest
from cvdask.segmentation.predict import segment
from cvdask.segmentation.unet import Architecture
from cvdask.volume.boxes import Box
from cvdask.volume.store import Volume, open_volume, read_attributes, volume_digest
from cvdask.volume.verify import verify
from tests.samples import write_sample
from tests.segmentation.networks import (
    CLASSES,
    clear_of_ties,
    needs_bfloat16,
    texture,
    whole_slices,
    write_network,
)
from tests.trees import tree_digest

# Keras 3.15 under NumPy 2, when it saves a network
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

IMAGE = texture((6, 61, 83))
VALUES = np.array([0, 2, 7], np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "tiny.keras"
    write_network(path)
    return path


@pytest.fixture(scope="module")
def whole(model: Path) -> np.ndarray:
    """Probabilities of whole slices: (Z, Y, X, C)."""
    return whole_slices(model, IMAGE)


@pytest.fixture
def sample(tmp_path: Path) -> Volume:
    return write_image(tmp_path / "s.zarr")


def write_image(url: Path, image: np.ndarray = IMAGE, **options: Any) -> Volume:
    return write_sample(url, image, chunk_shape=(2, 16, 16), shard_shape=(4, 32, 32), **options)


def assert_segmented(found: np.ndarray, whole: np.ndarray) -> None:
    """Compare with whole slices, away from ties."""
    clear = clear_of_ties(whole)
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(found[clear], VALUES[whole.argmax(-1)][clear])


# ---------------------------------------------------------------------------------------------
# What is written


def test_every_voxel_has_its_class_on_every_client(sample, model, whole, client):
    result = segment(sample, model, client=client, workers=2)
    assert isinstance(result, Volume)
    assert_segmented(result.read(), whole)
    assert result.dtype == np.uint8
    assert result.classes == CLASSES
    assert result.colors == {2: "#56b4e9", 7: "#cc79a7"}
    assert result.voxel_size_nm == sample.voxel_size_nm
    assert [level.shape for level in result.levels] == [(6, 61, 83), (6, 61, 42)]
    assert open_volume(sample.url).label_names() == ["classes"]


def test_all_clients_write_the_same_bytes(tmp_path, model, distributed_client):
    trees = []
    for number, client in enumerate((None, "threads", distributed_client)):
        sample = write_image(tmp_path / str(number) / "s.zarr")
        segment(sample, model, probabilities=True, block_yx=(32, 48), client=client, workers=2)
        trees.append(tree_digest(tmp_path / str(number)))
    assert trees[0] == trees[1] == trees[2]
    assert any("classes_p_z_disc" in path for path in trees[0])
    assert not any("blocks.json" in path or "done" in path for path in trees[0])


@settings(
    max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(12, 80), st.integers(12, 80)),
    st.integers(1, 3),
)
def test_blocks_change_nothing(tmp_path_factory, model, shape, block_yx, batch_size):
    image = texture(shape)
    sample = write_image(tmp_path_factory.mktemp("samples") / "s.zarr", image)
    result = segment(sample, model, block_yx=block_yx, batch_size=batch_size)
    assert_segmented(result.read(), whole_slices(model, image))


def test_probabilities_are_written_beside(sample, model, whole):
    result = segment(sample, model, name="guess", probabilities=True, block_yx=(32, 40))
    names = ["guess", "guess_p_mitochondria", "guess_p_z_disc"]
    assert open_volume(sample.url).label_names() == names
    for channel, name in enumerate(names[1:], start=1):
        part = result if name == "guess" else open_volume(sample.url, labels=name)
        assert np.abs(part.read() - 255 * whole[..., channel]).max() < 0.5 + 1e-2
    assert_segmented(result.read(), whole)
    assert verify(open_volume(sample.url)).ok


def test_views_are_those_of_square_voxels(tmp_path, model, sample):
    kwargs = {"tta": True, "probabilities": True, "z_range": (0, 1)}
    segment(sample, model, **kwargs)
    assert read_attributes(sample.url, labels="classes")["provenance"]["options"]["n_views"] == 8
    oblong = write_image(tmp_path / "o.zarr", voxel_size_nm=(40, 20, 10))
    with pytest.warns(UserWarning, match="20 × 10 nm"):
        segment(oblong, model, **kwargs)
    assert read_attributes(oblong.url, labels="classes")["provenance"]["options"]["n_views"] == 4
    parts = [
        open_volume(volume.url, labels="classes_p_mitochondria").read(Box((0, 0, 0), (1, 61, 83)))
        for volume in (sample, oblong)
    ]
    assert (parts[0] != parts[1]).any()


def test_provenance_names_network_image_and_options(sample, model):
    segment(sample, model, z_range=(1, 4))
    own = read_attributes(sample.url, labels="classes")
    assert own["provenance"]["stage"] == "segment"
    assert own["provenance"]["options"] == {
        "name": "classes",
        "probabilities": False,
        "n_views": 1,
        "axes": "z",
        "precision": "float32",
        "region": "1:4,0:61,0:83",
        "block_yx": None,
        "batch_size": None,
    }
    image, network = own["provenance"]["inputs"]
    assert image["digest"] == "sha256:" + sample.attributes["digests"]["0"]
    assert network == {"model": "tiny.keras", "digest": f"sha256:{digest(model)}"}
    assert own["prediction"] == {"device": "cpu", "precision": "float32"}
    assert own["warnings"] == []


def test_the_image_may_be_elsewhere_in_space(tmp_path, model):
    """Labels lie where their image lies."""
    sample = write_image(tmp_path / "s.zarr")
    metadata = json.loads((tmp_path / "s.zarr/zarr.json").read_text())
    dataset = metadata["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    move = {"type": "translation", "translation": [100.0, 20.0, 30.0]}
    dataset["coordinateTransformations"].append(move)
    (tmp_path / "s.zarr/zarr.json").write_text(json.dumps(metadata))
    result = segment(sample.url, model)
    assert result.levels[0].origin_nm == (100.0, 20.0, 30.0)


# ---------------------------------------------------------------------------------------------
# Regions and masks


@pytest.mark.parametrize("block_yx", [None, (16, 24)])
def test_only_the_region_is_segmented(sample, model, whole, block_yx):
    result = segment(sample, model, roi="1:5,10:50,:33", z_range=(2, 6), block_yx=block_yx)
    region = Box((2, 10, 0), (5, 50, 33))
    found = result.read()
    assert_segmented(found[region.slices], whole[region.slices])
    found[region.slices] = 0
    assert not found.any()
    assert verify(result).ok


@pytest.mark.parametrize("block_yx", [None, (16, 24)])
def test_only_where_the_mask_is(sample, model, whole, block_yx, monkeypatch):
    mask = np.zeros(IMAGE.shape, np.uint8)
    mask[2:5, 20:30, 40:83] = 3
    write_sample(sample.url, mask, labels="cell", chunk_shape=(2, 16, 16), shard_shape=(2, 16, 16))
    seen = []
    classify = Network.classify
    monkeypatch.setattr(
        Network, "classify", lambda *args, **more: seen.append(1) or classify(*args, **more)
    )
    found = segment(sample, model, mask="cell", block_yx=block_yx).read()
    wanted = mask > 0
    assert_segmented(found[wanted], whole[wanted])
    assert not found[~wanted].any()
    # Three layers of one slice; of 16 × 24, one row and three columns of blocks touch it.
    assert len(seen) == (3 if block_yx is None else 3 * 3)


# ---------------------------------------------------------------------------------------------
# Planes across all axes


def mean_of_planes(path: Path, image: np.ndarray) -> np.ndarray:
    """Average what Keras alone says of the planes across z, y and x: (Z, Y, X, C)."""
    parts = [whole_slices(path, np.moveaxis(image, axis, 0)) for axis in range(3)]
    return np.mean([np.moveaxis(part, 0, axis) for axis, part in enumerate(parts)], axis=0)


CUBE = texture((37, 45, 52), 3)
CUBIC = {"voxel_size_nm": (10, 10, 10)}


def test_planes_across_all_axes_are_averaged_on_every_client(tmp_path, model, client):
    sample = write_image(tmp_path / "s.zarr", CUBE, **CUBIC)
    options = {"axes": "zyx", "block_yx": (32, 32), "client": client, "workers": 2}
    result = segment(sample, model, probabilities=True, **options)
    expected = mean_of_planes(model, CUBE)
    assert_segmented(result.read(), expected)
    first = open_volume(sample.url, labels="classes_p_mitochondria").read()
    assert np.abs(first - 255 * expected[..., 1]).max() < 0.5 + 1e-2
    alone = segment(sample, model, name="alone", client=client, workers=2).read()
    assert 0.005 < (alone != result.read()).mean() < 0.5


@settings(
    max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(1, 50)),
    st.tuples(st.integers(16, 60), st.integers(16, 60)),
    st.integers(1, 64),
)
def test_blocks_change_nothing_across_all_axes(
    tmp_path_factory, model, shape, block_yx, batch_size
):
    image = texture(shape)
    folder = tmp_path_factory.mktemp("samples")
    sample = write_image(folder / "s.zarr", image, **CUBIC)
    options = {"block_yx": block_yx, "batch_size": batch_size, "axes": "zyx"}
    assert_segmented(segment(sample, model, **options).read(), mean_of_planes(model, image))


def test_regions_and_views_across_all_axes(tmp_path, model):
    sample = write_image(tmp_path / "s.zarr", CUBE, **CUBIC)
    region = Box((3, 10, 0), (30, 41, 33))
    result = segment(sample, model, axes="zyx", roi=region, block_yx=(24, 24)).read()
    assert_segmented(result[region.slices], mean_of_planes(model, CUBE)[region.slices])
    result[region.slices] = 0
    assert not result.any()
    views = segment(sample, model, name="views", axes="zyx", tta=True)
    assert views.attributes["provenance"]["options"]["n_views"] == 8


def test_an_interrupted_run_across_all_axes_goes_on(tmp_path, model, monkeypatch):
    samples = [write_image(tmp_path / name / "s.zarr", CUBE, **CUBIC) for name in "ab"]
    options = {"axes": "zyx", "block_yx": (32, 32)}
    segment(samples[0], model, **options)
    with monkeypatch.context() as patch:
        interrupt(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            segment(samples[1], model, **options)
    # A machine of another size would take other blocks, along z as well.
    plan = segment(samples[1], model, dry_run=True, **options)[0]
    monkeypatch.setattr(predict, "connect", lambda *args, **more: SmallMachine(plan.task_bytes - 1))
    assert segment(samples[1], model, dry_run=True, **options)[0].grid == plan.grid
    other = segment(samples[1], model, dry_run=True, overwrite=True, **options)[0]
    assert other.grid.block_shape[0] < plan.grid.block_shape[0]
    monkeypatch.undo()
    segment(samples[1], model, **options)
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")


def test_memory_that_runs_out_across_all_axes(tmp_path, model, monkeypatch):
    sample = write_image(tmp_path / "s.zarr", CUBE, **CUBIC)
    average = Network._average

    def small(self: Network, batch: np.ndarray) -> Any:
        if len(batch) > 3:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return average(self, batch)

    monkeypatch.setattr(Network, "_average", small)
    with pytest.warns(UserWarning, match=r"memory of a device ran out.*--batch-size"):
        result = segment(sample, model, axes="zyx")
    assert_segmented(result.read(), mean_of_planes(model, CUBE))


# ---------------------------------------------------------------------------------------------
# The plan


def test_the_plan_tells_before_anything_is_written(sample, model):
    plans = segment(sample, model, block_yx=(32, 48), probabilities=True, dry_run=True)
    assert [plan.stage for plan in plans] == ["segment", "pyramid level labels/classes/1"]
    plan = plans[0]
    assert plan.grid.block_shape == (1, 32, 48)
    assert len(plan.grid) == 6 * 2 * 2
    assert plan.grid.pairs == ((0, 0), (21, 21), (21, 21))
    assert plan.notes["batch_size"] == 1
    # Along y 0:32 and 32:61 need 0:53 and 11:61, from and to multiples of 4: 56 and 56; along x
    # 0:48 and 48:83 need 0:69 and 27:83: 72 and 60. Slices are filled up to 64 × 84.
    assert plan.notes["computed_pixels"] == 6 * (56 + 56) * (72 + 60)
    assert plan.write_bytes == 3 * IMAGE.size
    assert plan.task_bytes > plan.notes["network_bytes"] > 56 * 72 * 4 * 20
    assert not Path(sample.url, "labels").exists()


def test_a_worker_that_is_too_small_is_refused_before_work(sample, model, monkeypatch):
    monkeypatch.setattr("cvdask.engine.cluster.USABLE_MEMORY", 1e-6)
    with pytest.raises(MemoryError, match=r"\(1, 61, 128\).*kB.*kB"):
        segment(sample, model)


# ---------------------------------------------------------------------------------------------
# Interruptions


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the user press Ctrl-C when so many blocks are written."""
    written: list[int] = []
    write_box = predict.write_box

    def stop(*args: Any) -> dict[str, str]:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(1)
        return write_box(*args)

    monkeypatch.setattr(predict, "write_box", stop)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, model, monkeypatch):
    options = {"block_yx": (32, 48)}
    undisturbed = write_image(tmp_path / "a" / "s.zarr")
    segment(undisturbed, model, **options)
    sample = write_image(tmp_path / "b" / "s.zarr")
    with monkeypatch.context() as patch:
        interrupt(patch, after=9)
        with pytest.raises(KeyboardInterrupt):
            segment(sample, model, **options)
    with pytest.raises(ValueError, match=r"not complete.*segment"):
        open_volume(sample.url, labels="classes")
    with watch_summaries() as summaries:
        segment(sample, model, **options)
    # Of the batch of blocks that was interrupted nothing is marked.
    assert 1 <= summaries[0].n_resumed <= 9
    assert summaries[0].n_resumed + summaries[0].n_done == 24
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")


def test_a_begun_run_keeps_its_blocks_on_a_machine_of_another_size(
    tmp_path, model, whole, monkeypatch
):
    """Markers name blocks by number, so another choice of blocks would leave holes."""
    monkeypatch.setattr("cvdask.segmentation.tiling.WIDEST_SHARD", 32)
    sample = write_sample(
        tmp_path / "s.zarr", IMAGE, chunk_shape=(2, 32, 32), shard_shape=(4, 32, 32)
    )
    plan = segment(sample, model, dry_run=True)[0]
    assert plan.grid.block_shape == (1, 64, 96)
    with monkeypatch.context() as patch:
        interrupt(patch, after=4)
        with pytest.raises(KeyboardInterrupt):
            segment(sample, model)
    small = plan.task_bytes - 1
    monkeypatch.setattr(predict, "connect", lambda *args, **more: SmallMachine(small))
    resumed = segment(sample, model, dry_run=True)[0]
    assert resumed.grid == plan.grid
    begun_new = segment(sample, model, overwrite=True, dry_run=True)[0]
    assert begun_new.grid.block_shape == (1, 64, 64)
    monkeypatch.undo()
    monkeypatch.setattr("cvdask.segmentation.tiling.WIDEST_SHARD", 32)
    assert_segmented(segment(sample, model).read(), whole)


class SmallMachine(SerialPool):
    """This thread, with less memory."""

    def __init__(self, worker_bytes: int) -> None:
        super().__init__()
        self.worker_bytes = worker_bytes

    def __enter__(self) -> SmallMachine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_complete_run_is_left_alone(sample, model, monkeypatch):
    first = segment(sample, model)
    monkeypatch.setattr(predict, "load_network", None)
    again = segment(sample, model)
    np.testing.assert_array_equal(again.read(), first.read())


def test_another_network_does_not_go_on_with_it(sample, model, tmp_path):
    segment(sample, model)
    write_network(tmp_path / "tiny.keras", mean=100.0)
    with pytest.raises(FileExistsError, match=digest(model)):
        segment(sample, tmp_path / "tiny.keras")
    result = segment(sample, tmp_path / "tiny.keras", overwrite=True)
    assert_segmented(result.read(), whole_slices(tmp_path / "tiny.keras", IMAGE))


def test_blocks_that_cannot_be_read_are_listed_and_retried(sample, model, whole, tmp_path):
    shard = tmp_path / "s.zarr" / "0" / "c" / "1" / "0" / "0"
    good = shard.read_bytes()
    shard.write_bytes(good[:100] + bytes([good[100] ^ 255]) + good[101:])
    with pytest.raises(BlocksFailed, match=r"segment: 2 of 6 blocks failed, 4 are done"):
        segment(sample, model)
    shard.write_bytes(good)
    with watch_summaries() as summaries:
        assert_segmented(segment(sample, model).read(), whole)
    assert summaries[0].n_done == 2


# ---------------------------------------------------------------------------------------------
# What does not fit is refused before anything is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_dtype": "uint16"}, r"uint16.*uint8"),
        ({"mean": 30_000.0, "sd": 900.0}, r"mean 3e\+04.*mean 131\.5.*z = 1.*33\.2"),
        (
            {"architecture": Architecture(3, base_width=4, depth=1, in_channels=2)},
            r"one channel.*2",
        ),
    ],
)
def test_a_network_for_other_images_is_refused(sample, tmp_path, changes, message):
    write_network(tmp_path / "other.keras", **changes)
    with pytest.raises(ValueError, match=message):
        segment(sample, tmp_path / "other.keras")
    assert not Path(sample.url, "labels").exists()


def test_another_voxel_size_is_said_and_recorded(sample, tmp_path):
    write_network(tmp_path / "other.keras", voxel_size_nm=(40, 5, 5))
    with pytest.warns(UserWarning, match=r"5 × 5 nm.*10 × 10 nm") as caught:
        result = segment(sample, tmp_path / "other.keras")
    assert len(caught) == 1
    assert result.attributes["warnings"] == [str(caught[0].message)]


def test_a_damaged_file_ends_it_before_anything_is_written(sample, model, tmp_path):
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "damaged.keras").write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged\.keras"):
        segment(sample, tmp_path / "damaged.keras")
    (tmp_path / "text.keras").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.keras"):
        segment(sample, tmp_path / "text.keras")
    assert not Path(sample.url, "labels").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, r"float32 or bfloat16 or int8.*'int4'"),
        ({"max_changed": 2.0}, r"0 and 1.*2\.0"),
        ({"batch_size": 0}, r"one slice.*0"),
        ({"block_yx": (0, 16)}, r"along y: 0"),
        ({"roi": "0:7,:,:"}, r"along z.*7.*6"),
        ({"roi": Box((0, 0, 0), (6, 61, 84))}, r"84"),
        ({"z_range": (3, 7)}, r"6.*3:7"),
        ({"roi": "0:2,:,:", "z_range": (3, 4)}, r"3:4.*0:2"),
        ({"mask": "cell"}, r"cell"),
        ({"axes": "xy"}, r"z or zyx.*'xy'"),
        ({"axes": "zyx"}, r"1\.25.*40 × 10 × 10 nm"),
        ({"name": "no good"}, r"'no good'"),
        ({"client": "cluster"}, r"'cluster'"),
        ({"gpu": True}, r"GPU"),
    ],
)
def test_bad_options_are_refused(sample, model, options, message):
    with pytest.raises(ValueError, match=message):
        segment(sample, model, **options)
    assert not Path(sample.url, "labels").exists()


def test_a_cluster_without_gpus_is_refused_where_one_is_asked_for(
    sample, model, distributed_client
):
    with pytest.raises(ValueError, match=r"'GPU'.*2 workers.*no resources"):
        segment(sample, model, gpu=True, client=distributed_client)


def test_a_label_image_is_no_image(sample, model):
    labels = segment(sample, model)
    with pytest.raises(ValueError, match="'classes'"):
        segment(labels, model)
    with pytest.raises(ValueError, match="both: 'classes'"):
        segment(sample, model, mask="classes", overwrite=True)
    assert labels.read().any()


def test_a_mask_of_another_shape_is_refused(sample, model, tmp_path):
    other = write_sample(tmp_path / "o.zarr", np.ones((6, 61, 80), np.uint8))
    with pytest.raises(ValueError, match=r"6, 61, 83.*6, 61, 80"):
        segment(sample, model, mask=other)


def test_blank_slices_are_slices(tmp_path, model):
    """They say nothing about the grey values' scale, and are segmented like any other."""
    image = np.zeros((3, 20, 20), np.uint8)
    result = segment(write_image(tmp_path / "s.zarr", image), model)
    assert_segmented(result.read(), whole_slices(model, image))


# ---------------------------------------------------------------------------------------------
# Precision and memory of the device


@needs_bfloat16
def test_bfloat16_is_compared_with_float32_and_used(sample, model, whole):
    result = segment(sample, model, precision="bfloat16", max_changed=0.2)
    changed = (result.read() != VALUES[whole.argmax(-1)]).mean()
    assert 0 < changed < 0.1
    prediction = result.attributes["prediction"]
    assert prediction["precision"] == "bfloat16"
    # On three of six slices; on all, the share differs a little.
    assert prediction["changed_share"] == pytest.approx(changed, rel=0.7)


@needs_bfloat16
def test_bfloat16_that_changes_too_much_is_refused(sample, model):
    with pytest.raises(ValueError, match=r"0\.00%.*\d\.\d\d%.*--max-changed"):
        segment(sample, model, precision="bfloat16", max_changed=0.0)
    assert not Path(sample.url, "labels").exists()


@pytest.fixture
def validated(tmp_path, sample, whole) -> tuple[Volume, Path]:
    """A sample annotated with nearly what the network says, and the network that knows of it."""
    truth = VALUES[whole.argmax(-1)]
    truth[:, ::7] = 0
    shapes = {"chunk_shape": (2, 16, 16), "shard_shape": (4, 32, 32)}
    marks = write_sample(sample.url, truth, labels="marks", classes=CLASSES, **shapes)
    place = {"path": sample.url, "labels": "marks"}
    digests = {"digest": volume_digest(sample), "labels_digest": volume_digest(marks)}
    patches = [
        {"volume_url": sample.url, "labels": "marks", "z": z, "y": 8, "x": 16, "size": 48}
        for z in (1, 4)
    ]
    path = tmp_path / "validated.keras"
    write_network(path, run={"inputs": [{**place, **digests}], "validation": patches})
    return sample, path


@needs_bfloat16
def test_bfloat16_is_scored_on_the_patches_of_the_training(validated):
    sample, path = validated
    result = segment(sample, path, precision="bfloat16", max_loss=0.2)
    prediction = result.attributes["prediction"]
    # A patch is all the network sees, as when it was validated on.
    exact = load_network(NetworkSettings(str(path), digest(path)))
    box = (slice(1, 5, 3), slice(8, 56), slice(16, 64))
    truth, found = sample.label("marks").read()[box], exact.classify(IMAGE[box]).classes
    scores = [
        2 * ((truth == v) & (found == v)).sum() / ((truth == v).sum() + (found == v).sum())
        for v in VALUES[1:]
    ]
    assert prediction["f1_float32"] == pytest.approx(np.mean(scores), abs=2e-6)
    assert prediction["f1_bfloat16"] == pytest.approx(prediction["f1_float32"], abs=0.1)
    assert "changed_share" not in prediction


@needs_bfloat16
def test_bfloat16_that_loses_too_much_is_refused(validated, monkeypatch):
    sample, path = validated
    scores = iter([0.9, 0.85])
    monkeypatch.setattr(predict, "_validation_score", lambda *_: next(scores))
    with pytest.raises(ValueError, match=r"0\.0400.*0\.8500.*0\.9000.*--max-loss"):
        segment(sample, path, precision="bfloat16", max_loss=0.04)
    assert sample.label_names() == ["marks"]


@needs_bfloat16
@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []},
        {"validation": []},
        {"validation": [{"volume_url": "/nowhere.zarr"}]},
        {"validation": "x"},
        {"inputs": [{"digest": "other"}]},
    ],
)
def test_patches_that_are_not_what_they_were_are_not_used(validated, tmp_path, change):
    sample, path = validated
    run = {**model_file.describe(path).run, **change}
    other = tmp_path / "other.keras"
    write_network(other, run=run)
    result = segment(sample, other, precision="bfloat16", max_changed=1, max_loss=0)
    assert "changed_share" in result.attributes["prediction"]


@needs_bfloat16
def test_a_model_cannot_make_a_worker_read_from_elsewhere(validated, tmp_path, monkeypatch):
    sample, path = validated
    run = dict(model_file.describe(path).run)
    run["validation"] = [{**run["validation"][0], "volume_url": "s3://bucket/a.zarr"}]
    run["inputs"] = [{**run["inputs"][0], "path": "s3://bucket/a.zarr"}]
    other = tmp_path / "other.keras"
    write_network(other, run=run)
    opened, seen = predict.open_volume, []
    monkeypatch.setattr(
        predict, "open_volume", lambda url, **k: seen.append(url) or opened(url, **k)
    )
    segment(sample, other, precision="bfloat16", max_changed=1)
    assert all(str(url).startswith(sample.url) for url in seen)


def test_a_processor_without_bfloat16_uses_float32_and_says_so(sample, model, whole, monkeypatch):
    monkeypatch.setattr(predict, "supports_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match=r"bfloat16.*avx512_bf16.*float32"):
        result = segment(sample, model, precision="bfloat16")
    assert_segmented(result.read(), whole)
    assert result.attributes["prediction"]["precision"] == "float32"


@needs_bfloat16
def test_who_goes_on_keeps_the_precision_it_was_begun_in(sample, model, whole, monkeypatch):
    classify, calls = Network.classify, []

    def stops(self: Network, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return classify(self, *args, **options)

    # Begun on a machine without the instructions, and gone on with on one that has them.
    with monkeypatch.context() as there:
        there.setattr(predict, "supports_bfloat16", lambda: False)
        there.setattr(Network, "classify", stops)
        with pytest.warns(UserWarning, match="float32"), pytest.raises(KeyboardInterrupt):
            segment(sample, model, precision="bfloat16", max_changed=1)
    with pytest.warns(UserWarning, match=r"begun on has no bfloat16.*float32 was used"):
        result = segment(sample, model, precision="bfloat16", max_changed=1)
    np.testing.assert_array_equal(result.read(), segment(sample, model, name="exact").read())
    assert result.attributes["prediction"] == {"device": "cpu", "precision": "float32"}


@needs_bfloat16
def test_what_a_begun_run_leaves_does_not_tell_of_its_interruption(tmp_path, model, monkeypatch):
    """Also where the processor lacks the instructions, which is said and recorded."""
    trees = []
    monkeypatch.setattr(predict, "supports_bfloat16", lambda: False)
    for interrupted in (False, True):
        sample = write_image(tmp_path / str(interrupted) / "s.zarr")
        if interrupted:
            with monkeypatch.context() as patch:
                interrupt(patch, after=2)
                with pytest.warns(UserWarning, match="float32"), pytest.raises(KeyboardInterrupt):
                    segment(sample, model, precision="bfloat16")
        with pytest.warns(UserWarning, match="float32"):
            segment(sample, model, precision="bfloat16")
        trees.append(tree_digest(tmp_path / str(interrupted)))
    assert trees[0] == trees[1]


@needs_bfloat16
def test_who_goes_on_without_the_instructions_says_how_many_blocks(sample, model, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            segment(sample, model, precision="bfloat16", max_changed=1)
    monkeypatch.setattr(predict, "supports_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match=r"\d of 6 blocks.*float32") as caught:
        result = segment(sample, model, precision="bfloat16", max_changed=1)
    assert len(caught) == 1
    assert result.attributes["prediction"]["precision"] == "bfloat16"
    assert 0 < result.attributes["n_blocks_float32"] <= 6


@needs_bfloat16
def test_what_was_found_is_recorded_with_the_last_block(sample, model, monkeypatch):
    """A run that is killed behind it goes on as it was, on whatever machine."""

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict, "build_levels", killed)
        with pytest.raises(KeyboardInterrupt):
            segment(sample, model, precision="bfloat16", max_changed=1)
    monkeypatch.setattr(predict, "supports_bfloat16", lambda: False)
    result = segment(sample, model, precision="bfloat16", max_changed=1)
    assert result.attributes["prediction"]["precision"] == "bfloat16"
    assert result.attributes["warnings"] == []


@needs_bfloat16
def test_a_damaged_slice_does_not_keep_a_precision_from_being_tried(sample, model, tmp_path):
    """Its block is listed, as in float32."""
    shard = tmp_path / "s.zarr" / "0" / "c" / "1" / "0" / "0"
    good = shard.read_bytes()
    shard.write_bytes(good[:100] + bytes([good[100] ^ 255]) + good[101:])
    with pytest.raises(BlocksFailed, match=r"segment: 2 of 6 blocks failed"):
        segment(sample, model, precision="bfloat16", max_changed=1)


@needs_bfloat16
def test_a_class_that_the_patches_do_not_show_has_no_part_in_the_score(
    tmp_path, sample, whole, monkeypatch
):
    """Else a single voxel that is taken for it by one precision would cost half of the score."""
    truth = np.where(whole.argmax(-1) == 1, 2, 0).astype(np.uint8)
    shapes = {"chunk_shape": (2, 16, 16), "shard_shape": (4, 32, 32)}
    marks = write_sample(sample.url, truth, labels="marks", classes=CLASSES, **shapes)
    inputs = {
        "path": sample.url,
        "labels": "marks",
        "digest": volume_digest(sample),
        "labels_digest": volume_digest(marks),
    }
    patch = {"volume_url": sample.url, "labels": "marks", "z": 1, "y": 8, "x": 16, "size": 48}
    path = tmp_path / "net.keras"
    write_network(path, run={"inputs": [inputs], "validation": [patch]})
    network = load_network(NetworkSettings(str(path), digest(path)))
    predict_them, box = network.predict, (slice(1, 2), slice(8, 56), slice(16, 64))

    def without_the_other(images: np.ndarray, *options: Any) -> np.ndarray:
        found = predict_them(images, *options)
        found[..., 2] = 0
        found[0, 0, 0] = (0, 0, 1)
        return found

    monkeypatch.setattr(network, "predict", without_the_other)
    found = without_the_other(IMAGE[box]).argmax(-1) == 1
    wanted = truth[box] == 2
    f1 = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
    assert predict._validation_score(network, sample) == pytest.approx(f1)


def test_a_worker_without_bfloat16_is_counted(sample, model, monkeypatch):
    answers = iter([True] + 100 * [False])
    monkeypatch.setattr(predict, "supports_bfloat16", lambda: next(answers))
    with pytest.warns(UserWarning, match=r"6 of 6 blocks.*float32"):
        segment(sample, model, precision="bfloat16", max_changed=1)


def test_memory_that_runs_out_is_said_once(sample, model, whole, monkeypatch):
    monkeypatch.setattr("cvdask.segmentation.tiling.FEW_LAYERS", 1)  # two slices a block
    average = Network._average

    def small(self: Network, batch: np.ndarray) -> Any:
        if len(batch) > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return average(self, batch)

    monkeypatch.setattr(Network, "_average", small)
    with pytest.warns(UserWarning, match=r"batches of 2.*1 were used.*--batch-size 1") as caught:
        result = segment(sample, model)
    assert len(caught) == 1
    assert result.attributes["warnings"] == [str(caught[0].message)]
    assert_segmented(result.read(), whole)
