"""Recordings on disk: read back as they were written, for the same demonstrations alone, and refused if broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_ee.errors import ExampleError, ExampleFileError
from verl_ee.objectives.examples import Example
from verl_ee.objectives.files import recordings
from verl_ee.objectives.files.recordings import (
    COLUMN,
    Recording,
    check_failures,
    read_recording,
    read_responses,
    write_recording,
)

EXAMPLES = [
    Example((1, 2), (3, 4, 5), "imitation", provenance="row 0", learned=(True, False, True)),
    Example((), (6,), "imitation", provenance="row 2"),
]
RECORDING = Recording(EXAMPLES, ["row 1: it stopped"], 3)


def test_a_recording_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "recording.parquet"
    assert read_recording(path, "source") is None
    write_recording(path, RECORDING, "source")
    assert read_recording(path, "source") == RECORDING
    assert read_recording(path, "other source") is None


@pytest.mark.parametrize("damage", ["text", "plain", "schema"])
def test_a_broken_recording_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    path = tmp_path / "recording.parquet"
    if damage == "text":
        path.write_text("not Parquet")
    elif damage == "plain":
        pq.write_table(pa.table({"prompt": ["Guess."]}), path)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(recordings, "RECORDING", replace(recordings.RECORDING, version=9))
            write_recording(path, RECORDING, "source")
    message = r"verl_ee\.recording/9; this" if damage == "schema" else "no recording"
    with pytest.raises(ExampleFileError, match=rf"{message}.* Remove it; it is made again\."):
        read_recording(path, "source")


def test_too_many_failures_are_refused() -> None:
    path = Path("demonstrations.parquet")
    check_failures(RECORDING, path, 0.34)
    with pytest.raises(ExampleError, match=r"1 of 3 demonstrations of demonstrations\.parquet .*=0\.33 .*it stopped"):
        check_failures(RECORDING, path, 0.33)
    with pytest.raises(ExampleError, match="0 of 3"):
        check_failures(replace(RECORDING, examples=[], failed=[]), path, 1.0)


def test_the_responses_of_each_row_are_read(tmp_path: Path) -> None:
    path = tmp_path / "demonstrations.parquet"
    pq.write_table(pa.table({COLUMN: [["look", "go"], ["stop"]], "data_source": ["a", "b"]}), path)
    assert read_responses(path) == [["look", "go"], ["stop"]]
