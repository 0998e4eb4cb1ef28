"""Ways back to a state: the environment's own snapshot, a fork of the process, or replay of the prefix.

Which one is used follows from what the environment can do, never from its name.
"""

from __future__ import annotations

from typing import Any, Protocol

from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import EnvError
from verl_ee.experience.branching.fork import ForkRestore, fork_problem
from verl_ee.experience.branching.protocol import Outcome, refuse_replay
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.session import EnvironmentSession


class RestoreMethod(Protocol):
    """Executes several actions from one state."""

    name: str

    def arrive(self, replayer: Replayer) -> None:
        """The player has reached a state that will be branched."""

    def execute(self, replayer: Replayer, step: int, action: str) -> Outcome:
        """Go back to the state of `step`, prove it, execute `action`.

        Raises:
            LostError: if going back led elsewhere, or the environment failed.
        """

    def leave(self, replayer: Replayer, step: int) -> None:
        """Every action of the state has been executed; the walk goes on from here if it can.

        Raises:
            LostError: if going back led elsewhere.
        """


class SnapshotRestore:
    """`snapshot()` and `restore()` of the environment."""

    name = "snapshot"
    _state: Any = None

    def arrive(self, replayer: Replayer) -> None:
        """Take the snapshot."""
        self._state = replayer.session.snapshot()

    def execute(self, replayer: Replayer, step: int, action: str) -> Outcome:
        """Restore, prove, execute."""
        self.leave(replayer, step)
        return replayer.act(action)

    def leave(self, replayer: Replayer, step: int) -> None:
        """Restore, unless the environment is in the state."""
        if replayer.at != step:
            replayer.restore(self._state, step)


class ReplayRestore:
    """Reset and play the prefix again: every action is an episode of its own."""

    name = "replay"

    def arrive(self, replayer: Replayer) -> None:
        """Nothing to keep."""

    def execute(self, replayer: Replayer, step: int, action: str) -> Outcome:
        """Play up to the state, proving every state on the way, and execute."""
        replayer.reach(step)
        return replayer.act(action)

    def leave(self, replayer: Replayer, step: int) -> None:
        """The next episode starts from a reset."""


def choose_restore(
    session: EnvironmentSession,
    asked: str,
    environment: str,
    sample: ExpertTrajectory,
    owned: frozenset[str],
    key: str = "way",
) -> RestoreMethod:
    """Return the way back of an environment.

    Args:
        session: holds the environment.
        asked: `auto` for the first of snapshot, fork and replay that it can do, or one of them.
        environment: its id, for messages.
        sample: a trajectory to try a fork on.
        owned: `belongings()` of the process from before the environment was made.
        key: how a user writes `asked`, for messages.

    Raises:
        EnvironmentFault: if the environment cannot do what was asked for, or has no way back at all.
    """
    if asked in ("auto", "snapshot") and session.has_snapshots:
        return SnapshotRestore()
    if asked == "snapshot":
        raise EnvError(
            f"{key}=snapshot, but {environment} has no snapshot() and restore(). Use {key}=auto, or give it both."
        )
    if asked in ("auto", "fork"):
        reason = fork_problem(session, sample, owned)
        if not reason:
            return ForkRestore()
        if asked == "fork":
            raise EnvError(f"{key}=fork, but {environment} cannot be forked: {reason}. Use {key}=auto.")
    spec = session.env.spec
    if spec is not None and spec.nondeterministic:
        raise refuse_replay(environment)
    return ReplayRestore()
