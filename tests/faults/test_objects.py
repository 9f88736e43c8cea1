"""Do volumes in buckets and behind web servers behave, and does no credential ever get out?"""

from __future__ import annotations

import functools
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore.exceptions
import pytest
from zarr.storage import ObjectStore

from cvdask.engine.ledger import Ledger
from cvdask.errors import BlocksFailed
from cvdask.morphometry import survey as survey_module
from cvdask.morphometry.components import label
from cvdask.morphometry.mesh import mesh
from cvdask.morphometry.objects import measure
from cvdask.synthesis import gan_file
from cvdask.synthesis.generate import generate
from cvdask.synthesis.slices import open_slices
from cvdask.volume import phantom as phantom_module
from cvdask.volume.boxes import Box
from cvdask.volume.ensemble import Ensemble, open_ensemble
from cvdask.volume.info import info
from cvdask.volume.objects import (
    delete_object,
    delete_tree,
    list_objects,
    object_exists,
    open_store,
    read_object,
    write_object,
    write_parts,
)
from cvdask.volume.phantom import phantom
from cvdask.volume.store import Volume, open_volume
from cvdask.volume.verify import Verification, verify
from tests.faults.buckets import assert_no_secret, bucket, everything, server
from tests.samples import random_voxels, write_sample
from tests.synthesis.test_generate import tiny_gan
from tests.trees import tree_digest

__all__ = ["bucket", "server"]  # fixtures

pytestmark = pytest.mark.faults

OPTIONS: dict[str, Any] = {"size_um": (3.5, 4.0, 4.5), "voxel_nm": 50.0}


# Buckets


def test_keys_of_a_bucket(bucket: str) -> None:
    write_object(bucket, "0/c/1", b"one")
    write_object(bucket, "0/c/2", b"two")
    write_object(bucket, "01", b"beside")
    assert read_object(bucket, "0/c/1") == b"one"
    assert read_object(bucket, "0/c/3") is None
    assert sorted(list_objects(bucket, "")) == ["0/c/1", "0/c/2", "01"]
    assert sorted(list_objects(bucket, "0/")) == ["0/c/1", "0/c/2"]
    delete_object(bucket, "0/c/1")
    delete_object(bucket, "0/c/1")
    assert (object_exists(bucket, "0/c/1"), object_exists(bucket, "0/c/2")) == (False, True)
    delete_tree(bucket, "0")
    assert list(list_objects(bucket, "")) == ["01"]


def test_parts_in_a_bucket(bucket: str) -> None:
    parts = [bytes([n]) * 4_000_000 for n in range(4)]  # more than one request takes
    assert write_parts(bucket, "meshes/1.ply", iter(parts)) == 16_000_000
    assert read_object(bucket, "meshes/1.ply") == b"".join(parts)

    def broken() -> Iterator[bytes]:
        yield from parts
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_parts(bucket, "meshes/2.ply", broken())
    assert list(list_objects(bucket, "")) == ["meshes/1.ply"]


def test_meshes_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    data = np.zeros((6, 7, 8), np.uint16)
    data[1:5, 1:6, 1:7], data[0, 0, 0] = 3, 9
    for url in (f"{bucket}/cell.zarr", str(tmp_path / "cell.zarr")):
        write_sample(url, np.zeros(data.shape, np.uint8))
        write_sample(url, data, labels="objects")
    options: dict[str, Any] = {"labels": "objects", "ids": "3,9", "format": "precomputed"}
    mesh(f"{bucket}/cell.zarr", out=f"{bucket}/meshes", **options)
    mesh(str(tmp_path / "cell.zarr"), out=str(tmp_path / "meshes"), **options)
    local = {path.name: path.read_bytes() for path in (tmp_path / "meshes").iterdir()}
    assert everything(f"{bucket}/meshes") == local
    assert sorted(local) == ["3:0", "3:0:0", "9:0", "9:0:0", "info", "meshes.parquet"]
    with pytest.raises(FileExistsError, match="ids"):
        mesh(f"{bucket}/cell.zarr", out=f"{bucket}/meshes", **{**options, "ids": 3})
    mesh(f"{bucket}/cell.zarr", out=f"{bucket}/meshes", overwrite=True, **{**options, "ids": 3})
    assert "9:0" not in everything(f"{bucket}/meshes")


@pytest.mark.parametrize("part_voxels", [100, 10**6])
def test_tables_and_labels_in_a_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_voxels: int
) -> None:
    monkeypatch.setattr(survey_module, "PART_VOXELS", part_voxels)
    data = (np.random.default_rng(0).random((6, 7, 8)) < 0.2).astype(np.uint8)
    options: dict[str, Any] = {"block_shape": (4, 4, 8), "client": "threads"}
    for url in (f"{bucket}/cell.zarr", str(tmp_path / "cell.zarr")):
        write_sample(url, data)
        write_sample(url, data, labels="classes", classes={1: "specks"})
        measure(url, csv=True, intensity=True, **options)
        label(url, class_="specks", **options)
    local, remote = tmp_path / "cell.zarr", everything(f"{bucket}/cell.zarr")
    assert set(remote) == set(tree_digest(local))
    assert any(key.startswith("tables/objects.parquet") for key in remote)
    for key, stored in remote.items():
        assert stored == (local / key).read_bytes(), key
    with pytest.raises(FileExistsError, match="min_voxels: 1 → 2"):
        measure(f"{bucket}/cell.zarr", intensity=True, min_voxels=2)
    measure(f"{bucket}/cell.zarr", min_voxels=2, overwrite=True, chart=False)
    tables = [key for key in everything(f"{bucket}/cell.zarr") if key.startswith("tables/")]
    assert all(key.startswith("tables/objects.parquet") for key in tables)


def test_a_volume_in_a_bucket(bucket: str) -> None:
    voxels = random_voxels((9, 12, 20), "uint16", empty=0.5)
    volume = write_sample(f"{bucket}/cell.zarr", voxels)
    assert volume.name == "cell.zarr"
    np.testing.assert_array_equal(open_volume(f"{bucket}/cell.zarr/").read(), voxels)
    sliver = Box((1, 2, 3), (3, 5, 6))
    np.testing.assert_array_equal(volume.read(sliver), voxels[sliver.slices])
    np.testing.assert_array_equal(volume.to_xarray().compute(scheduler="synchronous"), voxels)
    # Zeros take back the shard that was there.
    shard = Box((0, 0, 0), (8, 8, 8))
    assert object_exists(volume.url, "0/c/0/0/0")
    volume.write(shard, np.zeros(shard.shape, "uint16"))
    assert not object_exists(volume.url, "0/c/0/0/0")
    assert not volume.read(shard).any()


def test_markers_in_a_bucket(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/cell.zarr", "0")
    ledger.mark({1: {}, 2: {}})
    ledger.mark({4: {}, 6: {}})
    assert np.flatnonzero(ledger.done(8)).tolist() == [1, 2, 4, 6]
    ledger.clear()
    assert not ledger.done(8).any()


@pytest.mark.parametrize("client", [None, "threads"])
def test_a_phantom_in_a_bucket_has_the_bytes_of_one_on_disk(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str | None
) -> None:
    monkeypatch.setattr(phantom_module, "LARGEST_SHARD", 64)
    phantom(tmp_path / "cell.zarr", **OPTIONS)
    url = f"{bucket}/cell.zarr"
    phantom(url, client=client, **OPTIONS)
    stored = everything(url)
    assert set(stored) == set(tree_digest(tmp_path / "cell.zarr"))
    for key, data in stored.items():
        assert data == (tmp_path / "cell.zarr" / key).read_bytes()
    checked = verify(url, client=client)
    assert isinstance(checked, Verification)
    assert checked.ok


class Interrupted(BaseException):
    """What a kill looks like from inside: nothing below catches it."""


def test_rules_of_the_destination_hold_in_buckets(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/cell.zarr"
    monkeypatch.setattr(phantom_module, "LARGEST_SHARD", 64)
    render, n_rendered = phantom_module.render, 0

    def stop(*arguments: Any) -> Any:
        nonlocal n_rendered
        n_rendered += 1
        if n_rendered == 5:
            raise Interrupted
        return render(*arguments)

    monkeypatch.setattr(phantom_module, "render", stop)
    with pytest.raises(Interrupted):
        phantom(url, **OPTIONS)
    with pytest.raises(ValueError, match="phantom has begun"):
        open_volume(url)
    phantom(url, **OPTIONS)
    assert n_rendered < 5 + 8
    before = everything(url)
    with pytest.raises(FileExistsError, match=r"options\.seed: 0 → 1"):
        phantom(url, seed=1, **OPTIONS)
    assert everything(url) == before
    phantom(url, seed=1, overwrite=True, **OPTIONS)
    phantom(url, overwrite=True, **OPTIONS)
    assert everything(url) == before
    write_object(f"{bucket}/home", "thesis.txt", b"thesis")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="home"):
            phantom(f"{bucket}/home", overwrite=overwrite, **OPTIONS)
    assert read_object(f"{bucket}/home", "thesis.txt") == b"thesis"


def test_damage_in_a_bucket_is_found(bucket: str) -> None:
    voxels = random_voxels((8, 8, 16), "uint8", empty=0.0)
    volume = write_sample(f"{bucket}/cell.zarr", voxels)
    good = read_object(volume.url, "0/c/0/0/1")
    assert good is not None
    write_object(volume.url, "0/c/0/0/1", good[:40] + bytes([good[40] ^ 4]) + good[41:])
    delete_object(volume.url, "0/c/0/0/0")
    checked = verify(volume)
    assert isinstance(checked, Verification)
    assert {key: reason.partition(":")[0] for key, reason in checked.faults.items()} == {
        f"{volume.url}/0/c/0/0/0": "missing",
        f"{volume.url}/0/c/0/0/1": "damaged",
    }


# Credentials


def test_no_credential_gets_out(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cvdask")
    url = f"{bucket}/cell.zarr"
    volume = phantom(url, **OPTIONS)
    assert isinstance(volume, Volume)
    plans = phantom(f"{bucket}/other.zarr", dry_run=True, **OPTIONS)
    assert isinstance(plans, list)
    assert_no_secret(repr(volume), json.dumps(info(url)), repr(open_store(url)), caplog.text)
    assert_no_secret(*(repr(plan) + str(plan) + str(plan.as_dict()) for plan in plans))
    stored = everything(url)
    assert len(stored) > 20
    assert_no_secret(*(data for data in stored.values() if data is not None))


def said_by(error: BaseException) -> str:
    """Return all that an error says, with those it came from."""
    inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{error!r} {error}" + (said_by(inner) if inner else "")


def test_no_credential_is_in_an_error(bucket: str) -> None:
    volume = write_sample(f"{bucket}/cell.zarr", np.ones((8, 8, 8), "uint8"))
    write_object(volume.url, "0/c/0/0/0", b"damaged")
    faults = [
        lambda: open_volume(f"{bucket}/nothing.zarr"),
        lambda: open_volume(f"{bucket}-missing/cell.zarr"),
        lambda: phantom(f"{bucket}-missing/cell.zarr", **OPTIONS),
        volume.read,
        lambda: phantom(volume.url, **OPTIONS),
        lambda: volume.write(Box((0, 0, 0), (4, 8, 8)), np.ones((4, 8, 8), "uint8")),
    ]
    for fault in faults:
        with pytest.raises((OSError, ValueError, BlocksFailed)) as caught:
            fault()  # type: ignore[operator]
        assert_no_secret(said_by(caught.value))
        assert "\n" not in str(caught.value).strip() or isinstance(caught.value, BlocksFailed)


def test_a_signature_in_a_query_is_not_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        address = "https://account.blob.core/cell?sv=1&sig=hunter2"
        raise obstore.exceptions.GenericError(f"GET {address} failed: 403\n\nDebug: hunter2")

    monkeypatch.setattr(ObjectStore, "get", refuse)
    with pytest.raises(OSError, match=r"account\.blob\.core/cell failed: 403") as caught:
        read_object(bucket, "zarr.json")
    assert "hunter2" not in said_by(caught.value)


# Web servers


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder with byte ranges; answer 503 to the first requests of some paths."""

    busy: dict[str, int]
    ranges: list[str]

    def do_GET(self) -> None:
        if self.busy.get(self.path, 0):
            self.busy[self.path] -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked = self.headers.get("Range")
        if asked is None:
            self.send_response(200)
        else:
            self.ranges.append(asked)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            stop = int(last) + 1 if first and last else len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, type[RangeHandler]]]:
    kind = type("Handler", (RangeHandler,), {"busy": {}, "ranges": []})
    handler = functools.partial(kind, directory=str(tmp_path))
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", kind
    served.shutdown()
    served.server_close()
    thread.join()


def test_a_published_volume_is_read_through_a_web_server(
    tmp_path: Path, website: tuple[str, type[RangeHandler]]
) -> None:
    url, handler = website
    voxels = random_voxels((8, 20, 12), "uint16", empty=0.5)
    write_sample(tmp_path / "cell.zarr", voxels)
    write_sample(tmp_path / "cell.zarr", (voxels > 0).astype("uint8"), labels="full")
    volume = open_volume(f"{url}/cell.zarr")
    np.testing.assert_array_equal(volume.read(), voxels)
    assert handler.ranges == []
    sliver = Box((1, 9, 1), (2, 10, 3))
    np.testing.assert_array_equal(volume.read(sliver), voxels[sliver.slices])
    assert handler.ranges != []
    assert volume.label_names() == ["full"]
    np.testing.assert_array_equal(volume.label("full").read(), voxels > 0)
    checked = verify(f"{url}/cell.zarr")
    assert isinstance(checked, Verification)
    assert checked.ok
    (tmp_path / "cell.zarr/0/c/0/1/0").unlink()
    checked = verify(f"{url}/cell.zarr")
    assert isinstance(checked, Verification)
    assert list(checked.faults) == [f"{url}/cell.zarr/0/c/0/1/0"]
    with pytest.raises(FileNotFoundError, match=r"nothing\.zarr"):
        open_volume(f"{url}/nothing.zarr")


def test_a_busy_server_is_asked_again(
    tmp_path: Path, website: tuple[str, type[RangeHandler]]
) -> None:
    url, handler = website
    voxels = random_voxels((8, 8, 8), "uint8")
    write_sample(tmp_path / "cell.zarr", voxels)
    handler.busy.update({"/cell.zarr/zarr.json": 1, "/cell.zarr/0/c/0/0/0": 2})
    np.testing.assert_array_equal(open_volume(f"{url}/cell.zarr").read(), voxels)
    assert set(handler.busy.values()) == {0}


# Ensembles


def test_slices_and_ensembles_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    gan_file.save(tiny_gan(), tmp_path / "gan.keras")
    options: dict[str, Any] = {"volumes": 2, "slices": 50, "batch_size": 8}
    ensemble = generate(tmp_path / "gan.keras", f"{bucket}/made.zarr", **options)
    assert isinstance(ensemble, Ensemble)
    generate(tmp_path / "gan.keras", tmp_path / "made.zarr", **options)
    assert everything(f"{bucket}/made.zarr") == everything(str(tmp_path / "made.zarr"))
    here, there = open_slices(open_ensemble(tmp_path / "made.zarr")), open_slices(ensemble)
    for step in (0, 7):
        batches = (one.batch(step, 16).channels for one in (here, there))
        np.testing.assert_array_equal(*batches)
    overwritten = generate(
        tmp_path / "gan.keras", ensemble.url, overwrite=True, **{**options, "volumes": 1}
    )
    assert isinstance(overwritten, Ensemble)
    assert not any(key.startswith("0001") for key in list_objects(ensemble.url, ""))
