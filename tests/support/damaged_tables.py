"""Ways in which a Parquet table with a column `key` can be damaged, and the words of the error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.experience.files.parquet import FORMAT, VERSION

Damage = Callable[[Path], None]
OLDEST = FORMAT.oldest or VERSION
"""The oldest version that is still read."""


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def scrambled(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 40) + content[-36:])


def newer(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({"verl_ee.schema": str(VERSION + 1)}), path)


def older(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({"verl_ee.schema": str(OLDEST - 1)}), path)


def unmarked(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def fewer_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["key"]), path)


def more_columns(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.append_column("reward", pa.array([1.0] * len(table))), path)


DAMAGES: list[tuple[Damage, list[str]]] = [
    (empty, ["not a Parquet file", "Collect again"]),
    (cut_off, ["not a Parquet file", "Collect again"]),
    (scrambled, ["not a Parquet file", "Collect again"]),
    (newer, [f"has schema {VERSION + 1}", f"reads up to {VERSION}", "Update verl_ee"]),
    (older, [f"has schema {OLDEST - 1}", f"reads up to {VERSION}", "Collect again"]),
    (unmarked, ["has schema (none)", "Collect again"]),
    (fewer_columns, ["columns", "key", "Collect again"]),
    (more_columns, ["columns", "reward", "Collect again"]),
]
