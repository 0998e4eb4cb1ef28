"""`verl_ee/Household-v0`: the household as a Gymnasium environment with snapshots, experts and tasks."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import NamedTuple

import gymnasium
from gymnasium.spaces import Text

from verl_ee.envs.contract import ExpertStep, ExpertTrajectory, Info
from verl_ee.envs.household import experts, tasks, text
from verl_ee.envs.household.world import Command, House, HouseState, advance, commands, progress, solved
from verl_ee.errors import EnvError, did_you_mean

ID = "verl_ee/Household-v0"
MAX_STEPS = {"small": 30, "medium": 60, "large": 90}
REWARDS = ("success", "progress")
_LONGEST = 2_000


class Snapshot(NamedTuple):
    """A state of the environment, with the observation that led to it."""

    size: str
    task: str
    state: HouseState
    steps: int
    observation: str
    valid: bool


class Household(gymnasium.Env[str, str]):
    """A house in text; deterministic in the task and the actions.

    The reward is 1.0 with the action that solves the task, which ends the episode, and 0.0 otherwise; or, if asked for,
    the share of the goal's conditions that hold after the action (ALFRED's goal-condition success). An action that is
    not possible answers with one short text, sets `info["valid"]` to False, and costs a step.

    Args:
        size: "small" (5 receptacles in 1 room), "medium" (9 in 2) or "large" (15 in 3).
        max_steps: number of actions after which an episode is truncated; None takes 30, 60 or 90 by size.
        reward: "success" or "progress".

    Raises:
        EnvError: if an argument is out of range.
    """

    version = "1"
    splits = tasks.SPLITS

    def __init__(
        self,
        size: str = "small",
        max_steps: int | None = None,
        render_mode: str | None = None,
        reward: str = "success",
    ) -> None:
        if size not in tasks.SIZES:
            raise EnvError(f"Household has no size {size!r}. {did_you_mean(str(size), tasks.SIZES)}")
        if max_steps is not None and max_steps < 1:
            raise EnvError(f"max_steps is {max_steps}. Expected at least 1.")
        if render_mode is not None:
            raise EnvError(f"Household has no render mode {render_mode!r}. Its observations are text.")
        if reward not in REWARDS:
            raise EnvError(f"Household has no reward {reward!r}. {did_you_mean(str(reward), REWARDS)}")
        self.render_mode = None
        self.size, self.reward = size, reward
        self.max_steps = MAX_STEPS[size] if max_steps is None else max_steps
        self._arguments = {"size": size, "max_steps": max_steps, "reward": reward}
        self.observation_space = Text(_LONGEST, charset=string.printable)
        self.action_space = Text(_LONGEST, charset=string.printable)
        self._house: House | None = None

    def tasks(self, split: str) -> tasks.TaskIds:
        """Return the 10,000 ids of a split: "train", "seen" (new houses) or "unseen" (held-out kinds and wording)."""
        return tasks.task_ids(split)

    def reset(self, *, seed: int | None = None, options: Mapping[str, object] | None = None) -> tuple[str, Info]:
        """Start `options["task"]`, or without it a task of the split train that is drawn with the seed.

        Raises:
            EnvError: if the task is unknown.
        """
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is None:
            task = f"train/{int(self.np_random.integers(tasks.TASKS_PER_SPLIT))}"
        self._house = tasks.house_of(str(task), self.size)
        return self._enter(self._house.start, 0, text.overview(self._house), True)

    @staticmethod
    def canonical_action(action: str) -> str:
        """Return an action in lower case with single spaces: other ways to write it mean the same."""
        return " ".join(action.lower().split())

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Take an action; upper case and spaces around words do not matter.

        Raises:
            EnvError: if the action is not text, or the episode has not started or has ended.
        """
        house = self._started()
        if not isinstance(action, str):
            raise EnvError(f"An action of Household is text, not {type(action).__name__}: {action!r}.")
        if self._success or self._steps >= self.max_steps:
            raise EnvError("The episode has ended. Call reset() or restore() before step().")
        command = self._commands.get(self.canonical_action(action))
        if command is None:
            observation, info = self._enter(self._state, self._steps + 1, text.IMPOSSIBLE, False)
        else:
            state = advance(self._state, command)
            observation, info = self._enter(state, self._steps + 1, text.outcome(house, state, command), True)
        truncated = self._steps >= self.max_steps and not self._success
        reward = progress(house, self._state) if self.reward == "progress" else float(self._success)
        return observation, reward, self._success, truncated, info

    def admissible_actions(self) -> tuple[str, ...]:
        """Return all possible actions, in a fixed order; an action that is not listed is not possible.

        Raises:
            EnvError: if the episode has not started.
        """
        self._started()
        return tuple(self._commands)

    def snapshot(self) -> Snapshot:
        """Return the present state, which can be pickled and restored in any environment of this size.

        Raises:
            EnvError: if the episode has not started.
        """
        house = self._started()
        return Snapshot(self.size, house.task, self._state, self._steps, self._observation, self._valid)

    def restore(self, state: object) -> tuple[str, Info]:
        """Re-enter a snapshot and return its observation and info.

        Raises:
            EnvError: if `state` is not a snapshot of a household of this size.
        """
        if not isinstance(state, Snapshot) or state.size != self.size:
            raise EnvError(
                f"Cannot restore a {type(state).__name__} as a household. "
                f"Expected what snapshot() of a Household of size {self.size!r} returned."
            )
        self._house = tasks.house_of(state.task, self.size)
        return self._enter(state.state, state.steps, state.observation, state.valid)

    def expert_trajectory(self, task: str, kind: str = "search") -> ExpertTrajectory:
        """Return the trajectory of an expert that solves `task`; the present episode does not change.

        Args:
            task: id of the task.
            kind: "search" (sees what the agent sees) or "shortest" (sees all).

        Raises:
            EnvError: if the task or the expert is unknown.
        """
        env = Household(self.size, self.max_steps, reward=self.reward)
        observation, info = env.reset(options={"task": task})
        steps = []
        for action in experts.solve(env._started(), kind)[: self.max_steps]:
            steps.append(ExpertStep(observation, action, None, info["admissible_actions"], info["success"]))
            observation, _, _, _, info = env.step(action)
        success = info["success"]
        return ExpertTrajectory(
            ID, self.version, task, info["task"], tuple(steps), observation, success, self._arguments
        )

    def _started(self) -> House:
        if self._house is None:
            raise EnvError("The episode has not started. Call reset() first.")
        return self._house

    def _enter(self, state: HouseState, steps: int, observation: str, valid: bool) -> tuple[str, Info]:
        house = self._started()
        self._state, self._steps, self._observation, self._valid = state, steps, observation, valid
        self._commands: dict[str, Command] = commands(house, state)
        self._success = solved(house, state)
        info = {
            "task": house.instruction,
            "admissible_actions": tuple(self._commands),
            "success": self._success,
            "valid": valid,
        }
        return observation, info
