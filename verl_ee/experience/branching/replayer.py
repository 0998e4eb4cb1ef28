"""Plays an expert's actions in an environment and proves, at every state, that it is the recorded one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.experience.branching.protocol import Fault, Outcome, StateLostError
from verl_ee.experience.branching.session import EnvironmentSession, StateView

TRIES = 2
"""Attempts to reach a state, or to execute an action there."""


class Replayer:
    """Walks along one trajectory.

    Attributes:
        at: expert actions since the reset, or None where the environment is elsewhere.
        seen: what is shown at `at`.
        walked: outcomes of the expert's actions, by step, each proved to lead to the recorded state.
        faults: what went wrong and was made good by a second attempt, since they were last taken.
    """

    def __init__(self, session: EnvironmentSession, trajectory: ExpertTrajectory, index: int) -> None:
        self.session, self.trajectory, self.index = session, trajectory, index
        self.at: int | None = None
        self.seen = StateView("", {})
        self.walked: dict[int, Outcome] = {}
        self.faults: list[Fault] = []

    def reach(self, step: int) -> StateView:
        """Go to a state, from where the walk stands or from a reset.

        Args:
            step: its step; the number of steps for the state after the last.

        Raises:
            LostError: if the last of `TRIES` attempts led elsewhere.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return self._walk(step)
            except StateLostError as error:
                self.at = None
                if attempt == TRIES:
                    raise
                self.excuse(step, error)
        raise AssertionError("unreachable")

    def act(self, action: str) -> Outcome:
        """Execute an action that leaves the trajectory."""
        self.at = None
        seen, done = self.session.step(action)
        return Outcome(action, seen.observation, bool(seen.info.get("valid", True)), done)

    def restore(self, state: Any, step: int) -> None:
        """Re-enter the snapshot of a step, and prove it.

        Raises:
            LostError: if another state came back.
        """
        self.at = None
        seen = self.session.restore(state)
        problem = self._differs(step, seen)
        if problem:
            raise StateLostError(problem[0], f"after going back, {problem[1]}")
        self.at, self.seen = step, seen

    def excuse(self, step: int, error: StateLostError) -> None:
        """Count an attempt that failed and is made again."""
        self.faults.append(Fault(self.index, step, error.kind, str(error)))

    def take_faults(self) -> tuple[Fault, ...]:
        """Return the faults so far, and forget them."""
        faults, self.faults = tuple(self.faults), []
        return faults

    def _walk(self, step: int) -> StateView:
        if self.at is None or self.at > step:
            self.at = None
            self._arrive(0, self.session.reset(self.trajectory.seed, self.trajectory.task))
        while self.at is not None and self.at < step:
            before, self.at = self.at, None
            action = self.trajectory.steps[before].action
            seen, done = self.session.step(action)
            self._arrive(before + 1, seen)
            self.walked[before] = Outcome(action, seen.observation, bool(seen.info.get("valid", True)), done)
        return self.seen

    def _arrive(self, step: int, seen: StateView) -> None:
        problem = self._differs(step, seen)
        if problem:
            raise StateLostError(problem[0], f"at step {step}, {problem[1]}")
        self.at, self.seen = step, seen

    def _differs(self, step: int, seen: StateView) -> tuple[str, str] | None:
        steps = self.trajectory.steps
        if step < len(steps):
            return difference_from_recorded(steps[step], seen.observation, seen.info)
        recorded = ExpertStep(self.trajectory.final_observation, "")
        return difference_from_recorded(recorded, seen.observation, {})


def difference_from_recorded(recorded: ExpertStep, observation: str, info: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return in what kind and how a state differs from the recorded one, or None."""
    if observation != recorded.observation:
        return "observation", f"the observation is {observation!r}, recorded was {recorded.observation!r}"
    admissible = info.get("admissible_actions")
    if recorded.admissible_actions is not None and admissible is not None:
        changed = set(recorded.admissible_actions) ^ set(admissible)
        if changed:
            return "admissible actions", f"the admissible actions differ in {sorted(changed)}"
    return None
