"""Branch at the states of an expert trajectory: reach the state, prove it, execute each action, record what came back.

Rewards are never read here: early experience is reward-free (paper, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from verl_ee.config import CollectConfig
from verl_ee.experience.branching.protocol import Fault, StateLostError, StateRequest, StateResult, Usage, WorkUnit
from verl_ee.experience.branching.replayer import TRIES, Replayer
from verl_ee.experience.branching.restore import RestoreMethod
from verl_ee.experience.branching.session import EnvironmentSession, StateView
from verl_ee.experience.proposers import listed_proposals
from verl_ee.prompts.actions import canonical

Begin = Callable[[int, str | None], None]
"""Told which step is reached next (no action), or which action is executed there next."""


def branch(
    session: EnvironmentSession,
    restore: RestoreMethod,
    unit: WorkUnit,
    config: CollectConfig,
    begin: Begin = lambda step, action: None,
) -> Iterator[StateResult]:
    """Branch at every state of a unit, in order.

    A state that cannot be proved is lost, and so is what follows it in the unit; an action that cannot be executed is
    left out. Either is tried twice, and reported as a fault.

    Args:
        session: holds a fresh or used environment of the trajectory's id.
        restore: the way back to a state.
        unit: what to execute.
        config: how alternatives are chosen where the unit does not name them.
        begin: told what is attempted next, so that whoever watches knows what a process died of.

    Yields:
        One answer per state. It comes once the expert's own outcome there is known, which for a walk is when the next
        state is reached.
    """
    replayer = Replayer(session, unit.trajectory, unit.index)
    held: tuple[StateRequest, StateResult] | None = None
    before = session.usage
    for position, ask in enumerate(unit.requests):
        begin(ask.step, None)
        try:
            seen = replayer.reach(ask.step)
        except StateLostError as error:
            if held:
                yield _missed(replayer, *held, error)
            yield from _lost(replayer, unit.requests[position:], error, before)
            return
        if held:
            yield _with_expert(replayer, *held)
        answer = _alternatives(replayer, restore, ask, seen, config, begin)
        usage, before = session.usage - before, session.usage
        held = ask, replace(answer, usage=usage, faults=(*replayer.take_faults(), *answer.faults))
    if held:
        ask, answer = held
        answer = _finished(replayer, ask, answer, begin)
        yield replace(_with_expert(replayer, ask, answer), usage=answer.usage + (session.usage - before))


def _lost(
    replayer: Replayer, requests: Sequence[StateRequest], error: StateLostError, before: Usage
) -> Iterator[StateResult]:
    for ask in requests:
        fault = Fault(replayer.index, ask.step, error.kind, str(error))
        usage, before = replayer.session.usage - before, replayer.session.usage
        yield StateResult(replayer.index, ask.step, faults=(*replayer.take_faults(), fault), lost=True, usage=usage)


def _alternatives(
    replayer: Replayer, restore: RestoreMethod, ask: StateRequest, seen: StateView, config: CollectConfig, begin: Begin
) -> StateResult:
    recorded = replayer.trajectory.steps[ask.step]
    actions = ask.actions
    if actions is None:
        listed = recorded.admissible_actions or seen.info.get("admissible_actions") or ()
        proposals = listed_proposals(config, replayer.trajectory, ask.step, listed)
        actions = tuple(proposal.action for proposal in proposals)
    executed, faults = [], []
    known = set(ask.known)
    fresh = [action for action in actions if canonical(action) not in known]
    arrived = False
    for action in fresh:
        begin(ask.step, action)
        for attempt in range(1, TRIES + 1):
            try:
                if not arrived:
                    replayer.reach(ask.step)
                    restore.arrive(replayer)
                    arrived = True
                executed.append(restore.execute(replayer, ask.step, action))
                break
            except StateLostError as error:
                replayer.at, arrived = None, False
                if attempt == TRIES:
                    faults.append(Fault(replayer.index, ask.step, error.kind, str(error), action))
                else:
                    replayer.excuse(ask.step, error)
    if fresh and arrived:
        try:
            restore.leave(replayer, ask.step)
        except StateLostError as error:
            replayer.at = None
            replayer.excuse(ask.step, error)
    return StateResult(replayer.index, ask.step, actions, tuple(executed), None, tuple(faults))


def _with_expert(replayer: Replayer, ask: StateRequest, answer: StateResult) -> StateResult:
    return replace(answer, expert=replayer.walked.get(ask.step)) if ask.expert else answer


def _missed(replayer: Replayer, ask: StateRequest, answer: StateResult, error: StateLostError) -> StateResult:
    """Complete the answer of a state from which the walk led elsewhere."""
    answer = _with_expert(replayer, ask, answer)
    if not ask.expert or answer.expert:
        return answer
    fault = Fault(replayer.index, ask.step, error.kind, str(error), replayer.trajectory.steps[ask.step].action)
    return replace(answer, faults=(*answer.faults, fault))


def _finished(replayer: Replayer, ask: StateRequest, answer: StateResult, begin: Begin) -> StateResult:
    """Execute the expert's action in the last state of a unit, if its outcome is asked for."""
    if not ask.expert or ask.step in replayer.walked:
        return answer
    action = replayer.trajectory.steps[ask.step].action
    begin(ask.step, action)
    try:
        replayer.reach(ask.step + 1)
        missing: tuple[Fault, ...] = ()
    except StateLostError as error:
        missing = (Fault(replayer.index, ask.step, error.kind, str(error), action),)
    return replace(answer, faults=(*answer.faults, *replayer.take_faults(), *missing))
