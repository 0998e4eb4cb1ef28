"""Methods to restore a state: the environment's own snapshot, a fork of its process, or replay of the prefix.

The choice follows from what the environment can do and from what that costs, never from its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from verl_ee.envs.snapshots import WrappedSnapshot
from verl_ee.errors import EnvError
from verl_ee.experience.branching.fork import ForkRestore, declared_forkable, fork_problem
from verl_ee.experience.branching.protocol import AUTO, RESTORE_METHODS, WALK, HostOpening
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.restore_trial import branch_seconds
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.outcome import Outcome

DECISIVE_SHARE = 2 / 3
"""A method replaces the one before it in `RESTORE_METHODS` only below this share of its cost, whatever the noise."""


class RestoreMethod(Protocol):
    """Executes several actions from one state."""

    name: str

    def arrive(self, replayer: Replayer) -> None:
        """Prepare for the state that the replayer has reached, and that is to be branched."""

    def execute(self, replayer: Replayer, step: int, action: str) -> Outcome:
        """Go back to the state of `step`, prove it, and execute `action`.

        Raises:
            StateLostError: if going back led elsewhere, or the environment failed.
        """

    def leave(self, replayer: Replayer, step: int) -> None:
        """Go back after the last action of the state, so that the walk can go on from here if the method allows it.

        Raises:
            StateLostError: if going back led elsewhere.
        """


class SnapshotRestore:
    """Uses `snapshot()` and `restore()` of the environment, and saves the state of its wrappers along."""

    name = "snapshot"
    _snapshot: WrappedSnapshot

    def arrive(self, replayer: Replayer) -> None:
        """Take the snapshot."""
        self._snapshot = replayer.session.snapshot()

    def execute(self, replayer: Replayer, step: int, action: str) -> Outcome:
        """Restore the snapshot, prove the state, and execute."""
        self.leave(replayer, step)
        return replayer.act(action)

    def leave(self, replayer: Replayer, step: int) -> None:
        """Restore the snapshot, unless the environment is in the state."""
        if replayer.position != step:
            replayer.restore(self._snapshot, step)


class ReplayRestore:
    """Resets and plays the prefix again: every action is an episode of its own."""

    name = "replay"

    def arrive(self, replayer: Replayer) -> None:
        """Do nothing: there is nothing to keep."""

    def execute(self, replayer: Replayer, step: int, action: str) -> Outcome:
        """Play up to the state, prove every state on the way, and execute."""
        replayer.reach(step)
        return replayer.act(action)

    def leave(self, replayer: Replayer, step: int) -> None:
        """Do nothing: the next episode starts from a reset."""


class Walk(ReplayRestore):
    """Goes back to no state, so that any environment can serve it."""

    name = WALK


def choose_restore(
    session: EnvironmentSession, requested: str, opening: HostOpening, inherited: frozenset[str]
) -> RestoreMethod:
    """Return the method by which the states of an environment are restored.

    Args:
        session: holds the environment.
        requested: one of `RESTORE_METHODS`; `walk` where no state is gone back to; or `auto` for the cheapest that a
            trial proves exact. Where only one is possible, or none can be proved on the sample, `auto` takes the first
            that the environment can serve.
        opening: the environment, and the sample for the trial.
        inherited: `process_resources()` from before the environment was made.

    Raises:
        EnvError: if the environment cannot do what was requested, or offers no method at all.
    """
    key, environment = opening.restore_key, opening.environment.id
    if requested == AUTO:
        return _choose_automatically(session, opening, inherited)
    if requested == "snapshot":
        problem = session.snapshot_problem
        if problem:
            raise EnvError(f"{key}=snapshot, but {environment} {problem}. Use {key}=auto, or give it both.")
    if requested == "fork":
        problem = fork_problem(session, opening.sample, inherited)
        if problem:
            raise EnvError(f"{key}=fork, but {environment} cannot be forked: {problem}. Use {key}=auto.")
    if requested == "replay" and _is_nondeterministic(session):
        raise _no_method(environment)
    return _method(requested)


def _choose_automatically(
    session: EnvironmentSession, opening: HostOpening, inherited: frozenset[str]
) -> RestoreMethod:
    methods = _possible_methods(session)
    if len(methods) > 1:
        seconds = branch_seconds(session, opening.sample, methods, inherited, opening.collect.k)
        if seconds:
            return _method(cheapest(seconds))
    if "snapshot" in methods:
        return SnapshotRestore()
    if "fork" in methods and not fork_problem(session, opening.sample, inherited):
        return ForkRestore()
    if "replay" in methods:
        return ReplayRestore()
    raise _no_method(opening.environment.id, f"; it {session.snapshot_problem}, and it cannot be forked")


def cheapest(seconds: Mapping[str, float]) -> str:
    """Return the cheapest method; among those that cost about the same, the first of `RESTORE_METHODS`.

    Args:
        seconds: per branch, of at least one method.
    """
    best, *others = [method for method in RESTORE_METHODS if method in seconds]
    for method in others:
        if seconds[method] < DECISIVE_SHARE * seconds[best]:
            best = method
    return best


def _possible_methods(session: EnvironmentSession) -> list[str]:
    """Return the methods that nothing stands against before a trial."""
    possible = {
        "snapshot": not session.snapshot_problem,
        "fork": declared_forkable(session) is not False,
        "replay": not _is_nondeterministic(session),
    }
    return [method for method in RESTORE_METHODS if possible[method]]


def _is_nondeterministic(session: EnvironmentSession) -> bool:
    spec = session.env.spec
    return spec is not None and spec.nondeterministic


def _method(name: str) -> RestoreMethod:
    methods: dict[str, type[RestoreMethod]] = {
        "snapshot": SnapshotRestore,
        "fork": ForkRestore,
        "replay": ReplayRestore,
        WALK: Walk,
    }
    return methods[name]()


def _no_method(environment: str, problem: str = "") -> EnvError:
    return EnvError(
        f"{environment} is declared nondeterministic, so replaying actions does not lead back to a state{problem}. "
        "Give it snapshot() and restore(), or declare `forkable = True` if a fork of its process shares nothing with "
        "it."
    )
