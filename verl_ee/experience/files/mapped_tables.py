"""Tables that lie in a temporary file and are mapped into memory, and their rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from verl_ee.errors import ErrorType

TableRow = dict[str, Any]
"""A row of a table: the value of each column. The schema of the table says their types."""


def mapped(tables: Iterable[pa.Table], schema: pa.Schema, source: Path, error: ErrorType) -> pa.Table:
    """Return tables as one, in chunks, that is mapped into memory.

    The tables are copied into a temporary file without a name, in Arrow's own form. So they take no more memory than
    the pages that are looked at, unless the temporary folder is itself in memory.

    Args:
        tables: the tables, each of which is in memory until the next one is taken.
        schema: their schema.
        source: the file that they come from, for messages.
        error: type of the error.

    Raises:
        EarlyExperienceError: as `error`, if the copy finds no room.
    """
    try:
        with tempfile.TemporaryFile() as copy:
            with pa.ipc.new_file(copy, schema) as file:
                for table in tables:
                    file.write_table(table)
            copy.flush()
            with pa.memory_map(f"/dev/fd/{copy.fileno()}") as content:
                return pa.ipc.open_file(content).read_all()
    except (OSError, pa.ArrowException) as problem:
        raise error(
            f"{source} could not be copied into the folder {tempfile.gettempdir()}: {problem}. Set TMPDIR to one with "
            "room."
        ) from None


class TableRows:
    """Makes a row of a table as it is asked for; `Table.take` would put all chunks together first."""

    def __init__(self, table: pa.Table) -> None:
        """Read a table."""
        self._chunks = table.to_batches()
        self._ends = np.cumsum([chunk.num_rows for chunk in self._chunks])

    def at(self, indices: Sequence[int]) -> list[TableRow]:
        """Return the rows of some indices, in that order.

        Args:
            indices: from 0 to below the number of rows.
        """
        wanted = np.asarray(indices, np.int64)
        chunk_of = np.searchsorted(self._ends, wanted, side="right")
        rows: list[TableRow] = [{}] * len(wanted)
        for number in np.unique(chunk_of):
            chunk, here = self._chunks[number], np.flatnonzero(chunk_of == number)
            begin = self._ends[number] - chunk.num_rows
            for place, row in zip(here, chunk.take(pa.array(wanted[here] - begin)).to_pylist(), strict=True):
                rows[place] = row
        return rows
