"""The process that the processes of environments are forked from; `python -m` this module with a descriptor.

A process of Python with all that an environment needs takes half a second and fifty megabytes to start, and hundreds of
episodes play at a time. A fork takes milliseconds, and shares the memory. This process never runs an environment, has a
single thread, and so can be forked safely. It ends with the process that started it, and takes all environments along.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time

import numpy

from verl_ee.trainer.rollout.environments.host import Host

START = b"start"
"""Request for a new process, with its end of a connection; any other request is the number of a process to end."""
GRACE_SECONDS = 5.0
"""Time in which environments may close themselves at the end."""


class ForkServer:
    """Forks a process for each environment, and tells on its connection how it ended."""

    def __init__(self, control: socket.socket) -> None:
        """Prepare to serve.

        Args:
            control: where requests come from, one in each packet.
        """
        self._control = control
        # A copy of each connection stays here, so that the other side reads how its process ended.
        self._connections: dict[int, socket.socket] = {}
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def serve(self) -> None:
        """Serve until the other side closes the control connection."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        serving = True
        while serving:
            ready = self._wait([self._control, self._woken])
            self._bury()
            serving = self._control not in ready or self._obey()
        self._end_all()

    def _wait(self, sockets: list[socket.socket], seconds: float | None = None) -> list[socket.socket]:
        """Wait for something to read, which the end of a process is too, and return where it is."""
        ready, _, _ = select.select(sockets, [], [], seconds)
        if self._woken in ready:
            self._woken.recv(4096)
        return ready

    def _obey(self) -> bool:
        """Do what the next request says; return whether there was one."""
        content, descriptors, _, _ = socket.recv_fds(self._control, 64, 1)
        if content == START:
            # Without a free descriptor here the connection is lost, and closed, which the other side reads.
            for descriptor in descriptors:
                self._start(socket.socket(fileno=descriptor))
        elif int(content or 0) in self._connections:
            os.kill(int(content), signal.SIGKILL)
        return bool(content)

    def _start(self, connection: socket.socket) -> None:
        connection.set_inheritable(False)
        try:
            pid = os.fork()
        except OSError as error:
            _tell(connection, f"no process can be started for it ({error.strerror})")
            connection.close()
            return
        if pid:
            self._connections[pid] = connection
            return
        self._become_child()
        Host(connection).serve()
        raise SystemExit

    def _become_child(self) -> None:
        """Leave everything that belongs to the server alone."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (self._control, self._woken, self._waker, *self._connections.values()):
            other.close()
        # A group of its own, so that the processes that an environment starts can be ended with it.
        os.setsid()
        # Python gives a fork random numbers of its own, and numpy does not.
        numpy.random.seed()

    def _bury(self) -> None:
        """Tell how each process that has ended did, and end what it has left behind."""
        while self._connections:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if dead is None:
                return
            # Until somebody waits for the process, no other process can have its number.
            _end_group(dead.si_pid)
            code = os.waitstatus_to_exitcode(os.waitpid(dead.si_pid, 0)[1])
            end = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            with self._connections.pop(dead.si_pid) as connection:
                _tell(connection, f"the process of the environment ended ({end})")

    def _end_all(self) -> None:
        """Let the environments close themselves, as they do at the end of their connection, then end the others."""
        for connection in self._connections.values():
            connection.close()
        deadline = time.monotonic() + GRACE_SECONDS
        while self._connections and (remaining := deadline - time.monotonic()) > 0:
            self._wait([self._woken], remaining)
            self._bury()
        for pid in self._connections:
            _end_group(pid)


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _tell(connection: socket.socket, problem: str) -> None:
    """Send an error, on a line of its own also behind an answer that was cut off."""
    with contextlib.suppress(OSError):
        connection.send(b"\n" + json.dumps({"error": problem}).encode() + b"\n", socket.MSG_DONTWAIT)


def main() -> None:
    """Run a server on the descriptor that the command line names."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    # The prints of an environment belong to the log.
    os.dup2(2, 1)
    ForkServer(control).serve()


if __name__ == "__main__":
    main()
