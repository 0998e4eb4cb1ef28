"""The environments of a process that plays episodes: how many there are, and which of them are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.episode_games import MISHAPS_ID
from support.episode_infos import early_experience
from support.episodes import closed, made

from verl_ee.trainer.rollout.environments.pool import EnvironmentPool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[EnvironmentPool]:
    environment = {"id": MISHAPS_ID, "kwargs": {"marks": str(tmp_path)}}
    pool = EnvironmentPool(early_experience(environment=environment), most=3)
    yield pool
    pool.close()


def play(pool: EnvironmentPool, episodes: int, together: int) -> list[str]:
    """Play episodes of two steps, so many of them at the same time, and return what they show last."""

    async def episode(others: asyncio.Barrier) -> str:
        async with pool.episode("a task", None) as environment:
            await others.wait()
            await environment.step("look")
            return (await environment.step("win")).observation

    async def all_of_them() -> list[str]:
        others = asyncio.Barrier(together)
        return await asyncio.gather(*(episode(others) for _ in range(episodes)))

    return asyncio.run(all_of_them())


def test_more_episodes_than_environments_wait_for_one(pool: EnvironmentPool, tmp_path: Path) -> None:
    for _ in range(2):
        assert play(pool, episodes=9, together=3) == ["You did 'win'."] * 9
    assert len(made(tmp_path)) == 3


def test_an_episode_that_fails_gives_its_place_back(pool: EnvironmentPool, tmp_path: Path) -> None:
    async def fails() -> None:
        async with pool.episode("a task", None):
            raise KeyError("no such room")

    for _ in range(4):
        with pytest.raises(KeyError):
            asyncio.run(fails())
    assert play(pool, episodes=3, together=3) == ["You did 'win'."] * 3


def test_environments_that_the_last_episodes_did_not_need_are_closed(pool: EnvironmentPool, tmp_path: Path) -> None:
    play(pool, episodes=3, together=3)
    assert closed(tmp_path) == []
    for _ in range(2):
        play(pool, episodes=1, together=1)
    assert len(made(tmp_path)) == 3
    play(pool, episodes=3, together=3)
    assert len(made(tmp_path)) == 5
    pool.close()
    assert sorted(closed(tmp_path)) == sorted(made(tmp_path))
