"""Tables: files and folders of parts, and what they are not."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cvdask.errors import DamagedData
from cvdask.morphometry.tables import (
    complete_parts,
    delete_table,
    destination,
    existing_table,
    open_table,
)
from cvdask.volume.objects import write_json
from cvdask.volume.parquet import read_table, table_metadata, write_table

SCRATCH = ".cvdask/t.parquet"
PROVENANCE = {"provenance": {"stage": "measure"}}


def some_rows(first: int = 0) -> pa.Table:
    table = pa.table({"label": [first, first + 1], "volume_um3": [0.5, 1.5]})
    return table.replace_schema_metadata({"cvdask": '{"provenance": {"stage": "measure"}}'})


def test_where_a_table_lies(tmp_path, monkeypatch):
    assert destination("/a/cell.zarr", "objects", None) == (
        "/a/cell.zarr/tables",
        "objects.parquet",
    )
    assert destination("/a", "o", "s3://bucket/x/y.parquet") == ("s3://bucket/x", "y.parquet")
    monkeypatch.chdir(tmp_path)
    assert destination("/a", "o", "y.parquet") == (str(tmp_path), "y.parquet")
    for odd in ("table.csv", "table", "parquet"):
        with pytest.raises(ValueError, match=rf"\.parquet.*{odd}"):
            destination("/a", "o", odd)
    with pytest.raises(ValueError, match="no user, password"):
        destination("/a", "o", "s3://user:hunter2@bucket/y.parquet")


def test_a_file(tmp_path):
    parent = str(tmp_path)
    assert existing_table(parent, "t.parquet", SCRATCH) is None
    with pytest.raises(FileNotFoundError, match=r"t\.parquet"):
        open_table(parent, "t.parquet")
    write_table(parent, "t.parquet", some_rows())
    assert existing_table(parent, "t.parquet", SCRATCH) == {**PROVENANCE, "state": "complete"}
    table = open_table(parent, "t.parquet")
    assert (table.url, table.parts) == (f"{parent}/t.parquet", ("t.parquet",))
    assert table.to_arrow().equals(some_rows())
    assert table.to_pandas(["volume_um3"]).volume_um3.tolist() == [0.5, 1.5]
    assert table.metadata == table_metadata(table.schema) == PROVENANCE
    delete_table(parent, "t.parquet")
    assert list(tmp_path.iterdir()) == []
    delete_table(parent, "t.parquet")


def test_a_folder_of_parts(tmp_path):
    parent = str(tmp_path)
    write_json(parent, f"{SCRATCH}/begun.json", PROVENANCE)
    write_table(parent, "t.parquet/part-00003.parquet", some_rows(2))
    write_table(parent, "t.parquet/part-00001.parquet", some_rows(0))
    # Begun, and neither complete nor somebody else's.
    assert existing_table(parent, "t.parquet", SCRATCH) == PROVENANCE
    with pytest.raises(FileNotFoundError, match="no complete table"):
        open_table(parent, "t.parquet")
    complete_parts(parent, "t.parquet", PROVENANCE)
    known = {**PROVENANCE, "n_parts": 2, "state": "complete"}
    assert existing_table(parent, "t.parquet", SCRATCH) == known
    (tmp_path / "t.parquet/part-00002.0123.partial").write_bytes(b"half")
    table = open_table(parent, "t.parquet")
    assert table.to_pandas().label.tolist() == [0, 1, 2, 3]
    assert [len(part) for part in table.batches()] == [2, 2]
    # Others read it as a data set.
    (tmp_path / "t.parquet/part-00002.0123.partial").unlink()
    import pyarrow.dataset

    assert pyarrow.dataset.dataset(str(tmp_path / "t.parquet"), format="parquet").count_rows() == 4
    delete_table(parent, "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_what_is_not_ours_has_no_provenance(tmp_path):
    parent = str(tmp_path)
    (tmp_path / "a.parquet").write_text("thesis")
    assert existing_table(parent, "a.parquet", SCRATCH) == {}
    (tmp_path / "b.parquet").mkdir()
    (tmp_path / "b.parquet/thesis.txt").write_text("thesis")
    assert existing_table(parent, "b.parquet", SCRATCH) == {}
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "c.parquet")
    assert "provenance" not in (existing_table(parent, "c.parquet", SCRATCH) or {})


def test_damage_is_an_error(tmp_path):
    parent = str(tmp_path)
    write_table(parent, "t.parquet", some_rows())
    good = Path(tmp_path, "t.parquet").read_bytes()
    for bad in (b"", b"PAR1", good[:-10], good[:8] + bytes([good[8] ^ 1]) + good[9:]):
        Path(tmp_path, "t.parquet").write_bytes(bad)
        with pytest.raises(DamagedData, match=r"t\.parquet"):
            read_table(parent, "t.parquet")


def test_parts_that_do_not_belong_together(tmp_path):
    parent = str(tmp_path)
    write_table(parent, "t.parquet/part-0.parquet", some_rows(0))
    write_table(parent, "t.parquet/part-1.parquet", some_rows(1).rename_columns(["label", "area"]))
    complete_parts(parent, "t.parquet", PROVENANCE)
    with pytest.raises(DamagedData, match=r"t\.parquet do not belong together"):
        open_table(parent, "t.parquet").to_arrow()


def test_a_part_that_is_gone_is_an_error(tmp_path):
    parent = str(tmp_path)
    for part in (0, 1):
        write_table(parent, f"t.parquet/part-{part}.parquet", some_rows(part))
    complete_parts(parent, "t.parquet", PROVENANCE)
    for part, left in ((1, 1), (0, 0)):
        Path(tmp_path, f"t.parquet/part-{part}.parquet").unlink()
        with pytest.raises(DamagedData, match=rf"t\.parquet had 2 parts, and has {left}"):
            open_table(parent, "t.parquet")


def test_every_flipped_byte_of_the_data_is_found(tmp_path):
    parent = str(tmp_path)
    write_table(parent, "t.parquet", some_rows())
    good = Path(tmp_path, "t.parquet").read_bytes()
    expected = some_rows()
    # What describes the pages, at the end of the file, has no checksum in Parquet.
    described = int.from_bytes(good[-8:-4], "little") + 8
    assert described < len(good) - 100
    for place in range(4, len(good) - described):
        Path(tmp_path, "t.parquet").write_bytes(
            good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :]
        )
        try:
            found = read_table(parent, "t.parquet")
        except DamagedData:
            continue
        assert found.equals(expected), place
