"""An environment that lives for many trajectories, and is made anew after it failed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import gymnasium

from verl_ee.envs import Snapshots
from verl_ee.experience.branching.host_meter import HostMeter
from verl_ee.experience.branching.protocol import SeenState, StateLostError, Usage


@dataclass(frozen=True)
class StateView:
    """The observation and the info dict of a state."""

    observation: str
    info: Mapping[str, object]

    @property
    def admissible_actions(self) -> Sequence[str] | None:
        """The actions that the environment lists, or None."""
        return cast("Sequence[str] | None", self.info.get("admissible_actions"))

    @property
    def valid(self) -> bool:
        """Whether the last action was understood and possible; true where the environment does not say."""
        return bool(self.info.get("valid", True))

    def seen(self) -> SeenState:
        """Return what the info dict says of the state, besides the last action.

        Raises:
            StateLostError: if an instruction or an action in it cannot be stored as text.
        """
        instruction, listed = self.info.get("task"), self.admissible_actions
        solved = self.info.get("success")
        return SeenState(
            None if instruction is None else _checked_text(instruction, 'info["task"]'),
            None if listed is None else tuple(_checked_text(action, "an admissible action") for action in listed),
            None if solved is None else bool(solved),
        )


@contextmanager
def time_limit(seconds: float | None, meter: HostMeter) -> Iterator[None]:
    """End this process with SIGALRM if the block takes longer than `seconds`; None sets no limit.

    The signal also ends a step that hangs outside Python. An environment may use the same signal for itself, so the
    meter tells the supervisor when to end this process from outside.
    """
    if seconds is None:
        yield
        return
    meter.start_timer(seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        meter.stop_timer()


class EnvironmentSession:
    """Holds an environment that lives for many trajectories, and makes it anew after it failed.

    Attributes:
        meter: counts steps and resets, also those of forked children.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[str, str]],
        step_limit: float | None = None,
        start_limit: float | None = None,
        meter: HostMeter | None = None,
    ) -> None:
        """Prepare a session; the environment is made when it is needed first.

        Args:
            make: makes the environment.
            step_limit: seconds that a step, a snapshot or a restore may take; None for no limit.
            start_limit: seconds that making or resetting the environment may take; None for no limit.
            meter: where to count; None for a new meter.
        """
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
        return self.prepare()

    def prepare(self) -> gymnasium.Env[str, str]:
        """Return the environment, and make it if there is none.

        Raises:
            EnvError: if it cannot be made.
        """
        if self._env is None:
            with time_limit(self._start_limit, self.meter):
                self._env = self._make()
        return self._env

    def discard(self) -> None:
        """Drop an environment whose state is unknown."""
        env, self._env = self._env, None
        if env is not None:
            # A failed environment may fail to close; it is dropped either way.
            with contextlib.suppress(Exception), time_limit(self._step_limit, self.meter):
                env.close()

    def reset(self, seed: int | None, task: str) -> StateView:
        """Begin an episode.

        Raises:
            StateLostError: if the environment raised, or its observation cannot be stored.
        """
        self.meter.add(Usage(resets=1))
        env = self.env
        with self._guarded("reset", self._start_limit):
            observation, info = env.reset(seed=seed, options={"task": task})
        return StateView(checked_text(observation), info)

    def step(self, action: str) -> tuple[StateView, bool]:
        """Execute an action, and return the new state and whether the episode ended. The reward is not read.

        Raises:
            StateLostError: if the environment raised, or its observation cannot be stored.
        """
        self.meter.add(Usage(env_steps=1))
        env = self.env
        with self._guarded(f"the action {action!r}", self._step_limit):
            observation, _, terminated, truncated, info = env.step(action)
        return StateView(checked_text(observation), info), bool(terminated or truncated)

    @property
    def has_snapshots(self) -> bool:
        """Whether the environment can leave and re-enter a state."""
        return isinstance(self.env.unwrapped, Snapshots)

    def snapshot(self) -> object:
        """Take a snapshot.

        Raises:
            StateLostError: if the environment raised.
        """
        with self._guarded("snapshot", self._step_limit):
            return self._snapshots.snapshot()

    def restore(self, snapshot: object) -> StateView:
        """Re-enter a snapshot.

        Raises:
            StateLostError: if the environment raised, or its observation cannot be stored.
        """
        with self._guarded("restore", self._step_limit):
            observation, info = self._snapshots.restore(snapshot)
        return StateView(checked_text(observation), info)

    @property
    def _snapshots(self) -> Snapshots:
        return cast(Snapshots, self.env.unwrapped)

    @contextmanager
    def _guarded(self, operation: str, limit: float | None) -> Iterator[None]:
        try:
            with time_limit(limit, self.meter):
                yield
        except Exception as error:
            self.discard()
            raise StateLostError("raised", f"{operation} raised {type(error).__name__}: {error}") from error


def checked_text(observation: object) -> str:
    """Return an observation if it is text that can be stored.

    Raises:
        StateLostError: if it is not a str, or holds code points that UTF-8 has no form for.
    """
    return _checked_text(observation, "the observation")


def _checked_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise StateLostError("not text", f"{what} is {type(value).__name__}, expected str")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        near = value[max(error.start - 20, 0) : error.end + 20]
        raise StateLostError("not text", f"{what} is not valid Unicode near {near!r}") from None
    return value
