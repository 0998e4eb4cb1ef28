"""The error file: it says what ended a run, and its own failure ends nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_ee.errors import StageError, StoreError
from verl_ee.run.error import RunError
from verl_ee.run.folder import RunFolder


def test_an_error_is_read_back_until_it_is_cleared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert RunError.read(folder.error_path) is None
    folder.write_error(StageError("no room"), "imitation")
    content = {"schema": 2, "stage": "imitation", "type": "StageError", "message": "no room"}
    assert json.loads(folder.error_path.read_text()) == content
    assert RunError.read(folder.error_path) == RunError("imitation", "StageError", "no room")
    folder.clear_error()
    folder.clear_error()
    assert RunError.read(folder.error_path) is None


def test_an_error_that_cannot_be_written_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    RunError("base", "StageError", "lost").write(tmp_path / "file" / "error.json")


def test_a_broken_error_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text('{"schema": 2, "stage": "base"}')
    with pytest.raises(StoreError, match=r"error\.json does not say what ended a run"):
        RunError.read(tmp_path / "error.json")
