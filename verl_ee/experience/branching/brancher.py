"""Branching at the states of an expert trajectory: reach a state, prove it, execute each alternative there.

Rewards are never read here: early experience is reward-free (paper, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from verl_ee.config import CollectConfig
from verl_ee.envs import canonical_form
from verl_ee.experience.branching.protocol import (
    TRIES,
    Fault,
    StateLostError,
    StateRequest,
    StateResult,
    Usage,
    WorkUnit,
)
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.restore import RestoreMethod
from verl_ee.experience.branching.session import EnvironmentSession, StateView
from verl_ee.experience.outcome import Outcome
from verl_ee.experience.proposers import listed_proposals

OnAttempt = Callable[[int, str | None], None]
"""Called with the step of the state that is reached next (and None), or with the action that is executed there next."""


def branch(
    session: EnvironmentSession,
    restore: RestoreMethod,
    unit: WorkUnit,
    config: CollectConfig,
    on_attempt: OnAttempt = lambda step, action: None,
) -> Iterator[StateResult]:
    """Branch at every state of a unit, in order.

    A state that cannot be proved is lost, and so are the states after it in the unit. An action that cannot be executed
    is left out. Both are tried twice, and reported as a fault.

    Args:
        session: holds a fresh or used environment of the trajectory's id.
        restore: the method to go back to a state.
        unit: the states.
        config: how alternatives are chosen where the unit does not name them.
        on_attempt: called before each attempt, so that a supervisor knows what a process died of.

    Yields:
        One result per state. It comes once the expert's own outcome there is known, which on a walk is when the next
        state is reached.
    """
    yield from _Brancher(session, restore, unit, config, on_attempt).results()


@dataclass(frozen=True)
class _Pending:
    """The result of a state whose expert outcome may still be unknown."""

    request: StateRequest
    result: StateResult


class _Brancher:
    """Branches one unit."""

    def __init__(
        self,
        session: EnvironmentSession,
        restore: RestoreMethod,
        unit: WorkUnit,
        config: CollectConfig,
        on_attempt: OnAttempt,
    ) -> None:
        self._session, self._restore, self._unit, self._config = session, restore, unit, config
        self._on_attempt = on_attempt
        self._canonical = canonical_form(unit.trajectory.environment)
        self._replayer = Replayer(session, unit.trajectory, unit.trajectory_index)
        self._arrived = False
        """Whether the restore method has prepared for the present state."""
        self._reported = session.usage
        """Usage that earlier results have reported."""

    def results(self) -> Iterator[StateResult]:
        """Yield the result of each state."""
        pending: _Pending | None = None
        for position, request in enumerate(self._unit.requests):
            self._on_attempt(request.step, None)
            try:
                view = self._replayer.reach(request.step)
                seen = view.seen() if request.include_seen else None
            except StateLostError as error:
                if pending:
                    yield self._without_expert_outcome(pending, error)
                yield from self._lost_results(self._unit.requests[position:], error)
                return
            if pending:
                yield self._with_expert_outcome(pending)
            pending = _Pending(request, replace(self._branch_state(request, view), seen=seen))
        if pending:
            yield self._last_result(pending)

    def _branch_state(self, request: StateRequest, view: StateView) -> StateResult:
        """Execute the alternatives of the state that was just reached."""
        alternatives = self._alternatives(request, view)
        outcomes, faults = self._execute(request.step, request.unknown_actions(alternatives, self._canonical))
        return StateResult(
            self._replayer.ref(request.step),
            alternatives,
            outcomes=outcomes,
            faults=(*self._replayer.take_faults(), *faults),
            usage=self._take_usage(),
        )

    def _alternatives(self, request: StateRequest, view: StateView) -> tuple[str, ...]:
        if request.alternatives is not None:
            return request.alternatives
        trajectory = self._unit.trajectory
        listed = trajectory.steps[request.step].admissible_actions or view.admissible_actions or ()
        proposals = listed_proposals(self._config, trajectory, request.step, listed)
        return tuple(proposal.action for proposal in proposals)

    def _execute(self, step: int, actions: Sequence[str]) -> tuple[tuple[Outcome, ...], tuple[Fault, ...]]:
        """Execute actions in one state, and return their outcomes, and a fault for each that has none."""
        self._arrived = False
        results = [self._execute_action(step, action) for action in actions]
        if self._arrived:
            self._leave(step)
        outcomes = tuple(result for result in results if isinstance(result, Outcome))
        return outcomes, tuple(result for result in results if isinstance(result, Fault))

    def _execute_action(self, step: int, action: str) -> Outcome | Fault:
        self._on_attempt(step, action)
        attempt = 1
        while True:
            try:
                self._arrive(step)
                return self._restore.execute(self._replayer, step, action)
            except StateLostError as error:
                self._replayer.position, self._arrived = None, False
                if attempt == TRIES:
                    return self._fault(step, error, action)
                self._replayer.note_retry(step, error)
                attempt += 1

    def _arrive(self, step: int) -> None:
        if not self._arrived:
            self._replayer.reach(step)
            self._restore.arrive(self._replayer)
            self._arrived = True

    def _leave(self, step: int) -> None:
        try:
            self._restore.leave(self._replayer, step)
        except StateLostError as error:
            # The next state is reached from a reset instead.
            self._replayer.position = None
            self._replayer.note_retry(step, error)

    def _with_expert_outcome(self, pending: _Pending) -> StateResult:
        if not pending.request.include_expert:
            return pending.result
        return replace(pending.result, expert_outcome=self._replayer.expert_outcomes.get(pending.request.step))

    def _without_expert_outcome(self, pending: _Pending, error: StateLostError) -> StateResult:
        """Complete the result of a state from which the walk led elsewhere."""
        result = self._with_expert_outcome(pending)
        if not pending.request.include_expert or result.expert_outcome:
            return result
        step = pending.request.step
        fault = self._fault(step, error, self._unit.trajectory.steps[step].action)
        return replace(result, faults=(*result.faults, fault))

    def _lost_results(self, requests: Sequence[StateRequest], error: StateLostError) -> Iterator[StateResult]:
        for request in requests:
            faults = (*self._replayer.take_faults(), self._fault(request.step, error))
            ref = self._replayer.ref(request.step)
            yield StateResult(ref, faults=faults, lost=True, usage=self._take_usage())

    def _last_result(self, pending: _Pending) -> StateResult:
        """Complete the result of the last state; nothing but its expert outcome makes the walk go on."""
        request, result = pending.request, pending.result
        if request.include_expert and request.step not in self._replayer.expert_outcomes:
            result = replace(result, faults=(*result.faults, *self._execute_expert(request.step)))
        result = self._with_expert_outcome(_Pending(request, result))
        return replace(result, usage=result.usage + self._take_usage())

    def _execute_expert(self, step: int) -> tuple[Fault, ...]:
        """Execute the expert's action, and return what went wrong."""
        action = self._unit.trajectory.steps[step].action
        self._on_attempt(step, action)
        try:
            self._replayer.reach(step + 1)
        except StateLostError as error:
            return (*self._replayer.take_faults(), self._fault(step, error, action))
        return self._replayer.take_faults()

    def _fault(self, step: int, error: StateLostError, action: str | None = None) -> Fault:
        return Fault(self._replayer.ref(step), error.kind, str(error), action)

    def _take_usage(self) -> Usage:
        """Return the steps and resets since the last call."""
        before, self._reported = self._reported, self._session.usage
        return self._reported - before
