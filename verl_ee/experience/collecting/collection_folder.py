"""The folder of a collection: what lies in it, and whether it holds this collection or another one.

<folder>/
    run.json                                  which collection this is
    parts/transitions, parts/proposals        the outcomes and decisions so far; a killed run goes on from them
    transitions.parquet, branches.parquet     the result, sorted; the parts are gone then
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import write_json
from verl_ee.experience.files.versions import FileFormat, read_versioned_json
from verl_ee.experience.provenance import FILTER_KEY, FILTER_OPTION, SOURCE_KEYS, first_difference
from verl_ee.experience.store import BRANCHES, TRANSITIONS, read_provenance

SCHEMA = 2


@dataclass(frozen=True)
class CollectionRun:
    """The content of `run.json`.

    Attributes:
        run: random id of the collection.
        provenance: identifies its inputs.
    """

    run: str
    provenance: dict[str, str]


@dataclass(frozen=True)
class CollectionFolder:
    """Paths and state of one collection.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def transitions(self) -> Path:
        """Folder of the transitions of an unfinished collection."""
        return self.path / "parts" / "transitions"

    @property
    def proposals(self) -> Path:
        """Folder of the proposals of an unfinished collection."""
        return self.path / "parts" / "proposals"

    @property
    def has_result(self) -> bool:
        """Whether both tables of the result are there."""
        return (self.path / BRANCHES).exists() and (self.path / TRANSITIONS).exists()

    @property
    def bytes(self) -> int:
        """Size of the tables of the result that are written."""
        paths = [self.path / name for name in (TRANSITIONS, BRANCHES)]
        return sum(path.stat().st_size for path in paths if path.exists())

    def read_provenance(self) -> dict[str, str] | None:
        """Return what identifies the collection in the folder, finished or not; None if there is none.

        Raises:
            StoreError: if it cannot be read.
        """
        if self.has_result:
            return read_provenance(self.path)
        run = self.read_run()
        return None if run is None else run.provenance

    def check_source(self, source: Mapping[str, str], sharing_key: str) -> None:
        """Refuse a folder that holds a collection of other experts, or of another environment.

        Args:
            source: identifies the experts (`verl_ee.experience.provenance.source_of`).
            sharing_key: key that lets collections share what they execute, for the message.

        Raises:
            StoreError: naming the difference.
        """
        stored = self.read_provenance()
        if stored is not None:
            self._check_same(stored, source, sharing_key, SOURCE_KEYS)

    def is_closed(self, provenance: Mapping[str, str], sharing_key: str) -> bool:
        """Return whether the folder holds the finished result of a collection.

        Args:
            provenance: identifies the collection.
            sharing_key: key that lets collections share what they execute, for the message.

        Raises:
            StoreError: if it holds the result of another collection.
        """
        if not self.has_result:
            return False
        self._check_same(read_provenance(self.path), provenance, sharing_key)
        return True

    def open_run(self, provenance: Mapping[str, str], sharing_key: str) -> str:
        """Return the id of the unfinished collection in the folder; a new folder gets a new one.

        Args:
            provenance: identifies the collection.
            sharing_key: key that lets collections share what they execute, for the message.

        Raises:
            StoreError: if it is another collection, or `run.json` is broken or of another version.
        """
        run = self.read_run()
        if run is None:
            run = CollectionRun(uuid.uuid4().hex, dict(provenance))
            write_json(self._run_path, {"schema": SCHEMA, **asdict(run)})
        self._check_same(run.provenance, provenance, sharing_key)
        return run.run

    def read_run(self) -> CollectionRun | None:
        """Return the content of `run.json`, or None if there is none.

        Raises:
            StoreError: if it is broken or of another version.
        """
        if not self._run_path.exists():
            return None
        file_format = FileFormat(
            SCHEMA,
            StoreError,
            "cannot be read",
            f"Delete {self.path} and collect again.",
            fix_older=f"Finish it with the verl_ee that began it, or delete {self.path} and collect again.",
        )
        return read_versioned_json(self._run_path, CollectionRun, file_format)

    def remove_parts(self) -> None:
        """Remove the parts of an unfinished collection, if there are any."""
        shutil.rmtree(self.path / "parts", ignore_errors=True)

    @property
    def _run_path(self) -> Path:
        return self.path / "run.json"

    def _check_same(
        self,
        stored: Mapping[str, str],
        expected: Mapping[str, str],
        sharing_key: str,
        keys: Collection[str] | None = None,
    ) -> None:
        difference = first_difference(stored, expected, keys)
        if difference is not None:
            filter_key = FILTER_OPTION if sharing_key.startswith("--") else FILTER_KEY
            another = f"Choose another folder; {sharing_key}=FOLDER lets collections share what they execute."
            raise StoreError(
                f"{self.path} holds another collection: its {difference.key} is {difference.stored}, this one's is "
                f"{difference.expected}. {difference.fix(another, filter_key)}"
            )
