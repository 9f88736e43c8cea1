"""An object store on a bad day: it hands most requests on to a good one, and spoils the others."""

from __future__ import annotations

import http.client
import http.server
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

# What becomes of a request that is spoilt.
FAULTS = (
    "500",  # refused, for reasons of the server's own
    "503",  # refused, since there are too many
    "reset",  # the connection is cut before the request is looked at
    "no answer",  # it is carried out, and the connection is cut
    "half an answer",  # the connection is cut in the middle of what was asked for
    "silence",  # nothing happens until the client gives up
)
# Each takes all the patience of a client.
MOST_SILENT = 2
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


def in_the_words_of_s3(headers: dict[str, str]) -> dict[str, str]:
    """Translate what clients of GCS say in other words; the rest they say as those of S3 do."""
    found = {name.lower(): value for name, value in headers.items()}
    if not found.get("authorization", "").startswith("AWS4"):
        # Of a signature, moto's server reads only which service it is for.
        found["authorization"] = "AWS4-HMAC-SHA256 Credential=k/20200101/us-east-1/s3/aws4_request"
    if found.pop("x-goog-if-generation-match", None) == "0":
        found["if-none-match"] = "*"  # only where nothing is there
    return found


class Unreliable(http.server.BaseHTTPRequestHandler):
    """Hands requests on; which ones it spoils is drawn from a seed, in the order they come."""

    protocol_version = "HTTP/1.1"
    upstream: str
    share: float
    chance: random.Random
    lock: threading.Lock
    seen: Counter[str]

    def _fault(self) -> str:
        with self.lock:
            spoilt = self.chance.random() < self.share
            fault = self.chance.choice(FAULTS) if spoilt else "none"
            if fault == "silence" and self.seen[fault] == MOST_SILENT:
                fault = "reset"
            self.seen[fault] += 1
        return fault

    def _cut(self) -> None:
        """End the connection as a network does: with a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self._fault()
        if fault == "reset":
            return self._cut()
        if fault == "silence":
            self.rfile.read(1)  # returns when the client has gone
            return self._cut()
        if fault in ("500", "503"):
            return self._answer(int(fault), {}, b"<Error><Code>SlowDown</Code></Error>")
        forward = http.client.HTTPConnection(self.upstream)
        headers = in_the_words_of_s3(dict(self.headers))
        forward.request(self.command, self.path, body or None, headers)
        answer = forward.getresponse()
        data, headers = answer.read(), dict(answer.getheaders())
        forward.close()
        if fault == "no answer":
            return self._cut()
        self._answer(answer.status, headers, data, whole=fault != "half an answer")
        if fault == "half an answer":
            self._cut()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, whole: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        told = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", told)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if whole else data[: len(data) // 2])

    def log_message(self, *_: object) -> None:
        return


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: cut connections are what it is for."""


@contextmanager
def unreliable_store(upstream: str, share: float, seed: int = 0) -> Iterator[tuple[str, Counter]]:
    """Stand before a store; yields where, and what became of how many requests.

    Parameters
    ----------
    upstream : str
        Address of the good store.
    share : float
        Of requests that are spoilt.
    seed : int
    """
    seen: Counter[str] = Counter()
    facts = {
        "upstream": upstream.removeprefix("http://"),
        "share": share,
        "chance": random.Random(seed),
        "lock": threading.Lock(),
        "seen": seen,
    }
    served = _Server(("127.0.0.1", 0), type("Handler", (Unreliable,), facts))
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}", seen
    finally:
        served.shutdown()
        served.server_close()
        thread.join()
