"""A check of an environment: whether an expert can be played again, and what each method to restore a state costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory, make
from verl_ee.errors import EarlyExperienceError
from verl_ee.experience.branching.protocol import (
    RESTORE_METHODS,
    WALK,
    StateLostError,
    StateRequest,
    StateResult,
    WorkUnit,
)
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.branching.supervisor import HostSupervisor
from verl_ee.experience.open_parts import telling, unsaid_parts

PLAYS = 2
"""Times that the expert is played; a second reset shows differences."""
ALTERNATIVES = 4
"""Alternatives per state in the trial of a method."""


@dataclass(frozen=True)
class RestoreTrial:
    """The trial of one method to restore a state.

    Attributes:
        restore: name of the method.
        problem: why it cannot be used, or empty.
        branches: actions executed.
        milliseconds: per branch, with the way back to the state.
    """

    restore: str
    problem: str = ""
    branches: int = 0
    milliseconds: float = 0.0


@dataclass
class EnvironmentCheck:
    """The findings of a check.

    Attributes:
        steps: steps of the trajectory that was played.
        reset_milliseconds: per reset.
        step_milliseconds: per step.
        problem: where a play differed from the recorded trajectory, or empty.
        trials: one for every method.
        automatic: the method that `restore=auto` chooses, or empty if there is none.
    """

    steps: int
    reset_milliseconds: float = 0.0
    step_milliseconds: float = 0.0
    problem: str = ""
    trials: list[RestoreTrial] = field(default_factory=list)
    automatic: str = ""

    @property
    def good(self) -> bool:
        """Whether the environment can be branched."""
        return not self.problem and any(not trial.problem for trial in self.trials)


def check_environment(environment: EnvironmentConfig, trajectory: ExpertTrajectory) -> EnvironmentCheck:
    """Play an expert's trajectory several times, then branch along it by every method.

    Args:
        environment: the environment to check.
        trajectory: trajectory of an expert in it.

    Raises:
        EnvError: if the environment cannot be made.
    """
    check = EnvironmentCheck(len(trajectory.steps))
    _play(environment, trajectory, check)
    check.trials = [_try_method(restore, environment, trajectory) for restore in RESTORE_METHODS]
    check.automatic = _automatic_method(environment, trajectory)
    return check


def unsaid_line(trajectories: Sequence[ExpertTrajectory], environment: EnvironmentConfig, config: CollectConfig) -> str:
    """Return which parts an expert file has and the environment does not give, for a log; empty if it gives them.

    A state that cannot be reached tells nothing: those who play the trajectory meet its fault.

    Args:
        trajectories: at least one.
        environment: the environment that they were recorded in.
        config: time limits.

    Raises:
        EnvError: if the environment cannot be made.
        BranchError: if its process ends before.
    """
    trajectory = telling(trajectories)
    request = StateRequest(0, (), include_expert=False, include_seen=True)
    supervisor = HostSupervisor(environment, config, trajectory)
    try:
        supervisor.choose_restore(WALK)
        (result,) = supervisor.branch(WorkUnit(0, trajectory, (request,)))
    finally:
        supervisor.close()
    unsaid = () if result.seen is None else unsaid_parts(trajectory, result.seen)
    if not unsaid:
        return ""
    return (
        f"experts: their file has {' and '.join(unsaid)}, and {environment.id} gives none after a reset, so prompts of "
        "rollouts do not show what those of training show. A job refuses listed actions that its environment does not "
        "list, and takes an instruction from extra_info.instruction of its task files."
    )


def _play(environment: EnvironmentConfig, trajectory: ExpertTrajectory, check: EnvironmentCheck) -> None:
    """Play the trajectory, and note durations and the first difference."""
    session = EnvironmentSession(lambda: make(environment.id, environment.kwargs))
    reset_seconds = step_seconds = 0.0
    try:
        for play in range(1, PLAYS + 1):
            replayer = Replayer(session, trajectory, 0)
            began = time.perf_counter()
            replayer.reach(0)
            reset_done = time.perf_counter()
            replayer.reach(len(trajectory.steps))
            reset_seconds += reset_done - began
            step_seconds += time.perf_counter() - reset_done
            if replayer.faults and not check.problem:
                check.problem = f"in play {play}, {replayer.faults[0].message}"
    except StateLostError as error:
        check.problem = str(error)
    finally:
        session.discard()
    check.reset_milliseconds = 1000 * reset_seconds / PLAYS
    check.step_milliseconds = 1000 * step_seconds / PLAYS / len(trajectory.steps)


def _try_method(restore: str, environment: EnvironmentConfig, trajectory: ExpertTrajectory) -> RestoreTrial:
    config = CollectConfig.model_validate({"restore": restore, "k": ALTERNATIVES, "max_mismatch": 1.0})
    unit = WorkUnit(0, trajectory, tuple(StateRequest(step) for step in range(len(trajectory.steps))))
    try:
        supervisor = _start(environment, config, trajectory)
    except EarlyExperienceError as error:
        return RestoreTrial(restore, str(error))
    try:
        began = time.perf_counter()
        results = list(supervisor.branch(unit))
        seconds = time.perf_counter() - began
    except EarlyExperienceError as error:
        return RestoreTrial(restore, str(error))
    finally:
        supervisor.close()
    faults = [fault for result in results for fault in result.faults]
    branches = sum(map(_branch_count, results))
    return RestoreTrial(restore, str(faults[0]) if faults else "", branches, 1000 * seconds / max(branches, 1))


def _automatic_method(environment: EnvironmentConfig, trajectory: ExpertTrajectory) -> str:
    try:
        supervisor = _start(environment, CollectConfig(), trajectory)
    except EarlyExperienceError:
        return ""
    supervisor.close()
    return supervisor.restore


def _start(environment: EnvironmentConfig, config: CollectConfig, trajectory: ExpertTrajectory) -> HostSupervisor:
    supervisor = HostSupervisor(environment, config, trajectory)
    supervisor.choose_restore(config.restore)
    return supervisor


def _branch_count(result: StateResult) -> int:
    return len(result.outcomes) + (1 if result.expert_outcome else 0)
