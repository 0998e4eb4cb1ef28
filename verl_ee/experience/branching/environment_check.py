"""Finds out what an environment can do and what each way back to a state costs, by playing an expert."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory, make
from verl_ee.errors import EarlyExperienceError
from verl_ee.experience.branching.protocol import RESTORE_METHODS, StateLostError, StateRequest, WorkUnit
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.branching.supervisor import HostSupervisor

PLAYS = 2
"""Times that the expert is played: what differs between two resets shows."""
ALTERNATIVES = 4
"""Alternatives per state when the ways are tried."""


@dataclass(frozen=True)
class RestoreTrial:
    """One way back to a state.

    Attributes:
        restore: its name.
        problem: why it cannot be used, or empty.
        branches: actions executed.
        milliseconds: per branch, the way back included.
    """

    restore: str
    problem: str = ""
    branches: int = 0
    milliseconds: float = 0.0


@dataclass
class EnvironmentCheck:
    """What was found.

    Attributes:
        steps: steps of the trajectory that was played.
        reset_milliseconds: per reset.
        step_milliseconds: per step.
        problem: where a play differed from the recorded trajectory, or empty.
        trials: every way.
    """

    steps: int
    reset_milliseconds: float = 0.0
    step_milliseconds: float = 0.0
    problem: str = ""
    trials: list[RestoreTrial] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the environment can be branched."""
        return not self.problem and any(not trial.problem for trial in self.trials)


def check_environment(environment: EnvironmentConfig, trajectory: ExpertTrajectory) -> EnvironmentCheck:
    """Play an expert's trajectory several times, then branch along it in every way.

    Args:
        environment: which one.
        trajectory: of an expert in it.

    Raises:
        EnvironmentFault: if the environment cannot be made.
    """
    result = EnvironmentCheck(len(trajectory.steps))
    session = EnvironmentSession(lambda: make(environment.id, environment.kwargs))
    resets = steps = 0.0
    try:
        for play in range(1, PLAYS + 1):
            replayer = Replayer(session, trajectory, 0)
            began = time.perf_counter()
            session.reset(trajectory.seed, trajectory.task)
            reset_done = time.perf_counter()
            replayer.reach(len(trajectory.steps))
            resets += reset_done - began
            # Reaching the end begins with a reset of its own.
            steps += time.perf_counter() - reset_done - (reset_done - began)
            if replayer.faults and not result.problem:
                result.problem = f"in play {play}, {replayer.faults[0].message}"
    except StateLostError as error:
        result.problem = str(error)
    finally:
        session.discard()
    result.reset_milliseconds = 1000 * resets / PLAYS
    result.step_milliseconds = max(0.0, 1000 * steps / PLAYS / len(trajectory.steps))
    result.trials = [_try(restore, environment, trajectory) for restore in RESTORE_METHODS]
    return result


def _try(restore: str, environment: EnvironmentConfig, trajectory: ExpertTrajectory) -> RestoreTrial:
    config = CollectConfig.model_validate({"restore": restore, "k": ALTERNATIVES, "max_mismatch": 1.0})
    try:
        supervisor = HostSupervisor(environment, config, trajectory)
    except EarlyExperienceError as error:
        return RestoreTrial(restore, str(error))
    try:
        began = time.perf_counter()
        unit = WorkUnit(0, trajectory, tuple(StateRequest(step) for step in range(len(trajectory.steps))))
        answers = list(supervisor.branch(unit))
        seconds = time.perf_counter() - began
    except EarlyExperienceError as error:
        return RestoreTrial(restore, str(error))
    finally:
        supervisor.close()
    faults = [fault for answer in answers for fault in answer.faults]
    branches = sum(len(answer.outcomes) + bool(answer.expert) for answer in answers)
    return RestoreTrial(restore, str(faults[0]) if faults else "", branches, 1000 * seconds / max(branches, 1))
