"""The examples of each stage of a run: encoded once, in files that are mapped into memory and read by index.

encoded/<stage>/
    part-<n>.arrow   examples of one part of the rows; its metadata say what they depend on
    examples.json    digest and numbers, written once every part is there
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from verl_ee.errors import ExampleError
from verl_ee.experience.files.atomic import atomic, digest, file_digest, write_json
from verl_ee.experience.files.versions import FileFormat, read_versioned_json
from verl_ee.experience.progress import progress_bar
from verl_ee.objectives.example_tables import (
    COLUMNS,
    SHOWN,
    EncodedPart,
    EncodeParts,
    Part,
    example_at,
    learned,
    table_of,
)
from verl_ee.objectives.examples import Example

EXAMPLES = FileFormat(1, ExampleError, "does not describe examples", "Delete its folder; it is made again.")
PART_ROWS = 1024
_KEY, _DROPPED, _SHOWN = b"verl_ee.key", b"verl_ee.dropped", b"verl_ee.shown"


class ExampleSet(Sequence[Example]):
    """The examples of a stage, which lie in files.

    Attributes:
        digest: hash of all examples in their order.
        dropped: number of examples that are over a length limit, and not among these.
        shown: provenance and length of the first of them.
    """

    def __init__(self, tables: Sequence[pa.Table], digest: str, dropped: int = 0, shown: Sequence[str] = ()) -> None:
        """Read tables with the columns of `verl_ee.objectives.example_tables`."""
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
        encode: encodes parts.
        depends_on: settings, tokenizer and files that the examples depend on.
    """

    folder: Path
    encode: EncodeParts
    depends_on: Mapping[str, object]

    def examples(self, stage: str, sources: Iterable[Path], parts: Iterable[Part], total: int) -> ExampleSet:
        """Return the examples of a stage; what an earlier job encoded is kept if nothing has changed.

        Args:
            stage: name of the stage.
            sources: files that its examples are made of, and that the run wrote itself.
            parts: the rows, in their order, `PART_ROWS` at a time.
            total: number of the rows.

        Raises:
            ExampleError: if a row cannot be encoded, or a file is broken.
        """
        remaining = iter(parts)
        first = next(remaining, Part(()))
        hashes = {path.name: file_digest(path) for path in sources}
        # One of them shows a tokenizer, a template or a format whose content has changed behind its name.
        probe = [digest_of(part.table) for part in self.encode([replace(first, rows=first.rows[:1])])]
        key = digest([EXAMPLES.version, stage, dict(self.depends_on), hashes, total, PART_ROWS, probe])
        header = self._header(stage)
        if header is None or header.key != key:
            header = self._encoded(stage, key, itertools.chain([first], remaining), total)
            write_json(self._path(stage), {"schema": EXAMPLES.version, **asdict(header)})
        tables = [_mapped(self._part(stage, index)) for index in range(header.parts)]
        return ExampleSet(tables, header.digest, header.dropped, header.shown)

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
        remaining = iter(parts)
        index = 0
        while (written := _written(self._part(stage, index), key)) is not None:
            next(remaining)
            yield written
            index += 1
        for path in self._path(stage).parent.glob("*"):
            if path not in {self._part(stage, kept) for kept in range(index)}:
                path.unlink()
        for part in self.encode(remaining):
            _write(self._part(stage, index), part, key)
            yield part
            index += 1

    def _header(self, stage: str) -> _Header | None:
        path = self._path(stage)
        return read_versioned_json(path, _Header, EXAMPLES) if path.exists() else None

    def _path(self, stage: str) -> Path:
        return self.folder / stage / "examples.json"

    def _part(self, stage: str, index: int) -> Path:
        return self.folder / stage / f"part-{index:05d}.arrow"


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


def _write(path: Path, part: EncodedPart, key: str) -> None:
    metadata = {_KEY: key.encode(), _DROPPED: str(part.dropped).encode(), _SHOWN: "\n".join(part.shown).encode()}
    with atomic(path) as temporary, pa.ipc.new_file(temporary, COLUMNS.with_metadata(metadata)) as file:
        file.write_table(part.table)


def _written(path: Path, key: str) -> EncodedPart | None:
    """Return a part that an earlier job wrote; None if there is none, or it depends on something else."""
    if not path.exists():
        return None
    table = _mapped(path)
    metadata = table.schema.metadata or {}
    if metadata.get(_KEY) != key.encode():
        return None
    shown = metadata[_SHOWN].decode()
    return EncodedPart(table, int(metadata[_DROPPED]), tuple(shown.split("\n")) if shown else ())


def _mapped(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise ExampleError(f"{path} cannot be read ({str(error).splitlines()[0]}). {EXAMPLES.fix}") from None
