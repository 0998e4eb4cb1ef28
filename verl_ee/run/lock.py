"""The lock of a run's folder, which one job at a time can hold."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from verl_ee.errors import ConfigError
from verl_ee.experience.files.atomic import room_for

LOCK_SECONDS = 20
"""Ray takes some seconds to end the processes of a job that was killed."""
POLL_SECONDS = 0.2
"""Pause between two attempts."""


def lock(path: Path, root: Path) -> IO[str]:
    """Lock a file for as long as it is open, and write into it who holds it.

    Args:
        path: the file; it is made with its folder.
        root: folder of the run, for the message.

    Raises:
        ConfigError: if another process holds it, and does not let go in `LOCK_SECONDS`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    deadline = time.monotonic() + LOCK_SECONDS
    while not _try_lock(file):
        if time.monotonic() > deadline:
            file.seek(0)
            raise ConfigError(
                f"trainer.default_local_dir={str(root)!r} is in use by another job ({file.read().strip()}). Wait for "
                "its end, stop it, or choose another folder."
            )
        time.sleep(POLL_SECONDS)
    with room_for(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def _try_lock(file: IO[str]) -> bool:
    """Lock an open file, and return whether that was possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
