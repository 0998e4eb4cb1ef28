"""An environment that takes text of any form, and writes down byte by byte what it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium

from verl_ee.envs import ExpertStep, ExpertTrajectory

ID = "support.terminal:tests/Terminal-v0"
TASK, INSTRUCTION = "terminal", "Run everything."


class Terminal(gymnasium.Env[str, str]):
    """Answers with the number of bytes of each action.

    Args:
        log: JSON lines; each action is added to it as it came.
    """

    version = "1"

    def __init__(self, log: str) -> None:
        self._log = Path(log)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        return "$", {"task": INSTRUCTION}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(action) + "\n")
        return f"{len(action.encode())} bytes", 0.0, False, False, {"task": INSTRUCTION}


gymnasium.register(ID.partition(":")[2], Terminal, order_enforce=False)


def executed(log: Path) -> list[str]:
    """Return the actions in a log, in their order."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def expert(actions: list[str], log: Path) -> ExpertTrajectory:
    """Return the trajectory of an expert who takes some actions."""
    observations = ["$", *(f"{len(action.encode())} bytes" for action in actions)]
    steps = [ExpertStep(*pair) for pair in zip(observations, actions, strict=False)]
    kwargs = {"log": str(log)}
    return ExpertTrajectory(ID, "1", TASK, INSTRUCTION, tuple(steps), observations[-1], True, kwargs)
