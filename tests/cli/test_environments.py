"""Commands on environments and experts: listed, tried, recorded and checked."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import rooms
from support.report_runs import cells

from verl_ee.cli.main import main
from verl_ee.experience.expert_files import load_experts
from verl_ee.experience.open_parts import open_parts

ID = "verl_ee/Household-v0"


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    path = tmp_path / "experts.jsonl"
    assert main(["experts", "record", "--env", ID, "-n", "2", "--kwarg", "max_steps=40", "--out", str(path)]) == 0
    return path


def test_environments_are_listed_with_their_capabilities(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    assert "expert" in cells(capsys.readouterr().out, ID)[-1]


def test_experts_are_recorded_and_checked(experts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trajectories = load_experts(experts, ID, {"max_steps": 40}).trajectories
    capsys.readouterr()
    assert main(["experts", "check", str(experts)]) == 0
    steps = sum(len(trajectory.steps) for trajectory in trajectories)
    assert capsys.readouterr().out == f"2 trajectories, {steps} steps, 2 solved\n"


def test_a_recorded_file_names_the_module_and_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "rooms.jsonl"
    said_by_expert = rooms.Rooms().expert_trajectory("2")
    assert said_by_expert.environment == rooms.BARE
    assert open_parts(said_by_expert) == {"admissible_actions", "solved"}
    assert main(["experts", "record", "--env", rooms.ID, "-n", "4", "--out", str(path)]) == 0
    trajectories = load_experts(path).trajectories
    assert [(item.environment, open_parts(item)) for item in trajectories] == [(rooms.ID, frozenset())] * 4
    assert trajectories[2].steps[2].admissible_actions == ("go on", "go back", "take lamp", "wait")
    assert [step.solved for step in trajectories[2].steps] == [False] * 3


def test_the_household_records_whole_trajectories(experts: Path) -> None:
    assert [open_parts(item) for item in load_experts(experts).trajectories] == [frozenset()] * 2


def test_an_environment_is_tried_along_an_expert(experts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["envs", "check", ID, "--kwarg", "max_steps=40", "--experts", str(experts)]) == 0
    shown = capsys.readouterr().out
    assert cells(shown, "id") == ["id", ID]
    assert "both times" in cells(shown, "expert played twice")[1]
    assert "restore=auto uses " in shown
    assert main(["envs", "check", ID, "--experts", str(experts)]) == 1
    assert "max_steps" in capsys.readouterr().err


def test_tasks_of_several_splits_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tasks.parquet"
    splits = ["--split", "seen:5", "--split", "unseen"]
    assert main(["envs", "tasks", "--env", ID, *splits, "-n", "2", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"4 tasks in {path}\n"
    infos = pq.read_table(path).column("extra_info").to_pylist()
    assert [info["task"] for info in infos] == ["seen/5", "seen/6", "unseen/0", "unseen/1"]
    assert main(["envs", "tasks", "--env", ID, "--split", "seen:x", "-n", "2", "--out", str(path)]) == 1
    assert "--split 'seen:x': expected SPLIT or SPLIT:FIRST" in capsys.readouterr().err
