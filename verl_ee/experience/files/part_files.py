"""Parquet files that any number of writers add to one folder, a few rows at a time."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from verl_ee.errors import StoreError
from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.experience.files.parquet import read_table, write_table

PART_ROWS = 1024
"""Rows from which on a file gets no more."""
_NAME = re.compile(r"(\d+-[0-9a-f]{12}-\d{6,})-(\d{6,})")


class PartFiles:
    """Parquet files of one schema in one folder.

    A file never changes. While it has few rows, its writer replaces it by a longer one with the same begin:
    `<writer>-<writes before it>-<writes up to its end>.parquet`. A reader that finds both takes the longer one.

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
        self._first = self._last = 0
        self._rows: list[TableRow] = []

    def read(self) -> list[TableRow]:
        """Return the rows of every file, whoever wrote it; those that come meanwhile may be among them.

        Raises:
            StoreError: if a file is broken or of another version.
        """
        rows_of: dict[str, list[TableRow]] = {}
        # A file may come and another go while a folder is listed, so that the list has neither.
        while unread := {name: path for name, path in self._longest().items() if name not in rows_of}:
            for name, path in unread.items():
                try:
                    rows_of[name] = read_table(path, self._columns)
                except StoreError:
                    if path.exists():
                        raise
                    # Its writer has replaced it meanwhile, by a file that the next list has.
        return [row for name in sorted(rows_of) for row in rows_of[name]]

    def write(self, rows: Sequence[TableRow]) -> None:
        """Add `rows`, if there are any; they are on disk when this returns."""
        if not rows:
            return
        is_full = len(self._rows) >= PART_ROWS
        first, earlier = (self._last, []) if is_full else (self._first, self._rows)
        kept, last = [*earlier, *rows], self._last + 1
        write_table(self._path(first, last), kept, self._columns, {})
        if earlier:
            self._path(self._first, self._last).unlink(missing_ok=True)
        self._first, self._last, self._rows = first, last, kept

    def _path(self, first: int, last: int) -> Path:
        return self.folder / f"{self._writer}-{first:06d}-{last:06d}.parquet"

    def _longest(self) -> dict[str, Path]:
        """Return the files that no other one replaces, by the begin of their name; others have their whole name."""
        longest: dict[str, tuple[int, Path]] = {}
        for path in self.folder.glob("*.parquet"):
            name = _NAME.fullmatch(path.stem)
            begin, end = (name[1], int(name[2])) if name else (path.stem, 0)
            if begin not in longest or longest[begin][0] < end:
                longest[begin] = (end, path)
        return {begin: path for begin, (_, path) in longest.items()}
