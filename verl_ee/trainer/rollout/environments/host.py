"""The process that holds one environment, driven by episodes one after the other: it makes, resets, steps, closes.

All of it happens on the main thread of the process, so an environment may hold what belongs to a thread, as sqlite's
connections and Playwright's browsers do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict

import gymnasium

from verl_ee.envs import Info, make
from verl_ee.errors import EarlyExperienceError
from verl_ee.trainer.rollout.environments.messages import StepResult

Call = Callable[..., object]


class Host:
    """Serves the calls that come over a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rwb")
        self._env: gymnasium.Env[str, str] | None = None
        self._calls: Mapping[str, Call] = {
            "make": self._make,
            "reset": self._reset,
            "step": self._step,
            "close": self._close,
        }

    def serve(self) -> None:
        """Tell the number of this process, then serve until the other side closes the connection."""
        try:
            self._send({"result": os.getpid()})
            for line in self._file:
                self._send(self._answer(json.loads(line)))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with contextlib.suppress(Exception):
                self._close()

    def _answer(self, request: dict[str, object]) -> dict[str, object]:
        call = self._calls[str(request.pop("call"))]
        try:
            return {"result": call(**request)}
        except EarlyExperienceError as error:
            return {"error": str(error)}
        except Exception as error:  # the environment is somebody else's code
            return {"error": f"{type(error).__name__}: {error}"}

    def _make(self, environment_id: str, kwargs: Mapping[str, object]) -> None:
        self._env = make(environment_id, kwargs)

    def _reset(self, task: str, seed: int | None) -> dict[str, object]:
        observation, info = self._made().reset(seed=seed, options={"task": task})
        return _plain(observation, info)

    def _step(self, action: str) -> dict[str, object]:
        observation, reward, terminated, truncated, info = self._made().step(action)
        return _plain(observation, info, float(reward), bool(terminated or truncated))

    def _close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _made(self) -> gymnasium.Env[str, str]:
        if self._env is None:
            raise RuntimeError("the environment is called before it is made")
        return self._env

    def _send(self, message: Mapping[str, object]) -> None:
        self._file.write(json.dumps(message).encode() + b"\n")
        self._file.flush()


def _plain(observation: object, info: Info, reward: float = 0.0, ended: bool = False) -> dict[str, object]:
    """Return what an environment has answered as plain data.

    Raises:
        TypeError: if an observation or an action is not text.
        UnicodeEncodeError: if it is text that no prompt can hold.
    """
    listed, success, valid = (info.get(key) for key in ("admissible_actions", "success", "valid"))
    actions = None if listed is None else tuple(_text(action, "an admissible action") for action in listed)
    result = StepResult(
        _text(observation, "the observation"),
        reward,
        ended,
        None if info.get("task") is None else str(info["task"]),
        actions,
        None if success is None else bool(success),
        None if valid is None else bool(valid),
    )
    return asdict(result)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}, expected str")
    value.encode("utf-8")
    return str(value)
