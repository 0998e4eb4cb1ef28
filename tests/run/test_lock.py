"""The lock of a folder: held by one job, and free again with its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from verl_ee.errors import ConfigError
from verl_ee.run import lock
from verl_ee.run.folder import RunFolder


def test_a_folder_is_held_by_one_job_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0)
    folder = RunFolder(tmp_path / "run")
    with folder.hold(), pytest.raises(ConfigError) as caught:
        folder.hold()
    assert f"default_local_dir='{tmp_path}/run' is in use by another job (process {os.getpid()} on " in str(
        caught.value
    )
    folder.hold().close()
