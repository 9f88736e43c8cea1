"""Does a store that fails a fifth of all requests cost anything but time?

GCS is emulated: its client speaks to a server of S3, whose dialect GCS shares (the XML API).
"""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import obstore.exceptions
import obstore.store
import pytest
import tifffile
from zarr.storage import ObjectStore

import cvdask
from cvdask.synthesis.slices import open_slices
from cvdask.volume import ingest as ingest_module
from cvdask.volume import objects as objects_module
from cvdask.volume.objects import open_store, read_object, write_object
from tests.faults.buckets import bucket, everything, server
from tests.faults.unreliable import FAULTS, unreliable_store
from tests.trees import tree_digest

__all__ = ["bucket", "server"]  # fixtures

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::UserWarning")]

SHAPE = (8, 24, 24)


def write_sources(folder: Path) -> None:
    rng = np.random.default_rng(0)
    tifffile.imwrite(folder / "raw.tif", rng.integers(0, 255, SHAPE, np.uint8))
    cells = rng.integers(0, 3, (4, 6, 6), np.uint8)
    tifffile.imwrite(folder / "marks.tif", np.kron(cells, np.ones((2, 4, 4), np.uint8)))


def work(sources: Path, store: str) -> np.ndarray:
    """Take every stage that needs no network, and return a batch of slices of train-gan."""
    options: dict[str, Any] = {"client": "threads", "workers": 2}
    for name in ("a.zarr", "b.zarr"):
        url = f"{store}/{name}"
        cvdask.ingest(
            sources / "raw.tif", url, voxel_nm=(40, 20, 20), labels=sources / "marks.tif",
            label_name="classes", classes=["mitochondria", "myofibrils"], n_levels=2, **options,
        )  # fmt: skip
        cvdask.label(url, class_="mitochondria", block_shape=(4, 12, 24), **options)
        cvdask.measure(url, block_shape=(4, 12, 24), chart=False, **options)
        cvdask.density(url, numerator=1, denominator="all", kernel_um=0.2, stride_um=0.1, **options)
    compared = cvdask.compare(f"{store}/a.zarr", f"{store}/b.zarr", out=f"{store}/out",
                              z_blocks=2, figures=False)  # fmt: skip
    cvdask.report(compared)
    return open_slices(f"{store}/a.zarr", resolution=16).batch(0, 4).channels


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a client wait less for an answer, and before it asks again: a test needs no more."""
    for cloud in ("AWS", "GOOGLE"):
        monkeypatch.setenv(f"{cloud}_TIMEOUT", "3 seconds")
    short = {"init_backoff": timedelta(milliseconds=2), "max_backoff": timedelta(milliseconds=20)}
    patient = obstore.store.from_url
    hasty = partial(patient, retry_config={"max_retries": 10, "backoff": short})
    monkeypatch.setattr(obstore.store, "from_url", hasty)
    monkeypatch.setattr(objects_module, "WAITS_SECONDS", (0.002, 0.008, 0.032))


def reach_through(address: str, scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients of a cloud speak to a server at another address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    if scheme == "gs":
        nobody = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        account = {"gcs_base_url": address, "disable_oauth": True, **nobody}
        (folder / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(folder / "account.json"))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    open_store.cache_clear()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_every_stage_leaves_the_same_bytes(
    bucket: str, server: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = ((2, 8, 8), (4, 24, 24))
    monkeypatch.setattr(ingest_module, "_shapes", lambda source, itemsize: shapes)
    write_sources(tmp_path)
    expected = work(tmp_path, str(tmp_path / "store"))
    be_impatient(monkeypatch)
    with unreliable_store(server, share=0.2) as (address, seen):
        reach_through(address, scheme, tmp_path, monkeypatch)
        found = work(tmp_path, bucket.replace("s3://", f"{scheme}://"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    open_store.cache_clear()
    np.testing.assert_array_equal(found, expected)
    assert set(FAULTS) <= set(seen)
    stored = everything(bucket)
    assert set(stored) == set(tree_digest(tmp_path / "store"))
    for key, data in stored.items():
        assert data == (tmp_path / "store" / key).read_bytes(), key


def test_an_answer_that_breaks_off_is_asked_for_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_object(bucket, "a", b"one")
    get, n_broken, calls = ObjectStore.get, 3, []

    async def broken(self: ObjectStore, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) <= n_broken:
            raise obstore.exceptions.GenericError("HTTP error: request or response body error")
        return await get(self, *arguments)

    monkeypatch.setattr(objects_module, "WAITS_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(ObjectStore, "get", broken)
    assert read_object(bucket, "a") == b"one"
    n_broken = 99
    with pytest.raises(OSError, match="response body error"):
        read_object(bucket, "a")
    assert len(calls) == 4 + 4
