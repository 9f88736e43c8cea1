"""Are bytes under keys whole or absent, counted for whoever asked, and free of credentials?"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

from cvdask.errors import DamagedData
from cvdask.volume.objects import (
    _delete_listed,
    delete_object,
    delete_tree,
    is_remote,
    list_objects,
    normalize_url,
    object_exists,
    open_store,
    read_json,
    read_object,
    redact,
    watch_traffic,
    write_json,
    write_object,
    write_parts,
)

# Small cases, written out


def test_write_read_list_delete(tmp_path: Path) -> None:
    url = str(tmp_path / "cell.zarr")
    write_object(url, "0/c/1", b"one")
    write_object(url, "0/c/2", b"two")
    write_object(url, "zarr.json", b"{}")
    assert read_object(url, "0/c/1") == b"one"
    assert sorted(list_objects(url, "")) == ["0/c/1", "0/c/2", "zarr.json"]
    assert sorted(list_objects(url, "0/")) == ["0/c/1", "0/c/2"]
    write_object(url, "0/c/1", b"another")
    assert read_object(url, "0/c/1") == b"another"
    delete_object(url, "0/c/1")
    assert read_object(url, "0/c/1") is None
    assert (object_exists(url, "0/c/1"), object_exists(url, "0/c/2")) == (False, True)
    delete_tree(url, "0")
    assert sorted(path.name for path in Path(url).iterdir()) == ["zarr.json"]


def test_parts_are_written_as_one(tmp_path: Path) -> None:
    url = str(tmp_path / "meshes")
    with watch_traffic() as traffic:
        assert write_parts(url, "a/1.ply", iter([b"one", memoryview(b"two"), b""])) == 6
    assert read_object(url, "a/1.ply") == b"onetwo"
    assert (traffic.writes, traffic.bytes_written) == (1, 6)
    write_parts(url, "a/1.ply", [])
    assert read_object(url, "a/1.ply") == b""


def test_parts_that_break_off_leave_what_was_there(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half of it"
        raise OSError("no more")

    write_object(str(tmp_path), "1.ply", b"whole")
    for key in ("1.ply", "2.ply"):
        with pytest.raises(OSError, match="no more"):
            write_parts(str(tmp_path), key, parts())
    assert [path.name for path in tmp_path.iterdir()] == ["1.ply"]
    assert read_object(str(tmp_path), "1.ply") == b"whole"


def test_absent_keys_are_none_and_may_be_deleted(tmp_path: Path) -> None:
    write_object(str(tmp_path), "there", b"x")
    for key in ("nothing", "nothing/below", "there/below"):
        assert read_object(str(tmp_path), key) is None
        assert not object_exists(str(tmp_path), key)
    delete_object(str(tmp_path), "nothing")
    delete_tree(str(tmp_path), "nothing")
    assert list(list_objects(str(tmp_path), "nothing/")) == []


def test_looking_creates_no_folder(tmp_path: Path) -> None:
    missing = tmp_path / "cell.zarr"
    assert read_object(str(missing), "zarr.json") is None
    assert not object_exists(str(missing), "zarr.json")
    assert list(list_objects(str(missing), "")) == []
    assert not missing.exists()


def test_json_has_one_way_to_be_written(tmp_path: Path) -> None:
    write_json(str(tmp_path), "a", {"level": 1, "name": "cell"})
    assert read_object(str(tmp_path), "a") == b'{\n  "level": 1,\n  "name": "cell"\n}'
    assert read_json(str(tmp_path), "a") == {"level": 1, "name": "cell"}
    assert read_json(str(tmp_path), "b") is None
    with pytest.raises(ValueError, match="JSON"):
        write_json(str(tmp_path), "a", {"spacing": float("nan")})


@pytest.mark.parametrize(("data", "said"), [(b"{", "JSON"), (b"[1]", "list"), (b"\xff", "JSON")])
def test_json_that_is_none(tmp_path: Path, data: bytes, said: str) -> None:
    write_object(str(tmp_path), "0/zarr.json", data)
    with pytest.raises(DamagedData, match=rf"0/zarr\.json.*{said}"):
        read_json(str(tmp_path), "0/zarr.json")


# Locations


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://me:pass@host:81/cell.zarr", "https://host:81/cell.zarr"),
        ("https://host/cell.zarr?X-Amz-Signature=pass", "https://host/cell.zarr"),
        ("s3://bucket/cell.zarr#pass", "s3://bucket/cell.zarr"),
        ("s3://bucket/cell.zarr", "s3://bucket/cell.zarr"),
        ("/data/a@b?c.zarr", "/data/a@b?c.zarr"),
    ],
)
def test_redact(url: str, clean: str) -> None:
    assert redact(url) == clean


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@host/cell.zarr",
        "s3://AKIA:hunter2@bucket/cell.zarr",
        "https://host/cell.zarr?sig=hunter2",
        "https://host/cell.zarr#hunter2",
    ],
)
def test_locations_with_credentials_are_refused_without_saying_them(url: str) -> None:
    with pytest.raises(ValueError, match="environment") as caught:
        normalize_url(url)
    assert "cell.zarr" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_one_location_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "cell.zarr")
    for written in ("cell.zarr", "./cell.zarr/", Path("cell.zarr"), f"file://{expected}"):
        assert normalize_url(written) == expected
    assert not is_remote(f"file://{expected}")


def test_a_scheme_we_cannot_read() -> None:
    with pytest.raises(ValueError, match=r"ftp://host/cell\.zarr"):
        open_store("ftp://host/cell.zarr")


def test_a_missing_client_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ValueError, match=r"gs://.*cvdask\[cloud\]"):
        open_store("gs://bucket/without-client.zarr")


def test_a_store_is_opened_once(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)) is open_store(str(tmp_path))


# Whole or not at all


def test_readers_never_see_half_a_value(tmp_path: Path) -> None:
    values = [bytes([letter]) * 2_000_000 for letter in b"ab"]
    write_object(str(tmp_path), "key", values[0])
    ended = threading.Event()

    def write() -> None:
        for i in range(40):
            write_object(str(tmp_path), "key", values[i % 2])
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    n_reads = 0
    while not ended.is_set():
        assert read_object(str(tmp_path), "key") in values
        n_reads += 1
    writer.join()
    assert n_reads > 0
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


# Traffic


def test_traffic_of_this_thread(tmp_path: Path) -> None:
    with watch_traffic() as traffic:
        write_object(str(tmp_path), "a", bytes(100))
        write_object(str(tmp_path), "b", bytes(20))
        read_object(str(tmp_path), "a")
        read_object(str(tmp_path), "absent")
    write_object(str(tmp_path), "c", bytes(7))
    assert (traffic.bytes_written, traffic.writes) == (120, 2)
    assert (traffic.bytes_read, traffic.reads) == (100, 2)


def test_traffic_of_threads_is_not_mixed(tmp_path: Path) -> None:
    counted = {}
    together = threading.Barrier(4)

    def work(number: int) -> None:
        with watch_traffic() as traffic:
            together.wait()
            for i in range(20):
                write_object(str(tmp_path), f"{number}/{i}", bytes(number))
        counted[number] = traffic.bytes_written

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == {1: 20, 2: 40, 3: 60, 4: 80}


def test_a_tree_of_a_bucket_is_deleted_and_nothing_beside_it() -> None:
    store = MemoryStore()
    inside = [f"a/{number:04d}" for number in range(2500)]
    for key in (*inside, "ab/0", "b/a/0"):
        store.put(key, b"x")
    asyncio.run(_delete_listed(store, "a"))
    assert sorted(one["path"] for one in store.list().collect()) == ["ab/0", "b/a/0"]


def test_a_tree_that_somebody_else_deletes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    for number in range(5):
        store.put(f"a/{number}", b"x")
    keep, calls = obstore.delete_async, []

    async def delete(store: MemoryStore, paths: list[str]) -> None:
        calls.append(paths)
        if len(calls) == 1:
            await keep(store, paths[:2])
            raise FileNotFoundError(paths[2])
        await keep(store, paths)

    monkeypatch.setattr(obstore, "delete_async", delete)
    asyncio.run(_delete_listed(store, "a"))
    assert store.list().collect() == []
    assert [len(paths) for paths in calls] == [5, 3]
