"""Households with executed branches, made-up situations, and a writer that follows a script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.game_collections import write_here

from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import read_branches
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.reflection.situations import Situation, situations
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.writing.text_writing import NoText, RequestT
from verl_ee.prompts.state import State

HISTORY = 8
TASKS = [f"{split}/{number}" for split in ("train", "seen", "unseen") for number in range(8)]
GOOD = "The task is clear to me, and this brings it a little further."
STATELESS_GATES = tuple(gate for gate in GATES if gate != "grounded")
"""Gates that such a text passes in every state."""


@dataclass(frozen=True)
class Branched:
    """Expert trajectories, and the store of the branches at their states."""

    folder: Path
    trajectories: list[ExpertTrajectory]
    branches: list[ExecutedBranch]

    def situations(self, k: int | None = None) -> list[Situation]:
        return situations(self.trajectories, self.branches, HISTORY, k)


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Branched:
    """Households of every split, three alternatives in each state."""
    folder = tmp_path_factory.mktemp("store")
    trajectories = [Household().expert_trajectory(task) for task in TASKS]
    write_here(folder, Household, trajectories, 3)
    return Branched(folder, trajectories, read_branches(folder))


@pytest.fixture
def twenty(household: Branched) -> list[Situation]:
    """Twenty situations of several trajectories."""
    return household.situations()[:20]


class Scripted:
    """A writer of given texts, which repeat; it can die or stop, and it remembers its requests.

    Args:
        texts: what it writes.
        dies_at: calls after which it raises.
        stops_at: situations after which it writes no more.
    """

    kind = "scripted"

    def __init__(self, *texts: str, dies_at: int | None = None, stops_at: int | None = None) -> None:
        self.texts, self.dies_at, self.stops_at = texts, dies_at, stops_at
        self.requested: list[StateRef] = []
        self.stop: ExampleError | None = None

    def write(self, situations: Sequence[Situation], /) -> Iterator[tuple[Situation, str]]:
        for item in situations:
            if len(self.requested) == self.dies_at:
                raise KeyboardInterrupt
            if len(self.requested) == self.stops_at:
                self.stop = ExampleError("That is enough.")
                return
            self.requested.append(item.ref)
            yield item, self.texts[item.ref.step % len(self.texts)]


class Cycle:
    """A writer that gives one text after the other, and begins again."""

    kind = "cycle"
    stop: ExampleError | None = None

    def __init__(self, texts: Sequence[str | NoText]) -> None:
        self.texts = texts

    def write(self, requests: Sequence[RequestT], /) -> Iterator[tuple[RequestT, str | NoText]]:
        for index, item in enumerate(requests):
            yield item, self.texts[index % len(self.texts)]


def branch(
    action: str,
    observation: str = "Nothing happens.",
    proposer: str = "policy",
    step: int = 0,
    valid: bool | None = True,
    done: bool = False,
    outcome_class: str = "",
) -> ExecutedBranch:
    outcome = Outcome(action, observation, valid, done, outcome_class)
    return ExecutedBranch(StateRef(0, step), proposer, f"key of {action}", outcome)


def expert_branches(expert: ExpertTrajectory) -> list[ExecutedBranch]:
    """The expert's own action, executed in each state."""
    return [branch(item.action, proposer="expert", step=step) for step, item in enumerate(expert.steps)]


def trajectory(*actions: str, listed: bool = False) -> ExpertTrajectory:
    """An expert in a world of its own, which tells the number of the step."""
    steps = tuple(
        ExpertStep(f"Room {number}.", action, f"I think {number}.", (action, "sit down") if listed else None)
        for number, action in enumerate(actions)
    )
    return ExpertTrajectory("verl_ee/Household-v0", "1", "task 0", "Leave the house.", steps, "Garden.", True)


def situation(state: State, expert: ExecutedBranch, *others: ExecutedBranch) -> Situation:
    return Situation(StateRef(0, 0), state, expert.outcome.action, expert, others)


def written(to_explain: Situation) -> str:
    ((_, text),) = TemplateWriter().write([to_explain])
    return text
