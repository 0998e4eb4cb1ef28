"""Rationales on disk: kept with their reasons, and refused when too few are accepted."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.rationale_worlds import (
    GOOD,
    STATELESS_GATES,
    Cycle,
    Scripted,
    household,  # noqa: F401
    twenty,  # noqa: F401
)

from verl_ee.errors import ExampleError, StoreError
from verl_ee.experience.state_ref import StateRef
from verl_ee.objectives.reflection.rationales import (
    RATIONALES_FILE,
    Rationale,
    gate_counts,
    read_rationales,
    write_rationales,
)
from verl_ee.objectives.reflection.rejections import check_accepted
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.writing.text_writing import NoText, cut_off


def test_rejected_rationales_are_kept_beside_accepted_ones_with_their_reasons(
    twenty: list[Situation], tmp_path: Path
) -> None:
    texts = (GOOD, "Too short.", f"The best action comes now. {GOOD}", f"{GOOD} {GOOD}")
    written = write_rationales(tmp_path, twenty, Scripted(*texts), STATELESS_GATES)
    assert written == read_rationales(tmp_path)
    assert [item.ref for item in written] == [item.ref for item in twenty]
    assert [item.transitions for item in written] == [item.transitions for item in twenty]
    for item in written:
        gate, reason = [
            ("", ""),
            ("length", "has 2 words, fewer than 8"),
            ("label_words", "names the label: 'best action'"),
            ("repeated", "repeats a sentence: 'the task is clear to me and this brings it a little further'"),
        ][item.ref.step % 4]
        assert (item.text, item.writer) == (texts[item.ref.step % 4], "scripted")
        assert (item.gate, item.reason, item.accepted) == (gate, reason, not gate)
    assert sorted(path.name for path in tmp_path.iterdir()) == [RATIONALES_FILE]


@pytest.mark.parametrize(
    ("gates", "rejecting"), [(STATELESS_GATES, {"length"}), (("label_words",), {"label_words"}), ((), set())]
)
def test_gates_that_are_not_asked_reject_nothing(
    gates: tuple[str, ...], rejecting: set[str], twenty: list[Situation], tmp_path: Path
) -> None:
    rationales = write_rationales(tmp_path, twenty, Scripted(GOOD, "The best action."), gates)
    assert {item.gate for item in rationales} == {"", *rejecting}


@pytest.mark.parametrize("gates", [(), ("repeated",), ("length",)])
def test_a_text_that_is_none_is_rejected_by_any_gates(
    gates: tuple[str, ...], twenty: list[Situation], tmp_path: Path
) -> None:
    texts = (
        "",
        " \n",
        "... -- !",
        cut_off(64, f" {GOOD} And"),
        NoText("its request failed"),
        NoText("gone", "\n...\n"),
    )
    written = write_rationales(tmp_path, twenty[:7], Cycle([*texts, GOOD]), gates)
    assert written == read_rationales(tmp_path)
    assert [(item.gate, item.reason, item.text) for item in written] == [
        ("length", "is empty", ""),
        ("length", "is empty", ""),
        ("length", "is empty", "... -- !"),
        ("length", "has no end: cut off at max_tokens=64", f"{GOOD} And"),
        ("length", "is empty: its request failed", ""),
        ("length", "is empty: gone", "..."),
        ("", "", GOOD),
    ]
    assert [item.accepted for item in written] == [False] * 6 + [True]


def test_gates_of_another_version_are_counted_last() -> None:
    gates = ("polite", "repeated", "polite", "", "length", "brief")
    rationales = [Rationale(StateRef(0, step), GOOD, "policy", (), gate, "why") for step, gate in enumerate(gates)]
    counts = {"accepted": 1, "length": 1, "repeated": 1, "polite": 2, "brief": 1}
    assert list(gate_counts(rationales).items()) == list(counts.items())


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_enough_accepted_rationales_pass(twenty: list[Situation], tmp_path: Path, share: float) -> None:
    half = [replace(item, ref=StateRef(0, number)) for number, item in enumerate(twenty)]
    rationales = write_rationales(tmp_path, half, Scripted(GOOD, "No."), STATELESS_GATES)
    check_accepted(rationales, share, tmp_path)
    assert gate_counts(rationales) == {"accepted": 10, "length": 10}


@pytest.mark.parametrize(("texts", "share"), [((GOOD, "No."), 0.51), ((GOOD, "No."), 1.0), (("No.",), 0.0)])
def test_too_few_accepted_rationales_stop_the_run_and_all_of_them_are_on_disk(
    twenty: list[Situation], tmp_path: Path, texts: tuple[str, ...], share: float
) -> None:
    numbered = [replace(item, ref=StateRef(0, number)) for number, item in enumerate(twenty)]
    rationales = write_rationales(tmp_path, numbered, Scripted(*texts), STATELESS_GATES)
    with pytest.raises(ExampleError) as raised:
        check_accepted(rationales, share, tmp_path)
    accepted = 10 if GOOD in texts else 0
    message = str(raised.value)
    for part in (
        f"{accepted} of 20",
        f"length {20 - accepted}",
        f"early_experience.reflection.min_accepted={share:g}",
        str(tmp_path / RATIONALES_FILE),
        "it has 1 words, fewer than 8: 'No.'",
    ):
        assert part in message
    assert message.count("'No.'") == 3
    assert gate_counts(read_rationales(tmp_path))["length"] == 20 - accepted


def test_the_file_keeps_every_character(tmp_path: Path, twenty: list[Situation]) -> None:
    text = 'Caf\u00e9 "au lait"\n\tand\r\n \u6c34 \U0001f600 <|im_end|> \\n'
    write_rationales(tmp_path, twenty[:1], Scripted(text), ())
    (item,) = read_rationales(tmp_path)
    assert item == Rationale(twenty[0].ref, text, "scripted", twenty[0].transitions)
    # But for the white space around it, which a target does not have either.
    (spaced,) = write_rationales(tmp_path / "spaced", twenty[:1], Scripted(f"\n {text}  \n"), ())
    assert spaced == item


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        read_rationales(tmp_path)
    (tmp_path / RATIONALES_FILE).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(StoreError, match=RATIONALES_FILE):
        read_rationales(tmp_path)
