"""Columns of a Parquet file are mapped, not read: memory does not grow with them, and rows are found in every chunk."""

from __future__ import annotations

import random
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from verl_ee.errors import StoreError
from verl_ee.experience.files.mapped_tables import TableRows
from verl_ee.experience.files.parquet import ROW_GROUP, read_columns, read_table, write_table

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])


def written(folder: Path, count: int, size: int = 1) -> Path:
    """Write a table of rows whose texts differ."""
    rng, path = random.Random(0), folder / "table.parquet"
    write_table(path, [{"number": n, "text": rng.randbytes(size).hex()} for n in range(count)], SCHEMA, {})
    return path


@pytest.fixture
def restored() -> Iterator[pa.MemoryPool]:
    """Arrow's own pool of memory, which is back in its place after a test."""
    yield (before := pa.default_memory_pool())
    pa.set_memory_pool(before)


def test_memory_does_not_grow_with_what_is_mapped(tmp_path: Path, restored: pa.MemoryPool) -> None:
    groups, length = 12, 400
    path = written(tmp_path, groups * ROW_GROUP, length // 2)
    pa.set_memory_pool(counted := pa.proxy_memory_pool(restored))
    table = read_columns(path, SCHEMA, SCHEMA.names)
    assert table.get_total_buffer_size() > groups * ROW_GROUP * length
    assert TableRows(table).at([3 * ROW_GROUP])[0]["number"] == 3 * ROW_GROUP
    assert counted.max_memory() < groups * ROW_GROUP * length / 3
    assert counted.bytes_allocated() < ROW_GROUP * length


def test_rows_of_every_chunk_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, 2 * ROW_GROUP + 5)
    every = read_table(path, SCHEMA)
    rows = TableRows(read_columns(path, SCHEMA, SCHEMA.names))
    wanted = [2 * ROW_GROUP + 4, 0, ROW_GROUP, 0, ROW_GROUP - 1, 2 * ROW_GROUP]
    assert rows.at(wanted) == [every[index] for index in wanted]
    assert rows.at([]) == []


@pytest.mark.parametrize("names", [["text"], ["text", "number"]])
def test_columns_come_as_they_are_named(tmp_path: Path, names: list[str]) -> None:
    path = written(tmp_path, 3)
    assert read_columns(path, SCHEMA, names).column_names == names
    write_table(path, [], SCHEMA, {})
    assert read_columns(path, SCHEMA, names).num_rows == 0
    assert TableRows(read_columns(path, SCHEMA, names)).at([]) == []


def test_no_copy_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, copies = written(tmp_path, 3), tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    table = read_columns(path, SCHEMA, SCHEMA.names)
    assert list(copies.iterdir()) == []
    assert table.column("number").to_pylist() == [0, 1, 2]


def test_a_copy_that_finds_no_room_is_no_fault_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, ROW_GROUP, 100)
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreError, match=r"table\.parquet could not be copied into the folder .* Set TMPDIR"):
            read_columns(path, SCHEMA, SCHEMA.names)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(read_table(path, SCHEMA)) == ROW_GROUP


def test_a_temporary_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"could not be copied into the folder .*none"):
        read_columns(path, SCHEMA, SCHEMA.names)


def test_a_broken_file_is_to_be_made_again(tmp_path: Path) -> None:
    path = written(tmp_path, 2 * ROW_GROUP)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = bytes(1000)
    path.write_bytes(data)
    for read in (lambda: read_table(path, SCHEMA), lambda: read_columns(path, SCHEMA, SCHEMA.names)):
        with pytest.raises(StoreError, match=r"is not a Parquet file that can be read .* Collect again"):
            read()


def test_a_column_of_another_type_is_the_file_s_fault(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_table(path, [{"number": "one", "text": "a"}], pa.schema([("number", pa.string()), ("text", pa.string())]), {})
    for read in (lambda: read_table(path, SCHEMA), lambda: read_columns(path, SCHEMA, SCHEMA.names)):
        with pytest.raises(StoreError, match=r"is not a Parquet file that can be read .* Collect again"):
            read()
