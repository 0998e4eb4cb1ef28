"""Examples as Arrow tables, and the encoding of rows part by part."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_ee.experience.files.atomic import atomic
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.examples import Example, LengthLimits, encode, neutral_row
from verl_ee.objectives.rows import Row

COLUMNS = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("prompt_length", pa.int32()),
        ("runs", pa.list_(pa.int32())),
        ("objective", pa.string()),
        ("weight", pa.float64()),
        ("provenance", pa.string()),
    ]
)
"""`tokens` has the prompt, then the target. `runs` are lengths in the target: of what is learned, of what is not, and
so on in turn; null if all of it is learned."""
_KEY, _DROPPED, _SHOWN = "verl_ee.key", "verl_ee.dropped", "verl_ee.shown"
NO_LIMITS = LengthLimits(sys.maxsize, sys.maxsize, sys.maxsize)
SHOWN = 3
"""Examples over a limit that a message names."""


@dataclass(frozen=True)
class Part:
    """Rows of one stage that are encoded together, and whose examples lie in one file.

    Attributes:
        rows: the rows, or examples that have been encoded before.
        given: whether somebody wrote the rows into a file: these hold whatever they hold.
    """

    rows: Sequence[Row | Example]
    given: bool = False


@dataclass(frozen=True)
class EncodedPart:
    """The examples of a part.

    Attributes:
        table: the examples within the length limits, with `COLUMNS`.
        dropped: number of the others.
        shown: provenance and length of the first of these.
    """

    table: pa.Table
    dropped: int
    shown: tuple[str, ...]


EncodeParts = Callable[[Iterable[Part]], Iterator[EncodedPart]]
"""Encodes parts, in their order; it takes no more of them ahead than it works on."""


@dataclass(frozen=True)
class PartEncoder:
    """Encodes parts one after the other.

    Attributes:
        encoder: encoder of prompts and targets.
        limits: limits on the length of an example; a target is never cut.
    """

    encoder: Encoder
    limits: LengthLimits

    def __call__(self, parts: Iterable[Part]) -> Iterator[EncodedPart]:
        """Yield each part, encoded.

        Raises:
            ExampleError: naming the row that the chat template cannot render.
        """
        return map(self.encoded, parts)

    def encoded(self, part: Part) -> EncodedPart:
        """Return a part, encoded.

        Raises:
            ExampleError: naming the row that the chat template cannot render.
        """
        kept: list[Example] = []
        dropped: list[str] = []
        for example in self._examples(part):
            excess = self.limits.excess(example)
            if excess:
                dropped.append(f"{example.provenance}: {excess}")
            else:
                kept.append(example)
        return EncodedPart(table_of(kept), len(dropped), tuple(dropped[:SHOWN]))

    def _examples(self, part: Part) -> Iterator[Example]:
        for row in part.rows:
            if isinstance(row, Example):
                yield row
            else:
                yield from encode([neutral_row(row, self.encoder) if part.given else row], self.encoder)


def table_of(examples: Sequence[Example]) -> pa.Table:
    """Return examples as a table with `COLUMNS`."""
    return pa.Table.from_pylist([_table_row(example) for example in examples], COLUMNS)


def example_at(table: pa.Table, index: int) -> Example:
    """Return an example of a table.

    Args:
        table: table with `COLUMNS`.
        index: of the row.
    """
    row: dict[str, Any] = {name: table.column(name)[index].as_py() for name in COLUMNS.names}
    tokens, length = row["tokens"], row["prompt_length"]
    mask = None if row["runs"] is None else tuple(learned(row["runs"]))
    return Example(
        tuple(tokens[:length]), tuple(tokens[length:]), row["objective"], row["weight"], row["provenance"], mask
    )


def learned(runs: Sequence[int]) -> Iterator[bool]:
    """Yield for each token of a target whether it is learned."""
    for index, length in enumerate(runs):
        yield from [index % 2 == 0] * length


def write_part(path: Path, part: EncodedPart, key: str) -> None:
    """Write a part, atomically.

    Args:
        path: the file.
        part: the part.
        key: hash of what the examples depend on.
    """
    metadata = {_KEY: key, _DROPPED: str(part.dropped), _SHOWN: json.dumps(part.shown)}
    with atomic(path) as temporary, pa.ipc.new_file(temporary, COLUMNS.with_metadata(metadata)) as file:
        file.write_table(part.table)


def read_part(path: Path, key: str) -> EncodedPart | None:
    """Return a part, mapped into memory; None if it is not there, is cut off, or depends on something else.

    Args:
        path: the file.
        key: hash of what the examples depend on.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    metadata = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    if metadata.get(_KEY) != key:
        return None
    return EncodedPart(table, int(metadata[_DROPPED]), tuple(json.loads(metadata[_SHOWN])))


def _table_row(example: Example) -> dict[str, object]:
    return {
        "tokens": [*example.prompt, *example.target],
        "prompt_length": len(example.prompt),
        "runs": None if example.learned is None else _runs(example.learned),
        "objective": example.objective,
        "weight": example.weight,
        "provenance": example.provenance,
    }


def _runs(mask: Sequence[bool]) -> list[int]:
    runs = [] if mask and mask[0] else [0]
    return runs + [len(list(run)) for _, run in groupby(mask)]
