"""Environments to measure on: a large household, as slow as a real engine if asked, one id per method of restoring.

Importing this registers them, so `benchmarks.environments:bench/Snapshot-v0` names one in any process.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.envs.household.env import Household

SIZE, TASK = "large", "train/0"
ENDLESS = 1_000_000
"""Steps before an episode is cut off: none here is to be."""
Observed = tuple[str, dict[str, Any]]


class Engine(gymnasium.Env[str, str]):
    """A household behind `reset` and `step` alone.

    Args:
        milliseconds: CPU time that every step and every reset takes on top of the household's own.
        count: file that grows by one byte with every step, in whatever process; a count that nobody has to report.
    """

    version = "1"
    forkable = False

    def __init__(self, milliseconds: float = 0.0, count: str | None = None, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = self.action_space = gymnasium.spaces.Text(2_000)
        self._house, self._seconds = Household(SIZE, ENDLESS), milliseconds / 1000
        self._count = None if count is None else os.open(count, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Observed:
        super().reset(seed=seed)
        self._spend()
        return self._house.reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._count is not None:
            os.write(self._count, b".")
        self._spend()
        return self._house.step(action)

    def close(self) -> None:
        if self._count is not None:
            os.close(self._count)

    def _spend(self) -> None:
        # CPU time, not sleep: workers then compete for the cores as they would with an engine that computes.
        end = time.thread_time() + self._seconds
        while self._seconds and time.thread_time() < end:
            pass


class Forkable(Engine):
    """The same, and a fork of its process shares nothing that matters."""

    forkable = True


class WithSnapshots(Engine):
    """The same, with snapshots; going back costs what it costs the household."""

    def snapshot(self) -> object:
        return self._house.snapshot()

    def restore(self, state: object) -> Observed:
        return self._house.restore(state)


IDS = {"snapshot": "bench/Snapshot-v0", "fork": "bench/Fork-v0", "replay": "bench/Replay-v0"}
"""Environments by the method of restoring that each of them offers."""
_CLASSES = {"snapshot": "WithSnapshots", "fork": "Forkable", "replay": "Engine"}

for _restore, _id in IDS.items():
    if _id not in gymnasium.registry:
        _entry = f"{__name__}:{_CLASSES[_restore]}"
        gymnasium.register(id=_id, entry_point=_entry, nondeterministic=False, order_enforce=False)


def importable(restore: str) -> str:
    """Return the id of an environment with the module that registers it."""
    return f"{__name__}:{IDS[restore]}"


def walk(restore: str, steps: int, alternatives: int) -> ExpertTrajectory:
    """Return a trajectory of exactly `steps` possible actions that do not end the episode, always the same.

    A shorter walk is the beginning of a longer one.

    Args:
        restore: method that its environment offers.
        steps: its length.
        alternatives: that each state must have besides the action taken.

    Raises:
        RuntimeError: if a state has fewer.
    """
    house, chance = Household(SIZE, ENDLESS), random.Random(0)
    observation, info = house.reset(options={"task": TASK})
    taken: list[ExpertStep] = []
    while len(taken) < steps:
        listed = info["admissible_actions"]
        if len(listed) <= alternatives:
            raise RuntimeError(f"State {len(taken)} of {TASK} lists {len(listed)} actions, not {alternatives + 1}.")
        action, following, info = _stay(house, chance.sample(listed, len(listed)))
        taken.append(ExpertStep(observation, action, None, listed))
        observation = following
    return ExpertTrajectory(importable(restore), Engine.version, TASK, info["task"], tuple(taken), observation, False)


def _stay(house: Household, actions: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """Take the first of some actions that does not end the episode."""
    here = house.snapshot()
    for action in actions:
        observation, _, ended, _, info = house.step(action)
        if not ended:
            return action, observation, info
        house.restore(here)
    raise RuntimeError(f"Every action of a state of {TASK} ends the episode.")
