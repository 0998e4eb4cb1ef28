"""Texts are written once: a run that was killed or stopped goes on, whatever was written first."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.rationale_worlds import (
    GOOD,
    Scripted,
    household,  # noqa: F401
    twenty,  # noqa: F401
)

from verl_ee.errors import ExampleError, StoreError
from verl_ee.objectives import text_writing
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.reflection.rationales import RATIONALES_FILE, read_rationales, write_rationales
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.reflection.template_writer import TemplateWriter


def test_a_writer_that_was_killed_goes_on_and_writes_nothing_twice(
    twenty: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_writing, "BATCH", 6)
    refs = [item.ref for item in twenty]
    first, second, third = Scripted(GOOD, "No.", dies_at=1), Scripted(GOOD, "No.", dies_at=2), Scripted(GOOD, "No.")
    for writer, expected in ((first, refs[:6]), (second, refs[6:18])):
        with pytest.raises(KeyboardInterrupt):
            write_rationales(tmp_path / "killed", twenty, writer, tuple(GATES), 0.0)
        assert writer.requested == expected
        # What is not whole does not look as if it were.
        with pytest.raises(StoreError, match="missing"):
            read_rationales(tmp_path / "killed")
    resumed = write_rationales(tmp_path / "killed", twenty, third, tuple(GATES), 0.0)
    assert third.requested == refs[18:]
    straight = write_rationales(tmp_path / "straight", twenty, Scripted(GOOD, "No."), tuple(GATES), 0.0)
    assert resumed == straight
    assert (tmp_path / "killed" / RATIONALES_FILE).read_bytes() == (
        tmp_path / "straight" / RATIONALES_FILE
    ).read_bytes()


def test_a_writer_that_stops_keeps_what_it_wrote_and_the_next_one_writes_the_rest(
    twenty: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_writing, "BATCH", 6)
    refs = [item.ref for item in twenty]
    first, second = Scripted(GOOD, "No.", stops_at=9), Scripted(GOOD, "No.")
    with pytest.raises(ExampleError, match=r"That is enough\."):
        write_rationales(tmp_path, twenty, first, tuple(GATES), 0.0)
    assert first.requested == refs[:9]
    # It is not asked again within the run.
    assert first.calls == 2
    written = write_rationales(tmp_path, twenty, second, tuple(GATES), 0.0)
    assert second.requested == refs[9:]
    assert [item.ref for item in written] == refs


def test_rationales_come_in_the_order_of_the_situations_whatever_was_written_first(
    twenty: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_writing, "BATCH", 5)
    with pytest.raises(KeyboardInterrupt):
        write_rationales(tmp_path, twenty[10:], Scripted(GOOD, dies_at=1), (), 0.0)
    writer = Scripted(GOOD)
    everything = write_rationales(tmp_path, twenty, writer, (), 0.0)
    assert [item.ref for item in everything] == [item.ref for item in twenty]
    assert len(writer.requested) == 15


def test_a_writer_that_leaves_requests_out_is_refused(twenty: list[Situation], tmp_path: Path) -> None:
    class Lazy(TemplateWriter):
        def write(self, situations: Sequence[Situation]) -> Sequence[str]:
            return super().write(situations)[:-1]

    with pytest.raises(ExampleError, match=r"'template' gave 3 texts for 4 requests"):
        write_rationales(tmp_path, twenty[:4], Lazy(), tuple(GATES), 0.0)
