"""Completion: what an expert file leaves open comes from the environment, and prompts then equal those of rollouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import rooms
from support.export_cases import write_lines
from support.games import Game, SavedDice, Trouble, expert, id_of
from support.reluctant_games import Reluctant

from verl_ee.cli.main import main
from verl_ee.config import CollectConfig, EnvironmentConfig, PromptConfig
from verl_ee.envs import ExpertTrajectory, make
from verl_ee.errors import BranchError, ExpertFileError
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.collecting.completed_experts import EXPERTS, completed_experts, read_record
from verl_ee.experience.collecting.completion import complete
from verl_ee.experience.expert_files import ExpertFile, load_experts, write_experts
from verl_ee.experience.open_parts import PARTS, open_parts
from verl_ee.experience.provenance import provenance_of
from verl_ee.experience.store import read_branches
from verl_ee.objectives.rows import imitation_rows, world_model_rows
from verl_ee.prompts import Message
from verl_ee.prompts.state import EpisodeHistory, State
from verl_ee.prompts.text import TextFormat

pytestmark = pytest.mark.usefixtures("cluster")
ROOMS = EnvironmentConfig(id=rooms.ID)
CONFIG = CollectConfig(k=2, workers=1)
HISTORY, FORM = 2, TextFormat(PromptConfig())
TASKS = ("0", "1", "2", "3")


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """An import from AgentGym that lists nothing, says no instruction and ends on actions."""
    path = write_lines(tmp_path / "agentgym.jsonl", *map(rooms.conversation, TASKS))
    out = tmp_path / "experts.jsonl"
    command = ["import", "--format", "agentgym", str(path), "--env", rooms.ID, "--out", str(out)]
    assert main([*command, "--instruction", "environment", "--success"]) == 0
    return out


def load(path: Path) -> ExpertFile:
    return load_experts(path, rooms.ID, experts_filter="successful")


def rolled_out(task: str) -> Iterator[tuple[State, str]]:
    """The states of a rollout that acts as the expert does, each with the action."""
    env = make(rooms.ID)
    observation, info = env.reset(options={"task": task})
    history = EpisodeHistory(info["task"], HISTORY)
    for action in rooms.solution(task):
        yield history.state(observation, info["admissible_actions"]), action
        history.act(history.state(observation, info["admissible_actions"]), action)
        observation, _, _, _, info = env.step(action)


def test_an_import_that_leaves_all_open_is_collected_and_learned_as_rollouts_see_it(
    tmp_path: Path, imported: Path
) -> None:
    experts = load(imported)
    assert {part for item in experts.trajectories for part in open_parts(item)} == set(PARTS)
    experts = completed_experts(tmp_path / "store", experts, ROOMS, CONFIG)
    provenance = provenance_of(ROOMS, CONFIG, experts)
    result = Collection(tmp_path / "store", experts.trajectories, ROOMS, CONFIG, provenance).run(quiet=True)
    states = [(state, action) for task in TASKS for state, action in rolled_out(task)]
    assert (result.states, result.lost, result.failed, result.branches) == (len(states), 0, 0, 3 * len(states))

    policy: list[list[Message]] = [FORM.policy_prompt(state) for state, _ in states]
    rows = list(imitation_rows(experts.trajectories, HISTORY, FORM))
    assert [list(row.prompt) for row in rows] == policy
    assert "Task: Find lamp 3." in policy[-1][-1]["content"]
    assert "You can:\ngo back\ntake lamp\nwait" in policy[-1][-1]["content"]
    branches = read_branches(tmp_path / "store")
    experts_own = [branch for branch in branches if branch.proposer == "expert"]
    outcomes = [list(row.prompt) for row in world_model_rows(experts.trajectories, experts_own, HISTORY, FORM)]
    assert outcomes == [FORM.world_model_prompt(state, action) for state, action in states]
    assert experts.trajectories[3].final_observation == "You are in the attic. You hold the lamp."


def altered(
    index: int, edit: Callable[[ExpertTrajectory], ExpertTrajectory], copies: int = 1
) -> list[ExpertTrajectory]:
    """Complete experts but for their final observation, some times over, one of them altered."""
    env = rooms.Rooms()
    found = []
    for task in TASKS * copies:
        trajectory = env.expert_trajectory(task)
        lists = [state.admissible_actions for state, _ in rolled_out(task)]
        steps = [replace(step, admissible_actions=seen) for step, seen in zip(trajectory.steps, lists, strict=True)]
        found.append(replace(trajectory, environment=rooms.ID, steps=tuple(steps), final_observation=None))
    found[index] = edit(found[index])
    return found


def with_step(trajectory: ExpertTrajectory, step: int, **values: Any) -> ExpertTrajectory:
    steps = list(trajectory.steps)
    steps[step] = replace(steps[step], **values)
    return replace(trajectory, steps=tuple(steps))


def with_reversed_list(trajectory: ExpertTrajectory) -> ExpertTrajectory:
    return with_step(trajectory, 1, admissible_actions=(trajectory.steps[1].admissible_actions or ())[::-1])


MISMATCHES = [
    pytest.param(
        lambda item: with_step(item, 1, observation="You are in the garden."), "observation", id="observation"
    ),
    pytest.param(with_reversed_list, "admissible actions", id="order"),
    pytest.param(lambda item: replace(item, instruction="Find a cup."), "instruction", id="instruction"),
]


@pytest.mark.parametrize(("edit", "kind"), MISMATCHES)
def test_a_trajectory_that_the_environment_does_not_show_is_left_out_and_counted(
    edit: Callable[[ExpertTrajectory], ExpertTrajectory], kind: str
) -> None:
    trajectories = altered(2, edit)
    done = complete(trajectories, ROOMS, CONFIG.model_copy(update={"max_mismatch": 0.3}), quiet=True)
    assert (done.unplayable, done.played) == ((2,), 4)
    assert set(done.faults) == {kind}
    assert [item.task for item in done.trajectories] == ["0", "1", "3"]
    assert not any(open_parts(item) for item in done.trajectories)


@pytest.mark.parametrize(("edit", "kind"), MISMATCHES)
def test_more_lost_states_than_allowed_end_it_with_the_first_faults(
    edit: Callable[[ExpertTrajectory], ExpertTrajectory], kind: str
) -> None:
    with pytest.raises(BranchError) as raised:
        complete(altered(2, edit), ROOMS, CONFIG, quiet=True)
    message = str(raised.value)
    assert "1 expert trajectories cannot be played, with 3 of 10 states: --max-mismatch=0.01" in message
    assert "verl-ee experts complete" in message
    assert "trajectory 2, step " in message


def test_the_index_of_what_is_left_out_is_part_of_the_provenance(tmp_path: Path) -> None:
    trajectories = altered(1, lambda item: with_step(item, 1, observation="You are in the garden."), copies=25)
    write_experts(tmp_path / "experts.jsonl", trajectories)
    experts = completed_experts(tmp_path / "store", load(tmp_path / "experts.jsonl"), ROOMS, CONFIG)
    assert (experts.unplayable, len(experts.trajectories), experts.chosen) == ((1,), 99, 100)
    provenance = provenance_of(ROOMS, CONFIG, experts)
    assert (provenance["trajectories"], provenance["unplayable"]) == ("100", "1")
    record = read_record(tmp_path / "store")
    assert record is not None
    assert (record.unplayable, record.played, set(record.faults)) == ((1,), 100, {"observation"})


def test_what_was_completed_is_not_played_again_unless_the_file_is_another(tmp_path: Path, imported: Path) -> None:
    plays = list[str]()

    def completed() -> ExpertFile:
        return completed_experts(tmp_path / "run", load(imported), ROOMS, CONFIG, lambda: plays.append("play"))

    first = completed()
    assert completed() == first
    assert load(tmp_path / "run" / EXPERTS).trajectories == first.trajectories
    assert len(plays) == 1
    (tmp_path / "run" / EXPERTS).write_text(imported.read_text())
    assert completed() == first
    assert len(plays) == 2
    elsewhere = completed_experts(tmp_path / "other", load(imported), ROOMS, CONFIG, pytest.fail, [tmp_path / "run"])
    assert elsewhere == first
    assert read_record(tmp_path / "other") == read_record(tmp_path / "run")
    lines = imported.read_text().splitlines()
    imported.write_text("\n".join(lines[1:]) + "\n")
    assert [item.task for item in completed().trajectories] == ["1", "2", "3"]
    assert len(plays) == 3


def test_nothing_is_played_that_the_environment_would_leave_open() -> None:
    trajectories = [expert(f"game {number}") for number in range(3)]
    assert {part for item in trajectories for part in open_parts(item)} == {"solved"}
    done = complete(trajectories, EnvironmentConfig(id=id_of(Game)), CONFIG, quiet=True)
    # One play has shown it.
    assert (done.trajectories, done.played, done.usage.env_steps, done.usage.resets) == (tuple(trajectories), 0, 6, 1)


def test_one_worker_finds_out_what_the_environment_gives(tmp_path: Path) -> None:
    (tmp_path / "makings").mkdir()
    (tmp_path / "marks").mkdir()
    kwargs = {"what": "fail", "times": 0, "makings": str(tmp_path / "makings"), "marks": str(tmp_path / "marks")}
    environment = EnvironmentConfig(id=id_of(Reluctant), kwargs=kwargs)
    trajectories = [expert(f"game {number}") for number in range(3)]
    many = CONFIG.model_copy(update={"workers": 3})
    assert complete(trajectories, environment, many, quiet=True).played == 0
    assert len(list((tmp_path / "makings").iterdir())) == 1
    trajectories = [replace(item, final_observation=None) for item in trajectories]
    done = complete(trajectories, environment, many, quiet=True)
    assert (done.played, done.usage.env_steps, done.usage.resets) == (3, 18, 3)


@pytest.mark.parametrize("late", [("success",), ("admissible_actions",), ("success", "admissible_actions")])
def test_what_the_environment_gives_after_the_first_step_is_completed(late: tuple[str, ...]) -> None:
    environment = EnvironmentConfig(id=rooms.ID, kwargs={"late": late, "gives": ["task", *late]})
    done = complete([rooms.Rooms().expert_trajectory(task) for task in TASKS], environment, CONFIG, quiet=True)
    assert done.played == 4
    for trajectory in done.trajectories:
        listed = [step.admissible_actions is not None for step in trajectory.steps]
        told = [step.solved is not None for step in trajectory.steps]
        steps = len(trajectory.steps)
        assert listed == [index > 0 and "admissible_actions" in late for index in range(steps)]
        assert told == [index > 0 and "success" in late for index in range(steps)]


@pytest.mark.parametrize("restore", ["auto", "snapshot", "fork"])
def test_a_nondeterministic_environment_completes_what_its_plays_show_again(tmp_path: Path, restore: str) -> None:
    """After dice, each play sees another observation, as in a collection; a last one is not recorded."""
    environment = EnvironmentConfig(id=id_of(SavedDice))
    config = CollectConfig.model_validate({"k": 2, "workers": 1, "restore": restore, "max_mismatch": 0.5})
    presses = [(0,), (0, 0, 1), (0, 1, 0)]
    trajectories = [
        replace(
            expert(f"game {number}", length=3, listed=None, presses=buttons),
            environment=environment.id,
            final_observation=None,
        )
        for number, buttons in enumerate(presses)
    ]
    path = tmp_path / "dice.jsonl"
    write_experts(path, trajectories)
    experts = completed_experts(tmp_path, load_experts(path, environment.id), environment, config)
    record = read_record(tmp_path)
    assert record is not None
    assert (experts.unplayable, set(record.faults)) == ((2,), {"observation"})
    assert [item.final_observation for item in experts.trajectories] == [None, None]
    assert all(step.admissible_actions == Game().actions for item in experts.trajectories for step in item.steps)
    again = completed_experts(tmp_path, load_experts(path, environment.id), environment, config, pytest.fail)
    assert again == experts
    provenance = provenance_of(environment, config, experts)
    result = Collection(tmp_path / "store", experts.trajectories, environment, config, provenance).run(quiet=True)
    assert (result.states, result.lost, result.failed, result.branches) == (6, 0, 0, 18)


def test_a_file_that_leaves_nothing_open_needs_no_environment(tmp_path: Path) -> None:
    whole = [replace(item, steps=tuple(replace(step, solved=False) for step in item.steps)) for item in (expert(),)]
    done = complete(whole, EnvironmentConfig(id="nowhere/Nothing-v0"), CONFIG)
    assert (done.trajectories, done.played) == (tuple(whole), 0)


def test_an_open_instruction_that_the_environment_does_not_give_is_refused() -> None:
    silent = EnvironmentConfig(id=rooms.ID, kwargs={"gives": ["admissible_actions"]})
    trajectories = altered(0, lambda item: replace(item, instruction=None))
    with pytest.raises(ExpertFileError) as raised:
        complete(trajectories, silent, CONFIG, quiet=True)
    assert "trajectory 0 (task '0') leaves its instruction open" in str(raised.value)
    assert "--goal" in str(raised.value)


@pytest.mark.parametrize(("what", "kind"), [("fail", "raised"), ("leave", "died"), ("kill_worker", "died")])
def test_an_environment_that_fails_in_a_trajectory_costs_that_trajectory(tmp_path: Path, what: str, kind: str) -> None:
    environment = EnvironmentConfig(
        id=id_of(Trouble), kwargs={"what": what, "marks": str(tmp_path), "action": "press 0", "task": "game 1"}
    )
    trajectories = [replace(expert(f"game {number}", length=3), final_observation=None) for number in range(3)]
    done = complete(trajectories, environment, CONFIG.model_copy(update={"max_mismatch": 0.5}), quiet=True)
    assert done.unplayable == (1,)
    assert set(done.faults) == {kind}
    assert [item.final_observation for item in done.trajectories] == [
        expert(f"game {number}", length=3).final_observation for number in (0, 2)
    ]


def test_a_command_completes_a_file(tmp_path: Path, imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "complete.jsonl"
    command = ["experts", "complete", str(imported), "--env", rooms.ID, "--out", str(out)]
    assert main([*command, "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "4 trajectories played in 10 steps, 0 cannot be played and are left out (faults: none)" in shown
    assert f"4 trajectories in {out}" in shown
    assert not any(open_parts(item) for item in load(out).trajectories)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [step["solved"] for row in rows for step in row["steps"]] == [False] * 10
