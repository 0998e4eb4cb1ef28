"""The lock of a run's folder, which one job at a time can hold."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from verl_ee.errors import ConfigError
from verl_ee.experience.files.atomic import room_for
from verl_ee.experience.progress import plugin_logger

LOCK_SECONDS = 20
"""Ray takes some seconds to end the processes of a job that was killed."""
POLL_SECONDS = 0.2
"""Pause between two attempts."""
HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""Errors of a file that another process has locked; NFS gives the latter."""

logger = plugin_logger(__name__)


def lock(path: Path, root: Path) -> IO[str]:
    """Lock a file for as long as it is open, and write into it who holds it.

    Args:
        path: the file; it is made with its folder.
        root: folder of the run, for the message.

    Raises:
        ConfigError: if another process holds it, and does not let go in `LOCK_SECONDS`. A file system without locks is
            warned of, and cannot tell.
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
    """Lock an open file, and return False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        logger.warning(
            f"{file.name} cannot be locked, because its file system has no locks ({error.strerror}). Two jobs in this "
            "folder would not notice each other: see to it that there is one."
        )
    return True
