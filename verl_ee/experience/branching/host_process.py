"""A host as its supervisor sees it: a process to talk to, which is ended where a step of it does not end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading

from verl_ee.experience.branching.host_meter import SIZE, HostMeter
from verl_ee.experience.branching.protocol import read_message, write_message

GRACE_SECONDS = 1.0
"""After its time limit a host has so long to end itself."""
LOOK_SECONDS = 0.5
"""Between two looks whether it has."""
_QUIET = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""A host has one thread, or it could not be forked."""


class HostProcess:
    """A running host, and all that it forks.

    Attributes:
        meter: what it has spent, also after its end.
        hung: whether it was ended because a step took too long.
    """

    def __init__(self) -> None:
        """Start it."""
        self.hung = False
        with tempfile.TemporaryFile() as file:
            file.truncate(SIZE)
            self.meter = HostMeter(file.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "verl_ee.experience.branching.host", str(file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | _QUIET | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=[file.fileno()],
                # A process group of its own, so that what it forks can be ended with it.
                start_new_session=True,
            )
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="watch of a host", daemon=True).start()

    def send(self, content: bytes) -> None:
        """Tell it something.

        Raises:
            OSError: if it has ended.
        """
        write_message(self._process.stdin, content)  # type: ignore[arg-type]

    def receive(self) -> bytes | None:
        """Return what it says next, or None if it has ended."""
        return read_message(self._process.stdout)  # type: ignore[arg-type]

    def wait(self) -> str:
        """Return how it ended: the name of a signal, or its exit status."""
        if self._process.returncode is None:
            # Until it is waited for, its number belongs to it and to its group alone.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._kill()
        code = self._process.wait()
        self.hung = self.hung or code == -signal.SIGALRM
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """End it."""
        self._ended.set()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        if self._process.returncode is None:
            self._kill()
            self._process.wait()

    def _watch(self) -> None:
        """See that its limits hold, whatever its environment has done to the signal that should end it."""
        while not self._ended.wait(LOOK_SECONDS):
            if self.meter.overdue(GRACE_SECONDS) and self._process.returncode is None:
                self.hung = True
                self._kill()
                return

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
