"""The lock of a folder: held by one job, and free again with its end."""

from __future__ import annotations

import errno
import fcntl
import logging
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


@pytest.mark.parametrize("reason", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_other_job(
    tmp_path: Path, reason: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        lock.lock(tmp_path / "lock", tmp_path).close()
    assert f"{tmp_path}/lock cannot be locked, because its file system has no locks" in caplog.text
    assert os.strerror(reason) in caplog.text
