"""Collections of the tests' games: how one is opened, what it leaves on disk, and what it should leave there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
from support.games import Game, SavedGame, expert, id_of, shown, whole

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.restore import SnapshotRestore
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.collecting.collection import Collection, CollectionResult
from verl_ee.experience.collecting.transition_cache import TransitionCache
from verl_ee.experience.store import (
    BRANCHES,
    TRANSITIONS,
    Branch,
    Transition,
    read_branches,
    state_key,
    transition_key,
    write_store,
)

PROVENANCE = {"experts": "0a1b"}
TRAJECTORIES = [expert(f"game {number}", 6) for number in range(6)]
STATES, LISTED = 36, 9
"""Of all trajectories, and alternatives that each state has at most."""
Tables = tuple[bytes, bytes]
TriedAction = tuple[str, int, str]
"""Task, step and action."""


def open_collection(
    folder: Path,
    cls: type[Game] = SavedGame,
    trajectories: list[ExpertTrajectory] = TRAJECTORIES,
    kwargs: dict[str, Any] | None = None,
    **config: Any,
) -> Collection:
    """Open a collection of everything that is listed; snapshots are used where there are any, without a trial."""
    environment = EnvironmentConfig(id=id_of(cls), kwargs=kwargs or {})
    restore = "snapshot" if issubclass(cls, SavedGame) else "auto"
    values = {"k": LISTED, "workers": 2, "restore": restore} | config
    return Collection(folder, trajectories, environment, CollectConfig.model_validate(values), PROVENANCE)


def collect(folder: Path, cls: type[Game] = SavedGame, **values: Any) -> CollectionResult:
    """Collect everything that is listed."""
    return open_collection(folder, cls, **values).run(quiet=True)


def tables(folder: Path) -> Tables:
    """Return both tables, byte by byte."""
    return (folder / TRANSITIONS).read_bytes(), (folder / BRANCHES).read_bytes()


def write_here(
    folder: Path,
    make: Callable[[], gymnasium.Env[str, str]],
    trajectories: Sequence[ExpertTrajectory],
    k: int,
    missing: frozenset[TriedAction] = frozenset(),
) -> None:
    """Write the store of the outcomes in this process, without the actions that are missing."""
    transitions, branches = [], []
    for index, trajectory in enumerate(trajectories):
        environment = {"id": trajectory.environment, "version": trajectory.version, "kwargs": dict(trajectory.kwargs)}
        unit = whole(trajectory, index)
        for result in branch(EnvironmentSession(make), SnapshotRestore(), unit, CollectConfig(k=k)):
            step = result.ref.step
            path = tuple(step.action for step in trajectory.steps[:step])
            state = state_key(environment, trajectory.task, trajectory.seed, path)
            assert result.expert_outcome is not None
            for order, outcome in enumerate((result.expert_outcome, *result.outcomes)):
                if (trajectory.task, step, outcome.action) not in missing:
                    key = transition_key(state, outcome.action)
                    transitions.append(Transition(key, state, trajectory.task, path, outcome))
                    proposer = "admissible" if order else "expert"
                    branches.append(Branch(result.ref, order, proposer, "", "", key))
    write_store(folder, transitions, branches, PROVENANCE)


def in_one_process(
    folder: Path,
    trajectories: Sequence[ExpertTrajectory] = TRAJECTORIES,
    missing: frozenset[TriedAction] = frozenset(),
    k: int = LISTED,
) -> Tables:
    """Return the tables of a store of games, made in this process alone."""
    listed = len(trajectories[0].steps[0].admissible_actions or ()) - 2
    write_here(folder, partial(SavedGame, listed=listed), trajectories, k, missing)
    for item in read_branches(folder):
        trajectory = trajectories[item.ref.trajectory]
        path = [step.action for step in trajectory.steps[: item.ref.step]]
        assert item.outcome.observation == shown(trajectory.task, trajectory.seed, [*path, item.outcome.action])
    return tables(folder)


def executed(log: Path) -> set[tuple[str, ...]]:
    """Return task and actions of everything in a log but the expert's own actions."""
    lines = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    return {line for line in lines if line[-1] != "press 0"}


def kept(folder: Path) -> set[tuple[str, ...]]:
    """Return the same of everything that an unfinished run has left on disk."""
    cache = TransitionCache(folder / "parts" / "transitions", str.strip)
    states = {row["state"] for row in cache.parts.read()}
    transitions = [item for state in states for item in cache.known(state).values()]
    paths = [(item.task, *item.prefix, item.outcome.action) for item in transitions]
    return {path for path in paths if path[-1] != "press 0"}
