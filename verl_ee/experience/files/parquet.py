"""Parquet files that carry their schema version and their provenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import atomic

VERSION = 2
_PREFIX, _SCHEMA = "verl_ee.", "verl_ee.schema"


def read_metadata(path: Path) -> dict[str, str]:
    """Return the provenance that `write_table` put into a file, its schema version included.

    Raises:
        StoreError: if the file is missing, broken or of another version.
    """
    metadata = _table(path).schema.metadata or {}
    named = {key.decode(): value.decode() for key, value in metadata.items()}
    return {key.removeprefix(_PREFIX): value for key, value in named.items() if key.startswith(_PREFIX)}


def write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, provenance: Mapping[str, str]) -> None:
    """Write a Parquet file with our schema version, atomically."""
    named = {f"{_PREFIX}{key}": value for key, value in sorted(provenance.items())}
    metadata = {_SCHEMA: str(VERSION), **named}
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata))
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_table(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """Read a Parquet file that `write_table` wrote.

    Raises:
        StoreError: if it is missing, broken, of another version, or has other columns.
    """
    table = _table(path)
    if set(table.column_names) != set(schema.names):
        raise StoreError(f"{path} has columns {table.column_names}; expected {schema.names}. Collect again.")
    return table.to_pylist()


def _table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing. Collect again.") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} is not a Parquet file that can be read ({error}). Collect again.") from None
    version = (table.schema.metadata or {}).get(_SCHEMA.encode(), b"").decode()
    if version != str(VERSION):
        advice = "Collect again."
        if version.isdigit() and int(version) > VERSION:
            advice = "Update verl_ee."
        raise StoreError(f"{path} has schema version {version or '(none)'}; this verl_ee reads {VERSION}. {advice}")
    return table
