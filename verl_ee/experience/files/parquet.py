"""Parquet files that carry their schema version and their provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import atomic
from verl_ee.experience.files.versions import FileFormat, check_version

VERSION = 2
FORMAT = FileFormat(VERSION, StoreError, "is not a Parquet file that can be read", "Collect again.")
_PREFIX, _SCHEMA = "verl_ee.", "verl_ee.schema"
TableRow = dict[str, Any]
"""A row of a table: the value of each column. The schema of the table says their types."""


def read_metadata(path: Path) -> dict[str, str]:
    """Return the provenance that `write_table` put into a file, its schema version included.

    Raises:
        StoreError: if the file is missing, broken or of another version.
    """
    metadata = _table(path).schema.metadata or {}
    named = {key.decode(): value.decode() for key, value in metadata.items()}
    return {key.removeprefix(_PREFIX): value for key, value in named.items() if key.startswith(_PREFIX)}


def write_table(path: Path, rows: Sequence[TableRow], schema: pa.Schema, provenance: Mapping[str, str]) -> None:
    """Write a Parquet file with our schema version, atomically.

    Args:
        path: the file.
        rows: the rows, with the columns of the schema.
        schema: names and types of the columns.
        provenance: what the file's metadata say besides its version.
    """
    named = {f"{_PREFIX}{key}": value for key, value in sorted(provenance.items())}
    metadata = {_SCHEMA: str(VERSION), **named}
    table = pa.Table.from_pylist(list(rows), schema=schema.with_metadata(metadata))
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_table(path: Path, schema: pa.Schema) -> list[TableRow]:
    """Read a Parquet file that `write_table` wrote.

    Raises:
        StoreError: if it is missing, broken, of another version, or has other columns.
    """
    table = _table(path)
    if set(table.column_names) != set(schema.names):
        raise StoreError(f"{path} has columns {table.column_names}; expected {schema.names}. {FORMAT.fix}")
    rows: list[TableRow] = table.to_pylist()
    return rows


def _table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing. {FORMAT.fix}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} {FORMAT.broken} ({error}). {FORMAT.fix}") from None
    check_version((table.schema.metadata or {}).get(_SCHEMA.encode(), b"").decode(), FORMAT, path)
    return table
