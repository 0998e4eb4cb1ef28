"""A host as its supervisor sees it: a process with two pipes, which is ended when one of its steps hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, cast

from verl_ee.experience.branching.host_meter import SIZE, HostMeter
from verl_ee.experience.branching.protocol import read_message, write_message

GRACE_SECONDS = 1.0
"""Time after its deadline in which a host may end itself."""
WATCH_SECONDS = 0.5
"""Time between two looks at the deadline."""
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""A process with threads cannot be forked safely."""


def host_variables() -> dict[str, str]:
    """Return the environment variables of a process that holds environments: it imports what this one can."""
    return os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class HostProcess:
    """A running host and its forked children.

    Attributes:
        meter: steps and resets, readable also after the end of the host.
        hung: whether the host was ended because a step took too long.
    """

    def __init__(self) -> None:
        """Start the host."""
        self.hung = False
        with tempfile.TemporaryFile() as file:
            file.truncate(SIZE)
            self.meter = HostMeter(file.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "verl_ee.experience.branching.host", str(file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=host_variables(),
                pass_fds=[file.fileno()],
                # A process group of its own, so that the forked children can be ended with the host.
                start_new_session=True,
            )
        self._stdin, self._stdout = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="watch of a host", daemon=True).start()

    def send(self, content: bytes) -> None:
        """Send a message.

        Raises:
            OSError: if the host has ended.
        """
        write_message(self._stdin, content)

    def receive(self) -> bytes | None:
        """Return the next message of the host, or None if it has ended."""
        return read_message(self._stdout)

    def wait(self) -> str:
        """Wait for the end of the host, and return the name of the signal that ended it, or its exit status."""
        if self._process.returncode is None:
            # Until somebody waits for the process, no other process can have its number.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._kill()
        code = self._process.wait()
        self.hung = self.hung or code == -signal.SIGALRM
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """End the host and its forked children."""
        self._ended.set()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        if self._process.returncode is None:
            self._kill()
            self._process.wait()

    def _watch(self) -> None:
        """Enforce the deadlines, also where the environment has taken the signal that should end the host."""
        while not self._ended.wait(WATCH_SECONDS):
            if self.meter.is_overdue(GRACE_SECONDS) and self._process.returncode is None:
                self.hung = True
                self._kill()
                return

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
