"""Reading JSON that others wrote, object by object; every error names file and line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from verl_ee.errors import ErrorType, did_you_mean
from verl_ee.experience.files.versions import FileFormat, check_version

JsonObject = dict[str, object]
Value = TypeVar("Value")


def read_objects(path: Path, error: ErrorType, fix: str) -> Iterator[tuple[str, JsonObject]]:
    """Yield the objects of a file of JSON lines, or of one JSON array, each with its place in the file.

    Args:
        path: the file; blank lines are skipped.
        error: type of every error.
        fix: what to do about an error, a sentence.

    Raises:
        EarlyExperienceError: as `error`, if the file cannot be read, or an item is not a JSON object in UTF-8.
    """
    try:
        with path.open("rb") as file:
            if file.read(4096).lstrip().startswith(b"["):
                file.seek(0)
                yield from _array_objects(file.read(), path, error, fix)
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, parse_object(line, where, line.endswith(b"\n"), error, fix)
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}). Name an existing file.") from None


def parse_object(line: bytes, where: str, closed: bool, error: ErrorType, fix: str) -> JsonObject:
    """Return the JSON object of a line.

    Args:
        line: the bytes.
        where: place of the line, for messages.
        closed: whether the line has an end; one without may be cut off.
        error: type of every error.
        fix: what to do about an error, a sentence.

    Raises:
        EarlyExperienceError: as `error`, if it is not one JSON object in UTF-8.
    """
    cut = "" if closed else " The line has no end: the file seems to be cut off."
    try:
        item = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as problem:
        message = f"not UTF-8 ({problem.reason} at byte {problem.start + 1})"
        raise error(f"{where}: {message}.{cut} {fix}") from None
    except json.JSONDecodeError as problem:
        message = f"not valid JSON ({problem.msg} at column {problem.colno})"
        raise error(f"{where}: {message}.{cut} {fix}") from None
    return _checked_object(item, where, error, fix)


def check_keys(item: Mapping[str, object], allowed: Collection[str], where: str, error: ErrorType) -> None:
    """Refuse a key that is not in `allowed`.

    Raises:
        EarlyExperienceError: as `error`.
    """
    for key in item:
        if key not in allowed:
            raise error(f"{where}: unknown key {key!r}. {did_you_mean(key, allowed)}")


def typed_value(item: Mapping[str, object], key: str, kind: type[Value], where: str, error: ErrorType) -> Value:
    """Return the value of a key.

    Raises:
        EarlyExperienceError: as `error`, if it is missing or not of the type.
    """
    value = item.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = "nothing" if key not in item else f"{type(value).__name__} {value!r}"[:80]
        raise error(f"{where}: {key!r} must be {kind.__name__}, found {shown}.")
    return value


def check_schema(item: Mapping[str, object], name: str, version: int, where: str, error: ErrorType) -> None:
    """Refuse an object whose `schema` is not `name/N`, N at most `version`.

    Raises:
        EarlyExperienceError: as `error`.
    """
    schema = item.get("schema", "")
    file_format = FileFormat(version, error, f"is not of schema {name}", "Write it again.", oldest=1, name=name)
    written_name, _, number = str(schema).partition("/")
    if written_name != name or not number.isdecimal():
        raise error(f"{where}: 'schema' is {item.get('schema')!r}; expected {file_format.labelled(version)!r}.")
    check_version(number, file_format, where)


def _array_objects(content: bytes, path: Path, error: ErrorType, fix: str) -> Iterator[tuple[str, JsonObject]]:
    try:
        items = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 ({problem.reason} at byte {problem.start + 1}). {fix}") from None
    except json.JSONDecodeError as problem:
        message = f"not valid JSON ({problem.msg} at column {problem.colno})"
        raise error(f"{path}, line {problem.lineno}: {message}. {fix}") from None
    for number, item in enumerate(items, start=1):
        where = f"{path}, item {number}"
        yield where, _checked_object(item, where, error, fix)


def _checked_object(item: object, where: str, error: ErrorType, fix: str) -> JsonObject:
    if not isinstance(item, dict):
        raise error(f"{where}: expected a JSON object, found {type(item).__name__}.")
    # JSON can write halves of surrogate pairs; UTF-8 and Parquet cannot hold them.
    try:
        json.dumps(item, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        shown = problem.object[max(problem.start - 20, 0) : problem.end + 20]
        raise error(f"{where}: not valid Unicode near {shown!r}. Replace it. {fix}") from None
    return item
