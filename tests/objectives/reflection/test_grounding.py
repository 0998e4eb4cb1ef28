"""Names by which a rationale shows that its writer saw the situation, in worlds of words, letters and numbers."""

from __future__ import annotations

import pytest

from verl_ee.objectives.reflection.grounding import NAMED, SHORT, names, ungrounded
from verl_ee.objectives.reflection.situations import WRITER_INSTRUCTION, WRITER_SYSTEM

PEP_TALK = (
    "I need to think carefully about this, because every decision that I make has consequences for what comes later, "
    "and I want to be sure that I do my best."
)
SHOWN = "A hall with a lantern and a rusty gate.\nYou can:\nopen gate\nlook"
TOLD = "Task: find the crown\nBehind it lies a garden.\nThe lantern flickers."


def test_a_long_text_needs_two_names_and_a_short_one_needs_one() -> None:
    assert (NAMED, len(PEP_TALK.split()) > SHORT) == (2, True)
    assert ungrounded(PEP_TALK, "open gate", SHOWN, TOLD) == "names nothing of the state, the action or an outcome"
    assert ungrounded(f"{PEP_TALK} A lantern.", "open gate", SHOWN, TOLD) == (
        "names nothing of what is seen or done but 'lantern'"
    )
    assert ungrounded(f"{PEP_TALK} A lantern, a gate.", "open gate", SHOWN, TOLD) == ""
    assert ungrounded("The lantern is what I want.", "open gate", SHOWN, TOLD) == ""


def test_what_is_told_counts_beside_what_is_seen_and_not_alone() -> None:
    for told in ("A crown", "A garden", "It flickers"):
        assert ungrounded(f"{PEP_TALK} {told}, a lantern.", "open gate", SHOWN, TOLD) == ""
    assert ungrounded(f"{PEP_TALK} A crown, a garden.", "open gate", SHOWN, TOLD) == (
        "names only 'crown' and 'garden', of the task or an outcome, and nothing of what is seen or done"
    )


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("wait", "'wait' it is."),
        ("look", "`look` it is."),
        ("open gate", "I open the gate."),
        ("open gate", "Opening the gate it is."),
        ("open_gate(side='left')", "I call open_gate."),
        ("rm old.txt", "I do rm old.txt now."),
    ],
)
def test_a_text_that_names_its_action_needs_nothing_else(action: str, text: str) -> None:
    assert ungrounded(f"{PEP_TALK} {text}", action, "A hall.\nA lantern.", TOLD) == ""


@pytest.mark.parametrize("action", ["wait", "look", "go on", "look around"])
def test_everyday_words_name_no_action(action: str) -> None:
    text = f"{PEP_TALK} So I {action} and see."
    assert ungrounded(text, action, SHOWN, TOLD) == "names nothing of the state, the action or an outcome"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("drawers", "drawer"),
        ("opening", "open"),
        ("shelves' bulbs", "bulb"),
        ("putting the mugs", "mug"),
        ("carried", "carry"),
        ("The customer's", "customer"),
        ("moving a cube", "cubes"),
        ("Caf\u00e9s", "caf\u00e9"),
        ("\u0434\u0432\u0435\u0440\u044c", "\u0434\u0432\u0435\u0440\u044c"),
        ("B07XYZ1234", "click[b07xyz1234]"),
        ("$35.99", "It costs $35.99."),
    ],
)
def test_forms_of_a_word_are_one_name(said: str, shown: str) -> None:
    assert names(said) & names(shown)


def test_the_words_of_the_instruction_are_no_names_and_neither_are_numbers_of_a_list() -> None:
    assert names(f"{WRITER_SYSTEM} {WRITER_INSTRUCTION} {PEP_TALK} 1. 2) Step 3") == set()


def test_in_a_world_of_numbers_and_letters_these_are_names() -> None:
    shown = "4 7 8 8"
    text = f"{PEP_TALK} 7 minus 4 is 3, and 8 times 3 is 24."
    assert ungrounded(text, "8 * (7 - 4)", shown, "Task: reach 24") == ""
    assert ungrounded(PEP_TALK, "8 * (7 - 4)", shown, "Task: reach 24")


def test_scripts_without_spaces_are_compared_by_pairs_of_letters() -> None:
    shown = "\u4f60\u5728\u53a8\u623f\u3002\u51b0\u7bb1\u662f\u5173\u7740\u7684\u3002"
    action = "\u6253\u5f00\u51b0\u7bb1"
    grounded = "\u676f\u5b50\u53ef\u80fd\u5728\u51b0\u7bb1\u91cc\uff0c\u6240\u4ee5\u6211\u6253\u5f00\u5b83\u3002"
    assert ungrounded(grounded, action, shown, "") == ""
    assert ungrounded("\u6211\u60f3\u4e86\u5f88\u4e45\u3002", action, shown, "")


@pytest.mark.parametrize("shown", ["", "...", "I see it."])
def test_where_there_are_no_names_none_is_asked_for(shown: str) -> None:
    assert ungrounded(PEP_TALK, "go on", shown, "") == ""
