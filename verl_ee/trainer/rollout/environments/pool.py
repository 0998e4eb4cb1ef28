"""The environments of a process that plays episodes: borrowed for one episode each, kept while they are needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from verl_ee.config import EarlyExperienceConfig
from verl_ee.experience.progress import plugin_logger
from verl_ee.trainer.rollout.environments.messages import EnvironmentFailedError, StepResult
from verl_ee.trainer.rollout.environments.process import EnvironmentProcess

logger = plugin_logger(__name__)
STARTS_AT_A_TIME = 8
"""Environments that are made at the same time: all at once, they would slow each other down beyond their limit."""
CALLS_AT_A_TIME = 1024
"""Calls under way at the same time; each has a thread that waits for the answer."""
T = TypeVar("T")


@dataclass(frozen=True)
class EpisodeEnvironment:
    """An environment during an episode.

    Attributes:
        first: the answer to the reset that began it.
    """

    first: StepResult
    _process: EnvironmentProcess
    _pool: EnvironmentPool

    async def step(self, action: str) -> StepResult:
        """Execute an action.

        Raises:
            EnvironmentFailedError: if the environment raises, takes too long, or ends its process.
        """
        return await self._pool.call(partial(self._process.step, action))


class EnvironmentPool:
    """Environments of one config; there are as many as episodes are played at the same time."""

    def __init__(self, config: EarlyExperienceConfig, most: int) -> None:
        """Begin without environments.

        Args:
            config: environment and time limits.
            most: episodes at the same time; others wait for one of them to end.
        """
        self._config, self._most = config, most
        self._idle: list[EnvironmentProcess] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places = asyncio.Semaphore(most)
        self._playing = self._peak = 0
        self._starts = ThreadPoolExecutor(STARTS_AT_A_TIME, "start of an environment")
        self._calls = ThreadPoolExecutor(CALLS_AT_A_TIME, "call of an environment")

    @asynccontextmanager
    async def episode(self, task: str, seed: int | None) -> AsyncIterator[EpisodeEnvironment]:
        """Lend an environment to an episode; one whose episode is broken off is not lent again.

        An environment that fails at its reset is replaced by a new one, once. When no episode plays any more, those
        environments are closed that the last ones did not need at the same time.

        Args:
            task: the task that it begins with.
            seed: seed of the reset; None: the environment's own choice.

        Raises:
            EnvironmentFailedError: if the environment cannot begin.
        """
        async with self._place():
            try:
                process, first = await self._begin(self._idle.pop() if self._idle else None, task, seed)
            except EnvironmentFailedError as failure:
                again = "The episode begins again in a new environment."
                logger.warning(f"{self._config.environment.id}: {failure}. {again}")
                process, first = await self._begin(None, task, seed)
            try:
                yield EpisodeEnvironment(first, process, self)
            except BaseException:
                self._drop(process)
                raise
            self._idle.append(process)

    async def call(self, function: Callable[[], T]) -> T:
        """Return the result of a function that waits for an environment."""
        return await asyncio.get_running_loop().run_in_executor(self._calls, function)

    def close(self) -> None:
        """Close all environments, and wait until they are; no episode may play, and none begins later."""
        self._keep(0)
        self._starts.shutdown()
        self._calls.shutdown()

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Wait until one more episode may play."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # A semaphore belongs to one loop.
            self._loop, self._places = loop, asyncio.Semaphore(self._most)
        async with self._places:
            self._playing += 1
            self._peak = max(self._peak, self._playing)
            try:
                yield
            finally:
                self._playing -= 1
                if not self._playing:
                    self._keep(self._peak)
                    self._peak = 0

    def _keep(self, most: int) -> None:
        """Close idle environments but for the last ones."""
        surplus = self._idle[: max(0, len(self._idle) - most)]
        del self._idle[: len(surplus)]
        for process in surplus:
            self._drop(process)

    async def _begin(
        self, process: EnvironmentProcess | None, task: str, seed: int | None
    ) -> tuple[EnvironmentProcess, StepResult]:
        if process is None:
            start = asyncio.get_running_loop().run_in_executor(self._starts, EnvironmentProcess, self._config)
            process = await start
        try:
            return process, await self.call(partial(process.reset, task, seed))
        except BaseException:
            self._drop(process)
            raise

    def _drop(self, process: EnvironmentProcess) -> None:
        """Close an environment that failed, is not needed, or whose episode was cancelled, while others go on."""
        self._calls.submit(process.close)


_pools: dict[str, EnvironmentPool] = {}


def pool_of(config: EarlyExperienceConfig, most: int) -> EnvironmentPool:
    """Return the pool of this process for the environment and the time limits of a config.

    Args:
        config: environment and time limits.
        most: episodes at the same time.
    """
    limits = config.model_dump_json(include={"environment", "step_timeout", "start_timeout"})
    key = f"{most} {limits}"
    if key not in _pools:
        _pools[key] = EnvironmentPool(config, most)
    return _pools[key]


def close_pools() -> None:
    """Close all environments of this process, in which no episode plays any more."""
    while _pools:
        _pools.popitem()[1].close()
