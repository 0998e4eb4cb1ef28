"""An environment that lives for many trajectories, and is made anew after it failed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium

from verl_ee.envs import Snapshots
from verl_ee.experience.branching.host_meter import HostMeter
from verl_ee.experience.branching.protocol import StateLostError, Usage, checked_text


@dataclass(frozen=True)
class StateView:
    """What an environment shows in a state."""

    observation: str
    info: Mapping[str, Any]


@contextmanager
def time_limit(seconds: float | None, meter: HostMeter) -> Iterator[None]:
    """End this process with SIGALRM if the block takes longer than `seconds`; None sets no limit.

    A signal also holds where a step hangs outside Python. An environment may use the same signal for itself: the gauge
    tells the supervisor when to end this process from outside.
    """
    if seconds is None:
        yield
        return
    meter.allow(seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        meter.ease()


class EnvironmentSession:
    """Holds an environment that lives for many trajectories, and makes it anew after it failed.

    Attributes:
        meter: what it counts on, shared with what is forked from this process.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[str, str]],
        step_limit: float | None = None,
        start_limit: float | None = None,
        meter: HostMeter | None = None,
    ) -> None:
        self._make, self._step_limit, self._start_limit = make, step_limit, start_limit
        self._env: gymnasium.Env[str, str] | None = None
        self.meter = meter or HostMeter()

    @property
    def usage(self) -> Usage:
        """Steps and resets so far."""
        return self.meter.usage

    @property
    def env(self) -> gymnasium.Env[str, str]:
        """The environment, made if there is none."""
        if self._env is None:
            with time_limit(self._start_limit, self.meter):
                self._env = self._make()
        return self._env

    def discard(self) -> None:
        """Drop an environment whose state is unknown."""
        env, self._env = self._env, None
        if env is not None:
            # A failed environment may fail to close; it is gone either way.
            with contextlib.suppress(Exception), time_limit(self._step_limit, self.meter):
                env.close()

    def reset(self, seed: int | None, task: str) -> StateView:
        """Begin an episode."""
        self.meter.count(Usage(resets=1))
        env = self.env
        with self._guarded("reset", self._start_limit):
            observation, info = env.reset(seed=seed, options={"task": task})
        return StateView(checked_text(observation), info)

    def step(self, action: str) -> tuple[StateView, bool]:
        """Execute an action, and return what is seen and whether the episode ended. Its reward is not read."""
        self.meter.count(Usage(env_steps=1))
        env = self.env
        with self._guarded(f"the action {action!r}", self._step_limit):
            observation, _, terminated, truncated, info = env.step(action)
        return StateView(checked_text(observation), info), bool(terminated or truncated)

    def restore(self, state: Any) -> StateView:
        """Re-enter a snapshot."""
        env: Any = self.env.unwrapped
        with self._guarded("restore", self._step_limit):
            observation, info = env.restore(state)
        return StateView(checked_text(observation), info)

    def snapshot(self) -> Any:
        """Take a snapshot."""
        env: Any = self.env.unwrapped
        with self._guarded("snapshot", self._step_limit):
            return env.snapshot()

    @property
    def has_snapshots(self) -> bool:
        """Whether the environment can leave and re-enter a state."""
        return isinstance(self.env.unwrapped, Snapshots)

    @contextmanager
    def _guarded(self, what: str, limit: float | None) -> Iterator[None]:
        try:
            with time_limit(limit, self.meter):
                yield
        except Exception as error:
            self.discard()
            raise StateLostError("raised", f"{what} raised {type(error).__name__}: {error}") from error
