"""What an expert writes to the agent loops of a job, and what was recorded of it: two Parquet files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ee.errors import ExampleError, ExampleFileError
from verl_ee.experience.files.atomic import atomic
from verl_ee.objectives.examples import Example

COLUMN = "expert_responses"
SCHEMA = "verl_ee.recording"
VERSION = 1
_FORM = pa.schema(
    [
        ("prompt", pa.list_(pa.int64())),
        ("target", pa.list_(pa.int64())),
        ("learned", pa.list_(pa.bool_())),
        ("provenance", pa.string()),
    ]
)


@dataclass(frozen=True)
class Recording:
    """What the agent loops of a job made of its demonstrations.

    Attributes:
        examples: of imitation, one per output of an agent loop, in the order of the rows.
        failed: one line for each demonstration that gave no example: its row, and why.
        rows: of the file.
    """

    examples: Sequence[Example]
    failed: Sequence[str]
    rows: int


def read_responses(path: Path) -> list[list[str]]:
    """Return what the expert writes in each row of a file of demonstrations.

    Args:
        path: Parquet file of verl dataset rows, with a column `expert_responses`.

    Raises:
        ExampleFileError: naming file and row, if it cannot be read, or a row has no responses.
    """
    if path.suffix != ".parquet":
        raise ExampleFileError(
            f"{path} does not end in .parquet, by which verl knows the format. Rename or convert it."
        )
    try:
        file = pq.ParquetFile(path)
        if COLUMN not in file.schema_arrow.names:
            raise ExampleFileError(
                f"{path} has no column {COLUMN!r}; it has {', '.join(file.schema_arrow.names)}. Add it: for each row "
                "the list of what the expert writes, one text per turn of the assistant."
            )
        found = file.read([COLUMN]).column(COLUMN).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ExampleFileError(f"{path} cannot be read as Parquet ({reason}). Name an existing file.") from None
    if not found:
        raise ExampleFileError(f"{path} has no rows. Name a file that holds some.")
    for row, texts in enumerate(found):
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ExampleFileError(
                f"{path}, row {row}: {COLUMN}={texts!r}; expected a list with at least one text, none of them empty. "
                "The first row is 0. Repair the row, or leave it out."
            )
    return found


def check_failures(recording: Recording, path: Path, max_dropped: float) -> None:
    """Refuse a recording of which too much failed.

    Args:
        recording: what was recorded.
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
        recording: what to write.
        source: hash of the demonstrations.
    """
    rows = [
        {
            "prompt": list(item.prompt),
            "target": list(item.target),
            "learned": None if item.learned is None else list(item.learned),
            "provenance": item.provenance,
        }
        for item in recording.examples
    ]
    about = {"schema": f"{SCHEMA}/{VERSION}", "source": source, "failed": recording.failed, "rows": recording.rows}
    table = pa.Table.from_pylist(rows, _FORM.with_metadata({SCHEMA: json.dumps(about)}))
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_recording(path: Path, source: str) -> Recording | None:
    """Return what an earlier job has recorded from the same demonstrations, or None.

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
        about = json.loads((table.schema.metadata or {})[SCHEMA.encode()])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise ExampleFileError(f"{path} is no recording of verl_ee. Remove it; it is made again.") from None
    if about["schema"] != f"{SCHEMA}/{VERSION}":
        raise ExampleFileError(
            f"{path} has schema {about['schema']}; this verl_ee reads {SCHEMA}/{VERSION}. Remove it; it is made again."
        )
    if about["source"] != source:
        return None
    examples = [
        Example(
            tuple(row["prompt"]),
            tuple(row["target"]),
            "imitation",
            provenance=row["provenance"],
            learned=None if row["learned"] is None else tuple(row["learned"]),
        )
        for row in table.to_pylist()
    ]
    return Recording(examples, about["failed"], about["rows"])
