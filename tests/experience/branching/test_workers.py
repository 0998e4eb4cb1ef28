"""A pool of environment workers: one method to restore a state for all of them, chosen by a single trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.games import Game, LaboriousGame, SavedLaboriousGame, expert, id_of, whole

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.experience.branching.protocol import StateResult, Usage, env_steps_of
from verl_ee.experience.branching.restore_trial import FORKS
from verl_ee.experience.branching.workers import WorkerPool

pytestmark = pytest.mark.usefixtures("cluster")

LENGTH, K, WORKERS = 4, 3, 2
ROUNDS = 1_000_000
"""Rounds of a hash that take at least twenty times as long as a fork."""


@contextmanager
def pool_of(cls: type[Game], restore: str = "auto", **kwargs: Any) -> Iterator[WorkerPool]:
    """Start a pool, and end it at the end."""
    environment = EnvironmentConfig(id=id_of(cls), kwargs=kwargs)
    config = CollectConfig.model_validate({"restore": restore, "k": K, "workers": WORKERS})
    pool = WorkerPool(environment, config, expert(length=LENGTH), 100)
    try:
        yield pool
    finally:
        pool.close()


def branched(pool: WorkerPool) -> list[StateResult]:
    """Give every worker a whole unit, and return all results."""
    for index in range(WORKERS):
        pool.submit(whole(expert(f"game {index}", LENGTH), index))
    assert pool.free == 0
    results = list[StateResult]()
    while pool.busy:
        results += pool.results(None)
    return results


@pytest.mark.parametrize(
    ("cls", "kwargs", "restore", "trial"),
    [
        (Game, {"forkable": False}, "replay", Usage()),
        (LaboriousGame, {"forkable": True, "fork_rounds": ROUNDS}, "replay", Usage(FORKS + LENGTH, 2)),
        (LaboriousGame, {"forkable": True, "reset_rounds": ROUNDS}, "fork", Usage(FORKS + LENGTH, 2)),
        # A worker never forks what it has not proved itself.
        (LaboriousGame, {"reset_rounds": ROUNDS}, "fork", Usage(3 * LENGTH, 2) + Usage(2 * LENGTH, 1)),
        (SavedLaboriousGame, {"forkable": False, "reset_rounds": ROUNDS}, "snapshot", Usage(3 * LENGTH, 2)),
    ],
    ids=["untried", "replay", "fork", "proved-fork", "snapshot"],
)
def test_all_workers_use_the_method_that_the_first_one_chose(
    cls: type[Game], kwargs: dict[str, Any], restore: str, trial: Usage
) -> None:
    with pool_of(cls, **kwargs) as pool:
        assert (pool.size, pool.restore, pool.trial_usage) == (WORKERS, restore, trial)
        results = branched(pool)
    assert sorted((result.ref.trajectory, result.ref.step) for result in results) == [
        (index, step) for index in range(WORKERS) for step in range(LENGTH)
    ]
    assert not any(result.faults for result in results)
    for index in range(WORKERS):
        usage = sum((result.usage for result in results if result.ref.trajectory == index), Usage())
        assert usage.env_steps == env_steps_of(whole(expert(length=LENGTH)), restore, K)


def test_a_requested_method_is_used_by_all_workers_without_a_trial() -> None:
    with pool_of(SavedLaboriousGame, "replay", forkable=True, reset_rounds=1) as pool:
        assert (pool.restore, pool.trial_usage) == ("replay", Usage())
