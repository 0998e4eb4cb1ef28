"""Households with what was executed in them, made-up situations, and a writer that follows a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.game_collections import write_here

from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import ExecutedBranch, read_branches
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.prompts.state import State

HISTORY = 8
TASKS = [f"{split}/{number}" for split in ("train", "seen", "unseen") for number in range(8)]
GOOD = "The task is clear to me, and this brings it a little further."


@dataclass(frozen=True)
class Branched:
    """Expert trajectories, and the store of what was executed at their states."""

    folder: Path
    trajectories: list[ExpertTrajectory]
    outcomes: list[ExecutedBranch]


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Branched:
    """Households of every split, three alternatives in each state."""
    folder = tmp_path_factory.mktemp("store")
    trajectories = [Household().expert_trajectory(task) for task in TASKS]
    write_here(folder, Household, trajectories, 3)
    return Branched(folder, trajectories, read_branches(folder))


class Scripted:
    """A writer of given texts, which repeat; it can die or stop, and it remembers what it was asked.

    Args:
        texts: what it writes.
        dies_at: calls after which it raises.
        stops_at: situations after which it writes no more.
    """

    name = "scripted"

    def __init__(self, *texts: str, dies_at: int | None = None, stops_at: int | None = None) -> None:
        self.texts, self.dies_at, self.stops_at = texts, dies_at, stops_at
        self.asked: list[tuple[int, int]] = []
        self.calls = 0
        self.stop: ExampleError | None = None

    def write(self, found: Sequence[Situation]) -> Sequence[str | None]:
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        return [self._one(item) for item in found]

    def _one(self, item: Situation) -> str | None:
        if len(self.asked) == self.stops_at:
            self.stop = ExampleError("That is enough.")
            return None
        self.asked.append((item.trajectory, item.step))
        return self.texts[item.step % len(self.texts)]


def outcome(
    action: str,
    observation: str = "Nothing happens.",
    proposer: str = "policy",
    step: int = 0,
    valid: bool = True,
    done: bool = False,
) -> ExecutedBranch:
    executed = Outcome(action, observation, valid, done)
    return ExecutedBranch(StateRef(0, step), proposer, f"key of {action}", executed)


def trajectory(*actions: str, listed: bool = False) -> ExpertTrajectory:
    """An expert in a world of its own, which says what was done so far."""
    steps = tuple(
        ExpertStep(f"Room {number}.", action, f"I think {number}.", (action, "sit down") if listed else None)
        for number, action in enumerate(actions)
    )
    return ExpertTrajectory("test/World", "1", "task 0", "Leave the house.", steps, "Garden.", True)


def situation(state: State, expert: ExecutedBranch, *others: ExecutedBranch) -> Situation:
    return Situation(0, 0, state, expert.outcome.action, expert, others)


def written(found: Situation) -> str:
    (text,) = TemplateWriter().write([found])
    return text
