"""Two experts with branches and rationales, the rows that they export, and what is said of files that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.jobs import ROOT
from support.prompts import TOLD_FORM
from transformers import AutoTokenizer

import verl_ee.plugin  # noqa: F401  (makes the flag known, as verl does)
from verl_ee.cli.exported_rows import config_of_files, rows_of
from verl_ee.cli.main import main
from verl_ee.config import CollectConfig, EnvironmentConfig, Objective
from verl_ee.config.group import compose
from verl_ee.envs.household.env import Household
from verl_ee.errors import EarlyExperienceError
from verl_ee.experience.expert_files import ExpertFile, load_experts, write_experts
from verl_ee.experience.files.parquet import write_table
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.provenance import provenance_of
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import Branch, Transition, read_branches, state_key, transition_key, write_store
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.examples import Example, encode
from verl_ee.objectives.reflection.rationales import RATIONALE_SCHEMA, RATIONALES_FILE, Rationale, read_rationales
from verl_ee.objectives.rows import Row, imitation_rows, reflection_rows, world_model_rows
from verl_ee.trainer.rollout.tokens import encoder_for

ID = "verl_ee/Household-v0"
ENVIRONMENT = EnvironmentConfig(id=ID)
MODEL = ROOT / "examples/tiny_base/model"
HISTORY = 3
THREE = ("expert_sft.jsonl", "iwm_sft.jsonl", "reflection_sft.jsonl")
THOUGHT = "Søk … \u2028\x85 <|im_end|>\n\n'quoted' \"twice\""
Item = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Encoder:
    return encoder_for(tokenizer, "qwen2", {})


@pytest.fixture
def experts(tmp_path: Path) -> ExpertFile:
    trajectories = [Household().expert_trajectory(f"train/{index}") for index in range(2)]
    first, *others = trajectories[0].steps
    trajectories[0] = replace(trajectories[0], steps=(replace(first, thought=THOUGHT), *others))
    write_experts(tmp_path / "experts.jsonl", trajectories)
    return load_experts(tmp_path / "experts.jsonl", ID)


@pytest.fixture
def store(tmp_path: Path, experts: ExpertFile) -> Path:
    """At every state the expert's own action and one that is refused."""
    transitions, branches = [], []
    for index, trajectory in enumerate(experts.trajectories):
        state = state_key({"id": ID, "version": "1", "kwargs": {}}, trajectory.task, None, ())
        later = [*(step.observation for step in trajectory.steps[1:]), trajectory.final_observation]
        for step, (expert_step, observation) in enumerate(zip(trajectory.steps, later, strict=True)):
            prefix = tuple(step.action for step in trajectory.steps[:step])
            expert_outcome = Outcome(expert_step.action, observation, valid=True, done=False)
            refused = Outcome("fly", "You cannot fly. <|im_end|> é", valid=False, done=False)
            for order, outcome in enumerate([expert_outcome, refused]):
                key = transition_key(state, outcome.action)
                transitions.append(Transition(key, state, trajectory.task, prefix, outcome))
                proposer = "admissible" if order else "expert"
                branches.append(Branch(StateRef(index, step), order, proposer, "", "", key))
            state = transition_key(state, expert_step.action)
    provenance = provenance_of(ENVIRONMENT, CollectConfig(), experts)
    write_store(tmp_path / "store", transitions, branches, provenance)
    return tmp_path / "store"


@pytest.fixture
def reflections(tmp_path: Path, experts: ExpertFile) -> Path:
    """An accepted rationale for every state, and a rejected one besides."""
    refs = [
        StateRef(index, step)
        for index, trajectory in enumerate(experts.trajectories)
        for step in range(len(trajectory.steps))
    ]
    rationales = [Rationale(ref, f"I think of {ref} … <|im_end|>", "me", ("a",)) for ref in refs]
    rationales.append(Rationale(StateRef(0, 0), "too short", "me", ("a",), "length", "is short"))
    rows = [rationale.to_row() for rationale in rationales]
    write_table(tmp_path / "run" / RATIONALES_FILE, rows, RATIONALE_SCHEMA, {})
    return tmp_path / "run"


@pytest.fixture
def rows(experts: ExpertFile, store: Path, reflections: Path) -> dict[Objective, list[Row]]:
    return exported(experts, store, reflections)


@pytest.fixture
def examples(experts: ExpertFile, store: Path, reflections: Path, encoder: Encoder) -> dict[Objective, list[Example]]:
    """What a job builds."""
    trajectories = experts.trajectories
    rows: dict[Objective, Iterable[Row]] = {
        "imitation": imitation_rows(trajectories, HISTORY, TOLD_FORM),
        "world_model": world_model_rows(trajectories, read_branches(store), HISTORY, TOLD_FORM),
        "reflection": reflection_rows(trajectories, read_rationales(reflections), HISTORY, TOLD_FORM),
    }
    return {objective: list(encode(items, encoder)) for objective, items in rows.items()}


def exported(
    experts: ExpertFile,
    store: Path | None = None,
    reflections: Path | None = None,
    environment: EnvironmentConfig = ENVIRONMENT,
) -> dict[Objective, list[Row]]:
    config = config_of_files(environment, experts.path, store, reflections, [f"history_length={HISTORY}"])
    rows = rows_of(config, reflections or experts.path.parent)
    return {objective: list(items) for objective, items in rows.items()}


def states_of(experts: ExpertFile) -> int:
    return sum(len(trajectory.steps) for trajectory in experts.trajectories)


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def lines_of(path: Path) -> list[Item]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, *items: object) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def turn(role: str, content: str = "text") -> Item:
    return {"role": role, "content": content}


def conversation(*roles: str) -> Item:
    return {"messages": [turn(role, f"{role} {index}") for index, role in enumerate(roles)]}


def keys_of(method: str, **values: Any) -> Item:
    """The keys of a shipped method, some of them set."""
    keys = OmegaConf.to_container(compose(method).early_experience)
    assert isinstance(keys, dict)
    return keys | {"environment": {"id": ID}, "experts": "e.jsonl", "history_length": HISTORY} | values


def refusal(error: type[EarlyExperienceError], call: Callable[[], object]) -> str:
    """The message of a refusal: one line, and nothing chained to it."""
    with pytest.raises(error) as raised:
        call()
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message
