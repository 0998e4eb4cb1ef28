"""The command line: what is mistyped ends with one message, and nothing is written."""

from __future__ import annotations

import subprocess
import sys
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


@pytest.mark.parametrize(("old", "new"), [("--way", "--restore"), ("--facts", "--cache")])
@pytest.mark.parametrize("value", [["fork"], []])
def test_an_option_of_version_0_1_is_refused_with_its_new_name(
    old: str, new: str, value: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*HOUSEHOLD, "--experts", "experts.jsonl", "--out", str(tmp_path / "out"), old, *value]
    assert main(["collect", *arguments]) == 1
    assert capsys.readouterr().err == f"ConfigError: {old} is now called {new}. Use {new}.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [[], ["collect"], ["envs", "tasks"], ["experts", "record"], ["export"]])
def test_help_answers_without_heavy_packages(command: list[str]) -> None:
    code = (
        "import sys, contextlib, verl_ee.cli.main as cli\n"
        f"with contextlib.suppress(SystemExit): cli.main({[*command, '--help']!r})\n"
        "print({'verl', 'torch', 'ray', 'vllm', 'pyarrow', 'matplotlib', 'gymnasium'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"usage: verl-ee {' '.join(command)}".rstrip())
    assert shown.splitlines()[-1] == "set()"
    assert "--way" not in shown


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "verl_ee.cli", "experts", "check", "nowhere.jsonl"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("ExpertFileError: Expert file 'nowhere.jsonl' cannot be read")


def test_the_end_of_a_split_ends_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", "record", *HOUSEHOLD, "-n", "5", "--first", "9998", "--out", str(tmp_path / "out")]) == 0
    assert "2 trajectories" in capsys.readouterr().out
