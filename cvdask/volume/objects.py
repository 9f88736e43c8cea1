"""Bytes under keys, at any URL: the part of the store that knows nothing of volumes.

Local directories, ``s3://``, ``gs://``, ``az://`` and ``https://`` look alike from here. A value is
written whole or not at all. Credentials come from the environment or the cloud client's own
configuration; :func:`redact` keeps them out of messages and records.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import os
import random
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, WrapperStore

from cvdask.errors import DamagedData

_Answer = TypeVar("_Answer")

# At most, before a request is made again.
WAITS_SECONDS = (0.1, 0.4, 1.6)
# Of one call, at a time.
MOST_REQUESTS = 32


@dataclass
class Traffic:
    """Bytes and requests that went through the door while it was watched."""

    bytes_read: int = 0
    bytes_written: int = 0
    reads: int = 0
    writes: int = 0


_traffic: contextvars.ContextVar[Traffic | None] = contextvars.ContextVar("traffic", default=None)


class watch_traffic:
    """Count what this thread reads and writes inside a ``with`` statement.

    zarr runs store calls on an event loop of its own thread, but in the context of the caller, so
    a context variable attributes every byte to the thread that asked for it.

    Examples
    --------
    >>> with watch_traffic() as traffic:
    ...     pass
    >>> traffic.bytes_read
    0
    """

    def __enter__(self) -> Traffic:
        self._traffic = Traffic()
        self._token = _traffic.set(self._traffic)
        return self._traffic

    def __exit__(self, *_: object) -> None:
        _traffic.reset(self._token)


class _LocalFolder(LocalStore):
    """A local folder that looking does not create; writing makes the folders it needs."""

    async def _open(self, *, mode: Any = None) -> None:
        self._is_open = True

    def _ensure_open_sync(self) -> None:
        self._is_open = True


def count_read(n_bytes: int) -> None:
    """Count bytes that were read past the store, from a microscope's file."""
    traffic = _traffic.get()
    if traffic is not None:
        traffic.reads += 1
        traffic.bytes_read += n_bytes


# How obstore says that it was sent other bytes than it had asked for.
ANOTHER_RANGE = re.compile(r"non-partial response|Requested \d+\.\.\d+, got")
# How obstore says how often and how long it has tried: "in 32.1ms, after 1 retries, …".
TRIED = re.compile(
    r"in (?:([\d.]+)s|\S+), after (\d+) retries, max_retries: (\d+), retry_timeout: (\d+)s"
)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn what an object store reports by classes of its own into an OSError of one line.

    Such as a lost connection, a missing bucket, a refused key. Requests may be signed in their
    query, so queries are cut off.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        raise OSError(re.sub(r"\?\S*", "", str(error).partition("\n")[0])) from None


async def _ask(request: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Make a request of a store, and again where its answer broke off.

    All our requests leave the same when they are made twice. obstore tries again what is refused
    and what does not begin, but neither answers that end early nor requests that it cannot know to
    be repeatable.
    """
    for wait in (*WAITS_SECONDS, None):
        try:
            return await request()
        except Exception as error:
            if wait is None or not _broke_off(error):
                with _as_os_errors():
                    raise
        # Drawn, so that many workers do not come back at the same time.
        await asyncio.sleep(random.uniform(0, wait))
    raise AssertionError("the last wait is None")


async def _together(requests: Iterable[Callable[[], Awaitable[_Answer]]]) -> list[_Answer]:
    """Make several requests, not too many at a time; answers are in their order."""
    free = asyncio.Semaphore(MOST_REQUESTS)

    async def make(request: Callable[[], Awaitable[_Answer]]) -> _Answer:
        async with free:
            return await request()

    return await asyncio.gather(*map(make, requests))


def _broke_off(error: Exception) -> bool:
    """Tell whether a connection broke, and obstore has not tried again as long as it may.

    It gives up early where the answer of a refusal breaks off, and where a request, such as a
    deletion, might have been carried out already.
    """
    text = str(error).partition("\n")[0]
    if not type(error).__module__.startswith("obstore") or "HTTP error" not in text:
        return False
    tried = TRIED.search(text)
    if tried is None:
        return True
    seconds, n, most, patience = (float(one or 0) for one in tried.groups())
    return n < most and seconds < patience


class _CountingStore(WrapperStore[Any]):
    """Count bytes and requests into the :class:`Traffic` of the calling context.

    What object stores leave out of their protocol is made up for here: see the methods.
    """

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._counts_from_end = True

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Buffer | None:
        value = await self._get(key, prototype, byte_range)
        count_read(0 if value is None else len(value))
        return value

    async def _get(self, key: str, prototype: Any, wanted: Any) -> Buffer | None:
        from_end = isinstance(wanted, SuffixByteRequest)
        if not from_end or self._counts_from_end:
            try:
                return await _ask(lambda: self._store.get(key, prototype, wanted))
            except OSError as error:
                if not ANOTHER_RANGE.search(str(error)):
                    raise
            if not from_end:
                whole = await _ask(lambda: self._store.get(key, prototype))
                return whole and whole[wanted.start : wanted.end]
            self._counts_from_end = False
        try:
            size = await _ask(lambda: self._store.getsize(key))
        except FileNotFoundError:
            return None
        return await self._get(key, prototype, RangeByteRequest(max(0, size - wanted.suffix), size))

    async def set(self, key: str, value: Buffer) -> None:
        await _ask(lambda: self._store.set(key, value))
        traffic = _traffic.get()
        if traffic is not None:
            traffic.writes += 1
            traffic.bytes_written += len(value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # Looked at first: not every object store knows of conditions, and some write regardless.
        if not await _ask(lambda: self._store.exists(key)):
            await _ask(lambda: self._store.set_if_not_exists(key, value))


def redact(url: str) -> str:
    """Remove user names, passwords, queries and fragments from a URL, for messages and records.

    >>> redact("https://user:secret@host/cell.zarr?token=abc")
    'https://host/cell.zarr'
    """
    if not is_remote(url):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_remote(url: str) -> bool:
    """Tell whether a URL names an object store or a web server rather than a local path."""
    return "://" in url and not url.startswith("file://")


def normalize_url(url: str | os.PathLike[str]) -> str:
    """Write a location in one way: an absolute local path, or a URL without a trailing slash.

    Raises
    ------
    ValueError
        When a URL carries a user, a password, a query or a fragment. It travels with every task
        and stands in messages and records, and credentials must not.

    Examples
    --------
    >>> normalize_url("s3://bucket/cell.zarr/")
    's3://bucket/cell.zarr'
    """
    text = os.fspath(url)
    if is_remote(text):
        parts = urlsplit(text)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                f"a location carries no user, password, query or fragment: credentials come from "
                f"the environment or the cloud client's own configuration. Received one at "
                f"{redact(text)}"
            )
        return text.rstrip("/")
    return str(Path(text.removeprefix("file://")).absolute())


@lru_cache(maxsize=64)
def open_store(url: str) -> Any:
    """Open the store at a normalised URL, once per process.

    Object stores retry failed requests with back-off and jitter themselves (obstore); on a local
    disk a failed call fails the block, which the engine retries. Credentials come from the
    environment or the cloud client's own configuration, never from here.
    """
    if not is_remote(url):
        return _CountingStore(_LocalFolder(url))
    scheme = urlsplit(url).scheme
    if scheme not in ("s3", "gs", "az", "abfs", "abfss", "https", "http"):
        raise ValueError(
            f"a volume lies at a local path or at s3://, gs://, az:// or https://. "
            f"Received: {redact(url)}"
        )
    try:
        import obstore.store
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// needs the object-store client. Install it with: "
            f"pip install 'cvdask[cloud]'"
        ) from error
    from zarr.storage import ObjectStore

    options: dict[str, Any] = {"client_options": {"allow_http": True}} if scheme == "http" else {}
    return _CountingStore(ObjectStore(obstore.store.from_url(url, **options)))


def view_object(url: str, key: str) -> memoryview | None:
    """Read what is stored under a key, without another copy; None where the key is absent."""
    return view_objects(url, [key])[0]


def view_objects(url: str, keys: Iterable[str]) -> list[memoryview | None]:
    """Read what is stored under several keys, at the same time; None where a key is absent."""
    store, prototype = open_store(normalize_url(url)), default_buffer_prototype()
    buffers = sync(_together(partial(store.get, key, prototype) for key in keys))
    return [
        None if buffer is None else memoryview(buffer.as_buffer_like()).cast("B")
        for buffer in buffers
    ]


def view_tail(url: str, key: str, n_bytes: int) -> memoryview | None:
    """Read the last bytes of what is stored under a key; None where the key is absent."""
    store = open_store(normalize_url(url))
    request = SuffixByteRequest(n_bytes)
    buffer = sync(store.get(key, default_buffer_prototype(), request))
    return None if buffer is None else memoryview(buffer.as_buffer_like()).cast("B")


def view_ranges(url: str, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
    """Read ranges of bytes, (start, stop), of what is stored under a key, at the same time.

    What lies behind the end is missing from the result, as is all of an absent key.
    """
    store, prototype = open_store(normalize_url(url)), default_buffer_prototype()
    buffers = sync(
        _together(partial(store.get, key, prototype, RangeByteRequest(a, b)) for a, b in ranges)
    )
    return [
        memoryview(b"") if buffer is None else memoryview(buffer.as_buffer_like()).cast("B")
        for buffer in buffers
    ]


def read_object(url: str, key: str) -> bytes | None:
    """Read the bytes stored under a key; None where the key is absent."""
    view = view_object(url, key)
    return None if view is None else bytes(view)


def object_exists(url: str, key: str) -> bool:
    """Tell whether something is stored under a key."""
    store = open_store(normalize_url(url))
    return bool(sync(_ask(lambda: store.exists(key))))


def write_object(url: str, key: str, data: bytes | memoryview) -> None:
    """Write bytes under a key. Readers see all of them or none (temporary file, then rename)."""
    write_objects(url, {key: data})


def write_objects(url: str, data: Mapping[str, bytes | memoryview]) -> None:
    """Write bytes under several keys at the same time; each as :func:`write_object` does."""
    store, prototype = open_store(normalize_url(url)), default_buffer_prototype()
    sync(
        _together(
            partial(store.set, key, prototype.buffer.from_bytes(one)) for key, one in data.items()
        )
    )


def write_parts(url: str, key: str, parts: Iterable[bytes | memoryview]) -> int:
    """Write bytes under a key, one part after the other, so that no more than one is held.

    Readers see all of them or none: a temporary file that is renamed, or an upload in parts that
    is completed last. What fails on the way leaves neither.

    Returns
    -------
    int
        Bytes written.
    """
    url = normalize_url(url)
    n_bytes = 0

    def counted() -> Iterator[bytes | memoryview]:
        nonlocal n_bytes
        for part in parts:
            n_bytes += len(part)
            yield part

    if is_remote(url):
        # An object store's client knows how large a part of an upload must be.
        import obstore

        with _as_os_errors():
            obstore.put(open_store(url)._store.store, key, counted())
    else:
        _write_file(Path(url, key), counted())
    traffic = _traffic.get()
    if traffic is not None:
        traffic.writes += 1
        traffic.bytes_written += n_bytes
    return n_bytes


def _write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def delete_object(url: str, key: str) -> None:
    """Delete one key; nothing happens where it is absent."""
    store = open_store(normalize_url(url))
    sync(_ask(lambda: store.delete(key)))


def list_objects(url: str, prefix: str) -> Iterator[str]:
    """Yield the keys below a prefix, in no particular order.

    Temporary files that a killed writer has left on a local disk are not among them.
    """

    async def collect() -> list[str]:
        return [key async for key in open_store(normalize_url(url)).list_prefix(prefix)]

    keys = sync(_ask(collect))
    yield from (key for key in keys if is_remote(url) or not key.endswith(".partial"))


def delete_tree(url: str, prefix: str = "") -> None:
    """Delete every object below a prefix of the store, directories included."""
    store = open_store(normalize_url(url))
    if is_remote(url):
        sync(_ask(lambda: _delete_listed(store._store.store, prefix)))
    else:
        sync(_ask(lambda: store.delete_dir(prefix)))


async def _delete_listed(store: Any, prefix: str) -> None:
    """Delete objects as they are listed, a thousand to a request where the store takes so many.

    zarr-python asks for each by itself, after a list of all: a survey of a petabyte leaves 10⁸.
    """
    import obstore.store

    below = f"{prefix.rstrip('/')}/" if prefix else ""
    # GCS takes one key to a request, and of a thousand requests some break off.
    single = isinstance(store, obstore.store.GCSStore)
    while True:
        try:
            async for listed in obstore.list(store, below, chunk_size=1000):
                keys = [one["path"] for one in listed]
                if single:
                    await _together(partial(_delete_key, store, key) for key in keys)
                else:
                    await obstore.delete_async(store, keys)
            return
        except FileNotFoundError:  # somebody else deletes too: look what is left
            continue


async def _delete_key(store: Any, key: str) -> None:
    """Delete one object, which a request that broke off may have deleted already."""
    import obstore

    with contextlib.suppress(FileNotFoundError):
        await _ask(lambda: obstore.delete_async(store, key))


def read_json(url: str, key: str) -> dict[str, Any] | None:
    """Read a JSON object; None where the key is absent.

    Raises
    ------
    DamagedData
        When the bytes are not a JSON object.
    """
    data = read_object(url, key)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{redact(url)}/{key} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedData(
            f"{redact(url)}/{key} must hold a JSON object, not {type(value).__name__}"
        )
    return value


def write_json(url: str, key: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object; equal values give equal bytes."""
    write_object(url, key, json.dumps(value, indent=2, allow_nan=False).encode())
