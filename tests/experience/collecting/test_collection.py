"""Collecting on Ray workers: what one process gets, whatever dies, hangs or lies on the way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.game_collections import (
    LISTED,
    STATES,
    TRAJECTORIES,
    Tables,
    collect,
    executed,
    in_one_process,
    kept,
    tables,
)
from support.games import (
    MUCH,
    TOKENS,
    Dice,
    Game,
    SavedTrouble,
    Slipping,
    Stillborn,
    Trouble,
)

from verl_ee.config import CollectConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import BranchError, EnvError
from verl_ee.experience.branching.protocol import TRIES
from verl_ee.experience.branching.workers import worker_count
from verl_ee.experience.state_ref import StateRef
from verl_ee.experience.store import BRANCHES, TRANSITIONS, read_branches

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of `TRAJECTORIES`."""
    return in_one_process(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where an environment notes what happened."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("restore", ["snapshot", "fork", "replay"])
def test_workers_collect_what_one_process_collects(
    tmp_path: Path, undisturbed: Tables, restore: str, workers: int
) -> None:
    result = collect(tmp_path / "store", kwargs={"forkable": True}, restore=restore, workers=workers)
    assert tables(tmp_path / "store") == undisturbed
    numbers = (
        result.states,
        result.transitions,
        result.branches,
        result.reused,
        result.lost,
        result.failed,
        result.faults,
        result.restore,
    )
    total = STATES * (LISTED + 1)
    assert numbers == (STATES, total, total, 0, 0, 0, {}, restore)
    if workers == 1:
        steps = 6 * (LISTED * 6 * 7 // 2 + 6) if restore == "replay" else total
        assert result.cost.env_steps == steps
        assert result.cost.resets == (6 * (LISTED * 6 + 1) if restore == "replay" else 6)
    assert result.cost.bytes == sum(map(len, undisturbed))
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [BRANCHES, "run.json", TRANSITIONS]


@pytest.mark.parametrize("what", ["kill_host", "kill_worker"])
def test_what_a_killed_process_was_busy_with_is_done_again(
    tmp_path: Path, marks: Path, undisturbed: Tables, what: str
) -> None:
    kwargs = {"what": what, "marks": str(marks), "times": 1}
    result = collect(tmp_path / "store", SavedTrouble, kwargs=kwargs)
    assert tables(tmp_path / "store") == undisturbed
    assert (len(list(marks.iterdir())), result.lost, result.failed, result.faults) == (1, 0, 0, {"died": 1})


def test_a_state_that_no_worker_survives_is_lost_after_two_tries_and_nothing_else(tmp_path: Path, marks: Path) -> None:
    kwargs = {"what": "kill_worker", "marks": str(marks)}
    result = collect(tmp_path / "store", SavedTrouble, kwargs=kwargs, max_mismatch=1.0)
    missing = frozenset(("game 1", 2, action) for action in Game().actions)
    assert tables(tmp_path / "store") == in_one_process(tmp_path / "expected", missing=missing)
    assert (len(list(marks.iterdir())), result.lost, result.failed, result.faults) == (TRIES, 1, 0, {"died": TRIES})


@pytest.mark.parametrize(
    ("what", "kind"), [("hang", "time limit"), ("fail", "raised"), ("kill", "died"), ("show_surrogate", "not text")]
)
def test_an_action_that_cannot_be_executed_is_counted_and_left_out(
    tmp_path: Path, marks: Path, what: str, kind: str
) -> None:
    limit = 1.0 if what == "hang" else 60.0
    kwargs = {"what": what, "marks": str(marks)}
    result = collect(tmp_path / "store", SavedTrouble, kwargs=kwargs, step_timeout=limit)
    expected = in_one_process(tmp_path / "expected", missing=frozenset({("game 1", 2, "press 5")}))
    assert tables(tmp_path / "store") == expected
    assert (result.lost, result.failed, result.faults) == (0, 1, {kind: TRIES})


@pytest.mark.parametrize(("what", "text"), [("show_much", MUCH), ("show_tokens", TOKENS)])
def test_what_is_shown_is_stored_letter_by_letter(tmp_path: Path, marks: Path, what: str, text: str) -> None:
    result = collect(tmp_path / "store", Trouble, kwargs={"what": what, "marks": str(marks), "forkable": True})
    assert (result.lost, result.failed, result.faults) == (0, 0, {})
    in_one_process(tmp_path / "expected")
    for branch, expected in zip(read_branches(tmp_path / "store"), read_branches(tmp_path / "expected"), strict=True):
        if (branch.ref, branch.outcome.action) == (StateRef(1, 2), "press 5"):
            assert branch == replace(expected, outcome=replace(expected.outcome, observation=text))
        else:
            assert branch == expected


def test_a_game_that_slips_into_another_contaminates_nothing(tmp_path: Path, marks: Path, undisturbed: Tables) -> None:
    kwargs = {"every": 50, "marks": str(marks), "forkable": False}
    result = collect(tmp_path / "store", Slipping, kwargs=kwargs)
    assert tables(tmp_path / "store") == undisturbed
    slips = len(list(marks.iterdir()))
    assert result.cost.resets // 50 >= slips >= result.cost.resets // 50 - 1 > 0
    assert (result.restore, result.lost, result.failed, result.faults) == ("replay", 0, 0, {"observation": slips})


def with_dragon(trajectory: ExpertTrajectory, step: int) -> ExpertTrajectory:
    steps = list(trajectory.steps)
    steps[step] = replace(steps[step], observation="You see a dragon.")
    return replace(trajectory, steps=tuple(steps))


def test_more_lost_states_than_allowed_end_the_stage_and_keep_what_was_done(tmp_path: Path) -> None:
    wrong = [*TRAJECTORIES[:5], with_dragon(TRAJECTORIES[5], 1)]
    values = {"trajectories": wrong, "workers": 1, "kwargs": {"log": str(tmp_path / "first")}}
    with pytest.raises(BranchError) as raised:
        collect(tmp_path / "store", **values, max_mismatch=3.5 / STATES)
    message = str(raised.value)
    for word in ("of 36 expert states could not be reached again", "--max-mismatch=0.0972"):
        assert word in message
    told = [line for line in message.splitlines() if line.startswith("  trajectory 5")]
    assert [line.split(":")[0] for line in told] == [f"  trajectory 5, step {step}" for step in (1, 2, 3)]
    assert all("'You see a dragon.'" in line for line in told)

    before = kept(tmp_path / "store")
    assert len(before) > 5 * 6 * LISTED / 2
    values["kwargs"] = {"log": str(tmp_path / "second")}
    result = collect(tmp_path / "store", **values, max_mismatch=1.0)
    assert (tmp_path / "second").exists()
    assert not before & executed(tmp_path / "second")
    assert (result.lost, result.branches) == (5, 5 * 6 * (LISTED + 1) + LISTED)
    assert not (tmp_path / "store" / "parts").exists()


def test_more_failed_actions_than_allowed_end_the_stage_and_keep_what_was_done(tmp_path: Path, marks: Path) -> None:
    trouble = {"what": "fail", "marks": str(marks), "task": "game 4", "step": None, "action": "press 5"}
    values = {"workers": 1, "kwargs": trouble | {"log": str(tmp_path / "first")}}
    total = STATES * (LISTED + 1)
    with pytest.raises(BranchError) as raised:
        collect(tmp_path / "store", SavedTrouble, **values, max_failed=3.5 / total)
    message = str(raised.value)
    for word in (f"of {total} actions could not be executed", "--max-failed=0.00972", "envs check"):
        assert word in message
    told = [line for line in message.splitlines() if line.startswith("  trajectory 4")]
    assert [line.split(":")[0] for line in told] == [
        f"  trajectory 4, step {step}, action 'press 5'" for step in (0, 1, 2)
    ]
    assert all("RuntimeError: no pulse" in line for line in told)

    before = kept(tmp_path / "store")
    assert before
    values["kwargs"] = trouble | {"log": str(tmp_path / "second")}
    result = collect(tmp_path / "store", SavedTrouble, **values, max_failed=1.0)
    assert not before & executed(tmp_path / "second")
    missing = frozenset(("game 4", step, "press 5") for step in range(6))
    assert tables(tmp_path / "store") == in_one_process(tmp_path / "expected", missing=missing)
    assert result.failed == 6


def test_what_a_worker_raises_reaches_the_driver(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"Dice-v0 is declared nondeterministic"):
        collect(tmp_path / "dice", Dice, kwargs={"forkable": False})
    with pytest.raises(BranchError, match=r"Stillborn-v0 could not be started"):
        collect(tmp_path / "still", Stillborn)


def test_there_are_as_many_workers_as_asked_for_or_as_fit() -> None:
    fitting = min(4, os.cpu_count() or 1)
    assert worker_count(CollectConfig(), 100) == fitting
    assert worker_count(CollectConfig(), 1) == worker_count(CollectConfig(workers=7), 1) == 1
    assert worker_count(CollectConfig(workers=3), 100) == 3
