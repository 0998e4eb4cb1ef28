"""Replay of an expert's actions in an environment, with the proof of every state on the way."""

from __future__ import annotations

from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.protocol import Fault, StateLostError
from verl_ee.experience.branching.session import EnvironmentSession, StateView
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef

TRIES = 2
"""Attempts to reach a state, or to execute an action there."""


class Replayer:
    """Walks along one trajectory.

    Attributes:
        session: holds the environment.
        trajectory: the expert's actions and observations.
        trajectory_index: position of the trajectory in its file.
        position: expert actions since the reset, or None where the environment is in another state.
        view: the state at `position`.
        expert_outcomes: outcomes of the expert's actions by step; each led to the recorded state.
        faults: faults that a second attempt repaired, since they were last taken.
    """

    def __init__(self, session: EnvironmentSession, trajectory: ExpertTrajectory, trajectory_index: int) -> None:
        self.session, self.trajectory, self.trajectory_index = session, trajectory, trajectory_index
        self.position: int | None = None
        self.view = StateView("", {})
        self.expert_outcomes: dict[int, Outcome] = {}
        self.faults: list[Fault] = []

    def ref(self, step: int) -> StateRef:
        """Return the position of a state in the expert file."""
        return StateRef(self.trajectory_index, step)

    def reach(self, step: int) -> StateView:
        """Go to a state, from the present position or from a reset.

        Args:
            step: step of the state; the number of steps for the state after the last.

        Raises:
            StateLostError: if the last of `TRIES` attempts led elsewhere.
        """
        attempt = 1
        while True:
            try:
                self._walk(step)
                return self.view
            except StateLostError as error:
                self.position = None
                if attempt == TRIES:
                    raise
                self.note_retry(step, error)
                attempt += 1

    def act(self, action: str) -> Outcome:
        """Execute an action that leaves the trajectory.

        Raises:
            StateLostError: if the environment failed.
        """
        self.position = None
        view, done = self.session.step(action)
        return Outcome(action, view.observation, view.valid, done)

    def restore(self, snapshot: object, step: int) -> None:
        """Re-enter the snapshot of a step, and prove the state.

        Raises:
            StateLostError: if another state came back.
        """
        self.position = None
        view = self.session.restore(snapshot)
        self._prove(step, view, "after going back")
        self.position, self.view = step, view

    def note_retry(self, step: int, error: StateLostError) -> None:
        """Keep the fault of an attempt that is made again."""
        self.faults.append(Fault(self.ref(step), error.kind, str(error)))

    def take_faults(self) -> tuple[Fault, ...]:
        """Return the faults so far, and forget them."""
        faults, self.faults = tuple(self.faults), []
        return faults

    def _walk(self, step: int) -> None:
        position, self.position = self.position, None
        if position is None or position > step:
            view = self.session.reset(self.trajectory.seed, self.trajectory.task)
            self._arrive(0, view)
            position = 0
        for walked in range(position, step):
            action = self.trajectory.steps[walked].action
            view, done = self.session.step(action)
            self._arrive(walked + 1, view)
            self.expert_outcomes[walked] = Outcome(action, view.observation, view.valid, done)
        self.position = step

    def _arrive(self, step: int, view: StateView) -> None:
        self._prove(step, view, f"at step {step}")
        self.view = view

    def _prove(self, step: int, view: StateView, where: str) -> None:
        steps = self.trajectory.steps
        is_last = step == len(steps)
        observation = self.trajectory.final_observation if is_last else steps[step].observation
        if observation is not None and view.observation != observation:
            raise StateLostError(
                "observation", f"{where}, the observation is {view.observation!r}, recorded was {observation!r}"
            )
        recorded = None if is_last else steps[step].admissible_actions
        if recorded is None or view.admissible_actions is None:
            return
        changed = set(recorded) ^ set(view.admissible_actions)
        if changed:
            raise StateLostError("admissible actions", f"{where}, the admissible actions differ in {sorted(changed)}")
