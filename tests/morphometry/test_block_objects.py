"""Objects of a block: their rows, faces and labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.morphometry.block_objects import (
    examine,
    find_class_objects,
    find_instances,
    keys_of,
    outline,
    paint,
)
from cvdask.morphometry.partials import BOUNDS, GREY_DIGIT, KEY, KIND, MOMENTS, N_VOXELS, Layout
from cvdask.volume.boxes import Box
from tests.morphometry.by_hand import class_volumes, components, moments_of, rows_of, table_of

ENDS = np.ones(6, bool)


def examined(data: np.ndarray, connectivity: int = 26, layout: Layout | None = None, **given_):
    box = given_.pop("box", Box.whole(data.shape))
    shape = given_.pop("shape", data.shape)
    runs, kinds, _ = find_class_objects(data, table_of(1, 2), connectivity)
    keys = keys_of(runs, box, shape)
    layout = layout or Layout()
    return examine(
        runs, keys, kinds, box, given_.pop("ends", ENDS), layout,
        unambiguous=connectivity == 26, **given_,
    )  # fmt: skip


@given(data=class_volumes())
def test_rows_of_a_whole_volume(data):
    found = examined(data)
    rows, moments = rows_of(data, components(data, 26), table_of(1, 2))
    rows[:, MOMENTS] = np.array(moments, np.int64).reshape(-1, 10)
    np.testing.assert_array_equal(found.rows, rows)


def test_a_block_lies_in_its_volume():
    data = np.zeros((2, 3, 4), np.uint8)
    data[1, 1, 2:] = 1
    found = examined(data, box=Box((10, 20, 30), (12, 23, 34)), shape=(100, 100, 100))
    assert found.rows[0, KEY] == 11 * 10_000 + 21 * 100 + 32
    assert found.rows[0, BOUNDS].tolist() == [11, 21, 32, 12, 22, 34]
    assert found.rows[0, MOMENTS].tolist() == [2, 0, 0, 1, 0, 0, 1, 0, 0, 0]


def test_keys_at_a_million_voxels_a_side():
    runs, _, _ = find_class_objects(np.ones((1, 1, 1), np.uint8), table_of(1), 26)
    box = Box((10**6 - 1,) * 3, (10**6,) * 3)
    assert keys_of(runs, box, (10**6,) * 3).tolist() == [10**18 - 1]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@given(data=class_volumes(), seed=st.integers(0, 99))
def test_grey_values(dtype, data, seed):
    limits = np.iinfo(dtype)
    image = np.random.default_rng(seed).integers(
        limits.min, limits.max, data.shape, dtype, endpoint=True
    )
    layout = Layout(intensity=True)
    found = examined(data, layout=layout, image=image)
    labels = components(data, 26)
    for n, row in enumerate(found.rows[:, layout.grey], start=1):
        grey = image[labels == n].astype(object)
        squares = int((grey**2).sum())
        assert row.tolist() == [grey.sum(), *divmod(squares, GREY_DIGIT), grey.min(), grey.max()]


@given(data=class_volumes(n_classes=3))
def test_contacts_within_a_block(data):
    layout = Layout(n_contacts=3)
    contact_of = np.full(256, -1)
    contact_of[1:4] = [0, 1, 2]
    found = examined(data, layout=layout, values=data, contact_of=contact_of)
    labels = components(np.where(data < 3, data, 0), 26)
    for n, row in enumerate(found.rows[:, layout.contacts].reshape(-1, 3, 3), start=1):
        mask = labels == n
        own = data[mask][0]
        for axis in range(3):
            for value in (1, 2, 3):
                beside = data == value if value != own else np.zeros_like(mask)
                a, b = np.moveaxis(mask, axis, 0), np.moveaxis(beside, axis, 0)
                assert row[value - 1, axis] == (a[1:] & b[:-1]).sum() + (a[:-1] & b[1:]).sum()


@given(data=class_volumes(), connectivity=st.sampled_from([6, 18, 26]))
def test_faces_name_only_what_lies_on_them(data, connectivity):
    found = examined(data, connectivity)
    labels = components(data, connectivity)
    keys = np.append(-1, found.faces["keys"])
    on_faces = np.zeros(labels.shape, bool)
    for axis, name in enumerate("zyx"):
        for side in (0, 1):
            plane = np.take(labels, -side, axis)
            first = np.append(-1, found.rows[:, KEY])
            np.testing.assert_array_equal(keys[found.faces[f"label_{name}"][side]], first[plane])
            index = [slice(None)] * 3
            index[axis] = -side
            on_faces[tuple(index)] = True
    seen = np.unique(labels[on_faces & (labels > 0)])
    assert found.faces["keys"].tolist() == found.rows[seen - 1, KEY].tolist()
    assert found.faces["kinds"].tolist() == found.rows[seen - 1, KIND].tolist()


@given(data=class_volumes(), connectivity=st.sampled_from([6, 18, 26]))
def test_an_outline_agrees_with_all_that_is_known(data, connectivity):
    box = Box.whole(data.shape)
    runs, kinds, _ = find_class_objects(data, table_of(1, 2), connectivity)
    keys = keys_of(runs, box, data.shape)
    brief, full = outline(runs, keys, kinds, box), examined(data, connectivity)
    columns = [KEY, KIND, N_VOXELS]
    assert brief.rows[:, columns].tolist() == full.rows[:, columns].tolist()
    assert set(brief.faces) == set(full.faces)
    for name in ("keys", "kinds", "label_z", "label_y", "label_x"):
        np.testing.assert_array_equal(brief.faces[name], full.faces[name])


@given(data=class_volumes())
def test_labels_are_painted(data):
    runs, _, _ = find_class_objects(data, table_of(1, 2), 6)
    labels = components(data, 6)
    numbers = np.arange(len(runs), dtype=np.uint32) * 10
    out = np.zeros(data.shape, np.uint32)
    paint(runs.rows, runs.start, runs.stop, runs.label, numbers, out)
    np.testing.assert_array_equal(out, np.where(labels > 0, (labels - 1) * 10, 0))


# ---------------------------------------------------------------------------------------------
# Instances


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
@given(data=class_volumes(n_classes=60))
def test_instances_are_values(dtype, data):
    scale = min(2**63 - 1, np.iinfo(dtype).max) // 60
    wide = data.astype(dtype) * np.array(scale, dtype)
    runs, values = find_instances(wide)
    assert sorted(values) == sorted(set(wide[wide > 0].tolist()))
    out = np.zeros(data.shape, np.int64)
    paint(runs.rows, runs.start, runs.stop, runs.label, values, out)
    np.testing.assert_array_equal(out, wide.astype(np.int64))


def test_more_instances_than_were_expected():
    data = np.random.default_rng(0).permutation(np.arange(1, 40_001)).reshape(20, 40, 50) * 1024
    runs, values = find_instances(data)
    assert values.tolist() == data.ravel().tolist()
    assert runs.label.tolist() == list(range(40_000))


@pytest.mark.parametrize(
    ("value", "dtype", "said"), [(-5, "int32", "-5"), (2**63, "uint64", str(2**63))]
)
def test_labels_out_of_range_are_refused(value, dtype, said):
    with pytest.raises(ValueError, match=f"Received: {said}"):
        find_instances(np.array([[[1, value]]], dtype))
    assert find_instances(np.array([[[2**63 - 1]]], "uint64"))[1].tolist() == [2**63 - 1]


def test_a_single_object_of_all_voxels():
    data = np.ones((3, 4, 5), np.uint8)
    row = examined(data).rows[0]
    assert row[MOMENTS].tolist() == moments_of(np.argwhere(data))
