"""Ray workers that step environments: one host process each, alive for the whole stage, over any number of nodes."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import BranchError, EarlyExperienceError, EnvError
from verl_ee.experience.branching.protocol import Fault, StateResult, Usage, WorkUnit
from verl_ee.experience.branching.replayer import TRIES
from verl_ee.experience.branching.supervisor import HostSupervisor

REPORT_SECONDS = 0.2
"""Between two reports of a worker: what it has not reported is lost with it."""
AHEAD = 8
"""Reports of a worker that may wait for the driver before it pauses."""
_LOSSES = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.RaySystemError)


class EnvironmentWorker:
    """Holds one environment and branches what it is given."""

    def __init__(self, environment: EnvironmentConfig, config: CollectConfig, sample: ExpertTrajectory) -> None:
        # Not started here: what a constructor raises reaches the driver as text only.
        self._arguments = environment, config, sample
        self._started: HostSupervisor | None = None

    def ready(self) -> tuple[str, Usage]:
        """Return the way back to a state that the environment has, and what finding it out took."""
        return self._supervisor.restore, self._supervisor.trial

    @property
    def _supervisor(self) -> HostSupervisor:
        if self._started is None:
            self._started = HostSupervisor(*self._arguments)
        return self._started

    def branch(self, unit: WorkUnit) -> Iterator[list[StateResult]]:
        """Yield the answers of a unit, a few at a time."""
        waiting, reported = list[StateResult](), time.monotonic()
        for answer in self._supervisor.branch(unit):
            waiting.append(answer)
            if time.monotonic() - reported >= REPORT_SECONDS:
                yield waiting
                waiting, reported = [], time.monotonic()
        if waiting:
            yield waiting


class WorkerPool:
    """Workers, and the units that they are busy with.

    Attributes:
        restore: the way back to a state that the workers found.
        trial: what they spent on finding it.
        size: how many workers there are.
        losses: workers that were lost and whose work is done by others, each at the first state not reported.
        returned: what lost workers had left to do; it is to be submitted again.
    """

    def __init__(
        self, environment: EnvironmentConfig, config: CollectConfig, sample: ExpertTrajectory, units: int
    ) -> None:
        """Start the workers.

        Args:
            environment: which environment they hold.
            config: their number and all that they need.
            sample: a trajectory of the environment.
            units: more workers than these would stay idle.

        Raises:
            EnvironmentFault: if the environment cannot be made, or has no way back to a state.
            BranchError: if no worker starts.
        """
        self._new = lambda: (
            ray.remote(EnvironmentWorker)
            .options(num_cpus=1, scheduling_strategy="SPREAD")
            .remote(environment, config, sample)
        )
        self.size = worker_count(config, units)
        self._alive = [self._new() for _ in range(self.size)]
        self._idle = list(self._alive)
        self._busy: dict[Any, tuple[Any, list[WorkUnit]]] = {}
        self._starting: dict[Any, Any] = {}
        self._patience, self._alone = config.start_timeout + 60, time.monotonic()
        self._tries: Counter[tuple[int, int]] = Counter()
        self._loss = ""
        self.losses: list[Fault] = []
        self.returned: list[WorkUnit] = []
        try:
            ready = ray.get([worker.ready.remote() for worker in self._alive], timeout=config.start_timeout + 60)
        except ray.exceptions.GetTimeoutError:
            self.close()
            raise BranchError(
                f"No {self.size} environment workers could start within {config.start_timeout + 60:g} s: Ray has "
                f"{ray.available_resources().get('CPU', 0):g} CPUs free. Lower {config.key('workers')}."
            ) from None
        except ray.exceptions.RayError as error:
            self.close()
            raise _cause(error) from None
        self.restore = ready[0][0]
        self.trial = sum((usage for _, usage in ready), Usage())

    @property
    def free(self) -> int:
        """Workers without a unit."""
        return len(self._idle)

    @property
    def busy(self) -> bool:
        """Whether any unit is under way."""
        return bool(self._busy)

    def submit(self, unit: WorkUnit) -> None:
        """Give a unit to an idle worker."""
        worker = self._idle.pop()
        stream = worker.branch.options(num_returns="streaming", _generator_backpressure_num_objects=AHEAD).remote(unit)
        self._busy[stream] = (worker, [unit])

    def answers(self, timeout: float | None) -> list[StateResult]:
        """Return what has been answered, after at most `timeout` seconds; a worker that died is replaced.

        Raises:
            EnvironmentFault: if an environment can no longer be made.
            BranchError: if every worker was lost and none of those that replace them starts.
        """
        if self._busy or self._idle:
            self._alone = time.monotonic()
        elif time.monotonic() - self._alone > self._patience:
            raise BranchError(
                f"Every environment worker was lost, and none has started again within {self._patience:g} s. What has "
                f"been executed is kept; repeat the command when Ray has nodes. {self._loss}"
            )
        ready, _ = ray.wait([*self._busy, *self._starting], num_returns=1, timeout=timeout, fetch_local=True)
        for stream in ready:
            if stream in self._starting:
                self._started(stream)
                return []
            worker, units = self._busy[stream]
            try:
                answers = ray.get(next(stream))
            except StopIteration:
                del self._busy[stream]
                self._idle.append(worker)
                return []
            except _LOSSES as error:
                del self._busy[stream]
                return self._replace(worker, units[0], error)
            except ray.exceptions.RayError as error:
                raise _cause(error) from None
            units[0] = _rest(units[0], answers)
            return list(answers)
        return []

    def close(self) -> None:
        """End all workers."""
        for worker in self._alive:
            ray.kill(worker)

    def _replace(self, worker: Any, unit: WorkUnit, error: Exception) -> list[StateResult]:
        """Start another worker in place of a lost one, and return the answer of a state that none survives.

        At which of several states it was lost is not known. So each is tried once more, alone.
        """
        self._alive.remove(worker)
        ray.kill(worker)
        self._start()
        self._loss = f"A worker was lost: {str(error).strip().splitlines()[0]}"
        if not unit.requests:
            return []
        step = unit.requests[0].step
        fault = Fault(unit.index, step, "died", self._loss)
        self._tries.update((unit.index, ask.step) for ask in unit.requests)
        if len(unit.requests) == 1 and self._tries[unit.index, step] >= TRIES:
            return [StateResult(unit.index, step, faults=(fault,), lost=True)]
        self.losses.append(fault)
        self.returned += [replace(unit, requests=(ask,)) for ask in unit.requests]
        return []

    def _start(self) -> None:
        """Ask for a worker; it gets work once it has started, which where a node was lost may be never."""
        fresh = self._new()
        self._alive.append(fresh)
        self._starting[fresh.ready.remote()] = fresh

    def _started(self, ready: Any) -> None:
        worker = self._starting.pop(ready)
        try:
            ray.get(ready)
            self._idle.append(worker)
        except _LOSSES:
            self._alive.remove(worker)
            self._start()
        except ray.exceptions.RayError as error:
            raise _cause(error) from None


def _rest(unit: WorkUnit, answers: Sequence[StateResult]) -> WorkUnit:
    answered = {answer.step for answer in answers}
    return WorkUnit(unit.index, unit.trajectory, tuple(ask for ask in unit.requests if ask.step not in answered))


def connect_ray() -> None:
    """Join the Ray cluster that the surroundings name, or start one on this machine, unless that has been done."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def worker_count(config: CollectConfig, units: int) -> int:
    """Return how many workers share `units` pieces of work: as many as asked for, or as fit."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cores = (os.cpu_count() or 1) * len(nodes)
    fitting = min(cores, int(ray.available_resources().get("CPU", 0)))
    return max(1, min(config.workers or fitting, units))


def _cause(error: ray.exceptions.RayError) -> EarlyExperienceError:
    """Return what a worker raised, without Ray's traceback of another process."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EarlyExperienceError):
        return cause
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return EnvError(f"An environment worker failed: {lines[-1] if lines else type(error).__name__}")
