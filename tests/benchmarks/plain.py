"""The references of our engine, each in fresh processes of its own: the published method, and nothing but steps.

A process imports, makes its environment and plays a first reset before it says that it is ready; only what it does
after it is told to go counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium

from verl_ee.envs import make

READY = "ready"
Outcome = tuple[int, str, str]
"""Step of the state, action executed there, observation that came back."""


class Result(NamedTuple):
    """The result of several processes.

    Attributes:
        seconds: of the slowest of them.
        outcomes: of all of them.
    """

    seconds: float
    outcomes: list[Outcome]


def published(
    env: gymnasium.Env[str, str], task: str, prefix: Sequence[str], choices: Sequence[Sequence[str]]
) -> list[Outcome]:
    """Execute each action of each state in an episode of its own: reset, replay the prefix, act."""
    outcomes = []
    for step, actions in enumerate(choices):
        for action in actions:
            env.reset(options={"task": task})
            for before in prefix[:step]:
                env.step(before)
            outcomes.append((step, action, env.step(action)[0]))
    return outcomes


def stepping(env: gymnasium.Env[str, str], actions: Sequence[str]) -> list[Outcome]:
    """Take steps along one episode, and do nothing else."""
    for action in actions:
        env.step(action)
    return []


SIDES: dict[str, Callable[..., list[Outcome]]] = {"published": published, "stepping": stepping}


def run(requests: Sequence[dict[str, Any]]) -> Result:
    """Run one process per request, all at once.

    Args:
        requests: `side`, `environment`, `kwargs`, `task`, and the `arguments` of that side.

    Raises:
        RuntimeError: if a process fails; what it said is on stderr.
    """
    command = [sys.executable, "-m", __name__]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True) for _ in requests]
    try:
        for process, request in zip(processes, requests, strict=True):
            _tell(process, json.dumps(request))
        for process in processes:
            _hear(process)
        for process in processes:
            _tell(process, "go")
        replies = [json.loads(_hear(process)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    outcomes = [(step, action, observation) for reply in replies for step, action, observation in reply["outcomes"]]
    return Result(max(reply["seconds"] for reply in replies), outcomes)


def _tell(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is not None:
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise RuntimeError(f"A process to compare with ended without an answer (exit status {process.wait()}).")
    return line


def main() -> None:
    """Serve one request from stdin."""
    request = json.loads(sys.stdin.readline())
    env = make(request["environment"], request["kwargs"])
    env.reset(options={"task": request["task"]})
    print(READY, flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    outcomes = SIDES[request["side"]](env, **request["arguments"])
    print(json.dumps({"seconds": time.perf_counter() - began, "outcomes": outcomes}), flush=True)


if __name__ == "__main__":
    main()
