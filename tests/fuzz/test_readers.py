"""Whatever is done to a file: is it read rightly, or refused in words, and nothing else?

1. A good example is written once, and read.
2. Bytes, values and files of it are changed, and it is read again, with little memory.
3. What comes of it must be a result, or a :class:`ValueError` or :class:`OSError` that names the
   file. Where the changed files carry digests, a result must be that of the good ones.

The long part draws other examples each time: ``pytest -m slow tests/fuzz``.
"""

from __future__ import annotations

import resource
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from os.path import basename
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.mutations import changes
from tests.fuzz.readers import READERS

# What reading some kilobytes may take: buffers of libraries, no lie of a header.
MEMORY_BYTES = 2**31
QUICK_EXAMPLES, LONG_EXAMPLES = 12, 2000


@contextmanager
def little_memory() -> Iterator[None]:
    """Let this process have little more memory than it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@lru_cache
def good(name: str) -> tuple[dict[str, bytes], Any]:
    """Return the files of a good example, and what is read of them."""
    with tempfile.TemporaryDirectory() as folder:
        READERS[name].write(Path(folder))
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
        return files, READERS[name].read(Path(folder))


def refusal(name: str, changed: Mapping[str, bytes | None]) -> str:
    """Read a folder of which some files are changed; return why it is refused, empty if it is not.

    What is read, while all that is changed carries digests, is checked here.
    """
    reader = READERS[name]
    files, expected = good(name)
    # A folder of its own: what was read is remembered by where it lay.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file, data in {**files, **changed}.items():
            if data is not None:
                path = Path(folder, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        try:
            with little_memory():
                found = reader.read(Path(folder))
        except (ValueError, OSError) as error:
            return str(error).replace(folder, "FOLDER") or repr(error)
    if all(data is not None and reader.seals(file) for file, data in changed.items()):
        np.testing.assert_equal(found, expected)
    return ""


def fuzz(name: str, n_examples: int, **options: Any) -> None:
    @settings(
        max_examples=max(2, n_examples // READERS[name].cost),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
    @given(changed=changes(good(name)[0]))
    def check(changed: dict[str, bytes | None]) -> None:
        reason = refusal(name, changed)
        assert not reason or any(place in reason for place in ("FOLDER", *map(basename, changed)))

    check()


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(name: str) -> None:
    assert refusal(name, {}) == ""


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused(name: str) -> None:
    fuzz(name, QUICK_EXAMPLES, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_many_changed_files_are_read_or_refused(name: str) -> None:
    fuzz(name, LONG_EXAMPLES)
