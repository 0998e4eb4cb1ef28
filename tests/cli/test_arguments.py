"""The command line: what is mistyped ends with one message, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl_ee.cli.main import main

HOUSEHOLD = ("--env", "verl_ee/Household-v0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["experts", "record", *HOUSEHOLD, "-n", "2", "--first", "20000"], ["'train' has 10000 tasks", "20000"]),
        (["envs", "tasks", *HOUSEHOLD, "-n", "2", "--split", "seen:20000"], ["'seen' has 10000 tasks", "20000"]),
        (["experts", "record", *HOUSEHOLD, "-n", "2", "--kwarg", "size=[small"], ["--kwarg 'size=[small'", "not YAML"]),
        (["experts", "record", *HOUSEHOLD, "-n", "2", "--split", "tain"], ["no split 'tain'", "Did you mean 'train'"]),
    ],
)
def test_a_mistyped_argument_is_refused(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    for word in words:
        assert word in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["experts", "record"], ["envs", "tasks", "--split", "seen"]])
def test_a_folder_in_place_of_a_file_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *HOUSEHOLD, "-n", "2", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"{tmp_path}: Is a directory.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["experts", "record", *HOUSEHOLD, "-n", "2", "--out", "x", "--first", "-1"], ["inspect", "x", "--samples", "-1"]],
)
def test_a_negative_number_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "'-1' is not a number of at least 0" in capsys.readouterr().err


def test_the_end_of_a_split_ends_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", "record", *HOUSEHOLD, "-n", "5", "--first", "9998", "--out", str(tmp_path / "out")]) == 0
    assert "2 trajectories" in capsys.readouterr().out
