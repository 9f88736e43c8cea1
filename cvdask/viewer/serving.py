"""How does a browser on this machine read a local sample, and nobody anything else?

A viewer in the browser asks for chunks over HTTP. This server answers on the loopback address only,
below a path with a token that cannot be guessed, and reads nothing but the folders it was given:

1. The request must name this server as its host: a web page elsewhere that has its own name point
   here (DNS rebinding) names another.
2. The path is ``/TOKEN/NUMBER/KEY``. A key has no part that is empty, ``.`` or ``..``; what it
   leads to, links followed, lies inside the folder and is a file.
3. Whole files or one range of bytes are sent, to the viewer's origin only (CORS).

Small answers that lie on no disk, such as the table of objects in the viewer's own form, are added
with :meth:`SampleServer.add_document`.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LOOPBACK = "127.0.0.1"
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
SEND_BYTES = 2**20


class SampleServer:
    """Serves folders to one origin until it is closed.

    Parameters
    ----------
    folders : sequence of path
        What is served, as number 0, 1 …
    origin : str
        Origin of the viewer, such as ``http://127.0.0.1:8080``, whose pages may read.
    port : int
        0 for any that is free.

    Raises
    ------
    OSError
        When the port is in use.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]], origin: str, port: int = 0):
        self.token = secrets.token_urlsafe(24)
        self._folders = [Path(folder).resolve() for folder in folders]
        self._documents: dict[str, bytes] = {}
        check_port(port)
        handler = type("Handler", (_Handler,), {"serving": self, "origin": origin})
        self._server = ThreadingHTTPServer((LOOPBACK, port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where everything it serves begins."""
        return f"http://{LOOPBACK}:{self.port}/{self.token}"

    def folder_url(self, number: int) -> str:
        """Return where a folder is served."""
        return f"{self.url}/{number}"

    def add_document(self, name: str, data: bytes) -> str:
        """Serve bytes under ``documents/<name>``; return their URL."""
        self._documents[name] = data
        return f"{self.url}/documents/{name}"

    def close(self) -> None:
        """Stop listening; requests that are being answered are finished."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def find(self, path: str) -> Path | bytes | None:
        """Find what a request's path leads to: a file inside a folder, a document, or None.

        Parameters
        ----------
        path : str
            As it stands in the request, percent-encoded.
        """
        parts = [unquote(part) for part in urlsplit(path).path.split("/")]
        if len(parts) < 4 or parts[0] or not self._knows(parts[1]):
            return None
        if any(part in ("", ".", "..") or set(part) & set("/\\\0") for part in parts[2:]):
            return None
        if parts[2] == "documents":
            return self._documents.get("/".join(parts[3:]))
        if not parts[2].isdecimal() or int(parts[2]) >= len(self._folders):
            return None
        folder = self._folders[int(parts[2])]
        try:
            found = folder.joinpath(*parts[3:]).resolve()
            return found if found.is_relative_to(folder) and found.is_file() else None
        except (OSError, RuntimeError, ValueError):  # too long, a loop of links, not to be encoded
            return None

    def _knows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())


class _Handler(BaseHTTPRequestHandler):
    """Answers GET, HEAD and OPTIONS; see :class:`SampleServer` for what and to whom."""

    protocol_version = "HTTP/1.1"
    server_version = "cvdask"
    sys_version = ""
    timeout = 60  # seconds that an idle connection is held
    serving: SampleServer
    origin: str

    def do_GET(self) -> None:
        """Send a file, or a range of it."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Tell the size of a file."""
        self._answer(with_body=False)

    def do_OPTIONS(self) -> None:
        """Allow the viewer, and nobody else, to ask for ranges."""
        self._begin(HTTPStatus.NO_CONTENT, 0, {"Access-Control-Allow-Headers": "Range"})

    def _answer(self, *, with_body: bool) -> None:
        if self.headers.get("Host") not in self._hosts():
            self._begin(HTTPStatus.MISDIRECTED_REQUEST, 0)
            return
        found = self.serving.find(self.path)
        if found is None:
            self._begin(HTTPStatus.NOT_FOUND, 0)
            return
        size = len(found) if isinstance(found, bytes) else found.stat().st_size
        asked = byte_range(self.headers.get("Range"), size)
        if asked is None:
            self._begin(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, {"Content-Range": f"bytes */{size}"}
            )
            return
        start, stop = asked
        partial = self.headers.get("Range") is not None
        more = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if partial else {}
        status = HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK
        self._begin(status, stop - start, more)
        if with_body:
            self._send(found, start, stop)

    def _hosts(self) -> tuple[str, str]:
        return f"{LOOPBACK}:{self.serving.port}", f"localhost:{self.serving.port}"

    def _begin(
        self, status: HTTPStatus, length: int, more: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            "Access-Control-Allow-Origin": self.origin,
            "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
            "Access-Control-Expose-Headers": "Content-Range, Content-Length, Accept-Ranges",
            "Vary": "Origin",
            **(more or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, found: Path | bytes, start: int, stop: int) -> None:
        try:
            if isinstance(found, bytes):
                self.wfile.write(found[start:stop])
                return
            with found.open("rb") as file:
                file.seek(start)
                while start < stop:
                    data = file.read(min(SEND_BYTES, stop - start))
                    if not data:  # the file has shrunk: the reader notices the length
                        self.close_connection = True
                        return
                    self.wfile.write(data)
                    start += len(data)
        except (BrokenPipeError, ConnectionResetError):
            # A viewer that has moved on asks for other chunks and drops these.
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the path holds the token."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Read a ``Range`` header: first byte, and one past the last; None where there are no such.

    Several ranges are answered with none of them; no viewer asks for that.

    >>> byte_range(None, 10), byte_range("bytes=2-5", 10), byte_range("bytes=-3", 10)
    ((0, 10), (2, 6), (7, 10))
    >>> byte_range("bytes=8-99", 10), byte_range("bytes=10-", 10), byte_range("lines=1-2", 10)
    ((8, 10), None, None)
    """
    if header is None:
        return 0, size
    parsed = RANGE.fullmatch(header.strip())
    if parsed is None or not any(parsed.groups()):
        return None
    first, last = parsed.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    return (start, stop) if start < stop else None


def check_port(port: int) -> None:
    """Refuse a port that something listens on already.

    Raises
    ------
    OSError
        With what to do.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"a port lies between 0 (any) and {2**16 - 1}. Received: {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise OSError(
                f"port {port} is in use or not allowed. Give another with --port, or leave it out "
                f"for any that is free"
            ) from error
