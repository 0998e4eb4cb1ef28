"""Rationales on disk: kept with their reasons, gone on with after a kill, and refused when too few are accepted."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.rationale_worlds import (
    GOOD,
    HISTORY,
    Branched,
    Scripted,
    household,  # noqa: F401
)

from verl_ee.errors import ExampleError, StoreError
from verl_ee.objectives import text_writing as module
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.reflection.rationales import (
    RATIONALES_FILE,
    Rationale,
    gate_counts,
    read_rationales,
    write_rationale_file,
    write_rationales,
)
from verl_ee.objectives.reflection.situations import Situation, situations


@pytest.fixture
def found(household: Branched) -> list[Situation]:
    """Twenty situations of several trajectories."""
    return situations(household.trajectories, household.outcomes, HISTORY)[:20]


def test_rejected_rationales_are_kept_beside_accepted_ones_with_their_reasons(
    found: list[Situation], tmp_path: Path
) -> None:
    texts = (GOOD, "Too short.", f"The best action comes now. {GOOD}", f"{GOOD} {GOOD}")
    written = write_rationale_file(tmp_path, found, Scripted(*texts), tuple(GATES), 0.0)
    assert written == read_rationales(tmp_path)
    assert [(item.trajectory, item.step) for item in written] == [(item.trajectory, item.step) for item in found]
    assert [item.transitions for item in written] == [item.transitions for item in found]
    for item in written:
        gate, reason = [
            ("", ""),
            ("length", "has 2 words, fewer than 8"),
            ("label_words", "names the label: 'best action'"),
            ("repeated", "repeats a sentence: 'the task is clear to me and this brings it a little further'"),
        ][item.step % 4]
        assert (item.text, item.writer) == (texts[item.step % 4], "scripted")
        assert (item.gate, item.reason, item.accepted) == (gate, reason, not gate)
    assert sorted(path.name for path in tmp_path.iterdir()) == [RATIONALES_FILE]


def test_gates_that_are_not_asked_reject_nothing(found: list[Situation], tmp_path: Path) -> None:
    text = "The best action."
    assert {
        item.gate for item in write_rationale_file(tmp_path / "all", found, Scripted(GOOD, text), tuple(GATES), 0.0)
    } == {
        "",
        "length",
    }
    assert {
        item.gate for item in write_rationale_file(tmp_path / "one", found, Scripted(GOOD, text), ("label_words",), 0.0)
    } == {
        "",
        "label_words",
    }
    assert {item.gate for item in write_rationale_file(tmp_path / "none", found, Scripted(GOOD, text), (), 0.0)} == {""}


def test_a_writer_that_was_killed_goes_on_and_writes_nothing_twice(
    found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 6)
    places = [(item.trajectory, item.step) for item in found]
    first, second, third = Scripted(GOOD, "No.", dies_at=1), Scripted(GOOD, "No.", dies_at=2), Scripted(GOOD, "No.")
    for writer, asked in ((first, places[:6]), (second, places[6:18])):
        with pytest.raises(KeyboardInterrupt):
            write_rationale_file(tmp_path / "killed", found, writer, tuple(GATES), 0.0)
        assert writer.asked == asked
        # What is not whole does not look as if it were.
        with pytest.raises(StoreError, match="missing"):
            read_rationales(tmp_path / "killed")
    resumed = write_rationale_file(tmp_path / "killed", found, third, tuple(GATES), 0.0)
    assert third.asked == places[18:]
    straight = write_rationale_file(tmp_path / "straight", found, Scripted(GOOD, "No."), tuple(GATES), 0.0)
    assert resumed == straight
    assert (tmp_path / "killed" / RATIONALES_FILE).read_bytes() == (
        tmp_path / "straight" / RATIONALES_FILE
    ).read_bytes()


def test_a_writer_that_stops_keeps_what_it_wrote_and_the_next_one_writes_the_rest(
    found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 6)
    places = [(item.trajectory, item.step) for item in found]
    first, second = Scripted(GOOD, "No.", stops_at=9), Scripted(GOOD, "No.")
    with pytest.raises(ExampleError, match=r"That is enough\."):
        write_rationale_file(tmp_path, found, first, tuple(GATES), 0.0)
    assert first.asked == places[:9]
    # It is not asked again within the run.
    assert first.calls == 2
    written = write_rationale_file(tmp_path, found, second, tuple(GATES), 0.0)
    assert second.asked == places[9:]
    assert [(item.trajectory, item.step) for item in written] == places


def test_rationales_come_in_the_order_of_the_situations_whatever_was_written_first(
    found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    with pytest.raises(KeyboardInterrupt):
        write_rationale_file(tmp_path, found[10:], Scripted(GOOD, dies_at=1), (), 0.0)
    writer = Scripted(GOOD)
    everything = write_rationale_file(tmp_path, found, writer, (), 0.0)
    assert [(item.trajectory, item.step) for item in everything] == [(item.trajectory, item.step) for item in found]
    assert len(writer.asked) == 15


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_enough_accepted_rationales_pass(found: list[Situation], tmp_path: Path, share: float) -> None:
    half = [replace(item, step=number) for number, item in enumerate(found)]
    assert gate_counts(write_rationale_file(tmp_path, half, Scripted(GOOD, "No."), tuple(GATES), share)) == {
        "accepted": 10,
        "length": 10,
    }


@pytest.mark.parametrize(("texts", "share"), [((GOOD, "No."), 0.51), ((GOOD, "No."), 1.0), (("No.",), 0.0)])
def test_too_few_accepted_rationales_stop_the_run_and_all_of_them_are_on_disk(
    found: list[Situation], tmp_path: Path, texts: tuple[str, ...], share: float
) -> None:
    numbered = [replace(item, step=number) for number, item in enumerate(found)]
    with pytest.raises(ExampleError) as raised:
        write_rationale_file(tmp_path, numbered, Scripted(*texts), tuple(GATES), share)
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


def test_the_file_keeps_every_character(tmp_path: Path, found: list[Situation]) -> None:
    text = 'Caf\u00e9 "au lait"\n\tand\r\n \u6c34 \U0001f600 <|im_end|> \\n'
    write_rationale_file(tmp_path, found[:1], Scripted(text), (), 0.0)
    (item,) = read_rationales(tmp_path)
    assert item == Rationale(found[0].trajectory, found[0].step, text, "scripted", found[0].transitions)
    # But for the white space around it, which a target does not have either.
    (judged,) = write_rationales(found[:1], Scripted(f"\n {text}  \n"), ())
    assert judged == item


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        read_rationales(tmp_path)
    (tmp_path / RATIONALES_FILE).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(StoreError, match=RATIONALES_FILE):
        read_rationales(tmp_path)
