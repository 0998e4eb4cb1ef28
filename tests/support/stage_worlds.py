"""Expert trajectories with their branches and rationales, and the curriculum of a configuration over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.games import expert

from verl_ee.config import EarlyExperienceConfig
from verl_ee.config.checks import parse
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import Branch, ExecutedBranch, Transition, read_branches, write_store
from verl_ee.objectives.examples import Encoder
from verl_ee.objectives.reflection.rationales import write_rationale_file
from verl_ee.objectives.reflection.situations import situations
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.schedule import batches
from verl_ee.objectives.stage_data import StageData
from verl_ee.prompts.text import Message

LENGTH = 5
"""Steps of each trajectory here."""


def text_of(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def letters(messages: list[Message]) -> list[int]:
    return [ord(letter) for message in messages for letter in f"{message['role']}:{message['content']}\n"]


ENCODER = Encoder(letters, lambda text: list(map(ord, text)))


def write_branches(folder: Path, trajectories: Sequence[ExpertTrajectory], valid: int, refused: int) -> Path:
    """A store with the expert's own outcome in each state, and so many alternatives that are taken or refused."""
    facts, branches = [], []
    for index, trajectory in enumerate(trajectories):
        for step, given in enumerate(trajectory.steps):
            others = [*(f"press {number}" for number in range(1, valid + 1)), *(f"jam {n}" for n in range(refused))]
            for order, action in enumerate([given.action, *others]):
                key = f"{index} {step} {action}"
                seen = f"after {key}"
                proposer = "admissible" if order else "expert"
                outcome = Outcome(action, seen, valid=action[0] == "p", done=False)
                facts.append(Transition(key, f"{index} {step}", trajectory.task, (), outcome))
                branches.append(Branch(StateRef(index, step), order, proposer, "", "", key))
    write_store(folder, facts, branches, {})
    return folder


class World:
    """Expert trajectories, their branches and their rationales.

    Args:
        folder: for what is on disk.
        trajectories: how many.
        valid: alternatives per state that the environment takes.
        refused: and those that it refuses.
    """

    def __init__(self, folder: Path, trajectories: int = 4, valid: int = 3, refused: int = 0) -> None:
        self.folder = folder
        self.trajectories = [expert(f"game {number}", LENGTH) for number in range(trajectories)]
        self.states = trajectories * LENGTH
        self.store = write_branches(folder / "store", self.trajectories, valid, refused)
        self.outcomes = read_branches(self.store)

    def reflect(self, history_length: int = 8) -> None:
        found = situations(self.trajectories, self.outcomes, history_length)
        write_rationale_file(self.folder, found, TemplateWriter(), (), 0.0)

    def curriculum(self, config: EarlyExperienceConfig, max_length: int = 100_000) -> StageData:
        stores = {"world_model": self.store, "reflection": self.store}
        return StageData(config, self.trajectories, ENCODER, stores, self.folder, max_length)


def config(stages: dict[str, dict[str, Any]], **world_model: Any) -> EarlyExperienceConfig:
    collect: dict[str, Any] = {"world_model": {}, "reflection": {}}
    given = {name: {"objectives": [name], "epochs": 1, "lr": 1.0, "batch_size": 4} | stages[name] for name in stages}
    return parse(
        {
            "method": "test",
            "environment": {"id": "test/Game-v0"},
            "experts": "experts.jsonl",
            "collect": collect,
            "stages": given,
            "world_model": world_model,
        }
    )


def steps_taken(curriculum: StageData, given: EarlyExperienceConfig, name: str) -> tuple[int, int]:
    """Examples of a stage, and the batches that a run of it takes."""
    examples = curriculum.examples(name).examples
    steps = curriculum.steps(name, len(examples))
    assert len(list(batches(given.stages[name], examples, steps))) == steps
    return len(examples), steps


def result(observation: str, valid: bool = True, done: bool = False, step: int = 0) -> ExecutedBranch:
    """What an action led to."""
    return ExecutedBranch(
        StateRef(0, step), "admissible", "key", Outcome("switch on lamp", observation, valid, done)
    )
