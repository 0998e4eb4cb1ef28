"""Replay of an expert's actions in an environment, with the proof of every state on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from verl_ee.envs import ExpertTrajectory
from verl_ee.envs.snapshots import WrappedSnapshot
from verl_ee.experience.branching.protocol import TRIES, Fault, StateLostError
from verl_ee.experience.branching.session import EnvironmentSession, StateView
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.state_ref import StateRef


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
        return view.outcome(action, done)

    def restore(self, snapshot: WrappedSnapshot, step: int) -> None:
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
            view = self._reset(step)
            self._arrive(0, view)
            position = 0
        for walked in range(position, step):
            action = self.trajectory.steps[walked].action
            view, done = self.session.step(action)
            self._arrive(walked + 1, view)
            self._keep_outcome(walked, view.outcome(action, done))
        self.position = step

    def _reset(self, step: int) -> StateView:
        """Begin an episode on the way to a state, and note how often the environment could not be made for it."""
        try:
            return self.session.reset(self.trajectory.seed, self.trajectory.task)
        finally:
            self.faults += [Fault(self.ref(step), "start", message) for message in self.session.take_start_faults()]

    def _keep_outcome(self, step: int, outcome: Outcome) -> None:
        """Keep the outcome of an expert's action; a later walk must have the same."""
        difference = self.expert_outcomes.setdefault(step, outcome).difference(outcome)
        if difference:
            raise StateLostError("outcome", f"at step {step}, the expert's action came out otherwise: {difference}")

    def _arrive(self, step: int, view: StateView) -> None:
        self._prove(step, view, f"at step {step}")
        self.view = view

    def _prove(self, step: int, view: StateView, where: str) -> None:
        trajectory = self.trajectory
        if step == 0:
            _prove_instruction(trajectory.instruction, view.info.get("task"), where)
        if step == len(trajectory.steps):
            _prove_observation(trajectory.final_observation, view.observation, where)
            return
        recorded = trajectory.steps[step]
        _prove_observation(recorded.observation, view.observation, where)
        if recorded.admissible_actions is not None and view.admissible_actions is not None:
            _prove_actions(recorded.admissible_actions, view.admissible_actions, where)


def _prove_instruction(recorded: str | None, seen: object, where: str) -> None:
    if recorded is not None and seen is not None and seen != recorded:
        raise StateLostError(
            "instruction", f'{where}, the instruction (info["task"]) is {seen!r}, recorded was {recorded!r}'
        )


def _prove_observation(recorded: str | None, seen: str, where: str) -> None:
    if recorded is not None and seen != recorded:
        raise StateLostError("observation", f"{where}, the observation is {seen!r}, recorded was {recorded!r}")


def _prove_actions(recorded: Sequence[str], seen: Sequence[str], where: str) -> None:
    if list(seen) == list(recorded):
        return
    missing, added = Counter(recorded) - Counter(seen), Counter(seen) - Counter(recorded)
    if missing or added:
        problem = f"differ: {sorted(missing, key=str)} are missing, {sorted(added, key=str)} were not recorded"
    else:
        place = next(index for index, pair in enumerate(zip(seen, recorded, strict=True)) if pair[0] != pair[1])
        problem = f"are the same in another order: number {place} is {seen[place]!r}, recorded was {recorded[place]!r}"
    raise StateLostError("admissible actions", f"{where}, the admissible actions {problem}")
