"""Files of examples as text: the authors' three files, Parquet for verl's SFT trainer, and the rows file of a run.

Each holds conversations in OpenAI form, described in docs/data.md.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.config.models import Objective
from verl_ee.errors import ExampleFileError
from verl_ee.experience.files.atomic import atomic
from verl_ee.experience.files.json_lines import check_schema, read_objects
from verl_ee.experience.files.lazy_sequence import LazySequence
from verl_ee.experience.files.mapped_tables import TableRow, TableRows, mapped
from verl_ee.objectives.rows import Row, Turns, row_to_json, rows_from_json

SCHEMA = "verl_ee.examples"
VERSION = 1
STEMS: dict[Objective, str] = {"imitation": "expert_sft", "world_model": "iwm_sft", "reflection": "reflection_sft"}
"""Names of the authors' three files, without the ending; every objective has one."""
PARQUET = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("objective", pa.string()),
        ("provenance", pa.string()),
    ]
)
_ROW_GROUP = 4096
_FIX = "Repair it, or make the file again."


def export_messages(folder: Path, rows: Mapping[Objective, Iterable[Row]]) -> dict[Path, int]:
    """Write the three files, those for which there are rows, and return how many each has."""
    counts = {}
    for objective, objective_rows in rows.items():
        path = folder / f"{STEMS[objective]}.jsonl"
        counts[path] = 0
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in objective_rows:
                file.write(_line(row_to_json(row)))
                counts[path] += 1
    return counts


def export_parquet(folder: Path, rows: Mapping[Objective, Iterable[Row]]) -> dict[Path, int]:
    """Write a Parquet file per objective, for verl's SFT trainer, and return how many rows each has."""
    counts = {}
    for objective, objective_rows in rows.items():
        path, remaining = folder / f"{objective}.parquet", iter(objective_rows)
        counts[path] = 0
        with atomic(path) as temporary, pq.ParquetWriter(temporary, PARQUET) as file:
            while group := [row_to_json(row) for row in islice(remaining, _ROW_GROUP)]:
                file.write_table(pa.Table.from_pylist(group, PARQUET))
                counts[path] += len(group)
    return counts


def import_messages(path: Path, turns: Turns | None = None) -> Iterator[Row]:
    """Yield the rows of the three files in a folder, or of a single file in that form.

    Args:
        path: folder or file. Rows that do not say their objective have that of the file, whose name begins with its
            stem.
        turns: which messages of the assistant are learned if there are several; None refuses such a conversation.

    Raises:
        ExampleFileError: with file, line, what is wrong and what to do.
    """
    names = [f"{stem}.jsonl" for stem in STEMS.values()]
    files = [path / name for name in names if (path / name).exists()] if path.is_dir() else [path]
    if not files:
        raise ExampleFileError(f"{path} holds none of {', '.join(names)}. Name a folder that does, or files.")
    for file in files:
        objective = next((objective for objective, stem in STEMS.items() if file.name.startswith(stem)), None)
        for where, item in read_objects(file, ExampleFileError, _FIX):
            provenance = file.name + where.removeprefix(str(file))
            yield from rows_from_json(item, where, objective, turns, provenance)


def write_rows(path: Path, rows: Iterable[Row]) -> Counter[Objective]:
    """Write a rows file and return how many rows each objective has.

    Raises:
        ExampleFileError: if there is none.
    """
    counts: Counter[Objective] = Counter()
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(_line({"schema": f"{SCHEMA}/{VERSION}", **row_to_json(row)}))
            counts[row.objective] += 1
        if not counts:
            raise ExampleFileError(f"Nothing to write to {path}: no row was given. Name files that hold some.")
    return counts


def read_rows(path: str | Path | None) -> dict[Objective, Sequence[Row]]:
    """Read a rows file, by objective; an objective without rows is not there. No path gives nothing.

    Every row is looked at once, and lies in a temporary file from then on, mapped into memory.

    Raises:
        ExampleFileError: with file, line, what is wrong and what to do.
    """
    if path is None:
        return {}
    path = Path(path).expanduser()
    places: dict[Objective, array[int]] = {}
    table = mapped(_tables(path, places), PARQUET, path, ExampleFileError)
    if not places:
        raise ExampleFileError(f"{path} holds no row. Make it with `verl-ee import`.")
    rows = TableRows(table)

    def make(indices: Sequence[int]) -> list[Row]:
        return [_row(item) for item in rows.at(indices)]

    return {objective: LazySequence(indices, make) for objective, indices in places.items()}


def _tables(path: Path, places: dict[Objective, array[int]]) -> Iterator[pa.Table]:
    """Yield the rows of a file in groups, and note the index of each by its objective."""
    remaining = enumerate(_rows(path))
    while group := list(islice(remaining, _ROW_GROUP)):
        for index, row in group:
            places.setdefault(row.objective, array("q")).append(index)
        yield pa.Table.from_pylist([row_to_json(row) for _, row in group], PARQUET)


def _rows(path: Path) -> Iterator[Row]:
    for where, item in read_objects(path, ExampleFileError, _FIX):
        check_schema(item, SCHEMA, VERSION, where, ExampleFileError)
        del item["schema"]
        yield from rows_from_json(item, where, None, "last", "")


def _row(item: TableRow) -> Row:
    """Return the row of an item with the columns of `PARQUET`."""
    *prompt, answer = item["messages"]
    return Row(tuple(prompt), answer["content"], item["objective"], item["provenance"])


def _line(item: Mapping[str, object]) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"
