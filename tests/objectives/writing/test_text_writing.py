"""Texts are written once: a run that was killed or stopped goes on, whatever was written first."""

# ruff: noqa: F811  (fixtures come by import)
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.rationale_worlds import (
    GOOD,
    STATELESS_GATES,
    Scripted,
    household,  # noqa: F401
    twenty,  # noqa: F401
)

from verl_ee.errors import ExampleError, StoreError
from verl_ee.experience.files.parquet import read_table
from verl_ee.objectives.reflection.rationales import (
    RATIONALE_SCHEMA,
    RATIONALES_FILE,
    read_rationales,
    write_rationales,
)
from verl_ee.objectives.reflection.situations import Situation
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.writing import text_writing


def test_a_writer_that_was_killed_goes_on_and_writes_nothing_twice(
    twenty: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_writing, "PART", 6)
    refs = [item.ref for item in twenty]
    first, second, third = Scripted(GOOD, "No.", dies_at=7), Scripted(GOOD, "No.", dies_at=9), Scripted(GOOD, "No.")
    for writer, expected in ((first, refs[:7]), (second, refs[7:16])):
        with pytest.raises(KeyboardInterrupt):
            write_rationales(tmp_path / "killed", twenty, writer, STATELESS_GATES)
        assert writer.requested == expected
        # What is not whole does not look as if it were.
        with pytest.raises(StoreError, match="missing"):
            read_rationales(tmp_path / "killed")
    resumed = write_rationales(tmp_path / "killed", twenty, third, STATELESS_GATES)
    assert third.requested == refs[16:]
    straight = write_rationales(tmp_path / "straight", twenty, Scripted(GOOD, "No."), STATELESS_GATES)
    assert resumed == straight
    assert (tmp_path / "killed" / RATIONALES_FILE).read_bytes() == (
        tmp_path / "straight" / RATIONALES_FILE
    ).read_bytes()


def test_a_kill_without_warning_loses_less_than_a_part(
    twenty: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_writing, "PART", 6)
    on_disk: list[int] = []

    class Watching(TemplateWriter):
        def write(self, situations: Sequence[Situation], /) -> Iterator[tuple[Situation, str]]:
            for pair in super().write(situations):
                on_disk.append(sum(len(read_table(path, RATIONALE_SCHEMA)) for path in tmp_path.rglob("*.parquet")))
                yield pair

    write_rationales(tmp_path, twenty, Watching(), ())
    assert on_disk == [6 * (number // 6) for number in range(20)]


def test_a_writer_that_stops_keeps_what_it_wrote_and_the_next_one_writes_the_rest(
    twenty: list[Situation], tmp_path: Path
) -> None:
    refs = [item.ref for item in twenty]
    first, second = Scripted(GOOD, "No.", stops_at=9), Scripted(GOOD, "No.")
    with pytest.raises(ExampleError, match=r"That is enough\. 11 of 20 texts"):
        write_rationales(tmp_path, twenty, first, STATELESS_GATES)
    assert first.requested == refs[:9]
    written = write_rationales(tmp_path, twenty, second, STATELESS_GATES)
    assert second.requested == refs[9:]
    assert [item.ref for item in written] == refs


def test_rationales_come_in_the_order_of_the_situations_whatever_was_written_first(
    twenty: list[Situation], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_rationales(tmp_path, twenty[10:], Scripted(GOOD, dies_at=5), ())
    writer = Scripted(GOOD)
    everything = write_rationales(tmp_path, twenty, writer, ())
    assert [item.ref for item in everything] == [item.ref for item in twenty]
    assert len(writer.requested) == 15


def test_a_writer_that_leaves_requests_out_is_refused(twenty: list[Situation], tmp_path: Path) -> None:
    class Lazy(TemplateWriter):
        def write(self, situations: Sequence[Situation], /) -> Iterator[tuple[Situation, str]]:
            yield from list(super().write(situations))[:-1]

    with pytest.raises(ExampleError, match=r"'template' gave no text for 1 of 4 requests"):
        write_rationales(tmp_path, twenty[:4], Lazy(), STATELESS_GATES)
