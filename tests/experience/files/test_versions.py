"""Versions of files: one judgement for all of them, and a reader that says what is wrong and what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from verl_ee.errors import ExampleFileError, StoreError
from verl_ee.experience.files.versions import FileFormat, check_version, read_versioned_json

CURRENT = FileFormat(3, StoreError, "is not a list of prices", "Write it again.")
WITH_OLDER = FileFormat(3, ExampleFileError, "is no shelf", "Build it again.", oldest=2, name="verl_ee.shelf")


@dataclass(frozen=True)
class Prices:
    apple: int
    note: str = "none"


@pytest.mark.parametrize("written", [3, "3", b"3".decode()])
def test_the_version_of_today_is_read(written: object) -> None:
    assert check_version(written, CURRENT, "prices.json") == 3


def test_an_older_version_is_read_where_the_format_says_so() -> None:
    assert [check_version(version, WITH_OLDER, "shelf") for version in (2, 3)] == [2, 3]


@pytest.mark.parametrize(
    ("written", "file_format", "message"),
    [
        (4, CURRENT, "prices.json has schema 4; this verl_ee reads 3. Update verl_ee."),
        ("2", CURRENT, "prices.json has schema 2; this verl_ee reads 3. Write it again."),
        ("", CURRENT, "prices.json has schema (none); this verl_ee reads 3. Write it again."),
        (None, CURRENT, "prices.json has schema (none); this verl_ee reads 3. Write it again."),
        (True, CURRENT, "prices.json has schema (none); this verl_ee reads 3. Write it again."),
        (
            1,
            WITH_OLDER,
            "prices.json has schema verl_ee.shelf/1; this verl_ee reads up to verl_ee.shelf/3. Build it again.",
        ),
    ],
)
def test_another_version_is_refused_with_advice(written: object, file_format: FileFormat, message: str) -> None:
    with pytest.raises(file_format.error) as raised:
        check_version(written, file_format, "prices.json")
    assert str(raised.value) == message


def test_older_and_newer_versions_have_advice_of_their_own() -> None:
    file_format = FileFormat(3, StoreError, "is broken", "Repair it.", fix_older="Convert it.", fix_newer="Wait.")
    for version, fix in ((2, "Convert it."), (4, "Wait.")):
        with pytest.raises(StoreError, match=f"has schema {version}; this verl_ee reads 3. {fix}"):
            check_version(version, file_format, "file")


def test_the_content_is_read_by_the_fields_of_its_type(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"schema": 3, "apple": 5, "pear": 6}))
    assert read_versioned_json(path, Prices, CURRENT) == Prices(5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is not a list of prices", "Write it again."]),
        (b"[]", ["is not a list of prices", "expected a JSON object, found list", "Write it again."]),
        (b'{"apple": 5}', ["is not a list of prices", "'schema' must be a number, found None", "Write it again."]),
        (b'{"schema": 3}', ["is not a list of prices", "'apple'", "Write it again."]),
        (b'{"schema": 3, "apple": "many"}', ["is not a list of prices", "'apple'", "Write it again."]),
        (b'{"schema": 3, "apple": "\xff"}', ["is not a list of prices", "Write it again."]),
        (b"[" * 100_000, ["is not a list of prices", "Write it again."]),
        # The version decides before the content, which a newer one may have under other names.
        (b'{"schema": 4}', ["has schema 4", "Update verl_ee."]),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_advice(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "prices.json"
    path.write_bytes(content)
    with pytest.raises(StoreError) as raised:
        read_versioned_json(path, Prices, CURRENT)
    for word in (str(path), *words):
        assert word in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.json cannot be read \(No such file or directory\)\. Write it again\."):
        read_versioned_json(tmp_path / "none.json", Prices, CURRENT)
