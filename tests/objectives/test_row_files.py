"""Files of rows: one name for every objective, and rows that come back as they were written."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_ee.config import Objective
from verl_ee.errors import ExampleFileError
from verl_ee.objectives.files.row_files import (
    PARQUET,
    STEMS,
    export_messages,
    export_parquet,
    import_messages,
    read_rows,
    write_rows,
)
from verl_ee.objectives.rows import Row

ROWS: dict[Objective, list[Row]] = {
    objective: [
        Row(
            ({"role": "user", "content": f"{objective} {index}\u2028\n"},),
            f"Réponse {index}",
            objective,
            f"row {index}",
        )
        for index in range(2)
    ]
    for objective in STEMS
}


def test_every_objective_has_a_name_of_its_own() -> None:
    assert set(STEMS) == set(get_args(Objective))
    assert len(set(STEMS.values())) == len(STEMS)


def test_the_three_files_give_their_rows_back(tmp_path: Path) -> None:
    counts = export_messages(tmp_path, ROWS)
    assert counts == {tmp_path / f"{stem}.jsonl": 2 for stem in STEMS.values()}
    assert list(import_messages(tmp_path)) == [row for rows in ROWS.values() for row in rows]
    assert list(import_messages(tmp_path / "iwm_sft.jsonl")) == ROWS["world_model"]


def test_a_rows_file_gives_its_rows_back_by_objective(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    counts = write_rows(path, (row for rows in ROWS.values() for row in rows))
    assert counts == dict.fromkeys(ROWS, 2)
    assert read_rows(path) == ROWS
    assert read_rows(None) == {}


def test_the_rows_of_a_large_file_are_not_kept_in_memory(tmp_path: Path) -> None:
    count, length = 30_000, 1000
    kinds = list(get_args(Objective))

    def rows() -> Iterator[Row]:
        for number in range(count):
            text = f"{number} ".ljust(length, "x")
            yield Row(({"role": "user", "content": text},), "look", kinds[number % len(kinds)], f"row {number}")

    write_rows(tmp_path / "rows.jsonl", rows())
    before = pa.default_memory_pool()
    pa.set_memory_pool(counted := pa.proxy_memory_pool(before))
    tracemalloc.start()
    read = read_rows(tmp_path / "rows.jsonl")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pa.set_memory_pool(before)
    assert kept + counted.bytes_allocated() < count * length / 20
    assert counted.max_memory() < count * length / 2
    assert peak < count * length
    expected = [row for row in rows() if row.objective == kinds[1]]
    assert len(read[kinds[1]]) == len(expected)
    assert read[kinds[1]][-1] == expected[-1]
    assert list(read[kinds[1]][5000:5003]) == expected[5000:5003]


def test_a_parquet_file_has_one_conversation_per_row(tmp_path: Path) -> None:
    counts = export_parquet(tmp_path, ROWS)
    assert counts == {tmp_path / f"{objective}.parquet": 2 for objective in ROWS}
    for objective, rows in ROWS.items():
        table = pq.read_table(tmp_path / f"{objective}.parquet")
        assert table.schema.equals(PARQUET)
        assert [item["messages"] for item in table.to_pylist()] == [row.messages for row in rows]


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExampleFileError, match="holds none of"):
        list(import_messages(tmp_path))
    with pytest.raises(ExampleFileError, match="no row was given"):
        write_rows(tmp_path / "rows.jsonl", [])
    assert not (tmp_path / "rows.jsonl").exists()
