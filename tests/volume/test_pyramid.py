"""Is every coarse voxel the mean or the mode of the voxels it covers, whatever the blocks?"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvdask.engine.plan import Plan
from cvdask.volume import pyramid as pyramid_module
from cvdask.volume.boxes import Block
from cvdask.volume.pyramid import downsample, level_factors, plan_levels, pyramid
from cvdask.volume.store import (
    Level,
    Volume,
    create_level,
    open_volume,
    read_attributes,
)
from tests import strategies
from tests.samples import random_voxels, write_sample
from tests.trees import tree_digest


def cells(data: np.ndarray, factors: tuple[int, ...]) -> Any:
    """Yield the place of every coarse voxel and the finer voxels it covers."""
    shape = [-(-n // f) for n, f in zip(data.shape, factors, strict=True)]
    for place in np.ndindex(*shape):
        cut = tuple(slice(p * f, (p + 1) * f) for p, f in zip(place, factors, strict=True))
        yield place, [voxel.item() for voxel in data[cut].ravel()]


def brute_force(data: np.ndarray, factors: tuple[int, ...], mode: bool) -> np.ndarray:
    """Compute one coarse voxel after the other, in exact arithmetic."""
    out = np.empty([-(-n // f) for n, f in zip(data.shape, factors, strict=True)], data.dtype)
    for place, values in cells(data, factors):
        if mode:
            counts = Counter(values)
            most = max(counts.values())
            out[place] = min(value for value, n in counts.items() if n == most)
        elif data.dtype.kind == "f":
            out[place] = np.mean(np.array(values, "float64"))
        else:
            out[place] = (Fraction(sum(values), len(values)) + Fraction(1, 2)).__floor__()
    return out


# Small cases, written out


def test_mean_of_a_slice() -> None:
    data = np.array([[[0, 1, 10], [1, 1, 21], [3, 4, 5]]], "uint8")
    # Halves are rounded up: 15.5 → 16; the last row and column take the voxels that there are.
    np.testing.assert_array_equal(downsample(data, (1, 2, 2), mode=False), [[[1, 16], [4, 5]]])


def test_mean_of_negative_voxels_rounds_halves_up_too() -> None:
    data = np.array([[[-1, -2, -3, -4, 1, 2]]], "int16")
    assert downsample(data, (1, 1, 2), mode=False).tolist() == [[[-1, -3, 2]]]


def test_mean_of_the_largest_voxels_does_not_overflow() -> None:
    for dtype in ("uint8", "uint16", "uint32", "uint64", "int64"):
        limits = np.iinfo(dtype)
        for value in (limits.max, limits.min):
            data = np.full((2, 2, 2), value, dtype)
            assert downsample(data, (2, 2, 2), mode=False).item() == value


def test_mode_of_a_slice() -> None:
    data = np.array([[[5, 5, 9, 2], [5, 1, 2, 9], [0, 7, 3, 3]]], "uint32")
    # Of equally frequent values the smallest: 2 of (9 2 2 9), 0 of (0 7).
    np.testing.assert_array_equal(downsample(data, (1, 2, 2), mode=True), [[[5, 2], [0, 3]]])


# Invariants


@given(st.data())
def test_equal_to_brute_force(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.sampled_from(strategies.EXTENTS)] * 3))
    factors = data.draw(st.tuples(*[st.integers(1, 2)] * 3))
    mode = data.draw(st.booleans())
    dtype = data.draw(st.sampled_from(["uint8", "int16", "uint32", "int64", "uint64", "float32"]))
    voxels = random_voxels(shape, dtype, data.draw(st.integers(0, 99)))
    if mode:  # few values, so that they repeat
        if voxels.dtype.kind == "f":
            return
        voxels = (voxels % np.array(3, dtype)).astype(dtype)
    np.testing.assert_array_equal(
        downsample(voxels, factors, mode=mode), brute_force(voxels, factors, mode)
    )


@pytest.mark.parametrize("mode", [False, True])
def test_every_order_of_a_cell_gives_the_same_voxel(mode: bool) -> None:
    results = {
        downsample(np.array(order, "uint8").reshape(1, 2, 2), (1, 2, 2), mode=mode).item()
        for order in itertools.permutations([7, 3, 7, 3])
    }
    assert results == ({3} if mode else {5})


# Which levels


def level(shape: tuple[int, ...], voxel: tuple[float, float, float], path: str = "0") -> Level:
    return Level(path, shape, "uint8", (64, 64, 64), (64, 64, 64), voxel)


def test_axes_are_halved_until_voxels_are_about_isotropic() -> None:
    planned = plan_levels(level((500, 1000, 1000), (50.0, 10.0, 10.0)))
    assert [(one.path, one.voxel_size_nm) for one in planned] == [
        ("1", (50.0, 20.0, 20.0)),
        ("2", (50.0, 40.0, 40.0)),
        ("3", (100.0, 80.0, 80.0)),
        ("4", (200.0, 160.0, 160.0)),
        ("5", (400.0, 160.0, 160.0)),  # only z is longer than 64 voxels by then
    ]
    assert planned[-1].shape == (63, 63, 63)
    # Centres: a voxel of level 2 covers four of 10 nm, the first of them at 0.
    assert planned[1].origin_nm == (0.0, 15.0, 15.0)


def test_levels_end_where_one_fits_a_chunk() -> None:
    assert plan_levels(level((64, 64, 64), (10.0, 10.0, 10.0))) == []
    assert [one.shape for one in plan_levels(level((65, 10, 10), (10.0, 10.0, 10.0)))] == [
        (33, 10, 10)
    ]


def test_levels_of_labels_lie_below_them() -> None:
    planned = plan_levels(level((200, 64, 64), (10.0,) * 3, "labels/classes/0"), 2)
    assert [one.path for one in planned] == ["labels/classes/1"]


@given(
    st.tuples(*[st.integers(1, 3000)] * 3),
    st.tuples(*[st.sampled_from([4.0, 10.0, 35.0, 50.0])] * 3),
)
def test_planned_levels_shrink_by_one_or_two(
    shape: tuple[int, ...], voxel: tuple[float, float, float]
) -> None:
    fine = level(shape, voxel)
    for coarse in plan_levels(fine):
        factors = level_factors(fine, coarse)
        assert set(factors) <= {1, 2}
        assert coarse.shape == tuple(-(-n // f) for n, f in zip(fine.shape, factors, strict=True))
        assert coarse.shape != fine.shape
        fine = coarse
    assert max(fine.shape) <= 64


@pytest.mark.parametrize("n_levels", [0, -1, 17])
def test_a_number_of_levels_that_cannot_be(n_levels: int) -> None:
    with pytest.raises(ValueError, match=rf"16.*{n_levels}"):
        plan_levels(level((100, 100, 100), (10.0,) * 3), n_levels)


def test_levels_need_a_voxel_size() -> None:
    with pytest.raises(ValueError, match="voxel size"):
        plan_levels(replace(level((100, 100, 100), (1.0,) * 3), voxel_size_nm=None))


# The verb


def expected_levels(data: np.ndarray, volume: Volume) -> list[np.ndarray]:
    arrays = [data]
    for fine, coarse in itertools.pairwise(volume.levels):
        factors = level_factors(fine, coarse)
        arrays.append(brute_force(arrays[-1], factors, volume.is_labels))
    return arrays


@pytest.mark.parametrize("labels", [None, "classes"])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_levels_on_disk(tmp_path: Path, client: Any, labels: str | None, dtype: str) -> None:
    data = random_voxels((9, 21, 17), dtype) % 5
    write_sample(tmp_path, data)
    if labels:
        write_sample(tmp_path, data, labels=labels)
    volume = pyramid(str(tmp_path), labels=labels, n_levels=4, client=client)
    assert isinstance(volume, Volume)
    assert [one.shape for one in volume.levels] == [
        (9, 21, 17),
        (9, 11, 9),
        (9, 6, 5),
        (5, 3, 3),
    ]
    for number, expected in enumerate(expected_levels(data, volume)):
        np.testing.assert_array_equal(volume.read(level=number), expected)
    assert open_volume(tmp_path, labels=labels).levels == volume.levels


@settings(max_examples=12)
@given(data=st.data())
def test_blocks_do_not_show(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    # Whatever the shards of the finer and of the coarser level.
    voxels = random_voxels(data.draw(st.tuples(*[st.sampled_from(strategies.EXTENTS)] * 3)), "u1")
    shards = st.tuples(*[st.integers(1, 7)] * 3)
    mode = data.draw(st.booleans())
    fine_shard, coarse_shard = data.draw(shards), data.draw(shards)
    volume = write_sample(
        tmp_path_factory.mktemp("pyramid"),
        voxels,
        labels="classes" if mode else None,
        chunk_shape=fine_shard,
        shard_shape=fine_shard,
    )
    fine = volume.levels[0]
    factors = data.draw(st.tuples(*[st.integers(1, 2)] * 3))
    shape = tuple(-(-n // f) for n, f in zip(voxels.shape, factors, strict=True))
    coarse = replace(
        fine,
        path=fine.path.removesuffix("0") + "1",
        shape=shape,
        chunk_shape=coarse_shard,
        shard_shape=coarse_shard,
    )
    full = replace(volume, levels=(fine, coarse))
    pyramid_module.build_levels(full)
    np.testing.assert_array_equal(
        full.read(level=1), brute_force(voxels, level_factors(fine, coarse), mode)
    )


def test_levels_that_are_there_stay(tmp_path: Path) -> None:
    volume = write_sample(tmp_path, random_voxels((8, 20, 20), "uint8"))
    pyramid(volume, n_levels=2)
    before = tree_digest(tmp_path)
    longer = pyramid(str(tmp_path), n_levels=3)
    assert isinstance(longer, Volume)
    after = tree_digest(tmp_path)
    assert len(longer.levels) == 3
    assert {key: after[key] for key in before if key != "zarr.json"} == {
        key: digest for key, digest in before.items() if key != "zarr.json"
    }
    assert pyramid(str(tmp_path), n_levels=1) is not None
    assert tree_digest(tmp_path) == after


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    write_sample(tmp_path, random_voxels((8, 20, 20), "uint8"))
    before = tree_digest(tmp_path)
    plans = pyramid(str(tmp_path), n_levels=3, dry_run=True)
    assert isinstance(plans, list)
    assert all(isinstance(plan, Plan) for plan in plans)
    assert [plan.notes["factors"] for plan in plans] == [[1, 2, 2], [1, 2, 2]]
    assert tree_digest(tmp_path) == before


def test_volumes_of_others_are_left_as_they_are(tmp_path: Path) -> None:
    volume = replace(write_sample(tmp_path, np.ones((4, 4, 4), "uint8")), attributes={})
    with pytest.raises(ValueError, match="cvdask ingest"):
        pyramid(volume)


# Interrupted


class Interrupted(BaseException):
    """What a kill looks like from inside: nothing below catches it."""


@pytest.mark.parametrize("stop_after", [0, 1, 5, 6, 7, 8])
def test_an_interrupted_pyramid_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    # Six blocks of level 1, two of level 2, one of level 3: some stops lie between levels.
    data = random_voxels((8, 24, 24), "uint8")
    for name in ("whole", "stopped"):
        write_sample(tmp_path / name / "cell.zarr", data)
    monkeypatch.setattr(
        pyramid_module, "storage_shapes", lambda shape, itemsize: ((4, 4, 4), (8, 8, 4))
    )
    pyramid(str(tmp_path / "whole/cell.zarr"), n_levels=4)
    written: list[tuple[str, int]] = []
    write_block = pyramid_module._write_block

    def count(url: str, fine: Level, coarse: Level, labels: bool, block: Block) -> dict[str, Any]:
        if len(written) == stop_after:
            written.append(("stopped", 0))
            raise Interrupted
        record = write_block(url, fine, coarse, labels, block)
        written.append((coarse.path, block.index))
        return record

    monkeypatch.setattr(pyramid_module, "_write_block", count)
    url = tmp_path / "stopped/cell.zarr"
    with pytest.raises(Interrupted):
        pyramid(str(url), n_levels=4)
    assert len(open_volume(url).levels) == 1  # not shown before it is whole
    level_path = str(1 + (stop_after >= 6) + (stop_after >= 8))
    leftover = url / level_path / "c/0/0/0.0123456789abcdef.partial"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"what a writer that was killed leaves")
    pyramid(str(url), n_levels=4)
    assert tree_digest(url) == tree_digest(tmp_path / "whole/cell.zarr")
    assert read_attributes(url)["state"] == "complete"


def test_a_level_whose_array_was_created_and_no_more(tmp_path: Path) -> None:
    volume = write_sample(tmp_path, random_voxels((8, 20, 20), "uint8"))
    create_level(volume.url, plan_levels(volume.levels[0], 2)[0])
    finished = pyramid(volume, n_levels=2)
    assert isinstance(finished, Volume)
    np.testing.assert_array_equal(
        finished.read(level=1), brute_force(volume.read(), (1, 2, 2), False)
    )
