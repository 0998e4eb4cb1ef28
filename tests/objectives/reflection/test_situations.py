"""Reflection: what a writer is shown, what an example holds, and what a rationale rests on."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from support.rationale_worlds import (
    GOOD,
    HISTORY,
    Branched,
    Scripted,
    household,  # noqa: F401
    outcome,
    trajectory,
)

from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.store import TRANSITION_SCHEMA, TRANSITIONS
from verl_ee.objectives.examples import Encoder, Example, imitation, reflection, world_model
from verl_ee.objectives.reflection.rationales import gate_counts, write_rationales
from verl_ee.objectives.reflection.situations import Situation, situations, writer_prompt
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.prompts.actions import canonical
from verl_ee.prompts.text import POLICY_SYSTEM, WORLD_MODEL_SYSTEM, Message, parse_response, render_policy, state_text


@dataclass
class Recorder:
    """Encodes nothing, and keeps what it was given."""

    prompts: list[list[Message]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    def prompt(self, messages: list[Message]) -> list[int]:
        self.prompts.append(list(messages))
        return [1]

    def target(self, text: str) -> list[int]:
        self.targets.append(text)
        return [2]

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.prompt, self.target)

    @property
    def contents(self) -> list[str]:
        """All that was read, prompt by prompt."""
        return ["\n".join(f"{message['role']}:{message['content']}" for message in prompt) for prompt in self.prompts]


def prompts_of(examples: Sequence[Example], recorder: Recorder) -> list[str]:
    assert len(examples) == len(recorder.prompts) == len(recorder.targets)
    return recorder.contents


# What a writer is shown


def test_the_expert_s_own_action_is_never_among_the_alternatives(household: Branched) -> None:
    found = situations(household.trajectories, household.outcomes, HISTORY)
    assert len(found) == sum(len(item.steps) for item in household.trajectories)
    for item in found:
        assert item.action == household.trajectories[item.trajectory].steps[item.step].action
        assert item.outcome.action == item.action
        assert len(item.alternatives) == 3
        assert canonical(item.action) not in {canonical(other.action) for other in item.alternatives}


def test_an_alternative_that_is_the_expert_s_action_in_other_clothes_is_left_out() -> None:
    clothes = ["'open door'", " open   door.", '"open door."', "open door", "`open door`"]
    branches = [outcome("open door", proposer="expert"), *map(outcome, clothes), outcome("open window")]
    (found,) = situations([trajectory("open door")], branches, HISTORY)
    assert [other.action for other in found.alternatives] == ["open window"]
    # What is left out takes no place of the K.
    (found,) = situations([trajectory("open door")], branches, HISTORY, k=1)
    assert [other.action for other in found.alternatives] == ["open window"]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 9, None])
def test_at_most_k_alternatives_are_shown_and_they_are_the_first(household: Branched, k: int | None) -> None:
    for item in situations(household.trajectories, household.outcomes, HISTORY, k):
        place = (item.trajectory, item.step)
        here = [branch for branch in household.outcomes if (branch.trajectory, branch.step) == place]
        others = [branch for branch in here if branch.proposer != "expert"]
        assert list(item.alternatives) == (others if k is None else others[:k])
        assert item.transitions == (here[0].transition, *(other.transition for other in item.alternatives))


def test_a_state_without_the_expert_s_outcome_is_left_out_and_none_at_all_is_refused(household: Branched) -> None:
    lost = [branch for branch in household.outcomes if (branch.proposer, branch.step) != ("expert", 1)]
    found = situations(household.trajectories, lost, HISTORY)
    assert {item.step for item in found} == {branch.step for branch in household.outcomes} - {1}
    alone = [branch for branch in household.outcomes if branch.proposer != "expert"]
    with pytest.raises(ExampleError, match="include_expert_transition=true"):
        situations(household.trajectories, alone, HISTORY)


LEADING = r"expert|alternative|correct|right|best|optimal|chosen|selected|option|label|\bA\b\)"


def test_the_prompt_of_a_writer_holds_what_was_executed_and_no_word_that_leads_to_a_leak(household: Branched) -> None:
    for item in situations(household.trajectories, household.outcomes, HISTORY):
        system, user = writer_prompt(item)
        assert (system["role"], user["role"]) == ("system", "user")
        text = f"{system['content']}\n{user['content']}"
        assert not re.search(LEADING, text, re.IGNORECASE)
        # A list that is numbered, or marked by points, is copied.
        assert not re.search(r"(?m)^\s*(?:\(?\d+[.):]|[-*\u2022])\s", text)
        assert not re.search(r"(?i)\b(?:action|choice) \d", text)
        assert user["content"].startswith(state_text(item.state))
        shown = user["content"].removeprefix(state_text(item.state)).splitlines()
        told = [f"{other.action}: {other.observation}" for other in item.alternatives]
        assert [line for line in shown if line in told] == told
        assert any(line.endswith(f": {item.action}") for line in shown)
        for line in shown:
            # Every line with an outcome, or the line above the list, says that it is not to be told.
            if line.endswith(item.outcome.observation) and line not in told:
                assert "not to be told" in line


def test_without_alternatives_the_prompt_of_a_writer_has_the_expert_s_outcome_alone(household: Branched) -> None:
    (item, *_) = situations(household.trajectories, household.outcomes, HISTORY, 0)
    text = writer_prompt(item)[1]["content"]
    assert text.count("not to be told") == 1
    assert item.outcome.observation in text
    assert "what else" not in text


# What an example holds


def test_no_alternative_and_no_outcome_is_in_the_input_of_a_reflection() -> None:
    expert = trajectory("open door", "walk out")
    branches = [
        outcome("open door", "OUTCOME one", "expert"),
        outcome("ALTERNATIVE one", "OUTCOME two"),
        outcome("walk out", "OUTCOME three", "expert", step=1),
        outcome("ALTERNATIVE two", "OUTCOME four", step=1),
    ]
    reflections = write_rationales(situations([expert], branches, HISTORY), Scripted(f"ALTERNATIVE OUTCOME {GOOD}"), ())
    recorder = Recorder()
    read = prompts_of(list(reflection([expert], reflections, recorder.encoder, HISTORY)), recorder)
    assert len(read) == 2
    for text in read:
        assert "ALTERNATIVE" not in text
        assert "OUTCOME" not in text
        assert "RATIONALE" not in text
    # The words are there to be found: the targets have them.
    assert all("ALTERNATIVE OUTCOME" in target for target in recorder.targets)


def test_the_three_objectives_render_a_state_equally(household: Branched) -> None:
    reflections = write_rationales(situations(household.trajectories, household.outcomes, HISTORY), TemplateWriter())
    places = [(index, step) for index, item in enumerate(household.trajectories) for step in range(len(item.steps))]
    states = [expert_states(household.trajectories[index], HISTORY)[step] for index, step in places]
    imitated, reflected, modelled = Recorder(), Recorder(), Recorder()
    prompts_of(list(imitation(household.trajectories, imitated.encoder, HISTORY)), imitated)
    prompts_of(list(reflection(household.trajectories, reflections, reflected.encoder, HISTORY)), reflected)
    prompts_of(list(world_model(household.trajectories, household.outcomes, modelled.encoder, HISTORY)), modelled)
    assert imitated.prompts == [render_policy(state) for state in states]
    assert reflected.prompts == imitated.prompts
    by_place = dict(zip(places, states, strict=True))
    for branch, (system, user) in zip(household.outcomes, modelled.prompts, strict=True):
        shown = state_text(by_place[branch.trajectory, branch.step])
        assert user["content"] == f"{shown}\nAction: {branch.action}"
        assert render_policy(by_place[branch.trajectory, branch.step])[1]["content"] == shown
        assert system == {"role": "system", "content": WORLD_MODEL_SYSTEM}


def test_no_row_of_the_world_model_has_the_system_prompt_of_the_policy(household: Branched) -> None:
    recorder = Recorder()
    read = prompts_of(
        list(world_model(household.trajectories, household.outcomes, recorder.encoder, HISTORY)), recorder
    )
    assert POLICY_SYSTEM != WORLD_MODEL_SYSTEM
    assert not any(POLICY_SYSTEM in text for text in [*read, *recorder.targets])
    for branch, target in zip(household.outcomes, recorder.targets, strict=True):
        # A delimited target cannot be taken for an action.
        assert target == f"<observation> {branch.observation} </observation>"
        assert parse_response(target).action is None


TEXTS = [
    GOOD,
    f"  {GOOD}\n\n",
    f"{GOOD}\n{GOOD}",
    f"{GOOD}\nAction: dance",
    "Action: dance",
    f"Action: dance\nAction: sing\n{GOOD}",
    f"{GOOD} Action:",
    "<observation> Garden. </observation>",
    "<|im_end|> Bonjour \u00e7a va \U0001f600",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_target_is_the_rationale_and_then_the_expert_s_action_whatever_was_written(text: str) -> None:
    expert = trajectory("open door", "walk out")
    branches = [outcome(step.action, proposer="expert", step=number) for number, step in enumerate(expert.steps)]
    recorder = Recorder()
    reflections = write_rationales(situations([expert], branches, HISTORY), Scripted(text), ())
    examples = list(reflection([expert], reflections, recorder.encoder, HISTORY))
    assert [example.objective for example in examples] == ["reflection", "reflection"]
    for step, target in zip(expert.steps, recorder.targets, strict=True):
        assert target == (f"{text.strip()}\n" if text.strip() else "") + f"Action: {step.action}"
        assert parse_response(target).action == step.action
        # The expert's own thought is not mixed into a reflection.
        assert step.thought not in target


def test_only_accepted_rationales_become_examples() -> None:
    expert = trajectory("open door", "walk out", "close door")
    branches = [outcome(step.action, proposer="expert", step=number) for number, step in enumerate(expert.steps)]
    reflections = write_rationales(
        situations([expert], branches, HISTORY), Scripted(GOOD, "Too short.", f"Well, {GOOD}")
    )
    assert [item.gate for item in reflections] == ["", "length", ""]
    assert gate_counts(reflections) == {"accepted": 2, "length": 1}
    recorder = Recorder()
    examples = list(reflection([expert], reflections, recorder.encoder, HISTORY))
    assert recorder.targets == [f"{GOOD}\nAction: open door", f"Well, {GOOD}\nAction: close door"]
    assert [example.provenance for example in examples] == [
        "trajectory 0, step 0, scripted",
        "trajectory 0, step 2, scripted",
    ]


@pytest.mark.parametrize("k", [0, 2, None])
def test_a_rationale_traces_to_transitions_that_were_executed(household: Branched, k: int | None) -> None:
    facts = {row["key"]: row for row in read_table(household.folder / TRANSITIONS, TRANSITION_SCHEMA)}
    reflections = write_rationales(situations(household.trajectories, household.outcomes, HISTORY, k), TemplateWriter())
    environment = Household()
    for item in reflections[::5]:
        expert = household.trajectories[item.trajectory]
        assert len(item.transitions) == 1 + (3 if k is None else k)
        assert facts[item.transitions[0]]["action"] == expert.steps[item.step].action
        for key in item.transitions:
            fact = facts[key]
            assert fact["task"] == expert.task
            assert fact["prefix"] == [step.action for step in expert.steps[: item.step]]
            # What the store says happens, happens.
            environment.reset(options={"task": fact["task"]})
            for action in fact["prefix"]:
                environment.step(action)
            assert environment.step(fact["action"])[0] == fact["observation"]


def test_a_writer_that_leaves_situations_out_is_refused(household: Branched) -> None:
    class Lazy(TemplateWriter):
        def write(self, situations: Sequence[Situation]) -> Sequence[str]:
            return super().write(situations)[:-1]

    found = situations(household.trajectories, household.outcomes, HISTORY)[:4]
    with pytest.raises(ExampleError, match=r"'template' gave 3 texts for 4 requests"):
        write_rationales(found, Lazy())
