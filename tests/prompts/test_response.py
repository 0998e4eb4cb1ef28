"""The way back from a response: an action is taken as written, and a listed one that is named loosely as listed."""

from __future__ import annotations

import random

import pytest

from verl_ee.envs.household.env import Household
from verl_ee.prompts.response import Response, listed_action, read_response, render_response

LISTED = ("look", "go to shelf 1", "go to shelf 10", "take box 1 from shelf 1", 'say "hi."')


@pytest.mark.parametrize(
    ("text", "action", "thought"),
    [
        ("Action: go to shelf 1", "go to shelf 1", ""),
        ("Action:go to shelf 1", "go to shelf 1", ""),
        ("\n  Action:   go  to shelf 1  \n", "go  to shelf 1", ""),
        ("The box is there.\nAction: take box 1", "take box 1", "The box is there."),
        ("One.\n\nTwo.\r\nAction: look\r\n", "look", "One.\n\nTwo."),
        ("Action: look\nNo, wait.\nAction: wait", "wait", "Action: look\nNo, wait."),
        ("Action: print(1)\nprint(2)", "print(1)\nprint(2)", ""),
        ("Action:\n\n    if x:\n        y()\n", "    if x:\n        y()", ""),
        ("Action: SELECT name FROM t WHERE city = 'Bob'", "SELECT name FROM t WHERE city = 'Bob'", ""),
        ("Action: cd ..", "cd ..", ""),
        ('Action: echo  "a  b"', 'echo  "a  b"', ""),
        ("Action: `look`", "`look`", ""),
        ("**Action:** look", "look", ""),
        ("**Action**: look", "look", ""),
        ("Action: **kwargs", "**kwargs", ""),
        ("**Action: look**", "look", ""),
        ("`Action: look`", "look", ""),
        ("- Action: look", "look", ""),
        ("1. Action: look", "look", ""),
        ("### Action: look", "look", ""),
        ("> Action: look", "look", ""),
        ("ACTION: look", "look", ""),
        ("Action: > log.txt", "> log.txt", ""),
        ("Action: **bold**", "**bold**", ""),
        ("Action: say: it is 3.5", "say: it is 3.5", ""),
        ("Action:", None, ""),
        ("Thinking.\nAction: \n ", None, "Thinking."),
        ("go to shelf 1", None, "go to shelf 1"),
        ("My Action: look", None, "My Action: look"),
        ("", None, ""),
        (" \n ", None, ""),
    ],
)
def test_where_nothing_is_listed_an_action_is_what_was_written(text: str, action: str | None, thought: str) -> None:
    assert read_response(text) == Response(action, thought)


@pytest.mark.parametrize(
    ("text", "action", "thought"),
    [
        ("Action: go to shelf 1", "go to shelf 1", ""),
        ("Action: Go to shelf 1.", "go to shelf 1", ""),
        ('Action: "go to  shelf 1"', "go to shelf 1", ""),
        ("I go.\nAction: **`go to shelf 1`**.", "go to shelf 1", "I go."),
        ("Action: go to shelf 10", "go to shelf 10", ""),
        ("Action: 2. go to shelf 1", "go to shelf 1", ""),
        # An observation that a model imagines behind a listed action is no part of it.
        ("Action: look\nOn shelf 1 you see nothing.", "look", ""),
        ('Action: say "hi."', 'say "hi."', ""),
        ("Action: # look", "# look", ""),
        ("action: look", "look", ""),
        ("look!", "look", ""),
        ("[look]", "look", ""),
        # Without the marker: a line of its own.
        ("go to shelf 1", "go to shelf 1", ""),
        ("GO TO SHELF 1", "go to shelf 1", ""),
        ("I think.\n\n- go to shelf 1\nThat is it.", "go to shelf 1", "I think."),
        ("3) `look`", "look", ""),
        ("look\nlook", "look", "look"),
        # Different ones, a part of a line, and nothing that is listed.
        ("look\ngo to shelf 1", None, "look\ngo to shelf 1"),
        ("I go to shelf 1", None, "I go to shelf 1"),
        ("1.\n\n**", None, "1.\n\n**"),
        # The marker comes first, even before what is not listed.
        ("look\nAction: dance", "dance", "look"),
        ("Action: 'dance'.\nsing", "'dance'.\nsing", ""),
    ],
)
def test_a_listed_action_is_taken_as_it_is_listed(text: str, action: str | None, thought: str) -> None:
    assert read_response(text, LISTED) == Response(action, thought)


def test_of_two_listed_actions_that_differ_in_little_the_exact_one_is_meant() -> None:
    listed = ("open Door", "open door", "open 'door'")
    for action in listed:
        assert listed_action(action, listed) == action
        assert read_response(f"Action: {action}", listed).action == action
    assert listed_action("OPEN DOOR", listed) is None
    assert read_response("OPEN DOOR", listed).action is None
    # Executed as it was written: the environment decides.
    assert read_response("Action: OPEN DOOR", listed).action == "OPEN DOOR"


def test_what_belongs_to_an_action_is_not_taken_for_punctuation() -> None:
    listed = ("cd", "cd .", "ls", "python")
    assert read_response("Action: cd ..", listed).action == "cd .."
    assert read_response("cd ..", listed).action is None
    assert read_response("Action: cd .", listed).action == "cd ."
    assert read_response("Action: > ls", listed).action == "> ls"
    assert read_response("Action: ls.", listed).action == "ls"


ACTIONS = [
    "SELECT name FROM t WHERE city = 'Bob'",
    "cd ..",
    'echo  "a  b"',
    "for row in rows:\n    print(row)",
    "    indented\n  less",
    '{"name": "find", "arguments": {"query": "a \\"b\\". "}}',
    "x = 1\n\n\ny = 2  # 'z'.",
    "***",
    "1. first",
    "- ",
]


@pytest.mark.parametrize("thought", [None, "I think.", "Action: no.\nThe point:\n- one\n\n"])
@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_survives_the_way_to_a_response_and_back(action: str, thought: str | None) -> None:
    response = read_response(render_response(action, thought))
    assert response.action == action.rstrip()
    assert response.thought == (thought or "").strip()


def test_every_action_of_the_household_survives_with_its_list() -> None:
    for task in ("train/0", "unseen/4"):
        for step in Household("large").expert_trajectory(task).steps:
            listed = step.admissible_actions or ()
            for action in listed:
                for written in (render_response(action), action, action.upper(), f"2. {action}.", f"**{action}**"):
                    assert read_response(written, listed) == Response(action)
                assert read_response(render_response(action, " I see.\nSo: "), listed) == Response(
                    action, "I see.\nSo:"
                )
                assert render_response(action, " \n") == render_response(action, None) == f"Action: {action}"


def test_no_text_breaks_the_reader() -> None:
    rng = random.Random(0)
    pieces = ["Action:", "action:", "**", "\n", "\r", "\x85", "\u2028", " ", '"', "'", ".", "`", "look", "1.", "\x00"]
    pieces += ["\u00e9", "\ud800", "- "]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(9)))
        for listed in (None, (), ("look", "\u00e9")):
            response = read_response(text, listed)
            assert response.action is None or response.action.rstrip() == response.action != ""
            assert response.thought.strip() == response.thought
