"""An environment as an episode sees it: a process whose calls have time limits, and which is ended when one hangs."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, cast

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.base import ROOT
from verl_ee.experience.branching.host_process import host_variables
from verl_ee.trainer.rollout.environments.fork_server import START
from verl_ee.trainer.rollout.environments.messages import EnvironmentFailedError, StepResult

CLOSE_SECONDS = 5.0
"""Time in which an environment that failed may close itself."""


@dataclass(frozen=True)
class _Limit:
    """A time limit, and the key that sets it."""

    key: str
    seconds: float

    def __str__(self) -> str:
        return f"{ROOT}.{self.key}={self.seconds:g} s"


class _ForkServerProcess:
    """A running fork server."""

    def __init__(self) -> None:
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "verl_ee.trainer.rollout.environments.fork_server", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                env=host_variables(),
                pass_fds=[other.fileno()],
                # Whatever interrupts this process, environments end by the end of their connections.
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self) -> socket.socket:
        """Start a process, and return the connection to it."""
        connection, other = socket.socketpair()
        # A server that has ended closes the connection unread, which is what a failed start looks like.
        with other, contextlib.suppress(OSError):
            socket.send_fds(self._control, [START], [other.fileno()])
        return connection

    def end(self, pid: int) -> None:
        """End a process that was started here, if it has not ended."""
        with contextlib.suppress(OSError):
            self._control.send(str(pid).encode())


_lock = threading.Lock()
_servers: list[_ForkServerProcess] = []
"""The fork server of this process, once there is one."""


def _fork_server() -> _ForkServerProcess:
    """Return the fork server of this process, and start it if there is none."""
    with _lock:
        if not _servers or not _servers[-1].alive:
            _servers[:] = [_ForkServerProcess()]
        return _servers[-1]


class EnvironmentProcess:
    """An environment in a process of its own, which lives for many episodes; one that failed is only closed."""

    def __init__(self, config: EarlyExperienceConfig) -> None:
        """Start the process, and make the environment in it.

        Args:
            config: environment and time limits.

        Raises:
            EnvironmentFailedError: if it cannot be made in time.
        """
        self._start_limit = _Limit("start_timeout", config.start_timeout)
        self._step_limit = _Limit("step_timeout", config.step_timeout)
        self._calling, self._pid = threading.Lock(), 0
        self._server = _fork_server()
        self._connection = self._server.start()
        environment = config.environment
        try:
            self._pid = int(str(self._result("starting its process", self._start_limit)))
            self._call(
                "making it", self._start_limit, call="make", environment_id=environment.id, kwargs=environment.kwargs
            )
        except EnvironmentFailedError:
            self.close()
            raise

    def reset(self, task: str, seed: int | None) -> StepResult:
        """Begin an episode.

        Raises:
            EnvironmentFailedError: if the environment raises, takes too long, or ends its process.
        """
        return self._observe(f"reset to task {task!r}", self._start_limit, call="reset", task=task, seed=seed)

    def step(self, action: str) -> StepResult:
        """Execute an action.

        Raises:
            EnvironmentFailedError: if the environment raises, takes too long, or ends its process.
        """
        return self._observe(f"the action {action!r}", self._step_limit, call="step", action=action)

    def close(self) -> None:
        """Let the environment close itself, if it still answers, and end its process."""
        if self._calling.locked():
            # An episode that was cancelled leaves a call behind, which nobody waits for.
            self.kill()
        with contextlib.suppress(EnvironmentFailedError):
            self._call("closing it", _Limit("close", CLOSE_SECONDS), call="close")
        self.kill()
        with self._calling:
            self._connection.close()

    def kill(self) -> None:
        """End the process, and with it a call that is under way."""
        self._server.end(self._pid)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _observe(self, operation: str, limit: _Limit, **request: object) -> StepResult:
        answer = StepResult(**cast("dict[str, Any]", self._call(operation, limit, **request)))
        listed = answer.admissible_actions
        return replace(answer, admissible_actions=None if listed is None else tuple(listed))

    def _call(self, operation: str, limit: _Limit, **request: object) -> object:
        with self._calling:
            # The reason why nobody reads it any more is still to be received.
            with contextlib.suppress(OSError):
                self._connection.settimeout(limit.seconds)
                self._connection.sendall(json.dumps(request).encode() + b"\n")
            return self._result(operation, limit)

    def _result(self, operation: str, limit: _Limit) -> object:
        """Receive the result of an operation; a process that does not give one in time is ended."""
        try:
            answer = json.loads(self._line(limit.seconds))
        except TimeoutError:
            self.kill()
            raise EnvironmentFailedError(f"{operation} took longer than {limit}") from None
        except (OSError, ValueError):
            answer = {"error": "the process of the environment has ended"}
        if "error" in answer:
            raise EnvironmentFailedError(f"{operation}: {answer['error']}")
        return answer["result"]

    def _line(self, seconds: float) -> bytes:
        """Receive the last line that has been sent; empty if there is none."""
        deadline = time.monotonic() + seconds
        content = bytearray()
        while not content.endswith(b"\n"):
            self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = self._connection.recv(1 << 16)
            if not part:
                break
            content += part
        return bytes(content).strip().rpartition(b"\n")[2]
