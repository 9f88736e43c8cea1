"""How does a table become a parquet file, whole or not at all, and a table again?

What a table is and where it comes from is in the metadata of its schema, as JSON under ``cvdask``.
Pages carry checksums: a flipped byte is an error when it is read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cvdask.errors import DamagedData
from cvdask.volume.objects import read_object, redact, write_object

# Late: workers that only count need none of it.
if TYPE_CHECKING:
    import pyarrow as pa


def write_table(parent: str, name: str, table: pa.Table) -> None:
    """Write a table, or a part of one, whole or not at all."""
    import pyarrow.parquet

    buffer = io.BytesIO()
    # A dictionary of numbers that hardly repeat costs time and makes the file larger.
    texts = [field.name for field in table.schema if pyarrow.types.is_string(field.type)]
    pyarrow.parquet.write_table(
        table, buffer, compression="zstd", use_dictionary=texts, write_page_checksum=True
    )
    write_object(parent, name, buffer.getvalue())


def read_table(parent: str, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file.

    Raises
    ------
    DamagedData
        When it is no table, or its bytes are not what was written.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        data = io.BytesIO(read_object(parent, name) or b"")
        return pyarrow.parquet.read_table(data, columns=columns, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedData(f"{redact(parent)}/{name} is no table: {error}") from error


def table_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Return what a table says of itself: provenance, warnings, sizes; empty where it does not."""
    try:
        found = json.loads((schema.metadata or {}).get(b"cvdask", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
