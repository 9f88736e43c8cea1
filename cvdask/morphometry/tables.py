"""Where do tables lie, and how are they read when they are larger than memory?

A table is a parquet file, or a folder of them, one *part* after the other in the order of their
names. What it is and where it comes from is in the metadata of its schema, and for a folder in
``_cvdask.json`` too, which is written last: without it the table is not complete. Readers of
datasets pass by names that begin with an underscore.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cvdask.errors import DamagedData
from cvdask.volume.objects import (
    delete_object,
    delete_tree,
    list_objects,
    normalize_url,
    object_exists,
    read_json,
    redact,
    write_json,
)
from cvdask.volume.parquet import read_table, table_metadata

# Late: workers that only count need neither.
if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

COMPLETE = "_cvdask.json"


def destination(sample_url: str, name: str, out: str | None) -> tuple[str, str]:
    """Return folder and file of a table.

    Parameters
    ----------
    sample_url : str
        Where it lies unless ``out`` says otherwise: ``tables/<name>.parquet`` below.
    name : str
    out : str or None

    Raises
    ------
    ValueError
        When it does not end in ``.parquet``.
    """
    where = normalize_url(out) if out is not None else f"{sample_url}/tables/{name}.parquet"
    parent, _, file = where.rpartition("/")
    if not file.endswith(".parquet"):
        raise ValueError(f"the table is a .parquet file. Received: {redact(where)}")
    return parent, file


def existing_table(parent: str, name: str, scratch: str) -> Mapping[str, Any] | None:
    """Return what is known of the table at a destination: see ``ledger.standing``.

    Parameters
    ----------
    parent, name : str
        Of :func:`destination`.
    scratch : str
        Where a run in progress has left ``begun.json``, below the parent.
    """
    whole = read_json(parent, f"{name}/{COMPLETE}")
    if whole is not None:
        return {**whole, "state": "complete"}
    if object_exists(parent, name):
        try:
            return {**table_metadata(read_table(parent, name).schema), "state": "complete"}
        except DamagedData:
            return {}
    begun = read_json(parent, f"{scratch}/begun.json")
    if begun is None and any(True for _ in list_objects(parent, f"{name}/")):
        return {}
    return begun


def complete_parts(parent: str, name: str, metadata: Mapping[str, Any]) -> None:
    """Say that all parts of a folder are there, and how many."""
    n_parts = len(_parts(parent, name))
    write_json(parent, f"{name}/{COMPLETE}", {**metadata, "n_parts": n_parts})


def _parts(parent: str, name: str) -> tuple[str, ...]:
    keys = sorted(list_objects(parent, f"{name}/"))
    return tuple(key for key in keys if key.endswith(".parquet"))


def delete_table(parent: str, name: str) -> None:
    """Delete a table, file or folder; nothing happens where there is none."""
    if object_exists(parent, name):
        delete_object(parent, name)
    else:
        # What says that it is complete goes first.
        delete_object(parent, f"{name}/{COMPLETE}")
        delete_tree(parent, name)


@dataclass(frozen=True)
class Table:
    """A written table: opened when it is read, a part at a time.

    Parameters
    ----------
    parent, name : str
        Of :func:`destination`.
    parts : tuple of str
        Its files, below the parent.
    """

    parent: str
    name: str
    parts: tuple[str, ...]

    @property
    def url(self) -> str:
        """Where it lies."""
        return f"{self.parent}/{self.name}"

    @property
    def schema(self) -> pa.Schema:
        """Names, types, units and formulas of the columns."""
        return read_table(self.parent, self.parts[0]).schema

    @property
    def metadata(self) -> dict[str, Any]:
        """What the table says of itself: provenance, sizes."""
        return table_metadata(self.schema)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the parts one after the other."""
        for part in self.parts:
            yield read_table(self.parent, part, columns)

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all of it, or some columns."""
        import pyarrow as pa

        parts = list(self.batches(columns))
        try:
            return pa.concat_tables(parts)
        except pa.ArrowInvalid as error:
            raise DamagedData(
                f"the parts of {redact(self.url)} do not belong together: {error}. Make it again "
                "with --overwrite"
            ) from error

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read all of it, or some columns."""
        return self.to_arrow(columns).to_pandas()


def open_table(parent: str, name: str) -> Table:
    """Describe a written table.

    Raises
    ------
    FileNotFoundError
        When there is none, or its parts are not complete.
    DamagedData
        When parts are gone.
    """
    whole = read_json(parent, f"{name}/{COMPLETE}")
    if whole is not None:
        parts = _parts(parent, name)
        # Tables of earlier versions do not say how many.
        if not parts or len(parts) != whole.get("n_parts", len(parts)):
            raise DamagedData(
                f"{redact(parent)}/{name} had {whole.get('n_parts', 'some')} parts, and has "
                f"{len(parts)}. Make it again with --overwrite"
            )
        return Table(parent, name, parts)
    if not object_exists(parent, name):
        raise FileNotFoundError(f"there is no complete table at {redact(parent)}/{name}")
    return Table(parent, name, (name,))
