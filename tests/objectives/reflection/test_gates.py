"""Every gate against rationales written by hand: leaks that it has to find, and look-alikes that it has to let pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verl_ee.objectives.reflection.gates import GATES, MAX_WORDS, MIN_WORDS, RationaleDraft, first_rejection

FOLDER = Path(__file__).parent / "rationales"


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


DRAFTS = {
    name: RationaleDraft(
        "",
        given["state"],
        given["action"],
        given["outcome"],
        tuple(given["alternatives"]),
        tuple(given.get("outcomes", ())),
    )
    for name, given in read("situations").items()
}
REJECTED = [(gate, *case) for gate in GATES for case in read(gate)["rejected"]]
PASSED = [(gate, *case) for gate in GATES for case in read(gate)["passed"]]


@pytest.mark.parametrize(("gate", "situation", "text", "quoted"), REJECTED)
def test_a_gate_rejects_what_leaks_and_quotes_it(gate: str, situation: str, text: str, quoted: str) -> None:
    draft = replace(DRAFTS[situation], text=text)
    reason = GATES[gate](draft)
    assert quoted in reason
    assert first_rejection(draft, [gate]) == (gate, reason)


@pytest.mark.parametrize(("gate", "situation", "text"), PASSED)
def test_a_gate_lets_pass_what_only_looks_like_a_leak(gate: str, situation: str, text: str) -> None:
    assert GATES[gate](replace(DRAFTS[situation], text=text)) == ""


def test_every_file_of_cases_has_its_gate() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*GATES, "situations"}


def test_every_gate_has_cases_of_both_kinds() -> None:
    for gate in GATES:
        rejected, passed = read(gate)["rejected"], read(gate)["passed"]
        assert min(len(rejected), len(passed)) >= 20
        # No case is there twice.
        assert len({tuple(case[:2]) for case in [*rejected, *passed]}) == len(rejected) + len(passed)


@pytest.mark.parametrize(("words", "passes"), [(MIN_WORDS - 1, False), (MIN_WORDS, True), (MAX_WORDS, True)])
def test_length_counts_words_within_its_bounds(words: int, passes: bool) -> None:
    text = " ".join(["door"] * words)
    given = DRAFTS["drawer"]
    assert (not GATES["length"](replace(given, text=text))) == passes
    # A dash between words is none.
    assert (not GATES["length"](replace(given, text=text.replace(" ", " - ")))) == passes
    assert GATES["length"](replace(given, text=f"{text} door")) == (
        f"has {MAX_WORDS + 1} words, more than {MAX_WORDS}" if words == MAX_WORDS else ""
    )


def test_the_first_gate_that_rejects_is_named_in_the_order_that_was_given() -> None:
    draft = replace(DRAFTS["drawer"], text="Option 2: the best action.\nAction: look")
    # It is short, names the label and the number of an option, takes an action, and could be about anything.
    assert [name for name in GATES if GATES[name](draft)] == [
        "length",
        "label_words",
        "numbered_options",
        "other_action",
        "grounded",
    ]
    order = list(GATES)
    for _ in order:
        order = [*order[1:], order[0]]
        expected = next(name for name in order if GATES[name](draft))
        assert first_rejection(draft, order) == (expected, GATES[expected](draft))
    assert first_rejection(draft, ["repeated"]) == first_rejection(draft, []) == ("", "")


PLAIN = "I have thought about what is asked for, and this is a step in that direction which costs little."


@pytest.mark.parametrize("situation", DRAFTS)
def test_a_plain_thought_passes_every_gate_in_every_situation_if_it_names_the_action(situation: str) -> None:
    draft = DRAFTS[situation]
    text = PLAIN.replace("this", f"'{draft.expert_action}'")
    assert first_rejection(replace(draft, text=text)) == ("", "")
    assert first_rejection(replace(draft, text=PLAIN)) == (
        "grounded",
        "names nothing of the state, the action or an outcome",
    )


ODD = [
    "",
    "(",
    "[a](b)*+?\\",
    "Action:",
    "\u6c34 \U0001f600",
    "a\x00b",
    "'",
    "...",
    "search[<b>]",
    "1.",
    "if",
    "x" * 3000,
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_no_text_breaks_a_gate(odd: str) -> None:
    for draft in (
        RationaleDraft(odd, odd, odd, odd, (odd,), (odd,)),
        RationaleDraft(PLAIN, odd, odd, odd, (odd, odd), (odd, odd)),
        RationaleDraft(f"{PLAIN} {odd} {PLAIN[:-1]} too.", PLAIN, PLAIN, PLAIN, (PLAIN,), (PLAIN,)),
    ):
        for gate in GATES.values():
            assert isinstance(gate(draft), str)
    # What cannot be said in words is no reason to reject a rationale that does not say it.
    draft = RationaleDraft(PLAIN, odd, odd, odd, (odd,), (odd,))
    without_names = not any(map(str.isalnum, odd)) or odd in ("Action:", "if")
    rejecting = "" if without_names else "grounded"
    assert first_rejection(draft)[0] == rejecting


def test_what_the_agent_sees_may_be_said() -> None:
    given = DRAFTS["product"]
    text = "Option 2 says large on this page, and the best choice for a large shopper is a large cardigan."
    unseen = replace(given, text=text, state_text="Task: buy a cardigan")
    seen = replace(given, text=text, state_text="Task: buy a cardigan\nOption 2: large\nBest choice: this one")
    assert [GATES[gate](seen) for gate in ("numbered_options", "label_words")] == ["", ""]
    assert "'Option 2'" in GATES["numbered_options"](unseen)
    assert "'best choice'" in GATES["label_words"](unseen)


def test_an_outcome_that_the_state_shows_already_may_be_told() -> None:
    given = DRAFTS["heat"]
    text = "The bowl is hot, so there is nothing left to do but to put it away."
    assert "bowl is hot" in GATES["outcome_as_seen"](replace(given, text=text))
    assert GATES["outcome_as_seen"](replace(given, text=text, state_text=f"{given.state_text}\nbowl 1 is hot.")) == ""
