"""Restoring a state by forking the process of the environment, and the trial that shows whether that is safe."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import TypeAdapter

from verl_ee.envs import ExpertTrajectory
from verl_ee.experience.branching.protocol import StateLostError
from verl_ee.experience.branching.replayer import Replayer
from verl_ee.experience.branching.session import EnvironmentSession
from verl_ee.experience.outcome import Outcome

_CHILD_RESULT: TypeAdapter[Outcome | tuple[str, str]] = TypeAdapter(Outcome | tuple[str, str])
_PROC = Path("/proc/self")


class ForkRestore:
    """A forked child executes the action and reports; the parent stays in the state."""

    name = "fork"

    def arrive(self, replayer: Replayer) -> None:
        """Do nothing: the process itself is the snapshot."""

    def execute(self, replayer: Replayer, step: int, action: str) -> Outcome:
        """Reach the state of `step` and execute `action` in a child.

        Raises:
            StateLostError: if the state was not reached, or the child failed.
        """
        replayer.reach(step)
        try:
            return _execute_in_child(replayer, action)
        finally:
            # A child that was ended has left its timer running.
            replayer.session.meter.stop_timer()

    def leave(self, replayer: Replayer, step: int) -> None:
        """Do nothing: the parent never left the state."""


@dataclass(frozen=True)
class ForkTrial:
    """The result of forking an environment along a trajectory.

    Attributes:
        problem: why the environment cannot be forked, or an empty string.
        seconds: duration of each fork, the step of the child included.
    """

    problem: str
    seconds: tuple[float, ...] = ()


def process_resources() -> frozenset[str]:
    """Return what this process owns that a forked child would share or lack: descriptors, threads, subprocesses."""
    resources = {f"thread {entry.name}" for entry in (_PROC / "task").iterdir()}
    for entry in (_PROC / "fd").iterdir():
        try:
            resources.add(f"descriptor {entry.name} ({os.readlink(entry)})")
        except OSError:  # the descriptor of this very listing
            continue
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == os.getpid():
            resources.add(f"subprocess {entry.parent.name}")
    return frozenset(resources)


def declared_forkable(session: EnvironmentSession) -> bool | None:
    """Return what an environment declares as `forkable`, or None; false on a system without fork."""
    if not _can_fork():
        return False
    declared = getattr(session.env.unwrapped, "forkable", None)
    return None if declared is None else bool(declared)


def fork_problem(session: EnvironmentSession, sample: ExpertTrajectory, inherited: frozenset[str]) -> str:
    """Return why an environment cannot be forked, or an empty string.

    It can be if it declares `forkable = True`. Without a declaration `try_forks` finds out.

    Args:
        session: holds the environment.
        sample: a trajectory for the trial.
        inherited: `process_resources()` from before the environment was made.
    """
    if not _can_fork():
        return "this system has no fork"
    declared = declared_forkable(session)
    if declared is None:
        return try_forks(session, sample, inherited).problem
    return "" if declared else "it declares forkable = False"


def try_forks(session: EnvironmentSession, sample: ExpertTrajectory, inherited: frozenset[str]) -> ForkTrial:
    """Fork along a whole trajectory, and compare what child and parent see.

    After a reset the environment may own no descriptor, thread or subprocess: a server behind a socket would be stepped
    for the parent too. And a child's step must leave the parent in its state. The steps of the trial are counted.

    Args:
        session: holds the environment.
        sample: the trajectory.
        inherited: `process_resources()` from before the environment was made.
    """
    replayer = Replayer(session, sample, 0)
    restore, seconds = ForkRestore(), list[float]()
    try:
        replayer.reach(0)
        for step, recorded in enumerate(sample.steps):
            problem = _resource_problem(inherited)
            if problem:
                return ForkTrial(problem)
            began = time.perf_counter()
            outcome = restore.execute(replayer, step, recorded.action)
            seconds.append(time.perf_counter() - began)
            replayer.reach(step + 1)
            if replayer.expert_outcomes[step] != outcome:
                return ForkTrial(f"at step {step} of a trial, child and parent saw different outcomes")
    except StateLostError as error:
        return ForkTrial(f"in a trial, {error}")
    if replayer.faults:
        return ForkTrial(f"in a trial, {replayer.faults[0].message}")
    return ForkTrial(_resource_problem(inherited), tuple(seconds))


def time_forks(session: EnvironmentSession, sample: ExpertTrajectory, count: int) -> tuple[float, ...]:
    """Return how long `count` forks take in the first state of a trajectory, the step of the child included.

    Raises:
        StateLostError: if a child failed.
    """
    replayer = Replayer(session, sample, 0)
    restore, seconds = ForkRestore(), list[float]()
    replayer.reach(0)
    for _ in range(count):
        began = time.perf_counter()
        restore.execute(replayer, 0, sample.steps[0].action)
        seconds.append(time.perf_counter() - began)
    return tuple(seconds)


def _can_fork() -> bool:
    return hasattr(os, "fork") and _PROC.exists()


def _resource_problem(inherited: frozenset[str]) -> str:
    own = process_resources() - inherited
    if own:
        return f"it owns {', '.join(sorted(own)[:3])}"
    return "its process has threads" if threading.active_count() > 1 else ""


def _execute_in_child(replayer: Replayer, action: str) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _run_child(replayer, action, reading, writing)
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
    result = _CHILD_RESULT.validate_json(content)
    if isinstance(result, Outcome):
        return result
    raise StateLostError(*result)


def _run_child(replayer: Replayer, action: str, reading: int, writing: int) -> NoReturn:
    """Execute in the child, report, and end without running anything that the parent registered for its end."""
    try:
        os.close(reading)
        try:
            result: Outcome | tuple[str, str] = replayer.act(action)
        except StateLostError as error:
            result = (error.kind, str(error))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(_CHILD_RESULT.dump_json(result))
    finally:
        os._exit(0)
