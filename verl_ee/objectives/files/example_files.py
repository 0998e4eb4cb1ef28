"""The examples of each stage of a run: encoded once, in files that are mapped into memory and read by index.

encoded/<stage>/
    part-<n>.arrow   examples of one part of the rows; its metadata say what they depend on
    examples.json    digest and numbers, written once every part is there
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from verl_ee.config.models import Objective
from verl_ee.errors import ExampleError
from verl_ee.experience.files.atomic import digest, file_digest, write_json
from verl_ee.experience.files.versions import FileFormat, read_versioned_json
from verl_ee.experience.progress import progress_bar
from verl_ee.objectives.examples import Example
from verl_ee.objectives.files.example_tables import (
    COLUMNS,
    NO_LIMITS,
    SHOWN,
    EncodedPart,
    EncodeParts,
    Part,
    PartEncoder,
    example_at,
    learned,
    read_part,
    table_of,
    write_part,
)
from verl_ee.objectives.rows import Row

EXAMPLES = FileFormat(1, ExampleError, "does not describe examples", "Delete its folder; it is made again.")
PART_ROWS = 1024
TRIED = 32
"""Rows of each objective that show a change: enough for a state with a whole past."""


class ExampleSet(Sequence[Example]):
    """The examples of a stage, which lie in files.

    Attributes:
        digest: hash of all examples in their order.
        dropped: number of examples that are over a length limit, and not among these.
        shown: provenance and length of the first of them.
    """

    def __init__(self, tables: Sequence[pa.Table], digest: str, dropped: int = 0, shown: Sequence[str] = ()) -> None:
        """Read tables with the columns of `verl_ee.objectives.files.example_tables`."""
        self._tables = tables
        self._ends = list(itertools.accumulate(table.num_rows for table in tables))
        self.digest, self.dropped, self.shown = digest, dropped, tuple(shown)

    @classmethod
    def of(cls, examples: Sequence[Example]) -> ExampleSet:
        """Return a set of examples that lie in memory."""
        table = table_of(examples)
        return cls([table], digest_of(table))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Return an example, or a list of some."""
        if isinstance(index, slice):
            return [self[item] for item in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        part = bisect.bisect_right(self._ends, at)
        begin = self._ends[part - 1] if part else 0
        return example_at(self._tables[part], at - begin)


@dataclass(frozen=True)
class _Header:
    """The content of `examples.json`.

    Attributes:
        key: hash of what the examples depend on.
        digest: see `ExampleSet`.
        parts: number of files.
        dropped: see `ExampleSet`.
        shown: see `ExampleSet`.
    """

    key: str
    digest: str
    parts: int
    dropped: int
    shown: tuple[str, ...]


@dataclass(frozen=True)
class ExampleFiles:
    """Makes the examples of the stages of a run, and finds those that an earlier job made.

    Attributes:
        folder: folder of all stages.
        encoder: encodes parts in this process.
        depends_on: settings and files that the examples depend on.
        encode: encodes parts elsewhere; None: `encoder` does.
    """

    folder: Path
    encoder: PartEncoder
    depends_on: Mapping[str, object]
    encode: EncodeParts | None = None

    def examples(
        self,
        stage: str,
        sources: Iterable[Path],
        rows: Mapping[Objective, Callable[[], Iterable[Row | Example]]],
        counts: Mapping[Objective, int],
        given: Collection[Objective] = (),
    ) -> ExampleSet:
        """Return the examples of a stage; those that an earlier job encoded are kept if nothing has changed.

        Args:
            stage: name of the stage.
            sources: files that its examples are made of, and that the run wrote itself.
            rows: returns the rows of each objective, in their order.
            counts: number of the rows of each objective.
            given: objectives whose rows somebody wrote into a file.

        Raises:
            ExampleError: if a row cannot be encoded, or `examples.json` is broken.
        """
        hashes = {path.name: file_digest(path) for path in sources}
        # A tokenizer, a template or a format may change behind its name, and shows itself in rows.
        tried = [Part(list(islice(make(), TRIED)), name in given) for name, make in rows.items()]
        alone = replace(self.encoder, limits=NO_LIMITS)
        probe = [digest_of(part.table) for part in alone(tried)]
        key = digest([EXAMPLES.version, stage, dict(self.depends_on), hashes, dict(counts), PART_ROWS, probe])
        header = self._header(stage)
        if header is None or header.key != key or None in (kept := self._parts(stage, key, header.parts)):
            parts = (part for name, make in rows.items() for part in _cut(make(), name in given))
            header = self._encoded(stage, key, parts, sum(counts.values()))
            write_json(self._path(stage), {"schema": EXAMPLES.version, **asdict(header)})
            kept = self._parts(stage, key, header.parts)
        return ExampleSet(
            [part.table for part in kept if part is not None], header.digest, header.dropped, header.shown
        )

    def _encoded(self, stage: str, key: str, parts: Iterable[Part], total: int) -> _Header:
        """Encode the parts that are not there yet, and return what the header says of all."""
        sha, dropped, shown, count = hashlib.sha256(), 0, list[str](), 0
        with progress_bar(total, f"encode {stage}", "row", disable=total <= PART_ROWS) as bar:
            for index, part in enumerate(self._all_parts(stage, key, parts)):
                _update(sha, part.table)
                dropped, count = dropped + part.dropped, index + 1
                shown += part.shown[: SHOWN - len(shown)]
                bar.update(part.table.num_rows + part.dropped)
        return _Header(key, sha.hexdigest(), count, dropped, tuple(shown))

    def _all_parts(self, stage: str, key: str, parts: Iterable[Part]) -> Iterator[EncodedPart]:
        """Yield every part: first those that an interrupted job wrote, then the others, each written before."""
        remaining, kept = iter(parts), list[Path]()
        while (written := read_part(path := self._part(stage, len(kept)), key)) is not None:
            next(remaining, None)
            yield written
            kept.append(path)
        for path in set(self._path(stage).parent.glob("*")) - set(kept):
            path.unlink()
        for index, part in enumerate((self.encode or self.encoder)(remaining), len(kept)):
            write_part(self._part(stage, index), part, key)
            yield part

    def _parts(self, stage: str, key: str, count: int) -> list[EncodedPart | None]:
        return [read_part(self._part(stage, index), key) for index in range(count)]

    def _header(self, stage: str) -> _Header | None:
        path = self._path(stage)
        return read_versioned_json(path, _Header, EXAMPLES) if path.exists() else None

    def _path(self, stage: str) -> Path:
        return self.folder / stage / "examples.json"

    def _part(self, stage: str, index: int) -> Path:
        return self.folder / stage / f"part-{index:05d}.arrow"


def _cut(rows: Iterable[Row | Example], given: bool) -> Iterator[Part]:
    remaining = iter(rows)
    while part := list(islice(remaining, PART_ROWS)):
        yield Part(part, given)


def digest_of(table: pa.Table) -> str:
    """Return a hash of the examples of a table in their order, which tells whether a stage may go on."""
    sha = hashlib.sha256()
    _update(sha, table)
    return sha.hexdigest()


def _update(sha: hashlib._Hash, table: pa.Table) -> None:
    columns = {name: table.column(name).combine_chunks() for name in COLUMNS.names}
    tokens = columns["tokens"]
    ids, offsets = tokens.values.to_numpy().astype(np.int64), tokens.offsets.to_numpy()
    small = zip(*(columns[name].to_pylist() for name in ("objective", "weight", "prompt_length", "runs")), strict=True)
    for (start, end), (objective, weight, prompt, runs) in zip(itertools.pairwise(offsets), small, strict=True):
        sha.update(f"{objective} {weight} {prompt} {end - start - prompt} ".encode())
        sha.update(ids[start:end].tobytes())
        sha.update(bytes(learned(runs or ())))
