"""Which volumes are compared, in which groups, and what is refused?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from cvdask.comparison.samples import OBJECTS, open_groups, open_table
from cvdask.errors import DamagedData
from cvdask.volume.ensemble import create_ensemble, publish_ensemble
from cvdask.volume.parquet import write_table as write_checked_table
from cvdask.volume.store import volume_digest
from tests.comparison.cells import objects, write_cell, write_cells, write_table


@pytest.fixture
def columns() -> dict[str, object]:
    return objects(np.random.default_rng(0), 12)


def names(samples: list) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for sample in samples:
        found.setdefault(sample.group, []).append(sample.name)
    return found


def test_inputs_are_groups_of_their_own_or_named_ones(tmp_path: Path):
    a, b, c = write_cells(tmp_path, "cell", 3)
    samples, notices = open_groups([a, b], None, "classes")
    assert names(samples) == {"cell0": ["cell0"], "cell1": ["cell1"]}
    assert notices == []
    # Members are given by location, or by the name of an input.
    samples, _ = open_groups([c, b], {"control": [a, "cell1"]}, "classes")
    assert names(samples) == {"control": ["cell0", "cell1"], "cell2": ["cell2"]}


def test_an_ensemble_is_a_group_of_its_members(tmp_path: Path, columns: dict):
    (a,) = write_cells(tmp_path, "real", 1)
    ensemble = create_ensemble(tmp_path / "generated.zarr", 3, {"stage": "generate"})
    for number in range(3):
        write_cell(Path(ensemble.member_url(number)), columns)
    publish_ensemble(ensemble)
    samples, _ = open_groups([a, ensemble.url], None, "classes")
    expected = [f"generated/000{k}" for k in range(3)]
    assert names(samples) == {"real0": ["real0"], "generated": expected}


def test_samples_of_one_name_are_told_apart(tmp_path: Path, columns: dict):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_cell(tmp_path / folder / "cell.zarr", columns)
    samples, _ = open_groups(
        [str(tmp_path / "a" / "cell.zarr"), str(tmp_path / "b" / "cell.zarr")], None, "classes"
    )
    assert [sample.name for sample in samples] == ["a/cell", "b/cell"]


def test_one_volume_alone_is_refused(tmp_path: Path):
    (a,) = write_cells(tmp_path, "cell", 1)
    with pytest.raises(ValueError, match=r"two volumes.*1, cell0"):
        open_groups([a], None, "classes")
    with pytest.raises(ValueError, match=r"cell0\.zarr is given twice"):
        open_groups([a, a], None, "classes")
    with pytest.raises(ValueError, match=r"'control' and 'diabetic'"):
        open_groups([], {"control": [a], "diabetic": [a]}, "classes")
    with pytest.raises(ValueError, match="control"):
        open_groups([], {"control": []}, "classes")


def test_a_sample_without_table_is_refused_with_the_command(tmp_path: Path):
    (a,) = write_cells(tmp_path, "cell", 1)
    write_cell(tmp_path / "bare.zarr")
    with pytest.raises(ValueError, match=r"cvdask measure .*bare\.zarr --labels classes"):
        open_groups([a, str(tmp_path / "bare.zarr")], None, "classes")


def test_a_table_without_units_is_refused(tmp_path: Path, columns: dict):
    (a,) = write_cells(tmp_path, "cell", 1)
    columns["centroid_z"] = columns.pop("centroid_z_um")
    write_cell(tmp_path / "odd.zarr", columns)
    with pytest.raises(ValueError, match=r"odd\.zarr.* lacks centroid_z_um"):
        open_groups([a, str(tmp_path / "odd.zarr")], None, "classes")


def test_voxels_of_another_size_are_noticed(tmp_path: Path, columns: dict):
    (a,) = write_cells(tmp_path, "cell", 1)
    write_cell(tmp_path / "fine.zarr", columns, voxel_size_nm=(90.0, 50.0, 50.0))
    write_cell(tmp_path / "coarse.zarr", columns, voxel_size_nm=(100.0, 200.0, 200.0))
    _, notices = open_groups([a, str(tmp_path / "fine.zarr")], None, "classes")
    (notice,) = notices
    assert "100 × 50 × 50 nm (cell0)" in notice
    assert "90 × 50 × 50 nm (fine)" in notice
    assert "times as large" not in notice
    _, notices = open_groups([a, str(tmp_path / "coarse.zarr")], None, "classes")
    assert "4 times as large" in notices[0]


def test_classes_that_not_all_have_are_noticed_and_none_in_common_refused(
    tmp_path: Path, columns: dict
):
    (a,) = write_cells(tmp_path, "cell", 1)
    write_cell(tmp_path / "b.zarr", columns, classes={3: "mitochondria", 1: "nucleus"})
    write_cell(tmp_path / "c.zarr", columns, classes={1: "axons"})
    _, notices = open_groups([a, str(tmp_path / "b.zarr")], None, "classes")
    assert any("myofibrils is in cell0 only" in notice for notice in notices)
    assert any("nucleus is in b only" in notice for notice in notices)
    with pytest.raises(ValueError, match=r"mitochondria.*axons"):
        open_groups([a, str(tmp_path / "c.zarr")], None, "classes")


def test_a_label_image_that_is_not_there_is_refused(tmp_path: Path):
    a, b = write_cells(tmp_path, "cell", 2)
    with pytest.raises(ValueError, match=r"classes.*'truth'"):
        open_groups([a, b], None, "truth")


# ---------------------------------------------------------------------------------------------
# Tables


def rows(table: object, *columns: str) -> list[dict]:
    return [row for batch in table.batches(columns) for row in batch.to_pylist()]


def test_a_table_is_one_file_or_a_folder_of_parts(tmp_path: Path, columns: dict):
    write_cell(tmp_path / "one.zarr", columns)
    write_cell(tmp_path / "many.zarr", columns, parts=3)
    one = open_table(str(tmp_path / "one.zarr"), OBJECTS)
    many = open_table(str(tmp_path / "many.zarr"), OBJECTS)
    assert one is not None
    assert many is not None
    assert len(many.keys) == 3
    assert rows(one, "label", "volume_um3") == rows(many, "label", "volume_um3")
    assert one.digest() != many.digest()
    assert open_table(str(tmp_path / "one.zarr"), "tables/none.parquet") is None


def test_a_table_that_is_parted_by_class_has_it_as_a_column(tmp_path: Path, columns: dict):
    where = tmp_path / "cell.zarr" / "tables" / "objects.parquet"
    ds.write_dataset(
        pa.table(columns), where, format="parquet",
        partitioning=ds.partitioning(pa.schema([("class", pa.string())]), flavor="hive"),
    )  # fmt: skip
    table = open_table(str(tmp_path / "cell.zarr"), OBJECTS)
    assert table is not None
    assert "class" in table.schema().names
    assert {row["class"] for row in rows(table, "class", "label")} == {"mitochondria"}


def test_a_damaged_table_is_named(tmp_path: Path, columns: dict):
    write_table(tmp_path / "t" / "objects.parquet", columns)
    path = tmp_path / "t" / "objects.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    table = open_table(str(tmp_path / "t"), "objects.parquet")
    assert table is not None
    with pytest.raises(DamagedData, match=r"objects\.parquet is no table"):
        table.schema()


def test_flipped_bytes_of_a_table_are_found(tmp_path: Path, columns: dict):
    write_checked_table(str(tmp_path), "objects.parquet", pa.table(columns))
    path = tmp_path / "objects.parquet"
    good = path.read_bytes()
    table = open_table(str(tmp_path), "objects.parquet")
    assert table is not None
    expected = pa.Table.from_batches(table.batches(["label"]))
    described = int.from_bytes(good[-8:-4], "little") + 8
    for place in range(40, len(good) - described, 97):
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        try:
            assert pa.Table.from_batches(table.batches(["label"])).equals(expected), place
        except DamagedData:
            continue


def test_what_a_table_says_of_itself(tmp_path: Path, columns: dict):
    write_table(tmp_path / "a.parquet", columns, metadata={"state": "complete"})
    write_table(tmp_path / "b.parquet", columns)
    for name, expected in (("a", {"state": "complete"}), ("b", {})):
        table = open_table(str(tmp_path), f"{name}.parquet")
        assert table is not None
        assert table.metadata() == expected


def test_a_folder_whose_stage_has_not_ended_is_refused(tmp_path: Path, columns: dict):
    where = tmp_path / "cell.zarr" / "tables" / "objects.parquet"
    write_table(where, columns, parts=2, metadata={"state": "complete"})
    with pytest.raises(ValueError, match=r"objects\.parquet is not complete"):
        open_table(str(tmp_path / "cell.zarr"), OBJECTS)
    (where / "_cvdask.json").write_text("{}")
    table = open_table(str(tmp_path / "cell.zarr"), OBJECTS)
    assert table is not None
    assert len(table.keys) == 2


def test_what_was_measured_decides_size_and_labels(tmp_path: Path, columns: dict):
    (a,) = write_cells(tmp_path, "cell", 1)
    volume = write_cell(tmp_path / "part.zarr")
    options = {"labels": "classes", "box": "5:10,0:8,0:4"}
    digest = volume_digest(volume.label("classes"))
    provenance = {
        "options": options,
        "inputs": [{"volume": "labels/classes", "digest": digest}],
    }
    where = tmp_path / "part.zarr" / "tables" / "objects.parquet"
    write_table(where, columns, metadata={"provenance": provenance})
    samples, notices = open_groups([a, volume.url], None, "classes")
    assert notices == []
    assert samples[1].extent_um == pytest.approx((0.5, 0.4, 0.2))
    assert samples[1].start_um == pytest.approx(0.45)
    provenance["inputs"][0]["digest"] = "sha256:another"
    write_table(where, columns, metadata={"provenance": provenance})
    _, notices = open_groups([a, volume.url], None, "classes")
    assert "have changed" in notices[0]
    assert "part" in notices[0]
    options["labels"] = "truth"
    write_table(where, columns, metadata={"provenance": provenance})
    with pytest.raises(ValueError, match=r"--labels truth"):
        open_groups([a, volume.url], None, "classes")
