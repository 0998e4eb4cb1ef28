"""Keeps one environment host alive, and turns its deaths into faults."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory, canonical_form
from verl_ee.errors import BranchError, EnvError
from verl_ee.experience.branching.host_process import HostProcess
from verl_ee.experience.branching.protocol import (
    AUTO,
    HOST_OPENING,
    RESTORE_METHODS,
    TRIES,
    WORK_UNIT,
    Attempt,
    Failure,
    Fault,
    HostMessage,
    HostOpening,
    Ready,
    RestoreChosen,
    StateLostError,
    StateRequest,
    StateResult,
    UnitDone,
    Usage,
    WorkUnit,
    decode_host_message,
)
from verl_ee.experience.state_ref import StateRef


class HostSupervisor:
    """Runs units on a host process, which it starts again when it dies.

    Attributes:
        restore: the method to restore a state that the host has chosen; empty before `choose_restore`.
        trial_usage: steps and resets that the choice took.
    """

    def __init__(self, environment: EnvironmentConfig, config: CollectConfig, sample: ExpertTrajectory) -> None:
        """Start a host, and wait until it has made its environment.

        Args:
            environment: the environment that the host holds.
            config: time limits, and the choice of alternatives.
            sample: a trajectory on which the host may try methods to restore a state.

        Raises:
            EnvError: if the environment cannot be made.
            BranchError: if the last of `TRIES` hosts dies while it makes it.
        """
        opening = HostOpening(environment, config, sample, config.key("restore"))
        self._opening = json.dumps(HOST_OPENING.dump_python(opening, mode="json")).encode()
        self._config, self._id = config, environment.id
        self.restore, self.trial_usage = "", Usage()
        self._start_faults: list[str] = []
        self._start()

    def choose_restore(self, restore: str) -> None:
        """Let the host choose the method to restore a state.

        Args:
            restore: `auto`, or the name of a method.

        Raises:
            EnvError: if the environment cannot do what is requested, or offers no method at all.
            BranchError: if the host dies.
        """
        self._choose(restore)
        self.trial_usage = self._host.meter.usage

    def branch(self, unit: WorkUnit) -> Iterator[StateResult]:
        """Yield a result for every state of a unit, in order.

        Raises:
            EnvError: if the environment can no longer be made.
        """
        progress = _UnitProgress(unit)
        while progress.requests:
            progress.note_start_faults(self._take_start_faults())
            before = self._host.meter.usage
            for message in self._run(progress.begin_host()):
                if isinstance(message, Attempt):
                    progress.attempt = message
                elif isinstance(message, StateResult):
                    yield progress.complete(message)
                else:
                    progress.death = message
            if progress.requests:
                used = self._host.meter.usage - before
                progress.note_death(used + self._restart())
        yield from progress.lost_results()

    def close(self) -> None:
        """End the host."""
        self._host.end()

    def _run(self, unit: WorkUnit) -> Iterator[StateResult | Attempt | StateLostError]:
        """Yield the host's messages about a unit; an error says why the host ended before the unit was done."""
        try:
            self._host.send(WORK_UNIT.dump_json(unit))
        except OSError:
            yield self._death()
            return
        while (content := self._host.receive()) is not None:
            message = decode_host_message(content)
            if isinstance(message, UnitDone):
                return
            if isinstance(message, Failure):
                raise EnvError(f"{self._id}: {message.message}")
            if isinstance(message, Attempt | StateResult):
                yield message
        yield self._death()

    def _start(self) -> None:
        """Start a host, and another if it dies before it has made its environment."""
        attempt = 1
        while True:
            self._host = HostProcess()
            try:
                answer = self._exchange(self._opening, "could not be started")
            except BranchError as error:
                if attempt == TRIES:
                    raise
                self._start_faults.append(str(error))
                attempt += 1
                continue
            if isinstance(answer, Ready):
                self._start_faults += answer.faults
            return

    def _take_start_faults(self) -> list[str]:
        """Return why environments could not be made at first, and forget it."""
        faults, self._start_faults = self._start_faults, []
        return faults

    def _restart(self) -> Usage:
        """Start a host in place of the dead one, and return its steps and resets until it is ready."""
        self.close()
        self._start()
        self._choose(self.restore)
        return self._host.meter.usage

    def _choose(self, restore: str) -> None:
        key = self._config.key("restore")
        advice = f"{key}={AUTO} tries every method; name one of {', '.join(RESTORE_METHODS)} to try no other."
        problem = f"ended before it had chosen a method for {key}={restore}"
        answer = self._exchange(restore.encode(), problem, advice if restore == AUTO else "")
        if isinstance(answer, RestoreChosen):
            self.restore = answer.restore

    def _exchange(self, content: bytes, problem: str, advice: str = "") -> HostMessage:
        """Send a message and return the answer; a host that has none is closed."""
        try:
            self._host.send(content)
            answer = self._host.receive()
        except OSError:
            answer = None
        if answer is None:
            death = self._death()
            self.close()
            hint = advice or f"Try `verl-ee envs check {self._id}`."
            raise BranchError(f"{self._id} {problem}: {death}. {hint}")
        message = decode_host_message(answer)
        if isinstance(message, Failure):
            self.close()
            raise EnvError(message.message)
        return message

    def _death(self) -> StateLostError:
        end = self._host.wait()
        if not self._host.hung:
            return StateLostError("died", f"the process of the environment ended ({end})")
        step = f"{self._config.key('step_timeout')}={self._config.step_timeout:g} s"
        start = f"{self._config.key('start_timeout')}={self._config.start_timeout:g} s"
        return StateLostError("time limit", f"a step took longer than {step}, or a reset longer than {start} ({end})")


class _UnitProgress:
    """The part of a unit that has no result yet, over all hosts that work on it.

    Attributes:
        requests: states without a result.
        attempt: the last attempt that the present host has announced.
        death: why the last host ended.
    """

    def __init__(self, unit: WorkUnit) -> None:
        self._unit = unit
        self.requests = list(unit.requests)
        self.attempt = Attempt(0)
        self.death = StateLostError("died", "")
        self._deaths = Counter[Attempt]()
        self._lost: list[StateResult] = []
        # The next result reports the faults and the usage of the hosts that have died before it.
        self._faults: list[Fault] = []
        self._unreported = Usage()
        self._reported_by_host = Usage()

    def begin_host(self) -> WorkUnit:
        """Return what the next host is to do."""
        self.attempt = Attempt(self.requests[0].step)
        self._reported_by_host = Usage()
        return replace(self._unit, requests=tuple(self.requests))

    def complete(self, result: StateResult) -> StateResult:
        """Take the result of the next state off the open requests, and return it with what it has to report."""
        self.requests.pop(0)
        self._reported_by_host += result.usage
        usage = result.usage + self._unreported
        faults = (*self._faults, *result.faults)
        self._faults, self._unreported = [], Usage()
        return replace(result, faults=faults, usage=usage)

    def note_start_faults(self, messages: Sequence[str]) -> None:
        """Let the next result report attempts to make an environment that failed."""
        ref = StateRef(self._unit.trajectory_index, self.requests[0].step)
        self._faults += [Fault(ref, "start", message) for message in messages]

    def note_death(self, usage: Usage) -> None:
        """Decide what the next host tries again, and what is given up.

        Args:
            usage: steps and resets of the dead host since it began, and of the next one until it was ready.
        """
        self._unreported += usage - self._reported_by_host
        step, action = self.attempt.step, self.attempt.action
        self._deaths[self.attempt] += 1
        if self._deaths[self.attempt] < TRIES:
            self._faults.append(self._fault(step))
        elif action is not None:
            self._faults.append(self._fault(step, action))
            self.requests = [
                self._without_action(request, action) if request.step == step else request for request in self.requests
            ]
        else:
            self._give_up_from(step)

    def lost_results(self) -> list[StateResult]:
        """Return the results of the states that were given up."""
        if not self._lost:
            return []
        first, *others = self._lost
        return [replace(first, faults=(*self._faults, *first.faults), usage=self._unreported), *others]

    def _give_up_from(self, step: int) -> None:
        """Give up the states from which the walk cannot go on.

        The next host executes again what was branched before them: its result waited for the state that was not
        reached.
        """
        faults = [self._fault(request.step) for request in self.requests if request.step >= step]
        self._lost = [StateResult(fault.ref, faults=(fault,), lost=True) for fault in faults] + self._lost
        self.requests = [request for request in self.requests if request.step < step]

    def _without_action(self, request: StateRequest, action: str) -> StateRequest:
        canonical = canonical_form(self._unit.trajectory.environment)
        is_expert_action = action == self._unit.trajectory.steps[request.step].action
        return replace(
            request,
            known=(*request.known, canonical(action)),
            include_expert=request.include_expert and not is_expert_action,
        )

    def _fault(self, step: int, action: str | None = None) -> Fault:
        return Fault(StateRef(self._unit.trajectory_index, step), self.death.kind, str(self.death), action)
