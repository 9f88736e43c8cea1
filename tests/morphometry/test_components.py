"""label: equal to SciPy and cc3d on the whole array, from any blocks, on any client, resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvdask.errors import BlocksFailed
from cvdask.morphometry import components as components_module
from cvdask.morphometry import survey as survey_module
from cvdask.morphometry.components import label
from cvdask.volume.objects import list_objects
from cvdask.volume.store import Volume, open_volume
from cvdask.volume.verify import verify
from tests.morphometry.by_hand import (
    canonical,
    class_volumes,
    comb,
    components,
    large_ones,
    spiral,
    write_cell,
)
from tests.samples import write_sample
from tests.strategies import block_shapes
from tests.trees import tree_digest

CONNECTIVITIES = [6, 18, 26]


def labelled(volume: Volume | Path, **options: Any) -> Volume:
    options = {"class_": "mitochondria", **options}
    result = label(volume if isinstance(volume, Volume) else str(volume), **options)
    assert isinstance(result, Volume)
    return result


def random_classes(shape: Sequence[int] = (7, 11, 13), seed: int = 0, share: float = 0.3):
    return (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)


def crowded() -> np.ndarray:
    """Everything that is hard to merge: a comb, a spiral, a diagonal, one through all blocks."""
    data = np.zeros((9, 24, 13), np.uint8)
    data[0:3, 0:7, 0:8] = comb()
    data[1:3, 9:20, 1:12] = spiral()
    data[[4, 5, 6, 7], [4, 5, 6, 7], [4, 5, 6, 7]] = 1
    data[8, :, 11] = data[8, 22, :] = data[:, 22, 0] = 1
    return data


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@settings(max_examples=5)
@given(data=class_volumes(most=6, n_classes=2), draw=st.data())
@pytest.mark.filterwarnings("ignore:no object")
def test_labels_equal_those_of_the_whole_array(tmp_path_factory, connectivity, data, draw):
    folder = tmp_path_factory.mktemp("label")
    # No more than some dozens of blocks: what many blocks cost is time, not truth.
    block_shape = draw.draw(
        block_shapes(data.shape).filter(
            lambda b: np.prod([-(-n // m) for n, m in zip(data.shape, b, strict=True)]) <= 18
        )
    )
    min_voxels = draw.draw(st.sampled_from([1, 1, 2, 5]))
    found = labelled(
        write_cell(folder, data), connectivity=connectivity, block_shape=block_shape,
        min_voxels=min_voxels, n_levels=1,
    )  # fmt: skip
    ours = found.read()
    own = (data == 1).astype(np.uint8)
    expected = large_ones(components(own, connectivity), min_voxels)
    np.testing.assert_array_equal(ours, expected)
    theirs = canonical(cc3d.connected_components(own, connectivity=connectivity))
    np.testing.assert_array_equal(ours, large_ones(theirs, min_voxels))
    assert found.attributes["objects"] == expected.max()
    n_all = components(own, connectivity).max()
    assert found.attributes["small_objects"] == n_all - expected.max()


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_blocks_of_one_voxel(tmp_path, connectivity):
    data = random_classes((3, 4, 5))
    found = labelled(
        write_cell(tmp_path, data), connectivity=connectivity, block_shape=(1, 1, 1), n_levels=1
    )
    np.testing.assert_array_equal(found.read(), components(data, connectivity))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_long_chains_on_every_client(tmp_path, client, connectivity):
    data = crowded()
    found = labelled(
        write_cell(tmp_path, data), connectivity=connectivity, block_shape=(3, 7, 5), client=client
    )
    expected = components(data, connectivity)
    np.testing.assert_array_equal(found.read(), expected)
    assert (found.dtype, found.attributes["objects"]) == (np.uint32, expected.max())
    assert verify(found).ok
    assert not any(".cvdask/survey" in key for key in list_objects(found.url, found.group))


def test_bytes_do_not_depend_on_the_client(tmp_path, distributed_client):
    digests = []
    for name, client in (("a", None), ("b", "threads"), ("c", distributed_client)):
        found = labelled(
            write_cell(tmp_path / name, crowded()), block_shape=(5,) * 3, client=client
        )
        digests.append(tree_digest(Path(found.url, found.group)))
    assert digests[0] == digests[1] == digests[2]


def test_a_pyramid_and_a_name(tmp_path):
    data = random_classes((5, 80, 90), share=0.02)
    volume = write_cell(tmp_path, data)
    found = labelled(volume, name="instances", block_shape=(5, 32, 32))
    assert volume.label_names() == ["classes", "instances"]
    assert [level.shape for level in found.levels][1:] == [(5, 40, 45)]
    assert found.voxel_size_nm == volume.voxel_size_nm
    assert found.attributes["provenance"]["options"]["class"] == 1
    assert labelled(volume, class_="1", n_levels=1).name == "mitochondria"
    unnamed = write_cell(tmp_path / "b", data, names=None)
    assert labelled(unnamed, class_=1, n_levels=1).name == "1"


def test_small_objects_are_left_out_after_merging(tmp_path):
    """Each block sees two voxels of the long one: less than are wanted."""
    data = np.zeros((1, 3, 8), np.uint8)
    data[0, 0, :3], data[0, 2] = 1, 1
    volume = write_cell(tmp_path, data)
    options = {"block_shape": (1, 1, 2), "n_levels": 1}
    found = labelled(volume, min_voxels=4, **options)
    assert found.read()[0].tolist() == [[0] * 8, [0] * 8, [1] * 8]
    assert found.attributes["small_objects"] == 1
    # The same process again, with another threshold.
    again = labelled(volume, min_voxels=1, overwrite=True, **options)
    assert again.read()[0].tolist() == [[1] * 3 + [0] * 5, [0] * 8, [2] * 8]
    again = labelled(volume, min_voxels=4, overwrite=True, **options)
    assert again.read()[0].tolist() == [[0] * 8, [0] * 8, [1] * 8]


def test_a_box_is_labelled_as_if_cut_out(tmp_path):
    data = crowded()
    volume = write_cell(tmp_path, data)
    found = labelled(volume, box="1:8,3:21,2:12", block_shape=(4, 5, 6))
    expected = np.zeros(data.shape, int)
    expected[1:8, 3:21, 2:12] = components(data[1:8, 3:21, 2:12], 26)
    np.testing.assert_array_equal(found.read(), expected)
    assert verify(found).ok


def test_many_parts_number_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(survey_module, "PART_VOXELS", 40)
    data = random_classes()
    found = labelled(
        write_cell(tmp_path, data), block_shape=(4, 4, 8), min_voxels=2, client="threads"
    )
    np.testing.assert_array_equal(found.read(), large_ones(components(data, 26), 2))


@pytest.mark.parametrize(
    ("connectivity", "extent", "dtype"),
    [
        (6, 2046, "uint32"), (6, 2048, "uint64"), (18, 2580, "uint32"), (18, 2582, "uint64"),
        (26, 3250, "uint32"), (26, 3252, "uint64"),
    ],
)  # fmt: skip
def test_wide_labels_where_there_may_be_many_objects(tmp_path, connectivity, extent, dtype):
    image = write_cell(tmp_path, random_classes((2, 2, 2))).label("classes")
    large = replace(image, levels=(replace(image.levels[0], shape=(extent,) * 3),))
    output = components_module._describe_output(large, 1, None, connectivity, (256,) * 3)
    assert output.dtype == np.dtype(dtype)


def test_a_sheet_of_isolated_voxels_has_room():
    # One plane: every fourth voxel may be an object, also with 26 neighbours.
    most = components_module.OBJECTS_PER_CELL
    data = np.zeros((1, 5, 5), np.uint8)
    data[0, ::2, ::2] = 1
    assert components(data, 26).max() == 9 == 1 * 3 * 3 * most[26]


# ---------------------------------------------------------------------------------------------
# Interruptions


PASSES = {
    "scan_block": survey_module,
    "seam_block": survey_module,
    "gather_block": survey_module,
    "number_part": components_module,
    "write_block": components_module,
}


@pytest.mark.parametrize("breaks_at", PASSES)
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, monkeypatch, breaks_at):
    options = {"block_shape": (5, 12, 7), "min_voxels": 2}
    undisturbed = labelled(write_cell(tmp_path / "a", crowded()), **options)
    volume = write_cell(tmp_path / "b", crowded())
    module = PASSES[breaks_at]
    function = getattr(module, breaks_at)

    def break_some(*arguments):
        if arguments[-1].index % 3 == 1 or breaks_at == "number_part":
            raise OSError("no answer")
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, breaks_at, break_some)
        with pytest.raises(BlocksFailed, match="no answer"):
            labelled(volume, **options)
    with pytest.raises(ValueError, match="label has begun"):
        open_volume(volume.url, labels="mitochondria")
    again = []

    def note(*arguments):
        again.append(arguments[-1].index)
        return function(*arguments)

    monkeypatch.setattr(module, breaks_at, note)
    found = labelled(volume, **options)
    assert again
    assert breaks_at == "number_part" or all(index % 3 == 1 for index in again)
    assert tree_digest(Path(found.url, found.group)) == tree_digest(
        Path(undisturbed.url, undisturbed.group)
    )
    again.clear()
    assert labelled(volume, **options).attributes == found.attributes
    assert again == []


@pytest.mark.parametrize("breaks_at", ["_write_merged", "build_levels", "publish"])
def test_killed_between_passes(tmp_path, monkeypatch, breaks_at):
    volume = write_cell(tmp_path, crowded())
    module = survey_module if breaks_at == "_write_merged" else components_module
    with monkeypatch.context() as patch:
        patch.setattr(module, breaks_at, lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            labelled(volume, block_shape=(9, 8, 13))
    monkeypatch.setattr(survey_module, "scan_block", lambda *_: 1 / 0)
    found = labelled(volume, block_shape=(9, 8, 13))
    np.testing.assert_array_equal(found.read(), components(crowded(), 26))


@pytest.mark.parametrize(
    ("stage", "breaks_at", "refused"),
    [
        ("rows", "seam_block", "gather"), ("faces", "seam_block", "seam"),
        ("seams", "gather_block", "gather"), ("merged", "gather_block", "gather"),
        ("gathered", "number_part", "total"), ("numbered", "write_block", "label"),
    ],
)  # fmt: skip
def test_damaged_scratch_is_an_error_and_no_label(tmp_path, monkeypatch, stage, breaks_at, refused):
    volume = write_cell(tmp_path, crowded())
    options = {"block_shape": (5, 12, 7)}
    with monkeypatch.context() as patch:
        patch.setattr(PASSES[breaks_at], breaks_at, lambda *_: 1 / 0)
        with pytest.raises(BlocksFailed):
            labelled(volume, **options)
    scratch = Path(volume.url, "labels/mitochondria", components_module.SCRATCH, stage)
    chosen = max((p for p in scratch.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    good = chosen.read_bytes()
    chosen.write_bytes(good[:-6] + bytes([good[-6] ^ 8]) + good[-5:])
    with pytest.raises(BlocksFailed, match=rf"{refused}(.|\n)*DamagedData.*--overwrite"):
        labelled(volume, **options)
    chosen.unlink()
    with pytest.raises(BlocksFailed, match=r"is gone.*--overwrite"):
        labelled(volume, **options)
    found = labelled(volume, overwrite=True, **options)
    np.testing.assert_array_equal(found.read(), components(crowded(), 26))


# ---------------------------------------------------------------------------------------------
# What is said, and what is refused


def test_no_object_is_said(tmp_path):
    data = np.full((3, 4, 5), 2, np.uint8)
    data[0, 0, 0] = 1
    volume = write_cell(tmp_path, data)
    with pytest.warns(UserWarning, match="no object of z_discs"):
        found = labelled(volume, class_="z_discs")
    assert (found.read().any(), found.attributes["objects"]) == (False, 0)
    with pytest.warns(UserWarning, match="no object of mitochondria"):
        found = labelled(volume, min_voxels=2)
    assert found.attributes["small_objects"] == 1


def test_what_is_not_annotated_is_no_object(tmp_path):
    data = np.array([[[1, 255, 1, 0, 255]]], np.uint8)
    assert labelled(write_cell(tmp_path, data)).read().tolist() == [[[1, 0, 2, 0, 0]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connectivity": 4}, "6, 18 or 26.*4"),
        ({"min_voxels": 0}, "min_voxels=0"),
        ({"class_": "fat"}, "'fat'"),
        ({"class_": 7}, "'7'"),
        ({"class_": "mitochondria,myofibrils"}, "one class.*'mitochondria,myofibrils'"),
        ({"class_": ["mitochondria", 2]}, "one class"),
        ({"name": "classes"}, "'classes'"),
        ({"name": "a/b"}, "'a/b'"),
        ({"labels": "none"}, "'none'"),
        ({"box": "0:99,:,:"}, "0:99"),
        ({"n_levels": 0}, "0"),
    ],
)
def test_odd_options_are_refused_before_work(tmp_path, options, message):
    volume = write_cell(tmp_path, random_classes())
    before = tree_digest(tmp_path)
    with pytest.raises(ValueError, match=message):
        labelled(volume, **options)
    assert tree_digest(tmp_path) == before


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [(9, "uint8", "value 9, which is no class"), (300, "uint16", "300"), (-1, "int16", "-1")],
)
def test_values_that_are_no_class_are_refused(tmp_path, value, dtype, message):
    data = random_classes().astype(dtype)
    data[3, 4, 5] = value
    with pytest.raises(BlocksFailed, match=message):
        labelled(write_cell(tmp_path, data), block_shape=(4, 4, 8))


def test_other_options_are_refused_unless_overwritten(tmp_path):
    volume = write_cell(tmp_path, random_classes())
    labelled(volume)
    with pytest.raises(FileExistsError, match="connectivity: 26 → 6"):
        labelled(volume, connectivity=6)
    found = labelled(volume, connectivity=6, overwrite=True)
    np.testing.assert_array_equal(found.read(), components(random_classes(), 6))
    other = write_cell(tmp_path / "b", random_classes())
    write_sample(other.url, random_classes(), labels="mitochondria")
    with pytest.raises(FileExistsError, match="stage: sample → label"):
        labelled(other)


def test_a_dry_run_writes_nothing(tmp_path):
    volume = write_cell(tmp_path, random_classes())
    before = tree_digest(tmp_path)
    plans = label(volume, class_=1, dry_run=True)
    assert isinstance(plans, list)
    assert [plan.stage for plan in plans][:4] == ["scan", "seam", "gather", "total"]
    assert plans[0].read_bytes == plans[4].read_bytes == 7 * 11 * 13
    assert tree_digest(tmp_path) == before
