"""What was run, by which process, and how did it go?

In the folder of a run::

    run.json     options, versions, inputs and every step: seconds, memory, what it left
    run.log      the same as it happened, a line each, all runs one after the other
    run.lock     who is running now

:func:`locked` holds the lock of the operating system on ``run.lock``, which ends with the process
however that ends: a lock that a dead process has left holds nobody up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from cvdask.volume.objects import is_remote, write_json

RECORD, LOG, LOCK = "run.json", "run.log", "run.lock"
# Names of what stages write below a sample, in which a killed writer may have left something.
WRITTEN_BELOW = (".", "tables", "labels")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    Raises
    ------
    FileExistsError
        When another process holds it; says which.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(
                f"one run writes to a folder at a time. {out} is in use by {_holder(file)}: wait "
                f"for it, end it, or give another out"
            ) from error
        # Never removed: another process may be about to lock this very file.
        file.truncate(0)
        file.write(json.dumps(_this_process()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _this_process() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().isoformat(timespec="seconds"),
    }


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        found = json.loads(file.read())
        return f"process {found['process']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


class Log:
    """Lines with the time, at the end of a file.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> None:
        """Append a text, however many lines it has."""
        stamp = datetime.now().isoformat(timespec="seconds")
        # Opened for each: a log that was moved away is begun anew.
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{stamp} {line}\n" for line in text.splitlines() or [""])


class Record:
    """``run.json``, replaced after each step.

    Parameters
    ----------
    out : Path
    about : mapping
        What is known from the beginning: config, options, inputs.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self._out = out
        self._began = time.perf_counter()
        self.value: dict[str, Any] = {
            "state": "running",
            "began": datetime.now().isoformat(timespec="seconds"),
            "versions": versions(),
            **about,
            "steps": [],
        }

    def add(self, step: Mapping[str, Any]) -> None:
        """Write down a step that has ended."""
        self.value["steps"].append(dict(step))
        self.write()

    def end(self, state: str, **more: Any) -> None:
        """Write down how the run ended."""
        self.value |= {"state": state, "seconds": time.perf_counter() - self._began, **more}
        self.write()

    def write(self) -> None:
        """Replace the file."""
        write_json(str(self._out), RECORD, self.value)


def versions() -> dict[str, str]:
    """Return the versions of what numbers depend on; imports none of it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("cvdask", "numpy", "zarr", "dask", "keras", "tensorflow", "jax"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def remove_leftovers(out: Path, samples: Sequence[str]) -> None:
    """Remove temporary files that a killed writer left; only under the lock.

    Parameters
    ----------
    out : Path
        Folder of the run.
    samples : sequence of str
        Volumes that the run writes by itself. Nobody else writes there.
    """
    folders = [out, *(out / name for name in ("models", "scores", "distances"))]
    folders += [out / "comparison", out / "comparison" / "figures"]
    for url in samples:
        if not is_remote(url):
            folders += [Path(url) / name for name in WRITTEN_BELOW]
            folders += Path(url).glob("tables/*.parquet")
    for folder in folders:
        for leftover in folder.glob("*.partial") if folder.is_dir() else ():
            leftover.unlink(missing_ok=True)
