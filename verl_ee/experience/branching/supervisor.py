"""Keeps one environment host alive, and turns its deaths into faults."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import BranchError, EnvError
from verl_ee.experience.branching.host import BEGIN, DONE, FATAL, READY
from verl_ee.experience.branching.host_process import HostProcess
from verl_ee.experience.branching.protocol import (
    STATE_RESULT,
    TRAJECTORY,
    WORK_UNIT,
    Fault,
    StateLostError,
    StateRequest,
    StateResult,
    Usage,
    WorkUnit,
)
from verl_ee.experience.branching.replayer import TRIES
from verl_ee.prompts.actions import canonical


class HostSupervisor:
    """Runs units on a host process, which it starts again when it dies.

    Attributes:
        restore: the way back to a state that the host chose.
        trial: what the host spent on choosing it.
    """

    def __init__(self, environment: EnvironmentConfig, config: CollectConfig, sample: ExpertTrajectory) -> None:
        """Start a host.

        Args:
            environment: which environment it holds.
            config: way back, limits, choice of alternatives.
            sample: a trajectory, on which the host may try whether the environment can be forked.

        Raises:
            EnvironmentFault: if the environment cannot be made, or has no way back to a state.
        """
        opening = {
            "environment": environment.model_dump(mode="json"),
            "collect": config.model_dump(mode="json"),
            "restore_key": config.key("restore"),
            "sample": TRAJECTORY.dump_python(sample, mode="json"),
        }
        self._opening, self._config, self._id = json.dumps(opening).encode(), config, environment.id
        self.restore = ""
        self.trial = self._start()

    def branch(self, unit: WorkUnit) -> Iterator[StateResult]:
        """Yield an answer for every state of a unit, in order.

        Raises:
            EnvironmentFault: if the environment can no longer be made.
        """
        deaths: Counter[tuple[int, str | None]] = Counter()
        requests, faults, lost = list(unit.requests), list[Fault](), list[StateResult]()
        wasted = Usage()
        while requests:
            at: tuple[int, str | None] = (requests[0].step, None)
            kind = reason = ""
            before, answered = self._host.meter.usage, Usage()
            for message in self._run(replace(unit, requests=tuple(requests))):
                if isinstance(message, StateResult):
                    faults, mine = [], tuple(faults)
                    wasted, spent = Usage(), message.usage + wasted
                    answered += message.usage
                    requests.pop(0)
                    yield replace(message, faults=(*mine, *message.faults), usage=spent)
                elif isinstance(message, StateLostError):
                    kind, reason = message.kind, str(message)
                else:
                    at = message
            if not requests:
                break
            # What a dead host had not answered for, and what its successor tried before it was ready.
            wasted += self._host.meter.usage - before - answered + self._start()
            step, action = at
            deaths[at] += 1
            if deaths[at] < TRIES:
                faults.append(Fault(unit.index, step, kind, reason))
            elif action is not None:
                faults.append(Fault(unit.index, step, kind, reason, action))
                requests = [_without(unit, ask, action) if ask.step == step else ask for ask in requests]
            else:
                gone = [Fault(unit.index, ask.step, kind, reason) for ask in requests if ask.step >= step]
                lost = [StateResult(unit.index, fault.step, faults=(fault,), lost=True) for fault in gone] + lost
                # What was branched before is executed again: its answer waited for the state that was not reached.
                requests = [ask for ask in requests if ask.step < step]
        if lost:
            yield replace(lost[0], faults=(*faults, *lost[0].faults), usage=wasted)
            yield from lost[1:]

    def close(self) -> None:
        """End the host."""
        self._host.end()

    def _run(self, unit: WorkUnit) -> Iterator[StateResult | tuple[int, str | None] | StateLostError]:
        """Yield what the host says about a unit; an error is why it ended before the unit was done."""
        try:
            self._host.send(WORK_UNIT.dump_json(unit))
        except OSError:
            yield self._death()
            return
        while (content := self._host.receive()) is not None:
            kind, value = _parsed(content)
            if kind == DONE:
                return
            if kind == FATAL:
                raise EnvError(f"{self._id}: {value}")
            yield (value[0], value[1]) if kind == BEGIN else value
        yield self._death()

    def _start(self) -> Usage:
        """Start a host, in place of one that has died, and return what it spent until it was ready."""
        if self.restore:
            self.close()
        self._host = HostProcess()
        try:
            self._host.send(self._opening)
            content = self._host.receive()
        except OSError:
            content = None
        if content is None:
            death = self._death()
            self.close()
            raise BranchError(f"{self._id} could not be started: {death}. Try `verl-ee envs check {self._id}`.")
        kind, value = _parsed(content)
        if kind != READY:
            self.close()
            raise EnvError(str(value))
        self.restore = value
        return self._host.meter.usage

    def _death(self) -> StateLostError:
        how = self._host.wait()
        if not self._host.hung:
            return StateLostError("died", f"the process of the environment ended ({how})")
        step, start = (
            f"{self._config.key(name)}={getattr(self._config, name):g} s" for name in ("step_timeout", "start_timeout")
        )
        return StateLostError("time limit", f"a step took longer than {step}, or a reset longer than {start} ({how})")


def _parsed(content: bytes) -> tuple[str, Any]:
    for name in (BEGIN, READY, FATAL, DONE):
        if content.startswith(b'{"%s"' % name.encode()):
            return name, json.loads(content)[name]
    return "answer", STATE_RESULT.validate_json(content)


def _without(unit: WorkUnit, ask: StateRequest, action: str) -> StateRequest:
    own = action == unit.trajectory.steps[ask.step].action
    return replace(ask, known=(*ask.known, canonical(action)), expert=ask.expert and not own)
