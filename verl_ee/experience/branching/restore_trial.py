"""Trials of the methods to restore a state: which are exact in an environment, and what a branch costs by each.

Every trial plays one expert trajectory. Its steps are counted like all others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.fork import declared_forkable, time_forks, try_forks
from verl_ee.experience.branching.protocol import StateLostError
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.session import EnvironmentSession

FORKS = 5
"""Forks that are timed where the environment declares that it can be forked, so that nothing is to be proved."""


@dataclass(frozen=True)
class WalkSeconds:
    """Duration of a reset, and of a step on average over a trajectory."""

    reset: float
    step: float


@dataclass(frozen=True)
class SnapshotSeconds:
    """Duration of a typical snapshot, and of a typical restore with its proof."""

    snapshot: float
    restore: float


def time_walk(session: EnvironmentSession, sample: ExpertTrajectory) -> WalkSeconds:
    """Play a trajectory from a reset to its end, and time it.

    Raises:
        StateLostError: if a state is not the recorded one.
    """
    replayer = Replayer(session, sample, 0)
    began = time.perf_counter()
    replayer.reach(0)
    reset_done = time.perf_counter()
    replayer.reach(len(sample.steps))
    steps_done = time.perf_counter()
    _check_no_retry(replayer)
    return WalkSeconds(reset_done - began, (steps_done - reset_done) / len(sample.steps))


def time_snapshots(session: EnvironmentSession, sample: ExpertTrajectory) -> SnapshotSeconds:
    """Restore a snapshot of every state along a trajectory, and prove it by the next state.

    Raises:
        StateLostError: if a restore does not give the state back: it looks different, or the same action leads to
            another state than before.
    """
    replayer = Replayer(session, sample, 0)
    snapshots, restores = list[float](), list[float]()
    replayer.reach(0)
    for step in range(len(sample.steps)):
        began = time.perf_counter()
        snapshot = session.snapshot()
        snapshots.append(time.perf_counter() - began)
        replayer.reach(step + 1)
        began = time.perf_counter()
        replayer.restore(snapshot, step)
        restores.append(time.perf_counter() - began)
        replayer.reach(step + 1)
    _check_no_retry(replayer)
    return SnapshotSeconds(statistics.median(snapshots), statistics.median(restores))


def branch_seconds(
    session: EnvironmentSession,
    sample: ExpertTrajectory,
    methods: Sequence[str],
    inherited: frozenset[str],
    k: int,
) -> dict[str, float]:
    """Return the seconds per branch of each method that proves exact; nothing if the sample itself cannot be played.

    Args:
        session: holds the environment.
        sample: the trajectory to play.
        methods: the methods to try.
        inherited: `process_resources()` from before the environment was made.
        k: alternatives per state, which share one snapshot.
    """
    # The walk comes last: the first reset of an environment may have to load what later ones find.
    snapshot = _try_snapshots(session, sample) if "snapshot" in methods else None
    fork = _fork_seconds(session, sample, inherited) if "fork" in methods else None
    try:
        walk = time_walk(session, sample)
    except StateLostError:
        return {}
    seconds = dict[str, float]()
    if snapshot is not None:
        seconds["snapshot"] = snapshot.snapshot / max(1, k) + snapshot.restore + walk.step
    if fork is not None:
        seconds["fork"] = fork
    if "replay" in methods:
        mean_prefix = (len(sample.steps) - 1) / 2
        seconds["replay"] = walk.reset + (mean_prefix + 1) * walk.step
    return seconds


def _try_snapshots(session: EnvironmentSession, sample: ExpertTrajectory) -> SnapshotSeconds | None:
    try:
        return time_snapshots(session, sample)
    except StateLostError:
        return None


def _fork_seconds(session: EnvironmentSession, sample: ExpertTrajectory, inherited: frozenset[str]) -> float | None:
    """Return the seconds of a branch by fork, or None where a fork is not safe."""
    if declared_forkable(session):
        try:
            return statistics.median(time_forks(session, sample, FORKS))
        except StateLostError:
            return None
    trial = try_forks(session, sample, inherited)
    return None if trial.problem else statistics.median(trial.seconds)


def _check_no_retry(replayer: Replayer) -> None:
    if replayer.faults:
        raise StateLostError(replayer.faults[0].kind, replayer.faults[0].message)
