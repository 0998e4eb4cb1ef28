"""Texts that a writer writes about executed transitions: each is written once, kept in parts, and put into one file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

import pyarrow as pa

from verl_ee.errors import ExampleError
from verl_ee.experience.files.mapped_tables import TableRow
from verl_ee.experience.files.parquet import read_table, write_table
from verl_ee.experience.files.part_files import PartFiles
from verl_ee.experience.progress import progress_bar
from verl_ee.prompts.format import Message
from verl_ee.prompts.response import without_reasoning

PART = 64
"""Texts that are put into a file together; a killed run loses no more."""


@dataclass(frozen=True)
class NoText:
    """The text that a writer did not give, or not to its end. Nobody learns it.

    Attributes:
        cause: why, as the end of "is empty: ".
        text: what was written of it.
    """

    cause: str
    text: str = ""


def cut_off(limit: int, text: str = "", key: str = "max_tokens") -> NoText:
    """Return the text of a writer that had not ended it when it reached a limit.

    Args:
        limit: the limit, in tokens.
        text: what was written until then.
        key: key of the limit.
    """
    return NoText(f"cut off at {key}={limit}", text)


class TextRequest(Protocol):
    """The subject of one text: a situation that needs a rationale, a transition that needs a summary."""

    @property
    def key(self) -> Hashable:
        """Key of the text among all of a file."""

    @property
    def prompt(self) -> list[Message]:
        """Chat messages that ask a language model for the text."""


class TextRecord(Protocol):
    """A text that was written, as a row of a file."""

    @property
    def key(self) -> Hashable:
        """Key of the request that it answers."""

    def to_row(self) -> TableRow:
        """Return the record as a row."""

    @classmethod
    def from_row(cls, row: TableRow) -> Self:
        """Return the record of a row."""


RequestT = TypeVar("RequestT", bound=TextRequest)
RecordT = TypeVar("RecordT", bound=TextRecord)


class TextWriter(Protocol[RequestT]):
    """Writer of one text per request. A language model reads only the `prompt` of a request; a rule may read all of it.

    Attributes:
        kind: `policy`, `endpoint` or `template`; kept with every text.
        stop: why it wrote no more, if it left any request out.
    """

    kind: str
    stop: ExampleError | None

    def write(self, requests: Sequence[RequestT], /) -> Iterator[tuple[RequestT, str | NoText]]:
        """Yield each request with its text, as they come; `NoText` where the writer was cut off or could not write.

        If the writer stops, the requests that it has left out are missing.
        """


def write_missing_texts(
    path: Path,
    schema: pa.Schema,
    record_type: type[RecordT],
    requests: Sequence[RequestT],
    writer: TextWriter[RequestT],
    record_of: Callable[[RequestT, str, str], RecordT],
) -> list[RecordT]:
    """Have a text written for every request that has none yet, and write all records into one file.

    Args:
        path: path of the file. If it exists, or a killed run left its parts, the texts in them are not written again.
        schema: schema of its rows.
        record_type: type of its records.
        requests: all of them.
        writer: writer of the texts.
        record_of: makes the record of a request and its text; where there is a cause, the writer gave none, or the text
            is what it gave of it.

    Returns:
        The records, in the order of the requests.

    Raises:
        ExampleError: if the writer stopped, or gave another number of texts than requested; earlier texts are kept.
        StoreError: if a file of an earlier run cannot be read.
    """
    parts = PartFiles(path.with_suffix(".parts"), schema)
    earlier_rows = [*(read_table(path, schema) if path.exists() else []), *parts.read()]
    records = {record.key: record for record in map(record_type.from_row, earlier_rows)}
    missing = [request for request in requests if request.key not in records]
    with progress_bar(len(requests), path.stem, "text", initial=len(requests) - len(missing)) as bar:
        unkept: list[RecordT] = []
        try:
            for request, written in writer.write(missing):
                text, cause = (written, "") if isinstance(written, str) else (written.text, written.cause)
                # A model with thinking tokens thinks before it writes; nobody asked for that.
                record = record_of(request, without_reasoning(text)[1].strip(), cause)
                records[request.key] = record
                unkept.append(record)
                if len(unkept) == PART:
                    parts.write([record.to_row() for record in unkept])
                    unkept = []
                bar.update(1)
        finally:
            parts.write([record.to_row() for record in unkept])
    left = sum(request.key not in records for request in requests)
    if writer.stop is not None:
        raise ExampleError(f"{writer.stop} {left} of {len(requests)} texts are not written yet.")
    if left:
        raise ExampleError(f"Writer {writer.kind!r} gave no text for {left} of {len(requests)} requests.")
    result = [records[request.key] for request in requests]
    write_table(path, [record.to_row() for record in result], schema, {})
    shutil.rmtree(parts.folder, ignore_errors=True)
    return result
