"""Small tables as Parquet: written whole, with what they say of themselves in their metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cvdask.errors import DamagedData
from cvdask.volume.objects import read_object, redact, write_object

if TYPE_CHECKING:
    import pyarrow as pa


def write_table(parent: str, name: str, table: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    """Write a table below a URL, and return it with the metadata."""
    # Late: a worker writes no table.
    import pyarrow.parquet

    text = json.dumps(metadata, ensure_ascii=False)
    table = table.replace_schema_metadata({"cvdask": text})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_object(parent, name, buffer.getvalue())
    return table


def read_table(parent: str, name: str) -> pa.Table | None:
    """Read a table below a URL; None where there is none.

    Raises
    ------
    DamagedData
        When it is no table.
    """
    import pyarrow
    import pyarrow.parquet

    data = read_object(parent, name)
    if data is None:
        return None
    try:
        return pyarrow.parquet.read_table(io.BytesIO(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedData(f"{redact(parent)}/{name} is no table: {error}") from error


def table_metadata(table: pa.Table) -> dict[str, Any]:
    """Return what a table says of itself: provenance, warnings, sizes."""
    return dict(json.loads((table.schema.metadata or {}).get(b"cvdask", b"{}")))
