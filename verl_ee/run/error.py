"""The message that ended a run, in `error.json`: the next attempt removes it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from verl_ee.errors import StoreError, WriteError
from verl_ee.experience.files.atomic import write_json
from verl_ee.experience.files.versions import FileFormat, read_versioned_json

ERROR_FILE = FileFormat(2, StoreError, "does not say what ended a run", "Delete it.")


@dataclass(frozen=True)
class RunError:
    """Error that ended a run.

    Attributes:
        stage: stage that failed.
        type: name of the error's type, one of `verl_ee.errors`.
        message: what is wrong, where, and what to do.
    """

    stage: str
    type: str
    message: str

    @classmethod
    def of(cls, error: BaseException, stage: str) -> RunError:
        """Return the content of the file for an exception."""
        return cls(stage, type(error).__name__, str(error))

    @classmethod
    def read(cls, path: Path) -> RunError | None:
        """Return what ended a run, or None if nothing has.

        Raises:
            StoreError: if the file is broken or of another schema.
        """
        return read_versioned_json(path, cls, ERROR_FILE) if path.exists() else None

    def write(self, path: Path) -> None:
        """Write the file where that is still possible: a full disk may be what ended the run."""
        with suppress(OSError, WriteError):
            write_json(path, {"schema": ERROR_FILE.version, **asdict(self)})
