"""Parquet files that carry their schema version and their provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import atomic
from verl_ee.experience.files.mapped_tables import TableRow, mapped
from verl_ee.experience.files.versions import FileFormat, check_version

VERSION = 3
FORMAT = FileFormat(VERSION, StoreError, "is not a Parquet file that can be read", "Collect again.", oldest=2)
_ADDED: dict[str, tuple[int, object]] = {"outcome_class": (3, None), "responses": (3, 0), "without_action": (3, 0)}
"""Columns that older files lack: the version that brought them, and what they are in the rows of older files."""
_PREFIX, _SCHEMA = "verl_ee.", "verl_ee.schema"
ROW_GROUP = 8192
"""Rows that are written, and read, at a time."""
_BUFFER = 2**20


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
        pq.write_table(table, temporary, row_group_size=ROW_GROUP)


def read_table(path: Path, schema: pa.Schema) -> list[TableRow]:
    """Read a Parquet file that `write_table` wrote, in this version or an older one that is still read.

    A column that is younger than the file has the same value in every row: none, or 0 of what was not counted.

    Raises:
        StoreError: if it is missing, broken, of another version, or has other columns.
    """
    return [row for table in _tables(path, schema, schema.names) for row in table.to_pylist()]


def read_columns(path: Path, schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    """Map some columns of a Parquet file into memory, in chunks of its rows.

    Args:
        path: the file.
        schema: all of its columns.
        names: columns to read.

    Raises:
        StoreError: as `read_table`, or if the copy finds no room.
    """
    return mapped(_tables(path, schema, names), _wide(schema, names), path, StoreError)


def _tables(path: Path, schema: pa.Schema, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns of a file, `ROW_GROUP` rows at a time."""
    wide = _wide(schema, names)
    with _opened(path) as file:
        version = _version(file, path)
        younger = {name: value for name, (since, value) in _ADDED.items() if since > version and name in schema.names}
        expected = [name for name in schema.names if name not in younger]
        if set(file.schema_arrow.names) != set(expected):
            raise StoreError(f"{path} has columns {file.schema_arrow.names}; expected {expected}. {FORMAT.fix}")
        try:
            for batch in file.iter_batches(ROW_GROUP, columns=[name for name in names if name not in younger]):
                table = pa.Table.from_batches([batch])
                for name in (name for name in names if name in younger):
                    field = wide.field(name)
                    table = table.append_column(field, pa.repeat(pa.scalar(younger[name], field.type), batch.num_rows))
                yield table.select(names).cast(wide)
        except (OSError, pa.ArrowException) as error:
            raise _broken(path, error) from None


def _wide(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Return some columns of a schema; offsets of 32 bits would end at 2 GB of text in one column."""
    fields = [schema.field(name) for name in names]
    return pa.schema(
        field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field for field in fields
    )


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file.

    Raises:
        StoreError: if it is missing or broken.
    """
    try:
        file = pq.ParquetFile(path, buffer_size=_BUFFER)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing. {FORMAT.fix}") from None
    except (OSError, pa.ArrowException) as error:
        raise _broken(path, error) from None
    with file:
        yield file


def _broken(path: Path, error: Exception) -> StoreError:
    return StoreError(f"{path} {FORMAT.broken} ({error}). {FORMAT.fix}")


def _version(file: pq.ParquetFile, path: Path) -> int:
    written = (file.schema_arrow.metadata or {}).get(_SCHEMA.encode(), b"").decode()
    return check_version(written, FORMAT, path)
