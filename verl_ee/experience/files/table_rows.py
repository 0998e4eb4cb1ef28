"""Rows of a table that is mapped into memory in chunks, by index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from verl_ee.experience.files.parquet import TableRow


class TableRows:
    """Makes a row of the table as it is asked for; `Table.take` would put all chunks together first."""

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
