"""Part files: readers see every row once while several processes write and replace small files by larger ones."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest
from support.game_transitions import BATCHES, WRITERS, transition, write_parts, written

from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.files import part_files
from verl_ee.experience.files.parquet import read_table, write_table
from verl_ee.experience.files.part_files import PartFiles

NUMBERS = pa.schema([("number", pa.int64())])


def test_many_write_and_replace_while_others_read(tmp_path: Path) -> None:
    expected = {item.key for writer in range(WRITERS) for batch in written(writer) for item in batch}
    read_before: frozenset[str] = frozenset()
    with ProcessPoolExecutor(WRITERS, mp_context=get_context("spawn")) as pool:
        writers = [pool.submit(write_parts, tmp_path, writer) for writer in range(WRITERS)]
        while not all(writer.done() for writer in writers):
            now = TransitionCache(tmp_path, str.strip).known_at_start
            assert read_before <= now <= expected
            read_before = now
        for writer in writers:
            writer.result()
    assert TransitionCache(tmp_path, str.strip).known_at_start == expected
    files = [path.name for path in tmp_path.iterdir()]
    assert all(name.endswith(".parquet") and not name.startswith(".") for name in files)
    assert len(files) < WRITERS * BATCHES


def write(folder: Path, counts: list[int]) -> tuple[list[dict[str, int]], list[list[Path]]]:
    """Write so many rows at a time; return all rows, and the files that are there after each time."""
    parts, rows, files = PartFiles(folder, NUMBERS), list[dict[str, int]](), []
    for count in counts:
        new = [{"number": len(rows) + index} for index in range(count)]
        rows += new
        parts.write(new)
        files.append(sorted(folder.iterdir()))
        assert parts.read() == rows
    return rows, files


def test_files_are_cut_by_their_rows(tmp_path: Path) -> None:
    rows, files = write(tmp_path, [1000, 20, 3, 1, 0, 500, 600, 1])
    assert [len(there) for there in files] == [1, 1, 1, 1, 1, 2, 2, 3]
    assert [len(read_table(path, NUMBERS)) for path in files[-1]] == [1024, 1100, 1]
    assert PartFiles(tmp_path, NUMBERS).read() == rows


def test_a_file_that_a_killed_writer_had_replaced_counts_once(tmp_path: Path) -> None:
    parts = PartFiles(tmp_path, NUMBERS)
    parts.write([{"number": 1}])
    (first,) = tmp_path.iterdir()
    content = first.read_bytes()
    parts.write([{"number": 2}])
    first.write_bytes(content)
    assert len(list(tmp_path.iterdir())) == 2
    assert PartFiles(tmp_path, NUMBERS).read() == [{"number": 1}, {"number": 2}]


def test_a_write_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, rows = PartFiles(tmp_path, NUMBERS), [{"number": number} for number in range(1031)]
    parts.write(rows[:1000])
    with monkeypatch.context() as broken:
        broken.setattr(part_files, "write_table", lambda *_: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(OSError, match="no"):
            parts.write(rows[1000:1030])
    assert parts.read() == rows[:1000]
    parts.write(rows[1000:1030])
    parts.write(rows[1030:])
    assert parts.read() == rows
    assert len(list(tmp_path.iterdir())) == 2


def test_a_write_that_fails_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, item = TransitionCache(tmp_path, str.strip), transition("game 3", [], "press 1")
    cache.add([item])
    with monkeypatch.context() as broken:
        broken.setattr(part_files, "write_table", lambda *_: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(OSError, match="no"):
            cache.flush()
    cache.flush()
    assert TransitionCache(tmp_path, str.strip).known_at_start == {item.key}


def test_the_number_of_a_write_may_have_more_digits(tmp_path: Path) -> None:
    for end in (999_999, 1_000_000):
        write_table(tmp_path / f"71-0123456789ab-000000-{end}.parquet", [{"number": end}], NUMBERS, {})
    for name in ("run-2024-05-a", "run-2024-05-b"):
        write_table(tmp_path / f"{name}.parquet", [{"number": 5}], NUMBERS, {})
    assert sorted(row["number"] for row in PartFiles(tmp_path, NUMBERS).read()) == [5, 5, 1_000_000]


def test_files_of_earlier_versions_are_all_read(tmp_path: Path) -> None:
    for number in range(3):
        write_table(tmp_path / f"71-0123456789ab-{number:06d}.parquet", [{"number": number}], NUMBERS, {})
    assert PartFiles(tmp_path, NUMBERS).read() == [{"number": 0}, {"number": 1}, {"number": 2}]
