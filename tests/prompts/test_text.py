"""The text form: every stage renders a state the same way, and a response gives back its action."""

from __future__ import annotations

import random

import pytest

from verl_ee.envs.household.env import Household
from verl_ee.prompts.actions import canonical
from verl_ee.prompts.state import State, Turn
from verl_ee.prompts.text import (
    OUTCOME_CLOSE,
    OUTCOME_OPEN,
    Response,
    parse_response,
    render_outcome,
    render_policy,
    render_response,
    render_world_model,
)

STATE = State(
    "put the box on the desk",
    (Turn("You are in a house.", "go to shelf 1"), Turn("On shelf 1 you see nothing.", "go to stool 1")),
    "On stool 1 you see a box 1.",
    ("look", "take box 1 from stool 1"),
)


@pytest.mark.parametrize(
    ("text", "action", "thought"),
    [
        ("Action: go to shelf 1", "go to shelf 1", ""),
        ("Action:go to shelf 1", "go to shelf 1", ""),
        ("\n  Action:   go  to shelf 1  \n", "go to shelf 1", ""),
        ("The box is there.\nAction: take box 1", "take box 1", "The box is there."),
        ("One.\n\nTwo.\r\nAction: look\r\n", "look", "One.\n\nTwo."),
        ("Action: look\nNo, wait.\nAction: wait", "wait", "Action: look\nNo, wait."),
        ("Action: look\nThat is all.", "look", ""),
        ('Action: "go to shelf 1"', "go to shelf 1", ""),
        ("Action: 'go to shelf 1.'", "go to shelf 1", ""),
        ("Action: `look`", "look", ""),
        ("Action: go to shelf 1.", "go to shelf 1", ""),
        ("Action: say: it is 3.5", "say: it is 3.5", ""),
        ("Action:", None, ""),
        ('Thinking.\nAction: "."', None, "Thinking."),
        ("go to shelf 1", None, "go to shelf 1"),
        ("My Action: look", None, "My Action: look"),
        ("", None, ""),
        (" \n ", None, ""),
    ],
)
def test_a_response_is_taken_apart(text: str, action: str | None, thought: str) -> None:
    assert parse_response(text) == Response(action, thought)


def test_every_action_of_the_household_survives_the_way_to_a_response_and_back() -> None:
    for task in ("train/0", "unseen/4"):
        for step in Household("large").expert_trajectory(task).steps:
            for action in step.admissible_actions or ():
                assert canonical(action) == action
                assert parse_response(render_response(action)) == Response(action)
                assert parse_response(render_response(action, " I see.\nSo: ")) == Response(action, "I see.\nSo:")
                assert render_response(action, " \n") == render_response(action, None) == f"Action: {action}"


def test_no_text_breaks_the_parser() -> None:
    rng = random.Random(0)
    pieces = [
        "Action:",
        "action:",
        "\n",
        "\r",
        "\x85",
        "\u2028",
        " ",
        '"',
        "'",
        ".",
        "`",
        "look",
        "\x00",
        "é",
        "\ud800",
    ]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(9)))
        response = parse_response(text)
        assert response.action is None or response.action.strip() == response.action != ""
        assert response.thought.strip() == response.thought


def test_policy_and_world_model_see_the_same_state() -> None:
    policy, model = render_policy(STATE), render_world_model(STATE, "look")
    assert [message["role"] for message in policy] == [message["role"] for message in model] == ["system", "user"]
    assert model[1]["content"] == f"{policy[1]['content']}\nAction: look"
    lines = policy[1]["content"].splitlines()
    assert lines == [
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


def test_an_environment_that_lists_nothing_is_told_apart_from_an_empty_list() -> None:
    silent, stuck = State("t", (), "o"), State("t", (), "o", ())
    assert render_policy(silent)[1]["content"] == "Task: t\no"
    assert render_policy(stuck)[1]["content"] == "Task: t\no\nYou can:"


def test_different_states_are_rendered_differently() -> None:
    states = [
        STATE,
        State("other", STATE.history, STATE.observation, STATE.admissible_actions),
        State(STATE.task, STATE.history[1:], STATE.observation, STATE.admissible_actions),
        State(STATE.task, STATE.history, "other", STATE.admissible_actions),
        State(STATE.task, STATE.history, STATE.observation, ("look",)),
        State(STATE.task, STATE.history, STATE.observation, None),
    ]
    assert len({render_policy(state)[1]["content"] for state in states}) == len(states)


def test_the_world_model_is_asked_and_answers_in_its_own_way() -> None:
    policy, model = render_policy(STATE)[0]["content"], render_world_model(STATE, "look")[0]["content"]
    assert policy != model
    assert policy not in model
    assert model not in policy
    target = render_outcome("You see\na box.")
    assert target.startswith(OUTCOME_OPEN)
    assert target.endswith(OUTCOME_CLOSE)
    assert target.removeprefix(OUTCOME_OPEN).removesuffix(OUTCOME_CLOSE).strip() == "You see\na box."
    assert parse_response(target).action is None
    assert OUTCOME_OPEN not in render_response("look", "I see a box.")
