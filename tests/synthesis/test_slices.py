"""Slices: the right pixels, in an order that depends on seed and step alone, within the cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.synthesis import slices as slices_module
from cvdask.synthesis.majority import vote
from cvdask.synthesis.slices import Batch, SliceSet, open_slices
from cvdask.volume.store import Volume, open_volume, update_attributes
from tests.samples import write_sample

VALUES = (0, 1, 2, 4)
NAMES = {1: "mitochondria", 2: "myofibrils", 4: "z_discs"}
SHAPE = (37, 22, 19)


def voxels(seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.uint8([0, 1, 2, 4]), shape)


def write_classes(
    url: Path, data: np.ndarray, size: Sequence[float] = (40, 10, 10), **options: Any
) -> Volume:
    write_sample(url, np.zeros(data.shape, np.uint8), voxel_size_nm=size)
    options = {"classes": NAMES, "shard_shape": (8, 24, 20), **options}
    write_sample(url, data, labels="classes", voxel_size_nm=size, **options)
    return open_volume(url)


def opened(volumes: Any, **options: Any) -> SliceSet:
    """Open slices and forget the note that they are few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return open_slices(volumes, **options)


def expected_square(plane: np.ndarray, side: int, factor: int, values: Sequence[int]) -> np.ndarray:
    """Crop, then count the voxels of each cell, value by value."""
    y, x = ((n - side * factor) // 2 for n in plane.shape)
    cut = plane[y : y + side * factor, x : x + side * factor]
    cells = cut.reshape(side, factor, side, factor)
    counts = [(cells == value).sum((1, 3)) for value in values]
    counts[0] = counts[0] + (~np.isin(cells, values)).sum((1, 3))
    return np.argmax(counts, 0).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# Pixels


def test_a_small_slice_by_hand(tmp_path):
    data = np.zeros((1, 8, 10), np.uint8)
    data[0, :, 1:9] = np.kron([[1, 2, 0, 4]] * 4, np.ones((2, 2)))
    data[0, 0, 1:3] = 2, 4  # a cell of 2 4 / 1 1: one wins
    data[0, 2, 1:3] = 4, 4  # a cell of 4 4 / 1 1: the smaller wins
    data[0, 4:6, 1] = 2, 2
    data[0, 4, 2] = 2  # 2 wins
    volume = write_classes(tmp_path / "cell.zarr", data)
    found = opened(volume, resolution=4)
    assert (found.reduction, found.voxel_size_nm) == (2, (40, 20, 20))
    assert found.values == (0, 1, 2, 4)
    assert found.names == ("background", "mitochondria", "myofibrils", "z_discs")
    rows = [[1, 2, 0, 3], [1, 2, 0, 3], [2, 2, 0, 3], [1, 2, 0, 3]]
    np.testing.assert_array_equal(found.read([0])[0], rows)
    np.testing.assert_array_equal(found.batch(0, 1).channels[0, 0], rows)


@given(st.data())
def test_cells_take_the_class_of_most_voxels(data):
    factor, n = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 1000))
    plane = np.random.default_rng(seed).integers(0, 4, (3, n * factor, n * factor), np.uint8)
    out = np.full((2, n, n), 9, np.uint8)
    rows, places = np.array([2, 0]), np.array([0, 1])
    assert vote(plane, rows, np.arange(256, dtype=np.uint8), factor, out, places) == -1
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(out[place], expected_square(plane[row], n, factor, range(4)))


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 16},
        {"resolution": 8},  # 2 × 2
        {"resolution": 4},  # 4 × 4
        {"resolution": 4, "reduction": 3},  # cells that shards cut
        {"resolution": 8, "classes": "myofibrils"},
        {"resolution": 8, "classes": [4, "mitochondria"]},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("shard", [(8, 8, 8), (4, 12, 8), (12, 24, 20)])
def test_squares_are_those_of_the_volume(tmp_path, options, shard):
    data = voxels()
    volume = write_classes(tmp_path / "cell.zarr", data, shard_shape=shard)
    found = opened(volume, **options)
    assert (found.n_slices, found.resolution) == (37, options.get("resolution", 16))
    expected = [
        expected_square(plane, found.resolution, found.reduction, found.values) for plane in data
    ]
    np.testing.assert_array_equal(found.read(range(37)), expected)
    np.testing.assert_array_equal(found.read([30, 2, 30]), [expected[k] for k in (30, 2, 30)])
    batch = found.batch(3, 11)
    np.testing.assert_array_equal(batch.channels[:, 0], [expected[k] for k in batch.index[:, 0]])
    assert batch.channels.dtype == np.uint8
    assert (batch.place.dtype, batch.index.dtype) == (np.float32, np.int64)


def test_examples_are_what_a_training_sees(tmp_path):
    sample = write_classes(tmp_path / "cell.zarr", voxels())
    centred = opened(sample, resolution=8)
    slices, index = centred.examples(5)
    assert index.tolist() == centred.spread(5).tolist()
    np.testing.assert_array_equal(slices, centred.read(index))
    # Random squares: more than there are slices, and the same as in the first batches.
    random = opened(sample, resolution=8, crop="random")
    slices, index = random.examples(70)
    assert slices.shape == (70, 8, 8)
    batches = [random.batch(step, 64) for step in (0, 1)]
    expected = np.concatenate([batch.channels[:, 0] for batch in batches])[:70]
    np.testing.assert_array_equal(slices, expected)
    np.testing.assert_array_equal(
        index, np.concatenate([batch.index[:, 0] for batch in batches])[:70]
    )
    assert len(np.unique(slices, axis=0)) > centred.n_slices


@pytest.mark.parametrize("reduction", [1, 2])
def test_random_crops_are_cut_out_anywhere(tmp_path, reduction):
    data = voxels()
    found = opened(
        write_classes(tmp_path / "cell.zarr", data),
        resolution=8, crop="random", reduction=reduction, slices_per_sample=3,
    )  # fmt: skip
    batch = found.batch(0, 24)
    side = 8 * reduction
    corners = set()
    for sample, index in zip(batch.channels, batch.index, strict=True):
        fitting = [
            (y, x)
            for y in range(22 - side + 1)
            for x in range(19 - side + 1)
            if all(
                np.array_equal(
                    expected_square(
                        data[z, y : y + side, x : x + side], 8, reduction, found.values
                    ),
                    square,
                )
                for z, square in zip(index, sample, strict=True)
            )
        ]
        assert len(fitting) == 1  # one place for all slices of the sample
        corners.add(fitting[0])
    assert len(corners) > 8
    assert found.reduction == reduction
    centre = [expected_square(plane, 8, reduction, found.values) for plane in data]
    np.testing.assert_array_equal(found.read(range(37)), centre)


# ---------------------------------------------------------------------------------------------
# Order


def as_bytes(batch: Batch) -> bytes:
    return batch.channels.tobytes() + batch.place.tobytes() + batch.index.tobytes()


def everything(found: SliceSet, size: int, n_steps: int) -> list[bytes]:
    return [as_bytes(found.batch(step, size)) for step in range(n_steps)]


@pytest.mark.parametrize("cache_bytes", [2**30, 2 * 16 * 64 + 1])
@pytest.mark.parametrize("n_together", [1, 3])
def test_a_step_gives_the_same_batch_whenever_it_is_asked_for(tmp_path, cache_bytes, n_together):
    volume = write_classes(tmp_path / "cell.zarr", voxels())
    options = {"resolution": 8, "cache_bytes": cache_bytes, "seed": 5}
    options |= {"slices_per_sample": n_together, "max_span": 6}
    found = opened(volume, **options)
    assert found.fits_cache == (cache_bytes > 10000)
    first = everything(found, 7, 12)
    again = opened(volume, **options)
    for step in (11, 3, 0, 7):
        assert as_bytes(again.batch(step, 7)) == first[step]
    ahead = opened(volume, **options).batches(7, first_step=4)
    for step in range(4, 12):
        batch = next(ahead)
        assert (
            batch.channels.tobytes() + batch.place.tobytes() + batch.index.tobytes() == first[step]
        )
    ahead.close()
    assert everything(opened(volume, **{**options, "seed": 6}), 7, 12) != first


@pytest.mark.parametrize("cache_bytes", [2**30, 2 * 16 * 64])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_takes_each_slice_once(tmp_path, cache_bytes, shuffle):
    volume = write_classes(tmp_path / "cell.zarr", voxels())
    found = opened(volume, resolution=8, cache_bytes=cache_bytes, shuffle=shuffle)
    size = 5
    index = np.concatenate([found.batch(step, size).index[:, 0] for step in range(3 * 37 // size)])
    passes = index[: 37 * 2].reshape(2, 37)
    np.testing.assert_array_equal(np.sort(passes, 1), [np.arange(37)] * 2)
    if not shuffle:
        np.testing.assert_array_equal(passes, [np.arange(37)] * 2)
    else:
        assert not np.array_equal(passes[0], passes[1])
        assert np.abs(np.diff(passes[0])).mean() > 3


@pytest.mark.parametrize("cache_bytes", [2**30, 2 * 16 * 64])
@pytest.mark.parametrize("n_together", [2, 3, 4])
def test_samples_of_several_slices(tmp_path, cache_bytes, n_together):
    volumes = [
        write_classes(tmp_path / f"{name}.zarr", voxels(k, (37, 8, 8)))
        for k, name in enumerate(("a", "b"))
    ]
    options = {"resolution": 8, "slices_per_sample": n_together, "max_span": 8}
    found = opened(volumes, cache_bytes=cache_bytes, **options)
    index = np.concatenate([found.batch(step, 16).index for step in range(20)])
    assert index.shape == (320, n_together)
    assert (np.diff(index, axis=1) > 0).all()
    spans = found.z[index[:, -1]] - found.z[index[:, 0]]
    assert (found.volume[index] == found.volume[index[:, :1]]).all()
    assert set(spans) == set(range(n_together - 1, 9))
    in_order = opened(volumes, shuffle=False, **options).batch(0, 5)
    np.testing.assert_array_equal(in_order.index, np.arange(5)[:, None] + np.arange(n_together))


def test_places_are_distances(tmp_path):
    deep = write_classes(tmp_path / "deep.zarr", voxels())
    thin = write_classes(tmp_path / "thin.zarr", voxels(1, (9, 22, 19)))
    found = opened([thin, deep], resolution=16, shuffle=False)
    assert (found.n_slices, found.depth, found.place_step) == (46, 37, 1 / 36)
    batch = found.batch(0, 46)
    expected = np.float32([*np.arange(9) / 36, *np.arange(37) / 36])
    np.testing.assert_allclose(batch.place[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(found.volume, [0] * 9 + [1] * 37)
    part = opened(deep, resolution=16, shuffle=False, z_range=(10, 21))
    np.testing.assert_allclose(part.batch(0, 11).place[:, 0], np.arange(11) / 10, rtol=1e-6)
    np.testing.assert_array_equal(part.z, range(10, 21))


# ---------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize("n_together", [1, 3])
def test_each_shard_is_decoded_once_a_pass_and_the_cache_is_bounded(
    tmp_path, monkeypatch, n_together
):
    volume = write_classes(tmp_path / "cell.zarr", voxels(0, (64, 16, 16)), shard_shape=(8, 8, 8))
    boxes = []
    read = slices_module.read_classes

    def note(url, level, box):
        boxes.append(box)
        return read(url, level, box)

    monkeypatch.setattr(slices_module, "read_classes", note)
    options = {"slices_per_sample": n_together, "max_span": 4}
    found = opened(volume, resolution=16, cache_bytes=2 * 16 * 256, **options)
    held = []
    for step in range(found.n_samples // 4):
        found.batch(step, 4)
        held.append(sum(slab.squares.nbytes for slab in found._cache._held.values()))
    found.close()
    assert max(held) <= 2 * 16 * 256
    n_shards = 8 * 2 * 2
    # Of the pass to come, one window may be read ahead.
    assert n_shards <= len(boxes) <= n_shards + 8
    assert len(set(boxes[:n_shards])) == n_shards
    boxes.clear()
    whole = opened(volume, resolution=16, **options)
    for step in range(100):
        whole.batch(step, 4)
    assert len(boxes) == len(set(boxes)) == n_shards


def test_a_slab_that_could_not_be_read_is_read_again(tmp_path, monkeypatch):
    found = opened(write_classes(tmp_path / "cell.zarr", voxels()), resolution=16)

    def fail(*_):
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(slices_module, "read_classes", fail)
        with pytest.raises(OSError, match="no answer"):
            found.batch(0, 4)
    found.batch(0, 4)


def test_a_cache_that_holds_nothing_is_refused(tmp_path):
    volume = write_classes(tmp_path / "cell.zarr", voxels())
    with pytest.raises(ValueError, match=r"2048 bytes.*cache_bytes 2047"):
        opened(volume, resolution=16, cache_bytes=2047)


# ---------------------------------------------------------------------------------------------
# What is left out, and said


def test_holes_and_noisy_slices_are_left_out_and_said(tmp_path):
    volume = write_classes(tmp_path / "cell.zarr", voxels())
    told = {
        "treatment": "hole", "missing": [3, 4], "damaged": {"9": "unreadable"},
        "blank": [4, 20], "outliers": [21],
    }  # fmt: skip
    update_attributes(volume, slices=told)
    with pytest.warns(UserWarning, match=r"left out|are few") as caught:
        found = open_slices(volume, resolution=8, exclude=[0, 36])
    texts = "\n".join(str(warning.message) for warning in caught)
    for part in ("missing: z = 3, 4", "damaged: z = 9", "blank: z = 20", "neighbours: z = 21"):
        assert part in texts
    assert "excluded: z = 0, 36" in texts
    assert "30 slices are few" in texts
    gone = {0, 3, 4, 9, 20, 21, 36}
    np.testing.assert_array_equal(found.z, sorted(set(range(37)) - gone))
    assert len(found.notes) == 6
    described = found.describe()
    assert described["volumes"][0]["left_out"]["missing"] == [3, 4]
    kept = opened(volume, resolution=8, keep_noisy=True, z_range=(0, 22))
    np.testing.assert_array_equal(kept.z, sorted(set(range(22)) - {3, 4, 9}))
    batch = found.batch(0, 30)
    assert not set(found.z[batch.index.ravel()]) & gone
    by_volume = opened([volume, volume], resolution=8, exclude={1: [5]})
    assert by_volume.n_slices == 2 * 32 - 1


def test_only_annotated_slices_of_sparse_annotations(tmp_path):
    data = voxels()
    data[5:] = 255
    volume = write_classes(tmp_path / "cell.zarr", data)
    update_attributes(volume.label("classes"), slices={"annotated": [0, 1, 2, 3, 4]})
    found = opened(volume, resolution=16)
    assert found.n_slices == 5
    assert "32 slices are left out, not annotated" in found.notes[0]
    found.batch(0, 5)


def test_few_slices_are_warned_of_and_many_are_not(tmp_path):
    with pytest.warns(UserWarning, match=r"37 slices are few.*memorisation"):
        open_slices(write_classes(tmp_path / "few.zarr", voxels()), resolution=8)
    many = write_classes(tmp_path / "many.zarr", voxels(0, (50, 8, 8)))
    assert open_slices(many).notes == ()


def test_voxels_without_class_are_refused(tmp_path):
    data = voxels()
    data[17, 11, 9] = 255
    volume = write_classes(tmp_path / "cell.zarr", data)
    with pytest.raises(ValueError, match=r"slice 17 .*1 voxels that nobody.*exclude"):
        opened(volume, resolution=8).batch(0, 37)
    opened(volume, resolution=8, exclude=[17]).batch(0, 36)
    data[17, 11, 9] = 9
    volume = write_classes(tmp_path / "odd.zarr", data)
    with pytest.raises(ValueError, match=r"slice 17 .*the value 9, which is no class"):
        opened(volume, resolution=16).read([17])


# ---------------------------------------------------------------------------------------------
# What is refused


def test_volumes_must_agree(tmp_path):
    first = write_classes(tmp_path / "a.zarr", voxels())
    coarse = write_classes(tmp_path / "b.zarr", voxels(), size=(40, 20, 20))
    with pytest.raises(ValueError, match=r"voxel size.*\(40\.0, 10\.0, 10\.0\).*\(40\.0, 20\.0"):
        open_slices([first, coarse])
    other = write_classes(tmp_path / "c.zarr", voxels(), classes={1: "mitochondria"})
    with pytest.raises(ValueError, match=r"classes.*4: 'z_discs'.*c\.zarr"):
        open_slices([first, other])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resolution": 32}, "32 pixels of 1 voxels.*22 × 19"),
        ({"resolution": 8, "reduction": 3}, "takes 24 voxels"),
        ({"resolution": 24}, "power of two from 4. Received: 24"),
        ({"reduction": 0}, "Received: 0"),
        ({"crop": "corner"}, "'corner'"),
        ({"slices_per_sample": 0}, "Received: 0"),
        ({"slices_per_sample": 3, "max_span": 1}, "max_span 1"),
        ({"slices_per_sample": 3, "z_range": (4, 6)}, "takes 3 slices.*2 slices that are left"),
        ({"z_range": (5, 40)}, "0 to 36. Received: 5:40"),
        ({"z_range": (5, 6), "exclude": [5]}, "no slice is left"),
        ({"exclude": {0: [37]}}, r"0 and 36. Received: \[37\]"),
        ({"classes": "nucleus"}, "'nucleus'"),
        ({"classes": "background"}, "besides background"),
        ({"labels": "truth"}, "'truth'"),
    ],
    ids=str,
)
def test_options_that_break_a_rule(tmp_path, options, told):
    volume = write_classes(tmp_path / "cell.zarr", voxels())
    with pytest.raises(ValueError, match=told):
        opened(volume, **options)


def test_classes_without_names_must_be_chosen(tmp_path):
    volume = write_classes(tmp_path / "cell.zarr", voxels(), classes=None)
    with pytest.raises(ValueError, match="no names of classes"):
        opened(volume)
    found = opened(volume, classes="1,4", resolution=16)
    assert found.names == ("background", "class 1", "class 4")
    expected = expected_square(voxels()[3], 16, 1, (0, 1, 4))
    np.testing.assert_array_equal(found.read([3])[0], expected)


def test_steps_and_numbers_that_are_none(tmp_path):
    found = opened(write_classes(tmp_path / "cell.zarr", voxels()), resolution=8)
    with pytest.raises(ValueError, match="step -1, size 4"):
        found.batch(-1, 4)
    with pytest.raises(ValueError, match=r"0 to 36\. Received: 3 to 37"):
        found.read([3, 37])
