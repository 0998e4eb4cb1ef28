"""Plays an expert's actions in an environment and proves, at every state, that it is the recorded one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium

from verl_ee.envs import ExpertStep, ExpertTrajectory, Snapshots
from verl_ee.experience.gauge import Gauge
from verl_ee.experience.work import Executed, Fault, LostError, Used, text_of

TRIES = 2
"""Attempts to reach a state, or to execute an action there."""


@dataclass(frozen=True)
class Seen:
    """What an environment shows in a state."""

    observation: str
    info: Mapping[str, Any]


@contextmanager
def time_limit(seconds: float | None, gauge: Gauge) -> Iterator[None]:
    """End this process with SIGALRM if the block takes longer than `seconds`; None sets no limit.

    A signal also holds where a step hangs outside Python. An environment may use the same signal for itself: the gauge
    tells the supervisor when to end this process from outside.
    """
    if seconds is None:
        yield
        return
    gauge.allow(seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gauge.ease()


class Holder:
    """Holds an environment that lives for many trajectories, and makes it anew after it failed.

    Attributes:
        gauge: what it counts on, shared with what is forked from this process.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[str, str]],
        step_limit: float | None = None,
        start_limit: float | None = None,
        gauge: Gauge | None = None,
    ) -> None:
        self._make, self._step_limit, self._start_limit = make, step_limit, start_limit
        self._env: gymnasium.Env[str, str] | None = None
        self.gauge = gauge or Gauge()

    @property
    def used(self) -> Used:
        """Steps and resets so far."""
        return self.gauge.used

    @property
    def env(self) -> gymnasium.Env[str, str]:
        """The environment, made if there is none."""
        if self._env is None:
            with time_limit(self._start_limit, self.gauge):
                self._env = self._make()
        return self._env

    def discard(self) -> None:
        """Drop an environment whose state is unknown."""
        env, self._env = self._env, None
        if env is not None:
            # A failed environment may fail to close; it is gone either way.
            with contextlib.suppress(Exception), time_limit(self._step_limit, self.gauge):
                env.close()

    def reset(self, seed: int | None, task: str) -> Seen:
        """Begin an episode."""
        self.gauge.count(Used(resets=1))
        env = self.env
        with self._guarded("reset", self._start_limit):
            observation, info = env.reset(seed=seed, options={"task": task})
        return Seen(text_of(observation), info)

    def step(self, action: str) -> tuple[Seen, bool]:
        """Execute an action, and return what is seen and whether the episode ended. Its reward is not read."""
        self.gauge.count(Used(env_steps=1))
        env = self.env
        with self._guarded(f"the action {action!r}", self._step_limit):
            observation, _, terminated, truncated, info = env.step(action)
        return Seen(text_of(observation), info), bool(terminated or truncated)

    def restore(self, state: Any) -> Seen:
        """Re-enter a snapshot."""
        env: Any = self.env.unwrapped
        with self._guarded("restore", self._step_limit):
            observation, info = env.restore(state)
        return Seen(text_of(observation), info)

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
            with time_limit(limit, self.gauge):
                yield
        except Exception as error:
            self.discard()
            raise LostError("raised", f"{what} raised {type(error).__name__}: {error}") from error


class Player:
    """Walks along one trajectory.

    Attributes:
        at: expert actions since the reset, or None where the environment is elsewhere.
        seen: what is shown at `at`.
        walked: outcomes of the expert's actions, by step, each proved to lead to the recorded state.
        faults: what went wrong and was made good by a second attempt, since they were last taken.
    """

    def __init__(self, holder: Holder, trajectory: ExpertTrajectory, index: int) -> None:
        self.holder, self.trajectory, self.index = holder, trajectory, index
        self.at: int | None = None
        self.seen = Seen("", {})
        self.walked: dict[int, Executed] = {}
        self.faults: list[Fault] = []

    def reach(self, step: int) -> Seen:
        """Go to a state, from where the walk stands or from a reset.

        Args:
            step: its step; the number of steps for the state after the last.

        Raises:
            LostError: if the last of `TRIES` attempts led elsewhere.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return self._walk(step)
            except LostError as error:
                self.at = None
                if attempt == TRIES:
                    raise
                self.excuse(step, error)
        raise AssertionError("unreachable")

    def act(self, action: str) -> Executed:
        """Execute an action that leaves the trajectory."""
        self.at = None
        seen, done = self.holder.step(action)
        return Executed(action, seen.observation, bool(seen.info.get("valid", True)), done)

    def restore(self, state: Any, step: int) -> None:
        """Re-enter the snapshot of a step, and prove it.

        Raises:
            LostError: if another state came back.
        """
        self.at = None
        seen = self.holder.restore(state)
        problem = self._differs(step, seen)
        if problem:
            raise LostError(problem[0], f"after going back, {problem[1]}")
        self.at, self.seen = step, seen

    def excuse(self, step: int, error: LostError) -> None:
        """Count an attempt that failed and is made again."""
        self.faults.append(Fault(self.index, step, error.kind, str(error)))

    def take_faults(self) -> tuple[Fault, ...]:
        """Return the faults so far, and forget them."""
        faults, self.faults = tuple(self.faults), []
        return faults

    def _walk(self, step: int) -> Seen:
        if self.at is None or self.at > step:
            self.at = None
            self._arrive(0, self.holder.reset(self.trajectory.seed, self.trajectory.task))
        while self.at is not None and self.at < step:
            before, self.at = self.at, None
            action = self.trajectory.steps[before].action
            seen, done = self.holder.step(action)
            self._arrive(before + 1, seen)
            self.walked[before] = Executed(action, seen.observation, bool(seen.info.get("valid", True)), done)
        return self.seen

    def _arrive(self, step: int, seen: Seen) -> None:
        problem = self._differs(step, seen)
        if problem:
            raise LostError(problem[0], f"at step {step}, {problem[1]}")
        self.at, self.seen = step, seen

    def _differs(self, step: int, seen: Seen) -> tuple[str, str] | None:
        steps = self.trajectory.steps
        if step < len(steps):
            return differs(steps[step], seen.observation, seen.info)
        recorded = ExpertStep(self.trajectory.final_observation, "")
        return differs(recorded, seen.observation, {})


def differs(recorded: ExpertStep, observation: str, info: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return in what kind and how a state differs from the recorded one, or None."""
    if observation != recorded.observation:
        return "observation", f"the observation is {observation!r}, recorded was {recorded.observation!r}"
    admissible = info.get("admissible_actions")
    if recorded.admissible_actions is not None and admissible is not None:
        changed = set(recorded.admissible_actions) ^ set(admissible)
        if changed:
            return "admissible actions", f"the admissible actions differ in {sorted(changed)}"
    return None
