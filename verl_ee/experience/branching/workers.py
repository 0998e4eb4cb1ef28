"""Ray workers that step environments: one host process each, alive for the whole stage, over any number of nodes."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import ray
from ray import ObjectRef, ObjectRefGenerator
from ray.actor import ActorHandle

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import BranchError, EarlyExperienceError, EnvError
from verl_ee.experience.branching.protocol import AUTO, TRIES, Fault, StateResult, Usage, WorkUnit
from verl_ee.experience.branching.supervisor import HostSupervisor
from verl_ee.experience.state_ref import StateRef

REPORT_SECONDS = 0.2
"""Time between two reports of a worker; unreported results are lost with the worker."""
REPORTS_AHEAD = 8
"""Reports of a worker that may wait for the driver before it pauses."""
QUEUE_SECONDS = 60
"""Time that Ray may take to place a worker, besides the time that its environment may take to be made."""
_WORKER_LOST = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.RaySystemError)


class EnvironmentWorker:
    """Holds one environment and branches the units that it is given."""

    def __init__(self, environment: EnvironmentConfig, config: CollectConfig, sample: ExpertTrajectory) -> None:
        self._environment, self._config, self._sample = environment, config, sample
        self._supervisor: HostSupervisor | None = None

    def start(self) -> None:
        """Start the host; the constructor does not, because its errors would reach the driver as text only."""
        self._started()

    def choose_restore(self, restore: str) -> tuple[str, Usage]:
        """Return the method to restore a state, and the steps and resets that the choice took.

        Args:
            restore: `auto`, or the name of a method.
        """
        supervisor = self._started()
        supervisor.choose_restore(restore)
        return supervisor.restore, supervisor.trial_usage

    def branch(self, unit: WorkUnit) -> Iterator[list[StateResult]]:
        """Yield the results of a unit, a few at a time."""
        results, reported = list[StateResult](), time.monotonic()
        for result in self._started().branch(unit):
            results.append(result)
            if time.monotonic() - reported >= REPORT_SECONDS:
                yield results
                results, reported = [], time.monotonic()
        if results:
            yield results

    def _started(self) -> HostSupervisor:
        if self._supervisor is None:
            self._supervisor = HostSupervisor(self._environment, self._config, self._sample)
        return self._supervisor


class WorkerPool:
    """Workers, and the units that they are busy with.

    Attributes:
        restore: the method to restore a state, the same for all workers.
        trial_usage: steps and resets that its choice took.
        size: number of workers.
        worker_losses: one fault for each lost worker whose unit others finish, at the first state not reported.
        unfinished_units: what lost workers had left to do; it is to be submitted again.
    """

    def __init__(
        self,
        environment: EnvironmentConfig,
        config: CollectConfig,
        sample: ExpertTrajectory,
        units: int,
        restore: str | None = None,
    ) -> None:
        """Start the workers.

        Args:
            environment: the environment that they hold.
            config: their number, time limits, and the choice of alternatives.
            sample: a trajectory of the environment.
            units: more workers than these would stay idle.
            restore: `walk` if no unit has alternatives; None for the method that the config names.

        Raises:
            EnvError: if the environment cannot be made, or offers no method to restore a state.
            BranchError: if no worker starts.
        """
        self._arguments, self._config = (environment, config, sample), config
        self.size = worker_count(config, units)
        self._alive = [self._new_worker() for _ in range(self.size)]
        self._idle = list(self._alive)
        self._busy: dict[ObjectRefGenerator, tuple[ActorHandle, WorkUnit]] = {}
        self._starting: dict[ObjectRef, ActorHandle] = {}
        self._patience, self._last_alive = TRIES * config.start_timeout + QUEUE_SECONDS, time.monotonic()
        self._loss_counts: Counter[StateRef] = Counter()
        self._last_loss = ""
        self.worker_losses: list[Fault] = []
        self.unfinished_units: list[WorkUnit] = []
        self.restore, self.trial_usage = restore or config.restore, Usage()
        try:
            self._wait_for_start()
            self._choose_restore()
        except ray.exceptions.RayError as error:
            self.close()
            raise _cause(error) from None

    @property
    def free(self) -> int:
        """Workers without a unit."""
        return len(self._idle)

    @property
    def busy(self) -> bool:
        """Whether any unit is under way."""
        return bool(self._busy)

    def grow(self, units: int) -> None:
        """Start more workers, as many as so many units and the config ask for; each gets units once it is ready."""
        for _ in range(worker_count(self._config, units, self.size) - self.size):
            self.size += 1
            self._start_worker()

    def submit(self, unit: WorkUnit) -> None:
        """Give a unit to an idle worker."""
        worker = self._idle.pop()
        options = worker.branch.options(num_returns="streaming", _generator_backpressure_num_objects=REPORTS_AHEAD)
        self._busy[options.remote(unit)] = (worker, unit)

    def results(self, timeout: float | None) -> list[StateResult]:
        """Return the results of the next report, after at most `timeout` seconds; a lost worker is replaced.

        Raises:
            EnvError: if an environment can no longer be made.
            BranchError: if every worker was lost and none of those that replace them starts.
        """
        self._check_alive()
        ready, _ = ray.wait([*self._busy, *self._starting], num_returns=1, timeout=timeout, fetch_local=True)
        if not ready:
            return []
        if ready[0] in self._starting:
            self._finish_start(ready[0])
            return []
        return self._report(ready[0])

    def close(self) -> None:
        """End all workers."""
        for worker in self._alive:
            ray.kill(worker)

    def _new_worker(self) -> ActorHandle:
        options = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
        return ray.remote(EnvironmentWorker).options(**options).remote(*self._arguments)

    def _wait_for_start(self) -> None:
        """Wait until every worker has its environment."""
        try:
            ray.get([worker.start.remote() for worker in self._alive], timeout=self._patience)
        except ray.exceptions.GetTimeoutError:
            self.close()
            raise BranchError(
                f"No {self.size} environment workers could start within {self._patience:g} s: Ray has "
                f"{ray.available_resources().get('CPU', 0):g} CPUs free. Lower {self._config.key('workers')}."
            ) from None

    def _choose_restore(self) -> None:
        """Give every worker the same method: that of the first worker, whose trial no other worker disturbs."""
        if self.restore == AUTO:
            self._choose_on(self._alive[:1])
            self._choose_on(self._alive[1:])
        else:
            self._choose_on(self._alive)

    def _choose_on(self, workers: Sequence[ActorHandle]) -> None:
        for restore, usage in ray.get([worker.choose_restore.remote(self.restore) for worker in workers]):
            self.restore = restore
            self.trial_usage += usage

    def _check_alive(self) -> None:
        if self._busy or self._idle:
            self._last_alive = time.monotonic()
        elif time.monotonic() - self._last_alive > self._patience:
            raise BranchError(
                f"Every environment worker was lost, and none has started again within {self._patience:g} s. All "
                f"results so far are kept; repeat the command when Ray has nodes. {self._last_loss}"
            )

    def _report(self, stream: ObjectRefGenerator) -> list[StateResult]:
        """Return the next report of a busy worker."""
        worker, unit = self._busy[stream]
        try:
            results: list[StateResult] = ray.get(next(stream))
        except StopIteration:
            del self._busy[stream]
            self._idle.append(worker)
            return []
        except _WORKER_LOST as error:
            del self._busy[stream]
            self._replace_worker(worker, error)
            return self._retry_unit(unit)
        except ray.exceptions.RayError as error:
            raise _cause(error) from None
        self._busy[stream] = (worker, _remaining_unit(unit, results))
        return results

    def _replace_worker(self, worker: ActorHandle, error: Exception) -> None:
        self._alive.remove(worker)
        ray.kill(worker)
        self._start_worker()
        self._last_loss = f"A worker was lost: {str(error).strip().splitlines()[0]}"

    def _retry_unit(self, unit: WorkUnit) -> list[StateResult]:
        """Plan what a lost worker had left to do, and return the result of a state that no worker survives.

        Nobody knows at which of its states the worker was lost, so each of them is tried once more, alone.
        """
        if not unit.requests:
            return []
        refs = [StateRef(unit.trajectory_index, request.step) for request in unit.requests]
        self._loss_counts.update(refs)
        fault = Fault(refs[0], "died", self._last_loss)
        if len(refs) == 1 and self._loss_counts[refs[0]] >= TRIES:
            return [StateResult(refs[0], faults=(fault,), lost=True)]
        self.worker_losses.append(fault)
        self.unfinished_units += [replace(unit, requests=(request,)) for request in unit.requests]
        return []

    def _start_worker(self) -> None:
        """Start a worker; it gets units once it is ready, which may be never where a node was lost."""
        worker = self._new_worker()
        self._alive.append(worker)
        self._starting[worker.choose_restore.remote(self.restore)] = worker

    def _finish_start(self, ready: ObjectRef) -> None:
        worker = self._starting.pop(ready)
        try:
            ray.get(ready)
            self._idle.append(worker)
        except _WORKER_LOST:
            self._alive.remove(worker)
            self._start_worker()
        except ray.exceptions.RayError as error:
            raise _cause(error) from None


def _remaining_unit(unit: WorkUnit, results: Sequence[StateResult]) -> WorkUnit:
    finished = {result.ref.step for result in results}
    return replace(unit, requests=tuple(request for request in unit.requests if request.step not in finished))


def connect_ray() -> None:
    """Join the Ray cluster that the surroundings name, or start one on this machine, unless that has been done."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def worker_count(config: CollectConfig, units: int, held: int = 0) -> int:
    """Return how many workers share `units` pieces of work: as many as the config names, or as Ray has CPUs for.

    Args:
        config: the config.
        units: number of pieces.
        held: workers that have a CPU already.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cores = (os.cpu_count() or 1) * len(nodes)
    fitting = min(cores, held + int(ray.available_resources().get("CPU", 0)))
    return max(1, min(config.workers or fitting, units))


def _cause(error: ray.exceptions.RayError) -> EarlyExperienceError:
    """Return the error that a worker raised, without Ray's traceback of another process."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EarlyExperienceError):
        return cause
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return EnvError(f"An environment worker failed: {lines[-1] if lines else type(error).__name__}")
