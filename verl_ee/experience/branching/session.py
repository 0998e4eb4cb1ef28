"""An environment that lives for many trajectories, and is made anew after it failed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import gymnasium

from verl_ee.envs.snapshots import WrappedSnapshot, restore_snapshot, snapshot_problem, take_snapshot
from verl_ee.errors import EnvError
from verl_ee.experience.branching.host_meter import HostMeter
from verl_ee.experience.branching.protocol import TRIES, SeenState, StateLostError, Usage, encodable
from verl_ee.experience.outcome import Outcome

RETRY_SECONDS = 2.0
"""Pause before an environment that could not be made is made again: what it connects to may be about to start."""


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
    def valid(self) -> bool | None:
        """Whether the last action was understood and possible; None where the environment does not say."""
        valid = self.info.get("valid")
        return None if valid is None else bool(valid)

    @property
    def outcome_class(self) -> str:
        """The class that the environment gives the last action's outcome, empty where it gives none."""
        return str(self.info.get("outcome_class") or "")

    def outcome(self, action: str, done: bool) -> Outcome:
        """Return the outcome of the action that led here.

        Args:
            action: the action.
            done: whether the episode ended with it.
        """
        return Outcome(action, self.observation, self.valid, done, self.outcome_class)

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
        self._start_faults: list[str] = []
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
            EnvError: if the last of `TRIES` attempts to make it failed.
        """
        attempt = 1
        while self._env is None:
            try:
                with time_limit(self._start_limit, self.meter):
                    self._env = self._make()
            except EnvError as error:
                if attempt == TRIES:
                    raise
                self._start_faults.append(encodable(str(error)))
                attempt += 1
                time.sleep(RETRY_SECONDS)
        return self._env

    def take_start_faults(self) -> tuple[str, ...]:
        """Return why attempts to make the environment failed that were made again, and forget it."""
        faults, self._start_faults = tuple(self._start_faults), []
        return faults

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
            StateLostError: if the environment raised, or its answer cannot be stored.
        """
        self.meter.add(Usage(resets=1))
        env = self.env
        with self._guarded("reset", self._start_limit):
            observation, info = env.reset(seed=seed, options={"task": task})
        return checked_view(observation, info)

    def step(self, action: str) -> tuple[StateView, bool]:
        """Execute an action, and return the new state and whether the episode ended. The reward is not read.

        Raises:
            StateLostError: if the environment raised, or its answer cannot be stored.
        """
        self.meter.add(Usage(env_steps=1))
        env = self.env
        with self._guarded(f"the action {action!r}", self._step_limit):
            observation, _, terminated, truncated, info = env.step(action)
        return checked_view(observation, info), bool(terminated or truncated)

    @property
    def snapshot_problem(self) -> str:
        """Why the environment and its wrappers cannot re-enter a state, as the end of a sentence; empty if they can."""
        return snapshot_problem(self.env)

    def snapshot(self) -> WrappedSnapshot:
        """Take a snapshot of the environment and its wrappers.

        Raises:
            StateLostError: if the environment raised, or a wrapper's state cannot be saved.
        """
        with self._guarded("snapshot", self._step_limit):
            return take_snapshot(self.env)

    def restore(self, snapshot: WrappedSnapshot) -> StateView:
        """Re-enter a snapshot.

        Raises:
            StateLostError: if the environment raised, or its answer cannot be stored.
        """
        with self._guarded("restore", self._step_limit):
            observation, info = restore_snapshot(self.env, snapshot)
        return checked_view(observation, info)

    @contextmanager
    def _guarded(self, operation: str, limit: float | None) -> Iterator[None]:
        try:
            with time_limit(limit, self.meter):
                yield
        except Exception as error:
            self.discard()
            raise StateLostError("raised", f"{operation} raised {type(error).__name__}: {error}") from error


def checked_view(observation: object, info: Mapping[str, object]) -> StateView:
    """Return the view of a state, whose observation and outcome class are text that can be stored.

    Raises:
        StateLostError: if one of them is not a str, or holds code points that UTF-8 has no form for.
    """
    text = _checked_text(observation, "the observation")
    outcome_class = info.get("outcome_class")
    if outcome_class is not None:
        _checked_text(outcome_class, 'info["outcome_class"]')
    return StateView(text, info)


def _checked_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise StateLostError("not text", f"{what} is {type(value).__name__}, expected str")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        near = value[max(error.start - 20, 0) : error.end + 20]
        raise StateLostError("not text", f"{what} is not valid Unicode near {near!r}") from None
    return value
