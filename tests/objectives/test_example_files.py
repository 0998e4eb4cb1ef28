"""The files of examples: read back as made, kept as long as nothing changes, and gone on with after a kill."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from support.stage_worlds import ENCODER, NO_LIMITS, text_of

from verl_ee.errors import ExampleError
from verl_ee.objectives.example_files import ExampleFiles, ExampleSet
from verl_ee.objectives.example_tables import EncodedPart, Part, PartEncoder
from verl_ee.objectives.examples import Example, LengthLimits
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


def parts_of(items: list[Row], size: int = 10) -> list[Part]:
    return [Part(items[start : start + size]) for start in range(0, len(items), size)]


def made(
    folder: Path, items: list[Row], die_at: int | None = None, limits: LengthLimits = NO_LIMITS, seed: int = 0
) -> tuple[ExampleSet, list[int]]:
    encode = Counted(PartEncoder(ENCODER, limits), die_at)
    files = ExampleFiles(folder, encode, {"seed": seed})
    return files.examples("stage", [], parts_of(items), len(items)), encode.encoded


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_examples_come_back_as_they_were_with_the_digest_of_earlier_versions(tmp_path: Path) -> None:
    encode = PartEncoder(ENCODER, NO_LIMITS)
    parts = [Part(EXAMPLES[:1]), Part(EXAMPLES[1:])]
    found = ExampleFiles(tmp_path, encode, {}).examples("stage", [], parts, len(EXAMPLES))
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
    # The first row of all is encoded once more, to see whether anything has changed.
    assert encoded == [1, 10, 10, 10, 5]
    again, encoded = made(tmp_path, rows(35))
    assert encoded == [1]
    assert list(again) == list(first)
    assert [text_of(example.target) for example in again] == [str(n) for n in range(35)]


@pytest.mark.parametrize("died", [1, 2, 3, 4])
def test_a_job_that_was_killed_goes_on_with_equal_bytes(tmp_path: Path, died: int) -> None:
    made(tmp_path / "whole", rows(35))
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "killed", rows(35), died)
    _, encoded = made(tmp_path / "killed", rows(35))
    assert encoded == [1, *[10, 10, 10, 5][died - 1 :]]
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


def test_other_rows_settings_or_sources_are_encoded_anew(tmp_path: Path) -> None:
    made(tmp_path, rows(35))
    source = tmp_path / "store"
    for changed in (
        lambda: made(tmp_path, rows(35, "other")),
        lambda: made(tmp_path, rows(25)),
        lambda: made(tmp_path, rows(25), seed=1),
    ):
        assert len(changed()[1]) > 1
        assert len(changed()[1]) == 1
    assert sorted(path.name for path in (tmp_path / "stage").iterdir()) == [
        "examples.json",
        *(f"part-0000{n}.arrow" for n in range(3)),
    ]
    files = ExampleFiles(tmp_path, encode := Counted(PartEncoder(ENCODER, NO_LIMITS)), {})
    for text, count in (("a", 3), ("a", 4), ("b", 7)):
        source.write_text(text)
        files.examples("sourced", [source], parts_of(rows(20)), 20)
        assert len(encode.encoded) == count


def test_what_is_too_long_is_counted_and_shown(tmp_path: Path) -> None:
    longest = len("user:row 9\n9")
    for _ in range(2):
        found, _ = made(tmp_path, rows(35), limits=LengthLimits(longest, longest, longest))
        assert (len(found), found.dropped) == (10, 25)
        assert found.shown == tuple(f"number {n}: {longest + 2} of {longest} tokens" for n in (10, 11, 12))


def test_files_that_are_broken_are_named(tmp_path: Path) -> None:
    made(tmp_path, rows(35))
    part = tmp_path / "stage/part-00001.arrow"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExampleError, match=r"part-00001\.arrow cannot be read.*Delete its folder"):
        made(tmp_path, rows(35))
    part.write_bytes(whole)
    header = tmp_path / "stage/examples.json"
    header.write_text(header.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ExampleError, match=r"examples\.json has schema 2; this verl_ee reads 1"):
        made(tmp_path, rows(35))


def test_token_ids_take_four_bytes(tmp_path: Path) -> None:
    long = [Example(tuple(range(1000)), tuple(range(1000)), "world_model") for _ in range(50)]
    ExampleFiles(tmp_path, PartEncoder(ENCODER, NO_LIMITS), {}).examples("stage", [], [Part(long)], 50)
    size = (tmp_path / "stage/part-00000.arrow").stat().st_size
    assert size < 1.05 * 4 * 50 * 2000
    allocated = pa.total_allocated_bytes()
    found = ExampleFiles(tmp_path, PartEncoder(ENCODER, NO_LIMITS), {}).examples("stage", [], [Part(long)], 50)
    assert found[49] == long[49]
    assert pa.total_allocated_bytes() - allocated < size / 4
