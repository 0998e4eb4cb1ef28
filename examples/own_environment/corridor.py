"""A corridor of five rooms, one of which has the lamp: an environment with tasks and an expert, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from verl_ee.envs import ExpertStep, ExpertTrajectory

ID = "corridor:own/Corridor-v0"
"""The module to import, and the id that it registers."""
ROOMS = ("kitchen", "hall", "study", "attic", "cellar")
ACTIONS = ("go left", "go right", "take lamp")


class Corridor(gymnasium.Env[str, str]):
    """Text in, text out. It has no snapshots, so a state is restored by a fork or by replay."""

    version = "1"
    splits = ("train", "test")

    def tasks(self, split: str) -> Sequence[str]:
        """Return the ids of the tasks: the room that has the lamp, by its index."""
        return [f"{split}/{room}" for room in range(len(ROOMS))]

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a task in the first room."""
        super().reset(seed=seed)
        task = (options or {}).get("task", "train/0")
        self._lamp, self._room, self._success = int(task.rpartition("/")[2]), 0, False
        return self._view(), self._info(valid=True)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take an action; one that is not possible changes nothing."""
        valid = action in ACTIONS
        if action == "take lamp":
            self._success = valid = self._room == self._lamp
        elif valid:
            self._room += 1 if action == "go right" else -1
            self._room = min(max(self._room, 0), len(ROOMS) - 1)
        return self._view(), float(self._success), self._success, False, self._info(valid)

    def expert_trajectory(self, task: str) -> ExpertTrajectory:
        """Return how the task is solved: right until the lamp is there, then take it."""
        env, steps = Corridor(), []
        observation, info = env.reset(options={"task": task})
        while not info["success"]:
            action = "take lamp" if env._room == env._lamp else "go right"
            steps.append(ExpertStep(observation, action, admissible_actions=ACTIONS))
            observation, _, _, _, info = env.step(action)
        return ExpertTrajectory(ID, self.version, task, info["task"], tuple(steps), observation, True)

    def _view(self) -> str:
        lamp = "You hold the lamp." if self._success else "A lamp is here." if self._room == self._lamp else ""
        return f"You are in the {ROOMS[self._room]}. {lamp}".strip()

    def _info(self, valid: bool) -> dict[str, Any]:
        return {"task": "find the lamp", "admissible_actions": ACTIONS, "success": self._success, "valid": valid}


gymnasium.register(id=ID.partition(":")[2], entry_point=Corridor, order_enforce=False)
