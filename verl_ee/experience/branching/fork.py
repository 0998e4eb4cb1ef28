"""Restoring a state by forking the process of the environment, and the trial that shows whether that is safe."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from pydantic import TypeAdapter

from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.protocol import Outcome, StateLostError
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.session import EnvironmentSession

_REPLY: TypeAdapter[Outcome | tuple[str, str]] = TypeAdapter(Outcome | tuple[str, str])
_PROC = Path("/proc/self")


class ForkRestore:
    """A forked child executes the action and reports; the parent stays in the state."""

    name = "fork"

    def arrive(self, replayer: Replayer) -> None:
        """The process itself is the snapshot."""

    def execute(self, replayer: Replayer, step: int, action: str) -> Outcome:
        """Execute in a child."""
        replayer.reach(step)
        try:
            return _in_child(replayer, action)
        finally:
            # A child that was ended has not said so.
            replayer.session.meter.ease()

    def leave(self, replayer: Replayer, step: int) -> None:
        """The parent never left."""


def process_resources() -> frozenset[str]:
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


def fork_problem(session: EnvironmentSession, sample: ExpertTrajectory, owned: frozenset[str]) -> str:
    """Return why an environment cannot be forked, or an empty string.

    It can be if it declares `forkable = True`. Without a declaration it is tried: after a reset it may own no
    descriptor, thread or subprocess (a server behind a socket would be stepped for the parent too), and along a whole
    trajectory a child's step must leave the parent in its state. The steps of the trial are counted as used.
    """
    if not hasattr(os, "fork") or not _PROC.exists():
        return "this system has no fork"
    declared = getattr(session.env.unwrapped, "forkable", None)
    if declared is not None:
        return "" if declared else "it declares forkable = False"
    replayer = Replayer(session, sample, 0)
    try:
        replayer.reach(0)
        restore = ForkRestore()
        for step, recorded in enumerate(sample.steps):
            problem = _owns(owned)
            if problem:
                return problem
            child = restore.execute(replayer, step, recorded.action)
            replayer.reach(step + 1)
            if replayer.walked[step] != child:
                return f"at step {step} of a trial, child and parent saw different outcomes"
        problem = _owns(owned)
        if problem:
            return problem
    except StateLostError as error:
        return f"in a trial, {error}"
    return "" if not replayer.faults else f"in a trial, {replayer.faults[0].message}"


def _owns(owned: frozenset[str]) -> str:
    extra = process_resources() - owned
    if extra:
        return f"it owns {', '.join(sorted(extra)[:3])}"
    return "its process has threads" if threading.active_count() > 1 else ""


def _in_child(replayer: Replayer, action: str) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _report(replayer, action, reading, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind = "time limit" if number == signal.SIGALRM else "died"
        raise StateLostError(kind, f"the process that executed {action!r} was ended by {signal.Signals(number).name}")
    if not content:
        raise StateLostError("died", f"the process that executed {action!r} ended without an answer")
    reply = _REPLY.validate_json(content)
    if isinstance(reply, Outcome):
        return reply
    raise StateLostError(*reply)


def _report(replayer: Replayer, action: str, reading: int, writing: int) -> None:
    """Execute in the child, answer, and end without running anything that the parent registered for its end."""
    try:
        os.close(reading)
        try:
            reply: Outcome | tuple[str, str] = replayer.act(action)
        except StateLostError as error:
            reply = (error.kind, str(error))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(_REPLY.dump_json(reply))
    finally:
        os._exit(0)
