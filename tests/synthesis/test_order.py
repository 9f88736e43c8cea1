"""Slices in order: the stack they come from, whatever the blocks, workers and interruptions."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from cvdask.errors import BlocksFailed
from cvdask.synthesis import order as stage
from cvdask.synthesis.continuity import mean_distances
from cvdask.synthesis.jaccard import jaccard_matrix
from cvdask.synthesis.order import order, shortest_path
from cvdask.volume.ensemble import create_ensemble, publish_ensemble
from cvdask.volume.parquet import table_metadata
from cvdask.volume.store import Volume, open_volume, read_attributes
from cvdask.volume.verify import verify
from tests.samples import write_sample
from tests.synthesis.test_tour import blobs
from tests.trees import tree_digest

CLASSES = {1: "mitochondria", 2: "myofibrils"}
N = 24


def shuffled(seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Return a stack of slices out of order, and which slice of the true stack each is."""
    places = np.random.default_rng(seed).permutation(n)
    return blobs(n)[places, ::3, ::2], places


def written(url: Path | str, data: np.ndarray, classes: Any = CLASSES, **options: Any) -> Volume:
    sample = write_sample(url, data * 100)
    write_sample(url, data, labels="classes", classes=classes, **options)
    return sample


def ensemble(folder: Path, n_members: int = 3) -> str:
    made = create_ensemble(folder / "all.zarr", n_members, {"stage": "generate"})
    for number in range(n_members):
        written(made.member_url(number), shuffled(number)[0], colors={1: "#ff0000"})
    return publish_ensemble(made).url


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Make even a small sample several blocks of every stage."""
    patch.setattr(stage, "FEWEST_PACKED", 8)
    patch.setattr(stage, "COLUMN_BYTES", 24 * 8 * 8)
    shapes = {"chunk_shape": (4, 8, 8), "shard_shape": (8, 16, 24)}
    patch.setattr(stage, "describe", partial(stage.describe, **shapes))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run that nothing stops leaves."""
    url = ensemble(tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        order(url)
    return tree_digest(Path(url))


def in_order(places: np.ndarray) -> bool:
    return bool((np.diff(places) == 1).all() or (np.diff(places) == -1).all())


def test_a_shuffled_stack_comes_back(tmp_path, small_blocks):
    data, places = shuffled()
    table = order(written(tmp_path / "cell.zarr", data))
    ordered = open_volume(tmp_path / "cell.zarr").label("ordered")
    found = np.array(ordered.attributes["order"])
    assert in_order(places[found])
    np.testing.assert_array_equal(ordered.read(), data[found])
    assert (ordered.classes, ordered.voxel_size_nm) == (CLASSES, (40, 10, 10))
    assert ordered.attributes["gap"] == 0
    # What is told is what the matrix says.
    distances = jaccard_matrix(data)
    path = shortest_path(distances)
    assert found.tolist() == path.order.tolist()
    assert ordered.attributes["length"] == path.length == ordered.attributes["bound"]
    assert ordered.attributes["j"] == mean_distances(distances, path.order)
    assert ordered.attributes["j_before"] == mean_distances(distances)
    assert table.column_names == ["volume", "position", "slice", "step"]
    assert table["slice"].to_pylist() == found.tolist()
    assert table["step"].to_pylist() == [*path.steps.tolist(), None]
    assert not list(tmp_path.rglob("*.partial")) + list(tmp_path.rglob("counts"))
    assert verify(ordered).ok


def test_every_member_of_an_ensemble(tmp_path, small_blocks):
    url = ensemble(tmp_path)
    table = order(url)
    for number in range(3):
        data, places = shuffled(number)
        ordered = open_volume(f"{url}/{number:04d}").label("ordered")
        found = np.array(ordered.attributes["order"])
        assert in_order(places[found])
        np.testing.assert_array_equal(ordered.read(), data[found])
        assert ordered.colors == {1: "#ff0000"}
        assert verify(ordered).ok
    stored = pyarrow.parquet.read_table(f"{url}/tables/order.parquet")
    assert stored.equals(table, check_metadata=True)
    assert table["volume"].to_pylist() == [f"{k:04d}" for k in range(3) for _ in range(N)]
    told = json.loads(Path(url, "tables/order.json").read_text())
    assert told == table_metadata(table.schema)
    assert list(told["volumes"]) == ["0000", "0001", "0002"]
    assert told["mean"]["j"][0] < told["mean"]["j_before"][0] / 2


def test_the_same_bytes_on_any_workers(tmp_path, small_blocks, client, undisturbed):
    url = ensemble(tmp_path)
    order(url, client=client)
    assert tree_digest(Path(url)) == undisturbed


class Interrupted(BaseException):
    """What a kill looks like from inside: nothing below catches it."""


STEPS = (
    ("begin", (1, 4, 5)),  # the first three only look
    ("delete_tree", (1, 2)),
    ("write_object", (1, 8, 20)),
    ("write_json", (1, 3)),
    ("write_box", (1, 4)),
    ("sweep", (1,)),
    ("publish", (1, 3)),
    ("write_tables", (1,)),
)


@pytest.mark.parametrize(("step", "call"), [(s, c) for s, calls in STEPS for c in calls])
def test_a_stop_anywhere(tmp_path, monkeypatch, small_blocks, undisturbed, step, call):
    url = ensemble(tmp_path)
    original, n_calls = getattr(stage, step), 0

    def later(*arguments: Any, **options: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            raise Interrupted
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stage, step, later)
        with pytest.raises(Interrupted):
            order(url)
    order(url)
    assert tree_digest(Path(url)) == undisturbed


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, small_blocks):
    url = ensemble(tmp_path)
    first = order(url)
    for name in ("run", "publish", "shortest_path"):
        monkeypatch.setattr(stage, name, None)
    assert order(url).equals(first, check_metadata=True)
    # Tables that were lost are written again from what the volumes say.
    Path(url, "tables/order.parquet").unlink()
    assert order(url).equals(first, check_metadata=True)


def test_a_label_image_that_was_lost_is_written_again(tmp_path, small_blocks, undisturbed):
    url = ensemble(tmp_path)
    order(url)
    shutil.rmtree(Path(url, "0001/labels/ordered"))
    order(url)
    assert tree_digest(Path(url)) == undisturbed


def test_other_options_need_a_word(tmp_path):
    sample = written(tmp_path / "cell.zarr", shuffled()[0])
    order(sample)
    with pytest.raises(FileExistsError, match="seed: 0 → 1"):
        order(sample, seed=1)
    order(sample, seed=1, overwrite=True)
    assert read_attributes(sample.url, labels="ordered")["provenance"]["options"]["seed"] == 1
    order(sample, seed=2, name="again")
    assert set(sample.label_names()) == {"classes", "ordered", "again"}
    assert Path(sample.url, "tables/order-again.json").exists()


def test_beside_a_real_stack(tmp_path):
    side = blobs(N)[:, ::3, ::3]
    real = written(tmp_path / "real.zarr", side)
    places = np.random.default_rng(1).permutation(N)
    sample = written(tmp_path / "made.zarr", side[places])
    alone = table_metadata(order(sample).schema)
    assert (alone["real"], alone["j1_ratio"]) == (None, None)
    beside = table_metadata(order(sample, real=real).schema)
    np.testing.assert_allclose(beside["real"], mean_distances(jaccard_matrix(side)))
    assert beside["j1_ratio"] == pytest.approx(1)
    assert beside["volumes"] == alone["volumes"]
    assert beside["provenance"]["real"]["volumes"][0]["volume"].endswith("real.zarr")


@pytest.mark.parametrize("n", [1, 2, 13])
def test_few_slices(tmp_path, n):
    data = shuffled(n=n)[0]
    found = table_metadata(order(written(tmp_path / "cell.zarr", data)).schema)
    (one,) = found["volumes"].values()
    assert (one["n_slices"], len(one["j"]), one["gap"]) == (n, n - 1, 0)


def test_empty_and_equal_slices_are_told(tmp_path):
    data = shuffled()[0]
    data[3:6], data[9] = 0, data[8]
    data[20, :, :2] = 255
    with pytest.warns(UserWarning, match="slices of cell") as caught:
        table = order(written(tmp_path / "cell.zarr", data))
    told = [str(one.message) for one in caught]
    assert ["3 of 24" in told[0], "1 of 24" in told[1]] == [True, True]
    assert table_metadata(table.schema)["warnings"] == told
    ordered = open_volume(tmp_path / "cell.zarr").label("ordered").read()
    assert np.count_nonzero(ordered == 255) == 32


def test_classes_without_names(tmp_path, small_blocks):
    data, places = shuffled()
    data[data == 2] = 200
    table = order(written(tmp_path / "cell.zarr", data.astype(np.uint16), None))
    assert in_order(places[table["slice"].to_numpy()])


def test_values_that_are_no_class_are_refused(tmp_path):
    data = shuffled()[0]
    data[3, 0, 0] = 9
    with pytest.raises(BlocksFailed, match=r"the value 9, which is no class \(1 voxels\)"):
        order(written(tmp_path / "cell.zarr", data))


def test_volumes_that_differ_are_refused(tmp_path):
    made = create_ensemble(tmp_path / "all.zarr", 2, {"stage": "generate"})
    data = shuffled()[0]
    written(made.member_url(0), data)
    written(made.member_url(1), data[:9])
    url = publish_ensemble(made).url
    with pytest.raises(ValueError, match=r"\(24, 16, 24\).*0000.*\(9, 16, 24\).*0001"):
        order(url)
    assert not Path(url, "0000/labels/ordered").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "classes"}, "'classes'"),
        ({"name": "a/b"}, "'a/b'"),
        ({"labels": "none"}, "'none'"),
        ({"seed": -1}, "seed -1"),
        ({"n_kicks": -5}, "n_kicks -5"),
    ],
)
def test_odd_options_are_refused(tmp_path, options, message):
    sample = written(tmp_path / "cell.zarr", shuffled()[0])
    with pytest.raises(ValueError, match=message):
        order(sample, **options)


def test_scratch_that_is_damaged_is_told(tmp_path, monkeypatch, small_blocks):
    sample = written(tmp_path / "cell.zarr", shuffled()[0])
    with monkeypatch.context() as patch:
        patch.setattr(stage, "shortest_path", lambda *_, **__: 1 / 0)
        with pytest.raises(BlocksFailed, match="ZeroDivisionError"):
            order(sample)
    for path in Path(sample.url).rglob("counts/*"):
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BlocksFailed, match=r"counts/000000-000000.*--overwrite"):
        order(sample)
    order(sample, overwrite=True)


def test_the_plan_counts_and_writes_nothing(tmp_path, small_blocks):
    url = ensemble(tmp_path)
    before = tree_digest(Path(url))
    plans = order(url, dry_run=True)
    assert isinstance(plans, list)
    assert [plan.stage for plan in plans] == ["pack", "compare", "path", "write"]
    assert [len(plan.grid) for plan in plans] == [3 * 3, 3 * 6, 3, 3 * 2 * 3]
    assert plans[0].read_bytes == plans[3].write_bytes == 3 * N * 16 * 24
    assert json.loads(json.dumps(plans[0].as_dict()))["volumes"] == 3
    assert tree_digest(Path(url)) == before


def test_columns_are_written_whole(tmp_path):
    """Blocks of the output span all slices, so no voxel is read twice, however many there are."""
    sample = written(tmp_path / "cell.zarr", shuffled()[0])
    job, _ = stage._describe_job(sample, "classes", "ordered", None, 0)
    grid = stage.plan_order(job)[3].grid
    assert all(block.write.shape[1] == N for block in grid)
