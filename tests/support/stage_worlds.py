"""Expert trajectories with their branches and rationales, and the stage data of a configuration over them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from support.games import expert
from support.prompts import BARE_FORM

from verl_ee.config import EarlyExperienceConfig, PromptConfig
from verl_ee.config.checks import parse
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import Branch, Transition, read_branches, write_store
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.examples import LengthLimits
from verl_ee.objectives.files.example_files import ExampleFiles
from verl_ee.objectives.files.example_tables import PartEncoder
from verl_ee.objectives.reflection.rationales import write_rationales
from verl_ee.objectives.reflection.situations import situations
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.schedule import batches
from verl_ee.objectives.stage_data import StageData
from verl_ee.prompts.formats import prompt_format
from verl_ee.prompts.text import Message

LENGTH = 5
"""Steps of each trajectory here."""


def text_of(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def letters(messages: list[Message]) -> list[int]:
    return [ord(letter) for message in messages for letter in f"{message['role']}:{message['content']}\n"]


ENCODER = Encoder(letters, lambda messages, text: (letters(messages), list(map(ord, text))), list, str)


GROWING = replace(ENCODER, conversation=lambda messages, text: (letters(messages), letters([answer(text)])))
"""Another, whose conversations go on."""
NO_LIMITS = LengthLimits(100_000, 100_000, 100_000)
REACT_FORM = prompt_format(PromptConfig(format="react"))


def answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def files_in(folder: Path, encoder: Encoder = ENCODER, limits: LengthLimits = NO_LIMITS) -> ExampleFiles:
    """Examples that are made in a folder."""
    return ExampleFiles(folder / "encoded", PartEncoder(encoder, limits), asdict(limits))


def write_branches(
    folder: Path,
    trajectories: Sequence[ExpertTrajectory],
    valid: int,
    refused: int,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """A store with the expert's own outcome in each state, and so many alternatives that are taken or refused."""
    transitions, branches = [], []
    for index, trajectory in enumerate(trajectories):
        for step, expert_step in enumerate(trajectory.steps):
            others = [*(f"press {number}" for number in range(1, valid + 1)), *(f"jam {n}" for n in range(refused))]
            for order, action in enumerate([expert_step.action, *others]):
                key = f"{index} {step} {action}"
                outcome = Outcome(action, f"after {key}", valid=action[0] == "p", done=False)
                transitions.append(Transition(key, f"{index} {step}", trajectory.task, (), outcome))
                proposer = "admissible" if order else "expert"
                branches.append(Branch(StateRef(index, step), order, proposer, "", "", key))
    write_store(folder, transitions, branches, provenance or {})
    return folder


class World:
    """Expert trajectories, their branches and their rationales.

    Args:
        folder: of the store and the rationales.
        trajectories: how many.
        valid: alternatives per state that the environment takes.
        refused: alternatives per state that it refuses.
    """

    def __init__(self, folder: Path, trajectories: int = 4, valid: int = 3, refused: int = 0) -> None:
        self.folder = folder
        self.trajectories = [expert(f"game {number}", LENGTH) for number in range(trajectories)]
        self.states = trajectories * LENGTH
        self.store = write_branches(folder / "store", self.trajectories, valid, refused)
        self.branches = read_branches(self.store)

    def write_rationales(self, history_length: int = 8) -> None:
        to_explain = situations(self.trajectories, self.branches, history_length)
        write_rationales(self.folder, to_explain, TemplateWriter(), ())

    def stage_data(self, config: EarlyExperienceConfig, max_length: int = 100_000) -> StageData:
        stores = {"world_model": self.store, "reflection": self.store}
        limits = LengthLimits(max_length, max_length, max_length)
        form, encoder = (REACT_FORM, GROWING) if config.samples == "episode" else (BARE_FORM, ENCODER)
        # Of its own: no other configuration may find these examples.
        files = files_in(Path(tempfile.mkdtemp(dir=self.folder)), encoder, limits)
        return StageData(config, self.trajectories, form, files, stores, self.folder)


def config(
    stages: Mapping[str, Mapping[str, object]],
    writers: Mapping[str, Mapping[str, object]] | None = None,
    **world_model: Any,
) -> EarlyExperienceConfig:
    """A job whose stages learn the objective of their name, unless they say another."""
    defaults = {"epochs": 1, "lr": 1.0, "batch_size": 4}
    return parse(
        {
            "method": "test",
            "environment": {"id": "test/Game-v0"},
            "experts": "experts.jsonl",
            "collect": {"world_model": {}, "reflection": {}},
            "stages": {name: {"objectives": [name], **defaults, **keys} for name, keys in stages.items()},
            "writers": writers or {},
            "world_model": world_model,
        }
    )


def steps_taken(data: StageData, config: EarlyExperienceConfig, name: str) -> tuple[int, int]:
    """Examples of a stage, and the batches that a run of it takes."""
    examples = data.examples(name)
    steps = data.steps(name, len(examples))
    assert len(list(batches(config.stages[name], examples, steps))) == steps
    return len(examples), steps


def executed(observation: str, valid: bool | None = True, done: bool = False, step: int = 0) -> ExecutedBranch:
    """A branch with this observation."""
    outcome = Outcome("switch on lamp", observation, valid, done)
    return ExecutedBranch(StateRef(0, step), "admissible", "key", outcome)
