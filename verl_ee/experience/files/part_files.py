"""Small immutable Parquet files that any number of writers add to one folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from verl_ee.errors import StoreError
from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.experience.files.parquet import read_table, write_table


class PartFiles:
    """Parquet files of one schema in one folder; one writer writes each of them whole, and nobody changes it.

    Attributes:
        folder: the folder; it need not exist before the first file is written.
    """

    def __init__(self, folder: Path, columns: pa.Schema) -> None:
        """Prepare to read and write.

        Args:
            folder: the folder.
            columns: names and types of the columns of every file.
        """
        self.folder, self._columns = folder, columns
        self._writer = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._own: list[Path] = []
        self._written = 0

    def read(self) -> list[TableRow]:
        """Return the rows of every file, whoever wrote it.

        Raises:
            StoreError: if a file is broken or of another version.
        """
        rows_of: dict[Path, list[TableRow]] = {}
        while not self._read_new(rows_of):
            pass
        return [row for path in sorted(rows_of) for row in rows_of[path]]

    def write(self, rows: Sequence[TableRow]) -> None:
        """Add a file with `rows`, if there are any."""
        if rows:
            # No name is used twice: a reader that has listed a file would find other rows in it.
            path = self.folder / f"{self._writer}-{self._written:06d}.parquet"
            self._written += 1
            write_table(path, rows, self._columns, {})
            self._own.append(path)

    def join(self) -> None:
        """Put the files of this writer together into one; readers see every row throughout."""
        if len(self._own) > 1:
            rows = [row for path in self._own for row in read_table(path, self._columns)]
            parts, self._own = self._own, []
            self.write(rows)
            for path in parts:
                path.unlink(missing_ok=True)

    def _read_new(self, rows_of: dict[Path, list[TableRow]]) -> bool:
        """Read the files that are not in `rows_of`, and return whether none of them vanished meanwhile."""
        for path in sorted(self.folder.glob("*.parquet")):
            if path in rows_of:
                continue
            try:
                rows_of[path] = read_table(path, self._columns)
            except StoreError:
                if path.exists():
                    raise
                # Its writer has put its files together meanwhile: another one holds its rows.
                return False
        return True
