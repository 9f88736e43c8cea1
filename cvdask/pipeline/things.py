"""What do stages hand on, and is it there?

A :class:`Thing` is a location and what is expected there. Steps say which things they need and
which they make, so that a plan can tell what is missing before any work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvdask.volume.ensemble import is_ensemble, open_ensemble
from cvdask.volume.objects import is_remote, object_exists, read_json, redact
from cvdask.volume.store import open_volume, read_attributes

Kind = Literal["files", "volume", "labels", "table", "model", "ensemble", "folder", "file"]

TITLES: dict[Kind, str] = {
    "files": "the files",
    "volume": "the volume",
    "labels": "the label image",
    "table": "the table",
    "model": "the network",
    "ensemble": "the ensemble",
    "folder": "the comparison",
    "file": "the file",
}


@dataclass(frozen=True)
class Thing:
    """Something that a stage reads or writes.

    Parameters
    ----------
    kind : str
    url : str
        Its location; of a label image or a table, the sample's.
    name : str
        Name of the label image, or path of the table below the sample.
    """

    kind: Kind
    url: str
    name: str = ""

    def __str__(self) -> str:
        where = redact(self.url)
        if self.kind == "labels":
            return f"{TITLES[self.kind]} {self.name!r} of {where}"
        return f"{TITLES[self.kind]} {where}{'/' if self.name else ''}{self.name}"

    def exists(self) -> bool:
        """Tell whether it is there and whole."""
        try:
            return bool(_LOOK[self.kind](self))
        except (OSError, ValueError):
            return False

    def is_complete(self) -> bool:
        """Tell whether a stage of ours has made it and ended."""
        if self.kind == "volume":
            return read_attributes(self.url).get("state") == "complete"
        if self.kind == "labels":
            return read_attributes(self.url, labels=self.name).get("state") == "complete"
        if self.kind == "model":
            return _record_of(self.url).get("state") == "complete"
        return self.exists()


def _record_of(model: str) -> dict[str, object]:
    path = Path(model)
    return read_json(str(path.parent), path.with_suffix(".run.json").name) or {}


def _has_table(thing: Thing) -> bool:
    from cvdask.comparison.samples import open_table

    if thing.name.endswith(".zarr"):
        return bool(open_volume(f"{thing.url}/{thing.name}"))
    return open_table(thing.url, thing.name) is not None


def _has_folder(thing: Thing) -> bool:
    return (read_json(thing.url, "summary.json") or {}).get("state") == "complete"


def _has_file(thing: Thing) -> bool:
    parent, _, name = thing.url.rpartition("/")
    return object_exists(parent, name) if is_remote(thing.url) else Path(thing.url).exists()


_LOOK = {
    "files": _has_file,
    "file": _has_file,
    "model": _has_file,
    "volume": lambda thing: open_volume(thing.url),
    "labels": lambda thing: open_volume(thing.url).label(thing.name),
    "table": _has_table,
    "ensemble": lambda thing: is_ensemble(thing.url) and open_ensemble(thing.url),
    "folder": _has_folder,
}
