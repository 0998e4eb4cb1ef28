"""The text form: every stage renders a state the same way, and a prompt says how to answer."""

from __future__ import annotations

import pytest
from support.prompts import BARE, BARE_FORM, TOLD, TOLD_FORM

from verl_ee.config import PromptConfig
from verl_ee.prompts.builtin import OUTCOME_CLOSE, OUTCOME_OPEN
from verl_ee.prompts.response import read_response
from verl_ee.prompts.state import State, Turn
from verl_ee.prompts.state_text import state_text
from verl_ee.prompts.text import TextFormat

STATE = State(
    "put the box on the desk",
    (Turn("You are in a house.", "go to shelf 1"), Turn("On shelf 1 you see nothing.", "go to stool 1")),
    "On stool 1 you see a box 1.",
    ("look", "take box 1 from stool 1"),
)


def test_policy_and_world_model_see_the_same_state() -> None:
    policy, model = BARE_FORM.policy_prompt(STATE), BARE_FORM.world_model_prompt(STATE, "look")
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
    system, user = TOLD_FORM.policy_prompt(STATE)
    assert system == {"role": "system", "content": TOLD_FORM.system}
    assert user["content"] == f"{state_text(STATE)}\n\n{TOLD_FORM.instruction}"
    assert TOLD_FORM.instruction.splitlines()[-1] == "Action: <your next action>"
    assert TextFormat(PromptConfig(system="", instruction="Go.")).policy_prompt(STATE) == [
        {"role": "user", "content": f"{state_text(STATE)}\n\nGo."}
    ]
    # The world model is not told how to act.
    assert TOLD_FORM.instruction not in BARE_FORM.world_model_prompt(STATE, "look")[1]["content"]


def test_an_environment_that_lists_nothing_is_told_apart_from_an_empty_list() -> None:
    silent, stuck = State("t", (), "o"), State("t", (), "o", ())
    assert BARE_FORM.policy_prompt(silent)[1]["content"] == "Task: t\no"
    assert BARE_FORM.policy_prompt(stuck)[1]["content"] == "Task: t\no\nYou can:"
    assert BARE_FORM.policy_prompt(State("", (), "o"))[1]["content"] == "o"


def test_different_states_are_rendered_differently() -> None:
    states = [
        STATE,
        State("other", STATE.history, STATE.observation, STATE.admissible_actions),
        State(STATE.task, STATE.history[1:], STATE.observation, STATE.admissible_actions),
        State(STATE.task, STATE.history, "other", STATE.admissible_actions),
        State(STATE.task, STATE.history, STATE.observation, ("look",)),
        State(STATE.task, STATE.history, STATE.observation, None),
    ]
    assert len({BARE_FORM.policy_prompt(state)[1]["content"] for state in states}) == len(states)


@pytest.mark.parametrize("prompt", [BARE, TOLD])
def test_the_world_model_is_asked_and_answers_in_its_own_way(prompt: PromptConfig) -> None:
    policy, model = (
        TextFormat(prompt).policy_prompt(STATE)[0]["content"],
        BARE_FORM.world_model_prompt(STATE, "look")[0]["content"],
    )
    assert policy != model
    assert policy not in model
    assert model not in policy
    target = BARE_FORM.outcome("You see\na box.")
    assert target.startswith(OUTCOME_OPEN)
    assert target.endswith(OUTCOME_CLOSE)
    assert target.removeprefix(OUTCOME_OPEN).removesuffix(OUTCOME_CLOSE).strip() == "You see\na box."
    assert read_response(target, STATE.admissible_actions).action is None
    assert OUTCOME_OPEN not in BARE_FORM.response("look", "I see a box.")
