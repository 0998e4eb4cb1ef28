"""Small immutable Parquet files that any number of writers add to one folder."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_ee.errors import StoreError
from verl_ee.experience.files.parquet import read_table, write_table


class PartFiles:
    """Parquet files of one schema in one folder; each is written whole, by one writer, and never changed."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self._schema = folder, schema
        self._writer = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._own: list[Path] = []
        self._written = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the rows of every file, whoever wrote it.

        Raises:
            StoreError: if a file is broken or of another version.
        """
        found: dict[Path, list[dict[str, Any]]] = {}
        while True:
            listed = sorted(self.folder.glob("*.parquet"))
            for path in listed:
                if path not in found:
                    try:
                        found[path] = read_table(path, self._schema)
                    except StoreError:
                        if path.exists():
                            raise
                        # Its writer has put its files together meanwhile: another one holds its rows.
                        break
            else:
                return [row for path in sorted(found) for row in found[path]]

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Add a file with `rows`."""
        if rows:
            # No name is used twice: a reader that has listed a file would find other rows in it.
            path = self.folder / f"{self._writer}-{self._written:06d}.parquet"
            self._written += 1
            write_table(path, rows, self._schema, {})
            self._own.append(path)

    def join(self) -> None:
        """Put the files of this writer together into one; readers see every row throughout."""
        if len(self._own) > 1:
            rows = [row for path in self._own for row in read_table(path, self._schema)]
            parts, self._own = self._own, []
            self.write(rows)
            for path in parts:
                path.unlink(missing_ok=True)
