"""Rooms in a row: an environment with its module in its id, an expert, and conversations that AgentGym keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from verl_ee.envs import ExpertStep, ExpertTrajectory

NAMES = ("kitchen", "hall", "study", "attic")
BARE = "test/Rooms-v0"
ID = f"support.rooms:{BARE}"
Info = dict[str, Any]


class Rooms(gymnasium.Env[str, str]):
    """A task is the index of the room that has the lamp. Listed actions, and their order, depend on the room.

    Args:
        gives: keys of the info dict that it gives.
        late: those that it gives with steps, and not after a reset.
    """

    version = "1"
    splits = ("train",)

    def __init__(
        self, gives: Sequence[str] = ("task", "admissible_actions", "success"), late: Sequence[str] = ()
    ) -> None:
        self.gives, self.late = gives, late

    def tasks(self, split: str) -> Sequence[str]:
        return [str(room) for room in range(len(NAMES))]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, Info]:
        self.lamp, self.room, self.solved = int(options["task"]), 0, False
        observation, info = self.view()
        return observation, {key: value for key, value in info.items() if key not in self.late}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        self.room += {"go on": 1, "go back": -1}.get(action, 0) if action in self.listed() else 0
        self.solved = self.solved or (action == "take lamp" and self.room == self.lamp)
        observation, info = self.view()
        return observation, float(self.solved), self.solved, False, info

    def expert_trajectory(self, task: str) -> ExpertTrajectory:
        """The expert says nothing of lists and success, and does not know the module."""
        env = Rooms()
        observation, info = env.reset(options={"task": task})
        steps = []
        for action in solution(task):
            steps.append(ExpertStep(observation, action))
            observation, _, _, _, info = env.step(action)
        return ExpertTrajectory(BARE, "1", task, info["task"], tuple(steps), observation, True)

    def listed(self) -> tuple[str, ...]:
        ways = [*(["go back"] if self.room else []), *(["go on"] if self.room < len(NAMES) - 1 else [])]
        return (*ways[:: 1 if self.room % 2 else -1], "take lamp", "wait")

    def view(self) -> tuple[str, Info]:
        lamp = "You hold the lamp." if self.solved else "The lamp is here." if self.room == self.lamp else "It is dark."
        info = {"task": f"Find lamp {self.lamp}.", "admissible_actions": self.listed(), "success": self.solved}
        return f"You are in the {NAMES[self.room]}. {lamp}", {key: info[key] for key in self.gives}


def solution(task: str) -> list[str]:
    """Return the actions that solve a task."""
    return ["go on"] * int(task) + ["take lamp"]


def conversation(task: str) -> dict[str, Any]:
    """Return an item of AgentGym that ends on the expert's last action."""
    env = Rooms()
    observation, _ = env.reset(options={"task": task})
    said = ["You are in a house. Answer with Thought and Action.", "OK."]
    for action in solution(task):
        said += [observation, f"Thought:\nOn with it.\n\nAction:\n{action}"]
        observation = env.step(action)[0]
    sides = [{"from": "human", "loss": None}, {"from": "gpt", "loss": True}]
    messages: list[dict[str, Any]] = [sides[index % 2] | {"value": value} for index, value in enumerate(said)]
    messages[1]["loss"] = False
    return {"item_id": task, "conversations": messages}


gymnasium.register(id=BARE, entry_point=Rooms, order_enforce=False)
