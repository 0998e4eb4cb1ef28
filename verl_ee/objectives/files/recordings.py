"""Demonstrations for the agent loops of a job, and the recording of what the loops made of them: two Parquet files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from verl_ee.errors import ExampleError, ExampleFileError
from verl_ee.experience.files.atomic import atomic
from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.experience.files.versions import FileFormat, check_version
from verl_ee.objectives.examples import Example

COLUMN = "expert_responses"
SCHEMA = "verl_ee.recording"
_AGAIN = "Remove it; it is made again."
RECORDING = FileFormat(1, ExampleFileError, "is no recording of verl_ee", _AGAIN, fix_newer=_AGAIN, name=SCHEMA)
_COLUMNS = pa.schema(
    [
        ("prompt", pa.list_(pa.int64())),
        ("target", pa.list_(pa.int64())),
        ("learned", pa.list_(pa.bool_())),
        ("provenance", pa.string()),
    ]
)


@dataclass(frozen=True)
class Recording:
    """The examples that the agent loops of a job made of its demonstrations.

    Attributes:
        examples: examples of imitation, one per output of an agent loop, in the order of the rows.
        failed: one line for each demonstration that gave no example: its row, and why.
        rows: number of demonstrations in the file.
    """

    examples: Sequence[Example]
    failed: Sequence[str]
    rows: int


@dataclass(frozen=True)
class _Header:
    """The metadata of a recording's file.

    Attributes:
        schema: name and version of the format.
        source: hash of the demonstrations.
        failed: see `Recording`.
        rows: see `Recording`.
    """

    schema: str
    source: str
    failed: list[str]
    rows: int


def read_responses(path: Path) -> list[list[str]]:
    """Return the expert's responses of each row of a file of demonstrations.

    Args:
        path: Parquet file of verl dataset rows, with a column `expert_responses`.

    Raises:
        ExampleFileError: naming file and row, if it cannot be read, or a row has no responses.
    """
    if path.suffix != ".parquet":
        raise ExampleFileError(
            f"{path} does not end in .parquet, by which verl knows the format. Rename or convert it."
        )
    responses = _response_column(path)
    if not responses:
        raise ExampleFileError(f"{path} has no rows. Name a file that holds some.")
    for index, texts in enumerate(responses):
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ExampleFileError(
                f"{path}, row {index}: {COLUMN}={texts!r}; expected a list with at least one text, none of them empty. "
                "The first row is 0. Repair the row, or leave it out."
            )
    return responses


def check_failures(recording: Recording, path: Path, max_dropped: float) -> None:
    """Refuse a recording of which too much failed.

    Args:
        recording: the recording.
        path: the file of demonstrations.
        max_dropped: share of the rows that may fail.

    Raises:
        ExampleError: if more failed, or nothing was recorded.
    """
    failed = len(recording.failed)
    if failed > max_dropped * recording.rows or not recording.examples:
        raise ExampleError(
            f"{failed} of {recording.rows} demonstrations of {path} could not be played, more than "
            f"early_experience.max_dropped={max_dropped:g} allows: {' '.join(recording.failed[:3])} Repair these rows, "
            "or leave them out."
        )


def write_recording(path: Path, recording: Recording, source: str) -> None:
    """Write a recording, atomically.

    Args:
        path: the file.
        recording: the recording.
        source: hash of the demonstrations.
    """
    header = _Header(RECORDING.labelled(RECORDING.version), source, list(recording.failed), recording.rows)
    columns = _COLUMNS.with_metadata({SCHEMA: json.dumps(asdict(header))})
    table = pa.Table.from_pylist([_table_row(example) for example in recording.examples], columns)
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_recording(path: Path, source: str) -> Recording | None:
    """Return the recording that an earlier job made of the same demonstrations, or None.

    Args:
        path: the file.
        source: hash of the demonstrations.

    Raises:
        ExampleFileError: if the file is broken or of another schema.
    """
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        header = TypeAdapter(_Header).validate_json((table.schema.metadata or {})[SCHEMA.encode()])
    except (OSError, pa.ArrowException, KeyError, ValidationError):
        raise ExampleFileError(f"{path} {RECORDING.broken}. {RECORDING.fix}") from None
    check_version(header.schema.removeprefix(f"{SCHEMA}/"), RECORDING, path)
    if header.source != source:
        return None
    return Recording([_example(row) for row in table.to_pylist()], header.failed, header.rows)


def _response_column(path: Path) -> list[list[str]]:
    """Return the column of responses, whose items may be of any type."""
    try:
        file = pq.ParquetFile(path)
        if COLUMN not in file.schema_arrow.names:
            raise ExampleFileError(
                f"{path} has no column {COLUMN!r}; it has {', '.join(file.schema_arrow.names)}. Add it: for each row "
                "the list of what the expert writes, one text per turn of the assistant."
            )
        responses: list[list[str]] = file.read([COLUMN]).column(COLUMN).to_pylist()
        return responses
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ExampleFileError(f"{path} cannot be read as Parquet ({reason}). Name an existing file.") from None


def _table_row(example: Example) -> TableRow:
    return {
        "prompt": list(example.prompt),
        "target": list(example.target),
        "learned": None if example.learned is None else list(example.learned),
        "provenance": example.provenance,
    }


def _example(row: TableRow) -> Example:
    return Example(
        tuple(row["prompt"]),
        tuple(row["target"]),
        "imitation",
        provenance=row["provenance"],
        learned=None if row["learned"] is None else tuple(row["learned"]),
    )
