"""Where does a network lie, and what may lie beside it?

1. :func:`network_path` says where a network is written to, or why it cannot be.
2. :func:`existing_record` reads what an earlier run has left there.
3. :func:`write_json_file` replaces a file at once: who reads it sees the old one or the new one,
   never half of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvdask.volume.objects import is_remote, redact


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
    """
    if record.exists():
        return dict(json.loads(record.read_text()))
    return {} if out.exists() else None


def write_json_file(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, at once."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False))
    os.replace(partial, path)
