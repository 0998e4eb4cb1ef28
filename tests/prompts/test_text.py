"""The text form: every stage renders a state the same way, and a prompt says how to answer."""

from __future__ import annotations

import pytest
from support.prompts import BARE, TOLD

from verl_ee.config import PromptConfig
from verl_ee.prompts.response import read_response
from verl_ee.prompts.state import State, Turn
from verl_ee.prompts.text import (
    OUTCOME_CLOSE,
    OUTCOME_OPEN,
    render_outcome,
    render_policy,
    render_response,
    render_world_model,
    state_text,
)

STATE = State(
    "put the box on the desk",
    (Turn("You are in a house.", "go to shelf 1"), Turn("On shelf 1 you see nothing.", "go to stool 1")),
    "On stool 1 you see a box 1.",
    ("look", "take box 1 from stool 1"),
)


def test_policy_and_world_model_see_the_same_state() -> None:
    policy, model = render_policy(STATE, BARE), render_world_model(STATE, "look")
    assert [message["role"] for message in policy] == [message["role"] for message in model] == ["system", "user"]
    assert model[1]["content"] == f"{policy[1]['content']}\nAction: look"
    assert policy[1]["content"] == state_text(STATE)
    assert policy[1]["content"].splitlines() == [
        "Task: put the box on the desk",
        "You are in a house.",
        "> go to shelf 1",
        "On shelf 1 you see nothing.",
        "> go to stool 1",
        "On stool 1 you see a box 1.",
        "You can:",
        "look",
        "take box 1 from stool 1",
    ]


def test_a_prompt_says_how_to_answer_unless_the_job_says_otherwise() -> None:
    system, user = render_policy(STATE, TOLD)
    assert system == {"role": "system", "content": TOLD.system}
    assert user["content"] == f"{state_text(STATE)}\n\n{TOLD.instruction}"
    assert TOLD.instruction.splitlines()[-1] == "Action: <your next action>"
    assert render_policy(STATE, PromptConfig(system="", instruction="Go.")) == [
        {"role": "user", "content": f"{state_text(STATE)}\n\nGo."}
    ]
    # The world model is not told how to act.
    assert TOLD.instruction not in render_world_model(STATE, "look")[1]["content"]


def test_an_environment_that_lists_nothing_is_told_apart_from_an_empty_list() -> None:
    silent, stuck = State("t", (), "o"), State("t", (), "o", ())
    assert render_policy(silent, BARE)[1]["content"] == "Task: t\no"
    assert render_policy(stuck, BARE)[1]["content"] == "Task: t\no\nYou can:"
    assert render_policy(State("", (), "o"), BARE)[1]["content"] == "o"


def test_different_states_are_rendered_differently() -> None:
    states = [
        STATE,
        State("other", STATE.history, STATE.observation, STATE.admissible_actions),
        State(STATE.task, STATE.history[1:], STATE.observation, STATE.admissible_actions),
        State(STATE.task, STATE.history, "other", STATE.admissible_actions),
        State(STATE.task, STATE.history, STATE.observation, ("look",)),
        State(STATE.task, STATE.history, STATE.observation, None),
    ]
    assert len({render_policy(state, BARE)[1]["content"] for state in states}) == len(states)


@pytest.mark.parametrize("prompt", [BARE, TOLD])
def test_the_world_model_is_asked_and_answers_in_its_own_way(prompt: PromptConfig) -> None:
    policy, model = render_policy(STATE, prompt)[0]["content"], render_world_model(STATE, "look")[0]["content"]
    assert policy != model
    assert policy not in model
    assert model not in policy
    target = render_outcome("You see\na box.")
    assert target.startswith(OUTCOME_OPEN)
    assert target.endswith(OUTCOME_CLOSE)
    assert target.removeprefix(OUTCOME_OPEN).removesuffix(OUTCOME_CLOSE).strip() == "You see\na box."
    assert read_response(target, STATE.admissible_actions).action is None
    assert OUTCOME_OPEN not in render_response("look", "I see a box.")
