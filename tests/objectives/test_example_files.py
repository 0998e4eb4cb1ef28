"""The files of examples: read back as made, kept as long as nothing changes, and gone on with after a kill."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support.stage_worlds import ENCODER, NO_LIMITS, text_of

from verl_ee.errors import ExampleError
from verl_ee.objectives.examples import Example, LengthLimits
from verl_ee.objectives.files import example_files
from verl_ee.objectives.files.example_files import ExampleFiles, ExampleSet
from verl_ee.objectives.files.example_tables import EncodedPart, Part, PartEncoder
from verl_ee.objectives.rows import Row

EXAMPLES = [
    Example((1, 2), (3,), "imitation", provenance="first"),
    Example((), (4, 5, 6, 7), "reflection", 0.5, "second", (False, True, True, False)),
    Example((2**31 - 1,), (8, 9), "world_model", 2.0, "third", (True, True)),
    Example((1,), (), "imitation", provenance="fourth", learned=()),
]


@dataclass
class Counted:
    """Encodes, counts the parts, and dies before one of them."""

    encoder: PartEncoder
    die_at: int | None = None
    encoded: list[int] = field(default_factory=list)

    def __call__(self, parts: Iterable[Part]) -> Iterator[EncodedPart]:
        for part in parts:
            if len(self.encoded) == self.die_at:
                raise KeyboardInterrupt
            self.encoded.append(len(part.rows))
            yield self.encoder.encoded(part)


def rows(count: int, text: str = "row") -> list[Row]:
    return [
        Row(({"role": "user", "content": f"{text} {n}"},), f"{n}", "imitation", f"number {n}") for n in range(count)
    ]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_files, "PART_ROWS", 10)


def open_files(folder: Path, items: Sequence[Row | Example]) -> ExampleSet:
    files = ExampleFiles(folder, PartEncoder(ENCODER, NO_LIMITS), {})
    return files.examples("stage", [], {"imitation": lambda: items}, {"imitation": len(items)})


def made(
    folder: Path, items: list[Row], die_at: int | None = None, limits: LengthLimits = NO_LIMITS, seed: int = 0
) -> tuple[ExampleSet, list[int]]:
    encode = Counted(PartEncoder(ENCODER, limits), die_at)
    files = ExampleFiles(folder, encode.encoder, {"seed": seed}, encode)
    found = files.examples("stage", [], {"imitation": lambda: items}, {"imitation": len(items)})
    return found, encode.encoded


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_examples_come_back_as_they_were_with_the_digest_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_files, "PART_ROWS", 3)
    found = open_files(tmp_path, EXAMPLES)
    assert len(list((tmp_path / "stage").glob("*.arrow"))) == 2
    assert list(found) == EXAMPLES == list(ExampleSet.of(EXAMPLES))
    assert (found[-1], found[1:3]) == (EXAMPLES[-1], EXAMPLES[1:3])
    with pytest.raises(IndexError):
        found[4]
    sha = hashlib.sha256()
    for example in EXAMPLES:
        sha.update(f"{example.objective} {example.weight} {len(example.prompt)} {len(example.target)} ".encode())
        sha.update(array("q", example.prompt + example.target).tobytes())
        sha.update(bytes(example.learned or ()))
    assert found.digest == ExampleSet.of(EXAMPLES).digest == sha.hexdigest()


def test_a_second_job_opens_what_the_first_one_encoded(tmp_path: Path) -> None:
    first, encoded = made(tmp_path, rows(35))
    assert encoded == [10, 10, 10, 5]
    again, encoded = made(tmp_path, rows(35))
    assert encoded == []
    assert list(again) == list(first)
    assert [text_of(example.target) for example in again] == [str(n) for n in range(35)]


@pytest.mark.parametrize("died", [0, 1, 2, 3])
def test_a_job_that_was_killed_goes_on_with_equal_bytes(tmp_path: Path, died: int) -> None:
    made(tmp_path / "whole", rows(35))
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "killed", rows(35), died)
    _, encoded = made(tmp_path / "killed", rows(35))
    assert encoded == [10, 10, 10, 5][died:]
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


def test_other_rows_settings_or_sources_are_encoded_anew(tmp_path: Path) -> None:
    made(tmp_path, rows(35))
    for items, seed in ((rows(35, "other"), 0), (rows(25), 0), (rows(25), 1)):
        assert made(tmp_path, items, seed=seed)[1]
        assert not made(tmp_path, items, seed=seed)[1]
    names = ["examples.json", *(f"part-0000{n}.arrow" for n in range(3))]
    assert sorted(path.name for path in (tmp_path / "stage").iterdir()) == names
    encode, source = Counted(PartEncoder(ENCODER, NO_LIMITS)), tmp_path / "store"
    files = ExampleFiles(tmp_path, encode.encoder, {}, encode)
    for text, count in (("a", 2), ("a", 2), ("b", 4)):
        source.write_text(text)
        files.examples("sourced", [source], {"imitation": lambda: rows(20)}, {"imitation": 20})
        assert len(encode.encoded) == count


def test_a_row_that_changes_behind_its_name_is_noticed_in_every_objective(tmp_path: Path) -> None:
    """Also where it is not the first, and where it is over a limit."""
    limits = LengthLimits(5, 5, 5)

    def encoded(*changed: int) -> list[int]:
        first, second = rows(20), [replace(row, objective="world_model") for row in rows(20)]
        for index in changed:
            second[index] = replace(second[index], target="changed")
        encode = Counted(PartEncoder(ENCODER, limits))
        files = ExampleFiles(tmp_path, encode.encoder, {}, encode)
        made_of = {"imitation": lambda: first, "world_model": lambda: second}
        files.examples("joint", [], made_of, {"imitation": 20, "world_model": 20})  # type: ignore[arg-type]
        return encode.encoded

    assert encoded() == [10] * 4
    assert encoded() == []
    assert encoded(0) == [10] * 4
    assert encoded(9) == [10] * 4


def test_what_is_too_long_is_counted_and_shown(tmp_path: Path) -> None:
    longest = len("user:row 9\n9")
    for _ in range(2):
        found, _ = made(tmp_path, rows(35), limits=LengthLimits(longest, longest, longest))
        assert (len(found), found.dropped) == (10, 25)
        assert found.shown == tuple(f"number {n}: {longest + 2} of {longest} tokens" for n in (10, 11, 12))


def test_a_part_that_is_cut_off_is_made_again(tmp_path: Path) -> None:
    before, _ = made(tmp_path, rows(35))
    examples, content = list(before), written(tmp_path)
    part = tmp_path / "stage/part-00001.arrow"
    for kept in (0, 100, len(content[part.name]) // 2):
        part.unlink()
        part.write_bytes(content[part.name][:kept])
        again, encoded = made(tmp_path, rows(35))
        assert encoded == [10, 10, 5]
        assert (list(again), again.digest, written(tmp_path)) == (examples, before.digest, content)


def test_a_header_of_another_version_is_refused(tmp_path: Path) -> None:
    made(tmp_path, rows(35))
    header = tmp_path / "stage/examples.json"
    header.write_text(header.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ExampleError, match=r"examples\.json has schema 2; this verl_ee reads 1"):
        made(tmp_path, rows(35))


def test_token_ids_take_four_bytes(tmp_path: Path) -> None:
    long = [Example(tuple(range(1000)), tuple(range(1000)), "world_model") for _ in range(10)]
    open_files(tmp_path, long)
    size = (tmp_path / "stage/part-00000.arrow").stat().st_size
    assert size < 1.1 * 4 * 10 * 2000


def test_what_is_shown_of_a_dropped_example_may_have_several_lines(tmp_path: Path) -> None:
    row = replace(rows(1)[0], provenance="one\ntwo")
    for _ in range(2):
        found, _ = made(tmp_path, [row], limits=LengthLimits(1, 1, 1))
        assert found.shown == (f"one\ntwo: {len('user:row 0') + 2} of 1 tokens",)
