"""Every stored outcome equals what a program that knows nothing of branching gets: reset, prefix, action."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from support import exact_worlds, straight_play
from support.jobs import ROOT

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.envs.household.env import ID, Household
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.files.executed_branches import ExecutedBranch
from verl_ee.experience.store import read_branches

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]

TALLY, ACCOUNTS = (f"{exact_worlds.__name__}:test/{name}-v0" for name in ("Tally", "Accounts"))
TRAJECTORIES, K, LEAST = 11, 8, 2000
Play = tuple[str, int | None, tuple[str, ...], str]
"""Task, seed, the actions before, and the action."""


def recorded(env_id: str, task: str, seed: int, length: int) -> ExpertTrajectory:
    """The trajectory of somebody who does what comes to mind, but does not stop."""
    env: gymnasium.Env[str, str] = gymnasium.make(env_id, disable_env_checker=True)
    observation, info = env.reset(seed=seed, options={"task": task})
    rng, steps, ended = random.Random(task), list[ExpertStep](), False
    while len(steps) < length and not ended:
        action = rng.choice([action for action in info["admissible_actions"] if action != "stop"])
        steps.append(ExpertStep(observation, action, None, info["admissible_actions"]))
        observation, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    return ExpertTrajectory(env_id, "1", task, info["task"], tuple(steps), observation, True, {}, seed)


def trajectories_of(env_id: str) -> list[ExpertTrajectory]:
    if env_id == ID:
        return [Household().expert_trajectory(f"train/{number}") for number in range(TRAJECTORIES)]
    tasks = range(TRAJECTORIES)
    return [recorded(env_id, f"task {number}", 7 + number, exact_worlds.LIMIT) for number in tasks]


def played(env_id: str, plays: list[Play]) -> list[list[Any]]:
    """The outcomes of plays, in a process of its own."""
    # Only the module that registers the household may be known to it.
    known = f"verl_ee.envs:{env_id}" if env_id == ID else env_id
    run = subprocess.run(
        [sys.executable, straight_play.__file__],
        input=json.dumps({"id": known, "plays": plays}),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert not [name for name in answer["modules"] if name.startswith("verl_ee.experience")]
    outcomes: list[list[Any]] = answer["outcomes"]
    return outcomes


def stored(folder: Path, env_id: str, restore: str) -> list[tuple[Play, ExecutedBranch]]:
    """Collect by a method, and return every branch with the play that leads to it."""
    trajectories = trajectories_of(env_id)
    config = CollectConfig.model_validate({"k": K, "restore": restore, "workers": 2})
    result = Collection(folder, trajectories, EnvironmentConfig(id=env_id), config, {}).run(quiet=True)
    assert (result.restore, result.lost, result.failed, result.faults) == (restore, 0, 0, {})
    branches = []
    for branch in read_branches(folder):
        trajectory = trajectories[branch.ref.trajectory]
        prefix = tuple(step.action for step in trajectory.steps[: branch.ref.step])
        branches.append(((trajectory.task, trajectory.seed, prefix, branch.outcome.action), branch))
    assert len(branches) == result.branches
    return branches


def comparisons(folder: Path, env_id: str) -> Iterator[tuple[str, ExecutedBranch, list[Any]]]:
    """Yield the method, the branch and the expected outcome of everything that is stored by any method."""
    methods = {restore: stored(folder / restore, env_id, restore) for restore in ("snapshot", "fork", "replay")}
    plays = sorted({play for branches in methods.values() for play, _ in branches})
    expected = dict(zip(plays, played(env_id, plays), strict=True))
    for restore, branches in methods.items():
        for play, branch in branches:
            yield restore, branch, expected[play]


def test_every_stored_outcome_is_that_of_straight_play(tmp_path: Path) -> None:
    compared, equal, told = dict[str, int](), dict[str, int](), set[tuple[Any, Any]]()
    for number, env_id in enumerate((ID, TALLY, ACCOUNTS)):
        for restore, branch, expected in comparisons(tmp_path / str(number), env_id):
            outcome = branch.outcome
            seen = [outcome.observation, outcome.valid, outcome.done, outcome.outcome_class]
            name = f"{env_id} by {restore}"
            compared[name] = compared.get(name, 0) + 1
            equal[name] = equal.get(name, 0) + (seen == expected)
            told.add((outcome.valid, outcome.done))
    for name, count in compared.items():
        print(f"{name}: {equal[name]} of {count} equal")
    print(f"together: {sum(equal.values())} of {sum(compared.values())} equal")
    assert equal == compared
    assert len(compared) == 9
    for restore in ("snapshot", "fork", "replay"):
        assert sum(count for name, count in compared.items() if name.endswith(restore)) >= LEAST
    # Everything that an environment can say is among them.
    assert told == {(valid, done) for valid in (True, False, None) for done in (True, False)}
