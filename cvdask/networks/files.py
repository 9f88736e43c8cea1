"""Where does a network lie, and what may lie beside it?

1. :func:`network_path` says where a network is written to, or why it cannot be.
2. :func:`existing_record` reads what an earlier run has left there.
3. :func:`read_array_file` reads the arrays of a state, or says that they are damaged.
4. :func:`write_json_file` replaces a file at once: who reads it sees the old one or the new one,
   never half of one.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.errors import DamagedData
from cvdask.volume.objects import is_remote, read_json, redact


def network_path(out: str | os.PathLike[str]) -> Path:
    """Return where a network is written to.

    Raises
    ------
    ValueError
        When it is not a local ``.keras`` file.
    """
    path = Path(out)
    if is_remote(os.fspath(out)) or path.suffix != ".keras":
        raise ValueError(
            f"a network is written to a local file that ends in .keras. Received: "
            f"{redact(os.fspath(out))}"
        )
    return path


def existing_record(record: Path, out: Path) -> dict[str, Any] | None:
    """Return the record of the run that has written here; see ``ledger.standing``.

    Parameters
    ----------
    record : Path
        The run record.
    out : Path
        The network, which may lie there without one.

    Raises
    ------
    DamagedData
        When the record cannot be read.
    """
    found = read_json(os.fspath(record.parent), record.name)
    if found is None and out.exists():
        return {}
    return found


def read_array_file(path: Path) -> dict[str, np.ndarray]:
    """Read what ``numpy.savez`` has written; nothing is unpickled.

    Raises
    ------
    DamagedData
        When it is no archive of arrays, or not what was written.
    OSError
        When the machine fails.
    """
    try:
        # NumPy leaves a file open that turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            if not isinstance(saved, np.lib.npyio.NpzFile):
                raise ValueError("it is no archive of arrays")
            held = {name: saved[name] for name in saved.files}
        if not all(isinstance(one, np.ndarray) for one in held.values()):
            raise ValueError("it holds what is no array")
        return held
    except Exception as error:  # archives and arrays raise whatever a damaged field leads to
        # A place in the archive that cannot be is an invalid argument to the system.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedData(f"{path} is damaged: {type(error).__name__}: {error}") from error


def write_json_file(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, at once."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False))
    os.replace(partial, path)
