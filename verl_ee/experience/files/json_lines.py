"""Reading JSON that others wrote, object by object: what is wrong is told with file and line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_ee.errors import EarlyExperienceError, did_you_mean

ErrorType = type[EarlyExperienceError]


def read_objects(path: Path, error: ErrorType, fix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, or of one JSON array, each with the place where it was found.

    Args:
        path: the file; blank lines are skipped.
        error: raised for whatever is wrong.
        fix: what to do about it, a sentence.

    Raises:
        EarlyExperienceError: as `error`, if the file cannot be read, or an item is not a JSON object in UTF-8.
    """
    try:
        with path.open("rb") as file:
            if file.read(4096).lstrip().startswith(b"["):
                file.seek(0)
                yield from _array(file.read(), path, error, fix)
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, parse_object(line, where, line.endswith(b"\n"), error, fix)
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}). Name an existing file.") from None


def parse_object(line: bytes, where: str, closed: bool, error: ErrorType, fix: str) -> dict[str, Any]:
    """Return the JSON object of a line.

    Args:
        line: the bytes.
        where: named in messages.
        closed: whether the line has an end; one without may be cut off.
        error: raised for whatever is wrong.
        fix: what to do about it, a sentence.

    Raises:
        EarlyExperienceError: as `error`, if it is not one JSON object in UTF-8.
    """
    cut = "" if closed else " The line has no end: the file seems to be cut off."
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as problem:
        message = f"not UTF-8 ({problem.reason} at byte {problem.start + 1})"
        raise error(f"{where}: {message}.{cut} {fix}") from None
    except json.JSONDecodeError as problem:
        message = f"not valid JSON ({problem.msg} at column {problem.colno})"
        raise error(f"{where}: {message}.{cut} {fix}") from None
    return _checked(row, where, error, fix)


def check_keys(row: Mapping[str, Any], allowed: Collection[str], where: str, error: ErrorType) -> None:
    """Refuse a key that is not in `allowed`.

    Raises:
        EarlyExperienceError: as `error`.
    """
    for key in row:
        if key not in allowed:
            raise error(f"{where}: unknown key {key!r}. {did_you_mean(key, allowed)}")


def typed_value(row: Mapping[str, Any], key: str, kind: type, where: str, error: ErrorType) -> Any:
    """Return the value of a key.

    Raises:
        EarlyExperienceError: as `error`, if it is missing or not of the type.
    """
    value = row.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "nothing" if key not in row else f"{type(value).__name__} {value!r}"[:80]
        raise error(f"{where}: {key!r} must be {kind.__name__}, found {found}.")
    return value


def check_schema(row: Mapping[str, Any], name: str, version: int, where: str, error: ErrorType) -> None:
    """Refuse a row whose `schema` is not `name/N`, N at most `version`.

    Raises:
        EarlyExperienceError: as `error`.
    """
    found, _, number = str(row.get("schema", "")).partition("/")
    if found != name or not number.isdigit():
        raise error(f"{where}: 'schema' is {row.get('schema')!r}; expected '{name}/{version}'.")
    if int(number) > version:
        raise error(
            f"{where}: schema version {number} is newer than {version}, which this verl_ee reads. Update verl_ee."
        )


def _array(content: bytes, path: Path, error: ErrorType, fix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        items = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 ({problem.reason} at byte {problem.start + 1}). {fix}") from None
    except json.JSONDecodeError as problem:
        message = f"not valid JSON ({problem.msg} at column {problem.colno})"
        raise error(f"{path}, line {problem.lineno}: {message}. {fix}") from None
    for number, item in enumerate(items, start=1):
        where = f"{path}, item {number}"
        yield where, _checked(item, where, error, fix)


def _checked(row: Any, where: str, error: ErrorType, fix: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise error(f"{where}: expected a JSON object, found {type(row).__name__}.")
    # JSON can write halves of surrogate pairs; UTF-8 and Parquet cannot hold them.
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        shown = problem.object[max(problem.start - 20, 0) : problem.end + 20]
        raise error(f"{where}: not valid Unicode near {shown!r}. Replace it. {fix}") from None
    return row
