"""Parquet files that carry their schema version and their provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import atomic
from verl_ee.experience.files.versions import FileFormat, check_version

VERSION = 3
FORMAT = FileFormat(VERSION, StoreError, "is not a Parquet file that can be read", "Collect again.", oldest=2)
_ADDED: dict[str, tuple[int, object]] = {"outcome_class": (3, None), "responses": (3, 0), "without_action": (3, 0)}
"""Columns that older files lack: the version that brought them, and what they are in the rows of older files."""
_PREFIX, _SCHEMA = "verl_ee.", "verl_ee.schema"
TableRow = dict[str, Any]
"""A row of a table: the value of each column. The schema of the table says their types."""


def read_metadata(path: Path) -> dict[str, str]:
    """Return the provenance that `write_table` put into a file, its schema version included.

    Raises:
        StoreError: if the file is missing, broken or of another version.
    """
    with _opened(path) as file:
        _version(file, path)
        named = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
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
    """Read a Parquet file that `write_table` wrote, in this version or an older one that is still read.

    A column that is younger than the file has the same value in every row: none, or 0 of what was not counted.

    Raises:
        StoreError: if it is missing, broken, of another version, or has other columns.
    """
    rows: list[TableRow] = read_columns(path, schema, schema.names).to_pylist()
    return rows


def read_columns(path: Path, schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    """Read some columns of a Parquet file, as `read_table` does.

    Args:
        path: the file.
        schema: all of its columns.
        names: columns to read.

    Raises:
        StoreError: as `read_table`.
    """
    with _opened(path) as file:
        version = _version(file, path)
        younger = {name: value for name, (since, value) in _ADDED.items() if since > version and name in schema.names}
        expected = [name for name in schema.names if name not in younger]
        if set(file.schema_arrow.names) != set(expected):
            raise StoreError(f"{path} has columns {file.schema_arrow.names}; expected {expected}. {FORMAT.fix}")
        table = file.read([name for name in names if name not in younger])
    for name in (name for name in younger if name in names):
        field = schema.field(name)
        table = table.append_column(field, pa.repeat(pa.scalar(younger[name], field.type), table.num_rows))
    table = table.select(names)
    # Offsets of 32 bits would end at 2 GB of text in one column.
    return table.cast(pa.schema([_wide(field) for field in table.schema]))


def _wide(field: pa.Field) -> pa.Field:
    return field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file.

    Raises:
        StoreError: if it is missing or broken.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise StoreError(f"{path} is missing. {FORMAT.fix}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} {FORMAT.broken} ({error}). {FORMAT.fix}") from None


def _version(file: pq.ParquetFile, path: Path) -> int:
    written = (file.schema_arrow.metadata or {}).get(_SCHEMA.encode(), b"").decode()
    return check_version(written, FORMAT, path)
