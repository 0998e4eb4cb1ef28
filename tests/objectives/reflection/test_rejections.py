"""A run that stops because too few rationales pass: it shows some in full, and says what is likely to help."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.rationale_worlds import (
    GOOD,
    Cycle,
    household,  # noqa: F401
    twenty,  # noqa: F401
)

from verl_ee.errors import ExampleError
from verl_ee.experience.state_ref import StateRef
from verl_ee.objectives.reflection.rationales import Rationale, read_rationales, write_rationales
from verl_ee.objectives.reflection.rejections import check_accepted, rejected_counts
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.writing.text_writing import NoText, cut_off

LONG = "Dull texts go on. " * 300
CUT, UNSEEN = cut_off(64, "I see a"), cut_off(64)
TOO_LONG = NoText("its prompt has 900 tokens, and the servers take 800")
ELSEWHERE = NoText("the server's answer has no text")


def refusal(texts: Sequence[str | NoText], states: Sequence[Situation], folder: Path, share: float = 0.9) -> str:
    gates = ("length", "label_words", "repeated")
    rationales = write_rationales(folder, states, Cycle(texts), gates)
    with pytest.raises(ExampleError) as raised:
        check_accepted(rationales, share, folder)
    return str(raised.value)


def test_three_rejected_rationales_are_shown_in_full_and_empty_ones_last(
    twenty: list[Situation], tmp_path: Path
) -> None:
    message = refusal([UNSEEN, LONG, GOOD, "Two words.", f"The best action. {GOOD}"], twenty, tmp_path)
    shown = message.splitlines()[1:]
    assert len(shown) == 3
    assert shown[0] == f"  length: it has 1200 words, more than 500: {LONG.strip()!r}"
    assert shown[1] == "  length: it has 2 words, fewer than 8: 'Two words.'"
    assert shown[2] == f"  label_words: it names the label: 'best action': {f'The best action. {GOOD}'!r}"


def test_what_was_written_of_a_text_that_was_cut_off_is_shown(twenty: list[Situation], tmp_path: Path) -> None:
    message = refusal([TOO_LONG, CUT], twenty, tmp_path)
    assert message.splitlines()[1:] == ["  length: it has no end: cut off at max_tokens=64: 'I see a'"] * 3


@pytest.mark.parametrize(
    ("texts", "counted", "cause"),
    [
        ([CUT, CUT, CUT, "No."], "length 20 (15 cut off at max_tokens=64)", "Raise max_tokens of the writer"),
        (
            [TOO_LONG, TOO_LONG, CUT, GOOD],
            "length 15 (10 its prompt is too long, 5 cut off at max_tokens=64)",
            "Raise actor_rollout_ref.rollout.max_model_len",
        ),
        (
            [cut_off(900, "I see", "max_model_len"), GOOD],
            "length 10 (10 cut off at max_model_len=900)",
            "Raise actor_rollout_ref.rollout.max_model_len",
        ),
        (
            ["", "", ELSEWHERE, GOOD],
            "length 15 (10 empty, 5 the server's answer has no text)",
            "Most are empty or have no end (empty)",
        ),
        (["No.", "No.", CUT, GOOD], "length 15 (5 cut off at max_tokens=64)", "does not write what it is asked for"),
        ([f"{GOOD} {GOOD}"], "repeated 20", "The writer repeats itself"),
        ([f"The best action. {GOOD}"], "label_words 20", "Most fail the gate 'label_words'"),
    ],
)
def test_the_likely_cause_follows_from_what_most_were_rejected_for(
    texts: Sequence[str | NoText], counted: str, cause: str, twenty: list[Situation], tmp_path: Path
) -> None:
    message = refusal(texts, twenty, tmp_path)
    assert f"(rejected: {counted})" in message
    assert cause in message.splitlines()[0]
    assert rejected_counts(read_rationales(tmp_path)) == counted


def test_nothing_is_counted_where_all_rationales_pass(twenty: list[Situation], tmp_path: Path) -> None:
    assert rejected_counts(write_rationales(tmp_path, twenty, Cycle([GOOD]), ("length",))) == ""


def test_gates_of_another_version_are_counted_last() -> None:
    gates = ("polite", "", "length", "polite")
    rationales = [Rationale(StateRef(0, step), GOOD, "policy", (), gate, "why") for step, gate in enumerate(gates)]
    assert rejected_counts(rationales) == "length 1, polite 2"


def test_the_cause_of_a_missing_text_is_kept_with_its_rationale(twenty: list[Situation], tmp_path: Path) -> None:
    written = write_rationales(tmp_path, twenty[:3], Cycle([GOOD, CUT, TOO_LONG]), ("length",))
    assert written == read_rationales(tmp_path)
    assert [(item.text, item.reason) for item in written] == [
        (GOOD, ""),
        ("I see a", "has no end: cut off at max_tokens=64"),
        ("", f"is empty: {TOO_LONG.cause}"),
    ]
