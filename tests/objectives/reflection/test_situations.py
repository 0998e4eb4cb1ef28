"""Situations: what the writer of a rationale is shown, and the transitions that a rationale rests on."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

import re

import pytest
from support.rationale_worlds import (
    HISTORY,
    Branched,
    branch,
    household,  # noqa: F401
    trajectory,
)

from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.files.parquet import read_table
from verl_ee.experience.store import TRANSITION_SCHEMA, TRANSITIONS
from verl_ee.objectives.reflection.situations import situations, writer_prompt
from verl_ee.prompts.text import state_text


def test_the_expert_s_own_action_is_never_among_the_alternatives(household: Branched) -> None:
    all_situations = household.situations()
    assert len(all_situations) == sum(len(item.steps) for item in household.trajectories)
    for item in all_situations:
        assert item.expert_action == household.trajectories[item.ref.trajectory].steps[item.ref.step].action
        assert item.expert_branch.outcome.action == item.expert_action
        assert len(item.alternatives) == 3
        assert item.expert_action not in {other.outcome.action for other in item.alternatives}


def test_an_alternative_that_is_the_expert_s_action_in_other_clothes_is_left_out() -> None:
    clothes = ["Open door", " open   door ", "OPEN\tDOOR", "open door"]
    branches = [branch("open door", proposer="expert"), *map(branch, clothes), branch("open window")]
    # An alternative that is left out does not count among the K.
    for k in (None, 1):
        (item,) = situations([trajectory("open door")], branches, HISTORY, k)
        assert [other.outcome.action for other in item.alternatives] == ["open window"]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 9, None])
def test_at_most_k_alternatives_are_shown_and_they_are_the_first(household: Branched, k: int | None) -> None:
    for item in household.situations(k):
        here = [executed for executed in household.branches if executed.ref == item.ref]
        others = [executed for executed in here if executed.proposer != "expert"]
        assert list(item.alternatives) == (others if k is None else others[:k])
        assert item.transitions == (here[0].transition, *(other.transition for other in item.alternatives))


def test_a_state_without_the_expert_s_outcome_is_left_out_and_none_at_all_is_refused(household: Branched) -> None:
    some = [executed for executed in household.branches if (executed.proposer, executed.ref.step) != ("expert", 1)]
    steps = {item.ref.step for item in situations(household.trajectories, some, HISTORY)}
    assert steps == {executed.ref.step for executed in household.branches} - {1}
    none = [executed for executed in household.branches if executed.proposer != "expert"]
    with pytest.raises(ExampleError, match="include_expert_transition=true"):
        situations(household.trajectories, none, HISTORY)


LEADING = r"expert|alternative|correct|right|best|optimal|chosen|selected|option|label|\bA\b\)"


def test_the_prompt_of_a_writer_holds_what_was_executed_and_no_word_that_leads_to_a_leak(household: Branched) -> None:
    for item in household.situations():
        system, user = writer_prompt(item)
        assert (system["role"], user["role"]) == ("system", "user")
        assert item.prompt == [system, user]
        text = f"{system['content']}\n{user['content']}"
        assert not re.search(LEADING, text, re.IGNORECASE)
        # A list that is numbered, or marked by points, is copied.
        assert not re.search(r"(?m)^\s*(?:\(?\d+[.):]|[-*\u2022])\s", text)
        assert not re.search(r"(?i)\b(?:action|choice) \d", text)
        assert user["content"].startswith(state_text(item.state))
        shown = user["content"].removeprefix(state_text(item.state)).splitlines()
        told = [f"{other.outcome.action}: {other.outcome.observation}" for other in item.alternatives]
        assert [line for line in shown if line in told] == told
        assert any(line.endswith(f": {item.expert_action}") for line in shown)
        for line in shown:
            # Every line with an outcome, or the line above the list, says that it is not to be told.
            if line.endswith(item.expert_branch.outcome.observation) and line not in told:
                assert "not to be told" in line


def test_without_alternatives_the_prompt_of_a_writer_has_the_expert_s_outcome_alone(household: Branched) -> None:
    item = household.situations(0)[0]
    text = writer_prompt(item)[1]["content"]
    assert text.count("not to be told") == 1
    assert item.expert_branch.outcome.observation in text
    assert "what else" not in text


@pytest.mark.parametrize("k", [0, 2, None])
def test_a_situation_traces_to_transitions_that_were_executed(household: Branched, k: int | None) -> None:
    rows = {row["key"]: row for row in read_table(household.folder / TRANSITIONS, TRANSITION_SCHEMA)}
    environment = Household()
    for item in household.situations(k)[::5]:
        expert = household.trajectories[item.ref.trajectory]
        assert len(item.transitions) == 1 + (3 if k is None else k)
        assert rows[item.transitions[0]]["action"] == expert.steps[item.ref.step].action
        for key in item.transitions:
            transition = rows[key]
            assert transition["task"] == expert.task
            assert transition["prefix"] == [step.action for step in expert.steps[: item.ref.step]]
            # The environment still answers what the store says.
            environment.reset(options={"task": transition["task"]})
            for action in transition["prefix"]:
                environment.step(action)
            assert environment.step(transition["action"])[0] == transition["observation"]
