"""Completes expert trajectories: the environment fills what their file leaves open, on workers, one play for each."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import BranchError, EnvError, ExpertFileError
from verl_ee.experience.branching.brancher import branch
from verl_ee.experience.branching.protocol import WALK, Fault, StateResult, Usage, WorkUnit
from verl_ee.experience.branching.restore import Walk
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.open_parts import INSTRUCTION, PARTS, given_parts, lasting, named, open_parts, played, walk
from verl_ee.experience.progress import progress_bar

if TYPE_CHECKING:
    from verl_ee.experience.branching.workers import WorkerPool

POLL_SECONDS = 1.0
"""Time between two looks at the workers."""
SHOWN = 3
"""Faults that a message shows."""
LOOKS = 3
"""Trajectories that may be played, one after the other, to see what the environment gives."""


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
    if not any(map(open_parts, trajectories)):
        return Completion(tuple(trajectories))
    parts = lasting(environment.id)
    candidates = [index for index, trajectory in enumerate(trajectories) if open_parts(trajectory) & parts]
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
    results = list(branch(session, Walk(), walk(index, trajectory), CollectConfig()))
    play = played(trajectory, results, lasting(trajectory.environment))
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
        self._config, self._parts = config, lasting(environment.id)
        self._states = sum(len(trajectory.steps) for trajectory in trajectories)
        self._unplayable: dict[int, Fault] = {}
        self._faults: Counter[str] = Counter()
        self._usage = Usage()

    def run(self, candidates: Sequence[int]) -> Completion:
        from verl_ee.experience.branching.workers import WorkerPool

        # The longest shows the most of what the environment gives.
        looks = sorted(candidates, key=lambda index: -len(self._trajectories[index].steps))[:LOOKS]
        pool = WorkerPool(self._environment, self._config, self._trajectories[looks[0]], units=1, restore=WALK)
        try:
            given, plays = self._look(pool, looks)
            chosen = [index for index in candidates if open_parts(self._trajectories[index]) & given]
            self._play(pool, chosen, plays)
            self._faults.update(fault.kind for fault in pool.worker_losses)
        finally:
            pool.close()
        self._check_instructions()
        kept = [item for index, item in enumerate(self._trajectories) if index not in self._unplayable]
        lost = tuple(sorted(self._unplayable))
        return Completion(tuple(kept), lost, len(chosen), dict(sorted(self._faults.items())), self._usage)

    def _look(self, pool: WorkerPool, looks: Sequence[int]) -> tuple[frozenset[str], dict[int, list[StateResult]]]:
        """Return the parts that the environment gives in some state, and the plays of trajectories that show it.

        One play to the end is enough. Where no state could be reached, the other plays tell.
        """
        given, plays = set[str](), dict[int, list[StateResult]]()
        for index in looks:
            trajectory = self._trajectories[index]
            plays[index] = list(self._results(pool, [walk(index, trajectory)]))
            given.update(*(given_parts(result.seen) for result in plays[index] if result.seen is not None))
            if played(trajectory, plays[index]).trajectory is not None:
                break
        return (frozenset(given) or frozenset(PARTS)) & self._parts, plays

    def _play(self, pool: WorkerPool, chosen: Sequence[int], plays: dict[int, list[StateResult]]) -> None:
        """Play trajectories, but for those that have been played, and fill in what the plays show."""
        by_trajectory: defaultdict[int, list[StateResult]] = defaultdict(list)
        states = sum(len(self._trajectories[index].steps) for index in chosen)
        units = [walk(index, self._trajectories[index]) for index in chosen if index not in plays]
        before = [result for index in chosen for result in plays.get(index, ())]
        if units:
            pool.grow(len(units))
        with progress_bar(states, "complete", "state", disable=self._quiet) as bar:
            for result in chain(before, self._results(pool, units)):
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
        play = played(self._trajectories[index], results, self._parts)
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
