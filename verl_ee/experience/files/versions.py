"""Versions of the files that verl_ee writes: one judgement, and one reader for small JSON files.

A module that owns a file describes it once, and reads it with that description:

    LEDGER = FileFormat(1, StoreError, "does not say what was spent", "Delete it to count from zero.")

    @dataclass(frozen=True)
    class Spending:
        prompt_tokens: int
        completion_tokens: int

    spending = read_versioned_json(path, Spending, LEDGER)
    write_json(path, {"schema": LEDGER.version, **asdict(spending)})

`read_versioned_json` is for a JSON object whose key `schema` is its version. Files of another form (Parquet metadata,
lines of JSON) find their version themselves and call `check_version`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from verl_ee.errors import ErrorType

UPDATE = "Update verl_ee."
Content = TypeVar("Content")


@dataclass(frozen=True)
class FileFormat:
    """The version of one kind of file, and what a user is told where a file has another one.

    Attributes:
        version: the version that is written now.
        error: type of every error that is raised.
        broken: the end of the sentence "<path> ..." about a file that is not of this kind at all, without a full stop:
            "is not a state file of verl_ee".
        fix: what to do about a broken file, a sentence.
        fix_older: what to do about a file of an older version that is not read any more; empty if it is `fix`.
        fix_newer: what to do about a file of a newer version.
        oldest: the oldest version that is still read; None if that is `version`.
        name: stands before the version in messages, as in "verl_ee.expert/1"; empty if the version stands alone.
    """

    version: int
    error: ErrorType
    broken: str
    fix: str
    fix_older: str = ""
    fix_newer: str = UPDATE
    oldest: int | None = None
    name: str = ""

    def labelled(self, version: object) -> str:
        """Return a version as messages show it."""
        return f"{self.name}/{version}" if self.name else f"{version}"


def check_version(written: object, file_format: FileFormat, where: Path | str) -> int:
    """Return the version of a file if it can be read.

    Args:
        written: the version in the file: a number, or text that is one. Anything else counts as no version.
        file_format: the versions that are read, and the advice.
        where: the file, and the line if there is one; the message begins with it.

    Raises:
        EarlyExperienceError: as `file_format.error`, if the version is older or newer than those that are read.
    """
    version = _number(written)
    newest = file_format.version
    oldest = newest if file_format.oldest is None else file_format.oldest
    if version is not None and oldest <= version <= newest:
        return version
    is_newer = version is not None and version > newest
    fix = file_format.fix_newer if is_newer else file_format.fix_older or file_format.fix
    shown = "(none)" if version is None else file_format.labelled(version)
    up_to = "" if oldest == newest else "up to "
    readable = f"{up_to}{file_format.labelled(newest)}"
    raise file_format.error(f"{where} has schema {shown}; this verl_ee reads {readable}. {fix}")


def read_versioned_json(path: Path, kind: type[Content], file_format: FileFormat) -> Content:
    """Read a JSON object whose key `schema` is its version.

    Args:
        path: the file.
        kind: type of the content, for instance a dataclass with one field per key. Keys that it has no field for are
            ignored, `schema` among them unless it has a field for it.
        file_format: the versions that are read, the error type and the advice.

    Raises:
        EarlyExperienceError: as `file_format.error`, if the file cannot be read, is no such JSON object, or has
            another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise file_format.error(f"{path} cannot be read ({error.strerror}). {file_format.fix}") from None
    except (ValueError, RecursionError) as error:
        raise _broken(path, file_format, str(error)) from None
    if not isinstance(content, dict):
        raise _broken(path, file_format, f"expected a JSON object, found {type(content).__name__}")
    if _number(content.get("schema")) is None:
        raise _broken(path, file_format, f"'schema' must be a number, found {content.get('schema')!r}")
    check_version(content["schema"], file_format, path)
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise _broken(path, file_format, _first_problem(error)) from None


def _number(version: object) -> int | None:
    if isinstance(version, int) and not isinstance(version, bool):
        return version
    if isinstance(version, str) and version.isdecimal():
        return int(version)
    return None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key!r}: {problem['msg']}" if key else problem["msg"]


def _broken(path: Path, file_format: FileFormat, reason: str) -> Exception:
    return file_format.error(f"{path} {file_format.broken} ({reason}). {file_format.fix}")
