"""measure: the same bytes from any blocks, on any client, resumed; equal to the definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import euler_number

from cvdask.errors import BlocksFailed
from cvdask.morphometry import objects as objects_module
from cvdask.morphometry import survey as survey_module
from cvdask.morphometry.components import label
from cvdask.morphometry.objects import measure
from cvdask.morphometry.partials import GREY_DIGIT, N_VOXELS, Layout
from cvdask.morphometry.shapes import shape_columns
from cvdask.morphometry.tables import Table, open_table
from cvdask.volume.boxes import Box
from cvdask.volume.store import Volume, open_volume
from tests.morphometry.by_hand import (
    NAMES,
    class_volumes,
    comb,
    components,
    rows_of,
    spiral,
    table_of,
    write_cell,
)
from tests.samples import write_sample
from tests.strategies import block_shapes
from tests.trees import tree_digest

SHAPE = (7, 11, 13)
SIZE_UM = (0.04, 0.01, 0.01)
ALL: dict[str, Any] = {"intensity": True, "contacts": True, "fibre": "estimate"}


def random_classes(seed: int = 0, shape=SHAPE, dtype: Any = np.uint8) -> np.ndarray:
    generator = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(generator.random(shape), 0.8)
    kinds = generator.choice([1, 2, 3], shape, p=(0.6, 0.3, 0.1))
    return np.where(noise > np.median(noise), kinds, 0).astype(dtype)


def random_image(shape=SHAPE, dtype: Any = np.uint8) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(9).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def crowded() -> np.ndarray:
    data = np.zeros((9, 24, 13), np.uint8)
    data[0:3, 0:7, 0:8] = comb()
    data[1:3, 9:20, 1:12] = 2 * spiral()
    data[[4, 5, 6, 7], [4, 5, 6, 7], [4, 5, 6, 7]] = 1
    data[8, :, 11] = data[8, 22, :] = data[:, 22, 0] = 3
    return data


def measured(volume: Volume, **options: Any) -> Table:
    result = measure(volume, **{"chart": False, **options})
    assert isinstance(result, Table)
    return result


def table_bytes(table: Table) -> dict[str, bytes]:
    return {part: Path(table.parent, part).read_bytes() for part in table.parts}


def in_order(table: Table) -> pd.DataFrame:
    """Rows by class and label, from one part or many."""
    frame = table.to_pandas()
    return frame.sort_values(["class", "label"], kind="stable", ignore_index=True)


def expected_frame(data: np.ndarray, connectivity: int, values=(1, 2, 3)) -> pd.DataFrame:
    """Measure every object over the whole array."""
    table = table_of(*values)
    rows, moments = rows_of(data, components(np.where(table[data], data, 0), connectivity), table)
    region = Box.whole(data.shape)
    columns = shape_columns(
        rows, np.array(moments, np.int64).reshape(-1, 10), SIZE_UM, region,
        connectivity=connectivity,
    )  # fmt: skip
    frame = pd.DataFrame({"class": [NAMES[values[kind - 1]] for kind in rows[:, 1]], **columns})
    order = np.lexsort((rows[:, 0], rows[:, 1]))
    frame = frame.iloc[order].reset_index(drop=True)
    frame.insert(0, "label", frame.groupby("class").cumcount() + 1)
    return frame


# ---------------------------------------------------------------------------------------------
# Equal


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@settings(max_examples=5)
@given(data=class_volumes(most=6, n_classes=3), draw=st.data())
@pytest.mark.filterwarnings("ignore:no object")
def test_any_blocks_give_the_table_of_the_whole_array(tmp_path_factory, connectivity, data, draw):
    volume = write_cell(tmp_path_factory.mktemp("measure"), data, random_image(data.shape))
    block_shape = draw.draw(
        block_shapes(data.shape).filter(
            lambda b: np.prod([-(-n // m) for n, m in zip(data.shape, b, strict=True)]) <= 18
        )
    )
    options = {**ALL, "connectivity": connectivity}
    whole = measured(volume, block_shape=data.shape, **options)
    found = whole.to_pandas()
    expected = expected_frame(data, connectivity)
    pd.testing.assert_frame_equal(
        found[list(expected)], expected, check_exact=True, check_dtype=False
    )
    first = table_bytes(whole)
    again = measured(volume, block_shape=block_shape, overwrite=True, **options)
    assert table_bytes(again) == first


@pytest.mark.parametrize("connectivity", [6, 26])
def test_every_client_writes_the_same_bytes(tmp_path, distributed_client, connectivity):
    data = crowded()
    volume = write_cell(tmp_path, data, random_image(data.shape, np.uint16))
    options = {**ALL, "connectivity": connectivity}
    serial = measured(volume, out=str(tmp_path / "a.parquet"), block_shape=(3, 7, 5), **options)
    expected = expected_frame(data, connectivity)
    pd.testing.assert_frame_equal(
        serial.to_pandas()[list(expected)], expected, check_exact=True, check_dtype=False
    )
    for name, client, block_shape in (
        ("b", "threads", (4, 24, 2)), ("c", distributed_client, (2, 5, 13))
    ):  # fmt: skip
        other = measured(
            volume, out=str(tmp_path / f"{name}.parquet"), client=client, block_shape=block_shape,
            **options,
        )  # fmt: skip
        assert list(table_bytes(other).values()) == list(table_bytes(serial).values())


def test_blocks_of_one_voxel(tmp_path):
    data = random_classes(shape=(3, 4, 5))
    volume = write_cell(tmp_path, data, random_image(data.shape))
    first = table_bytes(measured(volume, **ALL))
    again = measured(volume, block_shape=(1, 1, 1), overwrite=True, **ALL)
    assert table_bytes(again) == first


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_instances_are_measured_as_the_classes_they_come_from(tmp_path, connectivity):
    data = random_classes(1)
    volume = write_cell(tmp_path, data, random_image())
    options = {"connectivity": connectivity, "intensity": True, "fibre": "x"}
    label(volume, class_=1, connectivity=connectivity, block_shape=(4, 4, 4), n_levels=1)
    instances = measured(
        volume, labels="mitochondria", instances=True, block_shape=(3, 4, 5),
        out=str(tmp_path / "i.parquet"), **options,
    )  # fmt: skip
    classes = measured(volume, class_="mitochondria", block_shape=(7, 5, 3), **options)
    pd.testing.assert_frame_equal(instances.to_pandas(), classes.to_pandas(), check_exact=True)


def test_instances_need_not_be_connected(tmp_path):
    data = np.zeros((2, 4, 9), np.int64)
    data[0, 0, :2] = data[1, 3, 7:] = 2**62
    data[0, 0, 2:4] = 5
    volume = write_cell(tmp_path, data, names=None)
    found = measured(volume, instances=True, block_shape=(1, 2, 4)).to_pandas()
    assert found.label.tolist() == [5, 2**62]
    assert found.n_voxels.tolist() == [2, 4]
    assert found.euler_number.tolist() == [1, 2]
    assert set(found["class"]) == {"classes"}
    assert found.bbox_x_stop.tolist() == [4, 9]


def test_the_highest_label(tmp_path):
    data = np.array([[[2**63 - 1, 0, 3]]], np.uint64)
    found = measured(write_cell(tmp_path, data, names=None), instances=True).to_pandas()
    assert found.label.tolist() == [3, 2**63 - 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_grey_values(tmp_path, dtype):
    data, image = random_classes(2), random_image(dtype=dtype)
    image[data == 2] = np.iinfo(dtype).min
    volume = write_cell(tmp_path, data, image)
    found = measured(volume, intensity=True, connectivity=18, block_shape=(3, 4, 5)).to_pandas()
    labels = components(data, 18)
    for row in found.itertuples():
        own = image[object_of(labels, data, row)].astype(float)
        assert row.intensity_mean == pytest.approx(own.mean())
        assert row.intensity_sd == pytest.approx(own.std(), abs=1e-9)
        assert (row.intensity_min, row.intensity_max) == (own.min(), own.max())


def object_of(labels: np.ndarray, data: np.ndarray, row: Any) -> np.ndarray:
    """Find the object of a row: the n-th of its class by first voxel."""
    value = next(v for v, name in NAMES.items() if name == row[2])
    own = np.unique(labels[data == value])
    return labels == own[row.label - 1]


def test_grey_values_of_more_voxels_than_64_bits_hold():
    layout = Layout(intensity=True)
    n, low, high = 2**40, 2**16 - 3, 2**16 - 1  # half of them each
    rows = layout.empty(1)
    squares = n // 2 * (low**2 + high**2)
    assert squares > 2**63
    rows[0, N_VOXELS] = n
    rows[0, layout.grey] = [n // 2 * (low + high), *divmod(squares, GREY_DIGIT), low, high]
    found = objects_module._grey_columns(rows, layout)
    assert {name: column[0] for name, column in found.items()} == {
        "intensity_mean": 2**16 - 2, "intensity_sd": 1, "intensity_min": low, "intensity_max": high
    }  # fmt: skip


def test_contacts_with_other_classes(tmp_path):
    data = random_classes(3)
    volume = write_cell(tmp_path, data)
    found = measured(volume, contacts=True, class_="mitochondria,z_discs", block_shape=(3, 4, 5))
    frame = found.to_pandas()
    labels = components(data, 26)
    columns = [f"contact_{name}_um2" for name in NAMES.values()]
    assert [name for name in frame if name.startswith("contact")] == columns
    areas = [SIZE_UM[1] * SIZE_UM[2], SIZE_UM[0] * SIZE_UM[2], SIZE_UM[0] * SIZE_UM[1]]
    for row in frame.itertuples():
        mask = object_of(labels, data, row)
        for value, column in zip(NAMES, columns, strict=True):
            beside = (data == value) & (data != data[mask][0])
            expected = 0.0
            for axis in range(3):
                a, b = np.moveaxis(mask, axis, 0), np.moveaxis(beside, axis, 0)
                faces = (a[1:] & b[:-1]).sum() + (a[:-1] & b[1:]).sum()
                expected += areas[axis] * faces
            assert getattr(row, column) == pytest.approx(expected, abs=1e-15)
    assert frame[frame["class"] == "mitochondria"].contact_mitochondria_um2.max() == 0


def test_a_box_is_measured_as_if_cut_out(tmp_path):
    data, image = crowded(), random_image(crowded().shape)
    volume = write_cell(tmp_path / "whole", data, image)
    options = {**ALL, "box": "1:8,3:21,2:12"}
    found = measured(volume, block_shape=(4, 5, 6), **options)
    again = measured(volume, block_shape=data.shape, overwrite=True, **options)
    assert table_bytes(again) == table_bytes(found)
    cut = (slice(1, 8), slice(3, 21), slice(2, 12))
    alone = measured(write_cell(tmp_path / "cut", data[cut], image[cut]), **ALL).to_pandas()
    frame = found.to_pandas()
    for axis, offset in zip("zyx", (1, 3, 2), strict=True):
        for end in ("start", "stop"):
            frame[f"bbox_{axis}_{end}"] -= offset
        frame[f"centroid_{axis}_um"] -= offset * SIZE_UM["zyx".index(axis)]
    exact = [name for name in frame if not name.startswith("centroid")]
    pd.testing.assert_frame_equal(frame[exact], alone[exact], check_exact=True)
    pd.testing.assert_frame_equal(frame, alone)


@pytest.mark.parametrize("instances", [False, True])
def test_many_parts_hold_the_rows_of_one(tmp_path, monkeypatch, instances):
    data = random_classes(4)
    if instances:
        data = components(data, 6) * 1000
    volume = write_cell(tmp_path, data, random_image(), names=None if instances else NAMES)
    options: dict[str, Any] = {"instances": instances, "intensity": True, "fibre": "estimate"}
    one = measured(volume, out=str(tmp_path / "one.parquet"), block_shape=(3, 4, 5), **options)
    monkeypatch.setattr(survey_module, "PART_VOXELS", 100)
    out = str(tmp_path / "parts.parquet")
    parts = measured(volume, out=out, block_shape=(3, 4, 5), client="threads", csv=True, **options)
    assert len(parts.parts) > 3
    assert Path(out).is_dir()
    pd.testing.assert_frame_equal(in_order(parts), in_order(one), check_exact=True)
    assert parts.metadata == one.metadata
    assert parts.schema.equals(one.schema, check_metadata=True)
    assert [len(batch) for batch in parts.batches()] == [
        len(batch) for batch in open_table(str(tmp_path), "parts.parquet").batches()
    ]
    text = pd.read_csv(tmp_path / "parts.csv")
    assert len(text) == len(one.to_pandas())
    monkeypatch.setattr(survey_module, "scan_block", lambda *_: 1 / 0)
    assert measured(volume, out=out, block_shape=(3, 4, 5), **options).parts == parts.parts


def test_small_objects_are_left_out_after_merging(tmp_path):
    data = np.zeros((1, 3, 8), np.uint8)
    data[0, 0, :3], data[0, 2] = 1, 1
    volume = write_cell(tmp_path, data)
    found = measured(volume, min_voxels=4, block_shape=(1, 1, 2)).to_pandas()
    assert (found.label.tolist(), found.n_voxels.tolist()) == ([1], [8])
    found = measured(volume, min_voxels=3, block_shape=(1, 1, 2), overwrite=True).to_pandas()
    assert (found.label.tolist(), found.n_voxels.tolist()) == ([1, 2], [3, 8])


# ---------------------------------------------------------------------------------------------
# The fibre


@pytest.fixture
def rods(tmp_path) -> Volume:
    """Two long rods along x, one short one along y."""
    data = np.zeros((3, 12, 20), np.uint8)
    data[0, 1, 1:19] = data[2, 3, 2:20] = data[0, 4:9, 4] = 1
    return write_cell(tmp_path, data, voxel_size_nm=(10, 10, 10))


@pytest.mark.parametrize(
    ("fibre", "angles"),
    [
        ("x", [0, 90, 0]), ("y", [90, 0, 90]), ("0,0,-2", [0, 90, 0]), ((0, 1, 1), [45, 45, 45]),
        (np.array([0.0, 0, 1]), [0, 90, 0]), ("estimate", [0, 90, 0]),
    ],
)  # fmt: skip
def test_angles_to_the_fibre(rods, fibre, angles):
    table = measured(rods, fibre=fibre, block_shape=(2, 5, 7))
    np.testing.assert_allclose(table.to_pandas().angle_to_fibre_deg, angles, atol=1e-5)
    if isinstance(fibre, str) and fibre == "estimate":
        np.testing.assert_allclose(table.metadata["fibre"], [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("fibre", ["w", "1,2", "0,0,0", (1, 2), (0, 0, math.inf), "1,2,b", 5])
def test_what_is_no_direction_is_refused(rods, fibre):
    with pytest.raises(ValueError, match="fibre runs along"):
        measured(rods, fibre=fibre)


# ---------------------------------------------------------------------------------------------
# Euler numbers, border, columns


def test_every_column_says_what_it_is(tmp_path):
    table = measured(write_cell(tmp_path, random_classes()), **ALL)
    notes = {field.name: field.metadata[b"description"].decode() for field in table.schema}
    assert "Crofton" in notes["surface_um2"]
    assert "R1 R2 R3" in notes["sparseness"]
    assert [name for name, note in notes.items() if not note] == []
    metadata = table.metadata
    assert metadata["voxel_size_nm"] == [40, 10, 10]
    assert metadata["provenance"]["options"]["classes"] == [1, 2, 3]
    assert [one["volume"] for one in metadata["provenance"]["inputs"]] == [
        "labels/classes",
        "image",
    ]


def test_euler_numbers_follow_the_connectivity(tmp_path):
    data = (random_classes(5) > 0).astype(np.uint8)
    volume = write_cell(tmp_path, data)
    for connectivity, theirs in ((6, 1), (18, 3), (26, 3)):
        found = measured(volume, connectivity=connectivity, overwrite=True, block_shape=(3, 4, 5))
        labels = components(data, connectivity)
        expected = [
            euler_number(np.pad(labels == n, 1), theirs) for n in range(1, labels.max() + 1)
        ]
        assert found.to_pandas().euler_number.tolist() == expected


# ---------------------------------------------------------------------------------------------
# No objects


@pytest.mark.parametrize("part_voxels", [50, 10**6])
def test_no_object_at_all_is_an_empty_table(tmp_path, monkeypatch, part_voxels):
    filled = measured(write_cell(tmp_path / "filled", random_classes()), **ALL).schema
    monkeypatch.setattr(survey_module, "PART_VOXELS", part_voxels)
    volume = write_cell(tmp_path, np.zeros(SHAPE, np.uint8))
    with pytest.warns(UserWarning, match="no object of mitochondria, myofibrils, z_discs"):
        table = measure(volume, csv=True, block_shape=(3, 4, 5), **ALL)
    assert isinstance(table, Table)
    frame = table.to_pandas()
    assert len(frame) == 0
    assert table.schema.names == filled.names
    assert table.schema.types == filled.types
    assert list(pd.read_csv(Path(table.parent, "objects.csv"))) == filled.names
    assert Path(table.parent, "objects.png").exists()
    assert measured(volume, block_shape=(3, 4, 5), **ALL).parts == table.parts


def test_only_small_objects(tmp_path):
    data = np.zeros(SHAPE, np.uint8)
    data[0, 0, 0] = data[3, 3, 3] = 2
    with pytest.warns(UserWarning, match="but 2 smaller than 2 voxels"):
        assert len(measured(write_cell(tmp_path, data), min_voxels=2).to_pandas()) == 0


# ---------------------------------------------------------------------------------------------
# Interruptions


PASSES = {
    "scan_block": survey_module,
    "seam_block": survey_module,
    "gather_block": survey_module,
    "total_part": objects_module,
    "write_part": objects_module,
}


@pytest.mark.parametrize("part_voxels", [100, 10**6])
@pytest.mark.parametrize("breaks_at", PASSES)
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, monkeypatch, breaks_at, part_voxels):
    monkeypatch.setattr(survey_module, "PART_VOXELS", part_voxels)
    volume = write_cell(tmp_path, random_classes(), random_image())
    options = {**ALL, "block_shape": (4, 6, 7), "csv": True}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    measured(volume, out=str(tmp_path / "a/t.parquet"), **options)
    module, out = PASSES[breaks_at], str(tmp_path / "b/t.parquet")
    function = getattr(module, breaks_at)

    def breaks(block) -> bool:
        return block.index % 3 == 1 or (block.index == 0 and part_voxels > 100)

    def break_some(*arguments):
        if breaks(arguments[-1]):
            raise OSError("no answer")
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, breaks_at, break_some)
        with pytest.raises(BlocksFailed, match="no answer"):
            measured(volume, out=out, **options)
    with pytest.raises(FileNotFoundError, match="no complete table"):
        open_table(str(tmp_path / "b"), "t.parquet")
    with pytest.raises(FileExistsError, match="block_shape"):
        measured(volume, out=out, **{**options, "block_shape": (4, 4, 13)})
    again = []

    def note(*arguments):
        again.append(arguments[-1])
        return function(*arguments)

    monkeypatch.setattr(module, breaks_at, note)
    measured(volume, out=out, **options)
    assert again
    assert all(breaks(block) for block in again)
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")


@pytest.mark.parametrize("breaks_at", ["_write_merged", "numbering", "_write_beside"])
def test_killed_between_passes(tmp_path, monkeypatch, breaks_at):
    volume = write_cell(tmp_path, random_classes())
    options: dict[str, Any] = {"block_shape": (4, 6, 7), "csv": True}
    module = survey_module if breaks_at == "_write_merged" else objects_module
    with monkeypatch.context() as patch:
        patch.setattr(module, breaks_at, lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure(volume, **options)
    monkeypatch.setattr(survey_module, "scan_block", lambda *_: 1 / 0)
    table = measure(volume, **options)
    assert isinstance(table, Table)
    expected = expected_frame(random_classes(), 26)
    pd.testing.assert_frame_equal(
        table.to_pandas()[list(expected)], expected, check_exact=True, check_dtype=False
    )
    assert sorted(path.name for path in Path(table.parent).iterdir() if path.is_file()) == [
        "objects.csv", "objects.parquet", "objects.png"
    ]  # fmt: skip
    assert list(Path(table.parent).glob(".cvdask/*")) == []


@pytest.mark.parametrize(
    ("stage", "breaks_at", "refused"),
    [
        ("rows", "gather_block", "gather"), ("faces", "seam_block", "seam"),
        ("seams", "gather_block", "gather"), ("merged", "gather_block", "gather"),
        ("gathered", "total_part", "total"), ("measured", "write_part", "table"),
    ],
)  # fmt: skip
def test_damaged_scratch_is_an_error_and_no_number(
    tmp_path, monkeypatch, stage, breaks_at, refused
):
    volume = write_cell(tmp_path, crowded())
    options = {"block_shape": (5, 12, 7)}
    with monkeypatch.context() as patch:
        patch.setattr(PASSES[breaks_at], breaks_at, lambda *_: 1 / 0)
        with pytest.raises(BlocksFailed):
            measured(volume, **options)
    scratch = Path(volume.url, "tables/.cvdask/objects.parquet", stage)
    files = [path for path in scratch.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    chosen = max(files, key=lambda path: path.stat().st_size)
    good = chosen.read_bytes()
    middle = len(good) // 2
    for bad in (good[:middle] + bytes([good[middle] ^ 8]) + good[middle + 1 :], good[:middle]):
        chosen.write_bytes(bad)
        with pytest.raises(BlocksFailed, match=rf"{refused}(.|\n)*DamagedData.*--overwrite"):
            measured(volume, **options)
    chosen.unlink()
    with pytest.raises(BlocksFailed, match=r"is gone.*--overwrite"):
        measured(volume, **options)
    assert len(measured(volume, overwrite=True, **options).to_pandas()) > 3


# ---------------------------------------------------------------------------------------------
# The destination


def test_complete_before_is_not_measured_again(tmp_path, monkeypatch):
    volume = write_cell(tmp_path, random_classes())
    first = measured(volume)
    before = tree_digest(tmp_path)
    monkeypatch.setattr(survey_module, "scan_block", lambda *_: 1 / 0)
    # Other blocks are no other options.
    assert measured(volume, block_shape=(3, 4, 5)) == first
    assert tree_digest(tmp_path) == before
    # What was not asked for then is written now.
    measure(volume, csv=True)
    assert len(pd.read_csv(Path(first.parent, "objects.csv"))) == len(first.to_pandas())
    assert Path(first.parent, "objects.png").exists()


def test_other_options_are_refused_unless_overwritten(tmp_path):
    volume = write_cell(tmp_path, random_classes())
    first = measure(volume, csv=True)
    assert isinstance(first, Table)
    with pytest.raises(FileExistsError, match="min_voxels: 1 → 3"):
        measured(volume, min_voxels=3)
    again = measured(volume, min_voxels=3, overwrite=True)
    assert again.to_pandas().n_voxels.min() >= 3
    # They would tell of objects that are no longer in the table.
    left = {path.name for path in Path(first.parent).iterdir() if path.is_file()}
    assert left == {"objects.parquet"}


def test_one_file_and_many_parts_take_each_others_place(tmp_path, monkeypatch):
    volume = write_cell(tmp_path, random_classes())
    out = str(tmp_path / "t.parquet")
    one = measured(volume, out=out)
    before = in_order(one)
    with monkeypatch.context() as patch:
        patch.setattr(survey_module, "PART_VOXELS", 100)
        parts = measured(volume, out=out, overwrite=True)
        assert Path(out).is_dir()
        pd.testing.assert_frame_equal(in_order(parts), before)
    again = measured(volume, out=out, overwrite=True)
    assert Path(out).is_file()
    pd.testing.assert_frame_equal(in_order(again), before)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_ours_is_left_alone(tmp_path, kind):
    volume = write_cell(tmp_path, random_classes())
    target = tmp_path / "thesis.parquet"
    if kind == "file":
        target.write_text("thesis")
    else:
        target.mkdir()
        (target / "part.parquet").write_text("thesis")
    (tmp_path / "thesis.csv").write_text("other")
    before = tree_digest(tmp_path)
    with pytest.raises(FileExistsError, match="was not made by cvdask"):
        measured(volume, out=str(target))
    assert tree_digest(tmp_path) == before
    measured(volume, out=str(target), overwrite=True)
    assert target.is_file()
    assert (tmp_path / "thesis.csv").read_text() == "other"


def test_a_dry_run_writes_nothing(tmp_path):
    volume = write_cell(tmp_path, random_classes(), random_image())
    before = tree_digest(tmp_path)
    plans = measure(volume, dry_run=True, block_shape=(4, 4, 4), **ALL)
    assert isinstance(plans, list)
    assert [plan.stage for plan in plans] == ["scan", "seam", "gather", "total", "table"]
    assert (len(plans[0].grid), plans[0].read_bytes) == (24, 2 * math.prod(SHAPE))
    assert tree_digest(tmp_path) == before


# ---------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connectivity": 8}, "6, 18 or 26.*8"),
        ({"min_voxels": 0}, "min_voxels=0"),
        ({"class_": "fat"}, "'fat'"),
        ({"class_": 9}, "'9'"),
        ({"instances": True, "class_": 1}, "instances have no classes"),
        ({"instances": True, "contacts": True}, "between classes"),
        ({"out": "table.csv"}, "table.csv"),
        ({"labels": "none"}, "'none'"),
        ({"box": Box((0, 0, 0), (1, 1, 99))}, "0:99"),
        ({"block_shape": (0, 1, 1)}, "three extents"),
    ],
)
def test_odd_options_are_refused_before_work(tmp_path, options, message):
    volume = write_cell(tmp_path, random_classes())
    before = tree_digest(tmp_path)
    with pytest.raises(ValueError, match=message):
        measured(volume, **options)
    assert tree_digest(tmp_path) == before


@pytest.mark.parametrize("dtype", ["float32", "uint32"])
def test_images_whose_sums_are_not_exact_are_refused(tmp_path, dtype):
    volume = write_cell(tmp_path, random_classes(), np.ones(SHAPE, dtype))
    with pytest.raises(ValueError, match=rf"{dtype}.*--dtype uint16"):
        measured(volume, intensity=True)
    assert len(measured(volume).to_pandas())


def test_an_image_of_other_voxels_is_refused(tmp_path):
    url = tmp_path / "cell.zarr"
    write_sample(url, np.zeros((2, 2, 2), np.uint8))
    write_sample(url, random_classes(), labels="classes", classes=NAMES)
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*\(7, 11, 13\)"):
        measured(open_volume(url), intensity=True)


@pytest.mark.parametrize(
    ("value", "dtype", "options", "message"),
    [
        (9, "uint8", {}, "value 9, which is no class"),
        (300, "uint16", {}, "300: are these objects"),
        (-1, "int16", {}, "-1"),
        (-7, "int32", {"instances": True}, "positive. Received: -7"),
        (2**63, "uint64", {"instances": True}, f"2⁶³. Received: {2**63}"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, value, dtype, options, message):
    data = random_classes(dtype=dtype)
    data[3, 4, 5] = value
    volume = write_cell(tmp_path, data)
    with pytest.raises(BlocksFailed, match=message) as caught:
        measured(volume, block_shape=(4, 4, 8), **options)
    assert caught.value.n_done > 0
    with pytest.raises(FileNotFoundError):
        open_table(f"{volume.url}/tables", "objects.parquet")


def test_classes_that_are_no_integers_or_have_no_size_are_refused(tmp_path, monkeypatch):
    volume = write_cell(tmp_path, random_classes())
    with monkeypatch.context() as patch:
        patch.setattr(Volume, "dtype", np.dtype("float32"))
        with pytest.raises(ValueError, match=r"integers.*float32"):
            measured(volume)
    monkeypatch.setattr(Volume, "voxel_size_nm", None)
    with pytest.raises(ValueError, match="--voxel-nm"):
        measured(volume)


def test_classes_without_names_are_given_by_value(tmp_path):
    volume = write_cell(tmp_path, random_classes(), names=None)
    with pytest.raises(ValueError, match=r"no class names.*instances"):
        measured(volume)
    found = measured(volume, class_=[1, 3]).to_pandas()
    assert sorted(set(found["class"])) == ["1", "3"]


def test_objects_one_voxel_thick(tmp_path):
    data = np.zeros((5, 8, 9), np.uint8)
    data[0, :3, :4] = data[2, 5, :6] = data[4, 7, 8] = 1
    frame = measured(write_cell(tmp_path, data), block_shape=(2, 3, 4)).to_pandas()
    assert frame.flatness.iloc[0] == math.inf
    assert frame.elongation.iloc[1] == math.inf
    assert frame.flatness.iloc[1:].isna().all()
    assert frame.sparseness.tolist() == [math.inf] * 3
