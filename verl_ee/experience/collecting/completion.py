"""Completes expert trajectories: the environment fills what their file leaves open, on workers, one play for each."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import BranchError, EnvError, ExpertFileError
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.protocol import Fault, StateRequest, StateResult, Usage, WorkUnit
from verl_ee.experience.branching.restore import ReplayRestore
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.open_parts import INSTRUCTION, PARTS, given_parts, named, open_parts, played, walk
from verl_ee.experience.progress import progress_bar

if TYPE_CHECKING:
    from verl_ee.experience.branching.workers import WorkerPool

POLL_SECONDS = 1.0
"""Time between two looks at the workers."""
SHOWN = 3
"""Faults that a message shows."""


@dataclass
class Completion:
    """The result of completing some trajectories.

    Attributes:
        trajectories: those that can be used, in their order, with all that the environment gives.
        unplayable: indices of those that could not be played; they are not among `trajectories`.
        played: number of those that were played.
        faults: how often each kind of fault occurred, those that a second attempt repaired included.
        usage: steps and resets that it took.
    """

    trajectories: tuple[ExpertTrajectory, ...]
    unplayable: tuple[int, ...] = ()
    played: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)


def complete(
    trajectories: Sequence[ExpertTrajectory], environment: EnvironmentConfig, config: CollectConfig, quiet: bool = False
) -> Completion:
    """Play every trajectory that leaves open what the environment gives, and fill it in.

    A play proves every state on the way. A trajectory that cannot be played is left out, because its prompts would
    differ from those of a rollout.

    Args:
        trajectories: the trajectories.
        environment: the environment that they were recorded in.
        config: number of workers, time limits, and the share of states that may be lost with their trajectories.
        quiet: show no progress bar.

    Raises:
        BranchError: if more states were lost than the config allows.
        EnvError: if the environment cannot be made.
        ExpertFileError: if an instruction is open and the environment gives none.
    """
    candidates = [index for index, trajectory in enumerate(trajectories) if open_parts(trajectory)]
    if not candidates:
        return Completion(tuple(trajectories))
    return _Completer(trajectories, environment, config, quiet).run(candidates)


def complete_here(trajectory: ExpertTrajectory, index: int, session: EnvironmentSession) -> ExpertTrajectory:
    """Return a trajectory with all that the environment gives, played in this process if it leaves something open.

    Args:
        trajectory: the trajectory.
        index: its index, for messages.
        session: holds the environment.

    Raises:
        EnvError: if it cannot be played.
    """
    if not open_parts(trajectory):
        return trajectory
    play = played(trajectory, list(branch(session, ReplayRestore(), walk(index, trajectory), CollectConfig())))
    if play.trajectory is None:
        raise EnvError(
            f"The environment does not show again what its expert recorded: {play.fault}. `verl-ee envs check "
            f"{trajectory.environment}` tries it."
        )
    return play.trajectory


class _Completer:
    """Plays trajectories on one pool of workers."""

    def __init__(
        self,
        trajectories: Sequence[ExpertTrajectory],
        environment: EnvironmentConfig,
        config: CollectConfig,
        quiet: bool,
    ) -> None:
        self._trajectories, self._environment, self._quiet = list(trajectories), environment, quiet
        # One walk along each trajectory: there is no state to go back to.
        self._config = config.model_copy(update={"restore": "replay"})
        self._states = sum(len(trajectory.steps) for trajectory in trajectories)
        self._unplayable: dict[int, Fault] = {}
        self._faults: Counter[str] = Counter()
        self._usage = Usage()

    def run(self, candidates: Sequence[int]) -> Completion:
        from verl_ee.experience.branching.workers import WorkerPool

        sample = self._trajectories[candidates[0]]
        pool = WorkerPool(self._environment, self._config, sample, len(candidates))
        try:
            given = self._given(pool, candidates[0])
            chosen = [index for index in candidates if open_parts(self._trajectories[index]) & given]
            self._play(pool, chosen)
            self._faults.update(fault.kind for fault in pool.worker_losses)
        finally:
            pool.close()
        self._check_instructions()
        kept = [item for index, item in enumerate(self._trajectories) if index not in self._unplayable]
        lost = tuple(sorted(self._unplayable))
        return Completion(tuple(kept), lost, len(chosen), dict(sorted(self._faults.items())), self._usage)

    def _given(self, pool: WorkerPool, index: int) -> frozenset[str]:
        """Return the parts that the environment gives, as the reset of one trajectory shows them.

        Where this reset fails, the plays themselves tell; it is not counted, because they meet the fault again.
        """
        request = StateRequest(0, (), include_expert=False, include_seen=True)
        (result,) = self._results(pool, [WorkUnit(index, self._trajectories[index], (request,))])
        return frozenset(PARTS) if result.seen is None else given_parts(result.seen)

    def _play(self, pool: WorkerPool, chosen: Sequence[int]) -> None:
        by_trajectory: defaultdict[int, list[StateResult]] = defaultdict(list)
        states = sum(len(self._trajectories[index].steps) for index in chosen)
        units = [walk(index, self._trajectories[index]) for index in chosen]
        with progress_bar(states, "complete", "state", disable=self._quiet) as bar:
            for result in self._results(pool, units):
                bar.update(1)
                self._faults.update(fault.kind for fault in result.faults)
                index = result.ref.trajectory
                by_trajectory[index].append(result)
                if len(by_trajectory[index]) == len(self._trajectories[index].steps):
                    self._take(index, by_trajectory.pop(index))

    def _results(self, pool: WorkerPool, units: Iterable[WorkUnit]) -> Iterable[StateResult]:
        """Yield a result for every state of some units."""
        pieces = deque(units)
        while pieces or pool.busy:
            while pieces and pool.free:
                pool.submit(pieces.popleft())
            for result in pool.results(POLL_SECONDS):
                self._usage += result.usage
                yield result
            pieces.extend(pool.unfinished_units)
            pool.unfinished_units.clear()

    def _take(self, index: int, results: Sequence[StateResult]) -> None:
        """Keep a trajectory that was played to its end, or count it as lost."""
        play = played(self._trajectories[index], results)
        if play.trajectory is not None:
            self._trajectories[index] = play.trajectory
        elif play.fault is not None:
            self._unplayable[index] = play.fault
            self._check_budget()

    def _check_budget(self) -> None:
        lost = sum(len(self._trajectories[index].steps) for index in self._unplayable)
        allowed, key = self._config.max_mismatch, self._config.key("max_mismatch")
        if lost <= allowed * self._states and lost < self._states:
            return
        first = "\n  ".join(str(self._unplayable[index]) for index in sorted(self._unplayable)[:SHOWN])
        raise BranchError(
            f"{len(self._unplayable)} expert trajectories cannot be played, with {lost} of {self._states} states: "
            f"{key}={allowed:g} is the share that may be lost, and some must be left. The expert file may not describe "
            f"this environment, or the environment is not deterministic: try `verl-ee envs check "
            f"{self._environment.id}`. `verl-ee experts complete` with a higher --max-mismatch writes a file without "
            f"them. First:\n  {first}"
        )

    def _check_instructions(self) -> None:
        for index, trajectory in enumerate(self._trajectories):
            if trajectory.instruction is None and index not in self._unplayable:
                raise ExpertFileError(
                    f"Expert trajectory {index} (task {trajectory.task!r}) leaves its {INSTRUCTION} open, and "
                    f"{self._environment.id} gives none (info['task'] is missing after reset). Write an instruction "
                    "into the expert file; `verl-ee import --goal` takes it from the first observation."
                )


def open_line(trajectories: Iterable[ExpertTrajectory]) -> str:
    """Return which parts some trajectories leave open, as messages show them; empty if they leave nothing open."""
    return named(part for trajectory in trajectories for part in open_parts(trajectory))
