"""Classes: names and values, boxes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cvdask.volume.boxes import Box
from cvdask.volume.classes import (
    absent_values,
    block_shape,
    class_values,
    measured_box,
    named_values,
    open_classes,
    read_classes,
)
from cvdask.volume.store import Level, Volume, describe
from tests.samples import write_sample

NAMES = {3: "z_discs", 1: "mitochondria", 255: "not annotated"}


def labels(names: dict[int, str]) -> Volume:
    size = (1, 1, 1)
    return describe(
        "o.zarr", shape=(4, 5, 6), dtype="uint8", voxel_size_nm=size, labels="l", classes=names
    )


def test_classes_are_meant_by_name_or_value():
    image = labels(NAMES)
    assert named_values(image) == {0: "background", 1: "mitochondria", 3: "z_discs"}
    for wanted in ("z_discs,mitochondria", ["z_discs", 1], ("1", "3"), " 3 , 1,"):
        assert class_values(image, wanted) == (1, 3)
    assert class_values(image, "background") == (0,)
    assert class_values(labels({1: "a, b", 2: "a"}), ["a, b"]) == (1,)
    assert class_values(labels({}), [7, 9]) == (7, 9)


@pytest.mark.parametrize("wanted", ["nucleus", "2", 255, -1])
def test_a_class_that_is_not_there_is_refused_with_those_that_are(wanted):
    with pytest.raises(ValueError, match=rf"1: 'mitochondria'.*'{wanted}'"):
        class_values(labels(NAMES), wanted)


def test_odd_names_are_refused():
    with pytest.raises(ValueError, match=r"0 to 254.*'mitochondria'"):
        class_values(labels({}), "mitochondria")
    with pytest.raises(ValueError, match=r"Received: ' ,'"):
        class_values(labels(NAMES), " ,")
    with pytest.raises(ValueError, match=r"1: 'a', 2: 'a'"):
        named_values(labels({1: "a", 2: "a"}))
    with pytest.raises(ValueError, match=r"254.*\[-3, 300\]"):
        named_values(labels({-3: "a", 300: "b"}))


def test_boxes_lie_inside():
    image = labels(NAMES)
    assert measured_box(image, None) == Box.whole((4, 5, 6))
    assert measured_box(image, "1:,:,2") == Box((1, 0, 2), (4, 5, 3))
    with pytest.raises(ValueError, match=r"0:4,0:5,0:6.*0:1,0:1,0:7"):
        measured_box(image, Box((0, 0, 0), (1, 1, 7)))
    with pytest.raises(ValueError, match=r"0:0,0:1,0:1"):
        measured_box(image, Box((0, 0, 0), (0, 1, 1)))


def test_a_label_image_without_voxel_size_is_refused(tmp_path: Path, monkeypatch):
    image = write_sample(tmp_path, np.zeros((2, 2, 2), np.uint8))
    write_sample(tmp_path, np.zeros((2, 2, 2), np.uint8), labels="classes")
    assert open_classes(image, "classes").name == "classes"
    with pytest.raises(ValueError, match=r"classes.*'annotations'"):
        open_classes(str(tmp_path), "annotations")
    monkeypatch.setattr(Volume, "voxel_size_nm", None)
    with pytest.raises(ValueError, match=r"'classes'.*--voxel-nm"):
        open_classes(image, "classes")


def test_blocks_are_shards_or_several_of_them():
    def level(shape, shard):
        return Level("0", shape, "uint8", shard, shard, None)

    assert block_shape(level((2048,) * 3, (512,) * 3)) == (512,) * 3
    assert block_shape(level((20, 4000, 4000), (20, 256, 256))) == (20, 1024, 1024)
    assert block_shape(level((5, 6, 7), (2, 2, 2))) == (8, 8, 8)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint64"])
def test_wide_integers_are_read_as_classes(tmp_path: Path, dtype: str):
    data = np.array([[[0, 1, 255]]], dtype)
    image = write_sample(tmp_path, data, labels="classes")
    found = read_classes(image.url, image.levels[0], image.levels[0].box)
    assert (found.dtype, found.tolist()) == (np.uint8, data.tolist())


@pytest.mark.parametrize(("dtype", "value"), [("uint16", 256), ("int8", -1), ("uint64", 2**63)])
def test_objects_are_no_classes(tmp_path: Path, dtype: str, value: int):
    image = write_sample(tmp_path, np.array([[[0, value]]], dtype), labels="classes")
    with pytest.raises(ValueError, match=rf"labels/classes/0 holds .*{value}"):
        read_classes(image.url, image.levels[0], image.levels[0].box)


def test_what_is_in_no_class_is_counted():
    assert absent_values(np.array([9, 9, 1, 4]), {1}) == (
        "the value 4, which is no class (1 voxels), the value 9, which is no class (2 voxels)"
    )
