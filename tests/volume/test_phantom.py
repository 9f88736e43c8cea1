"""Is the phantom the same bytes however it is made, and refused where it would do harm?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pyarrow.parquet
import pytest
import zarr

from cvdask.engine.plan import Plan
from cvdask.volume import phantom as phantom_module
from cvdask.volume.boxes import Box
from cvdask.volume.cell import CLASS_COLORS, CLASSES, Cell, render, true_objects
from cvdask.volume.phantom import phantom, shared_shard
from cvdask.volume.store import Volume, open_volume
from cvdask.volume.verify import Verification, verify
from tests.trees import tree_digest

# 70 × 80 × 90 voxels, in 2 × 2 × 2 shards of 64³ under ``small_shards``.
OPTIONS: dict[str, Any] = {"size_um": (3.5, 4.0, 4.5), "voxel_nm": 50.0, "seed": 3}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom_module, "LARGEST_SHARD", 64)
        url = tmp_path_factory.mktemp("reference") / "cell.zarr"
        phantom(url, **OPTIONS)
    return tree_digest(url)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom_module, "LARGEST_SHARD", 64)


# What is written


def test_image_labels_and_truth(tmp_path: Path) -> None:
    volume = phantom(tmp_path / "cell.zarr", **OPTIONS)
    assert isinstance(volume, Volume)
    cell = Cell((70, 80, 90), (50.0, 50.0, 50.0), 3, "healthy")
    expected = render(cell, Box.whole(cell.shape))
    np.testing.assert_array_equal(volume.read(), expected.image)
    classes, objects = volume.label("truth"), volume.label("truth_objects")
    np.testing.assert_array_equal(classes.read(), expected.classes)
    np.testing.assert_array_equal(objects.read(), expected.instances)
    assert (classes.classes, classes.colors) == (CLASSES, CLASS_COLORS)
    assert objects.dtype == np.uint32
    assert [level.shape for level in volume.levels] == [(70, 80, 90), (35, 40, 45)]
    assert len(classes.levels) == len(objects.levels) == 2
    table = pyarrow.parquet.read_table(tmp_path / "cell.zarr/tables/truth.parquet")
    batches = list(true_objects(cell))
    for name in table.column_names:
        np.testing.assert_array_equal(
            table[name].to_numpy(), np.concatenate([batch[name] for batch in batches])
        )


def test_what_is_written_is_sound(tmp_path: Path) -> None:
    phantom(tmp_path, **OPTIONS)
    found = verify(str(tmp_path))
    assert isinstance(found, Verification)
    assert found.ok
    assert found.unsealed == ()
    group = zarr.open_group(tmp_path, mode="r")
    for path in ("", "labels/truth", "labels/truth_objects"):
        ome_zarr_models.open_ome_zarr(group[path] if path else group)


@pytest.mark.usefixtures("small_shards")
def test_any_client_writes_the_same_bytes(
    tmp_path: Path, client: Any, reference: dict[str, str]
) -> None:
    phantom(tmp_path / "cell.zarr", client=client, **OPTIONS)
    assert tree_digest(tmp_path / "cell.zarr") == reference


def test_any_shard_shape_holds_the_same_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = phantom(tmp_path / "whole", **OPTIONS)
    monkeypatch.setattr(phantom_module, "LARGEST_SHARD", 64)
    parts = phantom(tmp_path / "parts", **OPTIONS)
    assert isinstance(whole, Volume)
    assert isinstance(parts, Volume)
    assert (len(whole.levels[0].shards), len(parts.levels[0].shards)) == (1, 8)
    for labels in (None, "truth", "truth_objects"):
        for level in range(2):
            one = open_volume(whole.url, labels=labels).read(level=level)
            other = open_volume(parts.url, labels=labels).read(level=level)
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("changes", [{"seed": 4}, {"kind": "diabetic"}])
def test_seed_and_kind_change_the_cell(tmp_path: Path, changes: dict[str, Any]) -> None:
    options = {**OPTIONS, "n_levels": 1}
    first = phantom(tmp_path / "a", **options)
    second = phantom(tmp_path / "b", **{**options, **changes})
    assert isinstance(first, Volume)
    assert isinstance(second, Volume)
    assert np.count_nonzero(first.label("truth").read() != second.label("truth").read()) > 1000


def test_shared_shards_are_whole_chunks() -> None:
    assert shared_shard((1, 64, 65)) == (1, 64, 128)
    assert shared_shard((256, 257, 5000)) == (256, 256, 256)


# Plans


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    plans = phantom(tmp_path / "cell.zarr", dry_run=True, **OPTIONS)
    assert isinstance(plans, list)
    assert all(isinstance(plan, Plan) for plan in plans)
    assert [plan.stage for plan in plans] == [
        "phantom",
        "pyramid level 1",
        "pyramid level labels/truth/1",
        "pyramid level labels/truth_objects/1",
    ]
    # An image of 1 byte, classes of 1, objects of 4.
    assert plans[0].write_bytes == 6 * 70 * 80 * 90
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size_um": (1, 2)}, r"\(1, 2\)"),
        ({"size_um": (1, -2, 3)}, "-2"),
        ({"size_um": (1, float("inf"), 3)}, "inf"),
        ({"voxel_nm": 0}, "0"),
        ({"voxel_nm": (5, 5)}, r"\(5, 5\)"),
        ({"kind": "octopus"}, "octopus"),
        ({"n_levels": 0}, "0"),
    ],
)
def test_options_that_break_a_rule(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        phantom(tmp_path / "cell.zarr", **{**OPTIONS, **changes})
    assert list(tmp_path.iterdir()) == []


# What lies there already


def test_again_is_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom(tmp_path, **OPTIONS)
    before = tree_digest(tmp_path)
    monkeypatch.setattr(phantom_module, "render", None)  # would fail if it were called
    phantom(tmp_path, **OPTIONS)
    phantom(tmp_path, resume=True, **OPTIONS)
    assert tree_digest(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_other_options_are_refused_by_name(tmp_path: Path, resume: bool) -> None:
    phantom(tmp_path, **OPTIONS)
    before = tree_digest(tmp_path)
    with pytest.raises(FileExistsError, match=r"options\.seed: 3 → 5"):
        phantom(tmp_path, resume=resume, **{**OPTIONS, "seed": 5})
    with pytest.raises(FileExistsError, match=r"options\.kind: healthy → diabetic"):
        phantom(tmp_path, resume=resume, dry_run=True, **OPTIONS, kind="diabetic")
    assert tree_digest(tmp_path) == before


@pytest.mark.usefixtures("small_shards")
def test_overwrite_leaves_nothing_of_the_old_cell(
    tmp_path: Path, reference: dict[str, str]
) -> None:
    url = tmp_path / "cell.zarr"
    phantom(url, **{**OPTIONS, "seed": 9, "size_um": (5, 5, 5)})
    (url / "labels/mine").mkdir()
    (url / "labels/mine/zarr.json").write_text("{}")
    phantom(url, overwrite=True, dry_run=True, **OPTIONS)
    assert (url / "labels/mine").exists()
    phantom(url, overwrite=True, **OPTIONS)
    assert tree_digest(url) == reference


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["folder", "file", "hidden"])
def test_what_is_no_zarr_store_is_never_deleted(tmp_path: Path, what: str, overwrite: bool) -> None:
    home = tmp_path / "home"
    if what == "file":
        home.write_text("thesis")
    else:
        home.mkdir()
        (home / (".profile" if what == "hidden" else "thesis.txt")).write_text("thesis")
    with pytest.raises(FileExistsError, match="home"):
        phantom(home, overwrite=overwrite, **OPTIONS)
    kept = [home] if what == "file" else list(home.iterdir())
    assert [path.read_text() for path in kept] == ["thesis"]


def test_zarr_stores_of_others_are_replaced_on_request_only(tmp_path: Path) -> None:
    zarr.create_array(tmp_path, name="0", shape=(4,), dtype="u1")
    zarr.open_group(tmp_path, mode="a")
    with pytest.raises(FileExistsError, match="--overwrite"):
        phantom(tmp_path, **OPTIONS)
    phantom(tmp_path, overwrite=True, **OPTIONS)
    assert open_volume(tmp_path).shape == (70, 80, 90)


def test_an_empty_folder_is_a_destination(tmp_path: Path) -> None:
    (tmp_path / "cell.zarr").mkdir()
    phantom(tmp_path / "cell.zarr", **OPTIONS)
    assert open_volume(tmp_path / "cell.zarr").shape == (70, 80, 90)


# Interrupted


class Interrupted(BaseException):
    """What a kill looks like from inside: nothing below catches it."""


def interrupt_writes(patch: pytest.MonkeyPatch, after: int) -> list[str]:
    """Stop at the write of an object that follows ``after`` others; return their keys."""
    from zarr.storage import LocalStore

    keys: list[str] = []
    write = LocalStore.set

    async def stop(store: LocalStore, key: str, value: Any) -> None:
        if len(keys) >= after:
            raise Interrupted(key)
        keys.append(key)
        await write(store, key, value)

    patch.setattr(LocalStore, "set", stop)
    return keys


@pytest.mark.usefixtures("small_shards")
def test_a_stop_at_any_write_is_made_good_by_the_same_command(
    tmp_path: Path, reference: dict[str, str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        keys = interrupt_writes(patch, 10**6)
        phantom(tmp_path / "whole/cell.zarr", **OPTIONS)
    # Metadata first and last, where each key is a step of its own; every fourth in between.
    stops = sorted({*range(8), *range(0, len(keys), 4), *range(len(keys) - 8, len(keys))})
    for after in stops:
        url = tmp_path / str(after) / "cell.zarr"
        with pytest.MonkeyPatch.context() as patch:
            interrupt_writes(patch, after)
            with pytest.raises(Interrupted):
                phantom(url, **OPTIONS)
        if after:
            with pytest.raises(ValueError, match="phantom has begun"):
                open_volume(url)
        phantom(url, **OPTIONS)
        assert tree_digest(url) == reference, f"stopped before {keys[after]}"


@pytest.mark.usefixtures("small_shards")
def test_a_stop_while_an_old_cell_is_deleted(tmp_path: Path, reference: dict[str, str]) -> None:
    from cvdask.engine import output

    url = tmp_path / "cell.zarr"
    phantom(url, **{**OPTIONS, "seed": 9})
    delete_tree, n_deleted = output.delete_tree, 0

    def stop(root: str, prefix: str = "") -> None:
        nonlocal n_deleted
        if n_deleted == 2:
            raise Interrupted
        n_deleted += 1
        delete_tree(root, prefix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "delete_tree", stop)
        with pytest.raises(Interrupted):
            phantom(url, overwrite=True, **OPTIONS)
    # Half of it is left: it is not taken for a volume, nor for somebody's folder.
    for labels in (None, "truth", "truth_objects"):
        with pytest.raises((ValueError, FileNotFoundError)):
            open_volume(url, labels=labels)
    with pytest.raises(FileExistsError, match="--overwrite"):
        phantom(url, **OPTIONS)
    phantom(url, overwrite=True, **OPTIONS)
    assert tree_digest(url) == reference


def test_provenance_says_what_was_asked(tmp_path: Path) -> None:
    phantom(tmp_path, **OPTIONS)
    own = json.loads((tmp_path / "zarr.json").read_text())["attributes"]["cvdask"]
    assert own["provenance"]["stage"] == "phantom"
    assert own["provenance"]["options"] == {
        "shape": [70, 80, 90],
        "voxel_size_nm": [50.0, 50.0, 50.0],
        "seed": 3,
        "kind": "healthy",
        "n_levels": None,
    }
