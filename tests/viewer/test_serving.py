"""Does the server send the sample's bytes, to the viewer, and nothing else to anybody?"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.viewer.serving import LOOPBACK, SampleServer, byte_range, check_port

ORIGIN = "http://127.0.0.1:9999"
DATA = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample beside a secret, with links that lead out and in."""
    base = tmp_path_factory.mktemp("served")
    sample = base / "cell.zarr"
    (sample / "c" / "0").mkdir(parents=True)
    (sample / "zarr.json").write_bytes(b"{}")
    (sample / "c" / "0" / "1").write_bytes(DATA)
    (base / "secret").write_bytes(b"secret")
    (base / "cell.zarr.secret").write_bytes(b"secret")
    (sample / "out").symlink_to(base / "secret")
    (sample / "above").symlink_to(base)
    (sample / "loop").symlink_to(sample / "loop")
    (sample / "in").symlink_to(sample / "zarr.json")
    return sample


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[SampleServer]:
    serving = SampleServer([folder], ORIGIN)
    serving.add_document("0/objects/info", b'{"rows": 1}')
    yield serving
    serving.close()


def ask(
    server: SampleServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def inside(server: SampleServer, key: str) -> str:
    return f"/{server.token}/0/{key}"


def test_a_file_is_sent_whole_or_in_part(server: SampleServer):
    status, headers, body = ask(server, inside(server, "c/0/1"))
    assert (status, body) == (200, DATA)
    status, headers, body = ask(server, inside(server, "c/0/1"), Range="bytes=10-19")
    assert (status, body, headers["Content-Range"]) == (206, DATA[10:20], "bytes 10-19/1024")
    status, _, body = ask(server, inside(server, "c/0/1"), Range="bytes=-68")
    assert (status, body) == (206, DATA[-68:])
    status, headers, body = ask(server, inside(server, "c/0/1"), "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "1024")
    status, headers, _ = ask(server, inside(server, "c/0/1"), Range="bytes=1024-")
    assert (status, headers["Content-Range"]) == (416, "bytes */1024")


def test_documents_are_sent_too(server: SampleServer):
    path = server.add_document("0/objects/info", b'{"rows": 1}').removeprefix(
        f"http://{LOOPBACK}:{server.port}"
    )
    assert ask(server, path)[2] == b'{"rows": 1}'
    assert ask(server, f"/{server.token}/documents/0/objects/none")[0] == 404


def test_only_the_viewer_may_read(server: SampleServer):
    for method in ("GET", "OPTIONS"):
        _, headers, _ = ask(server, inside(server, "zarr.json"), method, Origin="http://evil")
        assert headers["Access-Control-Allow-Origin"] == ORIGIN
        assert headers["X-Content-Type-Options"] == "nosniff"
    _, headers, _ = ask(server, inside(server, "zarr.json"), "OPTIONS")
    assert headers["Access-Control-Allow-Headers"] == "Range"


def test_a_name_that_was_made_to_point_here_is_refused(server: SampleServer):
    for host in ("evil.example", f"evil.example:{server.port}", f"{LOOPBACK}:1"):
        assert ask(server, inside(server, "zarr.json"), Host=host)[0] == 421
    assert ask(server, inside(server, "zarr.json"), Host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize(
    "key",
    [
        "../secret", "..%2fsecret", "%2e%2e/secret", "c/../../secret", "c//0/1", "./zarr.json",
        "..%5csecret", "/etc/passwd", "%2fetc%2fpasswd", "out", "above/secret", "loop", "c", "",
        "zarr.json%00", "zarr.json/", "../cell.zarr.secret", "none", "c/" + "x" * 5000,
    ],
)  # fmt: skip
def test_nothing_outside_of_the_sample_is_found(server: SampleServer, key: str):
    status, _, body = ask(server, inside(server, key))
    assert (status, body) == (404, b"")


def test_links_inside_are_followed(server: SampleServer):
    assert ask(server, inside(server, "in"))[2] == b"{}"


@pytest.mark.parametrize("path", ["/", "/x/0/zarr.json", "//0/zarr.json", "/0/zarr.json"])
def test_without_the_token_there_is_nothing(server: SampleServer, path: str):
    assert ask(server, path)[0] == 404
    assert ask(server, f"/{server.token[:-1]}/0/zarr.json")[0] == 404
    assert ask(server, f"/{server.token}/1/zarr.json")[0] == 404
    assert ask(server, f"/{server.token}/-1/zarr.json")[0] == 404


@given(st.text(max_size=40), st.booleans())
def test_whatever_is_asked_stays_inside(folder: Path, server: SampleServer, text: str, raw: bool):
    key = text if raw else quote(text, safe="")
    found = server.find(f"/{server.token}/0/{key}")
    assert found is None or (isinstance(found, Path) and found.is_relative_to(folder.resolve()))


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_ranges_are_those_of_slices(size: int, first: int, last: int):
    data = bytes(size)
    found = byte_range(f"bytes={first}-{last}", size)
    expected = data[first : last + 1]
    assert (found is None) == (len(expected) == 0)
    if found is not None:
        assert found == (first, first + len(expected))


def test_it_listens_on_loopback_only_and_a_taken_port_is_told(server: SampleServer):
    assert server.url.startswith(f"http://{LOOPBACK}:")
    assert len(server.token) >= 32
    with pytest.raises(OSError, match=rf"port {server.port} is in use.*--port"):
        check_port(server.port)
    with pytest.raises(ValueError, match="70000"):
        check_port(70000)


def test_after_closing_nothing_listens(folder: Path):
    serving = SampleServer([folder], ORIGIN)
    port = serving.port
    serving.close()
    with socket.socket() as probe:
        assert probe.connect_ex((LOOPBACK, port)) != 0
