"""Ways back to a state: the environment's own snapshot, a fork of the process, or replay of the prefix.

Which one is used follows from what the environment can do, never from its name.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from verl_ee.envs import ExpertTrajectory
from verl_ee.errors import EnvironmentFault
from verl_ee.experience.player import Holder, Player
from verl_ee.experience.work import Executed, LostError, refuse_replay

_REPLY: TypeAdapter[Executed | tuple[str, str]] = TypeAdapter(Executed | tuple[str, str])
_PROC = Path("/proc/self")


class Way(Protocol):
    """Executes several actions from one state."""

    name: str

    def arrive(self, player: Player) -> None:
        """The player has reached a state that will be branched."""

    def execute(self, player: Player, step: int, action: str) -> Executed:
        """Go back to the state of `step`, prove it, execute `action`.

        Raises:
            LostError: if going back led elsewhere, or the environment failed.
        """

    def leave(self, player: Player, step: int) -> None:
        """Every action of the state has been executed; the walk goes on from here if it can.

        Raises:
            LostError: if going back led elsewhere.
        """


class SnapshotWay:
    """`snapshot()` and `restore()` of the environment."""

    name = "snapshot"
    _state: Any = None

    def arrive(self, player: Player) -> None:
        """Take the snapshot."""
        self._state = player.holder.snapshot()

    def execute(self, player: Player, step: int, action: str) -> Executed:
        """Restore, prove, execute."""
        self.leave(player, step)
        return player.act(action)

    def leave(self, player: Player, step: int) -> None:
        """Restore, unless the environment is in the state."""
        if player.at != step:
            player.restore(self._state, step)


class ReplayWay:
    """Reset and play the prefix again: every action is an episode of its own."""

    name = "replay"

    def arrive(self, player: Player) -> None:
        """Nothing to keep."""

    def execute(self, player: Player, step: int, action: str) -> Executed:
        """Play up to the state, proving every state on the way, and execute."""
        player.reach(step)
        return player.act(action)

    def leave(self, player: Player, step: int) -> None:
        """The next episode starts from a reset."""


class ForkWay:
    """A forked child executes the action and reports; the parent stays in the state."""

    name = "fork"

    def arrive(self, player: Player) -> None:
        """The process itself is the snapshot."""

    def execute(self, player: Player, step: int, action: str) -> Executed:
        """Execute in a child."""
        player.reach(step)
        try:
            return _in_child(player, action)
        finally:
            # A child that was ended has not said so.
            player.holder.gauge.ease()

    def leave(self, player: Player, step: int) -> None:
        """The parent never left."""


def choose(
    holder: Holder, asked: str, environment: str, sample: ExpertTrajectory, owned: frozenset[str], key: str = "way"
) -> Way:
    """Return the way back of an environment.

    Args:
        holder: holds the environment.
        asked: `auto` for the first of snapshot, fork and replay that it can do, or one of them.
        environment: its id, for messages.
        sample: a trajectory to try a fork on.
        owned: `belongings()` of the process from before the environment was made.
        key: how a user writes `asked`, for messages.

    Raises:
        EnvironmentFault: if the environment cannot do what was asked for, or has no way back at all.
    """
    if asked in ("auto", "snapshot") and holder.has_snapshots:
        return SnapshotWay()
    if asked == "snapshot":
        raise EnvironmentFault(
            f"{key}=snapshot, but {environment} has no snapshot() and restore(). Use {key}=auto, or give it both."
        )
    if asked in ("auto", "fork"):
        reason = fork_problem(holder, sample, owned)
        if not reason:
            return ForkWay()
        if asked == "fork":
            raise EnvironmentFault(f"{key}=fork, but {environment} cannot be forked: {reason}. Use {key}=auto.")
    spec = holder.env.spec
    if spec is not None and spec.nondeterministic:
        raise refuse_replay(environment)
    return ReplayWay()


def belongings() -> frozenset[str]:
    """Return what this process owns that a forked child would share or lack: descriptors, threads, subprocesses."""
    found = set()
    for entry in (_PROC / "fd").iterdir():
        try:
            found.add(f"descriptor {entry.name} ({os.readlink(entry)})")
        except OSError:  # the descriptor of this very listing
            continue
    found |= {f"thread {entry.name}" for entry in (_PROC / "task").iterdir()}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == os.getpid():
            found.add(f"subprocess {entry.parent.name}")
    return frozenset(found)


def fork_problem(holder: Holder, sample: ExpertTrajectory, owned: frozenset[str]) -> str:
    """Return why an environment cannot be forked, or an empty string.

    It can be if it declares `forkable = True`. Without a declaration it is tried: after a reset it may own no
    descriptor, thread or subprocess (a server behind a socket would be stepped for the parent too), and along a whole
    trajectory a child's step must leave the parent in its state. The steps of the trial are counted as used.
    """
    if not hasattr(os, "fork") or not _PROC.exists():
        return "this system has no fork"
    declared = getattr(holder.env.unwrapped, "forkable", None)
    if declared is not None:
        return "" if declared else "it declares forkable = False"
    player = Player(holder, sample, 0)
    try:
        player.reach(0)
        way = ForkWay()
        for step, recorded in enumerate(sample.steps):
            problem = _owns(owned)
            if problem:
                return problem
            child = way.execute(player, step, recorded.action)
            player.reach(step + 1)
            if player.walked[step] != child:
                return f"at step {step} of a trial, child and parent saw different outcomes"
        problem = _owns(owned)
        if problem:
            return problem
    except LostError as error:
        return f"in a trial, {error}"
    return "" if not player.faults else f"in a trial, {player.faults[0].message}"


def _owns(owned: frozenset[str]) -> str:
    extra = belongings() - owned
    if extra:
        return f"it owns {', '.join(sorted(extra)[:3])}"
    return "its process has threads" if threading.active_count() > 1 else ""


def _in_child(player: Player, action: str) -> Executed:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _report(player, action, reading, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind = "time limit" if number == signal.SIGALRM else "died"
        raise LostError(kind, f"the process that executed {action!r} was ended by {signal.Signals(number).name}")
    if not content:
        raise LostError("died", f"the process that executed {action!r} ended without an answer")
    reply = _REPLY.validate_json(content)
    if isinstance(reply, Executed):
        return reply
    raise LostError(*reply)


def _report(player: Player, action: str, reading: int, writing: int) -> None:
    """Execute in the child, answer, and end without running anything that the parent registered for its end."""
    try:
        os.close(reading)
        try:
            reply: Executed | tuple[str, str] = player.act(action)
        except LostError as error:
            reply = (error.kind, str(error))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(_REPLY.dump_json(reply))
    finally:
        os._exit(0)
